"""Files that PyTorch writes, good and bad."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from bnnopt.frontend import load_forward
from bnnopt.frontend.read import EXPORT_COMMAND
from tests.autodiff.interpreter import run, session
from tests.frontend.models import rejected

torch = pytest.importorskip("torch")

from tests.exports.torch_models import (  # noqa: E402
    MODELS,
    binarize,
    export,
    input_shape,
    make_batch,
    make_model,
)
from tests.torch.modules import TrainedExponent  # noqa: E402

pytestmark = pytest.mark.oracle

OPTIONS = {"binarynet": {"width": 1 / 8}}
N = 6


def quiet_export(module: Any, x: Any, path: Path, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            return torch.onnx.export(module, (x,), str(path), **options)
        finally:
            logging.disable(logging.NOTSET)


def good_options(opset: int = 17) -> dict[str, Any]:
    """Those of the export command in the messages."""
    return {
        "dynamo": False,
        "opset_version": opset,
        "training": torch.onnx.TrainingMode.TRAINING,
        "do_constant_folding": False,
        "input_names": ["x"],
        "dynamic_axes": {"x": {0: "batch"}},
    }


def with_random_biases(path: Path) -> onnx.ModelProto:
    """Batch norm over integers gives zeros, whose sign rounding decides: move them off."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("bias"):
            values = np.random.default_rng(2).normal(0, 0.3, tensor.dims).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", [None, N])
def test_normalizing_keeps_the_function(name: str, batch: int | None, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    export(name, path, batch, **OPTIONS.get(name, {}))
    model = with_random_biases(path)
    forward = load_forward(path, N)
    x, _ = make_batch(name, N, seed=0)
    values = run(forward.graph, {"x": x, **forward.weights}, np.float32)
    got = values[str(forward.graph.outputs[0].name)]
    want = session(model.SerializeToString()).run(None, {"x": x})[0]
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-3)
    run(forward.graph, {"x": x[: N - 1], **forward.weights}, np.float32)


@pytest.mark.parametrize("opset", [13, 14, 17, 18, 20])
@pytest.mark.parametrize("name", ["residual", "relu"])
def test_good_export_in_every_opset(name: str, opset: int, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    module = make_model(name)
    quiet_export(module, torch.zeros(2, *input_shape(name)), path, **good_options(opset))
    versions = {entry.domain: entry.version for entry in onnx.load(path).opset_import}
    assert versions[""] == opset
    forward = load_forward(path, N)
    trained = {key for key, _ in module.named_parameters()}
    running = {key for key, _ in module.named_buffers() if "running" in key}
    assert set(forward.weights) == trained | running
    assert len(forward.binarized) == {"residual": 12, "relu": 0}[name]


class View(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, flatten: Callable[[Any], Any]) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.bn = torch.nn.BatchNorm2d(4)
        self.fc = torch.nn.Linear(4 * 64, 10)
        self.flatten = flatten

    def forward(self, x: Any) -> Any:
        return self.fc(self.flatten(binarize(self.bn(self.conv(x)))))


VIEWS: dict[str, Callable[[Any], Any]] = {
    "view(x.size(0), -1)": lambda x: x.view(x.size(0), -1),
    "view(-1, n)": lambda x: x.view(-1, 4 * 64),
    "reshape(x.shape[0], n)": lambda x: x.reshape(x.shape[0], 4 * 64),
    "flatten": lambda x: torch.flatten(x, 1),
    "computed": lambda x: x.view(x.size(0), x.size(1) * x.size(2) * x.size(3)),
    "fixed": lambda x: x.view(2, -1),
    "shuffle": lambda x: (
        x.view(x.size(0), 2, 2, 8, 8).transpose(1, 2).contiguous().view(x.size(0), -1)
    ),
    "expand": lambda x: (x.mean((2, 3), keepdim=True).expand(-1, -1, 8, 8) + x).flatten(1),
    "slice": lambda x: torch.cat([x[:, :2], x[:, 2:]], 1).flatten(1),
    "pad": lambda x: torch.nn.functional.pad(x[:, :, 1:-1, 1:-1], (1, 1, 1, 1)).flatten(1),
}


@pytest.mark.parametrize("view", VIEWS)
def test_views(view: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    module = View(VIEWS[view]).train()
    options = good_options()
    batch = 2
    if view == "fixed":
        del options["dynamic_axes"]
    else:
        batch = 5
    quiet_export(module, torch.zeros(2, 3, 8, 8), path, **options)
    forward = load_forward(path, batch)
    x = np.random.default_rng(0).standard_normal((batch, 3, 8, 8)).astype(np.float32)
    want = session(path.read_bytes()).run(None, {"x": x})[0]
    values = run(forward.graph, {"x": x, **forward.weights}, np.float32)
    np.testing.assert_allclose(values[str(forward.graph.outputs[0].name)], want, atol=1e-4)
    values = run(forward.graph, {"x": x[: batch - 1], **forward.weights}, np.float32)
    assert values[str(forward.graph.outputs[0].name)].shape == (batch - 1, 10)


def test_a_batch_that_tracing_wrote_down_is_rejected(tmp_path: Path) -> None:
    """``len(x)`` is a number to the tracer: the file reshapes to the batch of the example."""
    path = tmp_path / "net.onnx"
    module = View(lambda x: x.view(len(x), -1)).train()
    quiet_export(module, torch.zeros(2, 3, 8, 8), path, **good_options())
    assert load_forward(path, 2).batch_size == 2
    rejected(path, "net.onnx: node '/fc/Gemm'", batch_size=5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("optimize", [True, False])
def test_dynamo_export_is_rejected(name: str, optimize: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    path = tmp_path / "net.onnx"
    module = make_model(name, **OPTIONS.get(name, {}))
    x = torch.zeros(2, *input_shape(name))
    quiet_export(module, x, path, dynamo=True, optimize=optimize, verbose=False)
    text = rejected(path, "net.onnx: ")
    assert text.endswith(f"export with {EXPORT_COMMAND}")


@pytest.mark.parametrize("name", MODELS)
def test_export_in_evaluation_mode_is_rejected(name: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    module = make_model(name, **OPTIONS.get(name, {})).eval()
    options = {**good_options(), "training": torch.onnx.TrainingMode.PRESERVE}
    quiet_export(module, torch.zeros(2, *input_shape(name)), path, **options)
    text = rejected(path, "net.onnx: node ", "BatchNormalization", "inference mode")
    assert text.endswith(f"export with {EXPORT_COMMAND}")


@pytest.mark.parametrize("name", ["mlp", "relu"])
def test_the_command_in_the_message_works(name: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    scope = {
        "torch": torch,
        "model": make_model(name),
        "x": torch.zeros(2, *input_shape(name)),
        "file": str(path),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        eval(EXPORT_COMMAND, scope)
    assert load_forward(path, N).batch_size == N


def test_an_exponent_that_pytorch_writes_as_an_initializer_is_trained(tmp_path: Path) -> None:
    """Generalised mean pooling; a constant exponent is a node."""
    module = TrainedExponent().train()
    path = tmp_path / "net.onnx"
    quiet_export(module, torch.rand(2, 20), path, **good_options())
    assert load_forward(path, 2).weights.keys() == dict(module.named_parameters()).keys()
