"""From a checked model to a forward graph: static shapes, constants folded, weights set apart."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import RemoveUnusedNodesPass

from bnnopt.errors import ModelError, UsageError
from bnnopt.frontend.branches import take_branch
from bnnopt.frontend.composed import has_body, written_out
from bnnopt.frontend.constants import check_loops, check_size
from bnnopt.frontend.marks import GRADIENT, has_gradients, settle_marks, untrained
from bnnopt.frontend.random_shapes import free_random
from bnnopt.frontend.read import array_of, one_line
from bnnopt.ops import (
    DOMAIN,
    Emitter,
    InferenceError,
    ShapeError,
    dims,
    has_inference,
    infer_types,
    traits,
)
from bnnopt.training_step import Role, is_constant, readers, set_role

MAX_BATCH = 1 << 20


@dataclass
class ForwardGraph:
    """A network as the compiler sees it.

    Attributes
    ----------
    model : onnx_ir.Model
        Every value typed, shapes static at `batch_size`. The graph's inputs are the data inputs,
        then the weights (with their roles); the initialisers left are constants.
    weights : dict of str to ndarray
        Float32 values of the weights, under the file's own initialiser names; uint8 of those that
        are kept as sign bits.
    binarized : list of Binarized
        The binarisations that were recognised.
    notes : list of str
        What the user should be told once.
    packed : dict of str to tuple of int
        The shapes of the weights that are kept as sign bits; see `pack_binary_weights`.
    normalization : dict of str to ndarray
        Factor and shift of samples that are fed as bytes, by input name; see `feed_bytes`.
    quantized : list of str
        Nodes that round to more than a sign and were given an estimator.
    has_gradients : bool
        The file says how each gradient goes, see `bnnopt.frontend.marks`: nothing is assumed.
    """

    model: ir.Model
    batch_size: int
    weights: dict[str, NDArray[Any]]
    binarized: list[Binarized] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    packed: dict[str, tuple[int, ...]] = field(default_factory=dict)
    normalization: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    quantized: list[str] = field(default_factory=list)
    has_gradients: bool = False

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


def _check_outputs(graph: ir.Graph, path: Path) -> None:
    for value in graph.outputs:
        if value.producer() is None and value not in graph.inputs:
            raise ModelError(
                f"{path}: output {value.name!r} is the same for all inputs; export the model again"
            )


def normalize(
    proto: onnx.ModelProto, batch_size: int | None, path: Path, write_out: bool = True
) -> ForwardGraph:
    """Set the batch size, set the weights apart, fold constants and type every value.

    With `write_out` operators that others make up are written out in them.

    Raises
    ------
    UsageError
        If the batch size is missing, absurd or not the file's own.
    ModelError
        If a shape stays unknown or an operator is not known.
    """
    fixed, written = untrained(proto), has_gradients(proto)
    arrays = _split_weights(proto, path)
    try:
        model = ir.from_proto(proto)
    except (ir.serde.SerdeError, ValueError) as error:
        cause = one_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)
        raise ModelError(f"{path}: cannot be read: {cause}; export or copy it again") from None
    graph = model.graph
    if not graph.outputs:
        raise ModelError(f"{path}: the graph has no output; export the model again")
    _name_nodes(graph)
    settle_marks(graph)
    batch = _set_batch(graph, batch_size, set(arrays), path)
    for value in graph.inputs:
        set_role(value, _role(value, fixed) if value.name in arrays else Role.DATA)
    _drop_unread(graph, arrays)
    for node in list(graph):
        try:
            _type_or_fold(graph, node, write_out)
        except InferenceError as error:
            where = f"{path}: node {node.name!r} ({operator_name(node)})"
            misfit = isinstance(error, ShapeError)
            advice = "correct the model" if misfit else "export the model without it"
            raise ModelError(f"{where}: {one_line(error)}; {advice}") from None
    _drop_unread(graph, arrays)  # what stood before an operator that was written out
    for node in list(graph):
        if _is_needless(node):
            _bypass(graph, node)
    _check_outputs(graph, path)
    for node in list(graph):
        _free_batch(graph, node, batch)
        if node.op_type == "RandomUniformLike":
            free_random(graph, node, batch)
    return ForwardGraph(model, batch, arrays, has_gradients=written)


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
            weights[tensor.name] = array_of(tensor, path)
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


def _name_nodes(graph: ir.Graph) -> None:
    """Name the nodes that have no name after what they give, so that messages can point at them."""
    for node in graph:
        if not node.name:
            node.name = next((str(v.name) for v in node.outputs if v.name), node.op_type)


def _settings(proto: onnx.ModelProto) -> set[str]:
    """Names read as settings only, but for those that are known to be parameters.

    A file of `bnnopt.torch.export` says so; an exponent that PyTorch writes as an initialiser is
    one, as its constants are nodes.
    """
    written, fixed, by_torch = has_gradients(proto), untrained(proto), proto.producer_name
    read: dict[str, bool] = {}
    for node in proto.graph.node:
        setting = traits(node).settings
        for index, name in enumerate(node.input):
            is_exponent = node.op_type == "Pow" and by_torch == "pytorch"
            is_one = index in setting and (name in fixed if written else not is_exponent)
            read[name] = read.get(name, True) and is_one
    return {name for name, only_settings in read.items() if only_settings}


def _role(weight: ir.Value, fixed: Set[str]) -> Role:
    uses = weight.uses()
    if uses and all(i in traits(node).statistics for node, i in uses):
        return Role.STATISTIC
    return Role.FROZEN if weight.name in fixed else Role.PARAMETER


def check_batch_size(batch_size: int) -> None:
    """Refuse what is no number of samples.

    Raises
    ------
    UsageError
        With the numbers that are.
    """
    if not 1 <= batch_size <= MAX_BATCH:
        raise UsageError(f"--batch-size {batch_size}: expected a number from 1 to {MAX_BATCH}")


def _set_batch(graph: ir.Graph, batch_size: int | None, weights: set[str], path: Path) -> int:
    if batch_size is not None:
        check_batch_size(batch_size)
    data = [value for value in graph.inputs if value.name not in weights]
    if not data:
        raise ModelError(f"{path}: the graph has no data input: every input is an initializer")
    for value in data:
        if not isinstance(value.type, ir.TensorType) or not value.shape:
            raise ModelError(
                f"{path}: input {value.name!r} has no shape with a batch dimension; export it as "
                "a tensor with the batch in front"
            )
    first = data[0].shape
    assert first is not None
    batch = _agreed_batch(first[0], batch_size, f"{path}: input {data[0].name!r}")
    for value in data:
        _set_shape(value, first[0], batch, path)
    return batch


Dim = int | ir.SymbolicDim


def _is_fixed(dim: Dim) -> bool:
    return isinstance(dim, int) and dim > 0  # some exporters write -1 for a free dimension


def _set_shape(value: ir.Value, symbol: Dim, batch: int, path: Path) -> None:
    """Put the batch in front, and wherever else the shape has the batch's own name."""
    assert value.shape is not None
    named = isinstance(symbol, ir.SymbolicDim) and symbol.value is not None
    sizes = [batch if named and d == symbol else d for d in value.shape]
    if not _is_fixed(sizes[0]):
        sizes[0] = batch
    unknown = [str(d) for d in sizes if not _is_fixed(d)]
    if unknown:
        raise ModelError(
            f"{path}: input {value.name!r} has symbolic dimensions {', '.join(unknown)}; only "
            "the first, the batch, may be symbolic: export with a fixed size"
        )
    value.shape = ir.Shape(sizes)


def _agreed_batch(symbol: Dim, batch_size: int | None, where: str) -> int:
    if isinstance(symbol, int) and symbol > 0:
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


def _type_or_fold(graph: ir.Graph, node: ir.Node, write_out: bool) -> None:
    if node.op_type == "CastLike" and not node.domain:
        node = _as_cast(graph, node)
    if node.op_type == "If" and not node.domain:
        for inner in take_branch(graph, node):
            _type_or_fold(graph, inner, write_out)
    elif _is_foldable(node):
        _fold(graph, node)
    elif _is_idle(node):
        _bypass(graph, node)
    elif node.domain == DOMAIN and GRADIENT not in node.metadata_props:
        raise InferenceError("is of the compiler's own domain, which no model file has")
    else:
        _drop_unread_order(node)
        opset = graph.opset_imports.get(node.domain, 1)
        if not has_body(graph, node) or has_inference(node, opset):
            infer_types(node, opset)
        inside = written_out(graph, node) if write_out else ()
        for inner in inside:
            _type_or_fold(graph, inner, write_out)
        if not inside and node.outputs[0].dtype is None:
            infer_types(node, opset)


def _as_cast(graph: ir.Graph, node: ir.Node) -> ir.Node:
    """A CastLike, as a Cast to the type that its second operand has."""
    x, like = node.inputs
    if like is None or like.dtype is None:
        raise InferenceError("the type of its second input is not known")
    y = ir.Value(name=node.outputs[0].name)
    cast = ir.Node("", "Cast", [x], [ir.AttrInt64("to", int(like.dtype))], outputs=[y])
    cast.name = node.name
    graph.insert_before(node, cast)
    node.outputs[0].replace_all_uses_with(y, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return cast


def _drop_unread_order(node: ir.Node) -> None:
    """The storage order of a MaxPool is of its indices: without them it says nothing."""
    order = node.attributes.get("storage_order")
    if order is not None and order.as_int() and not any(y.uses() for y in node.outputs[1:]):
        node.attributes.pop("storage_order")
        node.resize_outputs(1)


def operator_name(node: ir.Node) -> str:
    """The operator of a node, with its domain where that is not the standard one."""
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def _is_foldable(node: ir.Node) -> bool:
    if node.domain != "" or node.op_type.startswith("Random") or node.op_type == "Bernoulli":
        return False
    if node.op_type == "Constant" or traits(node).reads_shape:
        return True
    return bool(node.inputs) and all(v is None or is_constant(v) for v in node.inputs)


def _is_idle(node: ir.Node) -> bool:
    """An identity, a dropout that drops nothing, a cast to the type that the value has, or an
    average pool over single elements, as an adaptive pool may come out.
    """
    if node.domain != "" or not node.inputs or node.inputs[0] is None:
        return False
    if node.op_type == "Cast":
        return node.attributes["to"].as_int() == node.inputs[0].dtype
    if node.op_type == "Dropout":
        return not drops(node) and not any(mask.uses() for mask in node.outputs[1:])
    if node.op_type == "AveragePool":
        lists = {"kernel_shape": 1, "strides": 1, "pads": 0}
        return all(
            set(node.attributes[name].as_ints()) <= {n}
            for name, n in lists.items()
            if name in node.attributes
        )
    return node.op_type == "Identity"


def _is_needless(node: ir.Node) -> bool:
    """An Expand for operators that stretch operands themselves, as in `x + b.expand_as(x)`."""
    y = node.outputs[0]
    if node.domain or node.op_type != "Expand" or y.is_graph_output():
        return False
    return all(
        traits(reader).stretches
        and any(v is not None and v is not y and dims(v) == dims(y) for v in reader.inputs)
        for reader in readers(y)
    )


def drops(node: ir.Node) -> bool:
    """Whether a Dropout node is in training mode and has a ratio above 0."""
    return bool(setting(node, 2, 0.0)) and setting(node, 1, 0.5) != 0


def setting(node: ir.Node, index: int, default: float) -> float:
    """The constant scalar input `index` of a node, or its default.

    Raises
    ------
    InferenceError
        If it is not a constant.
    """
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return default
    if value.const_value is None or value.const_value.size != 1:
        raise InferenceError(f"input {index} ({value.name!r}) must be one constant number")
    return float(value.const_value.numpy().item())


def _fold(graph: ir.Graph, node: ir.Node) -> None:
    try:
        check_size(node, graph.opset_imports.get(node.domain, 1))
        arrays = evaluate(node)
    except Exception as error:  # the evaluator raises whatever numpy does with a wrong constant
        raise InferenceError(f"its constant cannot be computed: {one_line(error)}") from None
    for output, array in zip(node.outputs, arrays, strict=False):
        if not output.name:
            continue
        folded = ir.val(output.name, const_value=ir.tensor(array))
        folded.shape, folded.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
        output.replace_all_uses_with(folded, replace_graph_outputs=True)
        graph.register_initializer(folded)
    graph.remove(node, safe=True)


def evaluate(node: ir.Node) -> Iterable[NDArray[np.generic]]:
    """The outputs of a node whose inputs are constants; of Shape and Size, typed values.

    Raises whatever the reference evaluator does with a wrong constant.
    """
    if traits(node).reads_shape and node.inputs[0] is not None:
        stand_in = {str(node.inputs[0].name): np.broadcast_to(np.float32(0), dims(node.inputs[0]))}
    else:
        stand_in = {str(v.name): v.const_value.numpy() for v in node.inputs if v and v.const_value}
    proto = ir.to_proto(node)
    check_loops(proto, stand_in)
    arrays = [np.asarray(y) for y in ReferenceEvaluator(proto).run(None, stand_in)]
    if any(array.dtype.kind in "OUS" for array in arrays):
        raise InferenceError("it is not numeric")
    return arrays


def _bypass(graph: ir.Graph, node: ir.Node) -> None:
    source = node.inputs[0]
    assert source is not None
    node.outputs[0].replace_all_uses_with(source, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _free_batch(graph: ir.Graph, node: ir.Node, batch: int) -> None:
    """Write the batch out of a constant shape, so that a smaller batch runs too."""
    target = node.inputs[1] if node.op_type in ("Reshape", "Expand") else None
    if target is None or target.const_value is None or not dims(node.inputs[0]):
        return
    shape = target.const_value.numpy().copy()
    first = dims(node.inputs[0])[0]
    if shape.size == 0 or shape[0] <= 0 or shape[0] % batch or first % batch:
        return
    if node.op_type == "Expand":
        if shape[0] != first or shape.size != len(dims(node.inputs[0])):
            return
        shape[0] = 1
    elif not _free_reshape(node, shape, first):
        return
    free = Emitter(graph, "forward").constant(shape, np.int64, f"{node.name}.shape")
    node.replace_input_with(1, free)


def _free_reshape(node: ir.Node, shape: NDArray[np.int64], first: int) -> bool:
    """Write 0 (as in the input) or -1 (the rest) for the leading size; whether that could be."""
    if "allowzero" in node.attributes:
        if 0 in shape:
            return False
        node.attributes.pop("allowzero")
    if shape[0] != first and -1 in shape:
        return False
    shape[0] = 0 if shape[0] == first else -1
    return True
