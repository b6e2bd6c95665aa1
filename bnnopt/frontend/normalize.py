"""From a checked model to a forward graph: static shapes, constants folded, weights set apart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import RemoveUnusedNodesPass

from bnnopt.errors import ModelError, UsageError
from bnnopt.ops import InferenceError, dims, infer_types
from bnnopt.training_step import Role, is_constant, set_role

MAX_BATCH = 1 << 20

# Inputs that set an operator's behaviour: a float initialiser there is a setting, not a weight.
SETTINGS = {
    "Clip": {1, 2},
    "Dropout": {1},
    "Pad": {2},
    "Pow": {1},
    "Resize": {1, 2},
    "OneHot": {2},
    "CastLike": {1},
}
STATISTICS = {"BatchNormalization": {3, 4}}


@dataclass
class ForwardGraph:
    """A network as the compiler sees it.

    Attributes
    ----------
    model : onnx_ir.Model
        Every value typed, shapes static at `batch_size`. The graph's inputs are the data inputs,
        then the weights (with their roles); the initialisers left are constants.
    weights : dict of str to ndarray
        Float32 values of the weights, under the file's own initialiser names.
    binarized : list of Binarized
        The binarisations that were recognised.
    notes : list of str
        What the user should be told once.
    """

    model: ir.Model
    batch_size: int
    weights: dict[str, NDArray[np.float32]]
    binarized: list[Binarized] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def graph(self) -> ir.Graph:
        """The graph."""
        return self.model.graph


@dataclass(frozen=True)
class Binarized:
    """One recognised binarisation: node name, estimator, value of sign(0), idiom."""

    name: str
    ste: str
    zero: str
    idiom: str


def normalize(proto: onnx.ModelProto, batch_size: int | None, path: Path) -> ForwardGraph:
    """Set the batch size, set the weights apart, fold constants and type every value.

    Raises
    ------
    UsageError
        If the batch size is missing, absurd or not the file's own.
    ModelError
        If a shape stays unknown or an operator is not known.
    """
    arrays = _split_weights(proto, path)
    model = ir.from_proto(proto)
    graph = model.graph
    batch = _set_batch(graph, batch_size, set(arrays), path)
    for value in graph.inputs:
        set_role(value, _weight_role(value) if value.name in arrays else Role.DATA)
    _drop_unread(graph, arrays)
    for node in list(graph):
        _type_or_fold(graph, node, path)
    for node in graph:
        _free_batch(graph, node, batch)
    return ForwardGraph(model, batch, arrays)


def _split_weights(proto: onnx.ModelProto, path: Path) -> dict[str, NDArray[np.float32]]:
    """Turn float initialisers into graph inputs; return their values."""
    settings = _settings(proto)
    weights: dict[str, NDArray[np.float32]] = {}
    kept = []
    floating = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
    for tensor in proto.graph.initializer:
        if tensor.data_type in floating and tensor.name not in settings:
            kind = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
            raise ModelError(
                f"{path}: initializer {tensor.name!r} is {kind}, expected float32; "
                "export the model in float32"
            )
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.name not in settings:
            weights[tensor.name] = onnx.numpy_helper.to_array(tensor)
        else:
            kept.append(tensor)
    data = [value for value in proto.graph.input if value.name not in weights]
    constants = {tensor.name for tensor in kept}
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    del proto.graph.input[:]
    proto.graph.input.extend(value for value in data if value.name not in constants)
    proto.graph.input.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, array.shape)
        for name, array in weights.items()
    )
    del proto.graph.value_info[:]
    return weights


def _settings(proto: onnx.ModelProto) -> set[str]:
    """Names read as settings only."""
    read: dict[str, bool] = {}
    for node in proto.graph.node:
        setting = SETTINGS.get(node.op_type, set())
        for index, name in enumerate(node.input):
            read[name] = read.get(name, True) and index in setting
    return {name for name, only_settings in read.items() if only_settings}


def _weight_role(value: ir.Value) -> Role:
    uses = value.uses()
    statistic = all(i in STATISTICS.get(node.op_type, ()) for node, i in uses)
    return Role.STATISTIC if uses and statistic else Role.PARAMETER


def _set_batch(graph: ir.Graph, batch_size: int | None, weights: set[str], path: Path) -> int:
    if batch_size is not None and not 1 <= batch_size <= MAX_BATCH:
        raise UsageError(f"--batch-size {batch_size}: expected a number from 1 to {MAX_BATCH}")
    data = [value for value in graph.inputs if value.name not in weights]
    if not data:
        raise ModelError(f"{path}: the graph has no data input: every input is an initializer")
    for value in data:
        if value.shape is None or len(value.shape) == 0:
            raise ModelError(f"{path}: input {value.name!r} has no shape with a batch dimension")
    symbol = data[0].shape[0]  # type: ignore[index]
    batch = _agreed_batch(symbol, batch_size, f"{path}: input {data[0].name!r}")
    for value in data:
        assert value.shape is not None
        sizes = [batch if d == symbol else d for d in value.shape]
        unknown = [str(d) for d in sizes if not isinstance(d, int)]
        if unknown:
            raise ModelError(
                f"{path}: input {value.name!r} has symbolic dimensions {', '.join(unknown)}; only "
                "the first, the batch, may be symbolic: export with a fixed size"
            )
        value.shape = ir.Shape(sizes)
    return batch


def _agreed_batch(symbol: int | ir.SymbolicDim, batch_size: int | None, where: str) -> int:
    if isinstance(symbol, int):
        if batch_size not in (None, symbol):
            raise UsageError(
                f"{where} fixes the batch at {symbol}, not {batch_size}: pass --batch-size "
                f"{symbol}, or export with dynamic_axes={{'x': {{0: 'batch'}}}}"
            )
        return symbol
    if batch_size is None:
        raise UsageError(f"{where} has a symbolic batch dimension; pass --batch-size N")
    return batch_size


def _drop_unread(graph: ir.Graph, weights: dict[str, NDArray[np.float32]]) -> None:
    """Remove nodes and weights that reach no output."""
    RemoveUnusedNodesPass()(ir.Model(graph, ir_version=10))
    unread = [v for v in graph.inputs if v.name in weights and not v.uses()]
    for value in unread:
        graph.inputs.remove(value)
        del weights[str(value.name)]


def _type_or_fold(graph: ir.Graph, node: ir.Node, path: Path) -> None:
    if node.op_type == "Constant" or _is_foldable(node):
        _fold(graph, node)
        return
    if node.op_type == "Identity" or _is_idle(node):
        _bypass(graph, node)
        return
    try:
        infer_types(node, graph.opset_imports[""])
    except InferenceError as error:
        raise ModelError(f"{path}: node {node.name!r} ({operator_name(node)}): {error}") from None


def operator_name(node: ir.Node) -> str:
    """The operator of a node, with its domain where that is not the standard one."""
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def _is_foldable(node: ir.Node) -> bool:
    if node.domain != "" or node.op_type.startswith("Random"):
        return False
    if node.op_type in ("Shape", "Size"):
        return True
    return bool(node.inputs) and all(v is None or is_constant(v) for v in node.inputs)


def _is_idle(node: ir.Node) -> bool:
    """A dropout that drops nothing, or a cast to the type that the value has."""
    if node.op_type == "Cast":
        source = node.inputs[0]
        return source is not None and node.attributes["to"].as_int() == source.dtype
    if node.op_type != "Dropout" or node.outputs[-1].uses() and len(node.outputs) > 1:
        return False
    ratio = setting(node, 1, 0.5)
    return ratio == 0 or not setting(node, 2, 0.0)


def setting(node: ir.Node, index: int, default: float) -> float:
    """The constant scalar input `index` of a node, or its default."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return default
    if value.const_value is None:
        raise ModelError(
            f"node {node.name!r} ({node.op_type}): input {index} must be a constant, found the "
            f"computed value {value.name!r}"
        )
    return float(value.const_value.numpy().item())


def _fold(graph: ir.Graph, node: ir.Node) -> None:
    for output, array in zip(node.outputs, _evaluate(node), strict=False):
        folded = ir.val(output.name, const_value=ir.tensor(array))
        folded.shape, folded.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
        _replace(graph, output, folded)
        graph.register_initializer(folded)
    graph.remove(node, safe=True)


def _evaluate(node: ir.Node) -> Iterable[NDArray[np.generic]]:
    if node.op_type in ("Shape", "Size") and node.inputs[0] is not None:
        stand_in = {str(node.inputs[0].name): np.broadcast_to(np.float32(0), dims(node.inputs[0]))}
    else:
        stand_in = {str(v.name): v.const_value.numpy() for v in node.inputs if v and v.const_value}
    outputs = ReferenceEvaluator(ir.to_proto(node)).run(None, stand_in)
    return [np.asarray(output) for output in outputs]


def _bypass(graph: ir.Graph, node: ir.Node) -> None:
    source = node.inputs[0]
    assert source is not None
    _replace(graph, node.outputs[0], source)
    graph.remove(node, safe=True)


def _replace(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def _free_batch(graph: ir.Graph, node: ir.Node, batch: int) -> None:
    """Write the batch out of a Reshape's constant shape, so that a smaller batch runs too."""
    target = node.inputs[1] if node.op_type == "Reshape" else None
    if target is None or target.const_value is None:
        return
    shape = target.const_value.numpy().copy()
    source = dims(node.inputs[0])
    if shape.size == 0 or shape[0] <= 0 or shape[0] % batch or source[0] % batch:
        return
    if shape[0] == source[0]:
        shape[0] = 0
    elif -1 not in shape:
        shape[0] = -1
    else:
        return
    name = f"{node.name}.shape"
    free = ir.val(name, dtype=ir.DataType.INT64, shape=shape.shape, const_value=ir.tensor(shape))
    graph.register_initializer(free)
    node.replace_input_with(1, free)
