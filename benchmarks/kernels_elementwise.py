"""Nanoseconds per element of the memory-bound kernels, compiled against numpy.

    python benchmarks/kernels_elementwise.py [--threads 2] [--rounds 5] [operator ...]

13.1 M elements, a batch of 100 of BinaryNet's first activation, (100, 128, 32, 32). The two take
turns and the least time of each counts. Elements are those of the larger of input and output.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled.table import COMPILED
from bnnopt.runtime.kernels.reference.table import KERNELS
from bnnopt.runtime.library import library

SHAPE = (100, 128, 32, 32)
RNG = np.random.default_rng(1)
Case = tuple[str, list[Array], dict[str, object]]


def cases() -> dict[str, Callable[[], Case]]:
    """Operator (and layout) to what makes its inputs and attributes."""
    rows, window = (12_800, 1024), {"kernel_shape": [2, 2], "strides": [2, 2]}
    range_ = {"low": -1.0, "high": 1.0}
    adam = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
    lr = np.array(0.01, np.float32)
    return {
        "SignPack": lambda: ("SignPack", [x()], {}),
        "BinarizePack": lambda: ("BinarizePack", [x()], {"zero": 1.0}),
        "RangePack": lambda: ("RangePack", [x()], range_),
        "SignUnpack": lambda: ("SignUnpack", [packed()], {"shape": [*SHAPE[1:]]}),
        "PackBits": lambda: ("PackBits", [x() > 0], {}),
        "UnpackBits": lambda: ("UnpackBits", [packed()], {"shape": [*SHAPE[1:]]}),
        "MaskedGrad": lambda: ("MaskedGrad", [x(), packed()], {"shape": [*SHAPE[1:]]}),
        "Binarize": lambda: ("Binarize", [x()], {"zero": 1.0, "ste": "clip", "clip": 1.0}),
        "ClipGrad": lambda: ("ClipGrad", [x(), x()], range_),
        "ReluGrad": lambda: ("ReluGrad", [x(), x()], {}),
        "Relu": lambda: ("Relu", [x()], {}),
        "Clip": lambda: ("Clip", [x(), np.array(-1, np.float32), np.array(1, np.float32)], {}),
        "Add": lambda: ("Add", [x(), x()], {}),
        "Mul scalar": lambda: ("Mul", [x(), np.array(2, np.float32)], {}),
        "Transpose (N, C)": lambda: ("Transpose", [x(*rows)], {}),
        "Transpose NCHW to NHWC": lambda: ("Transpose", [x()], {"perm": [0, 2, 3, 1]}),
        "BatchNormalizationTraining": lambda: normalization(SHAPE),
        "BatchNormalizationTraining (N, C)": lambda: normalization(rows),
        "BatchNormalizationTraining 4x4": lambda: normalization((1600, 512, 4, 4)),
        "BatchNormalizationSigns": lambda: normalization_signs("BatchNormalizationSigns"),
        "L1BatchNormalizationSigns": lambda: normalization_signs("L1BatchNormalizationSigns"),
        "BatchNormalizationSignsGrad": signs_grad,
        "BatchNormalizationGrad": lambda: normalization_grad(SHAPE),
        "BatchNormalizationGrad (N, C)": lambda: normalization_grad(rows),
        "MaxPool": lambda: ("MaxPool", [x()], window),
        "MaxPool 3x3 stride 1": lambda: ("MaxPool", [x()], {"kernel_shape": [3, 3]}),
        "MaxPool of 4x4": lambda: ("MaxPool", [x(1600, 512, 4, 4)], window),
        "AveragePool": lambda: ("AveragePool", [x()], window),
        "GlobalAveragePool": lambda: ("GlobalAveragePool", [x()], {}),
        "MaxPoolGrad": pool_grad,
        "PackedMaxPool": lambda: packed_pooling("PackedMaxPool"),
        "PackedMaxPoolGrad": lambda: packed_pooling("PackedMaxPoolGrad"),
        "SgdStep": lambda: ("SgdStep", [x(), x(), lr], {}),
        "MomentumStep": lambda: ("MomentumStep", [x(), x(), x(), lr], {"momentum": 0.9}),
        "AdamStep": lambda: ("AdamStep", [x(), x(), x(), np.abs(x()), lr, np.array(7)], adam),
    }


def x(*shape: int) -> Array:
    """Normal float32 of `shape`, or of `SHAPE`."""
    return RNG.standard_normal(shape or SHAPE, np.float32)


def packed() -> Array:
    """Random bits for `SHAPE`."""
    return RNG.integers(0, 256, (SHAPE[0], math.prod(SHAPE[1:]) // 8), np.uint8)


def normalization(shape: tuple[int, ...]) -> Case:
    """Batch normalisation of `shape`."""
    channels = [np.ones(shape[1], np.float32)] * 4
    name = "BatchNormalizationTraining"
    return name, [x(*shape), *channels], {"epsilon": 1e-5, "momentum": 0.9}


def normalization_grad(shape: tuple[int, ...]) -> Case:
    """Its gradient."""
    channels = [np.ones(shape[1], np.float32)] * 3
    return "BatchNormalizationGrad", [x(*shape), x(*shape), *channels], {}


def pooled_indices() -> Array:
    """Indices of a 2 x 2 pooling of `SHAPE`."""
    _, indices = KERNELS["MaxPool"](x(), kernel_shape=[2, 2], strides=[2, 2])
    return np.asarray(indices)


def pool_grad() -> Case:
    """The gradient of that pooling."""
    indices = pooled_indices()
    return "MaxPoolGrad", [x(*indices.shape), indices], {"input_shape": [*SHAPE[2:]]}


def normalization_signs(operator: str) -> Case:
    """Batch normalisation of `SHAPE` in int16 to signs, mask and levels."""
    channels = [np.ones(SHAPE[1], np.float32)] * 4
    attributes: dict[str, object] = {
        "epsilon": 1e-5, "momentum": 0.9, "zero": 1.0, "low": -1.0, "high": 1.0,
        "shape": [*SHAPE[1:]],
    }  # fmt: skip
    return operator, [(50 * x()).astype(np.int16), *channels], attributes


def signs_grad() -> Case:
    """The gradient from bits of `SHAPE`, in float16."""
    channels, tables = [np.ones(SHAPE[1], np.float32)] * 2, [x(SHAPE[1], 4)] * 2
    dy = x().astype(np.float16)
    attributes: dict[str, object] = {"shape": [*SHAPE[1:]]}
    return "BatchNormalizationSignsGrad", [dy, packed(), packed(), *channels, *tables], attributes


def packed_pooling(operator: str) -> Case:
    """`operator` for a 2 x 2 pooling of `SHAPE`."""
    _, c, h, w = SHAPE
    origin = np.add.outer(np.arange(0, h, 2) * w, np.arange(0, w, 2)).astype(np.int32)
    window: dict[str, object] = {
        "kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 0, 0], "dilations": [1, 1],
    }  # fmt: skip
    places: dict[str, object] = {
        "plane": h * w, "width": w, "kernel_width": 2, "row_dilation": 1, "column_dilation": 1,
        "bit_values": [1, 2],
    }  # fmt: skip
    if operator == "PackedMaxPool":
        return operator, [x(), origin], {**window, **places}
    y, packed = KERNELS["PackedMaxPool"](x(), origin, **window, **places)
    back: dict[str, object] = {"input_shape": [h, w], "bit_shape": [c, h // 2, w // 2, 2]}
    return operator, [y, packed, origin], {**places, **back}


def least_ns(case: Case, rounds: int) -> tuple[float, float]:
    """Least nanoseconds per element, compiled and numpy, the two taking turns."""
    operator, inputs, attributes = case
    twin = KERNELS[operator](*inputs, **attributes)
    outputs = list(twin) if isinstance(twin, tuple) else [twin]
    size = max(array.size for array in (*inputs, *outputs))
    scratch = np.empty(0, np.uint8)

    def compiled() -> None:
        assert COMPILED[operator](inputs, outputs, attributes, scratch)  # type: ignore[arg-type]

    def numpy() -> None:
        KERNELS[operator](*inputs, **attributes)

    times: dict[Callable[[], None], list[int]] = {compiled: [], numpy: []}
    for _ in range(rounds):
        for run, taken in times.items():
            start = time.perf_counter_ns()
            run()
            taken.append(time.perf_counter_ns() - start)
    return min(times[compiled]) / size, min(times[numpy]) / size


def main() -> None:
    """Print one row for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--portable", action="store_true", help="without the AVX2 variants")
    parser.add_argument("names", nargs="*", help="rows to run; all if none is given")
    options = parser.parse_args()
    loaded = library()
    assert loaded is not None
    loaded.bnn_set_threads(options.threads)
    loaded.bnn_limit_kernels(0 if options.portable else 2)
    print(f"{'ns per element':36} compiled    numpy  ratio")
    for name, make in cases().items():
        if options.names and name not in options.names:
            continue
        ours, numpys = least_ns(make(), options.rounds)
        print(f"{name:36} {ours:8.3f} {numpys:8.3f} {numpys / ours:6.1f}", flush=True)


if __name__ == "__main__":
    main()
