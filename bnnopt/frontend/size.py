"""How large a graph is once its functions are inlined: each may call the one before it twice."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx

from bnnopt.errors import ModelError

MOST_NODES = 100_000  # a few hundred times what networks have

Name = tuple[str, str, str]


def check_size(model: onnx.ModelProto, path: Path) -> None:
    """Refuse a model that no compiler gets to the end of.

    Raises
    ------
    ModelError
        If it comes to more than `MOST_NODES` nodes with all functions inlined, or these call one
        another hundreds deep.
    """
    try:
        n_nodes = _Counter(model.functions).of(model.graph.node)
    except RecursionError:
        raise ModelError(
            f"{path}: its local functions call one another too deep; export it again"
        ) from None
    if n_nodes > MOST_NODES:
        raise ModelError(
            f"{path}: comes to {n_nodes:,} nodes with its local functions inlined, expected at "
            f"most {MOST_NODES:,}; export it again"
        )


class _Counter:
    """Counts each function once."""

    def __init__(self, functions: Iterable[onnx.FunctionProto]) -> None:
        self._bodies: dict[Name, onnx.FunctionProto] = {
            (f.domain, f.name, f.overload): f for f in functions
        }
        self._sizes: dict[Name, int] = {}

    def of(self, nodes: Iterable[onnx.NodeProto]) -> int:
        """Nodes with what they call, and those of their subgraphs."""
        return sum(self._of_node(node) for node in nodes)

    def _of_node(self, node: onnx.NodeProto) -> int:
        graphs = [g for a in node.attribute for g in (a.g, *a.graphs) if g.node]
        inner = sum(self.of(graph.node) for graph in graphs)
        name = node.domain, node.op_type, node.overload
        return inner + (self._of_function(name) if name in self._bodies else 1)

    def _of_function(self, name: Name) -> int:
        if name not in self._sizes:
            self._sizes[name] = 1  # of one that calls itself, which onnx's checker refuses
            self._sizes[name] = self.of(self._bodies[name].node)
        return self._sizes[name]
