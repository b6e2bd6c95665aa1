"""Binary products against the matrix product of the same size on unpacked floats (numpy's BLAS).

    python -m benchmarks.kernels --threads 2 --repeats 15

On a machine that others use, compare processor time on one thread:

    OPENBLAS_NUM_THREADS=1 python -m benchmarks.kernels --threads 1 --cpu-time

The float side gets its operands unpacked and laid out as columns beforehand, for nothing; the
binary side starts from what a training step keeps. Both alternate in one process and the fastest
runs are compared: read the ratios, not the times.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Sequence

import numpy as np

from bnnopt.runtime.executor import aligned_empty
from bnnopt.runtime.format import Attribute
from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled.calls import Attributes
from bnnopt.runtime.kernels.compiled.table import COMPILED
from bnnopt.runtime.kernels.tiling import scratch_bytes
from bnnopt.runtime.library import library

Clock = Callable[[], float]
INSTRUCTIONS = ("portable", "avx2", "avx512", "avx512-popcount")
RNG = np.random.default_rng(0)
CONVOLUTIONS = [  # batch, channels, filters, size, kernel, stride
    (20, 128, 128, 32, 3, 1),
    (20, 256, 256, 16, 3, 1),
    (20, 512, 512, 8, 3, 1),
    (20, 64, 64, 56, 3, 1),
    (20, 128, 256, 28, 3, 2),
    (20, 256, 512, 14, 1, 1),
    (1, 128, 128, 32, 3, 1),
]
LAYERS = [(100, 8192, 1024), (100, 1024, 1024), (100, 256, 256), (1, 1024, 1024)]  # N, K, M


def main() -> None:
    """Print a table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument(
        "--kernels", choices=INSTRUCTIONS, default=INSTRUCTIONS[-1], help="none above these"
    )
    parser.add_argument("--cpu-time", action="store_true", help="processor time, not wall time")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    loaded = library()
    if loaded is None:
        raise SystemExit("the compiled kernels were not built")
    loaded.bnn_set_threads(options.threads)
    loaded.bnn_limit_kernels(INSTRUCTIONS.index(options.kernels))
    print(f"{'':34}{'float ms':>10}{'binary ms':>11}{'ratio':>8}{'GOPS':>8}{'scratch KB':>12}")
    for convolution in CONVOLUTIONS:
        bench_convolution(*convolution, options.repeats, clock)
    for layer in LAYERS:
        bench_layer(*layer, options.repeats, clock)


def bench_convolution(
    n: int, c: int, m: int, size: int, kernel: int, stride: int, repeats: int, clock: Clock
) -> None:
    """Forward, weight gradient and input gradient of one convolution."""
    pad = kernel // 2
    result = (size + 2 * pad - kernel) // stride + 1
    shared: dict[str, Attribute] = {
        "strides": [stride] * 2,
        "pads": [pad] * 4,
        "dilations": [1, 1],
        "group": 1,
    }
    x_shape, w_shape, space = [c, size, size], [c, kernel, kernel], [size, size]
    x, w = bits(n, x_shape), bits(m, w_shape)
    y = RNG.standard_normal((n, m, result, result)).astype(np.float32)
    fan_in, positions = c * kernel * kernel, n * result * result
    columns, weights, dy = floats(positions, fan_in), floats(m, fan_in), floats(positions, m)
    name = f"conv {c}->{m} {size}x{size} k{kernel} s{stride} n{n}"
    padding = [(size + 2 * pad - kernel) % stride] * 2
    compare(
        f"{name} forward", lambda: columns @ weights.T, "BinaryConv", [x, w], y,
        {"x_shape": x_shape, "w_shape": w_shape, "dtype": 1, **shared}, repeats, clock,
    )  # fmt: skip
    compare(
        f"{name} dw", lambda: dy.T @ columns, "BinaryConvWeightGrad", [x, y],
        np.empty((m, *w_shape), np.float32),
        {"x_shape": x_shape, "kernel_shape": [kernel] * 2, **shared}, repeats, clock,
    )  # fmt: skip
    compare(
        f"{name} dx", lambda: dy @ weights, "BinaryConvInputGrad", [y, w],
        np.empty((n, *x_shape), np.float32),
        {"input_shape": space, "w_shape": w_shape, "output_padding": padding, **shared},
        repeats, clock,
    )  # fmt: skip


def bench_layer(n: int, k: int, m: int, repeats: int, clock: Clock) -> None:
    """Forward, weight gradient and input gradient of one dense layer."""
    x, w, y = bits(n, [k]), bits(m, [k]), RNG.standard_normal((n, m)).astype(np.float32)
    inputs, weights = floats(n, k), floats(m, k)
    name = f"dense {n}x{k}->{m}"
    compare(
        f"{name} forward", lambda: inputs @ weights.T, "BinaryGemm", [x, w], y.copy(),
        {"x_shape": [k], "w_shape": [k], "dtype": 1}, repeats, clock,
    )  # fmt: skip
    compare(
        f"{name} dw", lambda: y.T @ inputs, "BinaryGemmWeightGrad", [x, y],
        np.empty((m, k), np.float32), {"x_shape": [k]}, repeats, clock,
    )  # fmt: skip
    compare(
        f"{name} dx", lambda: y @ weights, "BinaryGemmInputGrad", [y, w],
        np.empty((n, k), np.float32), {"w_shape": [k]}, repeats, clock,
    )  # fmt: skip


def compare(
    name: str,
    float_product: Callable[[], Array],
    op: str,
    inputs: Sequence[Array],
    output: Array,
    attributes: Attributes,
    repeats: int,
    clock: Clock,
) -> None:
    """Alternate the two, print the fastest runs."""
    loaded = library()
    assert loaded is not None
    shapes = [array.shape for array in inputs], [output.shape]
    scratch = aligned_empty(scratch_bytes(op, *shapes, attributes, loaded.bnn_threads()) or 0)

    def binary_product() -> None:
        assert COMPILED[op](inputs, [output], attributes, scratch)

    float_product()
    binary_product()
    products = (float_product, binary_product)
    times = [[_seconds(product, clock) for product in products] for _ in range(repeats)]
    float_s, binary_s = (min(column) for column in zip(*times, strict=True))
    gops = _operations(op, inputs, output, attributes) / binary_s / 1e9
    print(
        f"{name:34}{1e3 * float_s:10.2f}{1e3 * binary_s:11.2f}{float_s / binary_s:8.2f}"
        f"{gops:8.0f}{scratch.size / 1024:12.0f}"
    )


def _operations(op: str, inputs: Sequence[Array], output: Array, attributes: Attributes) -> int:
    """Multiplications and additions, those on the padding included."""
    if "Gemm" in op:
        shape = attributes.get("x_shape") or attributes["w_shape"]
        others = {"BinaryGemm": inputs[1], "BinaryGemmWeightGrad": inputs[0]}.get(op, inputs[1])
        first = {"BinaryGemm": inputs[0], "BinaryGemmWeightGrad": output}.get(op, inputs[0])
        return 2 * len(first) * len(others) * math.prod(shape)  # type: ignore[arg-type]
    w_shape = attributes.get("w_shape") or output.shape[1:]
    y = output if op == "BinaryConv" else next(a for a in inputs if a.ndim == 4)
    return 2 * y.size * math.prod(w_shape)  # type: ignore[arg-type]


def bits(n: int, shape: Sequence[int]) -> Array:
    """Random bits, packed by row."""
    rows = RNG.integers(0, 2, (n, math.prod(shape)), np.uint8)
    return np.packbits(rows, axis=1, bitorder="little")


def floats(rows: int, columns: int) -> Array:
    """Random -1 and +1."""
    return RNG.choice(np.array([-1, 1], np.float32), (rows, columns))


def _seconds(function: Callable[[], object], clock: Clock) -> float:
    start = clock()
    function()
    return clock() - start


if __name__ == "__main__":
    main()
