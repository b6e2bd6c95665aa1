"""Two small networks of our own for tests and demos: one binary with residuals, one float."""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.models.layers import LayerBuilder
from bnnopt.models.residual import residual_block

RESNET_E_WIDTHS = (16, 16, 32, 32)


def resnet_e_mini(seed: int) -> ir.Model:
    """Residual binary network: x (N, 3, 32, 32) -> logits (N, 10).

    Real 3x3 stem and batch norm; four blocks ``x + BN(bconv3x3(sign(x)))`` at 16, 16, 32 and 32
    channels; ReLU, global average pool, real dense layer with bias.  Stem and classifier are real,
    only the stem's batch norm has a gamma.  The block is that of ResNetE-18, Bethge et al. 2019,
    arXiv:1906.08637.
    """
    b = LayerBuilder((3, 32, 32), seed)
    x = b.conv(b.x, RESNET_E_WIDTHS[0], "stem.conv")
    x = b.batch_norm(x, "stem.bn", gamma=True)
    for i, width in enumerate(RESNET_E_WIDTHS, start=1):
        x = residual_block(b, x, width, f"block{i}")
    x = b.global_average_pool(b.relu(x, "relu"), "global_pool")
    logits = b.dense(b.flatten(x, "flatten"), 10, "fc", bias=True)
    return b.model(logits, "resnet-e-mini", "ResNetE block: arXiv:1906.08637")


def relu_mini(seed: int) -> ir.Model:
    """Float network in the manner of MobileNet: x (N, 3, 32, 32) -> logits (N, 10).

    3x3 convolution with bias, BN, ReLU; depthwise 3x3, BN, ReLU6; pointwise 1x1, BN, ReLU; 2x2 max
    pool; a residual of pointwise 1x1 and BN; global average pool; dense layer with bias.  Depthwise
    separable convolutions: Howard et al. 2017, arXiv:1704.04861.
    """
    b = LayerBuilder((3, 32, 32), seed)
    x = b.conv(b.x, 16, "conv1", bias=True)
    x = b.relu(b.batch_norm(x, "bn1", gamma=True), "relu1")
    x = b.conv(x, 16, "depthwise", group=16)
    x = b.relu6(b.batch_norm(x, "bn2", gamma=True), "relu6")
    x = b.conv(x, 32, "pointwise", kernel=1, pad=0)
    x = b.relu(b.batch_norm(x, "bn3", gamma=True), "relu2")
    x = b.max_pool(x, "pool")
    branch = b.conv(x, 32, "residual", kernel=1, pad=0)
    x = b.add(b.batch_norm(branch, "bn4", gamma=True), x, "add")
    x = b.flatten(b.global_average_pool(x, "global_pool"), "flatten")
    logits = b.dense(x, 10, "fc", bias=True)
    return b.model(logits, "relu-mini", "depthwise separable convolutions: arXiv:1704.04861")
