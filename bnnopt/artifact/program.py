"""From a planned step to the program that the device runs."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from bnnopt.analysis import roots, stored_dtype
from bnnopt.analysis.batch import scaled_shape, with_one_more
from bnnopt.metadata import Key
from bnnopt.ops import InferenceError, dims, infer_types, is_view
from bnnopt.plan import MemoryPlan
from bnnopt.runtime.format import Attribute, Program, StepSpec, ValueSpec
from bnnopt.training_step import (
    PERSISTENT,
    Role,
    TrainingStep,
    is_constant,
    phase,
    role,
)

ROLES = (Role.DATA, Role.LABELS, Role.RATE, Role.SHARE, Role.STEP)


def make_program(step: TrainingStep, plan: MemoryPlan, batch_size: int) -> Program:
    """The step as values with places and steps in order."""
    values = [v for v in _values(step) if v.name]
    index = {value: i for i, value in enumerate(values)}
    shapes = scaled_shapes(step, batch_size)
    places = _places(step, plan)
    return Program(
        batch_size=batch_size,
        fixed_batch=shapes is None,
        arena_bytes=plan.arena_bytes,
        values=tuple(
            ValueSpec(
                str(value.name),
                str(stored_dtype(value).numpy()),
                dims(value) if shapes is None else shapes[value],
                *places[value],
            )
            for value in values
        ),
        steps=tuple(_step(node, index, plan, places) for node in step.graph),
        roles={kind.value: [index[value] for value in step.inputs(kind)] for kind in ROLES},
        outputs=tuple(
            index[value] for value in step.graph.outputs if Key.UPDATES not in value.metadata_props
        ),
        gradients={name: index[value] for name, value in step.gradients().items()},
        scores=-1 if step.scores is None else index[step.scores],
    )


def _values(step: TrainingStep) -> list[ir.Value]:
    made = [output for node in step.graph for output in node.outputs]
    return [*step.graph.inputs, *step.graph.initializers.values(), *made]


Place = tuple[str, int, str]


def _places(step: TrainingStep, plan: MemoryPlan) -> dict[ir.Value, Place]:
    """Kind, offset and buffer name of every value."""
    updated = {output: target for target, output in step.updates()}
    found: dict[ir.Value, Place] = {}
    for value, root in roots(step).items():
        owner = updated.get(root, root)
        if role(owner) in PERSISTENT:
            found[value] = ("persistent", 0, str(owner.name))
        elif is_constant(owner):
            found[value] = ("constant", 0, str(owner.name))
        else:
            found[value] = ("arena", plan.offsets[value], "")
    return found


def _step(
    node: ir.Node, index: dict[ir.Value, int], plan: MemoryPlan, places: dict[ir.Value, Place]
) -> StepSpec:
    offset, n_bytes = plan.workspace.get(node, (0, 0))
    source = node.inputs[0] if is_view(node) else None
    return StepSpec(
        operator=node.op_type,
        name=str(node.name),
        phase=phase(node),
        inputs=tuple(-1 if v is None else index[v] for v in node.inputs),
        outputs=tuple(index.get(v, -1) for v in node.outputs),
        attributes={name: _attribute(a) for name, a in node.attributes.items()},
        is_view=source is not None and places[source] == places[node.outputs[0]],
        workspace_offset=offset,
        workspace_bytes=n_bytes,
    )


def _attribute(attribute: ir.Attr) -> Attribute:
    """As ONNX holds it: floats rounded to float32."""
    if attribute.type == ir.AttributeType.FLOAT:
        return float(np.float32(attribute.as_float()))
    if attribute.type == ir.AttributeType.FLOATS:
        return [float(np.float32(x)) for x in attribute.as_floats()]
    if attribute.type == ir.AttributeType.INTS:
        return list(attribute.as_ints())
    if attribute.type == ir.AttributeType.INT:
        return attribute.as_int()
    return attribute.as_string()


def scaled_shapes(step: TrainingStep, batch_size: int) -> dict[ir.Value, tuple[int, ...]] | None:
    """Shapes of all values in terms of the batch; None if something ties the graph to this one."""
    try:
        larger = with_one_more(step.graph, partial(infer_types, opset=step.opset))
    except InferenceError:
        return None
    named = [value for value in _values(step) if value.name]
    shapes = {value: scaled_shape(value, larger, batch_size) for value in named}
    found = {value: shape for value, shape in shapes.items() if shape is not None}
    return found if len(found) == len(shapes) else None
