"""How shapes depend on the batch: found by typing a graph for one more sample."""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.ops import InferenceError, dims, infer_types
from bnnopt.training_step import Role, TrainingStep, role


def with_batch(model: ir.Model, batch_size: int) -> ir.Model:
    """A copy of the model whose inputs have so many samples; nothing else is typed again."""
    copy = model.clone()
    for value in copy.graph.inputs:
        if role(value) in (Role.DATA, Role.LABELS):
            value.shape = ir.Shape((batch_size, *dims(value)[1:]))
    return copy


def one_a_sample(step: TrainingStep) -> set[ir.Value]:
    """The values whose first axis is the batch: of its length, and longer with one more sample.

    The length alone says nothing: a layer may have as many outputs as there are samples. Where the
    graph is tied to its batch it is all that there is.
    """
    n = dims(step.inputs(Role.DATA)[0])[0]
    larger = TrainingStep(with_batch(step.model, n + 1))
    made = [value for node in step.graph for value in node.outputs if value.name]
    found = {value for value in made if dims(value)[:1] == (n,)}
    try:
        for node in larger.graph:
            infer_types(node, step.opset)
    except InferenceError:
        return found
    twins = [value for node in larger.graph for value in node.outputs if value.name]
    pairs = zip(made, twins, strict=True)
    return {value for value, twin in pairs if value in found and dims(twin)[0] == n + 1}


def scaled(value: ir.Value, larger: ir.Value, batch_size: int) -> tuple[int, ...] | None:
    """The shape of a value with every axis that grows with the batch as ``-k``: k times the batch.

    `larger` is the same value in the larger graph. None if an axis grows in another way.
    """
    if len(dims(value)) != len(dims(larger)):
        return None
    shape = []
    for size, more in zip(dims(value), dims(larger), strict=True):
        factor = more - size
        if factor and (factor < 0 or size != factor * batch_size):
            return None
        shape.append(-factor if factor else size)
    return tuple(shape)


def symbolic(shape: tuple[int, ...]) -> ir.Shape:
    """A scaled shape in ONNX terms: ``batch`` or ``k*batch`` where it grows."""
    names = {-1: "batch"}
    return ir.Shape([d if d >= 0 else names.get(d, f"{-d}*batch") for d in shape])
