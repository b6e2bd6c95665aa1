"""binary-weight-gradients: keep one bit of the gradient of a binarised weight."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from bnnopt.analysis import fan_in
from bnnopt.metadata import Key
from bnnopt.ops import Emitter, Form, dims, in_form, is_view, traits
from bnnopt.passes.infra.base import Pass, Trace
from bnnopt.passes.shared.rewriting import insert_after_definition, replace_node
from bnnopt.training_step import TrainingStep, phase, readers

NO_LIMIT = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class BinaryWeightGradients(Pass):
    """Keep the signs of the gradient of a binarised weight, and step by +-1 / sqrt(fan-in).

    Forward:   wb = sign(w);  y = x * wb
    Backward:  dwb = sgn(x^T dy), one bit an element
    Update:    dw = dwb / sqrt(fan-in), 0 where |w| > 1;  w = step(w, dw), dw never written down.
    Saves:     31 of 32 bits of each such gradient, from its layer's backward pass to its update.
    Numbers:   lossy: a gradient keeps its signs and loses its sizes. For normally distributed
               gradients that is a cosine of sqrt(2 / pi) = 0.8, less for heavier tails.
    Skips:     estimators other than identity and clipped identity, which scale the gradient; a
               weight that something else reads (XNOR-Net's scales); a sign that no product reads.
    Source:    Wang et al., arXiv:2102.04270, algorithm 2, lines 16 and 18.
    """

    name: ClassVar[str] = "binary-weight-gradients"
    level: ClassVar[int] = 2
    lossless: ClassVar[bool] = False
    min_cosine: ClassVar[float] = 0.6

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        nodes = [node for node in step.graph if _by_signs(node) is not None]
        return sum(self._keep_signs(step, trace, node) for node in nodes)

    def _keep_signs(self, step: TrainingStep, trace: Trace, node: ir.Node) -> int:
        w, gradient = node.inputs[:2]
        assert w is not None
        assert gradient is not None
        users = [user for user in _through_transposes(w) if phase(user) == "forward"]
        signs = [user for user in users if user.op_type == "Binarize"]
        if not signs:
            return 0
        others = [user for user in users if user not in signs]
        if len(signs) > 1 or others:
            also = (others or signs)[-1]
            return trace.skip(w, f"{also.op_type} {also.name!r} reads it too")
        estimator = signs[0].attributes["ste"].as_string()
        if estimator not in ("clipped", "identity"):
            return trace.skip(w, f"its estimator, {estimator}, scales the gradient")
        terms = {fan_in(product) for product in _products(signs[0].outputs[0])}
        if len(terms) != 1:
            return trace.skip(w, "its sign is not the weight of products of one fan-in")
        maker = gradient.producer()
        if maker is not None and phase(maker) == "update":
            return trace.skip(w, "the size of its gradient counts: it is summed or clipped")
        packed, by_signs = _pack(step, w, gradient), _by_signs(node)
        assert by_signs is not None
        clip = signs[0].attributes["clip"].as_float()
        update = Emitter(step.graph, "update")
        update(
            by_signs,
            *(w, packed, *node.inputs[2:]),
            name=str(node.name),
            n_outputs=len(node.outputs),
            shape=list(dims(w)[1:]),
            scale=1 / math.sqrt(terms.pop()),
            limit=clip if estimator == "clipped" else NO_LIMIT,
            **{name: attribute.value for name, attribute in node.attributes.items()},
        )
        replace_node(step, node, update)
        _drop_unread(step, gradient)
        return 1


def _by_signs(node: ir.Node) -> str | None:
    """The optimiser step that reads signs where that of the node reads floats."""
    return in_form(node.op_type, Form.SIGNS) if Key.PARAMETER in node.metadata_props else None


def _turns_or_clips(node: ir.Node) -> bool:
    return node.op_type == "Transpose" or node.op_type == "ClipGrad"


def _pack(step: TrainingStep, w: ir.Value, gradient: ir.Value) -> ir.Value:
    """Pack the signs of the gradient, taken before the estimator's mask: the step applies that."""
    emit = Emitter(step.graph, "backward")
    raw, turns = gradient, list[list[int]]()
    while (node := raw.producer()) is not None and _turns_or_clips(node):
        if node.op_type == "Transpose":
            turns.append(list(node.attributes["perm"].as_ints()))
        assert node.inputs[0] is not None
        raw = node.inputs[0]
    value = raw
    for perm in reversed(turns):
        value = emit("Transpose", value, name=f"{w.name}.grad.turned", perm=perm)
    packed = emit("BinarizePack", value, name=f"{w.name}.grad.signs", zero=1.0)
    insert_after_definition(step, raw, emit.nodes)
    return packed


def _through_transposes(value: ir.Value) -> list[ir.Node]:
    """The nodes that read `value`, or a transposed or reshaped form of it."""
    found = []
    for node in readers(value):
        is_turn = node.op_type == "Transpose" or is_view(node)
        found += _through_transposes(node.outputs[0]) if is_turn else [node]
    return found


def _products(sign: ir.Value) -> list[ir.Node]:
    """The forward products whose weight is `sign`; none where anything else reads it."""
    found: list[ir.Node] = []
    for node in readers(sign):
        if phase(node) != "forward":
            continue
        if traits(node).product and node.inputs[1] is sign:
            found.append(node)
        elif node.op_type == "Mul" or node.op_type == "Transpose" or is_view(node):
            found += _products(node.outputs[0])
        else:
            return []
    return found


def _drop_unread(step: TrainingStep, value: ir.Value) -> None:
    """Remove the nodes that made `value` alone."""
    producer = value.producer()
    if producer is None or any(output.uses() for output in producer.outputs):
        return
    sources = [source for source in producer.inputs if source is not None]
    step.graph.remove(producer, safe=True)
    for source in sources:
        _drop_unread(step, source)
