"""Which values share a buffer, how large it is and how long it lives, all from the graph alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import onnx_ir as ir

from bnnopt.metadata import Key
from bnnopt.ops import dims, dtype, is_view
from bnnopt.training_step import (
    PERSISTENT,
    Role,
    TrainingStep,
    is_constant,
    phase,
    readers,
    role,
)


def size_bytes(value: ir.Value) -> int:
    """Bytes of a typed value, dense and unpadded, as it is stored."""
    return math.ceil(math.prod(dims(value)) * stored_dtype(value).itemsize)


def stored_dtype(value: ir.Value) -> ir.DataType:
    """The type in which the elements of a value lie in memory: of a view, those that it shows."""
    return dtype(_shown(value))


def _shown(value: ir.Value) -> ir.Value:
    """The value whose elements a value shows: itself, unless it is a view."""
    maker = value.producer()
    while maker is not None and is_view(maker) and maker.inputs[0] is not None:
        value = maker.inputs[0]
        maker = value.producer()
    return value


def in_place_pairs(node: ir.Node) -> dict[int, int]:
    """Output index to the index of the input whose buffer it takes over, as the graph says."""
    text = node.metadata_props.get(Key.IN_PLACE, "")
    return {int(o): int(i) for o, _, i in (pair.partition(":") for pair in text.split(",") if pair)}


@dataclass(frozen=True)
class Buffer:
    """A piece of memory and the values that live in it, one after the other or as views.

    Attributes
    ----------
    values : tuple of Value
        In the order of their definition.
    n_bytes : int
        Of the largest value.
    first, last : int
        Positions of the node that defines it (-1: there before the first) and of the last that
        reads it (the number of nodes: still there after the last).
    persistent : bool
        It outlives the step (a weight, a state, a statistic, a constant).
    onto : Value or None
        Of a buffer of another size, at whose first byte this begins as a node writes over it: a
        larger one ends with that node, a smaller one with the node before.
    """

    values: tuple[ir.Value, ...]
    n_bytes: int
    first: int
    last: int
    persistent: bool
    onto: ir.Value | None = None


def roots(step: TrainingStep) -> dict[ir.Value, ir.Value]:
    """Every value to the value whose elements it shows: itself, unless it is a view."""
    found = {value: value for value in (*step.graph.inputs, *step.graph.initializers.values())}
    for node in step.graph:
        source = node.inputs[0] if is_view(node) else None
        for output in node.outputs:
            if output.name:  # an output without a name is left out: the kernel does not write it
                found[output] = found[source] if source is not None else output
    return found


def shown_by(value: ir.Value) -> list[ir.Value]:
    """All values that show the elements that `value` shows, itself among them; see `roots`."""
    found = [_shown(value)]
    for shown in found:
        found += [
            output
            for node in readers(shown)
            if is_view(node) and node.inputs[0] is shown
            for output in node.outputs
            if output.name
        ]
    return found


def buffers(step: TrainingStep) -> list[Buffer]:
    """All buffers of the step, in the order in which they are first defined."""
    taken_over: dict[ir.Value, ir.Value] = {}
    resized: dict[ir.Value, ir.Value] = {}
    root_of = roots(step)
    for node in step.graph:
        for o, i in in_place_pairs(node).items():
            source = node.inputs[i]
            assert source is not None
            if size_bytes(node.outputs[o]) != size_bytes(source):
                resized[root_of[node.outputs[o]]] = source
            else:
                _take_over(taken_over, root_of[node.outputs[o]], root_of[source])
    for target, output in step.updates():
        _take_over(taken_over, root_of[output], root_of[target])
    groups: dict[ir.Value, list[ir.Value]] = {}
    for value, root in root_of.items():
        groups.setdefault(_owner(taken_over, root), []).append(value)
    position = {node: i for i, node in enumerate(step.graph)}
    outputs = {value for value in step.graph.outputs if Key.UPDATES not in value.metadata_props}
    found = {owner: _buffer(values, position, outputs) for owner, values in groups.items()}
    for value, source in resized.items():
        _follow(found, _owner(taken_over, value), _owner(taken_over, root_of[source]))
    return [*found.values()]


def _follow(found: dict[ir.Value, Buffer], value: ir.Value, owner: ir.Value) -> None:
    """Let the buffer of `value` begin where and when that of `owner`, of another size, ends."""
    new, old = replace(found[value], onto=owner), found[owner]
    if new.n_bytes < old.n_bytes:
        found[value] = replace(new, first=new.first + 1)
    else:
        found[value], found[owner] = new, replace(old, last=new.first - 1)


def _owner(taken_over: dict[ir.Value, ir.Value], root: ir.Value) -> ir.Value:
    """The value in whose buffer `root` lives in the end."""
    while root in taken_over:
        root = taken_over[root]
    return root


def _take_over(taken_over: dict[ir.Value, ir.Value], value: ir.Value, source: ir.Value) -> None:
    """Let what lives with `value` live with `source`."""
    old, new = _owner(taken_over, value), _owner(taken_over, source)
    if old is not new:
        taken_over[old] = new


def _buffer(values: list[ir.Value], position: dict[ir.Node, int], outputs: set[ir.Value]) -> Buffer:
    defined = [_definition(value, position) for value in values]
    reads = [position[node] for value in values for node in readers(value)]
    last = max([*defined, *reads])
    if any(value in outputs for value in values):
        last = len(position)
    return Buffer(
        values=tuple(values),
        n_bytes=max(size_bytes(value) for value in values),
        first=min(defined),
        last=last,
        persistent=any(is_persistent(value) for value in values),
    )


def _definition(value: ir.Value, position: dict[ir.Node, int]) -> int:
    producer = value.producer()
    return -1 if producer is None else position[producer]


def is_persistent(value: ir.Value) -> bool:
    """Whether a value outlives the step: weights, states, statistics and constants."""
    return is_constant(value) or role(value) in PERSISTENT


def is_from_forward(value: ir.Value) -> bool:
    """Whether a value was there before the backward pass: computed forward, or fed in."""
    producer = value.producer()
    if producer is not None:
        return phase(producer) == "forward"
    return role(value) in (Role.DATA, Role.LABELS)


def late_readers(values: Iterable[ir.Value]) -> list[ir.Node]:
    """The backward and update nodes that read any of `values`, each once."""
    found = (node for value in values for node in readers(value) if phase(node) != "forward")
    return list(dict.fromkeys(found))


def kept_values(step: TrainingStep) -> dict[ir.Value, list[ir.Value]]:
    """What is kept from the forward to the backward pass: root to it and its views, in order."""
    groups: dict[ir.Value, list[ir.Value]] = {}
    for value, root in roots(step).items():
        if is_from_forward(root):
            groups.setdefault(root, []).append(value)
    return {root: values for root, values in groups.items() if late_readers(values)}


def saved_bytes(step: TrainingStep) -> int:
    """Bytes kept from the forward to the backward pass, the input batch included."""
    return sum(size_bytes(root) for root in kept_values(step))
