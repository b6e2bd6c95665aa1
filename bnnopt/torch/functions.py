"""Autograd functions: their value as they compute it, and a tensor s that has their gradient.

The backward of a straight-through estimator multiplies the gradient by a number for each element,
dx = dy h(x, ..). Then ``s = h.detach() * x`` has that very gradient. Where h is the derivative of
an estimator that has a name, s is its integral, and the compiler keeps bits instead of numbers.
Any other backward that is linear in dy, as that of a layer, dx = B dy, is the gradient of
``s = B.T x``, which autograd makes of the backward itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnnopt.errors import ModelError
from bnnopt.torch.layers import traceable_convolution_gradients
from bnnopt.torch.markers import stop

Function = type[torch.autograd.Function]
GRID = sorted({-1e4, -33.0, -9.0, 9.0, 33.0, 1e4, *np.arange(-4, 4.01, 1 / 16).tolist()})
_TOLERANCE = 1e-4
_BETA = 5.0  # of swish-sign, arXiv:1812.11800
_ADVICE = "write it as s + (b - s).detach(), with value b and the gradient of s"


class Context:
    """What a forward leaves for its backward; takes the place of PyTorch's own ``ctx``."""

    def __init__(self, needs_input_grad: Sequence[bool]) -> None:
        self.needs_input_grad = tuple(needs_input_grad)
        self.saved_tensors: tuple[Any, ...] = ()
        self.is_differentiable: Callable[[Tensor], bool] = lambda tensor: True
        self.dirty: tuple[Tensor, ...] = ()
        self.materializes = True

    def save_for_backward(self, *tensors: Tensor) -> None:
        """As PyTorch's."""
        self.saved_tensors = tensors

    save_for_forward = save_for_backward

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        """As PyTorch's."""
        self.is_differentiable = lambda tensor: all(tensor is not other for other in tensors)

    def mark_dirty(self, *tensors: Tensor) -> None:
        """As PyTorch's."""
        self.dirty = tensors

    def set_materialize_grads(self, value: bool) -> None:
        """As PyTorch's."""
        self.materializes = value

    @property
    def saved_variables(self) -> tuple[Any, ...]:
        """The old name of `saved_tensors`."""
        return self.saved_tensors


@dataclass(frozen=True)
class Estimator:
    """The integral s of a derivative: `name` and its number.

    ``product`` stands for any other, ``linear`` for a backward that mixes elements.
    """

    name: str
    number: float = 1.0

    def integral(self, x: Tensor, h: Tensor) -> Tensor:
        """The tensor s that has the derivative h with respect to x."""
        if self.name == "identity":
            return x if self.number == 1 else x * self.number
        if self.name == "clipped":
            return x.clamp(-self.number, self.number)
        if self.name == "approx-sign":
            inner = x.clamp(-1, 1)
            return inner * (2 - inner.abs())
        if self.name == "swish-sign":
            gate = torch.sigmoid(_BETA * x)
            return 2 * gate * (1 + _BETA * x * (1 - gate)) - 1
        return stop(h.detach()) * x  # type: ignore[no-any-return]

    def derivative(self, x: Tensor) -> Tensor:
        """What a named estimator multiplies the gradient by."""
        if self.name == "identity":
            return torch.full_like(x, self.number)
        if self.name == "clipped":
            return (x.abs() <= self.number).to(x.dtype)
        if self.name == "swish-sign":
            return _swish_sign_derivative(x)
        return (2 - 2 * x.abs()).clamp(min=0)


@dataclass
class Call:
    """One call of an autograd function: its outputs, and its backward."""

    function: Function
    inputs: tuple[Any, ...]
    needs: Sequence[bool] | None = None

    def __post_init__(self) -> None:
        needs = [isinstance(a, Tensor) and a.requires_grad for a in self.inputs]
        self.context = Context(needs if self.needs is None else self.needs)
        with torch.no_grad():
            if self._has_setup:
                self.result = self.function.forward(*self.inputs)
                self.function.setup_context(self.context, self.inputs, self.result)
            else:
                self.result = self.function.forward(self.context, *self.inputs)
        if self.context.dirty:
            raise ModelError(f"{self.where}: it changes its input in place; {_ADVICE}")

    @property
    def _has_setup(self) -> bool:
        base = torch.autograd.Function.setup_context
        return self.function.setup_context is not base

    @property
    def name(self) -> str:
        """Of the function; its class may be made anew in each run."""
        return self.function.__qualname__

    @property
    def where(self) -> str:
        """Name and place of the function."""
        try:
            line = inspect.getsourcelines(self.function)[1]
            place = f"{inspect.getsourcefile(self.function)}:{line}"
        except (OSError, TypeError):
            place = self.function.__module__
        return f"autograd function {self.function.__name__} ({place})"

    @property
    def outputs(self) -> tuple[Any, ...]:
        """The outputs, always as a tuple."""
        return self.result if isinstance(self.result, tuple) else (self.result,)

    @property
    def wanted(self) -> list[int]:
        """The inputs that a gradient goes to."""
        return [i for i, wants in enumerate(self.context.needs_input_grad) if wants]

    def backward(self, index: int, gradient: Tensor) -> list[Tensor | None]:
        """The gradients of the inputs for one of output `index`, and none of the others."""
        zero = torch.zeros_like if self.context.materializes else lambda tensor: None
        gradients = [
            gradient if i == index else zero(y) if isinstance(y, Tensor) else None
            for i, y in enumerate(self.outputs)
        ]
        found = self.function.backward(self.context, *gradients)
        found = found if isinstance(found, tuple) else (found,)
        return [found[i] if i < len(found) else None for i in range(len(self.inputs))]

    def gradients(self, index: int) -> list[int]:
        """The inputs that a gradient goes to from output `index`."""
        with torch.no_grad():
            grads = self.backward(index, torch.ones_like(self.outputs[index]))
        return [i for i in self.wanted if grads[i] is not None]

    def factors(self, index: int) -> dict[int, Tensor] | None:
        """For each input h, the shape of output `index`: its gradient is the sum of dy h.

        None where the gradient of an input cannot be such a sum, by its shape.
        """
        y = self.outputs[index]
        with torch.no_grad():
            grads = self.backward(index, torch.ones_like(y))
        found = {}
        for i in self.wanted:
            h = grads[i]
            if h is not None and h.shape != y.shape:
                h = self._unsummed(index, i)
            if h is not None:
                if not _sums_to(h, self.inputs[i]):
                    return None
                found[i] = h
        return found

    def _unsummed(self, index: int, i: int) -> Tensor:
        """The factor of a gradient that is summed, as that of a step size: its derivative by dy."""
        with torch.enable_grad():
            dy = torch.ones_like(self.outputs[index]).requires_grad_()
            summed = self.backward(index, dy)[i]
            assert summed is not None
            if not summed.requires_grad:
                raise ModelError(
                    f"{self.where}: the gradient of input {i} does not depend on dy; {_ADVICE}"
                )
            (h,) = torch.autograd.grad(summed.sum(), dy)
        return h

    def transposed(self, index: int, i: int) -> Tensor:
        """B.T x, where the gradient of input `i`, x, is B dy: the tensor that has this gradient."""
        held = tuple(stop(a.detach()) if isinstance(a, Tensor) else a for a in self.inputs)
        again = Call(self.function, held, self.context.needs_input_grad)
        with torch.enable_grad(), traceable_convolution_gradients():
            dy = torch.zeros_like(self.outputs[index]).requires_grad_()
            dx = again.backward(index, dy)[i]
            assert dx is not None
            (s,) = torch.autograd.grad((dx * self.inputs[i]).sum(), dy, create_graph=True)
        return s

    def are_factors(self, index: int, factors: dict[int, Tensor]) -> bool:
        """Whether the backward multiplies each element of a random dy by its factor."""
        dy = self._random(index, 0)
        with torch.no_grad():
            grads = self.backward(index, dy)
        return all(
            grads[i] is not None
            and _are_close((dy * h).sum_to_size(self.inputs[i].shape), grads[i], dy * h)
            for i, h in factors.items()
        )

    def check_linear(self, index: int) -> None:
        """Compare the backward of a sum with the sum of backwards.

        Raises
        ------
        ModelError
            If they differ, or a gradient has not the shape of its input.
        """
        dy, other = self._random(index, 0), self._random(index, 1)
        with torch.no_grad():
            a, b, both = (self.backward(index, v) for v in (dy, other, dy + 2 * other))
        for i in self.gradients(index):
            x, found = self.inputs[i], both[i]
            if found is None or found.shape != x.shape:
                raise ModelError(
                    f"{self.where}: the gradient of input {i} has another shape than it; {_ADVICE}"
                )
            first, second = a[i], b[i]
            assert first is not None
            assert second is not None
            if not _are_close(first + 2 * second, found, found):
                raise ModelError(
                    f"{self.where}: its backward is not linear in the gradient, as one that clips "
                    f"it; {_ADVICE}"
                )

    def _random(self, index: int, seed: int) -> Tensor:
        y, generator = self.outputs[index], torch.Generator().manual_seed(seed)
        return torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)


def _are_close(ours: Tensor, right: Tensor | None, like: Tensor) -> bool:
    """Whether gradients agree, but for rounding of the size of `like`."""
    if right is None or ours.shape != right.shape:
        return False
    size = float(like.abs().max()) if like.numel() else 0.0
    return torch.allclose(ours, right, rtol=_TOLERANCE, atol=_TOLERANCE * size)


def _sums_to(h: Tensor, x: Tensor) -> bool:
    padded = (1,) * (h.dim() - x.dim()) + tuple(x.shape)
    return len(padded) == h.dim() and all(a in (1, b) for a, b in zip(padded, h.shape, strict=True))


def recognize(call: Call, index: int) -> dict[int, Estimator]:
    """The estimator of each input: one that has a name, where the function is elementwise.

    Raises
    ------
    ModelError
        If the backward is not linear in the gradient.
    """
    factors = call.factors(index)
    if factors is None or not call.are_factors(index, factors):
        call.check_linear(index)
        return dict.fromkeys(call.gradients(index), Estimator("linear"))
    found = dict.fromkeys(factors, Estimator("product"))
    if len(factors) == 1:
        ((i, h),) = factors.items()
        x = call.inputs[i]
        named = _named(call, index, i) if x.shape == h.shape and x.dim() else None
        if named is not None and torch.allclose(named.derivative(x.detach()), h, atol=1e-5):
            found[i] = named
    return found


def _swish_sign_derivative(x: Tensor) -> Tensor:
    """b (2 - b x tanh(b x / 2)) / (1 + cosh(b x)), by a gate that does not overflow."""
    gate = torch.sigmoid(_BETA * x)
    return 2 * _BETA * gate * (1 - gate) * (2 - _BETA * x * torch.tanh(_BETA * x / 2))


def _named(call: Call, index: int, i: int) -> Estimator | None:
    def derivative(numbers: Sequence[float]) -> np.ndarray[Any, Any] | None:
        x = call.inputs[i].detach()
        grid = torch.tensor(numbers, dtype=x.dtype).reshape(-1, *(1 for _ in x.shape[1:]))
        inputs = (*call.inputs[:i], grid.requires_grad_(), *call.inputs[i + 1 :])
        try:
            again = Call(call.function, inputs)
            h = (again.factors(index) or {}).get(i)
        except Exception:  # the user's function may do anything with another shape
            return None
        if h is None or h.shape != grid.shape:
            return None
        return h.detach().reshape(-1).double().numpy()

    values = derivative(GRID)
    if values is None:
        return None
    grid = np.array(GRID)
    if np.ptp(values) == 0 and values[0]:
        return Estimator("identity", float(values[0]))
    if np.allclose(values, np.maximum(2 - 2 * np.abs(grid), 0), atol=1e-6):
        return Estimator("approx-sign")
    swish = _swish_sign_derivative(torch.tensor(GRID, dtype=torch.float64)).numpy()
    if np.allclose(values, swish, atol=1e-5):
        return Estimator("swish-sign")
    inside = np.abs(grid[values == 1])
    if set(np.unique(values)) != {0.0, 1.0} or not (values == values[::-1]).all():
        return None
    edge = _edge(derivative, float(inside.max()), grid)
    return Estimator("clipped", edge) if edge else None


def _edge(
    derivative: Callable[[Sequence[float]], np.ndarray[Any, Any] | None],
    low: float,
    grid: np.ndarray[Any, Any],
) -> float | None:
    """The largest float32 number that the gradient passes at; `low` is one."""
    above = np.abs(grid[np.abs(grid) > low])
    if not low or not above.size:
        return None
    first, last = (int(np.float32(v).view(np.int32)) for v in (low, above.min()))
    while last - first > 1:
        steps = np.unique(np.linspace(first, last, 65).astype(np.int32))
        values = derivative(steps.view(np.float32).tolist())
        if values is None or values[0] != 1 or values[-1] != 0 or (np.diff(values) > 0).any():
            return None
        n_inside = int((values == 1).sum())
        first, last = int(steps[n_inside - 1]), int(steps[n_inside])
    return float(np.int32(first).view(np.float32))
