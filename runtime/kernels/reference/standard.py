"""The one table of kernels of the standard ONNX operators, opset 18 and what later ones kept.

A kernel leaves its inputs alone. Those that only shape, cut or repeat may return a view of one;
all others return new arrays, C-contiguous if the inputs are.
"""

from __future__ import annotations

import numpy as np

from bnnopt.runtime.kernels import Kernel
from bnnopt.runtime.kernels.reference import (
    convolution,
    elementwise,
    linear,
    pooling,
    reduction,
    shaping,
)
from bnnopt.runtime.kernels.reference.elementwise import from_fold, from_ufunc

ELEMENTWISE: dict[str, Kernel] = {
    # arithmetic
    "Add": from_ufunc(np.add),
    "Sub": from_ufunc(np.subtract),
    "Mul": from_ufunc(np.multiply),
    "Div": elementwise.div,
    "Mod": elementwise.mod,
    "Neg": from_ufunc(np.negative),
    "Abs": from_ufunc(np.absolute),
    "Sqrt": from_ufunc(np.sqrt),
    "Pow": elementwise.power,
    "Exp": from_ufunc(np.exp),
    "Log": from_ufunc(np.log),
    "Reciprocal": from_ufunc(np.reciprocal),
    "Sign": from_ufunc(np.sign),
    "Floor": from_ufunc(np.floor),
    "Ceil": from_ufunc(np.ceil),
    "Round": from_ufunc(np.rint),
    "Erf": elementwise.erf,
    "Max": from_fold(np.maximum),
    "Min": from_fold(np.minimum),
    "Sum": from_fold(np.add),
    "Mean": elementwise.mean,
    # activations
    "Relu": elementwise.relu,
    "Clip": elementwise.clip,
    "LeakyRelu": elementwise.leaky_relu,
    "PRelu": elementwise.prelu,
    "Elu": elementwise.elu,
    "Sigmoid": elementwise.sigmoid,
    "Tanh": from_ufunc(np.tanh),
    "HardSigmoid": elementwise.hard_sigmoid,
    "HardSwish": elementwise.hard_swish,
    "Softplus": elementwise.softplus,
    # comparison, logic and bits
    "Where": elementwise.where,
    "Less": from_ufunc(np.less),
    "LessOrEqual": from_ufunc(np.less_equal),
    "Greater": from_ufunc(np.greater),
    "GreaterOrEqual": from_ufunc(np.greater_equal),
    "Equal": from_ufunc(np.equal),
    "And": from_ufunc(np.logical_and),
    "Or": from_ufunc(np.logical_or),
    "Xor": from_ufunc(np.logical_xor),
    "Not": from_ufunc(np.logical_not),
    "IsNaN": from_ufunc(np.isnan),
    "BitwiseAnd": from_ufunc(np.bitwise_and),
    "BitwiseOr": from_ufunc(np.bitwise_or),
    "BitwiseXor": from_ufunc(np.bitwise_xor),
    "BitwiseNot": from_ufunc(np.invert),
    "BitShift": elementwise.bit_shift,
    # types
    "Cast": elementwise.cast,
}
"""Kernels whose result has, at each place, what they make of the inputs' elements there."""

STANDARD_KERNELS: dict[str, Kernel] = {
    **ELEMENTWISE,
    # types
    "CastLike": elementwise.cast_like,
    "Identity": elementwise.identity,
    # layers
    "Conv": convolution.conv,
    "ConvTranspose": convolution.conv_transpose,
    "Gemm": linear.gemm,
    "MatMul": linear.matmul,
    "MatMulInteger": linear.matmul_integer,
    "MaxPool": pooling.max_pool,
    "AveragePool": pooling.average_pool,
    "GlobalAveragePool": pooling.global_average_pool,
    "GlobalMaxPool": pooling.global_max_pool,
    "BatchNormalization": reduction.batch_normalization,
    # reductions
    "ReduceMean": reduction.reduce_mean,
    "ReduceSum": reduction.reduce_sum,
    "ReduceMax": reduction.reduce_max,
    "ReduceMin": reduction.reduce_min,
    "ReduceProd": reduction.reduce_prod,
    "ReduceL1": reduction.reduce_l1,
    "ReduceL2": reduction.reduce_l2,
    "ReduceSumSquare": reduction.reduce_sum_square,
    "ReduceLogSumExp": reduction.reduce_log_sum_exp,
    "ArgMax": reduction.arg_max,
    "CumSum": reduction.cum_sum,
    "Softmax": reduction.softmax,
    "LogSoftmax": reduction.log_softmax,
    # shapes and selection
    "Concat": shaping.concat,
    "Split": shaping.split,
    "Slice": shaping.slice_,
    "Pad": shaping.pad,
    "Flatten": shaping.flatten,
    "Reshape": shaping.reshape,
    "Transpose": shaping.transpose,
    "Squeeze": shaping.squeeze,
    "Unsqueeze": shaping.unsqueeze,
    "Expand": shaping.expand,
    "Tile": shaping.tile,
    "Shape": shaping.shape,
    "Size": shaping.size,
    "Range": shaping.range_,
    "ConstantOfShape": shaping.constant_of_shape,
    "Gather": shaping.gather,
    "GatherElements": shaping.gather_elements,
    "ScatterElements": shaping.scatter_elements,
    "OneHot": shaping.one_hot,
    "DepthToSpace": shaping.depth_to_space,
    "Trilu": shaping.trilu,
}
