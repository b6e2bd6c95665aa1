"""What is known of a value's elements without running anything."""

from __future__ import annotations

import math
from typing import NamedTuple

import onnx_ir as ir

from bnnopt.ops import Layer, dims, family, is_view, traits
from bnnopt.training_step import Role, TrainingStep, phase, readers


def is_binary(value: ir.Value | None) -> bool:
    """Whether every element is -1 or +1.

    True for the output of a Binarize (not of a Ternarize), and for what only selects from such
    values (max pooling pads with minus infinity, so it selects too).
    """
    producer = value.producer() if value is not None else None
    if producer is None:
        return False
    if traits(producer).gives_signs:
        return True
    if producer.op_type == "Concat":
        return all(is_binary(source) for source in producer.inputs)
    if is_view(producer) or traits(producer).selects:
        return value is producer.outputs[0] and is_binary(producer.inputs[0])
    return False


class ScaledSigns(NamedTuple):
    """A tensor of signs times numbers: `scales` are one number, or one for each row."""

    signs: ir.Value
    scales: tuple[ir.Value, ...] = ()

    @property
    def is_uniform(self) -> bool:
        """Whether one number scales all of it."""
        return all(math.prod(dims(scale)) == 1 for scale in self.scales)


def scaled_signs(value: ir.Value | None) -> ScaledSigns | None:
    """The signs and the scales that a value is the product of, seen through views of its shape."""
    if value is None or is_binary(value):
        return None if value is None else ScaledSigns(value)
    node = value.producer()
    if node is None or node.domain:
        return None
    if is_view(node) and node.inputs[0] is not None and dims(node.inputs[0]) == dims(value):
        return scaled_signs(node.inputs[0])
    if node.op_type != "Mul":
        return None
    for part, scale in (node.inputs, node.inputs[::-1]):
        found = scaled_signs(part) if part is not None and dims(part) == dims(value) else None
        if found is not None and scale is not None and _is_scale(scale, dims(value)):
            return ScaledSigns(found.signs, (*found.scales, scale))
    return None


def _is_scale(scale: ir.Value, shape: tuple[int, ...]) -> bool:
    own = dims(scale)
    if math.prod(own) == 1:
        return len(own) <= len(shape)
    return len(own) == len(shape) and own[0] == shape[0] and set(own[1:]) <= {1}


def is_binary_product(node: ir.Node) -> bool:
    """Whether the node is a convolution or matrix product with an operand of -1 and +1."""
    return traits(node).product and any(is_binary(value) for value in node.inputs[:2])


def integer_bound(value: ir.Value) -> int | None:
    """The largest magnitude of a value that is integer for sure; None where it may not be.

    A product of two tensors of -1 and +1 is an integer of at most its fan-in.
    """
    producer = value.producer()
    if producer is None or value is not producer.outputs[0]:
        return None
    if is_binary(value):
        return 1
    if _keeps_values(producer):
        source = producer.inputs[0]
        return integer_bound(source) if source is not None else None
    if traits(producer).product and len([v for v in producer.inputs if v is not None]) == 2:
        both = all(is_binary(operand) for operand in producer.inputs)
        return fan_in(producer) if both and not _is_scaled(producer) else None
    return None


def _keeps_values(node: ir.Node) -> bool:
    """Whether the first output has elements of the first input, all integers if those are."""
    return is_view(node) or node.op_type == "Transpose" or family(node) == "MaxPool"


def _is_scaled(node: ir.Node) -> bool:
    alpha = node.attributes.get("alpha")
    return alpha is not None and alpha.as_float() != 1


def fan_in(node: ir.Node) -> int:
    """Terms of the sum behind one output element of a convolution or matrix product."""
    weight = dims(node.inputs[1])
    if traits(node).layer is Layer.CONV:
        return math.prod(weight[1:])
    turned = node.op_type == "Gemm" and "transB" in node.attributes
    transposed = turned and node.attributes["transB"].as_int() == 1
    return weight[-1] if transposed else weight[-2]


def real_weights(step: TrainingStep) -> list[ir.Value]:
    """The trained weights that layers multiply by as they are, binarised ones left out."""
    trained = step.inputs(Role.PARAMETER)
    return [value for value in trained if len(dims(value)) > 1 and _is_multiplied(value)]


def _is_multiplied(weight: ir.Value) -> bool:
    """Whether every forward reader is a layer, perhaps behind a Transpose."""
    return all(
        traits(node).product or (node.op_type == "Transpose" and _is_multiplied(node.outputs[0]))
        for node in readers(weight)
        if phase(node) == "forward"
    )
