"""The table of the kernels of the ``bnnopt`` domain.

Float attributes should come as the model holds them, rounded to float32.
"""

from __future__ import annotations

from bnnopt.runtime.kernels import Array, Kernel
from bnnopt.runtime.kernels.reference import (
    binarize,
    binary_products,
    bitmap,
    convolution,
    dropout,
    loss,
    normalization,
    optimizers,
    packing,
    pooled_normalization,
    pooling,
    pow2,
    updates,
)
from bnnopt.runtime.kernels.reference.elementwise import cast


def conv_input_grad(
    dy: Array,
    w: Array,
    *,
    input_shape: list[int],
    strides: list[int],
    pads: list[int],
    dilations: list[int],
    group: int,
    output_padding: list[int],
) -> Array:
    """`convolution.conv_input_grad`; `output_padding` follows from the shapes."""
    return convolution.conv_input_grad(
        dy,
        w,
        input_shape=input_shape,
        strides=strides,
        pads=pads,
        dilations=dilations,
        group=group,
    )


def real_conv(
    x: Array,
    w: Array,
    *,
    dtype: int,
    strides: list[int],
    pads: list[int],
    dilations: list[int],
    group: int,
) -> Array:
    """`convolution.conv` to the dtype with ONNX's number `dtype`."""
    y = convolution.conv(x, w, strides=strides, pads=pads, dilations=dilations, group=group)
    return cast(y, to=dtype)


ELEMENTWISE: dict[str, Kernel] = {
    "ApproxSignGrad": binarize.approx_sign_grad,
    "Binarize": binarize.binarize,
    "ClipGrad": binarize.clip_grad,
    "ReluGrad": binarize.relu_grad,
    "SwishSignGrad": binarize.swish_sign_grad,
    "StraightThrough": binarize.straight_through,
    "Ternarize": binarize.ternarize,
}
"""As `standard.ELEMENTWISE`."""

DOMAIN_KERNELS: dict[str, Kernel] = {
    **ELEMENTWISE,
    "BatchNormalizationApply": normalization.batch_normalization_apply,
    "BatchNormalizationGrad": normalization.batch_normalization_grad,
    "BatchNormalizationLevels": normalization.batch_normalization_levels,
    "BatchNormalizationSigns": normalization.batch_normalization_signs,
    "BatchNormalizationSignsGrad": normalization.batch_normalization_signs_grad,
    "BatchNormalizationTraining": normalization.batch_normalization_training,
    "BinaryConv": binary_products.binary_conv,
    "BinaryConvInputGrad": binary_products.binary_conv_input_grad,
    "BinaryConvInputGradPow2": pow2.binary_conv_input_grad_pow2,
    "BinaryConvWeightGrad": binary_products.binary_conv_weight_grad,
    "BinaryConvWeightGradPow2": pow2.binary_conv_weight_grad_pow2,
    "BinaryConvWeightGradSigns": binary_products.binary_conv_weight_grad_signs,
    "BinaryConvWeightGradSignsPow2": pow2.binary_conv_weight_grad_signs_pow2,
    "BinaryGemm": binary_products.binary_gemm,
    "BinaryGemmInputGrad": binary_products.binary_gemm_input_grad,
    "BinaryGemmInputGradPow2": pow2.binary_gemm_input_grad_pow2,
    "BinaryGemmWeightGrad": binary_products.binary_gemm_weight_grad,
    "BinaryGemmWeightGradPow2": pow2.binary_gemm_weight_grad_pow2,
    "BinaryGemmWeightGradSigns": binary_products.binary_gemm_weight_grad_signs,
    "BinaryGemmWeightGradSignsPow2": pow2.binary_gemm_weight_grad_signs_pow2,
    "BinarizePack": packing.binarize_pack,
    "BitmapConvWeightGrad": convolution.bitmap_conv_weight_grad,
    "BitmapPack": bitmap.bitmap_pack,
    "BitmapReluGrad": bitmap.bitmap_relu_grad,
    "BitmapUnpack": bitmap.bitmap_unpack,
    "ConvInputGrad": conv_input_grad,
    "ConvTapSums": convolution.conv_tap_sums,
    "ConvWeightGrad": convolution.conv_weight_grad,
    "Dropout": dropout.dropout,
    "L1BatchNormalizationPoolGrad": pooled_normalization.l1_batch_normalization_pool_grad,
    "L1BatchNormalizationGrad": normalization.l1_batch_normalization_grad,
    "L1BatchNormalizationSigns": normalization.l1_batch_normalization_signs,
    "L1BatchNormalizationTraining": normalization.l1_batch_normalization_training,
    "MaskedGrad": packing.masked_grad,
    "MaxPoolGrad": pooling.max_pool_grad,
    "PackBits": packing.pack_bits,
    "PackedMaxPool": pooling.packed_max_pool,
    "PackedMaxPoolGrad": pooling.packed_max_pool_grad,
    "PoolIndexPack": packing.pool_index_pack,
    "PoolIndexUnpack": packing.pool_index_unpack,
    "RandomBits": dropout.random_bits,
    "Pow2Pack": pow2.pow2_pack,
    "Pow2Unpack": pow2.pow2_unpack,
    "PrunedBitmapPack": bitmap.pruned_bitmap_pack,
    "RangePack": packing.range_pack,
    "RealConv": real_conv,
    "RoundToHalf": optimizers.round_to_half,
    "SignGrad": optimizers.sign_grad,
    "SignPack": packing.sign_pack,
    "SignUnpack": packing.sign_unpack,
    "SoftmaxCrossEntropy": loss.softmax_cross_entropy,
    "SoftmaxCrossEntropyGrad": loss.softmax_cross_entropy_grad,
    "ThresholdPack": pooled_normalization.threshold_pack,
    "UnpackBits": packing.unpack_bits,
    **optimizers.STEPS,
    **updates.FUSED,
}
