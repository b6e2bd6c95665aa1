"""Typed nodes, appended one at a time."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike, DTypeLike

from bnnopt.metadata import Key
from bnnopt.ops.inference import infer_types
from bnnopt.ops.operator import DOMAIN
from bnnopt.ops.registry import OPERATORS

Attribute = int | float | str | Sequence[int] | Sequence[float]
_SHARED = "bnnopt.names"


@dataclass(frozen=True)
class _Names:
    """What a graph has: the names of values, and the constants by their bytes."""

    taken: set[str | None]
    constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value]

    @classmethod
    def of(cls, graph: ir.Graph) -> _Names:
        constants = {
            _key(value.const_value.numpy()): value
            for value in graph.initializers.values()
            if value.const_value is not None and Key.GRADIENT not in value.metadata_props
        }
        return cls({value.name for value in _values(graph)}, constants)


@contextmanager
def shared_names(graph: ir.Graph) -> Iterator[None]:
    """Let the emitters on a graph share what they know of its names, which takes long to find.

    A name that is given up meanwhile stays taken.
    """
    graph.meta[_SHARED] = _Names.of(graph)
    try:
        yield
    finally:
        del graph.meta[_SHARED]


class Emitter:
    """Makes typed nodes with unique value names, and the constants that they read.

    Parameters
    ----------
    graph : onnx_ir.Graph
        Gets the constants as initialisers. The nodes are collected in ``nodes``; whoever emits
        decides where they go.
    phase : str
        Written on every node; see `bnnopt.training_step`.
    """

    def __init__(self, graph: ir.Graph, phase: str) -> None:
        self.nodes: list[ir.Node] = []
        self.phase = phase
        self._graph = graph
        self._opset = graph.opset_imports[""]
        names = graph.meta.get(_SHARED) or _Names.of(graph)
        self._taken, self._constants = names.taken, names.constants

    def __call__(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        name: str,
        n_outputs: int = 1,
        **attributes: Attribute,
    ) -> ir.Value:
        """Emit a node and return its first output; the others are ``value.producer().outputs``.

        `name` is the first output's name, made unique; the node is named after it.
        """
        unique = self.unique(name)
        outputs = [ir.Value(name=unique)]
        outputs += [ir.Value(name=self.unique(f"{name}.{i}")) for i in range(1, n_outputs)]
        node = ir.Node(
            DOMAIN if op_type in OPERATORS else "",
            op_type,
            inputs,
            ir.convenience.convert_attributes(attributes),
            outputs=outputs,
            name=unique,
            metadata_props={Key.PHASE: self.phase},
        )
        infer_types(node, self._opset)
        self.nodes.append(node)
        return node.outputs[0]

    def constant(self, value: ArrayLike, dtype: DTypeLike, name: str = "constant") -> ir.Value:
        """An initialiser holding `value`, shared with every equal one."""
        array = np.asarray(value, dtype)
        key = _key(array)
        known = self._constants.get(key)
        if known is None or self._graph.initializers.get(str(known.name)) is not known:
            initializer = ir.val(
                self.unique(name),
                dtype=ir.DataType.from_numpy(array.dtype),
                shape=array.shape,
                const_value=ir.tensor(array),
            )
            self._graph.register_initializer(initializer)
            self._constants[key] = initializer
        return self._constants[key]

    def fork(self, phase: str) -> Emitter:
        """Another emitter on the same graph and names, with nodes of its own."""
        other = copy.copy(self)
        other.phase, other.nodes = phase, []
        return other

    def unique(self, name: str) -> str:
        """`name`, or the first of ``name_2``, ``name_3`` .. that is not in use."""
        candidate, n = name, 1
        while candidate in self._taken:
            n += 1
            candidate = f"{name}_{n}"
        self._taken.add(candidate)
        return candidate


def _key(array: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    return (array.dtype.str, array.shape, array.tobytes())


def _values(graph: ir.Graph) -> Iterable[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs
