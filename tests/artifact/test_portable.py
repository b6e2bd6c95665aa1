"""Graphs for stock onnxruntime: standard operators, any batch, and the order that saves memory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from bnnopt.artifact import portable_model
from bnnopt.models import names
from bnnopt.training_step import TrainingStep
from tests.graphs import (
    SAME_KERNELS,
    Network,
    assert_bit_equal,
    feeds_of,
    initial,
    network,
    run_native,
    run_stock,
    zoo,
)
from tests.passes.networks import small

ALL = SAME_KERNELS
SILENT = {"Shape", "Size"}  # onnxruntime may run these, which hold no memory, at another time


def saved(net: Network, folder: Path, *passes: str) -> Path:
    path = folder / "step.onnx"
    ir.save(portable_model(net.with_passes(*passes), net.batch), path)
    return path


def executed(path: Path, net: Network, order: ort.ExecutionOrder, folder: Path) -> list[str]:
    """Names of the nodes in the order in which onnxruntime ran them, from its own profile."""
    options = ort.SessionOptions()
    options.execution_order = order
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / order.name)
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    step = net.step()
    feeds = {**initial(step, net.weights), **feeds_of(step, 1)}
    session.run(None, {v.name: feeds[v.name] for v in session.get_inputs()})
    events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    kernels.sort(key=lambda event: event["ts"])
    return [
        event["name"].removesuffix("_kernel_time")
        for event in kernels
        if event["args"]["op_name"] not in SILENT
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet-e-mini", "binary", "float", "dense", "dropout"])
def test_only_standard_operators_and_a_valid_model(name: str, tmp_path: Path) -> None:
    net = zoo(name) if name in names() else small(name, optimizer="adam")
    model = onnx.load(saved(net, tmp_path, *ALL))
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert {entry.domain for entry in model.opset_import} <= {"", "ai.onnx"}
    assert not model.functions
    operators = {node.op_type for node in model.graph.node}
    assert "CastLike" not in operators
    assert "Constant" not in operators
    data = next(v for v in model.graph.input if v.name == "x")
    assert data.type.tensor_type.shape.dim[0].dim_param == "batch"


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_any_batch_up_to_the_planned_one_runs(batch: int) -> None:
    net, exact = small("binary"), small("binary", batch=batch)
    found = run_stock(net, net.with_passes(*ALL), batch=batch)
    assert_bit_equal(found, run_stock(exact, exact.step()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["binary", "float", "cnv"])
def test_nodes_run_in_their_stored_order_and_the_default_packs_late(
    name: str, tmp_path: Path
) -> None:
    """The order trap: by default onnxruntime packs a value only when its unpacking is due."""
    net = zoo(name, 2) if name in names() else small(name)
    path = saved(net, tmp_path, *ALL)
    model = onnx.load(path)
    operator = {node.name: node.op_type for node in model.graph.node}
    stored = [node.name for node in model.graph.node if node.op_type not in SILENT]
    by_priority = executed(path, net, ort.ExecutionOrder.PRIORITY_BASED, tmp_path)
    assert by_priority == stored
    by_default = executed(path, net, ort.ExecutionOrder.DEFAULT, tmp_path)
    assert sorted(by_default) == sorted(stored)
    packs = [node for node in stored if operator[node] == "MatMulInteger" and "Pack" in node]
    packs = packs or [node for node in stored if operator[node] == "MatMulInteger"]
    delays = [by_default.index(node) - stored.index(node) for node in packs]
    assert max(delays) > 5  # its place is behind the forward pass


def test_the_network_is_left_as_it_was() -> None:
    step = small("binary").with_passes(*ALL)
    before = str(ir.to_proto(step.model))
    portable_model(step, 4)
    assert str(ir.to_proto(step.model)) == before


FIXED = """g (float[batch,6] x) => (float[batch,6] y) {
    shape = Constant <value_ints = [6, 4]> ()
    back = Constant <value_ints = [4, 6]> ()
    h = MatMul (x, w)
    t = Reshape (h, shape)
    r = Relu (t)
    y = Reshape (r, back)
}"""


def test_a_graph_that_is_tied_to_its_batch_keeps_it(tmp_path: Path) -> None:
    net = network(FIXED, {"w": [6, 6]}, loss="mse")
    assert_bit_equal(run_stock(net, net.with_passes(*ALL)), run_stock(net, net.step()))
    model = onnx.load(saved(net, tmp_path, *ALL))
    data = next(v for v in model.graph.input if v.name == "x")
    assert data.type.tensor_type.shape.dim[0].dim_value == 4
    found, expected = run_native(net, net.step()), run_stock(net, net.step())
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5)


NORMALIZED = """g (float[batch,6] x) => (float[batch,6] y) {
    scale = Constant <value = float[6] {1, 1, 1, 1, 1, 1}> ()
    h, m1, v1 = BatchNormalization <training_mode = 1> (x, scale, b, m, var)
    y = MatMul (h, w)
}"""


def test_what_a_function_goes_on_to_read_may_be_left_out_by_its_call() -> None:
    """The mean of a batch norm of the input, whose gradient nobody asks for."""
    net = network(NORMALIZED, {"b": [6], "m": [6], "var": [6], "w": [6, 6]}, loss="mse")
    model = portable_model(net.with_passes("l1-batch-norm"), net.batch)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_an_evaluation_graph(tmp_path: Path) -> None:
    net = small("binary")
    model = portable_model(net.evaluation_step(), net.batch)
    path = tmp_path / "evaluation.onnx"
    ir.save(model, path)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    step = TrainingStep(net.evaluation)
    feeds = {**initial(step, net.weights), **feeds_of(step, 1, 3)}
    (y,) = session.run(None, {v.name: feeds[v.name] for v in session.get_inputs()})
    assert y.shape == (3, 3)
