"""The table of binarisation idioms: what is recognised as `Binarize`, and how.

A rule looks at one node, the one that gives the binary value, and returns the tensor that it
binarises together with the value that the file's own operators give for zero, or None.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from bnnopt.errors import ModelError, UsageError
from bnnopt.frontend.estimators import DEFAULT, WRITTEN, Estimator, Estimators, estimator_of
from bnnopt.frontend.marks import stop_gradient
from bnnopt.frontend.normalize import Binarized, ForwardGraph
from bnnopt.frontend.quantization import estimate_steps
from bnnopt.frontend.sampling import (
    GRID,
    ORIGIN,
    Array,
    is_elementwise,
    operands,
    sample,
    step_sources,
)
from bnnopt.frontend.straight_through import gradient_passes, listed, straight_through_nodes
from bnnopt.metadata import Key
from bnnopt.ops import DOMAIN, Emitter, dims, infer_types, traits

_ENDS = frozenset({"Add", "Cast", "Div", "Max", "Min", "Mul", "Neg", "Sign", "Sub", "Where"})
_N_STEPS_BACK = 6


@dataclass(frozen=True)
class Match:
    """A node that binarises `source`; `zero` is its own value at 0.

    `ste` is the estimator that its own operators write out, None where they say nothing;
    `is_mirrored` says that the node gives the signs of -source.
    """

    source: ir.Value
    zero: float
    ste: Estimator | None = None
    is_mirrored: bool = False


Rule = Callable[[ir.Node], Match | None]


def match_steps(node: ir.Node) -> Match | None:
    """``where(x >= 0, 1, -1)``, ``sign(sign(x) + 0.1)`` and whatever has the same values."""
    if node.domain or node.op_type not in _ENDS:
        return None
    y = node.outputs[0]
    quotient = _over_absolute(node)
    if quotient is not None:
        values = sample(y, quotient)
        zero = None if values is None else _zero_of_sign(values, nearest=1 / 32)
        return Match(quotient, zero) if zero is not None else None
    sources = step_sources(y) or (_compared(y) if node.op_type == "Where" else set())
    if len(sources) != 1 or (node.op_type == "Sign" and sources == set(operands(node))):
        return None
    (source,) = sources
    for _ in range(_N_STEPS_BACK):
        values = sample(y, source)
        if values is not None and dims(source) == dims(y) and source.dtype == y.dtype:
            for is_mirrored in (False, True) if _may_be_mirrored(node, source) else (False,):
                zero = _zero_of_sign(values, is_mirrored)
                if zero is not None:
                    return _with_estimator(y, Match(source, zero, is_mirrored=is_mirrored))
        before = source.producer()
        inner = operands(before) if before is not None and is_elementwise(before) else []
        if len(inner) != 1:
            return None
        (source,) = inner
    return None


def match_sign(node: ir.Node) -> Match | None:
    """``Sign(x)``: PyTorch's ``x.sign()``, on activations and on weights alike."""
    if node.domain or node.op_type != "Sign" or node.inputs[0] is None:
        return None
    return Match(node.inputs[0], zero=0.0)


RULES: dict[str, Rule] = {
    "written out": match_steps,
    "sign": match_sign,
}


def _over_absolute(node: ir.Node) -> ir.Value | None:
    """The x of ``x / |x|``, which is a sign without a step in it."""
    if node.op_type not in ("Div", "Mul") or node.inputs[0] is None:
        return None
    x, seen, waiting = node.inputs[0], set(), operands(node)[1:]
    while waiting:
        value = waiting.pop()
        seen.add(value)
        producer = value.producer()
        if value is x or not is_elementwise(producer) or producer is None:
            continue
        if producer.op_type == "Abs" and producer.inputs[0] is x:
            return x
        waiting += [v for v in operands(producer) if v not in seen]
    return None


def _compared(y: ir.Value) -> set[ir.Value]:
    """What comparisons before y look at: ``y = x.clone(); y[x >= 0] = 1; y[x < 0] = -1``."""
    found, seen, waiting = set(), {y}, [y]
    while waiting:
        node = waiting.pop().producer()
        if node is None or not is_elementwise(node):
            continue
        read = operands(node)
        if traits(node).compares:
            found.update(read)
        else:
            waiting += [v for v in read if v not in seen]
            seen.update(read)
    return found


def _zero_of_sign(values: Array, is_mirrored: bool = False, nearest: float = 0.0) -> float | None:
    """The value at 0, where elsewhere (from `nearest` on) the values are signs."""
    away = (GRID != 0) & (np.abs(GRID) >= nearest)
    signs = np.sign(-GRID if is_mirrored else GRID)
    if not np.allclose(values[away], signs[away], rtol=0, atol=5e-4):
        return None
    zero = float(values[ORIGIN])
    return zero if zero in (-1, 0, 1) else 1.0


def _with_estimator(y: ir.Value, match: Match) -> Match | None:
    """A sign made by rounding has the gradient of what is rounded; others leave no trace of it."""
    cuts = _cuts(y, match.source)
    if not all(traits(node).rounds for node in cuts):
        return match
    ste = estimator_of(sample(y, match.source, smooth=True))
    return replace(match, ste=ste) if ste is not None else None


def _may_be_mirrored(node: ir.Node, source: ir.Value) -> bool:
    """Whether comparisons give -1 above 0: a sign that is negated has the gradient of its sign."""
    cuts = _cuts(node.outputs[0], source)
    return node.op_type not in ("Mul", "Neg") and all(traits(cut).compares for cut in cuts)


def _cuts(y: ir.Value, source: ir.Value) -> set[ir.Node]:
    """The steps between a tensor and its sign."""
    found, seen, waiting = set(), {y}, [y]
    while waiting:
        node = waiting.pop().producer()
        if node is None:
            continue
        if traits(node).jumps:
            found.add(node)
        waiting += [v for v in operands(node) if v is not source and v not in seen]
        seen.update(waiting)
    return found


@dataclass
class Found:
    """A `Binarize` or `Ternarize` node that has been put in, and what the file says of it."""

    node: ir.Node
    idiom: str
    match: Match
    is_default: bool = False


@dataclass
class Recognizer:
    """The steps of `recognize`, on one graph."""

    forward: ForwardGraph
    estimators: Estimators
    keep_zero: bool | None
    found: list[Found] = field(default_factory=list)

    def binarize(self) -> None:
        """Turn every idiom into a `Binarize` or `Ternarize` node, the outermost sign first."""
        for node in reversed(list(self.forward.graph)):
            if node.graph is None or not _is_read(node):
                continue
            for idiom, rule in RULES.items():
                match = rule(node)
                if match is not None:
                    self._put(node, match, idiom)
                    break
        self.found.reverse()
        RemoveUnusedNodesPass()(self.forward.model)

    def _put(self, node: ir.Node, match: Match, idiom: str) -> None:
        keep = zeros_occur(match.source) if self.keep_zero is None else self.keep_zero
        zero = match.zero if keep else (match.zero or 1.0)
        attributes: dict[str, str | float] = {"ste": DEFAULT[0], "clip": DEFAULT[1]}
        if zero:
            attributes["zero"] = zero
        old, source = node.outputs[0], match.source
        if match.is_mirrored:
            emit = Emitter(self.forward.graph, "forward")
            source = emit("Neg", source, name=f"{old.name}.mirrored")
            self.forward.graph.insert_before(node, emit.nodes)
        binarize = ir.Node(
            DOMAIN,
            "Binarize" if zero else "Ternarize",
            [source],
            ir.convenience.convert_attributes(attributes),
            outputs=[ir.Value(name=old.name)],
            name=node.name,
        )
        graph = self.forward.graph
        graph.insert_before(node, binarize)
        infer_types(binarize, graph.opset_imports[""])
        old.replace_all_uses_with(binarize.outputs[0], replace_graph_outputs=True)
        drop(graph, node)
        self.found.append(Found(binarize, idiom, match))

    def settle_estimators(self) -> None:
        """Give each node an estimator: asked for, its own, or the default.

        A sign that only gives `StraightThrough` its value has none: the gradient is that of
        the other operand, which the sign stands for where it is the integral of an estimator.
        """
        passes = gradient_passes(self.forward.graph)
        settled: dict[ir.Node, Estimator | None] = {}
        for entry in self.found:
            name, through = str(entry.node.name), entry.node.outputs[0] in passes
            asked = self.estimators.asked(name)
            is_open = asked is None and not self.forward.has_gradients
            if through and entry.match.is_mirrored and is_open:
                raise ModelError(
                    f"node {name!r} gives -1 where x > 0, and the file does not say whether its "
                    "gradient is turned as well; expected s + (b - s).detach() in PyTorch, or "
                    f"--ste '{name}={DEFAULT[0]}' for that of sign(-x)"
                )
            if self.forward.has_gradients:
                settled[entry.node] = asked if through else None
                continue
            settled[entry.node] = (asked or entry.match.ste or DEFAULT) if through else None
            entry.is_default = through and asked is None and entry.match.ste is None
        for node in straight_through_nodes(self.forward.graph):
            self._fold(node, settled)
        for node, ste in settled.items():
            name, clip = ste or (WRITTEN, 1.0)
            node.attributes["ste"] = ir.AttrString("ste", name)
            node.attributes["clip"] = ir.AttrFloat32("clip", clip)
            if ste is None and node.outputs[0] in passes and node.graph is not None:
                stop_gradient(self.forward.graph, node.outputs[0])

    def _fold(self, node: ir.Node, settled: dict[ir.Node, Estimator | None]) -> None:
        """Let a sign carry the gradient of `s`, where that is the integral of an estimator."""
        b, s = node.inputs
        assert b is not None
        assert s is not None
        signs = [n for n in signs_behind(b) if n in settled]
        if len(signs) != 1:
            return
        (sign,) = signs
        source, y = sign.inputs[0], sign.outputs[0]
        assert source is not None
        ste = self.estimators.asked(str(sign.name)) or estimator_of(sample(s, source))
        if ste is None or dims(source) != dims(node.outputs[0]) or settled[sign] not in (None, ste):
            return
        settled[sign] = ste
        node.replace_input_with(1, y)
        if b is y:
            node.outputs[0].replace_all_uses_with(y, replace_graph_outputs=True)
            self.forward.graph.remove(node, safe=True)

    def report(self) -> None:
        """List what was recognised, and say what nobody can know."""
        kept = [entry for entry in self.found if entry.node.graph is self.forward.graph]
        for entry in kept:
            zero = entry.node.attributes.get("zero")
            self.forward.binarized.append(
                Binarized(
                    str(entry.node.name),
                    entry.node.attributes["ste"].as_string(),
                    f"{zero.as_float():+g}" if zero is not None else "0",
                    entry.idiom,
                )
            )
        self._check_overrides()
        self._note_estimators(kept)
        self._note_zeros(kept)

    def _check_overrides(self) -> None:
        for pattern, _ in self.estimators.overrides:
            names = [b.name for b in self.forward.binarized] + self.forward.quantized
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                there = ", ".join(names[:3]) or "none"
                raise UsageError(
                    f"--ste {pattern}=..: no binarisation matches; there are: {there} .."
                )

    def _note_estimators(self, kept: Iterable[Found]) -> None:
        """Where the estimator of an autograd function, or none at all, was taken for clipped."""
        names = [
            str(entry.node.name)
            for entry in kept
            if entry.is_default and self.estimators.asked(str(entry.node.name)) is None
        ]
        if names:
            self.forward.notes.append(
                f"no estimator in the file, {DEFAULT[0]} at |x| <= 1 assumed: {listed(names)}; "
                "--ste NAME or PATTERN=NAME for another"
            )

    def _note_zeros(self, kept: Iterable[Found]) -> None:
        zeros = {str(e.node.name): e.node for e in kept if e.idiom == "sign"}
        notes = self.forward.notes
        if self.forward.has_gradients:
            names = [name for name, node in zeros.items() if node.op_type == "Ternarize"]
            if names:
                notes.append(
                    f"sign(0) = 0 as in PyTorch at {listed(names)}: --sign-zero +1 makes it binary"
                )
            return
        if self.keep_zero is None and any(n.op_type == "Ternarize" for n in zeros.values()):
            names = [name for name, node in zeros.items() if node.op_type == "Ternarize"]
            notes.append(
                f"sign(0) = 0 is kept at {listed(names)}, which reads zeros (the input, a ReLU): "
                "--sign-zero +1 makes it binary"
            )
        if any(node.op_type == "Binarize" for node in zeros.values()):
            notes.append("ONNX Sign is read with sign(0) = +1; --sign-zero keep leaves 0")


def drop(graph: ir.Graph, node: ir.Node) -> None:
    """Remove a node that nothing reads, and what it alone read."""
    sources = {value.producer() for value in node.inputs if value is not None}
    graph.remove(node, safe=True)
    for source in sources - {None}:
        if source is not None and source.graph is graph and not _is_read(source):
            drop(graph, source)


def _is_read(node: ir.Node) -> bool:
    return any(v.uses() or v.is_graph_output() for v in node.outputs)


def zeros_occur(value: ir.Value) -> bool:
    """Whether exact zeros are no accident: the input of the model, or what a ReLU gives."""
    node = value.producer()
    if node is None:
        return value.metadata_props.get(Key.ROLE) == "data"
    if traits(node).passes_zeros and node.inputs[0] is not None:
        return zeros_occur(node.inputs[0])
    if node.op_type == "Clip":
        return any(
            bound is not None and bound.const_value is not None
            and not bound.const_value.numpy().any()
            for bound in node.inputs[1:]
        )  # fmt: skip
    return traits(node).gives_zeros


def signs_behind(value: ir.Value) -> list[ir.Node]:
    """The signs that a value is made of by elementwise operators, views and scales."""
    found: dict[ir.Node, None] = {}
    seen, waiting = {value}, [value]
    while waiting:
        node = waiting.pop().producer()
        if node is None or node.op_type == "StraightThrough":
            continue
        if traits(node).binarizes:
            found[node] = None
        elif is_elementwise(node) or traits(node).rearranges:
            more = [v for v in operands(node) if v not in seen]
            waiting += more
            seen.update(more)
    return list(found)


def recognize(forward: ForwardGraph, estimators: Estimators, keep_zero: bool | None) -> None:
    """Turn every idiom in the graph into a `Binarize` or `Ternarize` node, and list them.

    Raises
    ------
    UsageError
        If an option names a node that is none.
    ModelError
        If what rounds has a gradient that nobody can know.
    """
    if forward.has_gradients and keep_zero is None:
        keep_zero = True
    recognizer = Recognizer(forward, estimators, keep_zero)
    recognizer.binarize()
    estimate_steps(forward, estimators)
    recognizer.settle_estimators()
    RemoveUnusedNodesPass()(forward.model)
    recognizer.report()
