"""The table of the numpy kernels: one row an operator, standard or of the domain.

To add one: write its function in the family's file, and a row here. It takes the ONNX inputs by
position (None for an omitted one) and the attributes by name, floats as the model holds them,
rounded to float32. A kernel leaves its inputs alone. Those that only shape, cut or repeat may
return a view of one; all others return new arrays, C-contiguous if the inputs are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from bnnopt.runtime.kernels import Kernel
from bnnopt.runtime.kernels.reference import (
    adapters,
    binarize,
    binary_products,
    bitmap,
    convolution,
    dropout,
    elementwise,
    linear,
    loss,
    normalization,
    optimizers,
    packing,
    pooled_normalization,
    pooling,
    pow2,
    reduction,
    shaping,
    updates,
)
from bnnopt.runtime.kernels.reference.elementwise import from_fold, from_ufunc
from bnnopt.runtime.kernels.reference.parts import OUT, TILES, WHOLE, Axes, How, by_filters, by_rows


class NumpyKernel(NamedTuple):
    """A row of the table.

    Attributes
    ----------
    function : Kernel
        Inputs to the output, or to a tuple of them.
    how : How
        How it may run, so that it allocates little.
    indexes : bool
        It takes indices, which may be out of range.
    updates : bool
        It gives weights and states, which have to be finite.
    """

    function: Kernel
    how: How = WHOLE
    indexes: bool = False
    updates: bool = False

    def __call__(self, *inputs: Any, **attributes: Any) -> Any:
        """Run it whole."""
        return self.function(*inputs, **attributes)


KERNELS: dict[str, NumpyKernel] = {
    # arithmetic
    "Add": NumpyKernel(from_ufunc(np.add), TILES),
    "Sub": NumpyKernel(from_ufunc(np.subtract), TILES),
    "Mul": NumpyKernel(from_ufunc(np.multiply), TILES),
    "Div": NumpyKernel(elementwise.div, TILES),
    "Mod": NumpyKernel(elementwise.mod, TILES),
    "Neg": NumpyKernel(from_ufunc(np.negative), TILES),
    "Abs": NumpyKernel(from_ufunc(np.absolute), TILES),
    "Sqrt": NumpyKernel(from_ufunc(np.sqrt), TILES),
    "Pow": NumpyKernel(elementwise.power, TILES),
    "Exp": NumpyKernel(from_ufunc(np.exp), TILES),
    "Log": NumpyKernel(from_ufunc(np.log), TILES),
    "Reciprocal": NumpyKernel(from_ufunc(np.reciprocal), TILES),
    "Sign": NumpyKernel(from_ufunc(np.sign), TILES),
    "Floor": NumpyKernel(from_ufunc(np.floor), TILES),
    "Ceil": NumpyKernel(from_ufunc(np.ceil), TILES),
    "Round": NumpyKernel(from_ufunc(np.rint), TILES),
    "Erf": NumpyKernel(elementwise.erf, TILES),
    "Max": NumpyKernel(from_fold(np.maximum), TILES),
    "Min": NumpyKernel(from_fold(np.minimum), TILES),
    "Sum": NumpyKernel(from_fold(np.add), TILES),
    "Mean": NumpyKernel(elementwise.mean, TILES),
    # functions
    "Sin": NumpyKernel(from_ufunc(np.sin), TILES),
    "Cos": NumpyKernel(from_ufunc(np.cos), TILES),
    "Tan": NumpyKernel(from_ufunc(np.tan), TILES),
    "Asin": NumpyKernel(from_ufunc(np.arcsin), TILES),
    "Acos": NumpyKernel(from_ufunc(np.arccos), TILES),
    "Atan": NumpyKernel(from_ufunc(np.arctan), TILES),
    "Sinh": NumpyKernel(from_ufunc(np.sinh), TILES),
    "Cosh": NumpyKernel(from_ufunc(np.cosh), TILES),
    "Asinh": NumpyKernel(from_ufunc(np.arcsinh), TILES),
    "Acosh": NumpyKernel(from_ufunc(np.arccosh), TILES),
    "Atanh": NumpyKernel(from_ufunc(np.arctanh), TILES),
    # activations
    "Relu": NumpyKernel(elementwise.relu, TILES),
    "Clip": NumpyKernel(elementwise.clip, TILES),
    "LeakyRelu": NumpyKernel(elementwise.leaky_relu, TILES),
    "PRelu": NumpyKernel(elementwise.prelu, TILES),
    "Elu": NumpyKernel(elementwise.elu, TILES),
    "Sigmoid": NumpyKernel(elementwise.sigmoid, TILES),
    "Gelu": NumpyKernel(elementwise.gelu, TILES),
    "Tanh": NumpyKernel(from_ufunc(np.tanh), TILES),
    "HardSigmoid": NumpyKernel(elementwise.hard_sigmoid, TILES),
    "HardSwish": NumpyKernel(elementwise.hard_swish, TILES),
    "Softplus": NumpyKernel(elementwise.softplus, TILES),
    # comparison, logic and bits
    "Where": NumpyKernel(elementwise.where, TILES),
    "Less": NumpyKernel(from_ufunc(np.less), TILES),
    "LessOrEqual": NumpyKernel(from_ufunc(np.less_equal), TILES),
    "Greater": NumpyKernel(from_ufunc(np.greater), TILES),
    "GreaterOrEqual": NumpyKernel(from_ufunc(np.greater_equal), TILES),
    "Equal": NumpyKernel(from_ufunc(np.equal), TILES),
    "And": NumpyKernel(from_ufunc(np.logical_and), TILES),
    "Or": NumpyKernel(from_ufunc(np.logical_or), TILES),
    "Xor": NumpyKernel(from_ufunc(np.logical_xor), TILES),
    "Not": NumpyKernel(from_ufunc(np.logical_not), TILES),
    "IsNaN": NumpyKernel(from_ufunc(np.isnan), TILES),
    "BitwiseAnd": NumpyKernel(from_ufunc(np.bitwise_and), TILES),
    "BitwiseOr": NumpyKernel(from_ufunc(np.bitwise_or), TILES),
    "BitwiseXor": NumpyKernel(from_ufunc(np.bitwise_xor), TILES),
    "BitwiseNot": NumpyKernel(from_ufunc(np.invert), TILES),
    "BitShift": NumpyKernel(elementwise.bit_shift, TILES),
    # types
    "Cast": NumpyKernel(elementwise.cast, TILES),
    # types
    "CastLike": NumpyKernel(elementwise.cast_like),
    "Identity": NumpyKernel(elementwise.identity),
    # layers
    "Conv": NumpyKernel(convolution.conv, Axes("0", "0")),
    "ConvTranspose": NumpyKernel(convolution.conv_transpose),
    "Gemm": NumpyKernel(linear.gemm, OUT),
    "MatMul": NumpyKernel(linear.matmul, OUT),
    "MatMulInteger": NumpyKernel(linear.matmul_integer),
    "MaxPool": NumpyKernel(pooling.max_pool),
    "AveragePool": NumpyKernel(pooling.average_pool, Axes("0", "0")),
    "GlobalAveragePool": NumpyKernel(pooling.global_average_pool),
    "GlobalMaxPool": NumpyKernel(pooling.global_max_pool),
    "BatchNormalization": NumpyKernel(reduction.batch_normalization, Axes("0", "0")),
    # reductions
    "ReduceMean": NumpyKernel(reduction.reduce_mean),
    "ReduceSum": NumpyKernel(reduction.reduce_sum),
    "ReduceMax": NumpyKernel(reduction.reduce_max),
    "ReduceMin": NumpyKernel(reduction.reduce_min),
    "ReduceProd": NumpyKernel(reduction.reduce_prod),
    "ReduceL1": NumpyKernel(reduction.reduce_l1),
    "ReduceL2": NumpyKernel(reduction.reduce_l2),
    "ReduceSumSquare": NumpyKernel(reduction.reduce_sum_square),
    "ReduceLogSumExp": NumpyKernel(reduction.reduce_log_sum_exp),
    "ArgMax": NumpyKernel(reduction.arg_max),
    "CumSum": NumpyKernel(reduction.cum_sum),
    "Softmax": NumpyKernel(reduction.softmax, OUT),
    "LogSoftmax": NumpyKernel(reduction.log_softmax),
    # shapes and selection
    "Concat": NumpyKernel(shaping.concat, OUT),
    "Split": NumpyKernel(shaping.split),
    "Slice": NumpyKernel(shaping.slice_),
    "Pad": NumpyKernel(shaping.pad),
    "Flatten": NumpyKernel(shaping.flatten),
    "Reshape": NumpyKernel(shaping.reshape),
    "Transpose": NumpyKernel(shaping.transpose),
    "Squeeze": NumpyKernel(shaping.squeeze),
    "Unsqueeze": NumpyKernel(shaping.unsqueeze),
    "Expand": NumpyKernel(shaping.expand),
    "Tile": NumpyKernel(shaping.tile),
    "Shape": NumpyKernel(shaping.shape),
    "Size": NumpyKernel(shaping.size),
    "Range": NumpyKernel(shaping.range_),
    "ConstantOfShape": NumpyKernel(shaping.constant_of_shape),
    "Gather": NumpyKernel(shaping.gather, indexes=True),
    "GatherGrad": NumpyKernel(shaping.gather_grad, indexes=True),
    "GatherElements": NumpyKernel(shaping.gather_elements, indexes=True),
    "ScatterElements": NumpyKernel(shaping.scatter_elements, indexes=True),
    "GatherND": NumpyKernel(shaping.gather_nd, indexes=True),
    "ScatterND": NumpyKernel(shaping.scatter_nd, indexes=True),
    "TopK": NumpyKernel(shaping.top_k),
    "OneHot": NumpyKernel(shaping.one_hot),
    "DepthToSpace": NumpyKernel(shaping.depth_to_space),
    "Trilu": NumpyKernel(shaping.trilu),
    # the domain's own: binarisation and gradients of activations
    "ApproxSignGrad": NumpyKernel(binarize.approx_sign_grad, TILES),
    "Binarize": NumpyKernel(binarize.binarize, TILES),
    "ClipGrad": NumpyKernel(binarize.clip_grad, TILES),
    "ReluGrad": NumpyKernel(binarize.relu_grad, TILES),
    "SwishSignGrad": NumpyKernel(binarize.swish_sign_grad, TILES),
    "StraightThrough": NumpyKernel(binarize.straight_through, TILES),
    "Ternarize": NumpyKernel(binarize.ternarize, TILES),
    # codecs, products, normalisation, loss
    "BatchNormalizationApply": NumpyKernel(
        normalization.batch_normalization_apply, Axes("10000", "1")
    ),
    "BatchNormalizationGrad": NumpyKernel(
        normalization.batch_normalization_grad, Axes("11000", "100")
    ),
    "BatchNormalizationLevels": NumpyKernel(
        normalization.batch_normalization_levels, Axes("1bb00", "00")
    ),
    "BatchNormalizationSigns": NumpyKernel(
        normalization.batch_normalization_signs, Axes("10000", "bb000000")
    ),
    "BatchNormalizationSignsGrad": NumpyKernel(
        normalization.batch_normalization_signs_grad, Axes("1bb0000", "100")
    ),
    "BatchNormalizationTraining": NumpyKernel(
        normalization.batch_normalization_training, Axes("10000", "10000")
    ),
    "BinaryConv": NumpyKernel(binary_products.binary_conv, Axes("0", "0")),
    "BinaryConvInputGrad": NumpyKernel(binary_products.binary_conv_input_grad, Axes("0", "0")),
    "BinaryConvInputGradPow2": NumpyKernel(pow2.binary_conv_input_grad_pow2, Axes("0", "0")),
    "BinaryConvWeightGrad": NumpyKernel(binary_products.binary_conv_weight_grad, Axes("-1", "0")),
    "BinaryConvWeightGradPow2": NumpyKernel(pow2.binary_conv_weight_grad_pow2),
    "BinaryConvWeightGradSigns": NumpyKernel(
        binary_products.binary_conv_weight_grad_signs, Axes("-1", "0")
    ),
    "BinaryConvWeightGradSignsPow2": NumpyKernel(pow2.binary_conv_weight_grad_signs_pow2),
    "BinaryGemm": NumpyKernel(binary_products.binary_gemm),
    "BinaryGemmInputGrad": NumpyKernel(binary_products.binary_gemm_input_grad),
    "BinaryGemmInputGradPow2": NumpyKernel(pow2.binary_gemm_input_grad_pow2),
    "BinaryGemmWeightGrad": NumpyKernel(binary_products.binary_gemm_weight_grad, Axes("-1", "0")),
    "BinaryGemmWeightGradPow2": NumpyKernel(pow2.binary_gemm_weight_grad_pow2),
    "BinaryGemmWeightGradSigns": NumpyKernel(
        binary_products.binary_gemm_weight_grad_signs, Axes("-1", "0")
    ),
    "BinaryGemmWeightGradSignsPow2": NumpyKernel(pow2.binary_gemm_weight_grad_signs_pow2),
    "BinarizePack": NumpyKernel(packing.binarize_pack, Axes("0", "0")),
    "BitmapConvWeightGrad": NumpyKernel(convolution.bitmap_conv_weight_grad),
    "BitmapPack": NumpyKernel(bitmap.bitmap_pack),
    "BitmapReluGrad": NumpyKernel(bitmap.bitmap_relu_grad),
    "BitmapUnpack": NumpyKernel(bitmap.bitmap_unpack),
    "ConvInputGrad": NumpyKernel(adapters.conv_input_grad, Axes("0", "0")),
    "ConvTapSums": NumpyKernel(convolution.conv_tap_sums),
    "ConvWeightGrad": NumpyKernel(convolution.conv_weight_grad, Axes("-1", "0")),
    "Dropout": NumpyKernel(dropout.dropout, Axes("0", "00")),
    "L1BatchNormalizationPoolGrad": NumpyKernel(
        pooled_normalization.l1_batch_normalization_pool_grad
    ),
    "L1BatchNormalizationGrad": NumpyKernel(
        normalization.l1_batch_normalization_grad, Axes("11000", "100")
    ),
    "L1BatchNormalizationSigns": NumpyKernel(
        normalization.l1_batch_normalization_signs, Axes("10000", "bb000000")
    ),
    "L1BatchNormalizationTraining": NumpyKernel(
        normalization.l1_batch_normalization_training, Axes("10000", "10000")
    ),
    "MaskedGrad": NumpyKernel(packing.masked_grad, Axes("00", "0")),
    "MaxPoolGrad": NumpyKernel(pooling.max_pool_grad),
    "PackBits": NumpyKernel(packing.pack_bits, Axes("0", "0")),
    "PackedMaxPool": NumpyKernel(pooling.packed_max_pool, Axes("0", "00")),
    "PackedMaxPoolGrad": NumpyKernel(pooling.packed_max_pool_grad, Axes("00", "0")),
    "PoolIndexPack": NumpyKernel(packing.pool_index_pack, Axes("0", "0")),
    "PoolIndexUnpack": NumpyKernel(packing.pool_index_unpack),
    "RandomBits": NumpyKernel(dropout.random_bits),
    "DrawUniform": NumpyKernel(dropout.draw_uniform),
    "Pow2Pack": NumpyKernel(pow2.pow2_pack),
    "Pow2Unpack": NumpyKernel(pow2.pow2_unpack, Axes("0", "0")),
    "PrunedBitmapPack": NumpyKernel(bitmap.pruned_bitmap_pack),
    "RangePack": NumpyKernel(packing.range_pack, Axes("0", "0")),
    "RealConv": NumpyKernel(adapters.real_conv, Axes("0", "0")),
    "RoundToHalf": NumpyKernel(optimizers.round_to_half, Axes("0", "0")),
    "SignGrad": NumpyKernel(optimizers.sign_grad, Axes("00", "0")),
    "SignPack": NumpyKernel(packing.sign_pack, Axes("0", "0")),
    "SignUnpack": NumpyKernel(packing.sign_unpack, Axes("0", "0")),
    "SoftmaxCrossEntropy": NumpyKernel(loss.softmax_cross_entropy),
    "SoftmaxCrossEntropyGrad": NumpyKernel(loss.softmax_cross_entropy_grad),
    "ThresholdPack": NumpyKernel(pooled_normalization.threshold_pack),
    "UnpackBits": NumpyKernel(packing.unpack_bits, Axes("0", "0")),
    # optimisers, alone and behind the product that makes their gradient
    **{name: NumpyKernel(step, by_rows, updates=True) for name, step in optimizers.STEPS.items()},
    **{
        name: NumpyKernel(fused, by_filters if fused.by_filters else WHOLE, updates=True)
        for name, fused in updates.FUSED.items()
    },
}
