"""Gradients of convolutions that a user's backward calls for, in a form that can be traced.

PyTorch's own, ``torch.nn.grad.conv2d_input`` and its kin, are one operator that no exporter writes.
Both are linear in the gradient dy, dx = B dy, and ``Call.transposed`` needs nothing but B.T, which
is a convolution: of x with w' where dw = B dy is that of a weight, of x' with w for an input.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
import torch.nn.grad as gradients
from torch import Tensor

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class _Adjoint(torch.autograd.Function):
    """A tensor of zeros, as the gradient at dy = 0 is, and the convolution behind it."""

    @staticmethod
    def forward(ctx: Any, dy: Tensor, size: Any, convolution: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.convolution = convolution
        return dy.new_zeros(tuple(size))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.convolution(gradients[0]), None, None


@contextlib.contextmanager
def traceable_convolution_gradients() -> Iterator[None]:
    """Inside, functions of ``torch.nn.grad`` take dy = 0 and have their true adjoint."""
    own = {name: getattr(gradients, name) for name in _names()}
    try:
        for n, convolution in _CONVOLUTIONS.items():
            setattr(gradients, f"conv{n}d_input", _of_input(convolution))
            setattr(gradients, f"conv{n}d_weight", _of_weight(convolution))
        yield
    finally:
        for name, function in own.items():
            setattr(gradients, name, function)


def _names() -> list[str]:
    return [f"conv{n}d_{of}" for n in _CONVOLUTIONS for of in ("input", "weight")]


def _of_input(convolution: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def gradient(
        input_size: Any, weight: Tensor, grad_output: Tensor, *options: Any, **named: Any
    ) -> Tensor:
        of = lambda x: convolution(x, weight, None, *options, **named)  # noqa: E731
        return _Adjoint.apply(grad_output, input_size, of)  # type: ignore[no-untyped-call,no-any-return]

    return gradient


def _of_weight(convolution: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def gradient(
        input: Tensor, weight_size: Any, grad_output: Tensor, *options: Any, **named: Any
    ) -> Tensor:
        of = lambda w: convolution(input, w, None, *options, **named)  # noqa: E731
        return _Adjoint.apply(grad_output, weight_size, of)  # type: ignore[no-untyped-call,no-any-return]

    return gradient
