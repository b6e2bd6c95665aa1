"""The comparison with PyTorch finds what is wrong, and weights come back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import bnnopt
from bnnopt.cli.commands import cli
from bnnopt.errors import UsageError, VerificationError

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import bnnopt.torch  # noqa: E402
from tests.torch.modules import VECTORS, Dense, function, make  # noqa: E402

pytestmark = pytest.mark.oracle
BATCH = torch.randn(VECTORS, generator=torch.Generator().manual_seed(3))


def net(bound: float) -> nn.Module:
    torch.manual_seed(0)
    return Dense(function(torch.sign, lambda x: (x.abs() <= bound).float()))


def compiled(module: nn.Module, folder: Path, **options: object) -> Path:
    bnnopt.optimize(module, example=BATCH, **options).save(folder)
    return folder


@pytest.mark.parametrize("level", ["O0", "O1", "O2"])
def test_what_agrees(level: str, tmp_path: Path) -> None:
    folder = compiled(net(1.0), tmp_path / "out", level=level)
    found = bnnopt.torch.check(net(1.0), BATCH, folder)
    assert [row.name for row in found.rows] == ["a.weight", "a.bias", "o.weight", "o.bias"]
    assert found.loss == pytest.approx(found.right_loss, rel=1e-4)


@pytest.mark.parametrize("level", ["O0", "O1"])
def test_images_that_are_fed_as_bytes(level: str, tmp_path: Path) -> None:
    """The module is given the floats that they stand for; of an example of floats, the shape."""
    folder = compiled(net(1.0), tmp_path / "out", level=level, input="uint8")
    images = torch.randint(0, 256, VECTORS, generator=torch.Generator().manual_seed(4))
    for example in (BATCH, images.to(torch.uint8), None):
        found = bnnopt.torch.check(net(1.0), example, folder)
        assert found.loss == pytest.approx(found.right_loss, rel=1e-4)
        assert all(row.cosine > 0.9999 for row in found.rows)
    with pytest.raises(VerificationError, match="differs from PyTorch"):
        bnnopt.torch.check(net(0.2), BATCH, folder)


class Normalized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.sign = function(torch.sign, lambda x: (x.abs() <= 1).float())
        self.a, self.o, self.n = nn.Linear(20, 64), nn.Linear(64, 10), nn.BatchNorm1d(10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.n(self.o(self.sign(self.a(x))))


def test_another_function_is_refused_with_what_to_disable(tmp_path: Path) -> None:
    folder = compiled(Normalized(), tmp_path / "out", level="O2")
    with pytest.raises(UsageError, match=r"another function .*--disable l1-batch-norm"):
        bnnopt.torch.check(Normalized(), BATCH, folder)
    disable = ["l1-batch-norm", "float16-activations"]
    folder = compiled(Normalized(), tmp_path / "two", level="O2", disable=disable)
    bnnopt.torch.check(Normalized(), BATCH, folder)


def test_weights_are_rounded_as_the_folder_has_them(tmp_path: Path) -> None:
    module = net(1.0)
    with torch.no_grad():
        module.o.weight += 64  # alike for all classes; halves lie 2^-4 apart there
    before = module.o.weight.clone()
    folder = compiled(module, tmp_path / "out", enable=["float16-state"])
    found = bnnopt.torch.check(module, BATCH, folder)
    assert torch.equal(module.o.weight, before)
    exact = bnnopt.torch.check(module, BATCH, compiled(module, tmp_path / "exact"))
    assert abs(found.loss - exact.loss) > 1e-3


def test_a_wrong_estimator_is_found(tmp_path: Path) -> None:
    folder = compiled(net(1.0), tmp_path / "out")
    with pytest.raises(VerificationError, match=r"differs from PyTorch: 'a\.weight': cosine 0\."):
        bnnopt.torch.check(net(0.5), BATCH, folder)


def test_a_wrong_value_is_found(tmp_path: Path) -> None:
    folder = compiled(net(1.0), tmp_path / "out")
    other = net(1.0)
    other.f = lambda x: x.clamp(-1, 1)
    with pytest.raises(VerificationError, match="the loss is"):
        bnnopt.torch.check(other, BATCH, folder)


def test_other_sets_of_trained_parameters_are_found(tmp_path: Path) -> None:
    folder = compiled(net(1.0), tmp_path / "out")
    module = net(1.0)
    module.a.bias.requires_grad_(False)
    with pytest.raises(VerificationError, match="requires no gradient in PyTorch"):
        bnnopt.torch.check(module, BATCH, folder)
    folder = compiled(net(1.0), tmp_path / "frozen", freeze=["a.bias"])
    with pytest.raises(VerificationError, match="not trained in the folder"):
        bnnopt.torch.check(net(1.0), BATCH, folder)
    bnnopt.torch.check(module, BATCH, folder)


@pytest.mark.parametrize(
    "loss", ["mse", "bce", "l1", "huber", "squared-hinge", "soft-cross-entropy"]
)
def test_other_losses(loss: str, tmp_path: Path) -> None:
    folder = compiled(net(1.0), tmp_path / "out", loss=loss)
    bnnopt.torch.check(net(1.0), BATCH, folder)


def test_options_of_a_cross_entropy(tmp_path: Path) -> None:
    weights = [1.0 + i for i in range(10)]
    folder = compiled(
        net(1.0), tmp_path / "out", label_smoothing=0.1, class_weights=weights, ignore_index=3
    )
    bnnopt.torch.check(net(1.0), BATCH, folder)


class Wider(Dense):
    def __init__(self) -> None:
        super().__init__(nn.ReLU())
        self.o = nn.Linear(32, 11)


class Drops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.d, self.o = nn.Linear(20, 64), nn.Dropout(0.3), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o(F.dropout(self.d(F.relu(self.a(x))), 0.2, self.training))


def test_dropouts_keep_the_same_elements(tmp_path: Path) -> None:
    module = Drops()
    bnnopt.torch.check(module, BATCH, compiled(module, tmp_path / "out"))
    module.d.p = 0.5  # the folder's own ratio is taken
    bnnopt.torch.check(module, BATCH, tmp_path / "out")
    module.d.p = 0.0
    with pytest.raises(VerificationError):
        bnnopt.torch.check(module, BATCH, tmp_path / "out")


def test_wrong_use(tmp_path: Path) -> None:
    folder = compiled(net(1.0), tmp_path / "out")
    with pytest.raises(UsageError, match=r"has shape \[7, 20\], expected \[32, 20\]"):
        bnnopt.torch.check(net(1.0), BATCH[:7], folder)
    with pytest.raises(UsageError, match="take the module that was exported"):
        bnnopt.torch.check(Wider(), BATCH, folder)


def test_trained_weights_come_back(tmp_path: Path) -> None:
    module, x, y = make("resnet")
    bnnopt.optimize(module, example=x, optimizer="sgd", momentum=0.0).save(tmp_path / "out")
    session = bnnopt.TrainingSession(tmp_path / "out")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(2):
        session.step(x.numpy(), y.numpy(), lr=0.1)
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()
    other, _, _ = make("resnet")
    bnnopt.torch.load(other, session)
    for name, value in module.state_dict().items():
        found = other.state_dict()[name].numpy()
        np.testing.assert_allclose(found, value.numpy(), rtol=0.05, atol=2e-3, err_msg=name)
    assert int(other.state_dict()["1.num_batches_tracked"]) == 2
    with pytest.raises(UsageError, match="has none of its parameters"):
        bnnopt.torch.load(nn.Sequential(), session)


SOURCE = """
import torch
from torch import nn
class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sign()
    @staticmethod
    def backward(ctx, dy):
        return dy * (ctx.saved_tensors[0].abs() <= BOUND)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.o = nn.Linear(20, 32), nn.Linear(32, 10)
    def forward(self, x):
        return self.o(Sign.apply(self.a(x)))
def make():
    torch.manual_seed(0)
    return Net()
def with_batch():
    return make(), torch.randn(32, 20)
"""


def test_command(tmp_path: Path) -> None:
    folder = compiled(net(1.0), tmp_path / "out")
    (tmp_path / "good.py").write_text(SOURCE.replace("BOUND", "1"))
    (tmp_path / "wrong.py").write_text(SOURCE.replace("BOUND", "0.5"))
    runner = CliRunner()
    for name in ("make", "with_batch"):
        found = runner.invoke(cli, ["verify", str(folder), "--torch", f"{tmp_path}/good.py:{name}"])
        assert found.exit_code == 0, found.output
        assert "PASS: loss and gradients of PyTorch" in found.output
    arguments = ["verify", str(folder), "--torch", f"{tmp_path}/wrong.py:make"]
    found = runner.invoke(cli, [*arguments, "--json", str(tmp_path / "found.json")])
    assert isinstance(found.exception, VerificationError)
    assert found.exception.exit_code == 1
    written = json.loads((tmp_path / "found.json").read_text())["parameters"]
    assert written["a.weight"]["defect"]
    assert written["o.weight"]["defect"] is None
    for source in (f"{tmp_path}/none.py:make", f"{tmp_path}/good.py:other"):
        found = runner.invoke(cli, ["verify", str(folder), "--torch", source])
        assert isinstance(found.exception, UsageError)
