"""PyTorch's own loss and gradients of one batch, as it trains the module."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bnnopt.errors import UsageError
from bnnopt.frontend import one_line
from bnnopt.runtime.format import Artifact
from bnnopt.torch.draws import OurDraws
from bnnopt.torch.example import Example
from bnnopt.torch.exporting import plain_outputs
from bnnopt.torch.state import untouched

Array = NDArray[Any]
_NOISE = 1e-6
_N_NOISY = 6


def _squared_hinge(out: Tensor, labels: Tensor) -> Tensor:
    signs = F.one_hot(labels.long(), out.shape[1]).movedim(-1, 1).to(out.dtype) * 2 - 1
    return (1 - signs * out).clamp(min=0).square().mean()


_LOSSES: dict[str, Callable[..., Tensor]] = {
    "bce": F.binary_cross_entropy_with_logits,
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "huber": F.huber_loss,
    "soft-cross-entropy": F.cross_entropy,
    "squared-hinge": _squared_hinge,
}


@dataclass(frozen=True)
class Gradients:
    """A loss, and the gradients of all parameters that have one, by name."""

    loss: float
    gradients: dict[str, Array]


@dataclass
class Reference:
    """PyTorch on one batch, with the loss that `about` names and the step's own random numbers."""

    module: nn.Module
    inputs: Example
    targets: Sequence[Tensor]
    about: Artifact
    draws: Sequence[ir.Node]

    @cached_property
    def right(self) -> Gradients:
        """In float32."""
        return self._run(torch.float32)

    def exact(self, name: str) -> tuple[Array | None, float]:
        """A gradient in float64, and how far float32 gets from it under tiny noise."""
        exact = self._doubles.gradients.get(name)
        if exact is None:
            return None, 0.0
        noisy = [run.gradients[name] for run in self._noisy if name in run.gradients]
        return exact, max((float(np.linalg.norm(g - exact)) for g in noisy), default=0.0)

    def loss_spread(self) -> float:
        """How far losses in float32 are from float64 under tiny noise, thrice."""
        exact = self._doubles
        if not exact.gradients:
            return 0.0
        return 3 * max(abs(run.loss - exact.loss) for run in (self.right, *self._noisy))

    @cached_property
    def _doubles(self) -> Gradients:
        try:
            return self._run(torch.float64)
        except UsageError:  # a module that is float32 by what it writes has no referee
            return Gradients(0.0, {})

    @cached_property
    def _noisy(self) -> list[Gradients]:
        return [self._run(torch.float32, seed) for seed in range(_N_NOISY)]

    def _run(self, kind: torch.dtype, noise_seed: int | None = None) -> Gradients:
        module = self.module
        tensors = [_as(tensor, kind, noise_seed) for tensor in self.inputs.tensors()]
        with untouched(module), _default(kind):
            for tensor in (*module.parameters(), *module.buffers()):
                if tensor.is_floating_point():
                    tensor.data = tensor.data.to(kind)
            args, kwargs = self.inputs.filled(tensors)
            try:
                with OurDraws(self.draws):
                    out = module(*args, **kwargs)
            except Exception as error:  # whatever the user's forward raises
                raise UsageError(
                    f"{type(module).__name__}: forward does not run on the example: "
                    f"{one_line(error)}"
                ) from None
            first = next(v for v in tree_leaves(plain_outputs(out)) if isinstance(v, Tensor))
            loss = self._loss(first, kind)
            trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
            for parameter in trained.values():
                parameter.grad = None
            loss.backward()  # type: ignore[no-untyped-call]
            grads = {name: p.grad for name, p in trained.items()}
            found = {name: g.detach().numpy().copy() for name, g in grads.items() if g is not None}
            return Gradients(loss.item(), found)

    def _loss(self, out: Tensor, kind: torch.dtype) -> Tensor:
        if self.about.loss == "none":
            return out.sum()
        (target,) = self.targets
        if self.about.loss != "cross-entropy":
            return _LOSSES[self.about.loss](out, target.to(kind))
        options = self.about.loss_options
        weights = options.get("class_weights") or None
        ignored = options.get("ignore_index")
        return F.cross_entropy(
            out,
            target,
            weight=None if weights is None else torch.tensor(weights, dtype=kind),
            ignore_index=-100 if ignored is None else int(ignored),
            label_smoothing=float(options.get("label_smoothing") or 0.0),
        )


@contextlib.contextmanager
def _default(kind: torch.dtype) -> Iterator[None]:
    """Numbers in the user's code, as in ``torch.where(x >= 0, 1.0, -1.0)``, are of this type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _as(tensor: Tensor, kind: torch.dtype, noise_seed: int | None) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    if noise_seed is not None:
        generator = torch.Generator().manual_seed(noise_seed)
        tensor = tensor * (1 + _NOISE * torch.randn(tensor.shape, generator=generator))
    return tensor.to(kind)
