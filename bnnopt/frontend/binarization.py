"""The table of binarisation idioms: what is recognised as `Binarize`, and how.

A rule looks at one node, the one that gives the binary value, and returns the tensor that it
binarises together with the value that the file's own operators give for zero, or None.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from bnnopt.errors import UsageError
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


RULES: dict[str, Rule] = {
    "sign": match_sign,
}


@dataclass(frozen=True)
class Estimators:
    """Which straight-through estimator a node gets: the last option that names it, else `default`.

    `overrides` are (pattern of node names, estimator).
    """

    default: str = "clipped"
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

    def of(self, name: str) -> str:
        """The estimator of the node called `name`."""
        found = [ste for pattern, ste in self.overrides if fnmatch.fnmatchcase(name, pattern)]
        return found[-1] if found else self.default


def recognize(forward: ForwardGraph, estimators: Estimators, keep_zero: bool) -> None:
    """Turn every idiom in the graph into a `Binarize` or `Ternarize` node, and list them."""
    for node in list(forward.graph):
        for idiom, rule in RULES.items():
            match = rule(node)
            if match is not None:
                zero = match.zero if keep_zero else (match.zero or 1.0)
                _binarize(forward, node, match.source, zero, estimators.of(str(node.name)), idiom)
                break
    _check_overrides(forward, estimators)
    if not keep_zero and any(b.idiom == "sign" for b in forward.binarized):
        forward.notes.append("ONNX Sign is read with sign(0) = +1; --sign-zero keep leaves 0")


def _check_overrides(forward: ForwardGraph, estimators: Estimators) -> None:
    for pattern, _ in estimators.overrides:
        if not any(fnmatch.fnmatchcase(b.name, pattern) for b in forward.binarized):
            names = ", ".join(b.name for b in forward.binarized[:3]) or "none"
            raise UsageError(f"--ste {pattern}=..: no binarisation matches; there are: {names} ..")


def _binarize(
    forward: ForwardGraph, node: ir.Node, source: ir.Value, zero: float, ste: str, idiom: str
) -> None:
    old = node.outputs[0]
    attributes: dict[str, str | float] = {"ste": ste, "clip": 1.0}
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
