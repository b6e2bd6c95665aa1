"""The 18-layer networks against twins written by hand in PyTorch: losses and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from bnnopt.autodiff import TrainingOptions, build_training_step, make_optimizer
from bnnopt.frontend import load_forward
from bnnopt.models import build
from tests.autodiff.interpreter import run
from tests.zoo import EIGHTEEN, SIZES

torch = pytest.importorskip("torch")
F = torch.nn.functional

pytestmark = pytest.mark.oracle
BATCH, SIZE = 4, 64
EPSILON = float(np.float32(1e-5))  # as the file holds it


class BinarySign(torch.autograd.Function):  # type: ignore[name-defined, misc]
    """sign(x) with sign(0) = +1; dx = dy where |x| <= 1, or dy * max(2 - 2|x|, 0)."""

    @staticmethod
    def forward(ctx: Any, x: Any, approximate: bool) -> Any:
        ctx.save_for_backward(x)
        ctx.approximate = approximate
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,) = ctx.saved_tensors
        slope = (2 - 2 * x.abs()).clamp(min=0) if ctx.approximate else x.abs() <= 1
        return grads[0] * slope, None


class Twin:
    """A functional forward pass over parameters under the file's names."""

    def __init__(self, parameters: dict[str, Any], bi_real: bool) -> None:
        self.p, self.bi_real = parameters, bi_real

    def loss(self, x: Any, labels: Any) -> Any:
        x = x if self.bi_real else self.norm(x, "stem.bn0")
        x = F.conv2d(x, self.p["stem.conv.weight"], stride=2, padding=3)
        x = self.norm(x, "stem.bn1")
        x = x if self.bi_real else F.relu(x)
        x = self.norm(F.max_pool2d(x, 3, 2, 1), "stem.bn2")
        for i in range(1, 17):
            x = self.block(x, f"block{i}", widens=i in (5, 9, 13))
        x = x if self.bi_real else F.relu(x)
        logits = F.linear(x.mean((2, 3)), self.p["fc.weight"], self.p["fc.bias"])
        return F.cross_entropy(logits, labels)

    def block(self, x: Any, name: str, widens: bool) -> Any:
        weight = self.p[f"{name}.conv.weight"]
        binary = BinarySign.apply(weight, False)
        if self.bi_real:
            binary = binary * weight.abs().mean((1, 2, 3), keepdim=True)
        signs = BinarySign.apply(x, self.bi_real)
        y = self.norm(F.conv2d(signs, binary, stride=2 if widens else 1, padding=1), f"{name}.bn")
        if widens:
            pooled = F.avg_pool2d(x, 2)
            x = self.norm(
                F.conv2d(pooled, self.p[f"{name}.shortcut.conv.weight"]), f"{name}.shortcut.bn"
            )
        return y + x

    def norm(self, x: Any, name: str) -> Any:
        return F.batch_norm(x, None, None, bias=self.p[f"{name}.bias"], training=True, eps=EPSILON)


def ours(name: str, path: Path, x: Any, labels: Any, ste: list[str]) -> tuple[Any, Any, Any]:
    """Loss and gradients in float64, from biases that are not 0, and the parameters."""
    ir.save(build(name, **SIZES | {"size": SIZE}), path)
    forward = load_forward(path, BATCH, ste)
    step = build_training_step(
        forward, TrainingOptions("cross-entropy", make_optimizer("sgd", momentum=0)), path
    )
    random = np.random.default_rng(4)
    weights = {
        key: random.normal(0, 0.3, array.shape) if key.endswith("bias") else np.float64(array)
        for key, array in forward.weights.items()
    }
    feeds = {"x": x, "labels": labels, "learning_rate": np.float64(0), **weights}
    values = run(step.graph, feeds)
    gradients = {key: values[str(value.name)] for key, value in step.gradients().items()}
    return float(values[str(step.loss.name)]), gradients, weights


def largest_difference(name: str, path: Path, ste: list[str]) -> float:
    random = np.random.default_rng(1)
    x, labels = random.uniform(-1, 1, (BATCH, 3, SIZE, SIZE)), random.integers(0, 10, BATCH)
    loss, gradients, weights = ours(name, path, x, labels, ste)
    parameters = {
        key: torch.tensor(array, requires_grad=True)
        for key, array in weights.items()
        if "running" not in key
    }
    expected = Twin(parameters, name == "bi-real-18").loss(torch.tensor(x), torch.tensor(labels))
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-9)
    assert gradients.keys() == parameters.keys()
    differences = []
    for key, gradient in gradients.items():
        theirs = parameters[key].grad.numpy()
        norm = max(float(np.linalg.norm(theirs)), 1e-3)  # a bias without effect has gradient 0
        differences.append(float(np.linalg.norm(gradient - theirs)) / norm)
    return max(differences)


@pytest.mark.parametrize("name", EIGHTEEN)
def test_one_step_agrees(name: str, tmp_path: Path) -> None:
    assert largest_difference(name, tmp_path / "net.onnx", []) < 1e-9


@pytest.mark.parametrize("name", EIGHTEEN)
def test_another_estimator_is_rejected(name: str, tmp_path: Path) -> None:
    other = {"resnet-e-18": "approx-sign", "bi-real-18": "clipped"}[name]
    assert largest_difference(name, tmp_path / "net.onnx", [f"block1.sign={other}"]) > 1e-3
