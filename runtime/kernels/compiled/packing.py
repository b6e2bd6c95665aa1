"""The compiled codecs of signs, masks and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled.calls import (
    INT8,
    TYPES,
    Arrays,
    Attributes,
    covered,
    integer,
    number,
    type_of,
)
from bnnopt.runtime.kernels.compiled.functions import Argument, CFunction
from bnnopt.runtime.kernels.compiled.kernel import CompiledKernel

PACK_BITS = CFunction("void bnn_pack_bits_b8(uint8_t*, uint8_t*, i64, i64)")
UNPACK_BITS = CFunction("void bnn_unpack_bits_b8(uint8_t*, uint8_t*, i64, i64)")
SIGN_PACK = CFunction("void bnn_sign_pack(void*, uint8_t*, i64, i64, i64)")
SIGN_UNPACK = CFunction("void bnn_sign_unpack_f32(uint8_t*, float*, i64, i64)")
NOT_NEGATIVE_PACK = CFunction("void bnn_not_negative_pack(void*, uint8_t*, i64, i64, i64)")
RANGE_PACK = CFunction("void bnn_range_pack(void*, uint8_t*, i64, i64, i64, float, float)")
THRESHOLD_PACK = CFunction("void bnn_threshold_pack(void*, float*, uint8_t*, i64, i64, i64, i64)")
MASKED_GRAD = CFunction("void bnn_masked_grad(void*, uint8_t*, void*, i64, i64, i64)")
INT8_PACK = CFunction("void bnn_int8_pack(void*, i64*, int8_t*, float*, i64, i64, i64)")
INT4_PACK = CFunction("void bnn_int4_pack(void*, i64*, uint8_t*, float*, i64, i64, i64, i64, i64)")
INT4_UNPACK = CFunction("void bnn_int4_unpack(uint8_t*, int8_t*, i64, i64)")
POW2_PACK = CFunction("void bnn_pow2_pack(void*, uint8_t*, float*, i64, i64, i64)")
WIDEN_LATENTS = CFunction("void bnn_widen_latents_f32(int8_t*, float*, i64, float)")
POW2_UNPACK = CFunction("void bnn_pow2_unpack_f32(uint8_t*, float*, float*, i64, i64)")


def pack_bits(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`packing.pack_bits` of a boolean tensor."""
    mask, packed = inputs[0], outputs[0]
    if not covered(mask, dtype=np.bool_) or not covered(packed, dtype=np.uint8):
        return False
    return _run_rows(PACK_BITS, mask, packed, mask, packed)


def sign_pack(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`packing.sign_pack`."""
    return _pack_floats(SIGN_PACK, inputs[0], outputs[0])


def binarize_pack(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`packing.binarize_pack`."""
    plus = number(attributes, "zero") > 0
    function = NOT_NEGATIVE_PACK if plus else SIGN_PACK
    return _pack_floats(function, inputs[0], outputs[0])


def widen_latents(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`latents.widen_latents`."""
    q, w = inputs[0], outputs[0]
    if not (covered(q, dtype=INT8) and covered(w)):
        return False
    assert w is not None
    return WIDEN_LATENTS(q, w, w.size, number(attributes, "unit"))


def range_pack(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`packing.range_pack`."""
    bounds = number(attributes, "low"), number(attributes, "high")
    return _pack_floats(RANGE_PACK, inputs[0], outputs[0], *bounds)


def _pack_floats(
    function: CFunction, x: Array | None, packed: Array | None, *bounds: float
) -> bool:
    x_type = TYPES[INT8] if covered(x, dtype=INT8) else type_of(x)
    if x_type is None or not covered(packed, dtype=np.uint8):
        return False
    return _run_rows(function, x, packed, x, packed, x_type, *bounds)


def threshold_pack(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`pooled_normalization.threshold_pack`."""
    (x, threshold), packed = inputs, outputs[0]
    x_type = type_of(x)
    if x_type is None or not covered(threshold) or not covered(packed, dtype=np.uint8):
        return False
    assert x is not None
    if x.ndim < 2 or x.size == 0:
        return False
    sizes = *x.shape[:2], math.prod(x.shape[2:])
    return THRESHOLD_PACK(x, threshold, packed, x_type, *sizes)


def unpack_bits(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`packing.unpack_bits`."""
    packed, mask = inputs[0], outputs[0]
    if not covered(packed, dtype=np.uint8) or not covered(mask, dtype=np.bool_):
        return False
    return _run_rows(UNPACK_BITS, mask, packed, packed, mask)


def sign_unpack(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`packing.sign_unpack`."""
    packed, x = inputs[0], outputs[0]
    if not covered(packed, dtype=np.uint8) or not covered(x):
        return False
    return _run_rows(SIGN_UNPACK, x, packed, packed, x)


def masked_grad(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`packing.masked_grad`; dx may be dy."""
    (dy, packed), dx = inputs, outputs[0]
    dy_type = type_of(dy)
    if dy_type is None or type_of(dx) != dy_type or not covered(packed, dtype=np.uint8):
        return False
    return _run_rows(MASKED_GRAD, dx, packed, dy, packed, dx, dy_type)


def int8_pack(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`int8.int8_pack`; q may begin where x does."""
    (x, step), (q, unit) = inputs, outputs
    x_type = type_of(x)
    if x_type is None or not covered(q, dtype=INT8) or not covered(unit):
        return False
    if not covered(step, dtype=np.int64):
        return False
    assert x is not None
    return INT8_PACK(x, step, q, unit, x.size, integer(attributes, "seed"), x_type)


def int4_pack(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`int4.int4_pack`."""
    (x, step), (packed, unit) = inputs, outputs
    x_type = type_of(x)
    if x_type is None or not covered(packed, dtype=np.uint8) or not covered(unit):
        return False
    if not covered(step, dtype=np.int64):
        return False
    numbers = integer(attributes, "seed"), integer(attributes, "one_in"), x_type
    return _run_int4(INT4_PACK, x, packed, x, step, packed, unit, *numbers)


def int4_unpack(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`int4.int4_unpack`."""
    packed, q = inputs[0], outputs[0]
    if not covered(packed, dtype=np.uint8) or not covered(q, dtype=INT8):
        return False
    return _run_int4(INT4_UNPACK, q, packed, packed, q)


def pow2_pack(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`pow2.pow2_pack`."""
    x, (packed, unit) = inputs[0], outputs
    x_type = type_of(x)
    if x_type is None or not covered(packed, dtype=np.uint8) or not covered(unit):
        return False
    return _run_pow2(POW2_PACK, x, packed, x, packed, unit, x_type)


def pow2_unpack(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`pow2.pow2_unpack`."""
    (packed, unit), x = inputs, outputs[0]
    if not covered(packed, dtype=np.uint8) or not covered(unit, x):
        return False
    return _run_pow2(POW2_UNPACK, x, packed, packed, unit, x)


def _run_rows(
    function: CFunction, full: Array | None, packed: Array | None, *arguments: Argument
) -> bool:
    """Call with the rows of `full` and their length, between the arrays and the numbers."""
    return _run_packed(function, full, packed, lambda row: -(-row // 8), arguments)


def _run_pow2(
    function: CFunction, full: Array | None, packed: Array | None, *arguments: Argument
) -> bool:
    """The same of powers of two in 5 bits."""
    return _run_packed(function, full, packed, lambda row: -(-row // 2) - (-row // 8), arguments)


def _run_int4(
    function: CFunction, full: Array | None, packed: Array | None, *arguments: Argument
) -> bool:
    """The same of integers in four bits."""
    return _run_packed(function, full, packed, lambda row: -(-row // 2), arguments)


def _run_packed(
    function: CFunction,
    full: Array | None,
    packed: Array | None,
    row_bytes: Callable[[int], int],
    arguments: Sequence[Argument],
) -> bool:
    assert full is not None
    assert packed is not None
    if full.ndim == 0:
        return False
    rows, row = len(full), math.prod(full.shape[1:])
    if packed.size != rows * row_bytes(row):
        return False
    arrays = [a for a in arguments if not isinstance(a, int | float)]
    return function(*arrays, rows, row, *arguments[len(arrays) :])


KERNELS: dict[str, CompiledKernel] = {
    "BinarizePack": CompiledKernel(binarize_pack, repeatable=True),
    "Int4Pack": CompiledKernel(int4_pack, repeatable=True),
    "Int4Unpack": CompiledKernel(int4_unpack, repeatable=True),
    "Int8Pack": CompiledKernel(int8_pack, repeatable=True),
    "MaskedGrad": CompiledKernel(masked_grad, repeatable=True),
    "PackBits": CompiledKernel(pack_bits, repeatable=True),
    "Pow2Pack": CompiledKernel(pow2_pack, repeatable=True),
    "Pow2Unpack": CompiledKernel(pow2_unpack, repeatable=True),
    "RangePack": CompiledKernel(range_pack, repeatable=True),
    "SignPack": CompiledKernel(sign_pack, repeatable=True),
    "SignUnpack": CompiledKernel(sign_unpack, repeatable=True),
    "ThresholdPack": CompiledKernel(threshold_pack, repeatable=True),
    "UnpackBits": CompiledKernel(unpack_bits, repeatable=True),
    "WidenLatents": CompiledKernel(widen_latents, repeatable=True),
}
