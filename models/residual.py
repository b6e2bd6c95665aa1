"""The two 18-layer residual networks of Wang et al. 2023 (arXiv:2102.04270) for ImageNet.

Sixteen blocks of one binary 3x3 convolution each, four blocks at each of four widths. The stem, the
1x1 convolutions of the shortcuts and the classifier are real. Batch norm has beta only.
"""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.errors import UsageError
from bnnopt.models.layers import LayerBuilder

BLOCKS_PER_WIDTH = 4
N_WIDTHS = 4
STRIDE = 32  # of the whole network: the last maps are size / 32 wide
APPROX_SIGN = "block*.sign=approx-sign"  # Liu et al., section 3.3: dx = dy * max(2 - 2|x|, 0)


def resnet_e_18(seed: int, size: int = 224, classes: int = 1000, width: int = 64) -> ir.Model:
    """ResNetE-18: x (N, 3, size, size) -> logits (N, classes).

    BN; real 7x7 convolution with stride 2; BN; ReLU; 3x3 max pool with stride 2; BN; 16 blocks of
    ``width``, 2, 4 and 8 times that many channels; ReLU; global average pool; real dense layer with
    bias. Bethge et al. 2019, arXiv:1906.08637.
    """
    b = LayerBuilder(_input_shape(size), seed)
    x = b.batch_norm(b.x, "stem.bn0")
    x = b.relu(_stem_convolution(b, x, width), "stem.relu")
    x = _blocks(b, _stem_pool(b, x), width)
    logits = _classifier(b, b.relu(x, "relu"), classes)
    return b.model(logits, "resnet-e-18", "ResNetE-18: Bethge et al., arXiv:1906.08637")


def bi_real_18(seed: int, size: int = 224, classes: int = 1000, width: int = 64) -> ir.Model:
    """Bi-Real-18: x (N, 3, size, size) -> logits (N, classes).

    As `resnet_e_18` without the first BN and both ReLUs. Activations pass their gradient through
    ApproxSign, which the file asks for in its metadata; binary weights are scaled by the mean
    magnitude of the latent ones, one factor an output channel, behind the convolution. Liu et al.
    2018, arXiv:1808.00278.
    """
    b = LayerBuilder(_input_shape(size), seed)
    x = _stem_pool(b, _stem_convolution(b, b.x, width))
    logits = _classifier(b, _blocks(b, x, width, scaled=True), classes)
    model = b.model(logits, "bi-real-18", "Bi-Real-18: Liu et al., arXiv:1808.00278")
    model.metadata_props["bnnopt.ste"] = APPROX_SIGN
    return model


def residual_block(
    b: LayerBuilder, x: ir.Value, width: int, name: str, *, scaled: bool = False
) -> ir.Value:
    """``shortcut(x) + BN(bconv3x3(sign(x)))``; a new width halves H and W.

    Then the shortcut is a 2x2 average pool, a real 1x1 convolution and a batch norm.
    """
    assert x.shape is not None
    widens = x.shape[1] != width
    binary = b.sign(x, f"{name}.sign")
    stride = 2 if widens else 1
    branch = b.conv(binary, width, f"{name}.conv", stride=stride, binary=True, scaled=scaled)
    branch = b.batch_norm(branch, f"{name}.bn")
    if widens:
        x = b.average_pool(x, f"{name}.shortcut.pool")
        x = b.conv(x, width, f"{name}.shortcut.conv", kernel=1, pad=0)
        x = b.batch_norm(x, f"{name}.shortcut.bn")
    return b.add(branch, x, f"{name}.add")


def _input_shape(size: int) -> tuple[int, int, int]:
    if size < STRIDE or size % STRIDE:
        raise UsageError(f"input size {size}: expected a multiple of {STRIDE}")
    return (3, size, size)


def _stem_convolution(b: LayerBuilder, x: ir.Value, width: int) -> ir.Value:
    x = b.conv(x, width, "stem.conv", kernel=7, stride=2, pad=3)
    return b.batch_norm(x, "stem.bn1")


def _stem_pool(b: LayerBuilder, x: ir.Value) -> ir.Value:
    return b.batch_norm(b.max_pool(x, "stem.pool", kernel=3, pad=1), "stem.bn2")


def _blocks(b: LayerBuilder, x: ir.Value, width: int, *, scaled: bool = False) -> ir.Value:
    for i in range(N_WIDTHS * BLOCKS_PER_WIDTH):
        channels = width * 2 ** (i // BLOCKS_PER_WIDTH)
        x = residual_block(b, x, channels, f"block{i + 1}", scaled=scaled)
    return x


def _classifier(b: LayerBuilder, x: ir.Value, classes: int) -> ir.Value:
    x = b.flatten(b.global_average_pool(x, "global_pool"), "flatten")
    return b.dense(x, classes, "fc", bias=True)
