"""Reverse-mode differentiation of a forward graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bnnopt.autodiff.context import Context, UnknownInput
from bnnopt.autodiff.gradients import GRADIENTS
from bnnopt.errors import ModelError
from bnnopt.ops import DOMAIN, Emitter, dims, dtype
from bnnopt.training_step import mark_loss_gradient

FLOATS = frozenset(
    {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
)


def differentiate(
    graph: ir.Graph, loss: ir.Value, parameters: list[ir.Value]
) -> dict[ir.Value, ir.Value]:
    """Append the backward pass of `loss` to the graph.

    Parameters
    ----------
    graph : onnx_ir.Graph
        Typed forward nodes in topological order, loss included.
    loss : Value
        A float scalar of the graph.
    parameters : list of Value
        Graph inputs to differentiate with respect to.

    Returns
    -------
    dict
        Parameter to gradient; a parameter that the loss does not depend on is missing.

    Raises
    ------
    ModelError
        If an operator between a parameter and the loss has no gradient rule.
    """
    nodes = list(graph)
    dependent = _dependent(nodes, parameters)
    backward = Emitter(graph, "backward")
    if loss not in dependent:
        return {}
    grads = {loss: _gradient_of_loss(graph, loss, backward)}
    for node in reversed(nodes):
        output_grads = [grads.get(output) for output in node.outputs]
        wanted = {i for i, value in enumerate(node.inputs) if value in dependent}
        if not wanted or not any(output_grads):
            continue
        forward = backward.fork("forward")
        context = Context(node, output_grads, wanted, backward, forward)
        for index, grad in _apply_rule(context).items():
            _accumulate(grads, context, index, grad)
        graph.insert_after(node, forward.nodes)
    graph.extend(backward.nodes)
    return {parameter: grads[parameter] for parameter in parameters if parameter in grads}


def _gradient_of_loss(graph: ir.Graph, loss: ir.Value, emit: Emitter) -> ir.Value:
    """1, as a constant that nothing else reads: whoever scales the loss changes it alone."""
    one = ir.tensor(np.ones(dims(loss), dtype(loss).numpy()))
    name = emit.unique(f"{loss.name}.grad")
    value = ir.val(name, dtype=dtype(loss), shape=dims(loss), const_value=one)
    graph.register_initializer(mark_loss_gradient(value))
    return value


def _dependent(nodes: list[ir.Node], parameters: list[ir.Value]) -> set[ir.Value | None]:
    """The float values that depend on a parameter."""
    found: set[ir.Value | None] = set(parameters)
    for node in nodes:
        if any(value in found for value in node.inputs):
            found.update(output for output in node.outputs if output.dtype in FLOATS)
    return found


def _apply_rule(context: Context) -> dict[int, ir.Value]:
    node = context.node
    where = f"node {node.name!r} ({node.op_type if node.domain in ('', DOMAIN) else node.domain})"
    rule = GRADIENTS.get(node.op_type) if node.domain in ("", DOMAIN) else None
    remedy = "freeze the parameters before it (--freeze PATTERN), or export without it"
    if rule is None:
        raise ModelError(f"{where}: there is no gradient rule for this operator; {remedy}")
    try:
        return {i: grad for i, grad in rule(context).items() if i in context.wanted}
    except UnknownInput as error:
        raise ModelError(f"{where}: no gradient: {error}; {remedy}") from None


def _accumulate(
    grads: dict[ir.Value, ir.Value], context: Context, index: int, grad: ir.Value
) -> None:
    value = context.x(index)
    so_far = grads.get(value)
    if so_far is not None:
        grad = context.backward("Add", so_far, grad, name=f"{value.name}.grad")
    grads[value] = grad
