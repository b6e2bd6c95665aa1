"""``--head``: another number of classes, behind the same network."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from bnnopt.errors import UsageError
from bnnopt.ops.traits import having

Array = NDArray[Any]
MOST_CLASSES = 1 << 24
_PRODUCTS = having("layer")
# What BatchNormalization reads behind its data, and what it starts with.
_NORM = {1: 1.0, 2: 0.0, 3: 0.0, 4: 1.0}


def with_head(model: onnx.ModelProto, classes: int, seed: int) -> list[str]:
    """Give the last layer of a file another width; it starts anew.

    Its weights and biases are uniform within 1 / sqrt(fan-in), as PyTorch starts them; a batch norm
    behind it is the identity; what else is there once a class is its own mean.

    Parameters
    ----------
    model : ModelProto
        Without functions of its own; changed in place.
    classes : int
        The new width, along axis 1 of the first output.
    seed : int
        Of the weights.

    Returns
    -------
    list of str
        The tensors that start anew, for a note.

    Raises
    ------
    UsageError
        If the first output has no axis of classes, or no layer gives it, or there are too many
        classes.
    """
    if classes > MOST_CLASSES:
        raise UsageError(f"--head {classes}: expected at most {MOST_CLASSES}")
    head = _Head(model, classes, np.random.default_rng(seed))
    head.rebuild()
    return head.changed


class _Head:
    """The last product of a graph and what is behind it."""

    def __init__(self, model: onnx.ModelProto, classes: int, random: np.random.Generator) -> None:
        self.changed: list[str] = []
        self._graph, self._classes, self._random = model.graph, classes, random
        self._tensors = dict(_tensors(model.graph))
        self._makers = {name: node for node in model.graph.node for name in node.output}
        self._width = self._declared()

    def rebuild(self) -> None:
        """Change the tensors, and the shape of the output."""
        pending, seen = [self._graph.output[0].name], set[str]()
        is_found = False
        while pending:
            name = pending.pop()
            node = self._makers.get(name)
            if node is None or name in seen or node.op_type == "Constant":
                continue
            seen.add(name)
            if node.op_type in _PRODUCTS:
                is_found = True
                self._renew_product(node)
                continue
            for place, source in enumerate(node.input):
                if source in self._tensors:
                    is_norm = node.op_type == "BatchNormalization"
                    self._renew(source, _NORM.get(place) if is_norm else None)
                else:
                    pending.append(source)
        if not is_found:
            raise UsageError("--head: no dense layer or convolution gives the first output")
        self._declare()

    def _declared(self) -> int:
        """The width that the file says."""
        output = self._graph.output[0]
        shape = [axis.dim_value for axis in output.type.tensor_type.shape.dim]
        if len(shape) < 2 or shape[1] < 1:
            raise UsageError(
                f"--head: output {output.name!r} has shape {shape}; expected classes along axis 1"
            )
        return int(shape[1])

    def _declare(self) -> None:
        output = self._graph.output[0]
        output.type.tensor_type.shape.dim[1].dim_value = self._classes
        del self._graph.value_info[:]

    def _renew_product(self, node: onnx.NodeProto) -> None:
        """Draw the weight anew, and the bias, each along its axis of outputs."""
        weights = [source for source in self._sources(node.input[1]) if self._is_wide(source)]
        if not weights:
            raise UsageError(f"--head: {node.op_type} {node.output[0]!r} has no weight to widen")
        latent = max(weights, key=lambda name: numpy_helper.to_array(self._tensors[name]).size)
        array = numpy_helper.to_array(self._tensors[latent])
        bound = 1 / math.sqrt(max(array.size // self._width, 1))
        for name in weights:
            is_turned = name == node.input[1] and _gives_columns(node)
            self._renew(name, bound=bound if name == latent else None, from_end=is_turned)
        for name in node.input[2:]:
            self._renew(name, bound=bound)

    def _sources(self, name: str) -> Iterator[str]:
        """The tensors that a value is made of."""
        if name in self._tensors:
            yield name
        elif name in self._makers:
            for source in self._makers[name].input:
                yield from self._sources(source)

    def _is_wide(self, name: str) -> bool:
        return self._width in self._tensors[name].dims

    def _renew(
        self,
        name: str,
        value: float | None = None,
        bound: float | None = None,
        from_end: bool = False,
    ) -> None:
        """Give a tensor as many places as there are classes, where it has one a class."""
        tensor = self._tensors.get(name)
        if tensor is None or name in self.changed:
            return
        old = numpy_helper.to_array(tensor)
        if old.dtype.kind != "f":  # a shape: the target of a Reshape
            if old.ndim == 1 and self._width in old[1:]:
                self._put(tensor, np.where(old == self._width, self._classes, old))
            return
        if self._width not in old.shape:
            return
        shape = list(old.shape)
        wide = [axis for axis, size in enumerate(shape) if size == self._width]
        shape[wide[-1 if from_end else 0]] = self._classes
        if bound is not None:
            new = self._random.uniform(-bound, bound, shape)
        else:
            new = np.full(shape, old.mean() if value is None else value)
        self._put(tensor, new.astype(old.dtype))
        self.changed.append(name)

    def _put(self, tensor: onnx.TensorProto, array: Array) -> None:
        named = numpy_helper.from_array(np.asarray(array, order="C"), tensor.name)
        tensor.CopyFrom(named)


def _gives_columns(node: onnx.NodeProto) -> bool:
    """Whether the outputs of a product are the columns of its weight."""
    turns = [a.i for a in node.attribute if a.name == "transB"]
    return node.op_type == "MatMul" or (node.op_type == "Gemm" and not any(turns))


def _tensors(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Initialisers and constants, by the name of their value."""
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    yield node.output[0], attribute.t
