"""The table of binarisation idioms: what is recognised as `Binarize`, and how.

A rule looks at one node, the one that gives the binary value, and returns the tensor that it
binarises together with the value that the file's own operators give for zero, or None.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from bnnopt.errors import UsageError
from bnnopt.frontend.idioms import detached, own_estimator, written_out
from bnnopt.frontend.normalize import Binarized, ForwardGraph
from bnnopt.ops import DOMAIN, infer_types

ESTIMATORS = ("clipped", "identity", "approx-sign", "swish-sign")


@dataclass(frozen=True)
class Match:
    """A node that binarises `source`; `zero` is its own value at 0."""

    source: ir.Value
    zero: float


Rule = Callable[[ir.Node], Match | None]


def match_sign(node: ir.Node) -> Match | None:
    """``Sign(x)``: PyTorch's ``x.sign()``, on activations and on weights alike."""
    if node.domain or node.op_type != "Sign" or node.inputs[0] is None:
        return None
    return Match(node.inputs[0], zero=0.0)


def match_written_out(node: ir.Node) -> Match | None:
    """``where(x >= 0, 1, -1)``, ``(x >= 0).float() * 2 - 1`` and whatever has the same values."""
    found = written_out(node)
    return None if found is None else Match(*found)


RULES: dict[str, Rule] = {
    "sign": match_sign,
    "written out": match_written_out,
}


@dataclass(frozen=True)
class Estimators:
    """Which straight-through estimator a node gets: the last option that names it, else `default`,
    else the one that the file writes out, else the clipped one.

    `overrides` are (pattern of node names, estimator).
    """

    default: str | None = None
    overrides: Sequence[tuple[str, str]] = ()

    @classmethod
    def parse(cls, options: Sequence[str]) -> Estimators:
        """From ``--ste`` options: ``NAME``, or ``PATTERN=NAME`` for the nodes that match."""
        default, overrides = cls.default, []
        for option in options:
            pattern, _, name = option.rpartition("=")
            if name not in ESTIMATORS:
                raise UsageError(
                    f"--ste {option}: unknown estimator {name!r}; expected {', '.join(ESTIMATORS)}"
                )
            if pattern:
                overrides.append((pattern, name))
            else:
                default = name
        return cls(default, tuple(overrides))

    def of(self, name: str, own: tuple[str, float] | None = None) -> tuple[str, float]:
        """The estimator of the node called `name`, and its clip; `own` is the file's."""
        found = [ste for pattern, ste in self.overrides if fnmatch.fnmatchcase(name, pattern)]
        asked = found[-1] if found else self.default
        return own or (ESTIMATORS[0], 1.0) if asked is None else (asked, 1.0)


def recognize(forward: ForwardGraph, estimators: Estimators, keep_zero: bool) -> None:
    """Turn every idiom in the graph into a `Binarize` or `Ternarize` node, and list them."""
    for node in list(forward.graph):
        for idiom, rule in RULES.items():
            match = rule(node)
            if match is not None:
                zero = match.zero if keep_zero else (match.zero or 1.0)
                own = own_estimator(node.outputs[0], match.source)
                estimator = estimators.of(str(node.name), own)
                _binarize(forward, node, match.source, zero, estimator, idiom)
                break
    _settle_detached(forward)
    RemoveUnusedNodesPass()(forward.model)
    _check_overrides(forward, estimators)
    if not keep_zero and any(b.idiom == "sign" for b in forward.binarized):
        forward.notes.append("ONNX Sign is read with sign(0) = +1; --sign-zero keep leaves 0")


def _settle_detached(forward: ForwardGraph) -> None:
    """Read ``(b - s) + s`` as b, which has an estimator of its own."""
    for node in list(forward.graph):
        found = detached(node)
        if found is None:
            continue
        node.outputs[0].replace_all_uses_with(found[0], replace_graph_outputs=True)
        forward.graph.remove(node, safe=True)
        note = "(b - s) + s, PyTorch's b.detach() - s.detach() + s, is read as b"
        if note not in forward.notes:
            forward.notes.append(note)


def _check_overrides(forward: ForwardGraph, estimators: Estimators) -> None:
    for pattern, _ in estimators.overrides:
        if not any(fnmatch.fnmatchcase(b.name, pattern) for b in forward.binarized):
            names = ", ".join(b.name for b in forward.binarized[:3]) or "none"
            raise UsageError(f"--ste {pattern}=..: no binarisation matches; there are: {names} ..")


def _binarize(
    forward: ForwardGraph,
    node: ir.Node,
    source: ir.Value,
    zero: float,
    estimator: tuple[str, float],
    idiom: str,
) -> None:
    old, (ste, clip) = node.outputs[0], estimator
    attributes: dict[str, str | float] = {"ste": ste, "clip": clip}
    if zero:
        attributes["zero"] = zero
    binarize = ir.Node(
        DOMAIN,
        "Binarize" if zero else "Ternarize",
        [source],
        ir.convenience.convert_attributes(attributes),
        outputs=[ir.Value(name=old.name)],
        name=node.name,
    )
    forward.graph.insert_before(node, binarize)
    infer_types(binarize, forward.graph.opset_imports[""])
    old.replace_all_uses_with(binarize.outputs[0], replace_graph_outputs=True)
    forward.graph.remove(node, safe=True)
    forward.binarized.append(Binarized(str(node.name), ste, f"{zero:+g}" if zero else "0", idiom))
