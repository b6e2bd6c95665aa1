"""The compiled binary products: XNOR and popcount forward, signed sums of floats backward.

They cover convolutions of one and two dimensions and dense layers, any shape. The scratch memory
that a call needs is `scratch_bytes`, aligned to 64 bytes.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled import Arrays, Attributes, CompiledKernel, call, covered
from bnnopt.runtime.kernels.product_tiling import scratch_bytes, tiling
from bnnopt.runtime.library import int64s

__all__ = ["COMPILED_PRODUCTS", "scratch_bytes"]

FUNCTIONS = {
    "BinaryConv": "bnn_conv_b1b1f32",
    "BinaryConvInputGrad": "bnn_conv_input_grad_f32b1f32",
    "BinaryConvWeightGrad": "bnn_conv_weight_grad_b1f32f32",
    "BinaryGemm": "bnn_gemm_b1b1f32",
    "BinaryGemmInputGrad": "bnn_gemm_input_grad_f32b1f32",
    "BinaryGemmWeightGrad": "bnn_gemm_weight_grad_b1f32f32",
}


def _kernel(op: str) -> CompiledKernel:
    def run(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
        arrays = [array for array in (*inputs, outputs[0]) if array is not None]
        packed = [array for array in arrays if array.dtype == np.uint8]
        floats = [array for array in arrays if array.dtype != np.uint8]
        if not covered(*packed, dtype=np.uint8) or not covered(*floats):
            return False
        first, second, result = arrays
        cut = tiling(op, [first.shape, second.shape], [result.shape], attributes)
        if cut is None or scratch.ctypes.data % 64:
            return False
        sizes = int64s(dataclasses.astuple(cut))
        return bool(call(FUNCTIONS[op], sizes, first, second, result, scratch, scratch.size))

    run.__doc__ = f"{op}; False, with nothing written, where the numpy kernel has to do it."
    return run


COMPILED_PRODUCTS: dict[str, CompiledKernel] = {op: _kernel(op) for op in FUNCTIONS}
