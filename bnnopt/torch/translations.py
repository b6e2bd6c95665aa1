"""The markers as ONNX nodes, for the exporter that starts from `torch.export`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset18 as op

from bnnopt.torch import markers  # noqa: F401  (registers the operators)
from bnnopt.torch.marking import MARKER


def _is_marked() -> Any:
    """True, written so that no user's module writes it: the exporter inlines functions."""
    first: Any = op.Constant(value_int=MARKER)
    second: Any = op.Constant(value_int=MARKER)
    return op.Equal(first, second)


def _stop(x: Any) -> Any:
    return op.Where(_is_marked(), x, x)


def _straight_through(b: Any, s: Any) -> Any:
    return op.Where(_is_marked(), b, s)


def _batch_norm(
    x: Any, scale: Any, bias: Any, mean: Any, var: Any, momentum: float, eps: float
) -> Any:
    y, _, _ = op.BatchNormalization(
        x, scale, bias, mean, var, epsilon=eps, momentum=1 - momentum, training_mode=1
    )
    return y


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.bnnopt.stop.default: _stop,
    torch.ops.bnnopt.straight_through.default: _straight_through,
    torch.ops.bnnopt.batch_norm.default: _batch_norm,
}
