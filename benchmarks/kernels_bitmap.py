"""The bitmap codec, and weight gradients that decode a bitmap tile by tile.

    python -m benchmarks.kernels_bitmap --threads 1

First nanoseconds an element of the codec. Then, for layers of BitTrain's networks, the weight
gradient that reads a bitmap against decoding the whole of it and reading that: milliseconds, their
ratio, the scratch memory of both and the dense map that is not there. All take turns in one
process and the fastest runs count. With ``--cpu-time`` on a machine that others use.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.kernels import INSTRUCTIONS
from bnnopt.runtime.executor import aligned_empty
from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled.kernel import Sizes
from bnnopt.runtime.kernels.compiled.table import COMPILED, scratch_bytes
from bnnopt.runtime.kernels.reference.table import KERNELS
from bnnopt.runtime.library import library

Call = Callable[[], object]
LAYERS = [  # batch, channels, filters, size, kernel, stride, groups
    (8, 64, 64, 224, 3, 1, 1),
    (8, 256, 256, 56, 3, 1, 1),
    (8, 512, 512, 14, 3, 1, 1),
    (8, 128, 16, 55, 1, 1, 1),
    (8, 16, 64, 55, 3, 1, 1),
    (8, 512, 64, 13, 1, 1, 1),
    (8, 64, 192, 27, 5, 1, 1),
    (8, 64, 64, 56, 3, 1, 1),
    (8, 64, 128, 56, 1, 2, 1),
    (8, 96, 96, 112, 3, 2, 96),
    (8, 144, 144, 56, 3, 1, 144),
]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--density", type=float, default=0.5)
    parser.add_argument("--kernels", choices=INSTRUCTIONS, default=INSTRUCTIONS[-1])
    parser.add_argument("--cpu-time", action="store_true", help="processor time, not wall time")
    options = parser.parse_args()
    loaded = library()
    if loaded is None:
        raise SystemExit("the compiled kernels were not built")
    loaded.bnn_set_threads(options.threads)
    loaded.bnn_limit_kernels(INSTRUCTIONS.index(options.kernels))
    codec((8, 64, 112, 112), options)
    print(f"{'':38}{'decoded':>9}{'fused ms':>9}{'ratio':>7}{'scratch KB':>18}{'dense KB':>9}")
    for layer in LAYERS:
        weight_gradient(*layer, options)


def sparse(shape: Sequence[int], density: float) -> Array:
    """Random numbers, rectified so that this share is left."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape, np.float32)
    return np.where(rng.random(shape) < density, np.abs(x), np.float32(0))


def codec(shape: Sequence[int], options: argparse.Namespace) -> None:
    """Nanoseconds an element to encode, to decode, for the gradient of a ReLU, and to copy."""
    x = sparse(shape, options.density)
    packed = KERNELS["BitmapPack"](x, capacity=x.size + 1)
    rest = {"shape": list(shape[1:])}
    decode, unpacked = bound("BitmapUnpack", [*packed], [x], rest)
    encode, _ = bound("BitmapPack", [x], [*packed], {"capacity": x.size + 1})
    mask, _ = bound("BitmapReluGrad", [x, *packed], [x], rest)
    calls = {"encode": encode, "decode": decode, "ReLU gradient": mask, "copy": x.copy}
    for name, seconds in zip(calls, fastest(list(calls.values()), options), strict=True):
        print(f"{name:16}{1e9 * seconds / x.size:6.2f} ns an element")
    assert unpacked[0].tobytes() == x.tobytes()


def weight_gradient(
    n: int, c: int, m: int, size: int, kernel: int, stride: int, group: int,
    options: argparse.Namespace,
) -> None:  # fmt: skip
    """One layer, both ways, to the same bits."""
    pad = kernel // 2
    result = (size + 2 * pad - kernel) // stride + 1
    x, dy = sparse((n, c, size, size), options.density), sparse((n, m, result, result), 1)
    dw = np.empty((m, c // group, kernel, kernel), np.float32)
    own = {
        **{"strides": [stride] * 2, "pads": [pad] * 4, "dilations": [1, 1], "group": group},
        "kernel_shape": [kernel] * 2,
    }
    rest = {"shape": list(x.shape[1:])}
    packed = KERNELS["BitmapPack"](x, capacity=1)
    decode, decoded = bound("BitmapUnpack", [*packed], [x], rest)
    dense, unfused = bound("ConvWeightGrad", [decoded[0], dy], [dw], own)
    fused, found = bound("BitmapConvWeightGrad", [*packed, dy], [dw], {**own, **rest})
    apart, together = fastest([lambda: (decode(), dense()), fused], options)
    assert found[0].tobytes() == unfused[0].tobytes()
    shapes = [[a.shape for a in arrays] for arrays in ((decoded[0], dy), (*packed, dy))]
    scratch = [
        scratch_bytes("ConvWeightGrad", Sizes(shapes[0], [dw.shape], own)) >> 10,
        scratch_bytes("BitmapConvWeightGrad", Sizes(shapes[1], [dw.shape], {**own, **rest})) >> 10,
    ]
    name = f"{c}->{m} {size}x{size} k{kernel} s{stride} g{group} n{n}"
    print(
        f"{name:38}{1e3 * apart:9.2f}{1e3 * together:9.2f}{together / apart:7.2f}"
        f"{scratch[0]:9} ->{scratch[1]:6}{x.nbytes >> 10:9}",
        flush=True,
    )


def bound(
    operator: str, inputs: list[Array], like: list[Array], attributes: dict[str, Any]
) -> tuple[Call, list[Array]]:
    """A call of a compiled kernel with its scratch, and the arrays that it writes."""
    outputs = [np.empty_like(array) for array in like]
    sizes = [[array.shape for array in arrays] for arrays in (inputs, outputs)]
    scratch = aligned_empty(scratch_bytes(operator, Sizes(*sizes, attributes)))

    def call() -> None:
        assert COMPILED[operator](inputs, outputs, attributes, scratch), "not covered"

    return call, outputs


def fastest(calls: Sequence[Call], options: argparse.Namespace) -> list[float]:
    """Let them take turns: the least seconds of each."""
    clock = time.process_time if options.cpu_time else time.perf_counter

    def seconds(call: Call) -> float:
        start = clock()
        call()
        return clock() - start

    turns = [[seconds(call) for call in calls] for _ in range(options.repeats + 1)]
    return [min(times[1:]) for times in zip(*turns, strict=True)]


if __name__ == "__main__":
    main()
