"""The table of the compiled kernels: one row an operator.

To add one: write its call in the family's file, and a row here. `tests/runtime/compiled_calls.py`
then asks for inputs to test it on, and the numpy kernel is its oracle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

from bnnopt.runtime.kernels import Array, tiling
from bnnopt.runtime.kernels.compiled import (
    binary_products,
    bitmap,
    convolution,
    elementwise,
    linear,
    loss,
    normalization,
    optimizers,
    packing,
    pooling,
    reduction,
    shaping,
    updates,
)
from bnnopt.runtime.kernels.compiled.calls import Arrays, Attributes, KernelCall
from bnnopt.runtime.library import MAX_THREADS

Shapes: TypeAlias = Sequence[Sequence[int]]


class Sizes(NamedTuple):
    """What scratch memory follows from: shapes, an empty one for what is left out, and attributes.

    ``overwritten_bytes`` are those of the input that the first output is written over; 0 if it has
    memory of its own.
    """

    inputs: Shapes
    outputs: Shapes
    attributes: Attributes
    overwritten_bytes: int = 0


ScratchRule: TypeAlias = Callable[[Sizes], int | None]


class CompiledKernel(NamedTuple):
    """A row of the table.

    Attributes
    ----------
    call : KernelCall
        Does the work, or says that it does not cover these arrays.
    scratch : ScratchRule, optional
        Bytes beside inputs and outputs; None for shapes that the kernel does not cover. Without a
        rule it needs none, and covers all shapes.
    repeatable : bool
        The C calls follow from shapes, attributes and addresses alone, never from values, but for
        what they do `again`: they are prepared once and repeated. Others read a bound or an index.
    grows : bool
        An output may need more than its planned place: its size depends on the data.
    """

    call: KernelCall
    scratch: ScratchRule | None = None
    repeatable: bool = False
    grows: bool = False

    def __call__(
        self, inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array
    ) -> bool:
        """Run it; whether the outputs are written."""
        return self.call(inputs, outputs, attributes, scratch)


def _bitmap(name: str) -> ScratchRule:
    return lambda s: bitmap.scratch_bytes(name, s.inputs, s.outputs)


def _binary(name: str) -> ScratchRule:
    return lambda s: tiling.scratch_bytes(
        name, s.inputs, s.outputs, s.attributes, MAX_THREADS, s.overwritten_bytes
    )


def _convolution(name: str) -> ScratchRule:
    return lambda s: convolution.scratch_bytes(name, s.inputs, s.outputs, s.attributes, MAX_THREADS)


def _update(name: str) -> ScratchRule:
    return lambda s: updates.scratch_bytes(name, s.inputs, s.attributes, MAX_THREADS)


def _linear(sizes: Sizes) -> int:
    return linear.scratch_bytes(sizes.inputs[0])


COMPILED: dict[str, CompiledKernel] = {
    # arithmetic and activations
    "Add": CompiledKernel(elementwise.add),
    "Sub": CompiledKernel(elementwise.sub),
    "Mul": CompiledKernel(elementwise.mul),
    "Div": CompiledKernel(elementwise.div),
    "Binarize": CompiledKernel(elementwise.binarize, repeatable=True),
    "Cast": CompiledKernel(elementwise.cast, repeatable=True),
    "Clip": CompiledKernel(elementwise.clip),
    "ClipGrad": CompiledKernel(elementwise.clip_grad, repeatable=True),
    "Dropout": CompiledKernel(elementwise.dropout),
    "DrawUniform": CompiledKernel(elementwise.draw_uniform),
    "Gelu": CompiledKernel(
        elementwise.activation("gelu", "approximate", none="gelu", tanh="gelu_tanh"),
        repeatable=True,
    ),
    "Relu": CompiledKernel(elementwise.activation("relu"), repeatable=True),
    "ReluGrad": CompiledKernel(elementwise.relu_grad, repeatable=True),
    # sums, the loss, permuted axes
    "GlobalAveragePool": CompiledKernel(reduction.global_average_pool, repeatable=True),
    "ReduceMean": CompiledKernel(reduction.reduce(mean=True)),
    "ReduceSum": CompiledKernel(reduction.reduce(mean=False)),
    "SoftmaxCrossEntropy": CompiledKernel(loss.softmax_cross_entropy),
    "SoftmaxCrossEntropyGrad": CompiledKernel(loss.softmax_cross_entropy_grad),
    "Transpose": CompiledKernel(shaping.transpose, repeatable=True),
    # pooling
    "AveragePool": CompiledKernel(pooling.average_pool, repeatable=True),
    "ConvTapSums": CompiledKernel(pooling.conv_tap_sums, repeatable=True),
    "L1BatchNormalizationPoolGrad": CompiledKernel(
        pooling.l1_batch_normalization_pool_grad, repeatable=True
    ),
    "MaxPool": CompiledKernel(pooling.max_pool, repeatable=True),
    "MaxPoolGrad": CompiledKernel(pooling.max_pool_grad),  # looks at an index first
    "PackedMaxPool": CompiledKernel(pooling.packed_max_pool, repeatable=True),
    "PackedMaxPoolGrad": CompiledKernel(pooling.packed_max_pool_grad, repeatable=True),
    # batch normalisation
    "BatchNormalization": CompiledKernel(normalization.batch_normalization, repeatable=True),
    "BatchNormalizationApply": CompiledKernel(
        normalization.batch_normalization_apply, repeatable=True
    ),
    "BatchNormalizationGrad": CompiledKernel(normalization.grad(l1=False), repeatable=True),
    "BatchNormalizationSigns": CompiledKernel(normalization.signs(l1=False), repeatable=True),
    "BatchNormalizationSignsGrad": CompiledKernel(
        normalization.batch_normalization_signs_grad, repeatable=True
    ),
    "BatchNormalizationTraining": CompiledKernel(normalization.training(l1=False), repeatable=True),
    "L1BatchNormalizationGrad": CompiledKernel(normalization.grad(l1=True), repeatable=True),
    "L1BatchNormalizationSigns": CompiledKernel(normalization.signs(l1=True), repeatable=True),
    "L1BatchNormalizationTraining": CompiledKernel(
        normalization.training(l1=True), repeatable=True
    ),
    # codecs
    "BinarizePack": CompiledKernel(packing.binarize_pack, repeatable=True),
    "MaskedGrad": CompiledKernel(packing.masked_grad, repeatable=True),
    "PackBits": CompiledKernel(packing.pack_bits, repeatable=True),
    "Pow2Pack": CompiledKernel(packing.pow2_pack, repeatable=True),
    "Pow2Unpack": CompiledKernel(packing.pow2_unpack, repeatable=True),
    "RangePack": CompiledKernel(packing.range_pack, repeatable=True),
    "SignPack": CompiledKernel(packing.sign_pack, repeatable=True),
    "SignUnpack": CompiledKernel(packing.sign_unpack, repeatable=True),
    "ThresholdPack": CompiledKernel(packing.threshold_pack, repeatable=True),
    "UnpackBits": CompiledKernel(packing.unpack_bits, repeatable=True),
    "BitmapPack": CompiledKernel(bitmap.bitmap_pack, _bitmap("BitmapPack"), grows=True),
    "BitmapReluGrad": CompiledKernel(bitmap.bitmap_relu_grad, _bitmap("BitmapReluGrad")),
    "BitmapUnpack": CompiledKernel(bitmap.bitmap_unpack, _bitmap("BitmapUnpack")),
    "PrunedBitmapPack": CompiledKernel(
        bitmap.pruned_bitmap_pack, _bitmap("PrunedBitmapPack"), grows=True
    ),
    # products
    "BitmapConvWeightGrad": CompiledKernel(
        convolution.bitmap_conv_weight_grad, _convolution("BitmapConvWeightGrad")
    ),
    "Conv": CompiledKernel(convolution.conv, _convolution("Conv")),
    "ConvInputGrad": CompiledKernel(convolution.conv_input_grad, _convolution("ConvInputGrad")),
    "ConvWeightGrad": CompiledKernel(convolution.conv_weight_grad, _convolution("ConvWeightGrad")),
    "RealConv": CompiledKernel(convolution.conv, _convolution("RealConv")),
    **{
        name: CompiledKernel(binary_products.product(name), _binary(name), repeatable=True)
        for name in binary_products.FUNCTIONS
    },
    # optimisers, alone and behind the product that makes their gradient
    **{
        name: CompiledKernel(partial(optimizers.optimizer_step, operator=name), repeatable=True)
        for name in optimizers.FORMS
    },
    **{
        name: CompiledKernel(
            partial(updates.fused_step, operator=name), _update(name), repeatable=True
        )
        for name in updates.FUSED
    },
    **{
        f"Gemm{step}": CompiledKernel(
            partial(linear.fused_step, step=step), _linear, repeatable=True
        )
        for step in linear.STEPS
    },
}


def covers(operator: str, sizes: Sizes) -> bool:
    """Whether a compiled kernel does an operator's work on these shapes, in a type that it has."""
    kernel = COMPILED.get(operator)
    return kernel is not None and (kernel.scratch is None or kernel.scratch(sizes) is not None)


def scratch_bytes(operator: str, sizes: Sizes) -> int:
    """Bytes that the kernel of a step needs beside its inputs and outputs; numpy's need none."""
    kernel = COMPILED.get(operator)
    return (kernel.scratch(sizes) or 0) if kernel is not None and kernel.scratch else 0
