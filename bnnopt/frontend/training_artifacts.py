"""Reads a folder of onnxruntime-training artifacts, and splits its training graph.

What the folder holds, from ``onnxruntime.training.artifacts.generate_artifacts``:

- ``training_model.onnx``: forward nodes, loss, backward nodes (their ``doc_string`` is "Backward
  pass"), and one ``InPlaceAccumulatorV2`` a gradient, which adds up batches;
- ``checkpoint``: the parameters, which are inputs of the graph; see `checkpoint`;
- ``optimizer_model.onnx``, if one was asked for: a single node with the optimiser's numbers;
- ``eval_model.onnx``: the forward nodes again, which nothing here needs.

The forward part becomes an ordinary `ForwardGraph`. The mark does not tell the parts apart: forward
nodes that were replaced for the sake of their gradient carry it too. What the graph's own outputs
depend on is forward; the rest is backward.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from bnnopt.errors import ModelError
from bnnopt.frontend.binarization import Recognizer
from bnnopt.frontend.checkpoint import Checkpoint, read_checkpoint
from bnnopt.frontend.derived_artifacts import (
    LAYER_NORMALIZATION_OPSET,
    in_standard_operators,
    is_derived,
    is_fused,
)
from bnnopt.frontend.estimators import Estimators
from bnnopt.frontend.lint import lint
from bnnopt.frontend.normalize import ForwardGraph, normalize
from bnnopt.frontend.read import array_of, checked, one_line, parse
from bnnopt.frontend.whole import make_whole
from bnnopt.ops import Emitter
from bnnopt.training_step import Role, role, set_role

TRAINING = "training_model.onnx"
CHECKPOINT = "checkpoint"
OPTIMIZER = "optimizer_model.onnx"
GENERATE = "onnxruntime.training.artifacts.generate_artifacts"

CROSS_ENTROPY = "SoftmaxCrossEntropyLoss"
BUFFER = "_grad.accumulation.buffer"
RESET = "lazy_reset_grad"
ACCUMULATORS = frozenset({"InPlaceAccumulator", "InPlaceAccumulatorV2"})
LABELS = ("labels", "target")  # what generate_artifacts calls them
BY_ESTIMATOR_OF_THE_FILE = "as in the file"

# Second outputs that only the backward pass reads: they are found through their node.
WITH_AUXILIARY = frozenset(
    {"BatchNormInternal", "ConcatTraining", "Dropout", "LayerNormalization", "MaxPool"}
    | {CROSS_ENTROPY}
)


@dataclass(frozen=True)
class OptimizerModel:
    """The one node of an optimiser model."""

    path: Path
    operator: str
    attributes: Mapping[str, float]


@dataclass(frozen=True)
class TrainingArtifacts:
    """A training graph, split.

    Attributes
    ----------
    forward : ForwardGraph
        Its outputs are the values that `exported` names: the loss, the prediction, and what the
        backward pass reads. An input for labels has their role.
    auxiliary : dict of str to (str, int)
        Second outputs that the backward pass reads: name of the node's first output, and index.
    backward : list of NodeProto
        In an order in which they can run.
    constants : dict of str to ndarray
        Initialisers of the file.
    gradients : dict of str to str
        Parameter to the name of its gradient.
    loss : str
        ``cross-entropy``, or ``none`` for any other loss, which is part of the graph.
    optimizer_file : Path
        The optimiser model; it need not exist.
    is_derived : bool
        The backward pass is left out: its operators stand for more than one of ours, so that the
        forward graph is differentiated anew; see `derived_artifacts`.
    """

    forward: ForwardGraph
    exported: list[str]
    auxiliary: dict[str, tuple[str, int]]
    backward: list[onnx.NodeProto]
    constants: dict[str, NDArray[np.generic]]
    gradients: dict[str, str]
    loss: str
    optimizer_file: Path
    is_derived: bool = False

    def optimizer(self) -> OptimizerModel | None:
        """The optimiser of the folder; None where it has none.

        Raises
        ------
        ModelError
            If the file holds anything else.
        """
        return _read_optimizer(self.optimizer_file) if self.optimizer_file.exists() else None

    def prediction_only(self) -> ForwardGraph:
        """The forward graph up to the prediction, without loss and labels.

        Raises
        ------
        ModelError
            If the loss is the only output.
        """
        if len(self.forward.graph.outputs) < 2:
            raise ModelError(
                f"{self.optimizer_file.parent}: {self.forward.graph.outputs[0].name!r} is the only "
                "output, expected a loss and a prediction; generate it again"
            )
        model = self.forward.model.clone()
        model.graph.outputs[:] = [model.graph.outputs[1]]
        RemoveUnusedNodesPass()(model)
        for value in list(model.graph.inputs):
            if role(value) is Role.LABELS:
                model.graph.inputs.remove(value)
        return ForwardGraph(model, self.forward.batch_size, self.forward.weights)


def is_artifacts(path: Path) -> bool:
    """Whether the path is a folder of training artifacts, or the training graph of one."""
    if os.path.isdir(path):  # False as well for a path that is none
        return any(path.glob(f"*{TRAINING}")) or any(path.glob("*training_model.ort"))
    return path.name.endswith(TRAINING)


def load_artifacts(path: Path, batch_size: int | None, keep_zero: bool) -> TrainingArtifacts:
    """Read a folder of training artifacts.

    Parameters
    ----------
    path : Path
        The folder, or its ``training_model.onnx``; the files may have a prefix.
    batch_size : int or None
        Samples a step; may be None where the file fixes it.
    keep_zero : bool
        Keep ONNX's sign(0) = 0 instead of +1.

    Raises
    ------
    ModelError, UsageError
        One line each.
    """
    training = _training_file(path)
    folder, prefix = training.parent, training.name.removesuffix(TRAINING)
    model = parse(training)
    checkpoint = _checkpoint(folder / f"{prefix}{CHECKPOINT}")
    graph = _Split(model, checkpoint, training)
    derived = graph.is_derived
    forward = normalize(graph.forward_model(), batch_size, training, write_out=derived)
    for value in forward.graph.inputs:
        if value.name in graph.labels:
            set_role(value, Role.LABELS)
    lint(forward, training)
    recognizer = Recognizer(forward, Estimators(BY_ESTIMATOR_OF_THE_FILE), keep_zero)
    recognizer.binarize()
    recognizer.settle_estimators()
    recognizer.report()
    if derived:
        make_whole(forward.graph)
        _check_derived(forward, graph, training)
        forward.notes.append(
            f"{graph.derived_operator}: the backward pass is derived anew from the forward nodes"
        )
    _read_loss(forward.graph, training)
    return TrainingArtifacts(
        forward=forward,
        exported=graph.exported,
        auxiliary=graph.auxiliary,
        backward=graph.backward,
        constants=graph.constants,
        gradients=graph.gradients,
        loss="cross-entropy" if graph.has_cross_entropy else "none",
        optimizer_file=folder / f"{prefix}{OPTIMIZER}",
        is_derived=derived,
    )


def _check_derived(forward: ForwardGraph, graph: _Split, path: Path) -> None:
    """What is differentiated anew has a gradient that is known, and a loss that is."""
    if forward.binarized:
        raise ModelError(
            f"{path}: node {forward.binarized[0].name!r} is binarised, and the gradient of "
            f"{graph.derived_operator} is derived anew, without the estimator of the file; pass "
            "the forward model"
        )
    if not graph.has_cross_entropy:
        raise ModelError(
            f"{path}: the gradient of {graph.derived_operator} is derived anew, which takes a "
            "cross-entropy; pass the forward model, with --loss"
        )


def _training_file(path: Path) -> Path:
    if not os.path.isdir(path):
        return path
    found = sorted(path.glob(f"*{TRAINING}"))
    if not found:
        raise ModelError(
            f"{path}: its training model is in ORT format, expected {TRAINING}; run {GENERATE} "
            "with ort_format=False"
        )
    if len(found) > 1:
        names = " and ".join(entry.name for entry in found[:2])
        raise ModelError(f"{path}: holds {names}; pass the one to compile, not the folder")
    return found[0]


def _checkpoint(path: Path) -> Checkpoint:
    if not os.path.exists(path):
        raise ModelError(
            f"{path}: no such file: it holds the parameters of {TRAINING}; copy it along"
        )
    return read_checkpoint(path)


@dataclass
class _Split:
    """The training graph in its parts."""

    model: onnx.ModelProto
    checkpoint: Checkpoint
    path: Path
    gradients: dict[str, str] = field(init=False)
    backward: list[onnx.NodeProto] = field(init=False)
    exported: list[str] = field(init=False)
    auxiliary: dict[str, tuple[str, int]] = field(init=False)

    def __post_init__(self) -> None:
        nodes = list(self.model.graph.node)
        made = {name for node in nodes for name in node.output}
        accumulators = [n for n in nodes if n.op_type in ACCUMULATORS and len(n.input) > 1]
        self.gradients = {n.input[0].removesuffix(BUFFER): n.input[1] for n in accumulators}
        if not self.gradients:
            raise ModelError(
                f"{self.path}: accumulates no gradient, expected a training graph from {GENERATE}"
            )
        summed = {name for node in accumulators for name in node.output}
        self._outputs = [v.name for v in self.model.graph.output if v.name not in summed]
        if not self._outputs or not made.issuperset(self._outputs):
            names = ", ".join(self._outputs[:3]) or "none"
            raise ModelError(
                f"{self.path}: expected a loss, which a node makes, among its outputs, found "
                f"{names}; generate it again"
            )
        needed = _ancestors(nodes, self._outputs)
        self._forward = [node for node in nodes if needed.intersection(node.output)]
        others = (n for n in nodes if not needed.intersection(n.output))
        self.backward = [node for node in others if node.op_type not in ACCUMULATORS]
        self.constants = {t.name: array_of(t, self.path) for t in self.model.graph.initializer}
        self._check_inputs()
        self.auxiliary = {
            name: (node.output[0], index)
            for node in self._forward
            if node.op_type in WITH_AUXILIARY
            for index, name in enumerate(node.output)
            if index and name
        }
        self.exported = self._exported()

    @property
    def is_derived(self) -> bool:
        """Whether the forward nodes are read alone, to be differentiated anew."""
        return is_derived(self.model.graph.node)

    @property
    def derived_operator(self) -> str:
        """The operator for which they are."""
        return str(next(node.op_type for node in self.model.graph.node if is_derived([node])))

    @property
    def labels(self) -> set[str]:
        """The inputs that hold labels."""
        data = {value.name for value in self.data}
        read = {name for n in self._forward if n.op_type == CROSS_ENTROPY for name in n.input[1:]}
        return data.intersection(read.union(LABELS))

    @property
    def has_cross_entropy(self) -> bool:
        """Whether the loss is a softmax cross-entropy."""
        return any(node.op_type == CROSS_ENTROPY for node in self._forward)

    @property
    def data(self) -> list[onnx.ValueInfoProto]:
        """The inputs that are fed anew each step."""
        own = {RESET, *self.checkpoint.arrays, *(f"{name}{BUFFER}" for name in self.gradients)}
        return [value for value in self.model.graph.input if value.name not in own]

    def _check_inputs(self) -> None:
        known = self.checkpoint.arrays
        missing = sorted(self.gradients.keys() - known.keys())
        if missing:
            raise ModelError(
                f"{self.path}: parameter {missing[0]!r} is not in the checkpoint beside it; "
                "take both from one run of generate_artifacts"
            )
        for value in self.model.graph.input:
            array = known.get(value.name)
            shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
            if array is not None and list(array.shape) != shape:
                raise ModelError(
                    f"{self.path}: parameter {value.name!r} has shape {shape}, but "
                    f"{list(array.shape)} in the checkpoint; take both from one run"
                )

    def _exported(self) -> list[str]:
        """The loss, the prediction, and every forward value that the backward pass reads."""
        made = {name for node in self._forward for name in node.output}
        if self.is_derived:
            return list(dict.fromkeys([self._outputs[0], self._prediction()]))
        named = [name for node in self.backward for name in node.input]
        for node in self.backward:
            if node.op_type == "AveragePoolGrad" and node.input:  # it reads the gradient alone
                named.append(node.input[0].removesuffix("_grad"))
        read = [name for name in named if name in made]
        read = [self.auxiliary.get(name, (name, 0))[0] for name in read]
        return list(dict.fromkeys([self._outputs[0], self._prediction(), *read]))

    def _prediction(self) -> str:
        """The second output, or the value that all that the labels meet is computed from."""
        if len(self._outputs) > 1:
            return str(self._outputs[1])
        tainted, maker = set(self.labels), {o: n for n in self._forward for o in n.output}
        frontier: set[str] = set()
        for node in self._forward:
            if tainted.intersection(node.input):
                tainted.update(node.output)
                frontier.update(node.input)
        frontier &= maker.keys() - tainted
        order = {name: i for i, node in enumerate(self._forward) for name in node.output}
        while len(frontier) > 1:
            last = max(frontier, key=order.__getitem__)
            frontier.remove(last)
            frontier.update(name for name in maker[last].input if name in maker)
        return next(iter(frontier), self._outputs[0])

    def forward_model(self) -> onnx.ModelProto:
        """The forward nodes as an ordinary training export, weights as initialisers."""
        known = self.checkpoint.arrays
        read = {name for node in self._forward for name in node.input}
        floats = [name for name in self.constants if name in read]
        graph = onnx.helper.make_graph(
            nodes=[
                *(_constant(name, self.constants[name]) for name in floats),
                *(made for node in self._forward for made in _standard(node, self.path)),
            ],
            name="forward",
            inputs=self.data,
            outputs=[v for v in self.model.graph.output if v.name == self.exported[0]],
            initializer=[
                onnx.numpy_helper.from_array(known[value.name], value.name)
                for value in self.model.graph.input
                if value.name in known
            ],
        )
        opsets = [entry for entry in self.model.opset_import if entry.domain in ("", "ai.onnx")]
        if any(node.op_type == "LayerNormalization" for node in self._forward):
            opsets[0].version = max(opsets[0].version, LAYER_NORMALIZATION_OPSET)
        version = self.model.ir_version
        model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=version)
        model = checked(model, self.path)
        made = {name for node in model.graph.node for name in node.output}
        lost = [name for name in self.exported if name not in made]
        if lost:
            raise ModelError(
                f"{self.path}: the backward pass reads {lost[0]!r}, which no forward node of a "
                "kind that is known gives; generate the artifacts again"
            )
        del model.graph.output[:]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self.exported)
        return model


def _ancestors(nodes: list[onnx.NodeProto], outputs: Iterable[str]) -> set[str]:
    """The values that the outputs depend on, themselves included."""
    needed = set(outputs)
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(name for name in node.input if name)
    return needed


def _constant(name: str, array: NDArray[np.generic]) -> onnx.NodeProto:
    """Parameters are inputs of the graph, so its initialisers are no weights."""
    value = onnx.numpy_helper.from_array(array)
    return onnx.helper.make_node("Constant", [], [name], name=name, value=value)


def _standard(node: onnx.NodeProto, path: Path) -> Sequence[onnx.NodeProto]:
    """A forward node in standard operators; second outputs go, see `WITH_AUXILIARY`."""
    if is_fused(node):
        return in_standard_operators(node)
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.ClearField("doc_string")
    if node.op_type in WITH_AUXILIARY:
        del copy.output[1:]
    if node.domain in ("", "ai.onnx"):
        return [copy]
    if node.op_type == "BatchNormInternal":
        copy.op_type = "BatchNormalization"
        copy.output.extend(f"{node.output[0]}.{name}" for name in ("next_mean", "next_var"))
    elif node.op_type == "ConcatTraining":
        copy.op_type = "Concat"
    else:
        raise ModelError(
            f"{path}: node {node.name!r}: there is no rule for the forward operator "
            f"{node.domain}.{node.op_type}; generate the artifacts from a model without it"
        )
    copy.domain = ""
    return [copy]


def _read_loss(graph: ir.Graph, path: Path) -> None:
    """Replace the standard cross-entropy by the domain's own."""
    for node in list(graph):
        if node.op_type == CROSS_ENTROPY:
            _check_loss(node, path)
            emit = Emitter(graph, "forward")
            old = node.outputs[0]
            new = emit("SoftmaxCrossEntropy", *node.inputs[:2], name=str(old.name), n_outputs=2)
            graph.insert_before(node, emit.nodes)
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            graph.remove(node, safe=True)


def _check_loss(node: ir.Node, path: Path) -> None:
    reduction, ignored = node.attributes.get("reduction"), node.attributes.get("ignore_index")
    found = []
    if reduction is not None and reduction.as_string() != "mean":
        found.append(f"reduction {reduction.as_string()!r}, expected 'mean'")
    if ignored is not None and ignored.as_int() >= 0:
        found.append(f"ignore_index {ignored.as_int()}, expected none of the classes")
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        found.append("weights of classes, expected none")
    if found:
        raise ModelError(
            f"{path}: node {node.name!r} (SoftmaxCrossEntropyLoss) has {found[0]}; generate the "
            "artifacts with another loss"
        )


def _read_optimizer(path: Path) -> OptimizerModel:
    nodes = parse(path).graph.node
    if len(nodes) != 1 or nodes[0].domain != "com.microsoft":
        names = ", ".join(node.op_type for node in nodes[:4])
        raise ModelError(
            f"{path}: expected one optimiser node, found {names}; generate the artifacts with "
            "OptimType.AdamW or OptimType.SGD, or remove the file and pass --optimizer"
        )
    try:
        values = {a.name: onnx.helper.get_attribute_value(a) for a in nodes[0].attribute}
    except ValueError as error:
        raise ModelError(f"{path}: {one_line(error)}; generate the artifacts again") from None
    numbers = {name: v for name, v in values.items() if isinstance(v, int | float)}
    return OptimizerModel(path, nodes[0].op_type, numbers)
