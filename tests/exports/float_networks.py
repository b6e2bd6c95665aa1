"""The ReLU networks of BitTrain's tables, with torchvision's structure and parameter names.

torchvision itself is tied to one build of torch, so its seven networks are written down here. The
argument ``size`` is the input's height and width: where 224 leaves more than one place for the
classifier, a smaller input leaves fewer, and the adaptive pool keeps what there is.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.exports.small_networks import SMALL_NETWORKS

N_CLASSES = 10


def conv3x3(c_in: int, c_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, c_in: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = conv3x3(c_in, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, c_in: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """He et al., arXiv:1512.03385."""

    def __init__(self, block: type[BasicBlock | Bottleneck], layers: list[int]) -> None:
        super().__init__()
        self.c_in = 64
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = self._layer(block, 64, layers[0], 1)
        self.layer2 = self._layer(block, 128, layers[1], 2)
        self.layer3 = self._layer(block, 256, layers[2], 2)
        self.layer4 = self._layer(block, 512, layers[3], 2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(512 * block.expansion, N_CLASSES)

    def _layer(
        self, block: type[BasicBlock | Bottleneck], width: int, n: int, stride: int
    ) -> nn.Sequential:
        blocks: list[nn.Module] = []
        for i in range(n):
            s, c_out, downsample = stride if i == 0 else 1, width * block.expansion, None
            if s != 1 or self.c_in != c_out:
                downsample = nn.Sequential(
                    nn.Conv2d(self.c_in, c_out, 1, s, bias=False), nn.BatchNorm2d(c_out)
                )
            blocks.append(block(self.c_in, width, s, downsample))
            self.c_in = c_out
        return nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))  # type: ignore[no-any-return]


VGG11, VGG16 = (1, 1, 2, 2, 2), (2, 2, 3, 3, 3)


class Vgg(nn.Module):
    """VGG without batch norm: Simonyan and Zisserman, arXiv:1409.1556."""

    def __init__(self, size: int, hidden: int = 4096, depths: tuple[int, ...] = VGG16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        c_in = 3
        for width, n in zip((64, 128, 256, 512, 512), depths, strict=True):
            for _ in range(n):
                layers += [nn.Conv2d(c_in, width, 3, padding=1), nn.ReLU(inplace=True)]
                c_in = width
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        left = min(7, size // 32)
        self.avgpool = nn.AdaptiveAvgPool2d((left, left))
        self.classifier = nn.Sequential(
            *(nn.Linear(512 * left * left, hidden), nn.ReLU(True), nn.Dropout()),
            *(nn.Linear(hidden, hidden), nn.ReLU(True), nn.Dropout()),
            nn.Linear(hidden, N_CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))  # type: ignore[no-any-return]


class AlexNet(nn.Module):
    """Krizhevsky, arXiv:1404.5997; the input is at least 63 x 63."""

    def __init__(self, size: int, hidden: int = 4096) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(inplace=True)),
            *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True)),
            *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
        )
        left = self.features(torch.zeros(1, 3, size, size)).shape[-1]
        self.avgpool = nn.AdaptiveAvgPool2d((left, left))
        self.classifier = nn.Sequential(
            *(nn.Dropout(), nn.Linear(256 * left * left, hidden), nn.ReLU(inplace=True)),
            *(nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU(inplace=True)),
            nn.Linear(hidden, N_CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))  # type: ignore[no-any-return]


class Fire(nn.Module):
    def __init__(self, c_in: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(c_in, squeeze, 1)
        self.squeeze_activation = nn.ReLU(inplace=True)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand1x1_activation = nn.ReLU(inplace=True)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)
        self.expand3x3_activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze_activation(self.squeeze(x))
        narrow = self.expand1x1_activation(self.expand1x1(x))
        return torch.cat([narrow, self.expand3x3_activation(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1: Iandola et al., arXiv:1602.07360."""

    def __init__(self) -> None:
        super().__init__()
        pool = [nn.MaxPool2d(3, 2, ceil_mode=True) for _ in range(3)]
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 64, 3, 2), nn.ReLU(inplace=True), pool[0]),
            *(Fire(64, 16, 64), Fire(128, 16, 64), pool[1]),
            *(Fire(128, 32, 128), Fire(256, 32, 128), pool[2]),
            *(Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)),
        )
        final = nn.Conv2d(512, N_CLASSES, 1)
        self.classifier = nn.Sequential(
            nn.Dropout(), final, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d((1, 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.classifier(self.features(x)), 1)


def conv_bn_relu6(c_in: int, c_out: int, kernel: int, stride: int, groups: int) -> nn.Sequential:
    padding = (kernel - 1) // 2
    conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int, ratio: int) -> None:
        super().__init__()
        hidden = c_in * ratio
        layers: list[nn.Module] = [conv_bn_relu6(c_in, hidden, 1, 1, 1)] if ratio != 1 else []
        layers += [
            conv_bn_relu6(hidden, hidden, 3, stride, hidden),
            nn.Conv2d(hidden, c_out, 1, bias=False),
            nn.BatchNorm2d(c_out),
        ]
        self.conv = nn.Sequential(*layers)
        self.is_residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.is_residual else self.conv(x)  # type: ignore[no-any-return]


class MobileNetV2(nn.Module):
    """Sandler et al., arXiv:1801.04381."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_bn_relu6(3, 32, 3, 2, 1)]
        c_in = 32
        for ratio, c_out, n, stride in (
            *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
            *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
        ):
            for i in range(n):
                layers.append(InvertedResidual(c_in, c_out, stride if i == 0 else 1, ratio))
                c_in = c_out
        layers.append(conv_bn_relu6(c_in, 1280, 1, 1, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, N_CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(self.features(x), (1, 1))
        return self.classifier(torch.flatten(x, 1))  # type: ignore[no-any-return]


FLOAT_NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": lambda size: ResNet(BasicBlock, [2, 2, 2, 2]),
    "resnet34": lambda size: ResNet(BasicBlock, [3, 4, 6, 3]),
    "resnet50": lambda size: ResNet(Bottleneck, [3, 4, 6, 3]),
    "vgg11": lambda size, **options: Vgg(size, **options, depths=VGG11),
    "vgg16": Vgg,
    "alexnet": AlexNet,
    "squeezenet1_1": lambda size: SqueezeNet(),
    "mobilenet_v2": lambda size: MobileNetV2(),
}


def sample_shape(name: str, size: int) -> tuple[int, ...]:
    """Of the input of a network, without the batch."""
    return SMALL_NETWORKS[name][1] if name in SMALL_NETWORKS else (3, size, size)


def small_size(name: str) -> int:
    """The least of the usual input sizes that the network takes."""
    return 64 if name == "alexnet" else 32


def make_float_network(name: str, size: int, seed: int = 0, **options: int) -> nn.Module:
    """A network in train mode for (N, 3, size, size), weights ~ N(0, 2 / fan-in), biases 0.

    Those of `small_networks` have a size of their own.
    """
    if name in SMALL_NETWORKS:
        model = SMALL_NETWORKS[name][0](**options).train()
    else:
        model = FLOAT_NETWORKS[name](size, **options).train()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                deviation = math.sqrt(2 / parameter[0].numel())
                parameter.normal_(0, deviation, generator=generator)
            elif not parameter.eq(1).all():
                parameter.zero_()
    return model


def without_dropout(model: nn.Module) -> nn.Module:
    """The model with every dropout off, so that it draws no random numbers."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model
