"""fuse-updates: step the weights of a tile as soon as its gradient is finished."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import onnx_ir as ir

from bnnopt.analysis import is_persistent, size_bytes
from bnnopt.metadata import Key
from bnnopt.ops import (
    Emitter,
    Form,
    dims,
    dtype,
    family,
    form,
    fused_name,
    in_form,
    traits,
)
from bnnopt.passes.infra.base import Pass, Trace
from bnnopt.passes.shared.rewriting import redirect, stand_for
from bnnopt.plan import live_bytes, waits_for, workspace_bytes
from bnnopt.runtime.kernels.compiled.kernel import Sizes
from bnnopt.runtime.kernels.compiled.table import covers
from bnnopt.training_step import (
    TrainingStep,
    drop_unread,
    is_constant,
    mark_makes_gradient,
    phase,
    readers,
)

_GEMM_DEFAULTS = {"transA": 0, "transB": 0, "alpha": 1.0}


@dataclass(frozen=True)
class FuseUpdates(Pass):
    """Step the weights of a tile of a weight gradient as soon as it is summed over the batch.

    Backward:  dw = x^T dy, one tile of it after the other
    Update:    w = step(w, dw) of that tile, by the thread that finished it; dw is nowhere kept.
    Saves:     the weight gradient, or its sign bits.  Numbers: bit-exact.
    Skips:     a gradient that is added up, transposed or read elsewhere; one that is smaller than
               the layer's input, where that would have to stay until something else has read the
               weight; one that is read at once and smaller than the scratch memory that its tiles
               need, where that would raise the peak.
    Source:    Wang et al., arXiv:2102.04270, algorithm 2, lines 16 to 18.
    """

    name: ClassVar[str] = "fuse-updates"
    after: ClassVar[Mapping[str, str]] = {
        "packed-products": "asks the kernels that were chosen whether they step weights",
        "float16-gradients": "takes the scale of the gradients in",
        "float16-state": "takes the step in as it is",
        "state-8bit": "takes the step in as it is",
        "immediate-update": "takes in a step that follows its gradient",
    }

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        steps = [node for node in step.graph if Key.PARAMETER in node.metadata_props]
        alive = live_bytes(step)
        room = {node: max(alive) - now for node, now in zip(step.graph, alive, strict=True)}
        count = sum(_fuse(step, trace, node, room) for node in steps)
        drop_unread(step.graph)
        return count


@dataclass(frozen=True)
class _Gradient:
    """What a step reads: `scale` times the result of a product, 0 where |w| > `limit` >= 0."""

    product: ir.Node
    scale: float = 1.0
    limit: float = -1.0


def _fuse(step: TrainingStep, trace: Trace, node: ir.Node, room: Mapping[ir.Node, int]) -> int:
    """Let one step take the tiles of its gradient, where the bytes of `room` at a node suffice."""
    w = node.inputs[0]
    assert w is not None
    found = _gradient(node)
    if isinstance(found, str):
        is_vector = len(dims(w)) < 2  # which no product makes
        return 0 if is_vector else trace.skip(w, found)
    product, name = found.product, _fused(found.product, node)
    inputs = [w, *product.inputs, *node.inputs[2:]]
    attributes = _attributes(found, node)
    if name is None or not _has_kernel(name, inputs, attributes):
        return trace.skip(w, f"no kernel does {product.op_type} and {node.op_type} at once")
    position = {other: i for i, other in enumerate(step.graph)}
    others = _other_readers(step, node, product, position)
    idle = [n for n in others if all(v is None or is_persistent(v) for v in n.inputs)]
    blocking = [n for n in others if n not in idle]
    is_binary = w.dtype == ir.DataType.UINT8  # of which readers get a copy, a bit each
    if blocking and not is_binary and _size(product.inputs[0]) > _size(node.inputs[1]):
        reader = f"{blocking[0].op_type} {blocking[0].name!r}"
        return trace.skip(w, f"{reader} reads it first; the layer's input is larger than dw")
    emit = Emitter(step.graph, "update")
    emit(name, *inputs, name=str(node.name), n_outputs=len(node.outputs) + 1, **attributes)
    (new,) = emit.nodes
    scratch = workspace_bytes(new)
    more = scratch - workspace_bytes(product) - _size(product.outputs[0])
    if not blocking and more > room.get(product, 0):
        new.resize_inputs(0)
        return trace.skip(w, f"{name} would raise the peak: it needs {scratch} B of scratch memory")
    if blocking and is_binary:
        copies = _read_copy(step, w, blocking)
        position |= dict.fromkeys(copies, position[blocking[0]])
        idle, blocking = idle + copies, []
    last = max([product, *blocking], key=position.__getitem__)
    late = [other for other in idle if position[other] > position[last]]
    if late:
        step.graph.remove(late)
    step.graph.insert_after(last, [*late, new])
    for other in idle:
        other.metadata_props[Key.PHASE] = "backward"  # a rebuild would run right before its reader
    stand_for(step, node, new, new.outputs[:-1])
    new.outputs[-1].name = ""
    mark_makes_gradient(new)
    return 1


def _gradient(node: ir.Node) -> _Gradient | str:
    """Where the gradient that a step reads comes from; else why no product can hand it over."""
    value, found = node.inputs[1], _Gradient(node)
    while True:
        assert value is not None
        maker = value.producer()
        if maker is None or value.is_graph_output() or len(readers(value)) > 1:
            return f"its gradient {value.name!r} is read elsewhere"
        if traits(maker).gives_dw or _is_dense(maker):
            is_half = dtype(maker.outputs[0]) == ir.DataType.FLOAT16
            return "its gradient is float16" if is_half else replace(found, product=maker)
        if maker.op_type == "BinarizePack" and maker.attributes["zero"].as_float() == 1:
            value = maker.inputs[0]
        elif maker.op_type == "Mul" and found.limit < 0 and (factor := _factor(maker)) is not None:
            value, found = maker.inputs[0], replace(found, scale=found.scale * factor)
        elif maker.op_type == "ClipGrad" and (limit := _limit(maker, node.inputs[0])) is not None:
            value, found = maker.inputs[0], replace(found, limit=limit)
        else:
            return f"{maker.op_type} {maker.name!r} makes its gradient"


def _fused(product: ir.Node, step: ir.Node) -> str | None:
    """The operator that does both; signs are packed in it, for a step that reads them."""
    made = form(product) & ~Form.SIGNS
    return in_form(fused_name(family(product), family(step)), made | form(step) | Form.FUSED)


def _is_dense(node: ir.Node) -> bool:
    """Whether it is the weight gradient of a dense layer of real numbers: a^T b."""
    given = {name: attribute.value for name, attribute in node.attributes.items()}
    options = [given.get(name, default) for name, default in _GEMM_DEFAULTS.items()]
    return node.op_type == "Gemm" and len(node.inputs) == 2 and options == [1, 0, 1.0]


def _factor(node: ir.Node) -> float | None:
    """The number that a Mul multiplies its first input by."""
    factor = node.inputs[1]
    if factor is None or not is_constant(factor) or dims(factor) != ():
        return None
    assert factor.const_value is not None
    return float(factor.const_value.numpy())


def _limit(node: ir.Node, w: ir.Value | None) -> float | None:
    """Where a ClipGrad ends the gradient of w, on both sides."""
    x = node.inputs[1]
    widened = x.producer() if x is not None else None
    if widened is not None and widened.op_type == "Cast":
        x = widened.inputs[0]
    low, high = (node.attributes[name].as_float() for name in ("low", "high"))
    return high if x is w and -low == high >= 0 else None


def _attributes(found: _Gradient, node: ir.Node) -> dict[str, Any]:
    """Those of the product and of the step, and what happens between them."""
    between = {}
    if Form.SIGNS not in form(node):
        between["scale"] = found.scale
        if family(node) != "BopStep":
            between["limit"] = found.limit
    product = {} if _is_dense(found.product) else found.product.attributes
    own = {**product, **node.attributes}
    return {**{name: attribute.value for name, attribute in own.items()}, **between}


def _has_kernel(name: str, inputs: list[ir.Value | None], attributes: dict[str, Any]) -> bool:
    """Whether a compiled kernel covers the fused operator."""
    return covers(name, Sizes([dims(value) for value in inputs], [], attributes))


def _size(value: ir.Value | None) -> int:
    return size_bytes(value) if value is not None else 0


def _other_readers(
    step: TrainingStep, node: ir.Node, product: ir.Node, position: Mapping[ir.Node, int]
) -> list[ir.Node]:
    """What reads the weight in the backward pass, and may run after the product does."""
    late = [n for n in waits_for(step, node) if phase(n) != "forward"]
    first = min((position[other] for other in late), default=0)
    earlier, pending = {product}, [product]
    while pending:  # back to the first of them: what is needed stands before what needs it
        makers = [v.producer() for v in pending.pop().inputs if v is not None]
        new = {n for n in makers if n is not None and position[n] >= first} - earlier
        earlier |= new
        pending += new
    made = node.inputs[1].producer() if node.inputs[1] is not None else None
    others = [n for n in late if n not in earlier and n is not made]
    return sorted(others, key=position.__getitem__)


def _read_copy(step: TrainingStep, w: ir.Value, nodes: list[ir.Node]) -> list[ir.Node]:
    """Let the nodes read a copy of binary weights, a bit each, which are then stepped before."""
    emit = Emitter(step.graph, "backward")
    copy = emit("Cast", w, name=f"{w.name}.copy", to=int(dtype(w)))
    for node in nodes:
        redirect(node, w, copy)
    step.graph.insert_before(nodes[0], emit.nodes)
    return emit.nodes
