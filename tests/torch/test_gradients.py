"""Gradients of compiled modules against PyTorch's autograd."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file

import bnnopt

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

import bnnopt.torch.exporting  # noqa: E402
from bnnopt.errors import ModelError  # noqa: E402
from tests.torch.modules import IMAGES, MODULES, ClippedGradient, Conv, make, sign  # noqa: E402

pytestmark = pytest.mark.oracle


def of_pytorch(name: str) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and gradients of the parameters that have one."""
    module, x, y = make(name)
    loss = F.cross_entropy(module(x), y)
    loss.backward()
    found = {n: p.grad.numpy() for n, p in module.named_parameters() if p.grad is not None}
    return loss.item(), found


def compiled(name: str, level: str, folder: Path) -> tuple[float, dict[str, np.ndarray]]:
    """The same of a compiled step; a first momentum is the gradient."""
    module, x, y = make(name)
    optimized = bnnopt.optimize(module, example=x, level=level, optimizer="sgd")
    optimized.save(folder / level)
    session = bnnopt.TrainingSession(folder / level, threads=1)
    loss = session.step(x.numpy(), y.numpy())
    session.save(folder / "checkpoint")
    state = load_file(folder / "checkpoint").items()
    return loss, {n.removesuffix(".momentum"): a for n, a in state if n.endswith(".momentum")}


QUICK = {"clipped", "polynomial", "asymmetric", "learned step", "data overwritten", "no_grad"}
QUICK |= {
    "layers",
    "b - s + s",
    "no detach",
    "gate",
    "plain sign",
    "plain where",
    "buffers",
    "shared",
}
NAMES = [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in MODULES]


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_pytorchs(name: str, tmp_path: Path) -> None:
    loss, right = of_pytorch(name)
    found, ours = compiled(name, "O0", tmp_path)
    assert found == pytest.approx(loss, rel=1e-5)
    largest = max(float(np.abs(g).max()) for g in right.values())
    assert ours.keys() <= right.keys()
    for parameter, gradient in right.items():
        a = ours.get(parameter, np.zeros_like(gradient))
        np.testing.assert_allclose(a, gradient, rtol=1e-3, atol=1e-4 * largest, err_msg=parameter)
    packed, bits = compiled(name, "O1", tmp_path)
    assert packed == found
    assert all(np.array_equal(bits[n], ours[n]) for n in ours)


OTHER = ["clipped", "error decay", "no_grad", "plain where", "buffers", "frozen norm, trained"]


@pytest.mark.parametrize(
    "name", ["gate", *(pytest.param(n, marks=pytest.mark.slow) for n in OTHER)]
)
def test_both_exporters_agree(name: str, tmp_path: Path) -> None:
    module, x, _ = make(name)
    for exporter in bnnopt.torch.exporting.EXPORTERS:
        path = bnnopt.torch.export(module, x, tmp_path / "m.onnx", exporter=exporter)
        model = onnx.load(path)
        assert [v.name for v in model.graph.input] == ["x"]
        assert {t.name for t in model.graph.initializer} >= dict(module.named_parameters()).keys()
        bnnopt.optimize(path, batch_size=len(x)).save(tmp_path / exporter)
        bnnopt.torch.check(module, x, tmp_path / exporter)


ESTIMATORS = {
    "clipped": [("clipped", "0"), ("clipped", "0")],
    "bounds outside": [("clipped", "0")],
    "identity": [("identity", "0")],
    "polynomial": [("approx-sign", "0")],
    "swish": [("swish-sign", "0")],
    "plain where": [("written", "+1")],
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_are_named(name: str) -> None:
    module, x, _ = make(name)
    report = bnnopt.optimize(module, example=x).report
    assert [(b.ste, b.zero) for b in report.binarized] == ESTIMATORS[name]
    assert not any("assumed" in note for note in report.notes)


def test_a_clip_is_found_to_the_bit() -> None:
    from bnnopt.torch.functions import Call, recognize
    from tests.torch.modules import function

    below = float(np.nextafter(np.float32(0.7), np.float32(0)))
    cases = (
        (lambda x: (x.abs() <= 0.7).float(), float(np.float32(0.7))),
        (lambda x: (x.abs() < 0.7).float(), below),
    )
    for derivative, bound in cases:
        apply = function(torch.sign, derivative)
        call = Call(apply.__self__, (torch.linspace(-2, 2, 101).requires_grad_(),))
        (found,) = recognize(call, 0).values()
        assert (found.name, found.number) == ("clipped", bound)


def test_a_function_that_clips_its_gradient_is_refused(tmp_path: Path) -> None:
    module = Conv(sign, ClippedGradient.apply)
    with pytest.raises(ModelError, match=r"ClippedGradient .*is not linear in the gradient"):
        bnnopt.torch.export(module, torch.randn(IMAGES), tmp_path / "m.onnx")


def test_the_parts_of_a_batch_norm_that_stand_still(tmp_path: Path) -> None:
    module, x, y = make("frozen norm")
    before = copy.deepcopy(module.state_dict())
    bnnopt.optimize(module, example=x).save(tmp_path / "out")
    session = bnnopt.TrainingSession(tmp_path / "out")
    session.step(x.numpy(), y.numpy())
    after = session.parameters()
    for name in ("n1.running_mean", "n1.running_var", "n1.weight"):
        assert np.array_equal(after[name], before[name].numpy())
    assert not np.array_equal(after["n2.running_mean"], before["n2.running_mean"].numpy())
