"""What the passes share that give binary products a packed dy and its unit to read."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from bnnopt.ops import MIN_OPSET, OPERATORS, Emitter, Form, dtype, family, form, in_form, traits
from bnnopt.ops.emit import Attribute
from bnnopt.passes.infra.base import Trace
from bnnopt.passes.shared.rewriting import replace_node
from bnnopt.training_step import TrainingStep, phase, readers

NARROW = Form.POW2 | Form.INT8 | Form.INT4


def products_by_dy(step: TrainingStep, wanted: Form, trace: Trace) -> dict[ir.Value, list[ir.Node]]:
    """The products that could read their dy in the form `wanted`, by that dy."""
    found: dict[ir.Value, list[ir.Node]] = {}
    for node in step.graph:
        if form(node) & NARROW & ~wanted:
            trace.skip(node, "its dy is packed already")
        elif _in_form(node, wanted) is not None:
            found.setdefault(_dy(node), []).append(node)
    return found


def read_by_products_alone(
    step: TrainingStep, wanted: Form, trace: Trace
) -> Iterator[tuple[ir.Value, list[ir.Node]]]:
    """Those of `products_by_dy` whose dy nothing else reads; of the others the trace says so."""
    for dy, nodes in products_by_dy(step, wanted, trace).items():
        others = [node for node in readers(dy) if node not in nodes]
        if not (others or dy.is_graph_output()):
            yield dy, nodes
            continue
        reader = f"{others[0].op_type} {others[0].name!r}" if others else "the caller"
        trace.skip(dy, f"kept anyway: {reader} reads it")


def read_narrow(
    step: TrainingStep,
    node: ir.Node,
    narrow: tuple[ir.Value, ir.Value],
    wanted: Form,
    **attributes: Attribute,
) -> None:
    """Let a product read the packed dy and its unit in the place of dy; its dx keeps its type."""
    operator, dy = _in_form(node, wanted), _dy(node)
    assert operator is not None
    inputs = [v for value in node.inputs for v in (narrow if value is dy else (value,))]
    own = {name: attribute.value for name, attribute in node.attributes.items()} | attributes
    if traits(node).gives_dx:
        own["dtype"] = int(dtype(dy))
    emit = Emitter(step.graph, phase(node))
    name, n_outputs = str(node.outputs[0].name), len(node.outputs)
    emit(operator, *inputs, name=name, n_outputs=n_outputs, **own)
    replace_node(step, node, emit)


def _in_form(node: ir.Node, wanted: Form) -> str | None:
    """The operator that is that of the node in a form that it does not have."""
    return None if wanted in form(node) else in_form(family(node), form(node) | wanted)


def _dy(node: ir.Node) -> ir.Value:
    dy = node.inputs[[*OPERATORS[node.op_type].function(MIN_OPSET).input].index("dy")]
    assert dy is not None
    return dy
