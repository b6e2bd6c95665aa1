"""Networks as users write them in PyTorch, exported as users should export them.

The styles differ on purpose, as they do between binary-network repositories: one autograd.Function
for everything or a module per layer, ``view`` or ``flatten``, modules or functionals.  All are
exported with the TorchScript exporter in training mode, the one export that keeps latent weights
and batch norm (see ``export``).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

N_CLASSES = 10


class BinarySign(torch.autograd.Function):
    """Sign with sign(0) = +1 and the clipped straight-through estimator.

    Forward:   y = 1 where x >= 0, else -1
    Backward:  dx = dy * (|x| <= 1)
    Exported:  ``Sign``
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x >= 0, torch.ones_like(x), -torch.ones_like(x))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        return grads[0] * (x.abs() <= 1)

    @staticmethod
    def symbolic(g: Any, x: Any) -> Any:
        return g.op("Sign", x)


def binarize(x: Tensor) -> Tensor:
    return BinarySign.apply(x)  # type: ignore[no-any-return, no-untyped-call]


# mlp: nn.Linear subclass, numbered attributes, BN with gamma and beta ----------------------------


class BinaryLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, binarize(self.weight), self.bias)


class MLP(nn.Module):
    """784-256-256-256-256-10; the input is real, x: (N, 784)."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.fc1 = BinaryLinear(784, width, bias=False)
        self.bn1 = nn.BatchNorm1d(width)
        self.fc2 = BinaryLinear(width, width, bias=False)
        self.bn2 = nn.BatchNorm1d(width)
        self.fc3 = BinaryLinear(width, width, bias=False)
        self.bn3 = nn.BatchNorm1d(width)
        self.fc4 = BinaryLinear(width, width, bias=False)
        self.bn4 = nn.BatchNorm1d(width)
        self.fc5 = BinaryLinear(width, N_CLASSES, bias=False)
        self.bn5 = nn.BatchNorm1d(N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = binarize(self.bn1(self.fc1(x)))
        x = binarize(self.bn2(self.fc2(x)))
        x = binarize(self.bn3(self.fc3(x)))
        x = binarize(self.bn4(self.fc4(x)))
        return self.bn5(self.fc5(x))  # type: ignore[no-any-return]


# binarynet: sign inside the layer unless it is the first, nn.Sequential, view --------------------


class BinarizeConv2d(nn.Conv2d):
    """Convolution that binarises its weight, and its input unless that is an image."""

    def forward(self, x: Tensor) -> Tensor:
        if self.in_channels != 3:
            x = binarize(x)
        return F.conv2d(
            x, binarize(self.weight), None, self.stride, self.padding, self.dilation, self.groups
        )


class BinarizeLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(binarize(x), binarize(self.weight))


class BinaryNet(nn.Module):
    """Courbariaux's VGG for (N, 3, 32, 32); ``width`` scales every layer but the last."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        c1, c2, c3, fc = (round(width * c) for c in (128, 256, 512, 1024))
        self.features = nn.Sequential(*self._pair(3, c1), *self._pair(c1, c2), *self._pair(c2, c3))
        self.n_features = c3 * 4 * 4
        self.classifier = nn.Sequential(
            BinarizeLinear(self.n_features, fc, bias=False),
            nn.BatchNorm1d(fc),
            BinarizeLinear(fc, fc, bias=False),
            nn.BatchNorm1d(fc),
            BinarizeLinear(fc, N_CLASSES, bias=False),
            nn.BatchNorm1d(N_CLASSES),
        )

    @staticmethod
    def _pair(c_in: int, c_out: int) -> list[nn.Module]:
        return [
            BinarizeConv2d(c_in, c_out, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(c_out),
            BinarizeConv2d(c_out, c_out, kernel_size=3, padding=1, bias=False),
            nn.MaxPool2d(kernel_size=2, stride=2),
            nn.BatchNorm2d(c_out),
        ]

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = x.view(-1, self.n_features)
        return self.classifier(x)  # type: ignore[no-any-return]


# residual: a block class with an optional downsample, functionals, torch.flatten -----------------


class BasicBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(c_out, c_in, 3, 3))
        self.bn = nn.BatchNorm2d(c_out)
        self.downsample: nn.Module | None = None
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(
                nn.AvgPool2d(kernel_size=2, stride=stride),
                nn.Conv2d(c_in, c_out, kernel_size=1, bias=False),
                nn.BatchNorm2d(c_out),
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = F.conv2d(binarize(x), binarize(self.weight), stride=self.stride, padding=1)
        out = self.bn(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return out  # type: ignore[no-any-return]


class Residual(nn.Module):
    """Small Bi-Real network for (N, 3, 32, 32): real stem, binary blocks at 16, 32 and 64."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(BasicBlock(16, 16), BasicBlock(16, 16))
        self.layer2 = nn.Sequential(BasicBlock(16, 32, stride=2), BasicBlock(32, 32))
        self.layer3 = nn.Sequential(BasicBlock(32, 64, stride=2), BasicBlock(64, 64))
        self.fc = nn.Linear(64, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.adaptive_avg_pool2d(F.relu(x), 1)
        x = torch.flatten(x, 1)
        return self.fc(x)  # type: ignore[no-any-return]


# relu: MobileNet-like, helper functions that return nn.Sequential, x.view(x.size(0), -1) ---------


def conv_bn(c_in: int, c_out: int, kernel: int, groups: int, act: nn.Module) -> nn.Sequential:
    padding = (kernel - 1) // 2
    conv = nn.Conv2d(c_in, c_out, kernel, padding=padding, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), act)


class ReluNet(nn.Module):
    """Small float network for (N, 3, 32, 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv_bn(3, 16, 3, 1, nn.ReLU6(inplace=True)),
            nn.MaxPool2d(2),
            conv_bn(16, 16, 3, 16, nn.ReLU6(inplace=True)),
            conv_bn(16, 32, 1, 1, nn.ReLU(inplace=True)),
            nn.MaxPool2d(2),
        )
        self.fc = nn.Linear(32 * 8 * 8, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = x.view(x.size(0), -1)
        return self.fc(x)  # type: ignore[no-any-return]


# binary-depthwise: separable blocks, both convolutions of them binary ----------------------------


class BinaryDepthwise(nn.Module):
    """Separable convolutions for (N, 3, 32, 32), a binary 3 x 3 per channel and a binary 1 x 1."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = conv_bn(3, width, 3, 1, nn.Identity())
        self.blocks = nn.Sequential(
            self._block(width, 2 * width, stride=1),
            self._block(2 * width, 2 * width, stride=1),
            self._block(2 * width, 4 * width, stride=2),
            self._block(4 * width, 4 * width, stride=1),
        )
        self.fc = nn.Linear(4 * width, N_CLASSES)

    @staticmethod
    def _block(c_in: int, c_out: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            BinarizeConv2d(c_in, c_in, 3, stride=stride, padding=1, groups=c_in, bias=False),
            nn.BatchNorm2d(c_in),
            BinarizeConv2d(c_in, c_out, 1, bias=False),
            nn.BatchNorm2d(c_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        return self.fc(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]


MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "binarynet": BinaryNet,
    "residual": Residual,
    "relu": ReluNet,
}
# Too many signs of floats near zero for tests that compare in float32.
FOR_BENCHMARKS: dict[str, Callable[..., nn.Module]] = {"binary-depthwise": BinaryDepthwise}


def input_shape(name: str) -> tuple[int, ...]:
    """Shape of one sample of a model, without the batch dimension."""
    return (784,) if name == "mlp" else (3, 32, 32)


def make_model(name: str, seed: int = 0, **options: Any) -> nn.Module:
    """A model in train mode with weights ~ N(0, 1/fan-in); batch norm and biases as torch has them.

    ``options`` go to the constructor, such as ``width=1/8`` for ``binarynet``.
    """
    model = {**MODELS, **FOR_BENCHMARKS}[name](**options).train()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                parameter.normal_(0, 1 / math.sqrt(fan_in), generator=generator)
            elif not parameter.eq(1).all():
                parameter.zero_()
    return model


def export(
    name: str, path: str | Path, batch: int | None = None, seed: int = 0, **options: Any
) -> nn.Module:
    """Write a model's training graph to ``path`` and return the model, fresh and in train mode.

    Parameters
    ----------
    name : str
        One of ``MODELS``.
    path : str or Path
        The ONNX file to write: input ``x``, output ``logits``.
    batch : int, optional
        A fixed batch size; without it the batch dimension is the symbol ``batch``.
    seed : int
        Seed of the weights.
    **options
        For the model's constructor.

    Returns
    -------
    torch.nn.Module
        With the same parameters and running statistics as the file.  Tracing updates the running
        statistics; that is undone in both.
    """
    model = make_model(name, seed, **options)
    write(model, path, input_shape(name), batch)
    return model


def write(
    model: nn.Module, path: str | Path, shape: tuple[int, ...], batch: int | None = None
) -> None:
    """Write the training graph of any model with inputs (N, *shape); see `export`."""
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    axes = None if batch else {"x": {0: "batch"}, "logits": {0: "batch"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "Converting a tensor to a Python boolean")
        warnings.filterwarnings("ignore", "ONNX Preprocess - Removing mutation", UserWarning)
        torch.onnx.export(
            model,
            (torch.zeros(batch or 2, *shape),),
            str(path),
            input_names=["x"],
            output_names=["logits"],
            dynamo=False,
            opset_version=17,
            training=torch.onnx.TrainingMode.TRAINING,
            do_constant_folding=False,
            dynamic_axes=axes,
        )
    model.load_state_dict(fresh)
    _write_initializers(path, fresh)
    model.train()


def _write_initializers(path: str | Path, values: Mapping[str, Tensor]) -> None:
    """Put ``values`` in the file: the exporter saves running statistics as tracing left them."""
    proto = onnx.load(path)
    for tensor in proto.graph.initializer:
        fresh = onnx.numpy_helper.from_array(values[tensor.name].numpy(), tensor.name)
        tensor.CopyFrom(fresh)
    onnx.save(proto, path)


def make_batch(name: str, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A random batch: x float32 (n, ...) uniform in [-1, 1), y int64 (n,) class labels."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (n, *input_shape(name))).astype(np.float32)
    return x, rng.integers(0, N_CLASSES, n)


def randomize_biases(module: nn.Module, path: Path) -> None:
    """Give a module and its file the same random biases.

    With zero biases, batch norm over integers gives exact zeros where an output equals its mean,
    and PyTorch's fused multiply-add makes them positive or negative by chance; a sign follows.
    """
    proto, random = onnx.load(path), np.random.default_rng(4)
    state = module.state_dict()
    for tensor in proto.graph.initializer:
        if tensor.name.endswith("bias"):
            values = random.normal(0, 0.3, tensor.dims).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
            state[tensor.name].copy_(torch.from_numpy(values))
    onnx.save(proto, path)
