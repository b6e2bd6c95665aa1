"""How shapes depend on the batch: found by typing a graph for one more sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from bnnopt.ops import InferenceError, dims, infer_types, traits
from bnnopt.training_step import Role, TrainingStep, role


class Known(NamedTuple):
    """A value's shape, and its elements where they are known."""

    shape: ir.Shape | None
    elements: ir.TensorProtocol | None

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape as plain integers."""
        assert self.shape is not None
        return tuple(self.shape.numpy())


def with_batch(model: ir.Model, batch_size: int) -> ir.Model:
    """A copy of the model whose inputs have so many samples; nothing else is typed again."""
    copy = model.clone()
    for value in _samples(copy.graph):
        value.shape = ir.Shape((batch_size, *dims(value)[1:]))
    return copy


def with_one_more(graph: ir.Graph, work_out: Callable[[ir.Node], None]) -> dict[ir.Value, Known]:
    """What is another with one more sample, and how; the graph stays as it is.

    Parameters
    ----------
    work_out : function
        Types what a node gives, and notes elements that are known.

    Raises
    ------
    InferenceError
        If something ties the graph to its batch.
    """
    kept: dict[ir.Value, Known] = {}
    try:
        for value in _samples(graph):
            kept[value] = _known(value)
            n, *others = dims(value)
            value.shape = ir.Shape((n + 1, *others))
        for node in graph:
            if any(value in kept for value in node.inputs):
                kept |= {output: _known(output) for output in node.outputs}
                for output in node.outputs:
                    output.const_value = None
                work_out(node)
                for output in node.outputs:
                    if _are_same(kept[output], _known(output), traits(node).reads_shape):
                        output.shape, output.const_value = kept.pop(output)
        return {value: _known(value) for value in kept}
    finally:
        for value, known in kept.items():
            value.shape, value.const_value = known


def _known(value: ir.Value) -> Known:
    return Known(value.shape, value.const_value)


def _are_same(a: Known, b: Known, reads_shape: bool) -> bool:
    if a.elements is None or b.elements is None:  # a shape may be read though nobody noted it
        return a == b and not reads_shape
    return a.shape == b.shape and np.array_equal(a.elements.numpy(), b.elements.numpy())


def _samples(graph: ir.Graph) -> list[ir.Value]:
    return [value for value in graph.inputs if role(value) in (Role.DATA, Role.LABELS)]


def one_a_sample(step: TrainingStep) -> set[ir.Value]:
    """The values whose first axis is the batch: of its length, and longer with one more sample.

    The length alone says nothing: a layer may have as many outputs as there are samples. Where the
    graph is tied to its batch it is all that there is.
    """
    n = dims(step.inputs(Role.DATA)[0])[0]
    made = [value for node in step.graph for value in node.outputs if value.name]
    found = {value for value in made if dims(value)[:1] == (n,)}
    try:
        larger = with_one_more(step.graph, partial(infer_types, opset=step.opset))
    except InferenceError:
        return found
    return {v for v in found if v in larger and larger[v].dims[0] == n + 1}


def scaled(shape: Sequence[int], larger: Sequence[int], batch_size: int) -> tuple[int, ...] | None:
    """A shape with every axis that grows with the batch as ``-k``: k times the batch.

    `larger` is it with one more sample. None if an axis grows in another way.
    """
    if len(shape) != len(larger):
        return None
    found = []
    for size, more in zip(shape, larger, strict=True):
        factor = more - size
        if factor and (factor < 0 or size != factor * batch_size):
            return None
        found.append(-factor if factor else size)
    return tuple(found)


def scaled_shape(
    value: ir.Value, larger: Mapping[ir.Value, Known], batch_size: int
) -> tuple[int, ...] | None:
    """The shape of a value as `scaled` has it; `larger` is what `with_one_more` found."""
    more = larger[value].dims if value in larger else dims(value)
    return scaled(dims(value), more, batch_size)


def symbolic(shape: tuple[int, ...]) -> ir.Shape:
    """A scaled shape in ONNX terms: ``batch`` or ``k*batch`` where it grows."""
    names = {-1: "batch"}
    return ir.Shape([d if d >= 0 else names.get(d, f"{-d}*batch") for d in shape])
