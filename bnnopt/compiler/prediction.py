"""The trained network alone, as small as it gets: for devices that predict and do not train."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from bnnopt.analysis.batch import with_batch
from bnnopt.artifact import compute, load_step, scaled_shapes, write_predictor
from bnnopt.frontend.normalize import check_batch_size
from bnnopt.ops import Emitter, dims, dtype, functions_for, infer_types, traits
from bnnopt.passes import PASSES, rewrite
from bnnopt.plan import arena_bytes
from bnnopt.runtime import TrainingSession
from bnnopt.runtime.artifact import check_files
from bnnopt.runtime.format import EVALUATION
from bnnopt.runtime.kernels.reference.packing import pack_bits, sign_pack, unpack_bits
from bnnopt.runtime.predictor import is_signs
from bnnopt.runtime.training.loop import NOTES
from bnnopt.training_step import PERSISTENT, TrainingStep, is_constant, readers

Array = NDArray[Any]
_PASSES = ("normalize-on-read", "in-place", "schedule")


def export_network(
    folder: Path, session: TrainingSession, target: Path, batch_size: int
) -> tuple[int, int]:
    """Write the network of a session as the folder that `bnnopt.runtime.Predictor` opens.

    Parameters
    ----------
    folder : Path
        The session's own, of ``bnnopt optimize``.
    target : Path
        The folder to write.
    batch_size : int
        Samples to predict at once.

    Returns
    -------
    tuple of int
        Bytes of its constants, and of the arena that predicting takes.

    Raises
    ------
    ArtifactError
        If the session's folder is damaged, or the other cannot be written.
    UsageError
        If that is no batch size.
    """
    check_batch_size(batch_size)
    file = f"{EVALUATION}.onnx"
    check_files(folder, session.about, [file])
    weights = {**session.stored_weights(), **session.scales}
    step = predicting(load_step(folder / file), weights, batch_size)
    notes = {NOTES: session.notes[NOTES]} if NOTES in session.notes else {}
    graph = _with_signs_as_bits(step)
    write_predictor(target, step, graph, session.about, notes)
    tensors = (value.const_value for value in graph.graph.initializers.values())
    n_bytes = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    return n_bytes, arena_bytes(step)


def predicting(
    evaluation: TrainingStep, weights: Mapping[str, NDArray[np.generic]], batch_size: int
) -> TrainingStep:
    """An evaluation with its weights inside, whose predictions are the same.

    To the last bit, but for what real products round otherwise in another batch size or layout of
    their weight. What follows from weights alone is worked out: of binary weights their sign bits
    stay. A batch norm between a product of signs and a sign becomes a threshold a channel, a bias
    in front of it and a clip (Hardtanh) behind it as well: the products are integers, so everything
    that can come is tried. A pool in between takes the largest integer. A binary convolution that
    sees its whole input at once is a dense layer.

    Parameters
    ----------
    evaluation : TrainingStep
        As `bnnopt.compiler.evaluation` fitted it; not changed.
    weights : mapping of str to ndarray
        Its persistent inputs.
    batch_size : int
        Samples that the plan is for; where something ties the graph to its own batch, that is kept.
    """
    is_tied = scaled_shapes(evaluation, evaluation.batch_size) is None
    model = with_batch(evaluation.model, evaluation.batch_size if is_tied else batch_size)
    step = TrainingStep(model)
    graph = step.graph
    for node in graph:
        infer_types(node, step.opset)
    for value in step.inputs(*PERSISTENT):
        name, value.name = str(value.name), None
        value.replace_all_uses_with(_constant(graph, name, np.asarray(weights[name])))
        graph.inputs.remove(value)
    _work_out(graph)
    for sign in [found for node in graph if (found := _sign_behind(node)) is not None]:
        _to_threshold(step, sign)
    for node in list(graph):
        _to_dense(step, node)
    RemoveUnusedNodesPass()(step.model)
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        graph.initializers.pop(name)
    rewrite(step, [p for p in PASSES if p.name in _PASSES])
    _declare_functions(step.model)
    return step


def _with_signs_as_bits(step: TrainingStep) -> ir.Model:
    """The graph with constants of -1 and +1 as bits, and nodes that unpack them."""
    model = step.model.clone()
    graph = model.graph
    emit = Emitter(graph, "forward")
    for name, value in list(graph.initializers.items()):
        array = _array(value)
        if array is not None and is_signs(array):
            bits = emit.constant(sign_pack(array), np.uint8, f"{name}.bits")
            shape = list(array.shape[1:])
            value.replace_all_uses_with(emit("SignUnpack", bits, name=f"{name}.signs", shape=shape))
            graph.initializers.pop(name)
    graph.insert_before(graph.node(0), emit.nodes)
    _declare_functions(model)
    return model


def _declare_functions(model: ir.Model) -> None:
    model.functions.clear()
    for function in functions_for(model.graph, model.graph.opset_imports[""]):
        model.functions[function.identifier()] = function


def _constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    kind, tensor = ir.DataType.from_numpy(array.dtype), ir.tensor(np.asarray(array, order="C"))
    constant = ir.val(name, dtype=kind, shape=array.shape, const_value=tensor)
    graph.register_initializer(constant)
    return constant


def _array(value: ir.Value | None) -> Array | None:
    """The elements of a constant; None of anything else."""
    if value is None or not is_constant(value) or value.const_value is None:
        return None
    return value.const_value.numpy()


def _work_out(graph: ir.Graph) -> None:
    """Compute what nodes of constants give."""
    for node in list(graph):
        arrays = [_array(value) for value in node.inputs]
        if any(a is None and v is not None for a, v in zip(arrays, node.inputs, strict=True)):
            continue
        for output, array in zip(node.outputs, compute(node, arrays), strict=False):
            name, output.name = str(output.name), None
            constant = _constant(graph, name, array.reshape(dims(output)))
            output.replace_all_uses_with(constant, replace_graph_outputs=True)
        graph.remove(node, safe=True)


@dataclass(frozen=True)
class _Sign:
    """What is between a product of signs and the bits of the next.

    A bias or none, a norm, a clip or none, and pools or none.
    """

    product: ir.Node
    bias: Array | None
    inner_pool: ir.Node | None
    norm: ir.Node
    clip: ir.Node | None
    binarize: ir.Node
    pool: ir.Node | None
    pack: ir.Node

    def is_plus(self, y: Array) -> Array:
        """Whether what the norm gives becomes +1."""
        return ~(y < 0) if self.binarize.attributes["zero"].as_float() > 0 else y > 0


def _sign_behind(norm: ir.Node) -> _Sign | None:
    """The way from a product of signs over a batch norm to packed signs, if nothing leaves it."""
    if norm.op_type != "BatchNormalization" or any(_array(v) is None for v in norm.inputs[1:]):
        return None
    product, inner_pool = _read_alone(norm), None
    if product is not None and product.op_type == "MaxPool":
        product, inner_pool = _read_alone(product), product
    bias = _bias(product)
    if product is not None and bias is not None:
        product = _read_alone(product)
    if product is None or not traits(product).on_bits or _array(product.inputs[1]) is None:
        return None
    if dtype(product.outputs[0]) != ir.DataType.FLOAT:
        return None
    first, clip = _only_reader(norm), None
    if first is not None and first.op_type == "Clip" and _is_of_constants(first):
        first, clip = _only_reader(first), first
    if first is not None and first.op_type == "BinarizePack":
        return _Sign(product, bias, inner_pool, norm, clip, first, None, first)
    pool = _only_reader(first) if first is not None and first.op_type == "Binarize" else None
    pack = _only_reader(pool) if pool is not None and pool.op_type == "MaxPool" else None
    if first is None or pack is None or pack.op_type != "SignPack":
        return None
    return _Sign(product, bias, inner_pool, norm, clip, first, pool, pack)


def _is_of_constants(node: ir.Node) -> bool:
    """Whether all inputs but the first are constants, or left out."""
    return all(value is None or _array(value) is not None for value in node.inputs[1:])


def _bias(node: ir.Node | None) -> Array | None:
    """What an Add adds to its first input, one number a channel (C,); None of anything else."""
    if node is None or node.op_type != "Add":
        return None
    added, (_, channels, *_) = _array(node.inputs[1]), dims(node.outputs[0])
    if added is None or added.size != channels or added.dtype != np.float32:
        return None
    places = [1] * (len(dims(node.outputs[0])) - 2)
    is_per_channel = added.shape[-1 - len(places) :] == (channels, *places)
    return added.reshape(-1) if is_per_channel else None


def _read_alone(node: ir.Node) -> ir.Node | None:
    """What makes the first input, if nobody else reads that."""
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    return source if source is not None and _only_reader(source) is node else None


def _only_reader(node: ir.Node) -> ir.Node | None:
    """Who reads the first output, if that is one node and nobody else."""
    value = node.outputs[0]
    users = readers(value)
    return users[0] if len(users) == 1 and not value.is_graph_output() else None


def _to_threshold(step: TrainingStep, sign: _Sign) -> None:
    """Let the bits be of ``x >= threshold``; filters are negated where the norm turns the order."""
    product, weights = sign.product, _array(sign.product.inputs[1])
    assert weights is not None
    w_shape = product.attributes["w_shape"].as_ints()
    threshold, falls = _thresholds(sign, math.prod(w_shape))
    if sign.inner_pool is not None and falls.any():
        return  # of negated filters the pool would take the smallest
    bits = unpack_bits(weights, shape=w_shape)
    bits[falls] = ~bits[falls]
    emit = Emitter(step.graph, "forward")
    name = str(sign.pack.outputs[0].name)
    product.replace_input_with(1, emit.constant(pack_bits(bits), np.uint8, f"{name}.weights"))
    if sign.inner_pool is not None:
        sign.inner_pool.replace_input_with(0, product.outputs[0])  # without the bias
    source = (sign.inner_pool or product).outputs[0]
    if sign.pool is not None:
        sign.pool.replace_input_with(0, source)
        source = sign.pool.outputs[0]
    limit = emit.constant(threshold, np.float32, f"{name}.threshold")
    packed = emit("ThresholdPack", source, limit, name=f"{name}.reached")
    step.graph.insert_before(sign.pack, emit.nodes)
    sign.pack.outputs[0].replace_all_uses_with(packed, replace_graph_outputs=True)


def _to_dense(step: TrainingStep, node: ir.Node) -> None:
    """Let a binary convolution that sees its whole input at once be the dense layer that it is."""
    if node.op_type != "BinaryConv" or any(node.attributes["pads"].as_ints()):
        return
    x_shape, w_shape = (node.attributes[name].as_ints() for name in ("x_shape", "w_shape"))
    if x_shape != w_shape:  # of a sample, of a filter: group and dilations are 1 then
        return
    emit, y, n_terms = Emitter(step.graph, "forward"), node.outputs[0], [math.prod(x_shape)]
    kind, name = node.attributes["dtype"].as_int(), f"{y.name}.dense"
    product = emit(
        "BinaryGemm", *node.inputs, name=name, x_shape=n_terms, w_shape=n_terms, dtype=kind
    )
    places = emit.constant([*range(2, len(dims(y)))], np.int64, f"{y.name}.places")
    y.replace_all_uses_with(emit("Unsqueeze", product, places, name=f"{y.name}.map"))
    step.graph.insert_before(node, emit.nodes)


def _thresholds(sign: _Sign, most: int) -> tuple[Array, Array]:
    """By channel: the least integer that becomes +1, and whether that is of the negated product.

    `most` is the largest magnitude of the product. Infinity where nothing becomes +1.
    """
    integers = np.arange(-most, most + 1, dtype=np.float32)
    thresholds, falls = [], []
    norm = [_array(value) for value in sign.norm.inputs[1:]]
    for channel in range(len(norm[0])):  # type: ignore[arg-type]
        own = [array[channel : channel + 1] for array in norm if array is not None]
        sums = integers if sign.bias is None else integers + sign.bias[channel]
        (y,) = compute(sign.norm, [sums[None, None], *own])
        if sign.clip is not None:
            (y,) = compute(sign.clip, [y, *map(_array, sign.clip.inputs[1:])])
        plus = sign.is_plus(y[0, 0])
        falls.append(bool(plus[0] and not plus[-1]))
        rising = plus[::-1] if falls[-1] else plus
        assert np.all(rising[1:] >= rising[:-1]), "a batch norm keeps or turns the order"
        reached = integers[rising]
        thresholds.append(reached[0] if len(reached) else np.float32(np.inf))
    return np.array(thresholds, np.float32), np.array(falls)
