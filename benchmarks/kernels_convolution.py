"""Real-valued convolutions and their gradients against numpy's BLAS and PyTorch.

    python -m benchmarks.kernels_convolution --threads 1 --cpu-time

BLAS gets its columns laid out beforehand, for nothing: it multiplies the same matrices and does no
more. A depthwise convolution has no such product, and there it stands for numpy's kernel. All take
turns in one process and the fastest runs count: read the ratios, not the times. Needs PyTorch.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.kernels import INSTRUCTIONS
from bnnopt.runtime.executor import aligned_empty
from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled.convolution import scratch_bytes
from bnnopt.runtime.kernels.compiled.table import COMPILED
from bnnopt.runtime.kernels.reference.table import KERNELS
from bnnopt.runtime.library import library

RNG = np.random.default_rng(0)
CONVOLUTIONS = [  # batch, channels, filters, size, kernel, stride, groups
    (100, 3, 128, 32, 3, 1, 1),
    (8, 3, 64, 224, 7, 2, 1),
    (20, 128, 128, 32, 3, 1, 1),
    (8, 64, 64, 56, 3, 1, 1),
    (8, 64, 128, 56, 3, 2, 1),
    (8, 512, 512, 7, 3, 1, 1),
    (8, 64, 128, 28, 1, 1, 1),
    (8, 256, 512, 7, 1, 1, 1),
    (8, 64, 128, 56, 1, 2, 1),
    (8, 128, 128, 28, 3, 1, 128),
    (8, 256, 256, 14, 3, 2, 256),
]


def main() -> None:
    """Print a table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--kernels", choices=INSTRUCTIONS, default=INSTRUCTIONS[-1])
    parser.add_argument("--cpu-time", action="store_true", help="processor time, not wall time")
    options = parser.parse_args()
    _with_threads(options.threads)
    loaded = library()
    if loaded is None:
        raise SystemExit("the compiled kernels were not built")
    loaded.bnn_set_threads(options.threads)
    loaded.bnn_limit_kernels(INSTRUCTIONS.index(options.kernels))
    print(
        f"{'':44}{'ms':>8}{'GFLOPS':>8}{'BLAS':>8}{'PyTorch':>9}{'scratch KB':>12}   (speed over)"
    )
    for convolution in CONVOLUTIONS:
        bench(*convolution, options)


def _with_threads(n: int) -> None:
    """Numpy's BLAS reads its threads when it is loaded: start again with them set."""
    wanted = {"OMP_NUM_THREADS": str(n), "OPENBLAS_NUM_THREADS": str(n)}
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.environ.update(wanted)
        command = [sys.executable, "-m", "benchmarks.kernels_convolution", *sys.argv[1:]]
        os.execv(sys.executable, command)


def bench(
    n: int, c: int, m: int, size: int, kernel: int, stride: int, group: int,
    options: argparse.Namespace,
) -> None:  # fmt: skip
    """Forward, weight gradient and input gradient of one convolution."""
    import torch

    torch.set_num_threads(options.threads)
    pad = kernel // 2
    result = (size + 2 * pad - kernel) // stride + 1
    padding = [(size + 2 * pad - kernel) % stride] * 2
    x, w, dy = (
        normal(*shape)
        for shape in [(n, c, size, size), (m, c // group, kernel, kernel), (n, m, result, result)]
    )
    shared = {"strides": [stride] * 2, "pads": [pad] * 4, "dilations": [1, 1], "group": group}
    to_input = {"input_shape": [size, size], "output_padding": padding, **shared}
    calls = {
        "Conv": ([x, w], np.empty_like(dy), shared),
        "ConvWeightGrad": ([x, dy], np.empty_like(w), {"kernel_shape": [kernel] * 2, **shared}),
        "ConvInputGrad": ([dy, w], np.empty_like(x), to_input),
    }
    images, weights, gradient = (torch.from_numpy(array) for array in (x, w, dy))

    def backward(*wanted: bool) -> Callable[[], object]:
        return lambda: torch.ops.aten.convolution_backward(
            gradient, images, weights, None, [stride] * 2, [pad] * 2, [1, 1], False, [0, 0], group,
            [*wanted, False],
        )  # fmt: skip

    theirs = {
        "Conv": lambda: torch.conv2d(images, weights, None, stride, pad, 1, group),
        "ConvWeightGrad": backward(False, True),
        "ConvInputGrad": backward(True, False),
    }
    terms, positions = c // group * kernel * kernel, n * result * result
    blas = products(m, terms, positions) if group == 1 else {}
    name, n_operations = f"{c}->{m} {size}x{size} k{kernel} s{stride} g{group} n{n}", 2 * m * terms
    for operator, call in calls.items():
        times = compare(operator, *call, blas.get(operator), theirs[operator], options)
        scratch_kb, ours, numpy_s, torch_s = times
        print(
            f"{name + ' ' + (operator[4:] or 'y'):44}{1e3 * ours:8.2f}"
            f"{1e-9 * n_operations * positions / ours:8.0f}{numpy_s / ours:8.2f}"
            f"{torch_s / ours:9.2f}{scratch_kb:12.0f}"
        )


def compare(
    operator: str,
    inputs: list[Array],
    output: Array,
    attributes: dict[str, Any],
    blas: Callable[[], object] | None,
    theirs: Callable[[], object],
    options: argparse.Namespace,
) -> tuple[float, ...]:
    """Let the three take turns: KiB of scratch, and the least seconds of each."""
    shapes = [array.shape for array in inputs], [output.shape]
    n_bytes = scratch_bytes(operator, *shapes, attributes, options.threads)
    assert n_bytes is not None
    scratch = aligned_empty(n_bytes)

    def ours() -> None:
        assert COMPILED[operator](inputs, [output], attributes, scratch)

    contestants = [ours, blas or (lambda: KERNELS[operator](*inputs, **attributes)), theirs]
    clock = time.process_time if options.cpu_time else time.perf_counter
    turns = [[_seconds(call, clock) for call in contestants] for _ in range(options.repeats + 1)]
    return n_bytes / 1024, *(min(times[1:]) for times in zip(*turns, strict=True))


def products(m: int, terms: int, positions: int) -> dict[str, Callable[[], Array]]:
    """The same matrix products on columns that are there already."""
    weights, columns, gradient = normal(m, terms), normal(terms, positions), normal(m, positions)
    return {
        "Conv": lambda: weights @ columns,
        "ConvWeightGrad": lambda: gradient @ columns.T,
        "ConvInputGrad": lambda: weights.T @ gradient,
    }


def _seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start


def normal(*shape: int) -> Array:
    """Random numbers."""
    return RNG.standard_normal(shape).astype(np.float32)


if __name__ == "__main__":
    main()
