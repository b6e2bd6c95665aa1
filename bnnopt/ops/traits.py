"""What passes, analyses, plan and front ends ask of an operator, standard or of the domain.

One row an operator that has any trait; an operator without a row has none, which is always safe: it
is kept, computed once, in float32, with memory of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, Flag, auto

import onnx_ir as ir

from bnnopt.ops.operator import DOMAIN
from bnnopt.ops.registry import OPERATORS


class Layer(Enum):
    """A product of an input and a weight, by where the weight has its axes."""

    CONV = auto()  # (M, C / group, *kernel)
    DENSE = auto()  # (K, M), or (M, K) with transB
    TRANSPOSED = auto()  # (C, M / group, *kernel)


class Cheap(Flag):
    """Where an operator may run a second time instead of keeping what it gave."""

    NEVER = 0
    OF_WEIGHTS = auto()  # in what depends on weights alone
    BESIDE_PRODUCTS = auto()  # in the rebuild of a binary product: around it, or behind its weight
    BEHIND_PRODUCTS = auto()  # between a binary product and a batch norm that keeps its input
    OF_MAPS = auto()  # between what is kept and the layer that reads it: activations, norms of rows


_WEIGHTS, _MAPS = Cheap.OF_WEIGHTS, Cheap.OF_MAPS
_BESIDE, _BEHIND = Cheap.BESIDE_PRODUCTS, Cheap.BEHIND_PRODUCTS


@dataclass(frozen=True)
class Traits:
    """Of one operator; inputs and outputs by their index.

    Attributes
    ----------
    view : bool
        The output is the first input's buffer under another shape, or read as another type.
    elementwise : bool
        Of standard operators those whose function of one number is known by sampling it.
    compares, rounds, jumps : bool
        A comparison; a rounding; constant between its jumps, so that no gradient passes it.
    layer : Layer, optional
        It is a convolution or a matrix product, forward.
    on_bits : bool
        A layer that reads both operands as bits.
    gives_signs : bool
        Every element of the output is -1 or +1.
    binarizes : bool
        The sign of its input, or 0 between two bounds: what the front end makes of each idiom.
    commutes : bool
        The order of its operands does not matter.
    rearranges : bool
        The output has the elements of the first input in another shape or order, or repeated.
    reduces : bool
        Sums, or the like, along axes.
    passes_on : bool
        Gives its input on to the next layer scaled, moved, added or pooled, and no other function
        of it.
    gives_zeros : bool
        Exact zeros in the output are no accident.
    passes_zeros : bool
        Exact zeros of the first input are exact zeros in the output.
    selects : bool
        The first output holds elements of the inputs, and no others.
    in_place : bool
        Standard operators: element i of the output depends on no other element of an input of its
        shape, which it may overwrite. Those of the domain say so in `Operator.in_place`.
    cheap : Cheap
        Where it may be computed twice.
    by_mask : bool
        Of its second input it needs one bit an element.
    makes_mask : bool
        What it packs is a mask or an index, not signs.
    compared_input, map_input, dy_input : int, optional
        The input that it only compares with bounds; a map that it reads in float32, float16 or
        int16; a gradient that it reads in float32 or float16, giving dx in the same type. Sums are
        float32.
    gives_dx, gives_dw : bool
        The gradient of a layer's input, or of its weight as floats or signs.
    packs_halves : bool
        Packs the bits of a weight in float32 or float16.
    follows_type : bool
        The output has the type of the inputs, float16 as well.
    read_widened : bool
        Reads a float16 map behind a cast, if it does not follow its type.
    moves_halves : bool
        Takes float16 on onnxruntime as it is: it copies, casts, or asks for a shape.
    draws : bool
        What it gives is random.
    reads_shape : bool
        Reads no element.
    casts : bool
        Gives the elements of the first input in another type.
    retains_input : bool
        The paper's static rule counts its input as retained.
    grows : bool
        The size of an output depends on the data.
    second_moment : bool
        An optimiser step with a second moment.
    settings : frozenset of int
        Inputs that set the behaviour: a float initialiser there is no weight.
    statistics : frozenset of int
        Inputs that follow the batches instead of being trained.
    stretches : bool
        Numpy broadcasting of two inputs.
    """

    view: bool = False
    elementwise: bool = False
    compares: bool = False
    rounds: bool = False
    jumps: bool = False
    layer: Layer | None = None
    on_bits: bool = False
    gives_signs: bool = False
    binarizes: bool = False
    commutes: bool = False
    rearranges: bool = False
    reduces: bool = False
    passes_on: bool = False
    gives_zeros: bool = False
    passes_zeros: bool = False
    selects: bool = False
    in_place: bool = False
    cheap: Cheap = Cheap.NEVER
    by_mask: bool = False
    makes_mask: bool = False
    compared_input: int | None = None
    map_input: int | None = None
    dy_input: int | None = None
    gives_dx: bool = False
    gives_dw: bool = False
    packs_halves: bool = False
    follows_type: bool = False
    read_widened: bool = False
    moves_halves: bool = False
    draws: bool = False
    reads_shape: bool = False
    casts: bool = False
    retains_input: bool = False
    grows: bool = False
    second_moment: bool = False
    settings: frozenset[int] = frozenset()
    statistics: frozenset[int] = frozenset()
    stretches: bool = False

    @property
    def product(self) -> bool:
        """Whether it is a layer of which weight gradients and binary forms are known."""
        return self.layer in (Layer.CONV, Layer.DENSE)


NONE = Traits()

_STANDARD: dict[str, Traits] = {
    "Abs": Traits(elementwise=True, in_place=True, cheap=_WEIGHTS | _BESIDE | _MAPS),
    "Add": Traits(
        passes_on=True,
        commutes=True,
        elementwise=True,
        stretches=True,
        in_place=True,
        cheap=_WEIGHTS | _BESIDE | _BEHIND | _MAPS,
        follows_type=True,
    ),
    "And": Traits(commutes=True, elementwise=True, cheap=_WEIGHTS | _MAPS),
    "ArgMax": Traits(jumps=True),
    "ArgMin": Traits(jumps=True),
    "AveragePool": Traits(
        passes_on=True,
        passes_zeros=True,
        cheap=_BESIDE | _BEHIND,
        follows_type=True,
        read_widened=True,
        retains_input=True,
    ),
    "BatchNormalization": Traits(statistics=frozenset({3, 4}), in_place=True),
    "Bernoulli": Traits(draws=True),
    "Cast": Traits(
        elementwise=True, cheap=_WEIGHTS | _BESIDE | _BEHIND | _MAPS, moves_halves=True, casts=True
    ),
    "CastLike": Traits(settings=frozenset({1}), moves_halves=True, casts=True),
    "Ceil": Traits(elementwise=True, rounds=True, jumps=True, cheap=_WEIGHTS | _MAPS),
    "Clip": Traits(
        elementwise=True,
        settings=frozenset({1, 2}),
        in_place=True,
        cheap=_WEIGHTS | _MAPS,
        retains_input=True,
    ),
    "Concat": Traits(passes_on=True, selects=True, moves_halves=True),
    "Conv": Traits(layer=Layer.CONV),
    "ConvTranspose": Traits(layer=Layer.TRANSPOSED),
    "DequantizeLinear": Traits(settings=frozenset({1, 2})),
    "Div": Traits(
        passes_on=True,
        elementwise=True,
        stretches=True,
        in_place=True,
        cheap=_WEIGHTS | _BESIDE | _BEHIND | _MAPS,
    ),
    "Equal": Traits(
        commutes=True, elementwise=True, compares=True, jumps=True, cheap=_WEIGHTS | _MAPS
    ),
    "Dropout": Traits(gives_zeros=True, draws=True, settings=frozenset({1})),
    "Erf": Traits(elementwise=True),
    "Exp": Traits(elementwise=True, in_place=True, cheap=_WEIGHTS),
    "Expand": Traits(passes_on=True, rearranges=True, cheap=_WEIGHTS, moves_halves=True),
    "Flatten": Traits(passes_on=True, passes_zeros=True, view=True),
    "Floor": Traits(elementwise=True, rounds=True, jumps=True, cheap=_WEIGHTS | _MAPS),
    "Gather": Traits(selects=True, moves_halves=True),
    "Gemm": Traits(layer=Layer.DENSE),
    "GlobalAveragePool": Traits(passes_on=True, read_widened=True, retains_input=True),
    "Greater": Traits(elementwise=True, compares=True, jumps=True, cheap=_WEIGHTS | _MAPS),
    "GreaterOrEqual": Traits(elementwise=True, compares=True, jumps=True, cheap=_WEIGHTS | _MAPS),
    "HardSigmoid": Traits(elementwise=True, in_place=True, cheap=_MAPS, retains_input=True),
    "HardSwish": Traits(
        gives_zeros=True, elementwise=True, in_place=True, cheap=_MAPS, retains_input=True
    ),
    "Identity": Traits(view=True),
    "LayerNormalization": Traits(cheap=_MAPS),
    "LeakyRelu": Traits(elementwise=True, in_place=True, cheap=_MAPS, retains_input=True),
    "Less": Traits(elementwise=True, compares=True, jumps=True, cheap=_WEIGHTS | _MAPS),
    "LessOrEqual": Traits(elementwise=True, compares=True, jumps=True, cheap=_WEIGHTS | _MAPS),
    "Log": Traits(in_place=True),
    "MatMul": Traits(layer=Layer.DENSE),
    "Max": Traits(commutes=True, elementwise=True, cheap=_WEIGHTS | _MAPS),
    "MaxPool": Traits(
        passes_on=True, passes_zeros=True, selects=True, cheap=_BESIDE | _BEHIND, follows_type=True
    ),
    "Min": Traits(commutes=True, elementwise=True, cheap=_WEIGHTS | _MAPS),
    "Mul": Traits(
        passes_on=True,
        commutes=True,
        elementwise=True,
        stretches=True,
        in_place=True,
        cheap=_WEIGHTS | _BESIDE | _BEHIND | _MAPS,
    ),
    "Multinomial": Traits(draws=True),
    "NegativeLogLikelihoodLoss": Traits(settings=frozenset({2})),
    "Neg": Traits(passes_on=True, elementwise=True, in_place=True, cheap=_WEIGHTS | _MAPS),
    "Not": Traits(elementwise=True, cheap=_WEIGHTS | _MAPS),
    "Or": Traits(commutes=True, elementwise=True, cheap=_WEIGHTS | _MAPS),
    "OneHot": Traits(settings=frozenset({2})),
    "PRelu": Traits(in_place=True, cheap=_MAPS, retains_input=True),
    "Pad": Traits(passes_on=True, passes_zeros=True, settings=frozenset({2}), moves_halves=True),
    "Pow": Traits(elementwise=True, settings=frozenset({1}), in_place=True, cheap=_WEIGHTS),
    "QuantizeLinear": Traits(settings=frozenset({1, 2})),
    "RandomNormal": Traits(draws=True),
    "RandomNormalLike": Traits(draws=True),
    "RandomUniform": Traits(draws=True),
    "RandomUniformLike": Traits(draws=True),
    "Reciprocal": Traits(elementwise=True, in_place=True, cheap=_WEIGHTS | _MAPS),
    "ReduceL1": Traits(reduces=True),
    "ReduceL2": Traits(reduces=True),
    "ReduceMax": Traits(reduces=True, cheap=_WEIGHTS | _MAPS),
    "ReduceMean": Traits(reduces=True, cheap=_WEIGHTS | _BESIDE),
    "ReduceMin": Traits(cheap=_WEIGHTS),
    "ReduceSum": Traits(reduces=True, cheap=_WEIGHTS),
    "Relu": Traits(
        gives_zeros=True,
        elementwise=True,
        in_place=True,
        cheap=_MAPS,
        follows_type=True,
        retains_input=True,
    ),
    "Reshape": Traits(passes_on=True, rearranges=True, passes_zeros=True, view=True),
    "Resize": Traits(settings=frozenset({1, 2})),
    "Round": Traits(elementwise=True, rounds=True, jumps=True, cheap=_WEIGHTS | _MAPS),
    "Shape": Traits(moves_halves=True, reads_shape=True),
    "Shrink": Traits(gives_zeros=True, elementwise=True),
    "Sigmoid": Traits(elementwise=True, in_place=True, cheap=_WEIGHTS | _MAPS, retains_input=True),
    "Sign": Traits(elementwise=True, jumps=True, cheap=_WEIGHTS),
    "Size": Traits(moves_halves=True, reads_shape=True),
    "Slice": Traits(passes_on=True, selects=True, moves_halves=True),
    "SoftmaxCrossEntropyLoss": Traits(settings=frozenset({2})),
    "Softplus": Traits(elementwise=True),
    "Split": Traits(selects=True, moves_halves=True),
    "Sqrt": Traits(elementwise=True, in_place=True, cheap=_WEIGHTS),
    "Squeeze": Traits(passes_on=True, rearranges=True, view=True),
    "Sub": Traits(
        passes_on=True,
        elementwise=True,
        stretches=True,
        in_place=True,
        cheap=_WEIGHTS | _BESIDE | _BEHIND | _MAPS,
    ),
    "Tanh": Traits(elementwise=True, in_place=True, cheap=_WEIGHTS | _MAPS, retains_input=True),
    "ThresholdedRelu": Traits(gives_zeros=True, elementwise=True),
    "Transpose": Traits(
        passes_on=True,
        rearranges=True,
        passes_zeros=True,
        selects=True,
        cheap=_WEIGHTS | _BESIDE,
        moves_halves=True,
    ),
    "Unsqueeze": Traits(passes_on=True, rearranges=True, view=True),
    "Where": Traits(elementwise=True, in_place=True, cheap=_WEIGHTS | _MAPS),
    "Xor": Traits(commutes=True, elementwise=True),
}

_OWN: dict[str, Traits] = {
    "Binarize": Traits(
        binarizes=True, gives_signs=True, cheap=_WEIGHTS | _BESIDE, read_widened=True
    ),
    "Ternarize": Traits(binarizes=True, cheap=_WEIGHTS | _MAPS),
    "ClipGrad": Traits(by_mask=True, compared_input=1, dy_input=0),
    "ReluGrad": Traits(by_mask=True, compared_input=1, dy_input=0),
    "ApproxSignGrad": Traits(read_widened=True),
    "Gelu": Traits(cheap=_MAPS),
    "GeluGrad": Traits(read_widened=True),
    "HardSwishGrad": Traits(read_widened=True),
    "TanhGeluGrad": Traits(read_widened=True),
    "SwishSignGrad": Traits(read_widened=True),
    "DrawUniform": Traits(draws=True),
    "Dropout": Traits(draws=True),
    "RealConv": Traits(layer=Layer.CONV),
    "ConvInputGrad": Traits(dy_input=0, gives_dx=True),
    "ConvWeightGrad": Traits(dy_input=1, gives_dw=True),
    "ConvTapSums": Traits(dy_input=0),
    "NormalizeOnRead": Traits(view=True),
    "WidenOnRead": Traits(view=True),
    "PackBits": Traits(makes_mask=True),
    "SignPack": Traits(packs_halves=True),
    "SignUnpack": Traits(gives_signs=True, cheap=_WEIGHTS | _BESIDE),
    "BinarizePack": Traits(packs_halves=True),
    "RangePack": Traits(makes_mask=True, packs_halves=True),
    "MaskedGrad": Traits(by_mask=True, dy_input=0),
    "AveragePoolGrad": Traits(dy_input=0),
    "MaxPoolGrad": Traits(dy_input=0),
    "PackedMaxPool": Traits(selects=True, makes_mask=True),
    "PackedMaxPoolGrad": Traits(dy_input=0),
    "BitmapPack": Traits(grows=True),
    "PrunedBitmapPack": Traits(grows=True),
    "BitmapConvWeightGrad": Traits(dy_input=2),
    "BatchNormalizationTraining": Traits(cheap=_MAPS, map_input=0),
    "BatchNormalizationApply": Traits(map_input=0),
    "BatchNormalizationGrad": Traits(map_input=1, dy_input=0),
    "L1BatchNormalizationTraining": Traits(cheap=_MAPS, map_input=0),
    "L1BatchNormalizationGrad": Traits(map_input=1, dy_input=0),
    "BatchNormalizationSigns": Traits(map_input=0),
    "L1BatchNormalizationSigns": Traits(map_input=0),
    "BatchNormalizationSignsGrad": Traits(dy_input=0),
    "L1BatchNormalizationPoolGrad": Traits(dy_input=0),
    "AdamStep": Traits(second_moment=True),
    "AdamWStep": Traits(second_moment=True),
    "BinaryConv": Traits(on_bits=True),
    "BinaryConvWeightGrad": Traits(dy_input=1, gives_dw=True),
    "BinaryConvWeightGradSigns": Traits(dy_input=1, gives_dw=True),
    "BinaryConvInputGrad": Traits(dy_input=0, gives_dx=True),
    "BinaryGemm": Traits(on_bits=True),
    "BinaryGemmWeightGrad": Traits(dy_input=1, gives_dw=True),
    "BinaryGemmWeightGradSigns": Traits(dy_input=1, gives_dw=True),
    "BinaryGemmInputGrad": Traits(dy_input=0, gives_dx=True),
    "BinaryConvWeightGradInt4": Traits(gives_dw=True),
    "BinaryConvWeightGradInt8": Traits(gives_dw=True),
    "BinaryConvWeightGradSignsInt4": Traits(gives_dw=True),
    "BinaryConvWeightGradSignsInt8": Traits(gives_dw=True),
    "BinaryConvInputGradInt4": Traits(gives_dx=True),
    "BinaryConvInputGradInt8": Traits(gives_dx=True),
    "BinaryGemmWeightGradInt4": Traits(gives_dw=True),
    "BinaryGemmWeightGradInt8": Traits(gives_dw=True),
    "BinaryGemmWeightGradSignsInt4": Traits(gives_dw=True),
    "BinaryGemmWeightGradSignsInt8": Traits(gives_dw=True),
    "BinaryGemmInputGradInt4": Traits(gives_dx=True),
    "BinaryGemmInputGradInt8": Traits(gives_dx=True),
}


QONNX_DOMAINS = frozenset(
    {"qonnx.custom_op.general", "finn.custom_op.general", "onnx.brevitas", "finn"}
)
_QONNX: dict[str, Traits] = {
    "BipolarQuant": Traits(settings=frozenset({1})),
    "Quant": Traits(settings=frozenset({1, 2, 3})),
}


def traits(node: ir.Node) -> Traits:
    """What is known of the operator of a node."""
    if node.domain in QONNX_DOMAINS:
        return _QONNX.get(node.op_type, NONE)
    if node.domain == DOMAIN:
        return _OWN.get(node.op_type, NONE)
    return NONE if node.domain else _STANDARD.get(node.op_type, NONE)


def plain(node: ir.Node) -> Traits:
    """What is known of the plain operator of which that of a node is a form."""
    base = OPERATORS[node.op_type].base if node.domain == DOMAIN else node.op_type
    return _OWN.get(base, _STANDARD.get(base, NONE))


def is_view(node: ir.Node) -> bool:
    """Whether the node's output is its first input's buffer under another shape."""
    return traits(node).view


def having(trait: str) -> frozenset[str]:
    """The names of all operators that have a trait, by the name of its attribute."""
    rows, default = [*_STANDARD.items(), *_OWN.items()], getattr(NONE, trait)
    return frozenset(name for name, row in rows if getattr(row, trait) != default)
