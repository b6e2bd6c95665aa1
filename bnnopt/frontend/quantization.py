"""What rounds to more than a sign: k bits, 0 and 1, ternary. Its gradient, where it can be known.

An autograd function leaves no trace in the file. A rounding passes the gradient on as it is, so
that the clip around it is the estimator: DoReFa (arXiv:1606.06160), PACT (arXiv:1805.06085). Steps
made of comparisons that never fall take the default of a sign.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bnnopt.errors import ModelError
from bnnopt.frontend.estimators import DEFAULT, ESTIMATORS, Estimator, Estimators
from bnnopt.frontend.normalize import ForwardGraph
from bnnopt.frontend.sampling import (
    is_elementwise,
    operands,
    sample,
    step_sources,
)
from bnnopt.frontend.straight_through import gradient_passes, is_real, listed
from bnnopt.ops import Emitter, dims, traits
from bnnopt.training_step import Role, readers, role


def estimate_steps(forward: ForwardGraph, estimators: Estimators) -> None:
    """Give an estimator to every rounding and step that the gradient has to pass.

    None where the file says how gradients go: those without an estimator have no gradient.

    Raises
    ------
    ModelError
        If nothing says what the gradient of a step is.
    """
    if forward.has_gradients:
        return
    rounded = _estimate_roundings(forward, estimators)
    stepped = _estimate_comparisons(forward, estimators)
    forward.quantized += [*rounded, *stepped]
    _note(forward, rounded, stepped)


def _estimate_roundings(forward: ForwardGraph, estimators: Estimators) -> list[str]:
    found = []
    for node, _ in _on_the_way(forward.graph):
        source = _rounded(node)
        if source is not None and not _is_fraction(node):
            _pass_gradient(forward, node, source, estimators.named(str(node.name)))
            found.append(str(node.name))
    return found


def _rounded(node: ir.Node) -> ir.Value | None:
    """The tensor that a node rounds, perhaps as ``x.int().float()``."""
    source = node.inputs[0] if node.inputs and not node.domain else None
    if source is None or traits(node).rounds:
        return source
    inner = source.producer()
    if node.op_type != "Cast" or inner is None or inner.op_type != "Cast":
        return None
    real = inner.inputs[0]
    is_cut = real is not None and is_real(real) and not is_real(source) and _is_integer(source)
    return real if is_cut else None


def _is_integer(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_integer()


def _estimate_comparisons(forward: ForwardGraph, estimators: Estimators) -> list[str]:
    found, masks = list[str](), list[str]()
    for node, trained in _on_the_way(forward.graph):
        y = node.outputs[0]
        sources = step_sources(y) if _is_outermost_step(y) else None
        if traits(node).rounds or sources is None or sources.isdisjoint(trained):
            continue
        if _reaches_product(y):
            source, ste = _estimate(node, sources, estimators)
            _pass_gradient(forward, node, source, ste)
            found.append(str(node.name))
        else:
            masks.append(str(node.name))
    if masks:
        forward.notes.append(f"no gradient passes {listed(masks)}: a mask of another tensor")
    return found


def _on_the_way(graph: ir.Graph) -> list[tuple[ir.Node, set[ir.Value]]]:
    """The nodes between a parameter and the loss, with all values that depend on one."""
    passes, trained = gradient_passes(graph), _trained(graph)
    wanted = [n for n in graph if n.outputs[0] in passes and n.outputs[0] in trained]
    return [(node, trained) for node in wanted]


def _note(forward: ForwardGraph, rounded: list[str], stepped: list[str]) -> None:
    if rounded:
        forward.notes.append(
            f"{listed(rounded)}: a rounding passes the gradient on as it is, clipped where the "
            "file clips; --ste PATTERN=NAME for another estimator"
        )
    if stepped:
        forward.notes.append(
            f"{listed(stepped)}: steps by comparison get the estimator of a sign, {DEFAULT[0]} at "
            f"|x| <= 1; --ste PATTERN=NAME for another"
        )


def _trained(graph: ir.Graph) -> set[ir.Value]:
    """The values that depend on a parameter."""
    found = {value for value in graph.inputs if role(value) is Role.PARAMETER}
    for node in graph:
        if not found.isdisjoint(v for v in node.inputs if v is not None):
            found.update(node.outputs)
    return found


def _is_fraction(node: ir.Node) -> bool:
    """``x - floor(x)``, whose gradient is that of x."""
    x = node.inputs[0]
    return all(
        reader.op_type == "Sub" and x in (reader.inputs[0], reader.inputs[1])
        for reader in readers(node.outputs[0])
    )


def _is_outermost_step(y: ir.Value) -> bool:
    node = y.producer()
    if not is_real(y) or not is_elementwise(node):
        return False
    if step_sources(y) is None:
        return False
    return not any(
        is_elementwise(reader) and step_sources(reader.outputs[0]) is not None
        for reader in readers(y)
    )


def _reaches_product(y: ir.Value) -> bool:
    """Whether a layer reads `y`, scaled perhaps: then it is no mask of another tensor."""
    for node in readers(y):
        if traits(node).layer is not None:
            return True
        others = [v for v in operands(node) if v is not y]
        is_mask = node.op_type in ("Mul", "Div") and any(dims(v) == dims(y) for v in others)
        if traits(node).passes_on and not is_mask and _reaches_product(node.outputs[0]):
            return True
    return False


def _estimate(
    node: ir.Node, sources: set[ir.Value], estimators: Estimators
) -> tuple[ir.Value, Estimator]:
    """The tensor that the gradient goes to, and how."""
    y = node.outputs[0]
    full = [v for v in sources if dims(v) == dims(y)]
    asked = estimators.asked(str(node.name))
    if len(full) == 1 and (asked is not None or (len(sources) == 1 and _never_falls(y, full[0]))):
        return full[0], asked or DEFAULT
    raise ModelError(
        f"node {node.name!r} ({node.op_type}) gives steps whose gradient is not in the file; "
        f"expected s + (b - s).detach() in PyTorch, or --ste '{node.name}={ESTIMATORS[1]}'"
    )


def _never_falls(y: ir.Value, source: ir.Value) -> bool:
    values = sample(y, source)
    return values is not None and bool((np.diff(values) >= 0).all())


def _pass_gradient(
    forward: ForwardGraph, node: ir.Node, source: ir.Value | None, ste: Estimator | None
) -> None:
    """Let what reads `node` read a `StraightThrough` of it."""
    y, emit = node.outputs[0], Emitter(forward.graph, "forward")
    users = [(use.node, use.idx) for use in y.uses()]
    assert source is not None
    if ste is not None and ste[0] != "identity":
        source = emit(
            "Binarize", source, name=f"{y.name}.estimator", ste=ste[0], clip=ste[1], zero=1.0
        )
    through = emit("StraightThrough", y, source, name=f"{y.name}.through")
    forward.graph.insert_after(node, emit.nodes)
    for user, index in users:
        user.replace_input_with(index, through)
    if y.is_graph_output():
        y.replace_all_uses_with(through, replace_graph_outputs=True)
        emit.nodes[-1].replace_input_with(0, y)
