"""Is the graph still a training step? Checked after every pass; onnx_ir does not."""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.metadata import Key
from bnnopt.ops import InferenceError, dims, infer_types
from bnnopt.plan import dependencies
from bnnopt.training_step import PERSISTENT, PHASES, Role, TrainingStep, role

Interface = dict[str, tuple[object, ...]]
# What the types of a node follow from, as they were when they were found right.
Typed = dict[ir.Node, tuple[object, ...]]


class BrokenGraph(Exception):
    """The graph is not a valid training step; the message says where."""


def interface(step: TrainingStep, storage: bool = True) -> Interface:
    """What the runtime relies on: the inputs by name, the outputs by what they update.

    Without `storage` it leaves out how weights are stored, and which state there is.
    """
    found: Interface = {"the loss": (step.loss.dtype, dims(step.loss))}
    for value in step.graph.inputs:
        if not storage and role(value) is Role.STEP:
            continue  # what rounds by chance counts steps
        if storage or role(value) not in PERSISTENT:
            found[f"input {value.name!r}"] = (role(value), value.dtype, dims(value))
        elif role(value) is not Role.STATE:
            found[f"input {value.name!r}"] = (role(value), dims(value))
    for target, _ in step.updates():
        if storage or role(target) is not Role.STATE:
            found[f"the output that updates {target.name!r}"] = ()
    return found


def check_graph(
    step: TrainingStep,
    expected: Interface | None = None,
    storage: bool = True,
    right: Typed | None = None,
) -> None:
    """Check order, types, names, phases and updates of a training step.

    Parameters
    ----------
    step : TrainingStep
        The graph as it is now.
    expected : Interface, optional
        Its `interface` before the pass, which must not have changed.
    storage : bool
        As that of `interface` when `expected` was made.
    right : dict, optional
        The nodes that earlier checks of this step found right, which this one adds to: those that
        are as they were are not worked out again.

    Raises
    ------
    BrokenGraph
        At the first rule that does not hold.
    """
    _check_names(step)
    _check_targets(step)
    _check_order(step)
    for node in step.graph:
        if node.metadata_props.get(Key.PHASE) not in PHASES:
            raise BrokenGraph(f"node {node.name!r} has no phase")
        if right is None:
            _check_types(node, step.opset)
        elif right.get(node) != (found := _typed_by(node)):
            _check_types(node, step.opset)
            right[node] = found
    for value in step.graph.inputs:
        if role(value) is None:
            raise BrokenGraph(f"input {value.name!r} has no role")
    if expected is not None:
        _check_interface(interface(step, storage), expected)


def _check_interface(found: Interface, expected: Interface) -> None:
    for what in [*expected, *found]:
        if what not in found:
            raise BrokenGraph(f"{what} is lost")
        if found[what] != expected.get(what):
            raise BrokenGraph(f"{what} is {found[what]}, expected {expected.get(what)}")


def _check_names(step: TrainingStep) -> None:
    seen: set[str | None] = set()
    made = [output for node in step.graph for output in node.outputs if output.name]
    for value in (*step.graph.inputs, *step.graph.initializers.values(), *made):
        if value.name in seen:
            raise BrokenGraph(f"two values are called {value.name!r}")
        seen.add(value.name)


def _check_targets(step: TrainingStep) -> None:
    inputs = {value.name: value for value in step.graph.inputs}
    for output in step.graph.outputs:
        target = output.metadata_props.get(Key.UPDATES)
        if target is None:
            continue
        if target not in inputs:
            raise BrokenGraph(f"output {output.name!r} updates {target!r}, which is no input")
        found, expected = ((v.dtype, dims(v)) for v in (output, inputs[target]))
        if found != expected:
            raise BrokenGraph(f"the output that updates {target!r} is {found}, expected {expected}")


def _check_order(step: TrainingStep) -> None:
    """Every input is there, and nothing reads a weight after its update."""
    there = {*step.graph.inputs, *step.graph.initializers.values()}
    for node in step.graph:
        missing = [v.name for v in node.inputs if v is not None and v not in there]
        if missing:
            raise BrokenGraph(f"node {node.name!r} reads {missing[0]!r} before it is made")
        there.update(node.outputs)
    lost = [output.name for output in step.graph.outputs if output not in there]
    if lost:
        raise BrokenGraph(f"output {lost[0]!r} is made by no node")
    before, done = dependencies(step), set()
    for node in step.graph:
        early = [other.name for other in before[node] if other not in done]
        if early:
            raise BrokenGraph(f"node {node.name!r} overwrites what {early[0]!r} reads later")
        done.add(node)


def _typed_by(node: ir.Node) -> tuple[object, ...]:
    """What the types of a node follow from: operator, attributes, what it reads and gives."""
    values = [value for value in (*node.inputs, *node.outputs) if value is not None]
    looks = ((v, v.name, v.dtype, v.shape and v.shape.dims, v.const_value) for v in values)
    return (
        node.op_identifier(),
        *node.attributes.values(),
        *map(tuple, looks),
        *_shapes_read(node),
    )


def _shapes_read(node: ir.Node) -> list[object]:
    """The shapes that it reads as data."""
    makers = [value.producer() for value in node.inputs if value is not None]
    sources = [maker.inputs[0] for maker in makers if maker and maker.op_type == "Shape"]
    return [source.shape.dims for source in sources if source is not None and source.shape]


def _check_types(node: ir.Node, opset: int) -> None:
    copy = ir.Node(
        node.domain,
        node.op_type,
        node.inputs,
        node.attributes.values(),
        outputs=[ir.Value(name=output.name) for output in node.outputs],
    )
    try:
        infer_types(copy, opset)
        inferred = [(output.dtype, dims(output)) for output in copy.outputs if output.name]
        declared = [(output.dtype, dims(output)) for output in node.outputs if output.name]
    except (InferenceError, AssertionError, KeyError, IndexError) as error:
        raise BrokenGraph(f"node {node.name!r} ({node.op_type}): {error}") from None
    finally:
        copy.resize_inputs(0)
    if inferred != declared:
        raise BrokenGraph(f"node {node.name!r} ({node.op_type}): {declared} became {inferred}")
