"""The compiled binary products: XNOR and popcount forward, signed sums of floats backward.

They cover convolutions of one and two dimensions and dense layers, any shape. The scratch memory
that a call needs is `tiling.scratch_bytes`, aligned to 64 bytes.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled.calls import (
    FLOAT16,
    FLOAT32,
    INT8,
    TYPES,
    UINT8,
    Arrays,
    Attributes,
    KernelCall,
    covered,
)
from bnnopt.runtime.kernels.compiled.functions import CFunction
from bnnopt.runtime.kernels.compiled.kernel import CompiledKernel, ScratchRule
from bnnopt.runtime.kernels.tiling import scratch_bytes, tiling

Dtypes: TypeAlias = tuple[np.dtype[Any], ...]

BITS: Dtypes = (UINT8,)
FLOATS: Dtypes = (FLOAT32, FLOAT16)
WHOLE: Dtypes = (*FLOATS, np.dtype(np.int16))
SUMS: Dtypes = (FLOAT32,)
INTEGERS: Dtypes = (INT8,)
INT4_TYPE = 22  # of packed integers, as ONNX and C number it
UNIT: Dtypes = (np.dtype("f4"),)  # behind a dy of packed powers of two, or of integers

CONV = CFunction("int bnn_conv_b1b1(bnn_conv*, uint8_t*, uint8_t*, void*, i64, uint8_t*, i64)")
CONV_INPUT_GRAD = CFunction(
    "int bnn_conv_input_grad_b1(bnn_conv*, void*, float*, uint8_t*, void*, i64, i64, uint8_t*, i64)"
)
CONV_WEIGHT_GRAD = CFunction(
    "int bnn_conv_weight_grad_b1(bnn_conv*, uint8_t*, void*, float*, void*, bnn_update*, i64, i64, "
    "uint8_t*, i64)"
)
GEMM = CFunction("int bnn_gemm_b1b1(bnn_gemm*, uint8_t*, uint8_t*, void*, i64, uint8_t*, i64)")
GEMM_INPUT_GRAD = CFunction(
    "int bnn_gemm_input_grad_b1(bnn_gemm*, void*, float*, uint8_t*, void*, i64, i64, uint8_t*, i64)"
)
GEMM_WEIGHT_GRAD = CFunction(
    "int bnn_gemm_weight_grad_b1(bnn_gemm*, uint8_t*, void*, float*, void*, bnn_update*, i64, i64, "
    "uint8_t*, i64)"
)

# C function, and the dtypes of its operands and its result.
FUNCTIONS: dict[str, tuple[CFunction, tuple[Dtypes, ...], Dtypes]] = {
    "BinaryConv": (CONV, (BITS, BITS), WHOLE),
    "BinaryConvInputGrad": (CONV_INPUT_GRAD, (FLOATS, BITS), FLOATS),
    "BinaryConvInputGradInt8": (CONV_INPUT_GRAD, (INTEGERS, UNIT, BITS), FLOATS),
    "BinaryConvInputGradInt4": (CONV_INPUT_GRAD, (BITS, UNIT, BITS), FLOATS),
    "BinaryConvInputGradPow2": (CONV_INPUT_GRAD, (BITS, UNIT, BITS), FLOATS),
    "BinaryConvWeightGrad": (CONV_WEIGHT_GRAD, (BITS, FLOATS), SUMS),
    "BinaryConvWeightGradSigns": (CONV_WEIGHT_GRAD, (BITS, FLOATS), BITS),
    "BinaryConvWeightGradInt8": (CONV_WEIGHT_GRAD, (BITS, INTEGERS, UNIT), SUMS),
    "BinaryConvWeightGradSignsInt8": (CONV_WEIGHT_GRAD, (BITS, INTEGERS, UNIT), BITS),
    "BinaryConvWeightGradInt4": (CONV_WEIGHT_GRAD, (BITS, BITS, UNIT), SUMS),
    "BinaryConvWeightGradPow2": (CONV_WEIGHT_GRAD, (BITS, BITS, UNIT), SUMS),
    "BinaryConvWeightGradSignsInt4": (CONV_WEIGHT_GRAD, (BITS, BITS, UNIT), BITS),
    "BinaryConvWeightGradSignsPow2": (CONV_WEIGHT_GRAD, (BITS, BITS, UNIT), BITS),
    "BinaryGemm": (GEMM, (BITS, BITS), WHOLE),
    "BinaryGemmInputGrad": (GEMM_INPUT_GRAD, (FLOATS, BITS), FLOATS),
    "BinaryGemmInputGradInt8": (GEMM_INPUT_GRAD, (INTEGERS, UNIT, BITS), FLOATS),
    "BinaryGemmInputGradInt4": (GEMM_INPUT_GRAD, (BITS, UNIT, BITS), FLOATS),
    "BinaryGemmInputGradPow2": (GEMM_INPUT_GRAD, (BITS, UNIT, BITS), FLOATS),
    "BinaryGemmWeightGrad": (GEMM_WEIGHT_GRAD, (BITS, FLOATS), SUMS),
    "BinaryGemmWeightGradSigns": (GEMM_WEIGHT_GRAD, (BITS, FLOATS), BITS),
    "BinaryGemmWeightGradInt8": (GEMM_WEIGHT_GRAD, (BITS, INTEGERS, UNIT), SUMS),
    "BinaryGemmWeightGradSignsInt8": (GEMM_WEIGHT_GRAD, (BITS, INTEGERS, UNIT), BITS),
    "BinaryGemmWeightGradInt4": (GEMM_WEIGHT_GRAD, (BITS, BITS, UNIT), SUMS),
    "BinaryGemmWeightGradPow2": (GEMM_WEIGHT_GRAD, (BITS, BITS, UNIT), SUMS),
    "BinaryGemmWeightGradSignsInt4": (GEMM_WEIGHT_GRAD, (BITS, BITS, UNIT), BITS),
    "BinaryGemmWeightGradSignsPow2": (GEMM_WEIGHT_GRAD, (BITS, BITS, UNIT), BITS),
}


def product(op: str) -> KernelCall:
    """The call of a binary product or of a gradient of one, by the name of its operator."""
    function, wanted, wanted_result = FUNCTIONS[op]
    unit = wanted.index(UNIT) if UNIT in wanted else None
    dy = unit - 1 if unit is not None else wanted.index(FLOATS) if FLOATS in wanted else None

    def run(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
        arrays = [array for array in (*inputs, outputs[0]) if array is not None]
        for array, allowed in zip(arrays, (*wanted, wanted_result), strict=True):
            if array.dtype not in allowed or not covered(array, dtype=array.dtype):
                return False
        *operands, result = arrays
        cut = tiling(op, [array.shape for array in operands], [result.shape], attributes)
        if cut is None or scratch.ctypes.data % 64:
            return False
        given: list[Array | None] = [*operands]
        if dy is not None and unit is None:
            given.insert(dy + 1, None)
        types = [dy_type(op, operands[dy])] if dy is not None else []
        types.append(TYPES[result.dtype])
        given += [result, *[None] * ("WeightGrad" in op)]  # and no optimiser that takes it
        return function(cut, *given, *types, scratch, scratch.size)

    run.__doc__ = f"{op}; False, with nothing written, where the numpy kernel has to do it."
    return run


def dy_type(op: str, dy: Array) -> int:
    """C's ``enum bnn_type`` of the dy that a product reads."""
    return INT4_TYPE if op.endswith("Int4") else TYPES[dy.dtype]


def _scratch(name: str) -> ScratchRule:
    return lambda s: scratch_bytes(
        name, s.inputs, s.outputs, s.attributes, s.n_threads, s.overwritten_bytes
    )


KERNELS: dict[str, CompiledKernel] = {
    name: CompiledKernel(product(name), _scratch(name), repeatable=True) for name in FUNCTIONS
}
