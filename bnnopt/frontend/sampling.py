"""Elementwise operators as functions of one number.

What elementwise operators make of one tensor and constants is a function of one number. It is
sampled, so that it does not matter how it is written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from bnnopt.ops import traits
from bnnopt.training_step import is_constant

Array = NDArray[Any]
_FAR = [-1e4, -32, -8, 8, 32, 1e4]
GRID = np.unique(np.array([*_FAR, -1e-3, 1e-3, *np.arange(-4, 4.01, 1 / 32)], "f4"))
_OTHERS = (0, 37)
ORIGIN = int(np.flatnonzero(GRID == 0)[0])


def sample(value: ir.Value, source: ir.Value, *, smooth: bool = False) -> Array | None:
    """`value` where `source` is each number of `GRID`; None if it depends on anything else.

    With `smooth`, what rounds is left out, as its straight-through estimator leaves it out.
    """
    found = None
    for other in _OTHERS:
        run = _Sampling(source, smooth, other)
        before, found = found, run.of(value)
        if found is None or (before is not None and not np.array_equal(found, before, True)):
            return None
        if not run.met_others:
            break
    return None if found is None else np.broadcast_to(found, GRID.shape)


@dataclass
class _Sampling:
    """One run over the numbers of `GRID`.

    A constant with more than one number in it may still be of no matter: ``x.new(x.size())`` is
    whatever was in memory, before masks write all of it. `other` stands for it, and each run that
    met such a constant has to give the same.
    """

    source: ir.Value
    smooth: bool
    other: int
    met_others: bool = False
    known: dict[ir.Value, Array | None] = field(default_factory=dict)

    def of(self, value: ir.Value) -> Array | None:
        """The value at each number; None if it depends on another tensor."""
        if value is self.source:
            return GRID
        if value not in self.known:
            constant = value.const_value
            self.known[value] = (
                self._made(value) if constant is None else self._number(constant.numpy())
            )
        return self.known[value]

    def _made(self, value: ir.Value) -> Array | None:
        node = value.producer()
        if node is None or not is_elementwise(node):
            return None
        feeds = {str(v.name): self.of(v) for v in node.inputs if v is not None}
        if any(array is None for array in feeds.values()):
            return None
        if self.smooth and traits(node).rounds:
            return feeds[str(node.inputs[0].name)] if node.inputs[0] is not None else None
        with np.errstate(all="ignore"):
            (found,) = ReferenceEvaluator(ir.serde.serialize_node(node)).run(None, feeds)
        return np.asarray(found)

    def _number(self, constant: Array) -> Array:
        """What all elements of a constant are, such as ``torch.ones_like`` leaves."""
        first = constant.reshape(-1)[:1]
        if first.size and (constant == first).all():
            return first.reshape(())
        self.met_others = True
        return np.asarray(self.other, constant.dtype)


def operands(node: ir.Node) -> list[ir.Value]:
    """The inputs of a node that are not constants."""
    return [value for value in node.inputs if value is not None and not is_constant(value)]


def is_elementwise(node: ir.Node | None) -> bool:
    """Whether what the node gives can be sampled: a function of each element alone."""
    return node is not None and traits(node).elementwise


def step_sources(
    value: ir.Value, seen: dict[ir.Value, set[ir.Value] | None] | None = None
) -> set[ir.Value] | None:
    """The tensors whose steps `value` is made of; None where it also varies between steps.

    Of a step of a step, it is what the inner one reads.
    """
    seen = {} if seen is None else seen
    if value not in seen:
        node = value.producer()
        seen[value] = _step_sources(node, seen) if node is not None else None
    return seen[value]


def _step_sources(
    node: ir.Node, seen: dict[ir.Value, set[ir.Value] | None]
) -> set[ir.Value] | None:
    if not is_elementwise(node):
        return None
    found: set[ir.Value] = set()
    for value in operands(node):
        inner = step_sources(value, seen)
        if inner is None and not traits(node).jumps:
            return None
        found |= inner or {value}
    return found or None
