"""float16-gradients: gradient maps in half precision, under a static loss scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from bnnopt.analysis import is_persistent, one_a_sample
from bnnopt.ops import Emitter, dims, infer_types, is_view, traits
from bnnopt.passes.infra.base import Pass, Trace
from bnnopt.passes.shared.precision import is_half
from bnnopt.passes.shared.rewriting import insert_after_definition, redirect
from bnnopt.training_step import Role, TrainingStep, is_loss_gradient, phase, readers


@dataclass(frozen=True)
class Float16Gradients(Pass):
    """Keep the gradients of activations in float16, from the loss on.

    Backward:  the gradient of the loss is S, a power of two, instead of 1. Every gradient operator
               takes dy in float16, sums in float32 and gives dx in float16; where one takes no
               float16, dy is cast right before it and dx right behind it. Parameter gradients are
               float32 and are divided by S, exactly; of signs S changes nothing.
    Saves:     16 bits an element of the gradient maps.
    Numbers:   lossy: 11 digits a map from 2^-14 to 65504. S = 2^`scale_bits` times the number of
               labels, so that the gradient of a mean loss starts with at most 2^`scale_bits`: by
               default 2^6 below overflow, and small ones 2^24 below it keep all digits. An
               overflow gives infinity, as it would in float32, and the step that meets it says so;
               it is not hidden.
    Skips:     a training graph whose loss gradient is not marked.
    Source:    Micikevicius et al., arXiv:1710.03740 (loss scaling); Wang et al., arXiv:2102.04270.

    Attributes
    ----------
    scale_bits : int
        log2 of the largest gradient to start from.
    """

    name: ClassVar[str] = "float16-gradients"
    level: ClassVar[int] = 2
    after: ClassVar[Mapping[str, str]] = {
        "packed-products": "asks the kernels that were chosen whether they take float16",
    }
    lossless: ClassVar[bool] = False
    min_cosine: ClassVar[float] = 0.995
    scale_bits: int = 10

    def __post_init__(self) -> None:
        if not -126 <= self.scale_bits <= 127:
            self.refuse("scale_bits", self.scale_bits, "-126 to 127, a power of two of float32")

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        seeds = [v for v in step.graph.initializers.values() if is_loss_gradient(v)]
        if not seeds:
            return trace.skip(step.loss, "the graph does not say which value is its gradient")
        if not any(_reads_dy(node) for node in step.graph) or _is_scaled(seeds[0]):
            return 0
        scale = self.scale(step)
        before = {value: value.dtype for node in step.graph for value in node.outputs}
        maps = one_a_sample(step)
        _scale(seeds[0], scale)
        scaled: set[ir.Value | None] = {seeds[0]}
        for node in list(step.graph):
            if not scaled.isdisjoint(node.inputs):
                if phase(node) == "update":
                    _unscale(step, node, scaled, scale)
                else:
                    scaled.update(node.outputs)
                    _narrow(step, node, scaled, maps)
        narrowed = sum(value.dtype is not kind for value, kind in before.items())
        return max(narrowed, 1)  # the gradient of the loss is another one

    def scale(self, step: TrainingStep) -> float:
        """S, by which all gradients are multiplied."""
        return float(2.0 ** (round(math.log2(_n_labels(step))) + self.scale_bits))


def _n_labels(step: TrainingStep) -> int:
    """What a mean loss divides by: its labels, or else the samples."""
    labels = step.inputs(Role.LABELS)
    return math.prod(dims(labels[0])) if labels else _batch(step)


def _batch(step: TrainingStep) -> int:
    return dims(step.inputs(Role.DATA)[0])[0]


def _is_scaled(seed: ir.Value) -> bool:
    return seed.const_value is not None and float(seed.const_value.numpy().item()) != 1


def _scale(seed: ir.Value, scale: float) -> None:
    assert seed.const_value is not None
    one = seed.const_value.numpy()
    seed.const_value = ir.tensor(one * one.dtype.type(scale))


def _unscale(step: TrainingStep, node: ir.Node, scaled: set[ir.Value | None], scale: float) -> None:
    """Divide the float gradient that an update reads, for all updates that read it.

    A map itself, as of a parameter with a row a sample, is float32 again from here on.
    """
    for gradient in [value for value in node.inputs if value in scaled]:
        if gradient is None or not gradient.dtype or not gradient.dtype.is_floating_point():
            continue
        emit = Emitter(step.graph, "backward")
        wide = gradient
        if is_half(gradient):
            wide = emit("Cast", gradient, name=f"{gradient.name}.wide", to=int(ir.DataType.FLOAT))
        factor = emit.constant(1 / scale, "float32", "unscale")
        divided = emit("Mul", wide, factor, name=f"{gradient.name}.unscaled")
        for user in [user for user in readers(gradient) if phase(user) == "update"]:
            redirect(user, gradient, divided)
        step.graph.insert_before(node, emit.nodes)


def _narrow(
    step: TrainingStep, node: ir.Node, scaled: set[ir.Value | None], maps: set[ir.Value]
) -> None:
    """Let a gradient operator take and give float16, with casts where it does not."""
    halves = [v for v in node.inputs if v is not None and is_half(v) and v in scaled]
    if halves and _accepts(node, halves[0]):
        for value in node.inputs if node.op_type == "Add" else ():
            assert value is not None
            if not is_half(value):
                _cast_for(step, node, value, ir.DataType.FLOAT16)
        infer_types(node, step.opset)
    else:
        for value in halves:
            _cast_for(step, node, value, ir.DataType.FLOAT)
    for output in node.outputs:
        if output.dtype == ir.DataType.FLOAT and output in maps:
            _narrow_output(step, output, scaled)


def _narrow_output(step: TrainingStep, value: ir.Value, scaled: set[ir.Value | None]) -> None:
    """Cast what only gives float32, for the readers that take float16."""
    takers = [reader for reader in readers(value) if _leads_on(reader, value)]
    if not takers:
        return
    emit = Emitter(step.graph, "backward")
    half = emit("Cast", value, name=f"{value.name}.half", to=int(ir.DataType.FLOAT16))
    for reader in takers:
        redirect(reader, value, half)
    insert_after_definition(step, value, emit.nodes)
    scaled.add(half)


def _cast_for(step: TrainingStep, node: ir.Node, value: ir.Value, kind: ir.DataType) -> None:
    emit = Emitter(step.graph, "backward")
    redirect(node, value, emit("Cast", value, name=f"{value.name}.cast", to=int(kind)))
    step.graph.insert_before(node, emit.nodes)


def _accepts(node: ir.Node, value: ir.Value) -> bool:
    """Whether the node takes `value` in float16: it reads dy there, or only moves or adds it."""
    if _reads_dy(node):
        of_weight = node.op_type == "ClipGrad" and _is_weight(node.inputs[1])
        return node.inputs[traits(node).dy_input or 0] is value and not of_weight
    return is_view(node) or node.op_type == "Transpose" or node.op_type == "Add"


def _is_weight(value: ir.Value | None) -> bool:
    """Whether the value is a parameter, in whatever layout: its gradient stays float32."""
    producer = value.producer() if value is not None else None
    if producer is not None and _lays_out(producer):
        return _is_weight(producer.inputs[0])
    return value is not None and is_persistent(value)


def _lays_out(node: ir.Node) -> bool:
    return is_view(node) or traits(node).casts or node.op_type == "Transpose"


def _reads_dy(node: ir.Node) -> bool:
    return traits(node).dy_input is not None


def _leads_on(node: ir.Node, value: ir.Value) -> bool:
    """Whether a gradient operator that takes float16 reads `value`, as it is or moved or added."""
    if _reads_dy(node) or not _accepts(node, value):
        return _accepts(node, value)
    output = node.outputs[0]
    return any(_leads_on(reader, output) for reader in readers(output))
