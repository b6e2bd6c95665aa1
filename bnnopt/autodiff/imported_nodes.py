"""A backward pass on its way in: the values of its file, and its nodes as the rules see them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import onnx
import onnx_ir as ir

from bnnopt.autodiff.context import Context, UnknownInput
from bnnopt.autodiff.gradients import GRADIENTS
from bnnopt.frontend import TrainingArtifacts
from bnnopt.ops import Emitter


@dataclass(frozen=True)
class ShapeOf:
    """The shape of a value."""

    value: ir.Value


@dataclass(frozen=True)
class SizeOf:
    """How many elements a value has; divided by how many `over` has."""

    value: ir.Value
    over: ir.Value | None = None


T = TypeVar("T")
Operand = ir.Value | ShapeOf | SizeOf
Results = Sequence[Operand | None]


class Importer:
    """The values of the file, as far as they are known.

    `emit` collects the backward nodes.
    """

    def __init__(
        self, graph: ir.Graph, artifacts: TrainingArtifacts, values: Mapping[str, ir.Value]
    ) -> None:
        self.emit = Emitter(graph, "backward")
        self._graph = graph
        self._artifacts = artifacts
        self._known: dict[str, Operand] = {str(value.name): value for value in graph.inputs}
        self._known.update(values)

    def operand(self, name: str) -> Operand:
        """What a name of the file stands for."""
        if name not in self._known:
            self._known[name] = self._constant(name)
        return self._known[name]

    def define(self, names: Sequence[str], results: Results) -> None:
        """Say what the outputs of a node stand for."""
        known = zip(names, results, strict=False)
        self._known.update((name, result) for name, result in known if result is not None)

    def _constant(self, name: str) -> ir.Value:
        if name in self._artifacts.auxiliary:
            node, index = self.maker(name), self._artifacts.auxiliary[name][1]
            if index < len(node.outputs):
                return node.outputs[index]
        if name not in self._artifacts.constants:
            raise UnknownInput(f"its input {name!r} is made by no node before it")
        array = self._artifacts.constants[name]
        return self.emit.constant(array, array.dtype, name)

    def value(self, name: str) -> ir.Value:
        """The same as a value of the graph."""
        operand = self.operand(name)
        if isinstance(operand, ShapeOf):
            return self.behind("Shape", operand.value)
        if isinstance(operand, SizeOf):
            return self._size(operand)
        return operand

    def _size(self, size: SizeOf) -> ir.Value:
        count = self.behind("Size", size.value)
        if size.over is None:
            return count
        return self.emit("Div", count, self.behind("Size", size.over), name="count")

    def maker(self, name: str) -> ir.Node:
        """The forward node that makes a value, a second output perhaps."""
        first = self._artifacts.auxiliary.get(name, (name, 0))[0]
        operand = self._known.get(first)
        node = operand.producer() if isinstance(operand, ir.Value) else None
        if node is None:
            raise UnknownInput(f"its input {name!r} is made by no forward node")
        return node

    def behind(self, op_type: str, value: ir.Value) -> ir.Value:
        """An operator on a value, run as soon as that is there: what it gives is small."""
        forward = self.emit.fork("forward")
        result = forward(op_type, value, name=f"{value.name}.{op_type.lower()}")
        self._place(forward.nodes, value.producer())
        return result

    def differentiate(
        self, node: ir.Node, dy: ir.Value, wanted: set[int]
    ) -> Mapping[int, ir.Value]:
        """The gradients of a forward node's inputs, by its own rule."""
        return self.within(node, dy, wanted, GRADIENTS[node.op_type])

    def within(
        self, node: ir.Node, dy: ir.Value, wanted: set[int], use: Callable[[Context], T]
    ) -> T:
        """Let `use` emit in the context of a node."""
        forward = self.emit.fork("forward")
        grads = [dy, *[None] * (len(node.outputs) - 1)]
        result = use(Context(node, grads, wanted, self.emit, forward))
        self._place(forward.nodes, node)
        return result

    def _place(self, nodes: list[ir.Node], behind: ir.Node | None) -> None:
        if behind is None:
            self._graph.insert_before(self._graph[0], nodes)
        elif behind.graph is self._graph:
            self._graph.insert_after(behind, nodes)
        else:
            self.emit.nodes.extend(nodes)


@dataclass(frozen=True)
class Node:
    """A node of the file, seen by a rule."""

    proto: onnx.NodeProto
    importer: Importer

    def name(self, index: int) -> str:
        """The name of input `index`."""
        if index >= len(self.proto.input) or not self.proto.input[index]:
            raise UnknownInput(f"its input {index} is missing")
        return str(self.proto.input[index])

    def operand(self, index: int) -> Operand:
        """Input `index`, which may be symbolic."""
        return self.importer.operand(self.name(index))

    def value(self, index: int) -> ir.Value:
        """Input `index`."""
        return self.importer.value(self.name(index))

    def values(self) -> list[ir.Value | None]:
        """All inputs."""
        return [self.importer.value(name) if name else None for name in self.proto.input]

    def attributes(self) -> dict[str, Any]:
        """Attributes as Python values."""
        return {a.name: onnx.helper.get_attribute_value(a) for a in self.proto.attribute}

    def emit(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Emit a backward node under the first output's name."""
        name = self.proto.output[0]
        return self.importer.emit(op_type, *inputs, name=name, n_outputs=1, **attributes)

    def within(self, value: ir.Value, dy: ir.Value, use: Callable[[Context], ir.Value]) -> ir.Value:
        """Let `use` emit in the context of a node that makes or reads a value."""
        node = value.producer() or next(use.node for use in value.uses())
        return self.importer.within(node, dy, set(), use)
