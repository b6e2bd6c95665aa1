"""Samples that are fed as bytes, and weights in float16."""

from __future__ import annotations

from bnnopt.runtime.kernels import at_least_float32
from bnnopt.runtime.kernels.on_read import normalized
from bnnopt.runtime.kernels.reference.kernel import NumpyKernel
from bnnopt.runtime.kernels.reference.parts import TILES, Axes

KERNELS: dict[str, NumpyKernel] = {
    "NormalizeBytes": NumpyKernel(normalized, Axes("0--", "0")),
    "NormalizeOnRead": NumpyKernel(normalized, Axes("0--", "0")),
    "WidenOnRead": NumpyKernel(at_least_float32, TILES),
}
