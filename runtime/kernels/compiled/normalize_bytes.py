"""Samples that are fed as bytes, in the compiled kernels."""

from __future__ import annotations

import math

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled.calls import Arrays, Attributes, covered
from bnnopt.runtime.kernels.compiled.functions import CFunction
from bnnopt.runtime.kernels.compiled.kernel import CompiledKernel

NORMALIZE = CFunction("void bnn_normalize_u8f32(uint8_t*, float*, float*, float*, i64, i64, i64)")


def normalize_bytes(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array
) -> bool:
    """`on_read.normalized` of bytes with a factor and a shift for each channel."""
    (x, factor, shift), y = inputs, outputs[0]
    if not (covered(x, dtype=np.uint8) and covered(factor, shift, y)):
        return False
    assert x is not None
    channels = x.shape[1] if x.ndim > 1 else 1
    return NORMALIZE(x, factor, shift, y, len(x), channels, math.prod(x.shape[2:]))


KERNELS: dict[str, CompiledKernel] = {
    "NormalizeBytes": CompiledKernel(normalize_bytes, repeatable=True),
}
