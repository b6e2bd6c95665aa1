"""What PyTorch's exporters cannot write, in functions that they can.

To add one: a function of the same arguments, which gives None for those that need no other form,
and a row of `DECOMPOSED`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bnnopt.torch.markers import stop, straight_through


@contextlib.contextmanager
def tensor_roots() -> Iterator[None]:
    """Inside, ``math.sqrt`` of a size that is traced is traced: LSQ scales its gradient so."""
    own = math.sqrt

    def sqrt(x: Any, /) -> Any:
        return x**0.5 if isinstance(x, Tensor | torch.SymInt | torch.SymFloat) else own(x)

    math.sqrt = sqrt
    try:
        yield
    finally:
        math.sqrt = own


def _clamp(input: Tensor, min: Any = None, max: Any = None, **options: Any) -> Tensor | None:
    """Between a tensor and a number: PACT's, with ``alpha.item()``, which stays a tensor."""
    bounds = [bound for bound in (min, max) if bound is not None]
    if options or len({isinstance(bound, Tensor) for bound in bounds}) != 2:
        return None
    low, high = (
        bound if isinstance(bound, Tensor) else torch.full_like(input, bound)
        for bound in (min, max)
    )
    return torch.clamp(input, low, high)


def _hardtanh(
    input: Tensor, min_val: Any = -1.0, max_val: Any = 1.0, inplace: bool = False
) -> Tensor | None:
    return None if inplace else _clamp(input, min_val, max_val)


def _copysign(input: Tensor, other: Any, **options: Any) -> Tensor | None:
    """Of a 0 that has a sign of its own, that of +0."""
    if options or not isinstance(other, Tensor):
        return None
    return torch.where(stop(other.detach()) < 0, -input.abs(), input.abs())


def _assigned(x: Tensor, index: Any, value: Any) -> Tensor | None:
    """``x[mask] = number``, which torch.export takes for a list of places."""
    is_mask = isinstance(index, Tensor) and index.dtype == torch.bool and index.shape == x.shape
    is_number = not isinstance(value, Tensor) or not value.dim()
    return x.masked_fill_(index, value) if is_mask and is_number else None


def _fake_quantize(
    input: Tensor, scale: Any, zero_point: Any, quant_min: int, quant_max: int
) -> Tensor:
    """The gradient passes where the level is within the range."""
    if isinstance(scale, Tensor):
        scale = scale.detach()
    level = torch.round(input.detach() * (1 / scale) + zero_point)
    value = (level.clamp(quant_min, quant_max) - zero_point) * scale
    inside = ((level >= quant_min) & (level <= quant_max)).to(input.dtype)
    return straight_through(value, stop(inside) * input)  # type: ignore[no-any-return]


def _fake_quantize_channels(
    input: Tensor, scale: Tensor, zero_point: Tensor, axis: int, quant_min: int, quant_max: int
) -> Tensor:
    shape = [-1 if i == axis % input.ndim else 1 for i in range(input.ndim)]
    return _fake_quantize(
        input, scale.reshape(shape), zero_point.reshape(shape), quant_min, quant_max
    )


DECOMPOSED: dict[Callable[..., Any], Callable[..., Tensor | None]] = {
    **dict.fromkeys((torch.clamp, torch.clip, Tensor.clamp, Tensor.clip), _clamp),
    F.hardtanh: _hardtanh,
    **dict.fromkeys((torch.copysign, Tensor.copysign), _copysign),
    Tensor.__setitem__: _assigned,
    torch.fake_quantize_per_tensor_affine: _fake_quantize,
    torch.fake_quantize_per_channel_affine: _fake_quantize_channels,
}
