"""A memory-aware order of the nodes.

List scheduling: of the nodes that are ready, run the one after which the least memory is alive;
among equals the one that needs least while it runs, then the one that comes first today. What can
run at any time (a node of the ``rebuild`` phase, or a function of weights alone) has no turn of its
own: it runs right before the first node that reads it, and its memory counts as that node's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Sequence

import onnx_ir as ir

from bnnopt.analysis import Buffer, buffers, in_place_pairs, is_persistent, roots, shown_by
from bnnopt.metadata import Key
from bnnopt.plan.workspace import workspace_bytes
from bnnopt.training_step import TrainingStep, phase, readers

Dependencies = dict[ir.Node, set[ir.Node]]


def dependencies(step: TrainingStep) -> Dependencies:
    """What must run before each node: producers, and every other reader of what it overwrites."""
    before: Dependencies = {node: set(_producers(node)) for node in step.graph}
    views: dict[ir.Value, list[ir.Value]] = {}
    root_of = roots(step)
    for value, root in root_of.items():
        views.setdefault(root, []).append(value)
    for node, target in _overwrites(step):
        for value in views[root_of[target]]:
            before[node].update(reader for reader in readers(value) if reader is not node)
    return before


def waits_for(step: TrainingStep, node: ir.Node) -> set[ir.Node]:
    """What must run before one node; see `dependencies`."""
    found = set(_producers(node))
    updates = (output for output in node.outputs if output.is_graph_output())
    names = {output.metadata_props.get(Key.UPDATES) for output in updates}
    updated = [value for value in step.graph.inputs if value.name in names]
    for target in (*updated, *_written_over(node)):
        for value in shown_by(target):
            found.update(reader for reader in readers(value) if reader is not node)
    return found


def _overwrites(step: TrainingStep) -> Iterable[tuple[ir.Node, ir.Value]]:
    """Every node that writes over a value, with that value."""
    for target, output in step.updates():
        producer = output.producer()
        assert producer is not None
        yield producer, target
    for node in step.graph:
        for source in _written_over(node):
            yield node, source


def _written_over(node: ir.Node) -> Iterable[ir.Value]:
    """The inputs in whose place the node writes outputs."""
    for index in in_place_pairs(node).values():
        source = node.inputs[index]
        assert source is not None
        yield source


def _producers(node: ir.Node) -> Iterable[ir.Node]:
    for value in node.inputs:
        producer = value.producer() if value is not None else None
        if producer is not None:
            yield producer


def memory_order(step: TrainingStep) -> list[ir.Node]:
    """The nodes in an order chosen for a low peak."""
    nodes = list(step.graph)
    rank = {node: i for i, node in enumerate(nodes)}
    idle = _idle(nodes)
    spine = [node for node in nodes if node not in idle]
    direct = dependencies(step)
    before = _spine_dependencies(direct, spine, idle)
    ledger = _Ledger(step)
    order: list[ir.Node] = []
    done: set[ir.Node] = set()
    queue = _Queue(before)
    remaining = iter(nodes)
    while queue.waiting:
        turns = [[*_needed(node, idle, direct, rank, done), node] for node in queue.ready]
        if turns:
            best = min(turns, key=lambda turn: (*ledger.cost(turn), rank[turn[-1]]))
        else:  # idle nodes wait for one another by way of their users: go on as it was
            best = [next(node for node in remaining if node not in done)]
        ledger.run(best)
        order += best
        done.update(best)
        queue.take(best[-1])
    return order


class _Queue:
    """The nodes that have not had their turn, and those of them that wait for no other."""

    def __init__(self, before: Dependencies) -> None:
        self._missing = {node: len(others) for node, others in before.items()}
        self._users: dict[ir.Node, list[ir.Node]] = {}
        for node, others in before.items():
            for other in others:
                self._users.setdefault(other, []).append(node)
        self.waiting = set(before)
        self.ready = {node for node, n in self._missing.items() if n == 0}

    def take(self, node: ir.Node) -> None:
        """This one has had its turn."""
        if node not in self.waiting:
            return
        self.waiting.discard(node)
        self.ready.discard(node)
        for user in self._users.get(node, ()):
            self._missing[user] -= 1
            if self._missing[user] == 0 and user in self.waiting:
                self.ready.add(user)


def _idle(nodes: Sequence[ir.Node]) -> set[ir.Node]:
    """The nodes that can run at any time before their first reader."""
    found: set[ir.Node] = set()
    for node in nodes:
        on_weights = all(
            is_persistent(value) or value.producer() in found
            for value in node.inputs
            if value is not None
        )
        if phase(node) == "rebuild" or (phase(node) == "forward" and on_weights):
            found.add(node)
    return found


def _spine_dependencies(
    direct: Dependencies, spine: Sequence[ir.Node], idle: set[ir.Node]
) -> Dependencies:
    """Dependencies among the nodes that have a turn: an idle one stands for what it reads.

    Where an update waits for an idle node, it waits for whoever reads what that makes; for those of
    the forward pass, if there are any, as the first of them has it run.
    """
    own = {node: set(_needed(node, idle, direct, {})) for node in spine}
    users: Dependencies = {}
    for node, needed in own.items():
        for other in needed:
            users.setdefault(other, set()).add(node)
    found: Dependencies = {}
    for node in spine:
        waits_for = direct[node].union(*(direct[other] for other in own[node]))
        foreign = (waits_for & idle) - own[node]
        found[node] = (waits_for - idle).union(*(_first(users.get(n, set())) for n in foreign))
        found[node].discard(node)
    return found


def _first(users: set[ir.Node]) -> set[ir.Node]:
    return {node for node in users if phase(node) == "forward"} or users


def _needed(
    node: ir.Node,
    idle: set[ir.Node],
    direct: Dependencies,
    rank: dict[ir.Node, int],
    done: Container[ir.Node] = frozenset(),
) -> list[ir.Node]:
    """The nodes of `idle` that must run for `node`, by `rank`: those that it reads from, directly
    or through one another, and the other readers of what these overwrite. Those that are done are
    left out, with what is behind them.
    """
    found: set[ir.Node] = set()
    pending = [node]
    while pending:
        last = pending.pop()
        needed = _producers(last) if last is node else direct[last]
        new = {n for n in needed if n in idle and n not in done} - found
        found |= new
        pending += new
    return sorted(found, key=lambda other: rank.get(other, 0))


class _Ledger:
    """How many reads of each buffer are left, and what running some nodes would add and free."""

    def __init__(self, step: TrainingStep) -> None:
        self._home: dict[ir.Value, Buffer] = {}
        self._left: Counter[Buffer] = Counter()
        outputs = set(step.graph.outputs)
        for buffer in buffers(step):
            self._home.update(dict.fromkeys(buffer.values, buffer))
            kept = any(value in outputs for value in buffer.values)
            self._left[buffer] = sum(len(readers(v)) for v in buffer.values) + kept
        self._alive = {buffer for buffer in self._left if buffer.first < 0}
        self._scratch = {node: workspace_bytes(node) for node in step.graph}

    def cost(self, turn: Sequence[ir.Node]) -> tuple[int, int]:
        """Bytes alive after the turn more than before it, and the most during it."""
        reads: Counter[Buffer] = Counter()
        alive: set[Buffer] = set()
        now = most = 0
        for node in turn:
            made = self._made(node) - self._alive - alive
            alive |= made
            now += sum(buffer.n_bytes for buffer in made)
            most = max(most, now + self._scratch[node])
            reads.update(self._read(node))
            touched = {*self._read(node), *self._made(node)}
            dead = [b for b in touched if not b.persistent and self._left[b] == reads[b]]
            now -= sum(buffer.n_bytes for buffer in dead)
        return now, most

    def run(self, turn: Sequence[ir.Node]) -> None:
        """Account for the nodes of a turn."""
        for node in turn:
            self._alive |= self._made(node)
            self._left.subtract(self._read(node))

    def _made(self, node: ir.Node) -> set[Buffer]:
        homes = [self._home[v] for v in node.outputs if v.name]
        return {home for home in homes if not home.persistent}

    def _read(self, node: ir.Node) -> list[Buffer]:
        return [self._home[v] for v in {v for v in node.inputs if v is not None}]


def reorder(step: TrainingStep, order: list[ir.Node]) -> None:
    """Put the graph's nodes in `order`."""
    step.graph.remove(order)
    step.graph.extend(order)
