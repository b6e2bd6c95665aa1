"""Modules that draw random numbers: PyTorch's with the same numbers, and the same distributions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import bnnopt
from bnnopt.errors import ModelError, VerificationError

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import bnnopt.torch.exporting  # noqa: E402
from bnnopt.torch.chance import WRITTEN_OUT  # noqa: E402
from tests.torch.modules import VECTORS, Dense  # noqa: E402

pytestmark = pytest.mark.oracle


def drop_path(x: Tensor) -> Tensor:
    """As timm has it."""
    mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(0.7)
    return x * mask.div_(0.7)


def old_drop_path(x: Tensor) -> Tensor:
    """As EfficientNet.pytorch has it."""
    return x / 0.7 * torch.floor(0.7 + torch.rand([x.shape[0], 1], dtype=x.dtype))


def stochastic_sign(x: Tensor) -> Tensor:
    """arXiv:1602.02830, equation 2."""
    inside = x.clamp(-1, 1)
    b = torch.where(torch.rand_like(x) < (inside + 1) / 2, 1.0, -1.0)
    return inside + (b - inside).detach()


def drawn_sign(x: Tensor) -> Tensor:
    inside = x.clamp(-1, 1)
    return inside + (2 * torch.bernoulli((inside + 1) / 2) - inside).detach()


def gumbel(x: Tensor) -> Tensor:
    noise = -torch.log(-torch.log(torch.rand_like(x) + 1e-8) + 1e-8)
    return torch.softmax((x + noise) / 0.7, -1)


def planes(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`f` on 8 maps of 2 x 2."""
    return lambda x: f(x.reshape(-1, 8, 2, 2)).reshape(-1, 32)


DRAWING: dict[str, Callable[[Tensor], Tensor]] = {
    "drop path": drop_path,
    "old drop path": old_drop_path,
    "stochastic sign": stochastic_sign,
    "drawn sign": drawn_sign,
    "gumbel": gumbel,
    "gumbel_softmax": lambda x: F.gumbel_softmax(x, tau=0.5),
    "hard gumbel_softmax": lambda x: F.gumbel_softmax(x, hard=True),
    "dropout2d": planes(lambda x: F.dropout2d(x, 0.3)),
    "rrelu": lambda x: F.rrelu(x, training=True),
    "mask": lambda x: x * (torch.rand_like(x) < 0.6),
    "noise": lambda x: x + 0.1 * torch.randn_like(x),
    "normal": lambda x: x * torch.normal(1.0, 0.1, x.shape),
    "distribution": lambda x: x + torch.distributions.Normal(0.0, 0.3).sample(x.shape),
    "uniform_": lambda x: x * torch.empty_like(x).uniform_(0.5, 1.5),
    "normal_": lambda x: x * torch.empty_like(x).normal_(1, 0.2),
    "dropout, then noise": lambda x: torch.randn(x.shape[0], 32) + F.dropout(x, 0.3),
}
QUICK = {"drop path", "stochastic sign", "hard gumbel_softmax"}


def compiled(name: str, folder: Path, exporter: str | None = None) -> tuple[nn.Module, Path]:
    torch.manual_seed(0)
    module = Dense(DRAWING[name])
    path = bnnopt.torch.export(module, BATCH, folder / "m.onnx", exporter=exporter)
    bnnopt.optimize(path, batch_size=len(BATCH), level="O1").save(folder / "out")
    return module, folder / "out"


BATCH = torch.randn(VECTORS, generator=torch.Generator().manual_seed(3))
NAMES = [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in DRAWING]


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_pytorchs_of_the_same_draws(name: str, tmp_path: Path) -> None:
    for exporter in bnnopt.torch.exporting.EXPORTERS if name not in QUICK else (None,):
        module, folder = compiled(name, tmp_path / str(exporter), exporter)
        found = bnnopt.torch.check(module, BATCH, folder)
        assert found.rows[0].right > 0


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path) -> None:
    for exporter in (*bnnopt.torch.exporting.EXPORTERS, None):
        (tmp_path / str(exporter)).mkdir()


def test_other_rates_are_found(tmp_path: Path) -> None:
    module, folder = compiled("drop path", tmp_path)
    module.f = lambda x: x * x.new_empty(len(x), 1).bernoulli_(0.6) / 0.6
    with pytest.raises(VerificationError, match="differs from PyTorch"):
        bnnopt.torch.check(module, BATCH, folder)


def test_alpha_dropout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="alpha_dropout has no form in a file"):
        bnnopt.torch.export(Dense(nn.AlphaDropout(0.3)), BATCH, tmp_path / "m.onnx")
    bnnopt.torch.export(Dense(nn.AlphaDropout(0.3).eval()), BATCH, tmp_path / "m.onnx")


MANY = (400, 50)
SAME: dict[str, tuple[Callable[..., Tensor], Callable[[], tuple[object, ...]]]] = {
    "dropout2d": (F.dropout2d, lambda: (torch.ones(400, 50, 2, 2), 0.3)),
    "rrelu": (F.rrelu, lambda: (-torch.ones(MANY), 0.2, 0.6, True)),
    "gumbel_softmax": (F.gumbel_softmax, lambda: (torch.linspace(-2, 2, 50).expand(MANY), 0.5)),
    "hard": (F.gumbel_softmax, lambda: (torch.linspace(-2, 2, 50).expand(MANY), 0.5, True)),
    "randn": (torch.randn, lambda: MANY),
    "randn_like": (torch.randn_like, lambda: (torch.ones(MANY),)),
    "normal": (torch.normal, lambda: (torch.full(MANY, 2.0), 0.5)),
    "bernoulli": (torch.bernoulli, lambda: (torch.full(MANY, 0.3),)),
    "uniform_": (Tensor.uniform_, lambda: (torch.empty(MANY), -1.0, 2.0)),
    "normal_": (Tensor.normal_, lambda: (torch.empty(MANY), -1.0, 2.0)),
    "bernoulli_": (Tensor.bernoulli_, lambda: (torch.empty(MANY), 0.3)),
    "exponential_": (Tensor.exponential_, lambda: (torch.empty(MANY), 2.0)),
}


@pytest.mark.parametrize("name", SAME)
def test_the_distribution_is_pytorchs(name: str) -> None:
    func, arguments = SAME[name]
    torch.manual_seed(1)
    right, ours = func(*arguments()), WRITTEN_OUT[func](torch.rand_like, *arguments())
    assert ours.shape == right.shape
    a, b = (np.sort(t.numpy().reshape(-1)[:20000]) for t in (ours, right))
    where = np.concatenate([a, b])
    shares = [np.searchsorted(sample, where, "right") / len(sample) for sample in (a, b)]
    assert np.abs(shares[0] - shares[1]).max() < 0.025  # Kolmogorov and Smirnov: 1e-5 by chance


def test_dropped_planes_are_whole() -> None:
    kept = WRITTEN_OUT[F.dropout2d](torch.rand_like, torch.ones(20, 30, 4, 4), 0.4)
    assert (kept.amax((2, 3)) == kept.amin((2, 3))).all()
    assert 0 < (kept[:, :, 0, 0] == 0).float().mean() < 1
