"""What an export leaves alone, what it says, and what it refuses."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import bnnopt

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import bnnopt.torch.exporting  # noqa: E402
from bnnopt.errors import BnnoptError, UsageError  # noqa: E402
from tests.torch.modules import Arguments, DataLinear, make  # noqa: E402

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("name", ["clipped", "data overwritten", "frozen norm", "resnet"])
def test_the_module_is_as_it_was(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    module, x, _ = make(name)
    before, modes = copy.deepcopy(module.state_dict()), [m.training for m in module.modules()]
    generators = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    held = {n: (id(p), p.data_ptr(), set(vars(p))) for n, p in module.named_parameters()}
    called = []
    module.register_forward_hook(lambda *_: called.append(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bnnopt.torch.export(module, x, tmp_path / "m.onnx")
    assert capfd.readouterr() == ("", "")
    assert all(torch.equal(before[n], v) for n, v in module.state_dict().items())
    assert [m.training for m in module.modules()] == modes
    assert torch.equal(generators[0], torch.get_rng_state())
    assert np.array_equal(generators[1], np.random.get_state()[1])
    assert generators[2] == random.getstate()
    after = {n: (id(p), p.data_ptr(), set(vars(p))) for n, p in module.named_parameters()}
    assert after == held
    assert len(module._forward_hooks) == 1
    assert called
    assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize("name", ["clipped", "no_grad", "learned step", "data overwritten"])
def test_other_tools_read_the_same_network(name: str, tmp_path: Path) -> None:
    module, x, _ = make(name)
    path = bnnopt.torch.export(module, x, tmp_path / "m.onnx")
    onnx.checker.check_model(onnx.load(path), full_check=True)
    session = onnxruntime.InferenceSession(path)
    other = x.flip(0) + 0.1  # nothing of the example may be a constant
    (found, *_) = session.run(None, {"x": other.numpy()})
    np.testing.assert_allclose(found, module(other).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_metadata(tmp_path: Path) -> None:
    module, x, _ = make("buffers")
    model = onnx.load(bnnopt.torch.export(module, x, tmp_path / "m.onnx"))
    assert {e.key: e.value for e in model.metadata_props} == {"bnnopt.gradients": "as-written"}
    marks = {t.name: [e.value for e in t.metadata_props] for t in model.graph.initializer}
    assert marks["mean"] == marks["a.weight"] == ["no"]
    assert marks["a.bias"] == marks["o.weight"] == []
    module, x, _ = make("gate")
    model = onnx.load(bnnopt.torch.export(module, x, tmp_path / "m.onnx"))
    stops = [n for n in model.graph.node if n.metadata_props]
    assert [(n.op_type, n.metadata_props[0].value) for n in stops] == [("Identity", "none")]


def test_without_its_metadata_a_gradient_differs(tmp_path: Path) -> None:
    module, x, _ = make("gate")
    path = bnnopt.torch.export(module, x, tmp_path / "m.onnx")
    model = onnx.load(path)
    for node in model.graph.node:
        del node.metadata_props[:]
    onnx.save(model, path)
    bnnopt.optimize(path, batch_size=len(x)).save(tmp_path / "out")
    with pytest.raises(BnnoptError, match="differs from PyTorch"):
        bnnopt.torch.check(module, x, tmp_path / "out")


def test_arguments_of_every_kind(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x, extra = Arguments(), torch.randn(16, 20), torch.randn(16, 5)
    for example in (
        (x, extra, {"scale": 0.5, "mode": "add"}),
        {"x": x, "extra": extra, "scale": 0.5},
    ):
        path = bnnopt.torch.export(module, example, tmp_path / "m.onnx")
        assert [v.name for v in onnx.load(path).graph.input] == ["x", "extra"]
        bnnopt.optimize(module, example=example).save(tmp_path / "out")
        bnnopt.torch.check(module, example, tmp_path / "out")
    with pytest.raises(BnnoptError, match="differs from PyTorch"):
        bnnopt.torch.check(module, (x, extra, {"scale": 0.6}), tmp_path / "out")


def test_batch_size(tmp_path: Path) -> None:
    module, x, _ = make("gate")
    assert bnnopt.optimize(module, example=x).report.batch_size == len(x)
    assert bnnopt.optimize(module, example=x, batch_size=5).report.batch_size == 5
    path = bnnopt.torch.export(module, x, tmp_path / "m.onnx", dynamic_batch=False)
    assert bnnopt.optimize(path).report.batch_size == len(x)


class Number(nn.Module):
    def forward(self, x: Any) -> Any:
        return x if x.mean() > 0 else -x


class Moving(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(20, 10)
        self.register_buffer("ema", torch.zeros(10))

    def forward(self, x: Any) -> Any:
        y = self.a(x)
        self.ema.mul_(0.9).add_(y.detach().mean(0), alpha=0.1)
        return y - self.ema


class Clamped(nn.Linear):
    def forward(self, x: Any) -> Any:
        self.weight.data.clamp_(-0.1, 0.1)
        return super().forward(x)


def seen_before() -> nn.Module:
    layer = DataLinear(20, 10)
    layer(torch.randn(4, 20))
    return layer


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a number is read": (Number, "test_export.py:.* looks at the numbers of a tensor"),
    "a buffer moves": (Moving, "forward changes buffer 'ema'"),
    "data changes in place": (lambda: Clamped(20, 10), "clamp_ changes a tensor that is detached"),
    "latent weights are elsewhere": (seen_before, "before its first forward"),
    "does not run": (lambda: nn.Linear(3, 10), "forward does not run on the example"),
    "scripted": (lambda: torch.jit.script(nn.Linear(20, 10)), "scripted"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_sure_is_refused(name: str, tmp_path: Path) -> None:
    maker, message = REFUSED[name]
    with pytest.raises(BnnoptError, match=message) as caught:
        bnnopt.torch.export(maker(), torch.randn(4, 20), tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "m.onnx").exists()


def test_wrong_use(tmp_path: Path) -> None:
    module, x, _ = make("gate")
    with pytest.raises(UsageError, match=r"expected torchscript or torch\.export"):
        bnnopt.torch.export(module, x, tmp_path / "m.onnx", exporter="dynamo")
    with pytest.raises(UsageError, match="expected a tensor with the batch"):
        bnnopt.torch.export(module, None, tmp_path / "m.onnx")
    with pytest.raises(UsageError, match=r"expected a torch\.nn\.Module"):
        bnnopt.torch.export("m.pt", x, tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="cannot be written"):
        bnnopt.torch.export(module, x, tmp_path / "none" / "m.onnx")
    with pytest.raises(UsageError, match="example is for a PyTorch module"):
        bnnopt.optimize("m.onnx", example=x)


def test_what_an_exporter_cannot_write_the_other_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("this exporter was removed")

    monkeypatch.setattr(bnnopt.torch.exporting, "_by_torchscript", broken)
    module, x, _ = make("gate")
    bnnopt.optimize(module, example=x).save(tmp_path / "out")
    bnnopt.torch.check(module, x, tmp_path / "out")
    monkeypatch.setattr(bnnopt.torch.exporting, "_by_torch_export", broken)
    with pytest.raises(BnnoptError, match="cannot write it as ONNX: torchscript: this exporter"):
        bnnopt.torch.export(module, x, tmp_path / "m.onnx")


def test_autograd_is_as_it_was(tmp_path: Path) -> None:
    module, x, _ = make("clipped")
    bnnopt.torch.export(module, x, tmp_path / "m.onnx")
    assert "apply" not in vars(torch.autograd.function._SingleLevelFunction)
