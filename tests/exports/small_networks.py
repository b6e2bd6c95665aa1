"""Small float networks of kinds that are not in BitTrain's tables, as users write them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

N_CLASSES = 10


class LeNet(nn.Module):
    """LeCun et al. 1998 with ReLU and max pooling, for (N, 1, 28, 28)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        )
        self.classifier = nn.Sequential(
            *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()),
            nn.Linear(84, N_CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))  # type: ignore[no-any-return]


class Conv1d(nn.Module):
    """Windows of nine sensors, (N, 9, 128): three convolutions along time."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for c_in, c_out in ((9, width), (width, width), (width, 2 * width)):
            convolution = nn.Conv1d(c_in, c_out, 5, padding=2, bias=False)
            layers += [convolution, nn.BatchNorm1d(c_out), nn.ReLU(), nn.MaxPool1d(2)]
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(2 * width, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean(-1))  # type: ignore[no-any-return]


class FloatMLP(nn.Module):
    """784-256-256-256-256-10 with ReLU, for (N, 784)."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for c_in in (784, width, width, width):
            layers += [nn.Linear(c_in, width), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, N_CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Attention of several heads: Vaswani et al., arXiv:1706.03762."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = -1, x.shape[1], self.width // self.heads
        heads = self.qkv(x).reshape(n, length, 3, self.heads, width).permute(2, 0, 3, 1, 4)
        q, k, v = heads[0], heads[1], heads[2]
        weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(width), -1)
        joined = (weights @ v).transpose(1, 2).reshape(n, length, self.width)
        return self.proj(joined)  # type: ignore[no-any-return]


class EncoderLayer(nn.Module):
    """Attention and two dense layers with GELU, each behind a layer norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Encoder over 64 patches of 48 numbers, (N, 64, 48): an image of 32 x 32 in squares of 4."""

    def __init__(self, width: int = 64, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(48, width)
        self.position = nn.Parameter(torch.empty(64, width))
        self.layers = nn.Sequential(*(EncoderLayer(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.layers(self.embed(x) + self.position))
        return self.fc(x.mean(1))  # type: ignore[no-any-return]


SMALL_NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "lenet": (LeNet, (1, 28, 28)),
    "conv1d": (Conv1d, (9, 128)),
    "float-mlp": (FloatMLP, (784,)),
    "transformer": (Transformer, (64, 48)),
}
"""By name a builder and the shape of a sample."""
