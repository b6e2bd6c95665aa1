"""The three small binary networks of Wang et al., "Enabling Binary Neural Network Training on the
Edge", ACM TECS 2023 (arXiv:2102.04270), written down in the notation of the paper.

``C128`` is a 3x3 binary convolution with 128 channels and stride 1, ``FC512`` a binary dense layer
with 512 outputs (both without bias), ``BN`` batch norm with beta only, ``S`` sign, and ``MP2`` a
2x2 max pool.  Weights are binary in every layer, the first and the last included; only the
network's input is real.
"""

from __future__ import annotations

import re
from collections import Counter

import onnx_ir as ir

from bnnopt.models.layers import LayerBuilder

MLP = "FC256,BN,S | FC256,BN,S | FC256,BN,S | FC256,BN,S | FC10,BN"

BINARYNET = (
    "C128,BN,S | C128,MP2,BN,S | C256,BN,S | C256,MP2,BN,S | C512,BN,S | C512,MP2,BN,S |"
    "FC1024,BN,S | FC1024,BN,S | FC10,BN"
)

CNV = (
    "C64,BN,S | C64,BN,S,MP2 | C128,BN,S | C128,BN,S,MP2 | C256,BN,S | C256,BN,S |"
    "FC512,BN,S | FC512,BN,S | FC10,BN"
)


def mlp(seed: int) -> ir.Model:
    """Binary MLP for MNIST: x (N, 784) in [-1, 1] -> logits (N, 10); 399,872 weights."""
    return from_listing("mlp", MLP, (784,), seed)


def binarynet(seed: int) -> ir.Model:
    """BinaryNet for CIFAR-10: x (N, 3, 32, 32) -> logits (N, 10); 14,022,016 weights.

    Same padding, so the maps are 32, 16, 8 and 4 wide.  The network of Courbariaux et al. 2016,
    arXiv:1602.02830.
    """
    return from_listing("binarynet", BINARYNET, (3, 32, 32), seed, pad=1)


def cnv(seed: int) -> ir.Model:
    """CNV for CIFAR-10: x (N, 3, 32, 32) -> logits (N, 10); 1,542,848 weights.

    Valid padding, so the maps shrink: 30, 28, 14, 12, 10, 5, 3 and 1 wide.  The network of FINN,
    Umuroglu et al. 2017, arXiv:1612.07119.
    """
    return from_listing("cnv", CNV, (3, 32, 32), seed, pad=0)


def from_listing(
    name: str, listing: str, input_shape: tuple[int, ...], seed: int, pad: int = 0
) -> ir.Model:
    """A sequential network in the notation of this module; convolutions pad by `pad`."""
    builder = LayerBuilder(input_shape, seed)
    logits = _Sequential(builder, pad).append(builder.x, listing)
    return builder.model(logits, name, f"{listing}; Wang et al. 2023, arXiv:2102.04270")


class _Sequential:
    """Reads a listing and appends its layers, each kind numbered from 1: conv1, bn1, sign1, ..."""

    def __init__(self, builder: LayerBuilder, pad: int) -> None:
        self._builder = builder
        self._pad = pad
        self._count: Counter[str] = Counter()

    def append(self, x: ir.Value, listing: str) -> ir.Value:
        for kind, size in re.findall(r"([A-Z]+)(\d*)", listing):
            x = self._layer(x, kind, size)
        return x

    def _layer(self, x: ir.Value, kind: str, size: str) -> ir.Value:
        b = self._builder
        match kind:
            case "C":
                return b.conv(x, int(size), self._name("conv"), pad=self._pad, binary=True)
            case "FC":
                flat = b.flatten(x, "flatten") if x.shape and len(x.shape) == 4 else x
                return b.dense(flat, int(size), self._name("fc"), binary=True)
            case "BN":
                return b.batch_norm(x, self._name("bn"))
            case "S":
                return b.sign(x, self._name("sign"))
            case "MP":
                return b.max_pool(x, self._name("pool"))
        raise ValueError(f"unknown layer {kind + size!r} in a listing")

    def _name(self, kind: str) -> str:
        self._count[kind] += 1
        return f"{kind}{self._count[kind]}"
