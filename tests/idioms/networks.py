"""Small networks around an idiom, their step in PyTorch and the compiled one on the same file."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor, nn

import bnnopt

Array = NDArray[Any]
Idiom = Callable[[Tensor], Tensor]
LEAST_COSINE, NORM_BOUND = 0.9999, 0.01


def function(value: Idiom, slope: Idiom = lambda x: (x.abs() <= 1).to(x.dtype)) -> Idiom:
    """An autograd function of this value and derivative: the file has the value alone."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return value(x)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            return grads[0] * slope(ctx.saved_tensors[0])

    return lambda x: Function.apply(x)  # type: ignore[no-any-return,no-untyped-call]


class Dense(nn.Module):
    """`activation` and `weight` are the idioms of the middle layer's operands; x: (N, 20)."""

    shape: tuple[int, ...] = (64, 20)

    def __init__(self, activation: Idiom, weight: Idiom) -> None:
        super().__init__()
        self.activation, self.quantize = activation, weight
        self.first, self.norm1 = nn.Linear(20, 32), nn.BatchNorm1d(32)
        self.weight = nn.Parameter(torch.randn(48, 32) * 0.7)
        self.norm2, self.last = nn.BatchNorm1d(48), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.activation(self.norm1(self.first(x)))
        return self.last(self.norm2(F.linear(h, self.quantize(self.weight))))  # type: ignore[no-any-return]


class Conv(nn.Module):
    """The same for a convolution with a shortcut; x: (N, 3, 10, 10)."""

    shape: tuple[int, ...] = (8, 3, 10, 10)

    def __init__(self, activation: Idiom, weight: Idiom) -> None:
        super().__init__()
        self.activation, self.quantize = activation, weight
        self.stem, self.norm1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        scale = 0.05 * (1 + 9 * torch.arange(16.0).view(16, 1, 1, 1) / 15)
        self.weight = nn.Parameter(torch.randn(16, 16, 3, 3) * scale)
        self.norm2, self.last = nn.BatchNorm2d(16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.stem(x))
        y = F.conv2d(self.activation(x), self.quantize(self.weight), padding=1)
        return self.last((x + self.norm2(y)).mean((2, 3)))  # type: ignore[no-any-return]


def export(module: nn.Module, x: Tensor, path: Path) -> None:
    """As README says."""
    options: dict[str, Any] = {
        "dynamo": False,
        "opset_version": 17,
        "training": torch.onnx.TrainingMode.TRAINING,
        "do_constant_folding": False,
        "input_names": ["x"],
        "dynamic_axes": {"x": {0: "batch"}},
    }
    with silent():
        torch.onnx.export(copy.deepcopy(module).train(), (x,), str(path), **options)


@contextmanager
def silent() -> Iterator[None]:
    """Without the words of an exporter."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


@dataclass
class Step:
    """Loss and gradients of one step, and what was compiled."""

    loss: float
    gradients: dict[str, Array]
    optimized: bnnopt.Optimized | None = None


@dataclass
class Case:
    """A module, a batch and its exported file."""

    module: nn.Module
    x: Tensor
    labels: Tensor
    path: Path

    @classmethod
    def of(cls, make: Callable[[], nn.Module], folder: Path) -> Case:
        """A case whose file is written as README says."""
        case = cls.made(make, folder)
        export(case.module, case.x, case.path)
        return case

    @classmethod
    def made(cls, make: Callable[[], nn.Module], folder: Path) -> Case:
        """A case without a file yet."""
        torch.manual_seed(1)
        module = make().train()
        draw = torch.Generator().manual_seed(0)
        shape: tuple[int, ...] = module.shape  # type: ignore[assignment]
        x = torch.randn(shape, generator=draw)
        labels = torch.randint(0, 10, shape[:1], generator=draw)
        return cls(module, x, labels, folder / "m.onnx")

    def in_pytorch(self) -> Step:
        module = copy.deepcopy(self.module)
        loss = F.cross_entropy(module(self.x), self.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        zeros = ((n, p, torch.zeros_like(p)) for n, p in module.named_parameters())
        return Step(
            loss.item(), {n: (z if p.grad is None else p.grad).numpy() for n, p, z in zeros}
        )

    def optimize(self, level: str, ste: Sequence[str] = ()) -> bnnopt.Optimized:
        return bnnopt.optimize(
            self.path, batch_size=len(self.x), level=level, optimizer="sgd", ste=ste
        )

    def compiled(self, level: str, ste: Sequence[str] = ()) -> Step:
        """The momentum of plain SGD starts as the gradient."""
        optimized = self.optimize(level, ste)
        folder = self.path.parent / level
        optimized.save(folder)
        session = bnnopt.TrainingSession(folder, threads=1)
        loss = session.step(self.x.numpy(), self.labels.numpy())
        session.save(self.path.parent / "checkpoint")
        state = load_file(self.path.parent / "checkpoint")
        found = {
            n.removesuffix(".momentum"): v for n, v in state.items() if n.endswith(".momentum")
        }
        return Step(loss, found, optimized)


def differences(got: Step, want: Step) -> list[str]:
    """What is wrong with a step, a line for each parameter."""
    found = []
    if abs(got.loss - want.loss) > 1e-4 * abs(want.loss):
        found.append(f"loss {got.loss}, expected {want.loss}")
    largest = max(float(np.linalg.norm(gradient)) for gradient in want.gradients.values())
    for name, theirs in want.gradients.items():
        ours = got.gradients.get(name, np.zeros_like(theirs)).reshape(theirs.shape)
        norms = float(np.linalg.norm(ours)), float(np.linalg.norm(theirs))
        if max(norms) < 1e-4 * largest:  # in front of a batch norm a bias has no effect
            continue
        cosine = float(np.vdot(ours, theirs)) / (norms[0] * norms[1] or 1.0)
        if cosine < LEAST_COSINE or abs(norms[0] / norms[1] - 1) > NORM_BOUND:
            found.append(f"{name}: cosine {cosine:.4f}, norms {norms}")
    return found


def assert_agrees(case: Case, ste: Sequence[str] = ()) -> bnnopt.Optimized:
    """PyTorch's step is ours, and -O1 is bit-equal to -O0; what -O1 compiled."""
    reference, packed = case.compiled("O0", ste), case.compiled("O1", ste)
    assert not differences(reference, case.in_pytorch())
    assert packed.loss == reference.loss
    for name, gradient in reference.gradients.items():
        np.testing.assert_array_equal(packed.gradients[name], gradient, err_msg=name)
    assert packed.optimized is not None
    return packed.optimized
