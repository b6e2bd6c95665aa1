"""What no file says, and a user should know: notes that name nodes."""

from __future__ import annotations

import re

import onnx_ir as ir

from bnnopt.frontend.normalize import ForwardGraph
from bnnopt.frontend.sampling import is_elementwise, operands
from bnnopt.frontend.straight_through import gradient_passes, listed
from bnnopt.ops import traits
from bnnopt.training_step import Role, readers, role

# What modules register as buffers: the file holds them beside the weights.
_BUFFERS = re.compile(
    r"(^|[._])(mean|std|var|mask|buffer|inv_freq|freqs|pe|grid|anchors|ema|shift_table)$"
)


def add_hints(forward: ForwardGraph) -> None:
    """Say what may be a buffer, and where a ``detach()`` may have stood."""
    buffers = [str(v.name) for v in forward.graph.inputs if _may_be_buffer(v)]
    if buffers:
        forward.notes.append(
            f"trained like any weight, though they may be buffers: {listed(buffers)}; "
            "--freeze PATTERN leaves them as they are"
        )
    for what, found in (
        ("both factors, of one tensor each", _related_factors(forward.graph)),
        ("a weight and its mean", _centred_weights(forward.graph)),
    ):
        if found:
            names = listed([str(node.name) for node in found])
            forward.notes.append(f"{names}: the gradient passes {what}; no file holds a detach()")


def _may_be_buffer(value: ir.Value) -> bool:
    """By its name, or as it is taken off the input or divides it."""
    if role(value) is not Role.PARAMETER:
        return False
    of_input = all(
        node.op_type in ("Div", "Sub")
        and any(v is not value and v is not None and role(v) is Role.DATA for v in node.inputs)
        for node in readers(value)
    )
    return of_input or _BUFFERS.search(str(value.name)) is not None


def _related_factors(graph: ir.Graph) -> list[ir.Node]:
    """Products of two functions of one tensor: a scale and its signs, a gate and its input."""
    passes = gradient_passes(graph)
    return [
        node
        for node in graph
        if node.op_type in ("Div", "Mul")
        and node.outputs[0] in passes
        and len({v for v in operands(node) if v.producer() is not None}) == 2
        and _share_root(*operands(node))
    ]


def _centred_weights(graph: ir.Graph) -> list[ir.Node]:
    """Differences of a weight and what a reduction makes of it."""
    passes = gradient_passes(graph)
    found = []
    for node in graph:
        if node.op_type != "Sub" or node.outputs[0] not in passes:
            continue
        w, mean = node.inputs
        if w is None or mean is None or role(w) is not Role.PARAMETER:
            continue
        maker = mean.producer()
        if maker is not None and traits(maker).reduces and _roots(mean) == {w}:
            found.append(node)
    return found


def _share_root(a: ir.Value, b: ir.Value) -> bool:
    return not _roots(a).isdisjoint(_roots(b))


def _is_followed(node: ir.Node) -> bool:
    known = traits(node)
    of_values = is_elementwise(node) or known.binarizes or node.op_type == "StraightThrough"
    return of_values or known.reduces or known.rearranges


def _roots(value: ir.Value) -> set[ir.Value]:
    """The tensors that a value is made of by elementwise operators, views and reductions."""
    found, seen, waiting = set(), {value}, [value]
    while waiting:
        current = waiting.pop()
        node = current.producer()
        if node is None or not _is_followed(node):
            found.add(current)
            continue
        more = [v for v in operands(node) if v not in seen]
        seen.update(more)
        waiting += more
    return found
