"""The compiled bitmap codec, parallel over blocks of elements; bit-equal to its numpy twin."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled.calls import (
    Arrays,
    Attributes,
    covered,
    integers,
)
from bnnopt.runtime.kernels.compiled.functions import CFunction, is_dry_run
from bnnopt.runtime.kernels.compiled.kernel import CompiledKernel, ScratchRule
from bnnopt.runtime.library import is_portable

MARK = CFunction("void bnn_bitmap_mark_f32(float*, uint8_t*, i64*, i64, i64)")
MARK_LARGEST = CFunction(
    "void bnn_bitmap_mark_largest_f32(float*, uint32_t*, uint8_t*, i64*, i64, i64)"
)
KTH_MAGNITUDES = CFunction("void bnn_kth_magnitudes_f32(float*, uint32_t*, i64, i64, i64)")
GATHER = CFunction("void bnn_bitmap_gather_f32(float*, uint8_t*, float*, i64*, i64, i64, i64)")
FILL = CFunction("int bnn_bitmap_fill_f32(float*, uint8_t*, float*, i64, i64*, i64, i64, i64)")
SCATTER = CFunction("int bnn_bitmap_scatter_f32(uint8_t*, float*, i64, float*, i64*, i64, i64)")
RELU_GRAD = CFunction(
    "int bnn_bitmap_relu_grad_f32(float*, uint8_t*, float*, i64, float*, i64*, i64, i64)"
)

BLOCK = 4096  # elements, as in bnn_bitmap.c
SHORT_BLOCK = 512
OFFSET = np.dtype(np.int64)


def bitmap_pack(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`bitmap.bitmap_pack`; puts a longer array in `outputs` where the planned one is too small."""
    x, offsets = inputs[0], _offsets(inputs[0], scratch)
    if offsets is None or not _fits(x, outputs):
        return False
    assert x is not None
    MARK(x, outputs[0], offsets, *_rows(x))
    return _gather(x, outputs, offsets, by_row=False)


def pruned_bitmap_pack(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array
) -> bool:
    """`bitmap.pruned_bitmap_pack`, with outputs as `bitmap_pack`'s."""
    x = inputs[0]
    if x is None or x.ndim == 0 or x.size == 0 or not _fits(x, outputs):
        return False
    floor_bytes = _floor_bytes(x.shape)
    offsets = _offsets(x, scratch[floor_bytes:], by_row=True)
    (keep,) = integers(attributes, "keep") or [0]
    if offsets is None or not 1 <= keep <= _rows(x)[1]:
        return False
    floors = scratch[: 4 * len(x)].view(np.uint32)
    KTH_MAGNITUDES(x, floors, *_rows(x), keep)
    MARK_LARGEST(x, floors, outputs[0], offsets, *_rows(x))
    return _gather(x, outputs, offsets, by_row=True)


def _fits(x: Array | None, outputs: Arrays) -> bool:
    bits, values = outputs
    return covered(x, values) and covered(bits, dtype=np.uint8) and isinstance(outputs, list)


def _gather(x: Array, outputs: Arrays, offsets: Array, by_row: bool) -> bool:
    """Move the marked elements, into an array of their own where the planned one is too small."""
    assert isinstance(outputs, list)
    bits, values = outputs
    if is_dry_run() and is_portable():  # C alone has no other place
        return FILL(x, bits, values, values.size, offsets, *_rows(x), int(by_row))
    used = int(offsets[-1]) + 1
    if used > values.size:
        outputs[1] = values = np.empty(used, values.dtype)
    GATHER(x, bits, values, offsets, *_rows(x), int(by_row))
    values[used:] = 0
    return True


def bitmap_unpack(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`bitmap.bitmap_unpack`."""
    (bits, values), x = inputs, outputs[0]
    offsets = _offsets(x, scratch)
    if offsets is None or not covered(x, values) or not covered(bits, dtype=np.uint8):
        return False
    assert x is not None
    assert values is not None
    return SCATTER(bits, values, values.size, x, offsets, *_rows(x))


def bitmap_relu_grad(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array
) -> bool:
    """`bitmap.bitmap_relu_grad`; dx may be dy."""
    (dy, bits, values), dx = inputs, outputs[0]
    offsets = _offsets(dy, scratch)
    if offsets is None or not covered(dy, values, dx) or not covered(bits, dtype=np.uint8):
        return False
    assert dy is not None
    assert values is not None
    return RELU_GRAD(dy, bits, values, values.size, dx, offsets, *_rows(dy))


def _rows(dense: Array) -> tuple[int, int]:
    return len(dense), math.prod(dense.shape[1:])


def _offsets(dense: Array | None, scratch: Array, by_row: bool = False) -> Array | None:
    """The scratch memory as one offset a block and one more; None where it does not do."""
    if dense is None or dense.ndim == 0 or dense.size == 0:
        return None
    n_bytes = offset_bytes(dense.shape, by_row)
    if scratch.size < n_bytes or scratch.ctypes.data % OFFSET.itemsize:
        return None
    return scratch[:n_bytes].view(OFFSET)


def offset_bytes(shape: Sequence[int], by_row: bool = False, block: int = BLOCK) -> int:
    """Bytes of the offsets with which a tensor of this shape is encoded or decoded."""
    rows, row = shape[0], math.prod(shape[1:])
    if row % 8 == 0 and not by_row:  # one long row
        rows, row = 1, rows * row
    return OFFSET.itemsize * (rows * -(-row // block) + 1)


def _floor_bytes(shape: Sequence[int]) -> int:
    """One magnitude a sample, and so many bytes that offsets may follow."""
    return OFFSET.itemsize * -(-4 * shape[0] // OFFSET.itemsize)


def scratch_bytes(
    operator: str,
    inputs: Sequence[Sequence[int]],
    outputs: Sequence[Sequence[int]],
) -> int:
    """Bytes of the offsets that a step needs."""
    dense = outputs[0] if operator == "BitmapUnpack" else inputs[0]
    if operator == "PrunedBitmapPack":
        return _floor_bytes(dense) + offset_bytes(dense, by_row=True)
    return offset_bytes(dense)


def _scratch(name: str) -> ScratchRule:
    return lambda s: scratch_bytes(name, s.inputs, s.outputs)


KERNELS: dict[str, CompiledKernel] = {
    "BitmapPack": CompiledKernel(bitmap_pack, _scratch("BitmapPack"), grows=True),
    "BitmapReluGrad": CompiledKernel(bitmap_relu_grad, _scratch("BitmapReluGrad")),
    "BitmapUnpack": CompiledKernel(bitmap_unpack, _scratch("BitmapUnpack")),
    "PrunedBitmapPack": CompiledKernel(
        pruned_bitmap_pack, _scratch("PrunedBitmapPack"), grows=True
    ),
}
