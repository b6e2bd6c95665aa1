"""PyTorch's random functions, written in numbers that are uniform between 0 and 1.

A file so needs one random operator alone, and a comparison with PyTorch can hand out the numbers
that the compiled step draws. To add one: a function of `draw` and the function's own arguments, and
a row of `WRITTEN_OUT`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bnnopt.errors import ModelError
from bnnopt.torch.markers import straight_through

Draw = Callable[[Tensor], Tensor]
"""From a tensor to random numbers of its shape and type, in [0, 1)."""


def _feature_dropout(
    draw: Draw, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Whole channels of a batch (N, C, ...) are dropped."""
    if not training or not p:
        return input
    channels = input.detach()[(slice(None), slice(None), *[slice(0, 1)] * (input.ndim - 2))]
    return input * ((draw(channels) >= p).to(input.dtype) / (1 - p))


def _alpha_dropout(
    draw: Draw, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    """Refused: what it keeps is shifted and scaled, which an evaluation could not leave out."""
    if training and p:
        raise ModelError("alpha_dropout has no form in a file; expected another dropout")
    return input


def _rrelu(
    draw: Draw,
    input: Tensor,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    inplace: bool = False,
) -> Tensor:
    """A leaky ReLU with a slope of its own for each element."""
    if not training:
        return F.leaky_relu(input, (lower + upper) / 2)
    slope = lower + (upper - lower) * draw(input.detach())
    return torch.where(input >= 0, input, input * slope)


def _gumbel_softmax(
    draw: Draw,
    logits: Tensor,
    tau: float = 1,
    hard: bool = False,
    eps: float = 1e-10,
    dim: int = -1,
) -> Tensor:
    """arXiv:1611.01144; the hard one has the value of a choice and the gradient of the soft one."""
    soft = torch.softmax((logits - _exponential(draw, logits.detach()).log()) / tau, dim)
    if not hard:
        return soft
    index = soft.detach().argmax(dim, keepdim=True)
    chosen: Tensor = straight_through(torch.zeros_like(soft).scatter(dim, index, 1.0), soft)
    return chosen


def _exponential(draw: Draw, like: Tensor) -> Tensor:
    return -torch.log(1 - draw(like))


def _normal(draw: Draw, like: Tensor) -> Tensor:
    """By Box and Muller; as the compiler writes out ONNX's RandomNormal."""
    a, b = draw(like), draw(like)
    return torch.sqrt(-2 * torch.log(1 - a)) * torch.sin(math.tau * b)


def _randn(draw: Draw, *size: Any, **options: Any) -> Tensor:
    return _normal(draw, torch.empty(*size, **options))


def _randn_like(draw: Draw, input: Tensor, **options: Any) -> Tensor:
    return _normal(draw, torch.empty_like(input.detach(), **options))


def _normal_of(draw: Draw, mean: Any, std: Any = 1.0, size: Any = None, **options: Any) -> Tensor:
    """``torch.normal``: mean and deviation are tensors, or numbers with a size."""
    if size is not None:
        like = torch.empty(size)
    else:
        like = torch.as_tensor(mean, dtype=torch.get_default_dtype()) + std
    drawn: Tensor = mean + std * _normal(draw, like.detach())
    return drawn.detach()


def _bernoulli(draw: Draw, input: Tensor, p: Any = None, **options: Any) -> Tensor:
    chance = input if p is None else p
    return (draw(input.detach()) < chance).to(input.dtype)


def _uniform_(draw: Draw, x: Tensor, low: float = 0.0, to: float = 1.0, **options: Any) -> Tensor:
    return x.copy_(options.get("from", low) + (to - options.get("from", low)) * draw(x))


def _normal_(draw: Draw, x: Tensor, mean: float = 0.0, std: float = 1.0, **_: Any) -> Tensor:
    return x.copy_(mean + std * _normal(draw, x))


def _bernoulli_(draw: Draw, x: Tensor, p: Any = 0.5, **_: Any) -> Tensor:
    return x.copy_((draw(x) < p).to(x.dtype))


def _exponential_(draw: Draw, x: Tensor, lambd: float = 1.0, **_: Any) -> Tensor:
    return x.copy_(_exponential(draw, x) / lambd)


WRITTEN_OUT: dict[Callable[..., Any], Callable[..., Tensor]] = {
    **dict.fromkeys((F.dropout1d, F.dropout2d, F.dropout3d), _feature_dropout),
    **dict.fromkeys((F.alpha_dropout, F.feature_alpha_dropout), _alpha_dropout),
    F.rrelu: _rrelu,
    F.gumbel_softmax: _gumbel_softmax,
    torch.randn: _randn,
    torch.randn_like: _randn_like,
    torch.normal: _normal_of,
    **dict.fromkeys((torch.bernoulli, Tensor.bernoulli), _bernoulli),
    Tensor.uniform_: _uniform_,
    Tensor.normal_: _normal_,
    Tensor.bernoulli_: _bernoulli_,
    Tensor.exponential_: _exponential_,
}
