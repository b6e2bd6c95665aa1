"""Small networks with the blocks of papers, as PyTorch modules. To add one: a row of `PAPERS`.

Widths and depths are a few channels and one or two blocks; the structure of the block, its
estimators and its scales are the paper's, or those of the code that its authors published.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.torch.modules import ErrorDecay


def approx_sign(x: Tensor) -> Tensor:
    """Sign with the gradient of Bi-Real Net's polynomial."""
    inner = x.clamp(-1, 1)
    s = inner * (2 - inner.abs())
    return s + (torch.where(x >= 0, 1.0, -1.0) - s).detach()


def clipped_sign(x: Tensor) -> Tensor:
    """Sign with the gradient of hardtanh."""
    s = x.clamp(-1, 1)
    return s + (torch.where(x >= 0, 1.0, -1.0) - s).detach()


def rounded(x: Tensor) -> Tensor:
    """Round with the gradient of the identity."""
    return x + (x.round() - x).detach()


class BinaryConv(nn.Conv2d):
    """Sign weights, times the detached mean magnitude of each filter where scaled."""

    def __init__(self, *args: Any, scaled: bool = True, **options: Any) -> None:
        super().__init__(*args, bias=False, **options)
        self.scaled = scaled

    def forward(self, x: Tensor) -> Tensor:
        weight = clipped_sign(self.weight)
        if self.scaled:
            weight = weight * self.weight.abs().mean((1, 2, 3), keepdim=True).detach()
        return self._conv_forward(x, weight, None)


class Shift(nn.Module):
    """A learned shift of each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(0.1 * torch.randn(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


def rprelu(channels: int) -> nn.Module:
    return nn.Sequential(Shift(channels), nn.PReLU(channels), Shift(channels))


class ReActBlock(nn.Module):
    """arXiv:2003.03488, figure 5, the reduction block: 3 x 3 with stride, then two 1 x 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift, self.conv = Shift(channels), BinaryConv(channels, channels, 3, 2, 1)
        self.norm, self.act = nn.BatchNorm2d(channels), rprelu(channels)
        self.inner = Shift(channels)
        self.points = nn.ModuleList(BinaryConv(channels, channels, 1) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2))
        self.out = rprelu(2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv(approx_sign(self.shift(x)))) + F.avg_pool2d(x, 2))
        b = approx_sign(self.inner(x))
        halves = [n(c(b)) + x for c, n in zip(self.points, self.norms, strict=True)]
        return self.out(torch.cat(halves, 1))


class IRConv(nn.Conv2d):
    """arXiv:1909.10788: balanced, standardised weights, a power of two as their scale."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = w - w.mean((1, 2, 3), keepdim=True)
        w = w / w.std((1, 2, 3), keepdim=True)
        scale = torch.exp2(w.abs().mean((1, 2, 3), keepdim=True).log2().round()).detach()
        k, t = torch.tensor([1.0]), torch.tensor([2.0])
        signs = ErrorDecay.apply(w, k, t) * scale
        return self._conv_forward(ErrorDecay.apply(x, k, t), signs, None)


class Melius(nn.Module):
    """arXiv:2001.05936: a dense block, and an improvement block of what it has added."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        wide = channels + growth
        self.n1, self.c1 = nn.BatchNorm2d(channels), BinaryConv(channels, growth, 3, 1, 1)
        self.n2, self.c2 = nn.BatchNorm2d(wide), BinaryConv(wide, growth, 3, 1, 1)
        self.growth = growth

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, self.c1(clipped_sign(self.n1(x)))], 1)
        added = self.c2(clipped_sign(self.n2(x)))
        return torch.cat([x[:, : -self.growth], x[:, -self.growth :] + added], 1)


class BoolBlock(nn.Module):
    """arXiv:2106.06991: only bits between blocks; the shortcut is an XNOR of half the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv, self.norm = BinaryConv(half, half, 3, 1, 1, scaled=False), nn.BatchNorm2d(half)

    def forward(self, bits: Tensor) -> Tensor:
        kept, used = bits.chunk(2, 1)
        made = clipped_sign(self.norm(self.conv(used)))
        return torch.cat([made * kept, made], 1)


class Lab(nn.Module):
    """arXiv:2210.13858: a depthwise convolution to two maps, and the larger of them decides."""

    def __init__(self, channels: int, temperature: float = 1.0) -> None:
        super().__init__()
        self.maps = nn.Conv2d(channels, 2 * channels, 3, 1, 1, groups=channels)
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        maps = self.maps(x).reshape(n, c, 2, h, w)
        soft = 2 * torch.softmax(maps / self.temperature, 2)[:, :, 1] - 1
        hard = torch.where(maps[:, :, 1] >= maps[:, :, 0], 1.0, -1.0)
        return soft + (hard - soft).detach()


class MoBiBlock(nn.Module):
    """arXiv:1907.12629: binary depthwise and grouped pointwise layers, a skip around each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depth = BinaryConv(channels, channels, 3, 1, 1, groups=channels)
        self.point = BinaryConv(channels, channels, 1, groups=2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norms[0](self.depth(clipped_sign(x)))
        return F.prelu(x + self.norms[1](self.point(clipped_sign(x))), torch.tensor([0.25]))


class PokeConv(nn.Module):
    """arXiv:2112.00133: binary convolution, batch norm, DPReLU, squeeze-excite, skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift, self.conv = Shift(channels), BinaryConv(channels, channels, 3, 1, 1)
        self.norm = nn.BatchNorm2d(channels)
        self.up = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.down = nn.Parameter(torch.full((1, channels, 1, 1), 0.25))
        self.squeeze, self.excite = nn.Linear(channels, 4), nn.Linear(4, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(clipped_sign(self.shift(x) / 3)))
        y = torch.where(y > 0, self.up * y, self.down * y)
        gate = F.relu6(self.excite(F.relu(self.squeeze(y.mean((2, 3))))) + 3) / 6
        return x + y * gate[:, :, None, None]


class QuickBlock(nn.Module):
    """arXiv:2011.09398: padding of ones, ReLU in front of batch norm; a blurred transition."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv, self.norm = (
            BinaryConv(channels, channels, 3, scaled=False),
            nn.BatchNorm2d(channels),
        )
        self.point, self.out = nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out)
        line = torch.tensor([1.0, 2.0, 1.0])
        blur = (line[:, None] * line / 16).expand(channels, 1, 3, 3)
        self.register_buffer("blur", blur.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(clipped_sign(x), (1, 1, 1, 1), value=1.0)
        x = F.relu(x + self.norm(F.relu(self.conv(padded))))
        x = F.conv2d(F.max_pool2d(x, 2, 1), self.blur, stride=2, padding=1, groups=x.shape[1])
        return self.out(self.point(x))


class TernaryConv(nn.Conv2d):
    """arXiv:1605.04711: 0 below 0.7 times the mean magnitude, one scale a filter."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        magnitude = w.detach().abs()
        kept = (magnitude > 0.7 * magnitude.mean((1, 2, 3), keepdim=True)).float()
        scale = (magnitude * kept).sum((1, 2, 3), keepdim=True) / kept.sum((1, 2, 3), keepdim=True)
        return self._conv_forward(x, w + (scale * kept * w.sign() - w).detach(), None)


class BitLinear(nn.Linear):
    """arXiv:2402.17764: weights of -1, 0, +1 by their mean magnitude, activations of 8 bits."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.rms_norm(x, x.shape[-1:], eps=1e-5)
        step = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        x = x + ((x * step).round().clamp(-128, 127) / step - x).detach()
        scale = 1 / self.weight.abs().mean().clamp(min=1e-5)
        w = (
            self.weight
            + ((self.weight * scale).round().clamp(-1, 1) / scale - self.weight).detach()
        )
        return F.linear(x, w)


class BitMlp(nn.Module):
    """The feed-forward block of BitNet b1.58, with squared ReLU."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = BitLinear(features, hidden, False), BitLinear(hidden, features, False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.relu(self.up(x)).square())


class LowBitConv(nn.Conv2d):
    """DoReFa weights of 2 bits (arXiv:1606.06160), PACT activations of 4 (arXiv:1805.06085)."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, bias=False, **options)
        self.alpha = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        top = 0.5 * (x.abs() - (x - self.alpha).abs() + self.alpha)
        x = rounded(top * 15 / self.alpha) * self.alpha / 15
        w = torch.tanh(self.weight)
        w = w / w.abs().max().detach() / 2 + 0.5
        return self._conv_forward(x, 2 * rounded(3 * w) / 3 - 1, None)


class Activity(nn.Module):
    """Nine sensors, 64 moments: binary convolutions along time, for activity recognition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv1d(9, 16, 5, padding=2), nn.BatchNorm1d(16)
        self.conv, self.norm2 = nn.Conv1d(16, 32, 3, padding=1, bias=False), nn.BatchNorm1d(32)
        self.head = nn.Linear(32, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool1d(self.norm(self.stem(x)), 2)
        x = F.conv1d(clipped_sign(x), clipped_sign(self.conv.weight), padding=1)
        return self.head(F.relu(self.norm2(F.max_pool1d(x, 2))).mean(2))


class UNet(nn.Module):
    """arXiv:1505.04597 with two levels, the inner convolutions binary; a class for each pixel."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels))
        self.middle = BinaryConv(channels, 2 * channels, 3, 1, 1)
        self.norm = nn.BatchNorm2d(2 * channels)
        self.up = nn.ConvTranspose2d(2 * channels, channels, 2, 2)
        self.join, self.norm2 = (
            BinaryConv(2 * channels, channels, 3, 1, 1),
            nn.BatchNorm2d(channels),
        )
        self.head = nn.Conv2d(channels, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        deep = F.relu(self.norm(self.middle(clipped_sign(F.max_pool2d(skip, 2)))))
        both = torch.cat([skip, self.up(deep)], 1)
        return self.head(F.relu(self.norm2(self.join(clipped_sign(both)))))


class Transformer(nn.Module):
    """An encoder layer (arXiv:1706.03762) whose feed-forward block has binary weights."""

    def __init__(self, features: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, features)
        self.attention = nn.MultiheadAttention(features, 2, batch_first=True)
        self.norms = nn.ModuleList(nn.LayerNorm(features) for _ in range(2))
        self.up, self.down = nn.Linear(features, 32, False), nn.Linear(32, features, False)
        self.head = nn.Linear(features, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        y = self.norms[0](x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        y = F.gelu(F.linear(clipped_sign(self.norms[1](x)), clipped_sign(self.up.weight)))
        x = x + F.linear(y, clipped_sign(self.down.weight))
        return self.head(x.mean(1))


class Keyword(nn.Module):
    """A GRU over 12 frames of 10 coefficients (arXiv:1711.07128), a binary layer behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(10, 16, batch_first=True)
        self.hidden, self.norm = nn.Linear(16, 32, False), nn.BatchNorm1d(32)
        self.head = nn.Linear(32, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(clipped_sign(self.gru(x)[0][:, -1]), clipped_sign(self.hidden.weight))
        return self.head(F.relu(self.norm(x)))


def images(*, channels: int = 8, out: int = 8, **blocks: nn.Module) -> nn.Module:
    """Blocks between a real stem and a real head."""
    first = {"stem": nn.Conv2d(3, channels, 3, padding=1), "norm": nn.BatchNorm2d(channels)}
    pool = {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    return nn.Sequential(OrderedDict({**first, **blocks, **pool, "fc": nn.Linear(out, 5)}))


class Bits(nn.Module):
    """The sign."""

    def forward(self, x: Tensor) -> Tensor:
        return clipped_sign(x)


IMAGES = (8, 3, 16, 16)


def normal(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(shape, generator=torch.Generator().manual_seed(5))


PAPERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "ReActNet": (lambda: images(block=ReActBlock(8), out=16), normal(*IMAGES)),
    "IR-Net": (
        lambda: images(
            conv=IRConv(8, 8, 3, padding=1, bias=False), norm1=nn.BatchNorm2d(8), act=nn.Hardtanh()
        ),
        normal(*IMAGES),
    ),
    "MeliusNet": (lambda: images(block=Melius(8, 8), out=16), normal(*IMAGES)),
    "BoolNet": (
        lambda: images(bits=Bits(), block1=BoolBlock(8), block2=BoolBlock(8)),
        normal(*IMAGES),
    ),
    "LAB": (
        lambda: images(
            lab=Lab(8), conv=BinaryConv(8, 8, 3, 1, 1), norm1=nn.BatchNorm2d(8), act=nn.PReLU(8)
        ),
        normal(*IMAGES),
    ),
    "MoBiNet": (lambda: images(block=MoBiBlock(8)), normal(*IMAGES)),
    "PokeConv": (lambda: images(block=PokeConv(8)), normal(*IMAGES)),
    "QuickNet": (lambda: images(block=QuickBlock(8, 16), out=16), normal(*IMAGES)),
    "TWN": (
        lambda: images(
            conv=TernaryConv(8, 8, 3, padding=1, bias=False),
            norm1=nn.BatchNorm2d(8),
            act=nn.ReLU(),
        ),
        normal(*IMAGES),
    ),
    "BitNet b1.58": (
        lambda: nn.Sequential(OrderedDict(block=BitMlp(16, 32), fc=nn.Linear(16, 5))),
        normal(8, 16),
    ),
    "PACT and DoReFa": (
        lambda: images(
            relu=nn.ReLU(), conv=LowBitConv(8, 8, 3, padding=1), norm1=nn.BatchNorm2d(8)
        ),
        normal(*IMAGES),
    ),
    "activity": (Activity, normal(8, 9, 64)),
    "U-Net": (UNet, normal(4, 3, 16, 16)),
    "transformer": (Transformer, lambda: torch.arange(48).reshape(4, 12) * 7 % 20),
    "keyword GRU": (Keyword, normal(8, 12, 10)),
}


def make(name: str) -> tuple[nn.Module, Tensor]:
    """The network in training mode, with seeded weights, and a batch."""
    builder, batch = PAPERS[name]
    torch.manual_seed(0)
    return builder().train(), batch()
