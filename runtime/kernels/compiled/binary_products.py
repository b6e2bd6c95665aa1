"""The compiled binary products: XNOR and popcount forward, signed sums of floats backward.

They cover convolutions of one and two dimensions and dense layers, any shape. The scratch memory
that a call needs is `tiling.scratch_bytes`, aligned to 64 bytes.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled.calls import Arrays, Attributes, KernelCall, call, covered
from bnnopt.runtime.kernels.tiling import tiling
from bnnopt.runtime.library import int64s

Dtypes: TypeAlias = tuple[np.dtype[Any], ...]

BITS: Dtypes = (np.dtype(np.uint8),)
FLOATS: Dtypes = (np.dtype(np.float32), np.dtype(np.float16))
WHOLE: Dtypes = (*FLOATS, np.dtype(np.int16))
SUMS: Dtypes = (np.dtype(np.float32),)
NUMBERS = {np.dtype(name): number for name, number in {"f4": 1, "u1": 2, "i2": 5, "f2": 10}.items()}
"""Dtypes as ONNX numbers them."""

UNIT: Dtypes = (np.dtype("f4"),)  # behind a dy of packed powers of two

# C function, and the dtypes of its operands and its result.
FUNCTIONS: dict[str, tuple[str, tuple[Dtypes, ...], Dtypes]] = {
    "BinaryConv": ("bnn_conv_b1b1", (BITS, BITS), WHOLE),
    "BinaryConvInputGrad": ("bnn_conv_input_grad_b1", (FLOATS, BITS), FLOATS),
    "BinaryConvInputGradPow2": ("bnn_conv_input_grad_b1", (BITS, UNIT, BITS), FLOATS),
    "BinaryConvWeightGrad": ("bnn_conv_weight_grad_b1", (BITS, FLOATS), SUMS),
    "BinaryConvWeightGradSigns": ("bnn_conv_weight_grad_b1", (BITS, FLOATS), BITS),
    "BinaryConvWeightGradPow2": ("bnn_conv_weight_grad_b1", (BITS, BITS, UNIT), SUMS),
    "BinaryConvWeightGradSignsPow2": ("bnn_conv_weight_grad_b1", (BITS, BITS, UNIT), BITS),
    "BinaryGemm": ("bnn_gemm_b1b1", (BITS, BITS), WHOLE),
    "BinaryGemmInputGrad": ("bnn_gemm_input_grad_b1", (FLOATS, BITS), FLOATS),
    "BinaryGemmInputGradPow2": ("bnn_gemm_input_grad_b1", (BITS, UNIT, BITS), FLOATS),
    "BinaryGemmWeightGrad": ("bnn_gemm_weight_grad_b1", (BITS, FLOATS), SUMS),
    "BinaryGemmWeightGradSigns": ("bnn_gemm_weight_grad_b1", (BITS, FLOATS), BITS),
    "BinaryGemmWeightGradPow2": ("bnn_gemm_weight_grad_b1", (BITS, BITS, UNIT), SUMS),
    "BinaryGemmWeightGradSignsPow2": ("bnn_gemm_weight_grad_b1", (BITS, BITS, UNIT), BITS),
}


def product(op: str) -> KernelCall:
    """The call of a binary product or of a gradient of one, by the name of its operator."""
    function, wanted, wanted_result = FUNCTIONS[op]
    floats = wanted.index(FLOATS) if FLOATS in wanted else None

    def run(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
        arrays = [array for array in (*inputs, outputs[0]) if array is not None]
        for array, allowed in zip(arrays, (*wanted, wanted_result), strict=True):
            if array.dtype not in allowed or not covered(array, dtype=array.dtype):
                return False
        *operands, result = arrays
        cut = tiling(op, [array.shape for array in operands], [result.shape], attributes)
        if cut is None or scratch.ctypes.data % 64:
            return False
        types = [NUMBERS[np.dtype(np.uint8)]] if UNIT in wanted else []
        given: list[Array | None] = [*operands]
        if floats is not None:
            types.append(NUMBERS[operands[floats].dtype])
            given.insert(floats + 1, None)  # the unit
        types.append(NUMBERS[result.dtype])
        given += [result, *[None] * ("WeightGrad" in op)]  # and no optimiser that takes it
        return bool(call(function, int64s(cut), *given, *types, scratch, scratch.size))

    run.__doc__ = f"{op}; False, with nothing written, where the numpy kernel has to do it."
    return run
