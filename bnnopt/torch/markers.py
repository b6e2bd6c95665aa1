"""Operators that carry through an exporter what no ONNX operator says: where a gradient goes.

Both have the value of their first operand, so that a traced module computes what it computed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NAMESPACE = "bnnopt"


@torch.library.custom_op(f"{NAMESPACE}::stop", mutates_args=())
def stop(x: Tensor) -> Tensor:
    """The value of x, through which no gradient passes: ``x.detach()``."""
    return x.clone()


@torch.library.custom_op(f"{NAMESPACE}::straight_through", mutates_args=())
def straight_through(b: Tensor, s: Tensor) -> Tensor:
    """The value of b, with the gradient of s."""
    return b.clone()


@stop.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@straight_through.register_fake
def _(b: Tensor, s: Tensor) -> Tensor:
    return torch.empty_like(b)


@torch.library.custom_op(f"{NAMESPACE}::batch_norm", mutates_args=())
def batch_norm(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, momentum: float, eps: float
) -> Tensor:
    """A batch norm in training mode that leaves its running statistics alone.

    `torch.export` takes PyTorch's own apart.
    """
    return torch.nn.functional.batch_norm(x, None, None, scale, bias, True, momentum, eps).clone()


@batch_norm.register_fake
def _(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, momentum: float, eps: float
) -> Tensor:
    return torch.empty_like(x)


def _backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
    return None, gradient


def _no_backward(ctx: Any, gradient: Tensor) -> Any:
    raise NotImplementedError("a batch norm that is being exported has no gradient")


straight_through.register_autograd(_backward)
batch_norm.register_autograd(_no_backward)
