"""Conventions that turn an ONNX graph into a training step.

Everything is kept in the graph itself, as ONNX metadata, so that a saved file can be read back (all
keys, with who writes and who reads them: `bnnopt.metadata`):

- every node carries its *phase*: ``forward`` (loss included), ``rebuild`` (gives a value back that
  the forward pass kept encoded, or not at all), ``backward`` or ``update``;
- every graph input carries its *role* (see `Role`);
- every graph output but the loss carries the name of the input that it *updates*: the runtime
  writes it into that input's buffer, so it must come after that input's last reader.

The order of the nodes in the graph is the order of execution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum

import onnx_ir as ir

from bnnopt.metadata import Key
from bnnopt.ops import dims

PHASES = ("forward", "rebuild", "backward", "update")


class Role(StrEnum):
    """What a graph input is to the training step."""

    DATA = "data"  # x, fed anew each step
    LABELS = "labels"  # y, fed anew each step
    RATE = "rate"  # learning rate, float32 scalar
    SHARE = "share"  # minus the share of a step's samples that are in this part, float32 scalar
    STEP = "step"  # number of the step, int64 scalar, 1 at the first
    PARAMETER = "parameter"  # trained
    FROZEN = "frozen"  # a float initialiser that is not trained
    NORMALIZATION = "normalization"  # factor or shift of samples that are fed as bytes
    STATISTIC = "statistic"  # batch norm's running mean or variance
    STATE = "state"  # of the optimiser


PERSISTENT = frozenset(
    {Role.PARAMETER, Role.FROZEN, Role.NORMALIZATION, Role.STATISTIC, Role.STATE}
)


def phase(node: ir.Node) -> str:
    """The phase of a node."""
    return node.metadata_props[Key.PHASE]


def role(value: ir.Value) -> Role | None:
    """The role of a graph input; None for any other value."""
    name = value.metadata_props.get(Key.ROLE)
    return Role(name) if name is not None else None


def set_role(value: ir.Value, kind: Role) -> ir.Value:
    """Mark a graph input with its role and return it."""
    value.metadata_props[Key.ROLE] = kind.value
    return value


class TrainingStep:
    """A training-step graph, seen through the conventions of this module.

    Also serves for the evaluation graph, which has forward nodes only and updates nothing.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = model

    @property
    def graph(self) -> ir.Graph:
        """The graph; its node order is the execution order."""
        return self.model.graph

    @property
    def opset(self) -> int:
        """Version of the standard ONNX operators."""
        return self.graph.opset_imports[""]

    @property
    def loss(self) -> ir.Value:
        """The first output: the loss of a training step, the prediction of an evaluation."""
        return self.graph.outputs[0]

    @property
    def batch_size(self) -> int:
        """Samples in a batch, as the graph is typed."""
        return dims(self.inputs(Role.DATA)[0])[0]

    def inputs(self, *roles: Role) -> list[ir.Value]:
        """The graph inputs of the given roles, in graph order."""
        return [value for value in self.graph.inputs if role(value) in roles]

    def updates(self) -> Iterator[tuple[ir.Value, ir.Value]]:
        """Pairs (persistent input, graph output that replaces it)."""
        by_name = {value.name: value for value in self.graph.inputs}
        for output in self.graph.outputs:
            target = output.metadata_props.get(Key.UPDATES)
            if target is not None:
                yield by_name[target], output

    @property
    def scores(self) -> ir.Value | None:
        """The scores of each class in the loss; None where it has none."""
        values = (value for node in self.graph for value in node.outputs)
        return next((value for value in values if Key.SCORES in value.metadata_props), None)

    def gradients(self) -> dict[str, ir.Value]:
        """Parameter name to the gradient that its optimiser step reads, or makes and names."""
        found = {
            node.metadata_props[Key.PARAMETER]: (
                _made_gradient(node) if makes_gradient(node) else node.inputs[1]
            )
            for node in self.graph
            if phase(node) == "update" and Key.PARAMETER in node.metadata_props
        }
        return {name: value for name, value in found.items() if value is not None}


def latent_units(step: TrainingStep) -> dict[str, float]:
    """The weights that are kept in int8, by name, and the unit of each."""
    found = {
        str(node.inputs[0].name): node.attributes["w_unit"].as_float()
        for node in step.graph
        if "w_unit" in node.attributes and node.inputs[0] is not None
    }
    return {name: unit for name, unit in found.items() if unit > 0}


def makes_gradient(node: ir.Node) -> bool:
    """Whether an optimiser step makes its gradient itself, and writes it only if it has a name."""
    return node.metadata_props.get(Key.GRADIENT) == "made"


def mark_makes_gradient(node: ir.Node) -> None:
    """Mark an optimiser step that makes its gradient, its last output."""
    node.metadata_props[Key.GRADIENT] = "made"


def name_gradients(step: TrainingStep) -> TrainingStep:
    """Name the gradients that optimiser steps make, so that they are written; returns the step."""
    for node in filter(makes_gradient, step.graph):
        if _made_gradient(node) is not None:
            continue
        targets = [output for output in node.outputs if Key.UPDATES in output.metadata_props]
        node.resize_outputs(len(targets) + 1)  # a file does not hold outputs without a name
        made = node.outputs[-1]
        made.name = f"{node.metadata_props[Key.PARAMETER]}.grad"
        made.type, made.shape = ir.TensorType(ir.DataType.FLOAT), targets[-1].shape
    return step


def _made_gradient(node: ir.Node) -> ir.Value | None:
    """The gradient that a step makes, if it has a name."""
    last = node.outputs[-1]
    return last if last.name and Key.UPDATES not in last.metadata_props else None


def mark_update(output: ir.Value, target: ir.Value) -> ir.Value:
    """Mark a graph output as the next value of the graph input `target` and return it."""
    assert target.name is not None
    output.metadata_props[Key.UPDATES] = target.name
    return output


def mark_scores(value: ir.Value) -> ir.Value:
    """Mark the value of the loss that has a score for each class, along axis 1; returns it."""
    value.metadata_props[Key.SCORES] = "labels"
    return value


def mark_loss_gradient(value: ir.Value) -> ir.Value:
    """Mark a constant as the gradient of the loss and return it; no other may be shared with it."""
    value.metadata_props[Key.GRADIENT] = "loss"
    return value


def is_loss_gradient(value: ir.Value) -> bool:
    """Whether the value is the constant from which all gradients come."""
    return value.metadata_props.get(Key.GRADIENT) == "loss"


def step_input(graph: ir.Graph, unique: Callable[[str], str]) -> ir.Value:
    """The graph's step counter, added where there is none yet; `unique` makes a name unique."""
    for value in reversed(graph.inputs):  # where it was added there is little behind it
        if value.metadata_props.get(Key.ROLE) == Role.STEP.value:
            return value
    value = ir.val(unique("step"), dtype=ir.DataType.INT64, shape=())
    graph.inputs.append(set_role(value, Role.STEP))
    return value


def store_as(value: ir.Value, element: ir.DataType) -> None:
    """Give a graph input another type. Setting ``value.dtype`` would change its clones as well."""
    value.type = ir.TensorType(element)


def readers(value: ir.Value) -> list[ir.Node]:
    """The nodes that read a value, each once, in no particular order."""
    return list(dict.fromkeys(use.node for use in value.uses()))


def replace_uses(old: ir.Value, new: ir.Value) -> None:
    """Let all that reads `old` read `new`, which is the graph's output where `old` was one.

    As ``replace_all_uses_with``, which goes through all outputs of the graph in Python.
    """
    graph = old.graph
    while graph is not None and old.is_graph_output():
        graph.outputs[graph.outputs.index(old)] = new
    old.replace_all_uses_with(new)


def drop_unread(graph: ir.Graph) -> None:
    """Remove the nodes that nothing reads."""
    dead = dict[ir.Node, None]()
    for node in reversed(graph):
        users = (use.node for output in node.outputs for use in output.uses())
        is_output = any(output.is_graph_output() for output in node.outputs)
        if not is_output and all(user in dead for user in users):
            dead[node] = None
    graph.remove(dead, safe=True)


def is_constant(value: ir.Value) -> bool:
    """Whether the value is an initialiser, the same in every step."""
    return value.is_initializer() and value.const_value is not None
