"""One training step without any pass against PyTorch autograd on the same exported file."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bnnopt.autodiff import TrainingOptions, build_training_step, make_optimizer
from bnnopt.frontend import load_forward
from bnnopt.ops import dims
from bnnopt.training_step import Role, TrainingStep
from tests.autodiff.interpreter import run, stock

torch = pytest.importorskip("torch")

from tests.exports.torch_models import (  # noqa: E402
    FOR_BENCHMARKS,
    MODELS,
    export,
    make_batch,
    randomize_biases,
)

pytestmark = pytest.mark.oracle

Array = NDArray[Any]
BATCH = 8
OPTIONS = {"binarynet": {"width": 1 / 8}, "binary-depthwise": {"width": 8}}
LEAST_COSINE = 0.9999
NORM_BOUND = 1e-3


@dataclass
class Result:
    """The loss, the gradients and the next running statistics of one step."""

    loss: float
    gradients: dict[str, Array]
    statistics: dict[str, Array]


def exported(name: str, path: Path) -> Any:
    """A module and its file, with random biases in both."""
    module = export(name, path, **OPTIONS.get(name, {}))
    randomize_biases(module, path)
    return module


def torch_step(module: Any, x: Array, labels: Array) -> Result:
    loss = torch.nn.functional.cross_entropy(module(torch.from_numpy(x)), torch.from_numpy(labels))
    loss.backward()
    gradients = {name: p.grad.numpy() for name, p in module.named_parameters()}
    statistics = {name: b.numpy() for name, b in module.named_buffers() if "running" in name}
    return Result(loss.item(), gradients, statistics)


def our_step(path: Path, x: Array, labels: Array, ste: str = "clipped") -> tuple[Result, Any]:
    forward = load_forward(path, len(x), (ste,))
    options = TrainingOptions("cross-entropy", make_optimizer("sgd", momentum=0))
    step = build_training_step(forward, options, path)
    gradients = {name: str(value.name) for name, value in step.gradients().items()}
    statistics = {
        str(target.name): str(output.name)
        for target, output in step.updates()
        if target in step.inputs(Role.STATISTIC)
    }
    wanted = [str(step.loss.name), *gradients.values(), *statistics.values()]
    feeds = {"x": x, "labels": labels, "learning_rate": np.float32(0), **forward.weights}
    found = dict(zip(wanted, stock(step.model, wanted)(feeds), strict=True))
    result = Result(
        float(found[wanted[0]]),
        {name: found[value] for name, value in gradients.items()},
        {name: found[value] for name, value in statistics.items()},
    )
    return result, step


def assert_gradients_agree(got: Mapping[str, Array], want: Mapping[str, Array]) -> None:
    assert got.keys() == want.keys()
    for name, ours in got.items():
        theirs = want[name]
        assert ours.shape == theirs.shape
        norm = float(np.linalg.norm(theirs))
        if norm < 1e-6:  # in front of a batch norm a bias has no effect
            assert np.abs(ours).max() < 1e-6, name
            continue
        cosine = float(np.vdot(ours, theirs)) / (float(np.linalg.norm(ours)) * norm)
        assert cosine >= LEAST_COSINE, (name, cosine)
        assert float(np.linalg.norm(ours - theirs)) <= NORM_BOUND * norm, name


def counts(step: TrainingStep) -> dict[str, int]:
    """Elements that a running variance averages, by its name."""
    return {
        str(node.inputs[4].name): int(np.prod(dims(node.inputs[0]))) // dims(node.inputs[0])[1]
        for node in step.graph
        if node.op_type == "BatchNormalizationTraining" and node.inputs[4] is not None
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_one_step_agrees(name: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    module = exported(name, path)
    old = {key: value.numpy().copy() for key, value in module.state_dict().items()}
    x, labels = make_batch(name, BATCH, seed=3)
    want = torch_step(module, x, labels)
    got, step = our_step(path, x, labels)
    assert got.loss == pytest.approx(want.loss, abs=1e-4)
    assert_gradients_agree(got.gradients, want.gradients)
    n = counts(step)
    assert got.statistics.keys() == want.statistics.keys()
    for key, ours in got.statistics.items():
        if key in n:  # PyTorch keeps the unbiased variance, ONNX the biased
            kept = 0.9 * old[key]
            ours = kept + (ours - kept) * n[key] / (n[key] - 1)
        np.testing.assert_allclose(ours, want.statistics[key], rtol=1e-4, atol=1e-4, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MODELS, *FOR_BENCHMARKS])
def test_one_step_agrees_in_float64(name: str, tmp_path: Path) -> None:
    """Where rounding flips no sign, all that is left is the formulas."""
    path = tmp_path / "net.onnx"
    module = exported(name, path).double()
    x, labels = make_batch(name, BATCH, seed=1)
    want = torch_step(module, x.astype(np.float64), labels)
    forward = load_forward(path, BATCH)
    options = TrainingOptions("cross-entropy", make_optimizer("sgd", momentum=0))
    step = build_training_step(forward, options, path)
    feeds = {"x": x, "labels": labels, "learning_rate": np.float64(0), **forward.weights}
    values = run(step.graph, feeds)
    assert float(values[str(step.loss.name)]) == pytest.approx(want.loss, rel=1e-9)
    for key, value in step.gradients().items():
        difference = np.linalg.norm(values[str(value.name)] - want.gradients[key])
        assert difference <= 1e-9 * np.linalg.norm(want.gradients[key]), key


@pytest.mark.slow
@pytest.mark.parametrize("ste", ["identity", "approx-sign", "swish-sign"])
def test_another_estimator_is_rejected(ste: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    module = exported("mlp", path)
    x, labels = make_batch("mlp", BATCH, seed=3)
    want = torch_step(module, x, labels)
    got, _ = our_step(path, x, labels, ste)
    assert got.loss == pytest.approx(want.loss, abs=1e-4)
    with pytest.raises(AssertionError):
        assert_gradients_agree(got.gradients, want.gradients)


def test_another_batch_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    module = exported("relu", path)
    x, labels = make_batch("relu", BATCH, seed=3)
    want = torch_step(module, x, labels)
    x[0, 0, 0, 0] += 1
    got, _ = our_step(path, x, labels)
    with pytest.raises(AssertionError):
        assert_gradients_agree(got.gradients, want.gradients)


def test_a_convolution_bias_in_front_of_batch_norm(tmp_path: Path) -> None:
    """Its gradient is zero but for rounding, in PyTorch as here."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(),
        torch.nn.Linear(4 * 36, 10),
    ).train()  # fmt: skip
    path = tmp_path / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (torch.zeros(2, 3, 8, 8),),
            str(path),
            dynamo=False,
            opset_version=17,
            training=torch.onnx.TrainingMode.TRAINING,
            do_constant_folding=False,
            input_names=["x"],
            dynamic_axes={"x": {0: "batch"}},
        )
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (BATCH, 3, 8, 8)).astype(np.float32)
    labels = rng.integers(0, 10, BATCH)
    want = torch_step(module, x, labels)
    got, _ = our_step(path, x, labels)
    assert got.loss == pytest.approx(want.loss, abs=1e-4)
    assert float(np.abs(want.gradients["0.bias"]).max()) < 1e-6
    assert_gradients_agree(got.gradients, want.gradients)
