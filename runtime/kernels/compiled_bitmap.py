"""The compiled bitmap codec, parallel over blocks of elements; bit-equal to its numpy twin."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from bnnopt.runtime.format import Attribute
from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled import Arrays, Attributes, CompiledKernel, call, covered

BLOCK = 4096  # elements, as in bnn_bitmap.c
OFFSET = np.dtype(np.int64)


def bitmap_pack(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`bitmap.bitmap_pack`; puts a longer array in `outputs` where the planned one is too small."""
    x, (bits, values) = inputs[0], outputs
    offsets = _offsets(x, scratch)
    if offsets is None or not covered(x, values) or not covered(bits, dtype=np.uint8):
        return False
    assert x is not None
    assert values is not None
    sizes = len(x), math.prod(x.shape[1:])
    call("bnn_bitmap_mark_f32", x, bits, offsets, *sizes)
    used = int(offsets[-1]) + 1
    if used > values.size:
        if not isinstance(outputs, list):
            return False
        outputs[1] = values = np.empty(used, values.dtype)
    call("bnn_bitmap_gather_f32", x, bits, values, offsets, *sizes)
    values[used:] = 0
    return True


def bitmap_unpack(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`bitmap.bitmap_unpack`."""
    (bits, values), x = inputs, outputs[0]
    offsets = _offsets(x, scratch)
    if offsets is None or not covered(x, values) or not covered(bits, dtype=np.uint8):
        return False
    assert x is not None
    sizes = len(x), math.prod(x.shape[1:])
    call("bnn_bitmap_scatter_f32", bits, values, x, offsets, *sizes)
    return True


def bitmap_relu_grad(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array
) -> bool:
    """`bitmap.bitmap_relu_grad`; dx may be dy."""
    (dy, bits, values), dx = inputs, outputs[0]
    offsets = _offsets(dy, scratch)
    if offsets is None or not covered(dy, values, dx) or not covered(bits, dtype=np.uint8):
        return False
    assert dy is not None
    sizes = len(dy), math.prod(dy.shape[1:])
    call("bnn_bitmap_relu_grad_f32", dy, bits, values, dx, offsets, *sizes)
    return True


def _offsets(dense: Array | None, scratch: Array) -> Array | None:
    """The scratch memory as one offset a block and one more; None where it does not do."""
    if dense is None or dense.ndim == 0 or dense.size == 0:
        return None
    n_bytes = _offset_bytes(dense.shape)
    if scratch.size < n_bytes or scratch.ctypes.data % OFFSET.itemsize:
        return None
    return scratch[:n_bytes].view(OFFSET)


def _offset_bytes(shape: Sequence[int]) -> int:
    rows, row = shape[0], math.prod(shape[1:])
    if row % 8 == 0:  # one long row
        rows, row = 1, rows * row
    return OFFSET.itemsize * (rows * -(-row // BLOCK) + 1)


def scratch_bytes(
    operator: str,
    inputs: Sequence[Sequence[int]],
    outputs: Sequence[Sequence[int]],
    attributes: Mapping[str, Attribute],
) -> int:
    """Bytes of the offsets that a step needs."""
    dense = outputs[0] if operator == "BitmapUnpack" else inputs[0]
    return _offset_bytes(dense)


COMPILED_BITMAP: dict[str, CompiledKernel] = {
    "BitmapPack": bitmap_pack,
    "BitmapReluGrad": bitmap_relu_grad,
    "BitmapUnpack": bitmap_unpack,
}
