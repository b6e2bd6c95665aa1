"""Runs a graph with the numpy kernels in one float type, and on stock onnxruntime in float32."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx_ir.passes.common import InlinePass

from bnnopt.runtime.kernels.reference.table import KERNELS as NUMPY_KERNELS

Array = NDArray[Any]
Kernel = Callable[..., Any]


def forward_batch_norm(
    x: Array,
    scale: Array,
    bias: Array,
    mean: Array,
    var: Array,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> tuple[Array, ...]:
    """BatchNormalization, from its formula in the ONNX specification."""
    axes = (0, *range(2, x.ndim))
    column = (-1,) + (1,) * (x.ndim - 2)
    if not training_mode:
        unit = (x - mean.reshape(column)) / np.sqrt(var.reshape(column) + epsilon)
        return (unit * scale.reshape(column) + bias.reshape(column),)
    batch_mean, batch_var = x.mean(axis=axes), x.var(axis=axes)
    unit = (x - batch_mean.reshape(column)) / np.sqrt(batch_var.reshape(column) + epsilon)
    y = unit * scale.reshape(column) + bias.reshape(column)
    running = (mean, batch_mean), (var, batch_var)
    return y, *(old * momentum + new * (1 - momentum) for old, new in running)


KERNELS: dict[str, Kernel] = {
    **NUMPY_KERNELS,
    "BatchNormalization": forward_batch_norm,
}


def attributes(node: ir.Node) -> dict[str, Any]:
    """Attributes as plain Python values, floats as the model holds them."""
    values = {name: attribute.value for name, attribute in node.attributes.items()}
    return {k: float(np.float32(v)) if isinstance(v, float) else v for k, v in values.items()}


def run(
    graph: ir.Graph,
    feeds: Mapping[str, Array],
    kind: type[np.floating[Any]] = np.float64,
    replaced: Mapping[str, Kernel] | None = None,
) -> dict[str, Array]:
    """Every value of the graph, floats in `kind`; `replaced` kernels go before the numpy ones."""
    kernels = {**KERNELS, **(replaced or {})}
    constants = {n: v.const_value.numpy() for n, v in graph.initializers.items() if v.const_value}
    values = {name: _in(kind, array) for name, array in {**constants, **feeds}.items()}
    for node in graph:
        inputs = [None if v is None else values[v.name] for v in node.inputs]
        options = attributes(node)
        if node.op_type == "Cast" and options["to"] in (1, 11):
            options["to"] = int(ir.DataType.from_numpy(np.dtype(kind)))
        result = kernels[node.op_type](*inputs, **options)
        results = result if isinstance(result, (tuple, list)) else (result,)
        values |= {v.name: r for v, r in zip(node.outputs, results, strict=False) if v.name}
    return values


def _in(kind: type[np.floating[Any]], array: Array) -> Array:
    return array.astype(kind) if array.dtype.kind == "f" else array


@functools.cache
def _options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return options


def session(content: bytes | str) -> ort.InferenceSession:
    return ort.InferenceSession(content, _options(), providers=["CPUExecutionProvider"])


def stock(model: ir.Model, names: Sequence[str]) -> Callable[[Mapping[str, Array]], list[Array]]:
    """Stock onnxruntime on a copy of the model: feeds of any batch size to the named values."""
    copy = InlinePass()(model.clone()).model
    graph = copy.graph
    by_name = {v.name: v for v in graph.inputs} | {v.name: v for n in graph for v in n.outputs}
    graph.outputs[:] = [by_name[name] for name in names]
    for value in graph.inputs:
        if value.metadata_props["role"] in ("data", "labels"):
            value.shape = ir.Shape([None] * len(value.shape or ()))
    for node in graph:  # the shapes of values hold at the built batch only
        for value in node.outputs:
            value.shape = None
    running = session(ir.to_proto(copy).SerializeToString())
    wanted = {value.name for value in running.get_inputs()}
    return lambda feeds: running.run(
        list(names), {n: np.asarray(a) for n, a in feeds.items() if n in wanted}
    )


def central_difference(f: Callable[[Array], float], x: Array, step: float = 1e-5) -> Array:
    """The gradient of a scalar function at x, element by element."""
    gradient = np.zeros(x.shape, np.float64)
    for index in np.ndindex(x.shape):
        ahead, behind = x.copy(), x.copy()
        ahead[index] += step
        behind[index] -= step
        gradient[index] = (f(ahead) - f(behind)) / (2 * step)
    return gradient
