"""Binary networks around one or two blocks of papers; the block, its estimators and its scales are
the paper's, or those of the code that its authors published.

A real 3x3 stem with a batch norm, the blocks, global average pool, real classifier: x (N, 3, size,
size) -> logits (N, classes). Names are those of the same networks in PyTorch.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from bnnopt.errors import UsageError
from bnnopt.models.layers import dims_of
from bnnopt.models.written import WrittenBuilder, approx_sign, error_decay


def react_net(seed: int, size: int = 32, classes: int = 10, width: int = 32) -> ir.Model:
    """ReActNet's reduction block: 3x3 with stride, then two 1x1. Liu et al. 2020, arXiv:2003.03488.

    Shifted signs with Bi-Real Net's gradient; a PReLU between two shifts.
    """
    b, x = stem(seed, size, width)
    y = b.binarized(b.shift(x, "block.shift"), "block.shift.sign", approx_sign)
    y = b.binary_conv(y, width, "block.conv", stride=2)
    y = b.batch_norm(y, "block.norm", gamma=True)
    x = _rprelu(b, b.add(y, b.average_pool(x, "block.pool"), "block.add"), "block.act")
    signs = b.binarized(b.shift(x, "block.inner"), "block.inner.sign", approx_sign)
    halves = []
    for i in range(2):
        y = b.binary_conv(signs, width, f"block.points.{i}", kernel=1)
        y = b.batch_norm(y, f"block.norms.{i}", gamma=True)
        halves.append(b.add(y, x, f"block.add{i}"))
    x = _rprelu(b, b.concat(halves, 1, "block.concat"), "block.out")
    return classified(b, x, classes, "reactnet", "ReActNet: Liu et al., arXiv:2003.03488")


def ir_net(seed: int, size: int = 32, classes: int = 10, width: int = 32) -> ir.Model:
    """IR-Net: balanced weights, power-of-two scales, tanh estimators. Qin et al., arXiv:1909.10788.

    Its k and t, which an author changes by the epoch, are those of an early one.
    """
    b, x = stem(seed, size, width)
    signs = _balanced_signs(b, b.drawn("conv.weight", (width, width, 3, 3)), "conv")
    x = b.convolved(b.binarized(x, "conv.input", error_decay), signs, "conv", pad=1)
    x = b.clamp(b.batch_norm(x, "norm1", gamma=True), -1, 1, "act")
    return classified(b, x, classes, "ir-net", "IR-Net: Qin et al., arXiv:1909.10788")


def melius_net(seed: int, size: int = 32, classes: int = 10, width: int = 32) -> ir.Model:
    """MeliusNet's dense block, then its improvement block. Bethge et al. 2020, arXiv:2001.05936."""
    b, x = stem(seed, size, width)
    y = b.binarized(b.batch_norm(x, "block.n1", gamma=True), "block.sign1")
    x = b.concat([x, b.binary_conv(y, width, "block.c1")], 1, "block.dense")
    y = b.binarized(b.batch_norm(x, "block.n2", gamma=True), "block.sign2")
    y = b.binary_conv(y, width, "block.c2")
    kept, improved = b.split(x, [width, width], 1, "block.split")
    x = b.concat([kept, b.add(improved, y, "block.add")], 1, "block.concat")
    return classified(b, x, classes, "meliusnet", "MeliusNet: Bethge et al., arXiv:2001.05936")


def bool_net(seed: int, size: int = 32, classes: int = 10, width: int = 32) -> ir.Model:
    """BoolNet: bits between its blocks, XNORs as shortcuts. Guo et al. 2021, arXiv:2106.06991."""
    half = _half(width, "boolnet")
    b, x = stem(seed, size, width)
    x = b.binarized(x, "bits")
    for name in ("block1", "block2"):
        kept, used = b.split(x, [half, half], 1, f"{name}.split")
        y = b.batch_norm(
            b.binary_conv(used, half, f"{name}.conv", scaled=False), f"{name}.norm", gamma=True
        )
        made = b.binarized(y, f"{name}.sign")
        both = b.op("Mul", [made, kept], f"{name}.xnor")
        x = b.concat([both, made], 1, f"{name}.concat")
    return classified(b, x, classes, "boolnet", "BoolNet: Guo et al., arXiv:2106.06991")


def lab(seed: int, size: int = 32, classes: int = 10, width: int = 32) -> ir.Model:
    """LAB: the larger of two depthwise maps decides. Falkena et al. 2022, arXiv:2210.13858."""
    b, x = stem(seed, size, width)
    x = b.conv(x, 2 * width, "lab.maps", group=width, bias=True)
    shape = dims_of(x)
    pairs = b.reshape(x, (shape[0], width, 2, *shape[2:]), "lab.pairs")
    soft = b.op("Softmax", [pairs], "lab.softmax", axis=2)
    (low, high), (_, share) = (
        [b.reshape(half, (shape[0], width, *shape[2:]), f"{half.name}_map") for half in halves]
        for halves in (b.split(v, [1, 1], 2, f"lab.{n}") for v, n in ((pairs, "x"), (soft, "s")))
    )
    hard = b.signs(b.op("Sub", [high, low], "lab.difference"), "lab.sign")
    x = b.value_of(hard, b.plus(b.times(share, 2, "lab.double"), -1, "lab.soft"), "lab.of")
    x = b.batch_norm(b.binary_conv(x, width, "conv"), "norm1", gamma=True)
    x = b.prelu(x, "act")
    return classified(b, x, classes, "lab", "LAB: Falkena et al., arXiv:2210.13858")


def mobi_net(seed: int, size: int = 32, classes: int = 10, width: int = 32) -> ir.Model:
    """MoBiNet: binary depthwise and grouped layers, skips. Phan et al. 2019, arXiv:1907.12629."""
    _half(width, "mobinet")
    b, x = stem(seed, size, width)
    for i, (name, kernel, group) in enumerate((("depth", 3, width), ("point", 1, 2))):
        signs = b.binarized(x, f"block.sign{i}")
        y = b.binary_conv(signs, width, f"block.{name}", kernel=kernel, group=group)
        x = b.add(x, b.batch_norm(y, f"block.norms.{i}", gamma=True), f"block.add{i}")
    x = b.op("LeakyRelu", [x], "block.act", alpha=0.25)
    return classified(b, x, classes, "mobinet", "MoBiNet: Phan et al., arXiv:1907.12629")


def poke_bnn(seed: int, size: int = 32, classes: int = 10, width: int = 32) -> ir.Model:
    """PokeConv: DPReLU, squeeze and excite, skip. Zhang et al. 2021, arXiv:2112.00133."""
    b, x = stem(seed, size, width)
    y = b.times(b.shift(x, "block.shift"), 1 / 3, "block.third")
    y = b.binary_conv(b.binarized(y, "block.sign"), width, "block.conv")
    y = b.batch_norm(y, "block.norm", gamma=True)
    y = _dprelu(b, y, width)
    y = b.op("Mul", [y, _gate(b, y, width)], "block.gated")
    x = b.add(x, y, "block.add")
    return classified(b, x, classes, "pokebnn", "PokeConv: Zhang et al., arXiv:2112.00133")


def quick_net(seed: int, size: int = 32, classes: int = 10, width: int = 32) -> ir.Model:
    """QuickNet: padding of ones, ReLU before batch norm, blurred transition. arXiv:2011.09398."""
    b, x = stem(seed, size, width)
    n, c, h, w = dims_of(x)
    ones = b.number(1, "block.one")
    pads = b.integers([0, 0, 1, 1, 0, 0, 1, 1], "block.pads")
    y = b.op(
        "Pad",
        [b.binarized(x, "block.sign"), pads, ones],
        "block.pad",
        (n, c, int(h) + 2, int(w) + 2),
    )
    y = b.relu(b.binary_conv(y, width, "block.conv", scaled=False, pad=0), "block.act")
    x = b.relu(b.add(x, b.batch_norm(y, "block.norm", gamma=True), "block.add"), "block.act2")
    x = b.conv(_blurred(b, x, width), 2 * width, "block.point", kernel=1, pad=0)
    x = b.batch_norm(x, "block.out", gamma=True)
    return classified(b, x, classes, "quicknet", "QuickNet: Bannink et al., arXiv:2011.09398")


def stem(seed: int, size: int, width: int) -> tuple[WrittenBuilder, ir.Value]:
    """A builder of networks of images, and its real 3x3 convolution with a batch norm."""
    b = WrittenBuilder((3, size, size), seed)
    return b, b.batch_norm(b.conv(b.x, width, "stem", bias=True), "norm", gamma=True)


def classified(b: WrittenBuilder, x: ir.Value, classes: int, name: str, doc: str) -> ir.Model:
    """Global average pool and a real classifier close the network."""
    x = b.flatten(b.global_average_pool(x, "pool"), "flatten")
    return b.model(b.dense(x, classes, "fc", bias=True), name, doc)


def _half(width: int, name: str) -> int:
    if width % 2:
        raise UsageError(f"{name}: width {width}: expected an even number")
    return width // 2


def _rprelu(b: WrittenBuilder, x: ir.Value, name: str) -> ir.Value:
    """A PReLU between two shifts, all learned."""
    return b.shift(b.prelu(b.shift(x, f"{name}.0"), f"{name}.1"), f"{name}.2")


def _balanced_signs(b: WrittenBuilder, w: ir.Value, name: str) -> ir.Value:
    """Signs of centred, standardised weights, times 2 ** round(log2(mean |w|)) of each filter."""
    axes = [1, 2, 3]
    fan_in = math.prod(int(d) for d in dims_of(w)[1:])
    centred = b.op("Sub", [w, b.reduced("ReduceMean", w, axes, f"{name}.mean")], f"{name}.centred")
    square = b.op("Mul", [centred, centred], f"{name}.square")
    variance = b.times(
        b.reduced("ReduceSum", square, axes, f"{name}.sum"), 1 / (fan_in - 1), f"{name}.variance"
    )
    w = b.op("Div", [centred, b.op("Sqrt", [variance], f"{name}.std")], f"{name}.standardised")
    size = b.op("Log", [b.scale_of(w, f"{name}.scale")], f"{name}.log")
    power = b.op("Round", [b.times(size, 1 / math.log(2), f"{name}.log2")], f"{name}.power")
    scale = b.op("Exp", [b.times(power, math.log(2), f"{name}.ln")], f"{name}.exp2")
    signs = b.binarized(w, f"{name}.sign", error_decay)
    return b.op("Mul", [signs, b.stop(scale, f"{name}.two_to")], f"{name}.scaled")


def _dprelu(b: WrittenBuilder, y: ir.Value, width: int) -> ir.Value:
    """A learned slope on either side of 0, for each channel."""
    shape = (1, width, 1, 1)
    up, down = b.parameter("block.up", 1.0, shape), b.parameter("block.down", 0.25, shape)
    sides = (
        b.op("Relu", [y], "block.above"),
        b.op("Min", [y, b.number(0, "block.nil")], "block.below"),
    )
    return b.add(
        b.op("Mul", [sides[0], up], "block.rise"),
        b.op("Mul", [sides[1], down], "block.fall"),
        "block.dprelu",
    )


def _gate(b: WrittenBuilder, y: ir.Value, width: int) -> ir.Value:
    """Squeeze and excite: a number between 0 and 1 for each channel; (N, C, 1, 1)."""
    mean = b.flatten(b.global_average_pool(y, "block.mean"), "block.flat")
    hidden = b.relu(b.dense(mean, 4, "block.squeeze", bias=True), "block.squeezed")
    excited = b.plus(b.dense(hidden, width, "block.excite", bias=True), 3, "block.excited")
    gate = b.times(b.relu6(excited, "block.relu6"), 1 / 6, "block.gate")
    return b.reshape(gate, (dims_of(gate)[0], width, 1, 1), "block.gate_map")


def _blurred(b: WrittenBuilder, x: ir.Value, width: int) -> ir.Value:
    """Max pool without stride, then a fixed blur with stride 2."""
    n, c, h, w = dims_of(x)
    shape = (n, c, int(h) - 1, int(w) - 1)
    x = b.op("MaxPool", [x], "block.pool", shape, kernel_shape=[2, 2], strides=[1, 1])
    line = np.array([1, 2, 1], np.float32)
    kernel = np.broadcast_to(np.outer(line, line) / 16, (width, 1, 3, 3)).astype(np.float32)
    blur = b.constant("block.blur", kernel)
    return b.convolved(x, blur, "block.blurred", stride=2, pad=1, group=width)
