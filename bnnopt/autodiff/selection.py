"""Which parameters are trained: partial training by name, or by distance from the output."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from bnnopt.errors import UsageError
from bnnopt.ops import traits
from bnnopt.training_step import Role, is_constant, role, set_role


@dataclass(frozen=True)
class Selection:
    """What to train; everything else becomes frozen.

    Attributes
    ----------
    freeze : sequence of str
        Patterns (as in a shell) of parameters that are not trained, whatever the others say.
    train : sequence of str
        Patterns of those that are; without any, all.
    last : int, optional
        Only those of the last so many layers: a convolution or dense layer with what follows it.
    freeze_batch_norm : bool
        Batch norms of which nothing is trained run on their running statistics.
    """

    freeze: Sequence[str] = ()
    train: Sequence[str] = ()
    last: int | None = None
    freeze_batch_norm: bool = False

    def apply(self, graph: ir.Graph) -> None:
        """Give the parameters that are not trained the role of frozen ones.

        Raises
        ------
        UsageError
            If a pattern matches nothing, or nothing is left to train.
        """
        parameters = [value for value in graph.inputs if role(value) is Role.PARAMETER]
        chosen = set(parameters)
        if self.train:
            chosen &= _matching(parameters, self.train, "--train")
        if self.last is not None:
            chosen &= _in_last_layers(graph, self.last)
        chosen -= _matching(parameters, self.freeze, "--freeze")
        for value in parameters:
            if value not in chosen:
                set_role(value, Role.FROZEN)


def _matching(parameters: list[ir.Value], patterns: Sequence[str], option: str) -> set[ir.Value]:
    found: set[ir.Value] = set()
    for pattern in patterns:
        matching = {v for v in parameters if fnmatch.fnmatchcase(str(v.name), pattern)}
        if not matching:
            names = ", ".join(str(v.name) for v in parameters[:3])
            raise UsageError(f"{option} {pattern}: no parameter matches; there are: {names} ..")
        found |= matching
    return found


def _in_last_layers(graph: ir.Graph, last: int) -> set[ir.Value]:
    layers = layers_of(graph)
    n_layers = max(layers.values(), default=-1) + 1
    if not 1 <= last <= n_layers:
        raise UsageError(f"--last {last}: expected a number of layers, 1 to {n_layers}")
    first = n_layers - last
    return {value for value, layer in layers.items() if layer >= first}


def layers_of(graph: ir.Graph) -> dict[ir.Value, int]:
    """Parameter to the number of its layer, in the order of the graph.

    A layer is a convolution or dense layer that multiplies by parameters, and what comes after it
    up to the next one. A parameter that is used twice belongs to the first layer that uses it.
    """
    behind = {v: {v} for v in graph.inputs if role(v) is Role.PARAMETER}  # functions of weights
    layers: dict[ir.Value, int] = {}
    n_layers = 0
    for node in graph:
        sources = [v for v in node.inputs if v is not None and not is_constant(v)]
        used = set().union(*(behind.get(v, set()) for v in sources))
        if sources and all(v in behind for v in sources):
            behind.update(dict.fromkeys(node.outputs, used))
            continue
        n_layers += bool(used) and traits(node).product
        for parameter in used:
            layers.setdefault(parameter, max(n_layers - 1, 0))
    return layers
