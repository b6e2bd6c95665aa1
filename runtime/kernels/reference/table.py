"""The table of the numpy kernels: one row an operator, standard or of the domain.

To add one: write its function in the family's file, and a row of `KERNELS` there. It takes the ONNX
inputs by position (None for an omitted one) and the attributes by name, floats as the model holds
them, rounded to float32. A kernel leaves its inputs alone. Those that only shape, cut or repeat may
return a view of one; all others return new arrays, C-contiguous if the inputs are.
"""

from __future__ import annotations

from bnnopt.runtime.kernels.reference import (
    activations,
    adapters,
    binarize,
    binary_products,
    bitmap,
    convolution,
    dropout,
    elementwise,
    filter_blocks,
    int4,
    int8,
    latents,
    layer_normalization,
    linear,
    loss,
    normalization,
    on_read,
    optimizers,
    packing,
    pooled_filter_blocks,
    pooled_normalization,
    pooling,
    pow2,
    reduction,
    shaping,
    updates,
)
from bnnopt.runtime.kernels.reference.kernel import NumpyKernel

KERNELS: dict[str, NumpyKernel] = {
    **activations.KERNELS,
    **adapters.KERNELS,
    **binarize.KERNELS,
    **binary_products.KERNELS,
    **bitmap.KERNELS,
    **convolution.KERNELS,
    **dropout.KERNELS,
    **elementwise.KERNELS,
    **filter_blocks.KERNELS,
    **pooled_filter_blocks.KERNELS,
    **int4.KERNELS,
    **int8.KERNELS,
    **latents.KERNELS,
    **layer_normalization.KERNELS,
    **linear.KERNELS,
    **loss.KERNELS,
    **normalization.KERNELS,
    **on_read.KERNELS,
    **optimizers.KERNELS,
    **packing.KERNELS,
    **pooled_normalization.KERNELS,
    **pooling.KERNELS,
    **pow2.KERNELS,
    **reduction.KERNELS,
    **shaping.KERNELS,
    **updates.KERNELS,
}
