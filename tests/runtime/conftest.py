"""Oracles for single operators: onnx's reference evaluator and stock onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

Array = NDArray[Any]
Oracle = Callable[..., list[Array]]


def single_node_model(
    op: str,
    inputs: Sequence[Array | None],
    attributes: Mapping[str, Any],
    output_dtypes: Sequence[np.dtype[Any]],
    opset: int,
) -> onnx.ModelProto:
    names = ["" if x is None else f"x{i}" for i, x in enumerate(inputs)]
    results = [f"y{i}" for i in range(len(output_dtypes))]
    protos = {
        name: numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
        for name, value in attributes.items()
    }
    node = helper.make_node(op, names, results, **protos)
    graph = helper.make_graph(
        [node],
        op,
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for name, x in zip(names, inputs, strict=True)
            if x is not None
        ],
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), None)
            for name, dtype in zip(results, output_dtypes, strict=True)
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def _feeds(inputs: Sequence[Array | None]) -> dict[str, Array]:
    return {f"x{i}": x for i, x in enumerate(inputs) if x is not None}


@pytest.fixture(scope="session")
def reference() -> Oracle:
    """Run one operator on onnx's reference evaluator."""

    def run(
        op: str,
        inputs: Sequence[Array | None],
        attributes: Mapping[str, Any],
        output_dtypes: Sequence[np.dtype[Any]],
        opset: int = 18,
    ) -> list[Array]:
        model = single_node_model(op, inputs, attributes, output_dtypes, opset)
        with np.errstate(all="ignore"):
            return [np.asarray(y) for y in ReferenceEvaluator(model).run(None, _feeds(inputs))]

    return run


@pytest.fixture(scope="session")
def stock() -> Oracle:
    """Run one operator on stock onnxruntime, which also checks the dtypes of the outputs."""

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3

    def run(
        op: str,
        inputs: Sequence[Array | None],
        attributes: Mapping[str, Any],
        output_dtypes: Sequence[np.dtype[Any]],
        opset: int = 18,
    ) -> list[Array]:
        model = single_node_model(op, inputs, attributes, output_dtypes, opset)
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return [np.asarray(y) for y in session.run(None, _feeds(inputs))]

    return run
