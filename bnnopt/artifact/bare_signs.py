"""``export --larq-style``: weights of binary layers as bare -1 and +1, without what made them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from bnnopt.ops.traits import having

Array = NDArray[Any]
_PRODUCTS = having("layer") - {"ConvTranspose"}


def with_bare_signs(model: onnx.ModelProto) -> list[str]:
    """Let binary layers read -1 and +1 that are stored, and fold the scales of their weights.

    A scale a channel goes into the batch norm behind the layer, ``gamma (a u - mean) = (gamma a)
    (u - mean / a)``, or into a product behind it where there is none.

    Parameters
    ----------
    model : ModelProto
        As ``export -o`` writes it; changed in place.

    Returns
    -------
    list of str
        The layers, by the name of their result.
    """
    graph = _Graph(model)
    found = [node for node in model.graph.node if node.op_type in _PRODUCTS]
    names = [node.output[0] for node in found if graph.bare(node)]
    graph.drop_unread()
    return names


def bare_signs(content: bytes) -> bytes:
    """An ONNX file as `with_bare_signs` changes it."""
    model = onnx.load_model_from_string(content)
    with_bare_signs(model)
    changed: bytes = model.SerializeToString()
    return changed


class _Graph:
    """A graph and who makes and reads what."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model, self._graph = model, model.graph
        self._constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self._makers = {name: node for node in model.graph.node for name in node.output}

    def bare(self, node: onnx.NodeProto) -> bool:
        """Replace the weight of a product, if that is computed, and is signs times a scale."""
        weight = node.input[1]
        if weight in self._constants or (value := self._value(weight)) is None:
            return False
        axis = _output_axis(node)
        scale = np.abs(value).max(axis=tuple(i for i in range(value.ndim) if i != axis))
        spread = scale.reshape([-1 if i == axis else 1 for i in range(value.ndim)])
        if not (scale > 0).all() or not np.allclose(np.abs(value), spread, rtol=1e-5, atol=0):
            return False
        node.input[1] = self._store(f"{weight}.signs", np.sign(value))
        if not (scale == 1).all():
            self._fold(node, scale.astype(value.dtype))
        return True

    def drop_unread(self) -> None:
        """Remove nodes and tensors that nothing reads."""
        wanted = {value.name for value in self._graph.output}
        kept = []
        for node in reversed(self._graph.node):
            if wanted & set(node.output):
                kept.append(node)
                wanted.update(node.input)
        tensors = [t for t in self._graph.initializer if t.name in wanted]
        del self._graph.node[:], self._graph.initializer[:]
        self._graph.node.extend(kept[::-1])
        self._graph.initializer.extend(tensors)

    def _value(self, name: str) -> Array | None:
        """What constants give, by onnx's own evaluator; None of anything else."""
        nodes = list(self._behind(name))
        known = {source for node in nodes for source in node.input if source in self._constants}
        made = {output for node in nodes for output in node.output}
        if any(s and s not in known | made for node in nodes for s in node.input):
            return None
        output = onnx.helper.make_empty_tensor_value_info(name)
        tensors = [numpy_helper.from_array(self._constants[n], n) for n in sorted(known)]
        graph = onnx.helper.make_graph(nodes, "weight", [], [output], tensors)
        model = onnx.helper.make_model(graph, opset_imports=self._model.opset_import)
        (value,) = ReferenceEvaluator(model).run(None, {})
        return np.asarray(value)

    def _behind(self, name: str) -> Iterator[onnx.NodeProto]:
        """The nodes that make a value, in their order."""
        wanted, found = {name}, []
        for node in reversed(self._graph.node):
            if wanted & set(node.output):
                found.append(node)
                wanted.update(node.input)
        yield from reversed(found)

    def _fold(self, node: onnx.NodeProto, scale: Array) -> None:
        """Multiply by the scale of each channel what a product gives, further on."""
        if len(node.input) > 2 and node.input[2] in self._constants:
            bias = self._constants[node.input[2]] / scale
            node.input[2] = self._store(f"{node.output[0]}.bias", bias)
        users = [user for user in self._graph.node if node.output[0] in user.input]
        norm = users[0] if len(users) == 1 else None
        if norm is not None and norm.op_type == "BatchNormalization":
            gamma, mean = (self._constants.get(norm.input[i]) for i in (1, 3))
            if gamma is not None and mean is not None:
                norm.input[1] = self._store(f"{norm.output[0]}.scale", gamma * scale)
                norm.input[3] = self._store(f"{norm.output[0]}.mean", mean / scale)
                return
        self._multiply(node, scale)

    def _multiply(self, node: onnx.NodeProto, scale: Array) -> None:
        result, bare = node.output[0], f"{node.output[0]}.bare"
        shape = [-1, 1, 1] if node.op_type == "Conv" else [-1]
        factor = self._store(f"{result}.scale", scale.reshape(shape))
        node.output[0] = bare
        product = onnx.helper.make_node("Mul", [bare, factor], [result], f"{result}.scaled")
        place = next(
            i for i, other in enumerate(self._graph.node) if other is node or other == node
        )
        self._graph.node.insert(place + 1, product)

    def _store(self, name: str, array: Array) -> str:
        """A new tensor; returns its name."""
        array = np.asarray(array, np.float32, order="C")
        self._constants[name] = array
        self._graph.initializer.append(numpy_helper.from_array(array, name))
        return name


def _output_axis(node: onnx.NodeProto) -> int:
    """The axis of a weight along which the outputs lie."""
    turned = any(a.i for a in node.attribute if a.name == "transB")
    return 0 if node.op_type == "Conv" or turned else 1
