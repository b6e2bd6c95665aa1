"""Modules as public code writes them. To add one: a function in `MODULES` and its input shape."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Apply = Callable[[Tensor], Tensor]
VECTORS, IMAGES = (32, 20), (8, 3, 8, 8)


def function(
    value: Callable[[Tensor], Tensor], derivative: Callable[[Tensor], Tensor | float]
) -> Apply:
    """The ``apply`` of an autograd function, taken out of its class as modules store it."""

    class Fn(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return value(x)

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> Tensor:
            return dy * derivative(ctx.saved_tensors[0])

    return Fn.apply


def window(x: Tensor) -> Tensor:
    return (x.abs() <= 1).to(x.dtype)


class InPlaceWindow(torch.autograd.Function):
    """XNOR-Net's: the bounds themselves are outside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        dy = dy.clone()
        dy[x.ge(1)] = 0
        dy[x.le(-1)] = 0
        return dy


class ErrorDecay(torch.autograd.Function):
    """IR-Net's, with its two tensors that get no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, k: Tensor, t: Tensor) -> Tensor:
        ctx.save_for_backward(x, k, t)
        return torch.sign(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        x, k, t = ctx.saved_tensors
        return k * t * (1 - torch.tanh(x * t) ** 2) * dy, None, None


class ScaledSign(torch.autograd.Function):
    """Not elementwise in its value, but in its gradient."""

    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        ctx.save_for_backward(w)
        return w.abs().mean((1, 2, 3), keepdim=True) * w.sign()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return dy * window(ctx.saved_tensors[0])


class MixedSign(ScaledSign):
    """XNOR-Net's weights: the gradient of one is a sum over others."""

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (w,) = ctx.saved_tensors
        return dy * window(w) + (dy * w.sign()).sum((1, 2, 3), keepdim=True) * w.sign() / 144


class BinaryLinear(torch.autograd.Function):
    """A whole layer, with the gradients of a layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w.sign().t() + bias

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        dx = dy @ w.sign() if ctx.needs_input_grad[0] else None
        return dx, window(w) * (dy.t() @ x), dy.sum(0)


class BinaryConv(torch.autograd.Function):
    """The same of a convolution, with the functions that PyTorch has for its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return F.conv2d(x, w.sign(), padding=1)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        dx = torch.nn.grad.conv2d_input(x.shape, w.sign(), dy, padding=1)
        return dx, window(w) * torch.nn.grad.conv2d_weight(x, w.shape, dy, padding=1)


class Bounded(torch.autograd.Function):
    """PACT, with its bound as a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: Tensor) -> Tensor:
        ctx.save_for_backward(x, bound)
        step = bound.item() / 3
        return torch.round(torch.clamp(x, min=0, max=bound.item()) / step) * step

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        x, bound = ctx.saved_tensors
        return dy * ((x >= 0) & (x <= bound)), (dy * (x > bound)).sum().view(1)


class ClippedGradient(torch.autograd.Function):
    """Its backward clips the gradient itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return F.hardtanh(dy)


class StepSize(torch.autograd.Function):
    """LSQ: the gradient of the step size is one sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: int, high: int) -> Tensor:
        ctx.save_for_backward(x, step)
        ctx.bounds = low, high
        return (x / step).round().clamp(low, high) * step

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, step = ctx.saved_tensors
        low, high = ctx.bounds
        ratio = x / step
        under, over = (ratio < low).float(), (ratio > high).float()
        inside = 1 - under - over
        slope = under * low + over * high + inside * (ratio.round() - ratio)
        return inside * dy, (slope * dy).sum().unsqueeze(0), None, None


class Branches(torch.autograd.Function):
    """Of the newer kind, with two inputs and two outputs."""

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a.sign() * b.sign(), torch.where(a >= 0, 1.0, -1.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return first * b.sign() + second * (a.abs() < 1.3), first * a.sign()


class Dense(nn.Module):
    """``f`` between two layers."""

    def __init__(self, f: Apply) -> None:
        super().__init__()
        self.f, self.a, self.o = f, nn.Linear(20, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.f(self.a(x)))


class Conv(nn.Module):
    """``f`` on activations, ``g`` on weights."""

    def __init__(self, f: Apply, g: Apply = lambda w: w) -> None:
        super().__init__()
        self.f, self.g = f, g
        self.stem, self.n1 = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.n2, self.o = nn.BatchNorm2d(16), nn.Linear(16, 10)
        self.weight = nn.Parameter(torch.randn(16, 16, 3, 3) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.n1(self.stem(x))
        return self.o(
            (x + self.n2(F.conv2d(self.f(x), self.g(self.weight), padding=1))).mean((2, 3))
        )


class Learned(Conv):
    """A trained step size."""

    def __init__(self) -> None:
        super().__init__(lambda x: StepSize.apply(x, self.step, -4, 3))
        self.step = nn.Parameter(torch.tensor([0.3]))


class Layers(nn.Module):
    """Layers that are autograd functions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.kernel = nn.Parameter(torch.randn(8, 8, 3, 3) * 0.3)
        self.norm2, self.hidden, self.o = nn.BatchNorm2d(8), nn.Linear(8, 8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = sign(self.norm(self.stem(x)))
        x = self.norm2(BinaryConv.apply(x, self.kernel)).mean((2, 3))
        return self.o(F.relu(BinaryLinear.apply(x, self.hidden.weight, self.hidden.bias)))


class LearnedBound(Dense):
    def __init__(self) -> None:
        super().__init__(lambda x: Bounded.apply(x, self.bound))
        self.bound = nn.Parameter(torch.tensor([0.6]))


class TrainedClamp(Dense):
    """Its bounds are trained."""

    def __init__(self) -> None:
        super().__init__(lambda x: x.clamp(self.low, self.high))
        self.low = nn.Parameter(torch.tensor(-0.2))
        self.high = nn.Parameter(torch.tensor(0.5))


class TrainedExponent(Dense):
    """Generalised mean pooling, arXiv:1711.02512: its exponent is trained."""

    def __init__(self) -> None:
        super().__init__(lambda x: x.clamp(min=1e-6) ** self.exponent)
        self.exponent = nn.Parameter(torch.tensor([3.0]))


class ScaledStep(Dense):
    """LSQ's gradient of the step size, divided by a root of sizes; both layers share it."""

    def __init__(self) -> None:
        super().__init__(self.quantized)
        self.step = nn.Parameter(torch.tensor(0.3))

    def quantized(self, x: Tensor) -> Tensor:
        scale = 1 / math.sqrt(x.numel() * 3)
        step = (self.step - self.step * scale).detach() + self.step * scale
        v = (x / step).clamp(-4, 3)
        return ((v.round() - v).detach() + v) * step


def fake_quantized(x: Tensor) -> Tensor:
    scales, zeros = torch.linspace(0.05, 0.2, 32), torch.zeros(32, dtype=torch.int32)
    x = torch.fake_quantize_per_channel_affine(x, scales, zeros, 1, -4, 3)
    return torch.fake_quantize_per_tensor_affine(x, 0.1, 2, -8, 7)


class DataLinear(nn.Linear):
    """The linear layer of BinaryNet.pytorch, which overwrites what its tensors hold."""

    def forward(self, x: Tensor) -> Tensor:
        if x.size(1) != 20:
            x.data = x.data.sign()
        if not hasattr(self.weight, "org"):
            self.weight.org = self.weight.data.clone()
        self.weight.data = self.weight.org.sign()
        return F.linear(x, self.weight) + self.bias


def data_network() -> nn.Module:
    return nn.Sequential(DataLinear(20, 32), nn.BatchNorm1d(32), nn.Hardtanh(), DataLinear(32, 10))


class NoGrad(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(20, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        with torch.no_grad():
            scale = h.abs().mean(1, keepdim=True)
            levels = torch.round(h / scale)
        return self.o(h * scale + (levels - h).detach() + h)


class Buffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((20,), 0.1))
        self.a, self.o = nn.Linear(20, 32), nn.Linear(32, 10)
        self.a.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(F.relu(self.a(x - self.mean)))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(20, 20), nn.Linear(20, 20), nn.Linear(20, 10)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.o(F.relu(self.b(F.relu(self.a(x)))))


class Arguments(nn.Module):
    """Two tensors, arguments that are none, and a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(20, 64), nn.Linear(5, 64), nn.Linear(64, 10)

    def forward(
        self, x: Tensor, extra: Tensor, *, scale: float = 1.0, mode: str = "add"
    ) -> dict[str, Tensor]:
        h = self.a(x) * scale
        h = h + self.b(extra) if mode == "add" else h
        return {"logits": self.o(F.relu(h)), "hidden": h}


class Block(nn.Module):
    """A residual block with a stride, as torchvision writes it."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.c1, self.n1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out)
        self.c2, self.n2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out)
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Sequential(
            nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.n2(self.c2(self.relu(self.n1(self.c1(x)))))
        y += self.down(x)
        return self.relu(y)


def resnet() -> nn.Module:
    blocks = (Block(8, 8, 1), Block(8, 16, 2))
    stem = (nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def frozen_norm(is_trained: bool) -> nn.Module:
    module = Conv(InPlaceWindow.apply)
    module.n1.running_mean.normal_()  # type: ignore[union-attr]
    module.n1.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    module.n1.eval().requires_grad_(is_trained)
    return module


def error_decay(x: Tensor) -> Tensor:
    return ErrorDecay.apply(x, torch.tensor([10.0]), torch.tensor([0.1]))


def sign(x: Tensor) -> Tensor:
    return function(torch.sign, window)(x)


def swish_slope(x: Tensor) -> Tensor:
    return 5 * (2 - 5 * x * torch.tanh(2.5 * x)) / (1 + torch.cosh(5 * x))


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "clipped": (lambda: Conv(function(torch.sign, window), sign), IMAGES),
    "bounds outside": (lambda: Conv(lambda x: InPlaceWindow.apply(F.hardtanh(3 * x))), IMAGES),
    "identity": (lambda: Conv(function(torch.sign, lambda x: 1.0)), IMAGES),
    "scaled identity": (lambda: Dense(function(torch.sign, lambda x: 0.3)), VECTORS),
    "polynomial": (
        lambda: Conv(function(torch.sign, lambda x: (2 - 2 * x.abs()).clamp(min=0))),
        IMAGES,
    ),
    "swish": (lambda: Conv(function(torch.sign, swish_slope)), IMAGES),
    "error decay": (lambda: Conv(error_decay, error_decay), IMAGES),
    "asymmetric": (lambda: Dense(function(torch.sign, lambda x: (x > -0.5).float())), VECTORS),
    "scaled inside": (lambda: Conv(sign, ScaledSign.apply), IMAGES),
    "learned step": (Learned, IMAGES),
    "mixed": (lambda: Conv(sign, MixedSign.apply), IMAGES),
    "layers": (Layers, IMAGES),
    "bound as a number": (LearnedBound, VECTORS),
    "trained clamp": (TrainedClamp, VECTORS),
    "trained exponent": (TrainedExponent, VECTORS),
    "root of a size": (ScaledStep, VECTORS),
    "fake quantisation": (lambda: Dense(fake_quantized), VECTORS),
    "copysign": (lambda: Dense(lambda x: torch.copysign(x, x.detach() - 0.1)), VECTORS),
    "branches": (lambda: Dense(lambda x: sum(Branches.apply(x, x * 0.5 + 0.1))), VECTORS),
    "reversed": (lambda: Dense(function(lambda x: x.view_as(x), lambda x: -0.3)), VECTORS),
    "data overwritten": (data_network, VECTORS),
    "no_grad": (NoGrad, VECTORS),
    "b - s + s": (lambda: Dense(lambda x: x.sign().detach() - x.detach() + x), VECTORS),
    "no detach": (lambda: Dense(lambda x: (F.relu(x) + x) - x), VECTORS),
    "gate": (lambda: Dense(lambda x: x * torch.sigmoid(x).detach()), VECTORS),
    "plain sign": (lambda: Dense(lambda x: x + torch.sign(x)), VECTORS),
    "plain round": (lambda: Dense(lambda x: x + torch.round(x)), VECTORS),
    "plain where": (lambda: Dense(lambda x: x + torch.where(x >= 0, 1.0, -1.0)), VECTORS),
    "sign of zeros": (lambda: Dense(lambda x: x + sign(F.relu(x))), VECTORS),
    "buffers": (Buffers, VECTORS),
    "shared": (Shared, VECTORS),
    "resnet": (resnet, IMAGES),
    "frozen norm": (lambda: frozen_norm(False), IMAGES),
    "frozen norm, trained": (lambda: frozen_norm(True), IMAGES),
    "evaluation mode": (lambda: Conv(sign).eval(), IMAGES),
}


def make(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A module, a batch and labels, the same each time."""
    torch.manual_seed(1)
    maker, shape = MODULES[name]
    module = maker()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    return module, x, torch.randint(0, 10, shape[:1], generator=generator)
