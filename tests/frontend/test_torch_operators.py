"""Modules that people have, exported by PyTorch, against its own gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnnopt.autodiff import TrainingOptions, build_training_step, make_optimizer
from bnnopt.frontend import load_forward
from tests.autodiff.interpreter import run

torch = pytest.importorskip("torch")
nn = torch.nn

pytestmark = pytest.mark.oracle
BOUND = 2e-4  # relative, of float32 in another order


class First(nn.Module):  # type: ignore[misc, name-defined]
    """The first result of a recurrent layer."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Any) -> Any:
        return self.layer(x)[0]


class Function(nn.Module):  # type: ignore[misc, name-defined]
    """A function between two trained layers."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 4))
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x * self.scale)


class Attention(nn.Module):  # type: ignore[misc, name-defined]
    """Of a layer's own keys and queries, which it unbinds."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 3 * 4)

    def forward(self, x: Any) -> Any:
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 4).permute(2, 0, 1, 3)
        return torch.softmax(q @ k.transpose(1, 2) / 2, -1) @ v, q


def assigned(x: Any) -> Any:
    y = 2 * x
    y[:, 1:3] = x[:, :2] * x[:, 2:]
    return y


IMAGE, SEQUENCE, ROWS = (2, 3, 6, 4), (3, 5, 4), (3, 4)
MODULES: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "group-norm": (lambda: nn.GroupNorm(3, 6), (2, 6, 4, 4)),
    "instance-norm": (lambda: nn.InstanceNorm2d(3, affine=True), IMAGE),
    "layer-norm": (lambda: nn.LayerNorm(4), ROWS),
    "layer-norm-no-bias": (lambda: nn.LayerNorm(4, bias=False), ROWS),
    "layer-norm-planes": (lambda: nn.LayerNorm((5, 4)), SEQUENCE),
    "gelu": (lambda: Function(nn.functional.gelu), ROWS),
    "gelu-tanh": (lambda: Function(lambda x: nn.functional.gelu(x, approximate="tanh")), ROWS),
    "softmax": (lambda: Function(lambda x: torch.softmax(x, 0) * x), ROWS),
    "prelu": (lambda: nn.Sequential(nn.Conv2d(3, 2, 1), nn.PReLU(2)), IMAGE),
    "unbind": (lambda: Function(lambda x: torch.stack(x.unbind(1)[::-1]) * 2), ROWS),
    "attention": (lambda: First(Attention()), SEQUENCE),
    "transpose": (lambda: nn.ConvTranspose2d(3, 4, 3, 2, 1, output_padding=1), IMAGE),
    "transpose-groups": (lambda: nn.ConvTranspose2d(3, 6, 2, 2, groups=3), IMAGE),
    "transpose-1d": (lambda: nn.ConvTranspose1d(5, 2, 3, 2), SEQUENCE),
    **{
        f"upsample-{mode}-{corners}": (
            lambda mode=mode, corners=corners: nn.Sequential(
                nn.Conv2d(3, 2, 1), nn.Upsample(scale_factor=2, mode=mode, align_corners=corners)
            ),
            IMAGE,
        )
        for mode, corners in (
            ("nearest", None),
            ("bilinear", False),
            ("bilinear", True),
            ("bicubic", False),
        )
    },
    "upsample-size": (
        lambda: nn.Sequential(nn.Conv2d(3, 2, 1), nn.Upsample(size=(7, 9), mode="bilinear")),
        IMAGE,
    ),
    "pixel-shuffle": (lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.PixelShuffle(2)), IMAGE),
    "pixel-unshuffle": (lambda: nn.Sequential(nn.Conv2d(3, 2, 1), nn.PixelUnshuffle(2)), IMAGE),
    "lstm": (lambda: First(nn.LSTM(4, 3, batch_first=True)), SEQUENCE),
    "lstm-deep": (lambda: First(nn.LSTM(4, 3, 2, batch_first=True, bidirectional=True)), SEQUENCE),
    "lstm-no-bias": (lambda: First(nn.LSTM(4, 3, bias=False, batch_first=True)), SEQUENCE),
    "gru": (lambda: First(nn.GRU(4, 3, batch_first=True)), SEQUENCE),
    "gru-deep": (lambda: First(nn.GRU(4, 3, 2, batch_first=True, bidirectional=True)), SEQUENCE),
    "rnn": (lambda: First(nn.RNN(4, 3, batch_first=True)), SEQUENCE),
    "rnn-relu": (lambda: First(nn.RNN(4, 3, nonlinearity="relu", batch_first=True)), SEQUENCE),
    "reflection": (lambda: nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReflectionPad2d(1)), IMAGE),
    "replication": (lambda: nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReplicationPad2d(2)), IMAGE),
    "max-pool": (lambda: nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveMaxPool2d(1)), IMAGE),
    "amax-of-equal-ones": (lambda: Function(lambda x: torch.relu(x - 1).amax(1)), ROWS),
    "product-with-zeros": (lambda: Function(lambda x: torch.relu(x + 0.5).prod(1)), (6, 4)),
    "log-sum-exp": (lambda: Function(lambda x: torch.logsumexp(x, 1)), ROWS),
    "power": (lambda: Function(lambda x: torch.relu(x) ** (1 + torch.exp(x))), ROWS),
    "slice-assignment": (lambda: Function(assigned), ROWS),
    "top-k": (lambda: Function(lambda x: torch.topk(x, 2, 1)[0]), ROWS),
    "running-sum": (lambda: Function(lambda x: torch.cumsum(x, 1)), ROWS),
    "repeat": (lambda: Function(lambda x: x.repeat(1, 3)), ROWS),
}


def exported(module: Any, x: Any, path: Path) -> None:
    torch.onnx.export(
        module,
        x,
        str(path),
        dynamo=False,
        opset_version=17,
        training=torch.onnx.TrainingMode.TRAINING,
        do_constant_folding=False,
        input_names=["x"],
        output_names=["y"],
        dynamic_axes={"x": {0: "batch"}},
    )


@pytest.mark.parametrize("name", MODULES)
def test_agrees_with_pytorch(name: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    make, shape = MODULES[name]
    module, x = make().train(), torch.randn(shape)
    exported(module, x, tmp_path / "net.onnx")
    y = module(x)
    target = torch.randn(y.shape)
    loss = nn.functional.mse_loss(y, target)
    loss.backward()
    forward = load_forward(tmp_path / "net.onnx", shape[0])
    options = TrainingOptions("mse", make_optimizer("sgd", momentum=0))
    step = build_training_step(forward, options, tmp_path)
    feeds = {"x": x.numpy(), "targets": target.numpy(), "learning_rate": np.float32(0)}
    values = run(step.graph, {**feeds, **forward.weights}, np.float32)
    assert float(values[str(step.loss.name)]) == pytest.approx(loss.item(), rel=1e-5)
    right = {n: p.grad.numpy() for n, p in module.named_parameters()}
    found = step.gradients()
    if not any(name.startswith(kind) for kind in ("lstm", "gru", "rnn")):
        assert found.keys() == right.keys()
        for key, value in found.items():
            assert_near(values[str(value.name)], right[key], key)
    else:  # the exporter orders the gates and joins the directions anew
        norms = [sum(float((a**2).sum()) for a in part) for part in (
            [values[str(value.name)] for value in found.values()], right.values())]  # fmt: skip
        assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def assert_near(got: Any, want: Any, what: str) -> None:
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= BOUND * max(np.abs(want).max(), 1e-3), what
