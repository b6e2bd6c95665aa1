"""``s + (b - s).detach()``: the value of b with the gradient of s.

No file carries the ``detach``. But nobody subtracts a tensor to add it again, so a sum in which one
tensor cancels is read as `StraightThrough` of the rest and that tensor.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from bnnopt.frontend.marks import stops
from bnnopt.frontend.normalize import ForwardGraph
from bnnopt.ops import DOMAIN, Emitter, dims, traits
from bnnopt.training_step import is_constant

Term = tuple[int, ir.Value]
"""A sign, -1 or +1, and what it is in front of."""

_DEPTH = 3
_SUMS = {"Add": (1, 1), "Sub": (1, -1), "Neg": (-1,)}
_PRODUCTS = {"Mul": 2, "Div": 1}


def settle_detached(forward: ForwardGraph) -> None:
    """Turn every sum in which a tensor cancels into a `StraightThrough` node, and name them."""
    find = cancelled_as_written if forward.has_gradients else cancelled
    for node in list(forward.graph):
        found = find(node)
        if found is not None:
            _replace(forward.graph, node, *found)
    names = [str(node.name) for node in straight_through_nodes(forward.graph)]
    if names and not forward.has_gradients:
        forward.notes.append(
            f"{listed(names)}: (b - s) + s has the value of b and the gradient of s alone"
        )


def straight_through_nodes(graph: ir.Graph) -> list[ir.Node]:
    """The `StraightThrough` nodes of a graph, in order."""
    return [n for n in graph if n.domain == DOMAIN and n.op_type == "StraightThrough"]


def cancelled(node: ir.Node) -> tuple[list[Term], ir.Value] | None:
    """The terms of b, and s, where `node` sums up to b + s - s."""
    for s, sign, other, other_sign in _pairs(node):
        rest = _without(other, s, -sign * other_sign, _DEPTH)
        if rest is None:
            continue
        terms = [(other_sign * g, v) for g, v in rest]
        # (b + s) - s may be a residual network that takes its shortcut off again, and
        # b + (s - s) has the gradient of b as well: not so where no gradient passes b.
        if sign < 0 and terms and not all(_rounds(v) for _, v in terms):
            continue
        return terms, s
    return _beside_nothing(node) or _in_part(node)


def cancelled_as_written(node: ir.Node) -> tuple[list[Term], ir.Value] | None:
    """The same in a file that says where gradients stop: s passes one on, b and -s do not."""
    if not _joins_two(node):
        return None
    terms = [term for i in (0, 1) for term in _flat(node.inputs[i], _SUMS[node.op_type][i], False)]
    passing = [(sign, v) for sign, v, is_stopped in terms if not is_stopped]
    if len(passing) != 1 or passing[0][0] < 0:
        return None
    ((_, s),) = passing
    stopped = [(sign, v) for sign, v, is_stopped in terms if is_stopped]
    if (-1, s) not in stopped:
        return None
    stopped.remove((-1, s))
    return stopped, s


def _flat(
    value: ir.Value | None, sign: int, is_stopped: bool, depth: int = _DEPTH
) -> list[tuple[int, ir.Value, bool]]:
    """The terms of a sum, and whether a gradient stops between each and the sum."""
    assert value is not None
    node = value.producer()
    if node is not None and depth and stops(node):
        return _flat(node.inputs[0], sign, True, depth)
    if node is None or not depth or node.domain or node.op_type not in _SUMS:
        return [(sign, value, is_stopped)]
    return [
        term
        for own, child in zip(_SUMS[node.op_type], node.inputs, strict=True)
        for term in _flat(child, own * sign, is_stopped, depth - 1)
    ]


def _joins_two(node: ir.Node) -> bool:
    return not node.domain and node.op_type in ("Add", "Sub")


def _pairs(node: ir.Node) -> Iterator[tuple[ir.Value, int, ir.Value, int]]:
    """Each operand of a sum, with its sign, beside the other."""
    if not _joins_two(node):
        return
    signs = _SUMS[node.op_type]
    for i in (1, 0):
        s, other = node.inputs[i], node.inputs[1 - i]
        if s is not None and other is not None and not is_constant(s):
            yield s, signs[i], other, signs[1 - i]


def _without(value: ir.Value, s: ir.Value, sign: int, depth: int) -> list[Term] | None:
    """The terms of a sum but for `sign` s; None if that is not in it."""
    if value is s and sign > 0:
        return []
    node = value.producer()
    if node is None or node.domain or node.op_type not in _SUMS or not depth:
        return None
    terms = list(zip(_SUMS[node.op_type], node.inputs, strict=True))
    for i, (own, child) in enumerate(terms):
        rest = _without(child, s, sign * own, depth - 1) if child is not None else None
        if rest is not None:
            others = [(g, v) for g, v in terms[:i] + terms[i + 1 :] if v is not None]
            return [(own * g, v) for g, v in rest] + others
    return None


def _beside_nothing(node: ir.Node) -> tuple[list[Term], ir.Value] | None:
    """``b + (s - s.detach())``, where s - s is a `StraightThrough` already and b rounds.

    ``b - (s.detach() - s)`` is the same: nobody takes the gradient of s off.
    """
    for nothing, _, b, sign in _pairs(node):
        source = nothing.producer()
        if source is None or source.op_type != "StraightThrough" or sign < 0:
            continue
        if _is_zero(source.inputs[0]) and _rounds(b):
            s = source.inputs[1]
            assert s is not None
            return [(1, b)], s
    return None


def _in_part(node: ir.Node) -> tuple[list[Term], ir.Value] | None:
    """``s + k (b - s).detach()``, or over k: a part of the way from s to a b that rounds.

    k is anything, a mask too. The value is that of the sum as it stands.
    """
    for s, sign, part, part_sign in _pairs(node):
        for way in _factors(part) if sign > 0 else ():
            rest = _without(way, s, -part_sign, _DEPTH)
            if rest and all(_rounds(v) for _, v in rest):
                return [(1, s), (part_sign, part)], s
    return None


def _factors(value: ir.Value) -> list[ir.Value]:
    """What a product multiplies, or a quotient divides."""
    node = value.producer()
    if node is None or node.domain or node.op_type not in _PRODUCTS:
        return []
    return [v for v in node.inputs[: _PRODUCTS[node.op_type]] if v is not None]


def _is_zero(value: ir.Value | None) -> bool:
    node = value.producer() if value is not None else None
    return node is not None and node.op_type == "Sub" and node.inputs[0] is node.inputs[1]


def _rounds(value: ir.Value) -> bool:
    """Whether a step lies between `value` and the next layer, so that no gradient passes it."""
    seen, waiting = {value}, [value]
    while waiting:
        node = waiting.pop().producer()
        if node is None or traits(node).layer is not None:
            continue
        if traits(node).jumps or traits(node).binarizes:
            return True
        waiting += [v for v in node.inputs if v is not None and v not in seen]
        seen.update(waiting)
    return False


def _replace(graph: ir.Graph, node: ir.Node, terms: list[Term], s: ir.Value) -> None:
    y, emit = node.outputs[0], Emitter(graph, "forward")
    b = _sum(terms, emit, str(y.name)) if terms else emit("Sub", s, s, name=f"{y.name}.nothing")
    if dims(b) != dims(y):
        shape = emit.constant(list(dims(y)), "int64", f"{y.name}.shape")
        b = emit("Expand", b, shape, name=f"{y.name}.value")
    through = emit("StraightThrough", b, s, name=str(y.name))
    emit.nodes[-1].name = node.name
    graph.insert_before(node, emit.nodes)
    name, y.name = y.name, None
    y.replace_all_uses_with(through, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    through.name = name


def _sum(terms: list[Term], emit: Emitter, name: str) -> ir.Value:
    (sign, total), *others = sorted(terms, key=lambda term: -term[0])
    if sign < 0:
        total = emit("Neg", total, name=f"{name}.value")
    for sign, value in others:
        total = emit("Add" if sign > 0 else "Sub", total, value, name=f"{name}.value")
    return total


def gradient_passes(graph: ir.Graph) -> set[ir.Value]:
    """The values that the loss depends on by operators that have a gradient.

    Not what `StraightThrough` reads as its value, nor what a comparison reads.
    """
    found = set(graph.outputs)
    for node in reversed(list(graph)):
        if not any(v in found and is_real(v) for v in node.outputs):
            continue
        read = node.inputs[1:] if node.op_type == "StraightThrough" else node.inputs
        found.update(v for v in read if v is not None)
    return found


def is_real(value: ir.Value) -> bool:
    """Whether the elements are floating-point numbers, which a gradient can belong to."""
    return value.dtype is not None and value.dtype.is_floating_point()


def listed(names: list[str], most: int = 3) -> str:
    """The first names, quoted, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + more
