"""How public code writes binary and quantised operands. To add one: a row of `ROWS`.

Each is a function of an activation or of a weight, with PyTorch's own gradient. `packed` says that
the operand is signs, which a pass keeps and multiplies as bits; see docs/binarisation.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.idioms.networks import Idiom, function


def clip(x: Tensor, bound: float = 1.0) -> Tensor:
    return x.clamp(-bound, bound)


def value_of(b: Tensor, s: Tensor) -> Tensor:
    return s + (b - s).detach()


def mean_abs(w: Tensor) -> Tensor:
    return w.abs().mean(dim=tuple(range(1, w.dim())), keepdim=True)


def poly(x: Tensor) -> Tensor:
    """The integral of Bi-Real Net's triangle (arXiv:1808.00278)."""
    inner = clip(x)
    return inner * (2 - inner.abs())


def react(x: Tensor) -> Tensor:
    """ReActNet's code, piece by piece."""
    out = torch.sign(x)
    mask1, mask2, mask3 = x < -1, x < 0, x < 1
    out1 = (-1) * mask1.float() + (x * x + 2 * x) * (1 - mask1.float())
    out2 = out1 * mask2.float() + (-x * x + 2 * x) * (1 - mask2.float())
    out3 = out2 * mask3.float() + 1 * (1 - mask3.float())
    return out.detach() - out3.detach() + out3


def rbnn(x: Tensor, t: float = 0.4) -> Tensor:
    """The integral of RBNN's derivative (arXiv:2009.13055), with a sign of its own."""
    inner = clip(x, 2**0.5 / t)
    return (2**0.5 * t * inner - inner.sign() * t**2 * inner**2 / 2) / t


def react_weight(w: Tensor) -> Tensor:
    scale = mean_abs(w).detach()
    binary, cut = scale * w.sign(), w.clamp(-1.0, 1.0)
    return binary.detach() - cut.detach() + cut


def ir_net(w: Tensor, t: float = 1.5, k: float = 2.0) -> Tensor:
    """IR-Net (arXiv:1909.10788): balanced and standardised weights, tanh estimator."""
    centred = w - w.mean(dim=tuple(range(1, w.dim())), keepdim=True)
    normal = centred / centred.std(dim=tuple(range(1, w.dim())), keepdim=True)
    return value_of(normal.sign(), k * torch.tanh(t * normal))


def ternary(w: Tensor) -> Tensor:
    """TWN (arXiv:1605.04711)."""
    t = 0.7 * mean_abs(w)
    mask = (w > t).to(w.dtype) - (w < -t).to(w.dtype)
    return value_of(mask * (w.abs() * mask.abs()).sum() / mask.abs().sum(), w)


def k_bits(x: Tensor, k: int = 2) -> Tensor:
    n = 2**k - 1
    return function(lambda x: torch.round(x * n) / n, torch.ones_like)(x)


def dorefa_weight(w: Tensor, k: int = 2) -> Tensor:
    """DoReFa-Net (arXiv:1606.06160), equation 9, without the division by the maximum."""
    t = torch.tanh(w)
    return 2 * k_bits(t / 2 + 0.5, k) - 1


def bitnet_weight(w: Tensor) -> Tensor:
    """BitNet b1.58 (arXiv:2402.17764)."""
    scale = 1.0 / w.abs().mean().clamp(min=1e-5)
    u = (w * scale).round().clamp(-1, 1) / scale
    return w + (u - w).detach()


def bitnet_activation(x: Tensor) -> Tensor:
    scale = 127.0 / x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-5)
    y = (x * scale).round().clamp(-128, 127) / scale
    return x + (y - x).detach()


def lsq(x: Tensor, step: float = 0.3, low: int = -2, high: int = 1) -> Tensor:
    """LSQ (arXiv:1902.08153) with a fixed step."""
    v = (x / step).clamp(low, high)
    return ((v.round() - v).detach() + v) * step


class Elastic(nn.Module):
    """BiT's elastic binarisation (arXiv:2205.13016): scale and shift are trained."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.tensor([0.7])), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        u = (x - self.shift) / self.scale
        return self.scale * value_of(u.sign(), clip(u))


class Pact(nn.Module):
    """PACT (arXiv:1805.06085), equation 1, at 2 bits: the bound is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.bound = nn.Parameter(torch.tensor([1.5]))

    def forward(self, x: Tensor) -> Tensor:
        y = 0.5 * (x.abs() - (x - self.bound).abs() + self.bound)
        return function(torch.round, torch.ones_like)(y * 3 / self.bound) * self.bound / 3


class TrainedStep(nn.Module):
    """LSQ (arXiv:1902.08153) with its trained step, whose gradient is scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Parameter(torch.tensor([0.3]))

    def forward(self, x: Tensor) -> Tensor:
        scaled = self.step * 0.1
        step = (self.step - scaled).detach() + scaled
        v = (x / step).clamp(-2, 1)
        return ((v.round() - v).detach() + v) * step


def assigned(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[x >= 0] = 1
    out[x < 0] = -1
    return out


def renewed(x: Tensor) -> Tensor:
    """``x.new(x.size())``, until all of it is written: the file has what was in the memory."""
    out = torch.linspace(-3, 3, x.numel()).reshape(x.shape)
    out[x >= 0] = 1
    out[x < 0] = -1
    return out


def overwritten(x: Tensor) -> Tensor:
    out = x.clone()
    out[x > 0] = 1
    out[x <= 0] = -1
    return out


@dataclass(frozen=True)
class Row:
    """An idiom, and where it may stand."""

    idiom: Idiom
    packed: bool = True
    on: tuple[str, ...] = ("activation", "weight")


sign = function(torch.sign)
WEIGHT, ACTIVATION = ("weight",), ("activation",)
ROWS: dict[str, Row] = {
    # a sign in any operators, its estimator in an autograd function
    "sign": Row(sign),
    "where >=": Row(function(lambda x: torch.where(x >= 0, 1.0, -1.0))),
    "where >": Row(function(lambda x: torch.where(x > 0, 1.0, -1.0))),
    "where <": Row(function(lambda x: torch.where(x < 0, -1.0, 1.0))),
    "where int": Row(function(lambda x: torch.where(x >= 0, 1, -1).to(x.dtype))),
    "bool int float": Row(function(lambda x: ((x >= 0).int() * 2 - 1).float())),
    "float 2 - 1": Row(function(lambda x: (x >= 0).float() * 2 - 1)),
    "1 - 2 float": Row(function(lambda x: 1 - 2 * (x < 0).float())),
    "difference of masks": Row(function(lambda x: (x >= 0).float() - (x < 0).float())),
    "ones_like": Row(
        function(lambda x: torch.where(x >= 0, torch.ones_like(x), -torch.ones_like(x)))
    ),
    "sign of a sign": Row(function(lambda x: torch.sign(torch.sign(x) + 0.1))),
    "sign + 0.5, sign": Row(function(lambda x: torch.sign(0.5 + torch.sign(x)))),
    "sign + (x == 0)": Row(function(lambda x: x.sign() + (x == 0).to(x.dtype))),
    "assignment to zeros": Row(function(assigned)),
    "assignment to a copy": Row(function(overwritten)),
    "assignment to new memory": Row(function(renewed)),
    "zero to one": Row(
        function(lambda x: torch.where(x.sign() == 0, torch.ones_like(x), x.sign()))
    ),
    "x / |x|": Row(function(lambda x: x / x.abs())),
    "x / max(|x|, eps)": Row(function(lambda x: x / x.abs().clamp(min=1e-12))),
    "x / (|x| + eps)": Row(function(lambda x: x / (x.abs() + 1e-8))),
    "round of a clamp": Row(function(lambda x: 2 * torch.round(((x + 1) / 2).clamp(0, 1)) - 1)),
    "floor of a clamp": Row(
        function(lambda x: 2 * torch.floor(((x + 1) / 2).clamp(0, 1) + 0.5) - 1)
    ),
    "hardtanh, sign": Row(lambda x: sign(F.hardtanh(x))),
    # value of b, gradient of s, in every order
    "s + (b - s)": Row(lambda x: value_of(x.sign(), clip(x))),
    "(b - s) + s": Row(lambda x: (x.sign() - clip(x)).detach() + clip(x)),
    "b - s + s": Row(lambda x: x.sign().detach() - clip(x).detach() + clip(x)),
    "b + s - s": Row(lambda x: x.sign().detach() + clip(x) - clip(x).detach()),
    "s - (s - b)": Row(lambda x: clip(x) - (clip(x) - x.sign()).detach()),
    "s - s + b": Row(lambda x: clip(x) - clip(x).detach() + x.sign().detach()),
    "b + (s - s)": Row(lambda x: x.sign().detach() + (clip(x) - clip(x).detach())),
    "b - (s - s)": Row(lambda x: x.sign().detach() - (clip(x).detach() - clip(x))),
    "-(s - b) + s": Row(lambda x: -(clip(x) - x.sign()).detach() + clip(x)),
    "where, identity": Row(lambda x: value_of(torch.where(x >= 0, 1.0, -1.0), x)),
    "wide clip": Row(lambda x: value_of(x.sign(), clip(x, 1.5))),
    "tanh": Row(lambda x: value_of(x.sign(), torch.tanh(2 * x))),
    "sigmoid": Row(lambda x: value_of(x.sign(), 2 * torch.sigmoid(3 * x) - 1)),
    "softsign": Row(lambda x: value_of(x.sign(), F.softsign(x))),
    "half": Row(lambda x: value_of(x.sign(), 0.5 * clip(x))),
    "hardtanh of 2 x": Row(lambda x: value_of(x.sign(), F.hardtanh(2 * x))),
    "polynomial": Row(lambda x: value_of(x.sign(), poly(x))),
    "ReActNet": Row(react),
    "RBNN": Row(lambda x: value_of(x.sign(), rbnn(x))),
    "sign in the estimator": Row(
        lambda x: value_of(x.sign(), x.sign().detach() * torch.log1p(x.abs()))
    ),
    "mirrored": Row(lambda x: value_of(torch.where(x > 0, -1.0, 1.0), x)),
    # scales
    "scaled value": Row(lambda w: value_of(mean_abs(w) * w.sign(), clip(w)), on=WEIGHT),
    "ReActNet weight": Row(react_weight, on=WEIGHT),
    "scale outside": Row(lambda w: mean_abs(w) * sign(w), on=WEIGHT),
    "scale on the right": Row(lambda w: sign(w) * mean_abs(w), on=WEIGHT),
    "one scale": Row(lambda w: w.abs().mean() * sign(w), on=WEIGHT),
    "constant scale": Row(lambda x: 0.3 * sign(x)),
    "trained scale": Row(Elastic()),
    "IR-Net": Row(ir_net, on=WEIGHT),
    # more than signs
    "0 and 1": Row(lambda x: value_of((x > 0.5).to(x.dtype), x.clamp(0, 1)), packed=False),
    "0 and 1, function": Row(function(lambda x: (x > 0).to(x.dtype)), packed=False),
    "ternary function": Row(
        function(lambda x: (x > 0.5).to(x.dtype) - (x < -0.5).to(x.dtype)), packed=False
    ),
    "ternary": Row(ternary, packed=False, on=WEIGHT),
    "2 bits": Row(
        lambda x: value_of(torch.round(x.clamp(0, 1) * 3) / 3, x.clamp(0, 1)), packed=False
    ),
    "DoReFa": Row(lambda x: k_bits(x.clamp(0, 1)), packed=False),
    "DoReFa weight": Row(dorefa_weight, packed=False, on=WEIGHT),
    "PACT": Row(Pact(), packed=False),
    "LSQ": Row(lsq, packed=False),
    "LSQ, trained step": Row(TrainedStep(), packed=False),
    "BitNet b1.58": Row(bitnet_weight, packed=False, on=WEIGHT),
    "BitNet, part of the way": Row(
        lambda w: w + 0.5 * (bitnet_weight(w) - w).detach(), packed=False, on=WEIGHT
    ),
    "BitNet activation": Row(bitnet_activation, packed=False, on=ACTIVATION),
    "either sign": Row(lambda x: torch.maximum(sign(x), sign(-x)), packed=False),
    "integers": Row(
        function(lambda x: (x * 2).int().float() / 2, torch.ones_like), packed=False
    ),
    "ceil": Row(lambda x: value_of(torch.ceil(x.clamp(0, 2)), x.clamp(0, 2)), packed=False),
    "floor": Row(lambda x: value_of(torch.floor(x * 2 + 0.5) / 2, x), packed=False),
    "power of two": Row(
        lambda w: value_of(w.sign() * 2 ** torch.round(torch.log2(w.abs() + 1e-6)), w),
        packed=False, on=WEIGHT,
    ),
    "one hot": Row(
        lambda x: value_of(
            F.one_hot(x.flatten(1).argmax(1), x.flatten(1).shape[1]).to(x.dtype).view_as(x),
            torch.softmax(x.flatten(1), 1).view_as(x),
        ),
        packed=False, on=WEIGHT,
    ),
}  # fmt: skip
