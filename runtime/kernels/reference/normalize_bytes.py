"""Samples that are fed as bytes."""

from __future__ import annotations

from bnnopt.runtime.kernels.on_read import normalized
from bnnopt.runtime.kernels.reference.kernel import NumpyKernel
from bnnopt.runtime.kernels.reference.parts import Axes

KERNELS: dict[str, NumpyKernel] = {
    "NormalizeBytes": NumpyKernel(normalized, Axes("0--", "0")),
    "NormalizeOnRead": NumpyKernel(normalized, Axes("0--", "0")),
}
