"""Small networks for other tasks than to classify images, with binary layers inside."""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.errors import UsageError
from bnnopt.models.layers import dims_of
from bnnopt.models.written import WrittenBuilder

HEADS = 2
VOCABULARY, TOKENS = 20, 12
FRAMES, COEFFICIENTS = 12, 10


def activity(seed: int, size: int = 64, classes: int = 6, width: int = 16) -> ir.Model:
    """Human activity from nine sensors: x (N, 9, size) -> logits (N, classes).

    A real convolution along time, a binary one behind it, pools and batch norms; a real classifier.
    Nine signals and six activities as in Anguita et al. 2013 (UCI HAR).
    """
    b = WrittenBuilder((9, size), seed)
    weight, bias = b.drawn("stem.weight", (width, 9, 5)), b.parameter("stem.bias", 0.0, (width,))
    x = b.convolved(b.x, weight, "stem", bias, pad=2)
    x = _pooled(b, b.batch_norm(x, "norm", gamma=True), "pool1")
    signs = b.binarized(b.drawn("conv.weight", (2 * width, width, 3)), "conv.sign")
    x = _pooled(b, b.convolved(b.binarized(x, "sign"), signs, "conv", pad=1), "pool2")
    x = b.relu(b.batch_norm(x, "norm2", gamma=True), "relu")
    x = b.reduced("ReduceMean", x, [2], "mean", keep=False)
    return b.model(b.dense(x, classes, "head", bias=True), "har", "activity recognition, UCI HAR")


def u_net(seed: int, size: int = 32, classes: int = 4, width: int = 8) -> ir.Model:
    """A class for each pixel: x (N, 3, size, size) -> logits (N, classes, size, size).

    Two levels, the inner convolutions binary. Ronneberger et al. 2015, arXiv:1505.04597.
    """
    if size % 2:
        raise UsageError(f"unet: size {size}: expected an even number")
    b = WrittenBuilder((3, size, size), seed)
    skip = b.batch_norm(b.conv(b.x, width, "down.0", bias=True), "down.1", gamma=True)
    x = b.binarized(b.max_pool(skip, "pool"), "sign")
    x = b.relu(b.batch_norm(b.binary_conv(x, 2 * width, "middle"), "norm", gamma=True), "relu")
    weight = b.drawn("up.weight", (2 * width, width, 2, 2))
    inputs = [x, weight, b.parameter("up.bias", 0.0, (width,))]
    options = {"kernel_shape": [2, 2], "strides": [2, 2]}
    x = b.op("ConvTranspose", inputs, "up", dims_of(skip), **options)
    x = b.binarized(b.concat([skip, x], 1, "concat"), "sign2")
    x = b.relu(b.batch_norm(b.binary_conv(x, width, "join"), "norm2", gamma=True), "relu2")
    logits = b.conv(x, classes, "head", kernel=1, pad=0, bias=True)
    return b.model(logits, "unet", "U-Net: Ronneberger et al., arXiv:1505.04597")


def transformer(seed: int, classes: int = 5, width: int = 16) -> ir.Model:
    """An encoder layer over words: x (N, 12) int64, below 20 -> logits (N, classes).

    Embedding, two heads, a feed-forward block with binary weights and binary input; the mean over
    words. Vaswani et al. 2017, arXiv:1706.03762, with the norms in front.
    """
    if width % HEADS:
        raise UsageError(f"transformer: width {width}: expected an even number")
    b = WrittenBuilder((TOKENS,), seed, ir.DataType.INT64)
    table = b.drawn("embed.weight", (VOCABULARY, width), 1.0)
    x = b.op("Gather", [table, b.x], "embed", (*dims_of(b.x), width))
    y = _attention(b, b.layer_norm(x, "norms.0"), width)
    x = b.add(x, b.real_linear(y, width, "attention.out_proj"), "add1")
    y = b.binarized(b.layer_norm(x, "norms.1"), "sign")
    y = b.binary_dense(y, 2 * width, "up")
    half = b.plus(b.op("Erf", [b.times(y, 0.5**0.5, "gelu_in")], "erf"), 1, "gelu_sum")
    y = b.times(b.op("Mul", [y, half], "gelu_product"), 0.5, "gelu")
    x = b.add(x, b.binary_dense(y, width, "down"), "add2")
    x = b.reduced("ReduceMean", x, [1], "mean", keep=False)
    logits = b.dense(x, classes, "head", bias=True)
    return b.model(logits, "transformer", "encoder layer: Vaswani et al., arXiv:1706.03762")


def keyword_gru(seed: int, classes: int = 12, width: int = 16) -> ir.Model:
    """Keywords in speech: x (N, 12, 10), frames of coefficients -> logits (N, classes).

    A GRU, a binary layer behind it, a real classifier. Zhang et al. 2017, arXiv:1711.07128.
    """
    b = WrittenBuilder((FRAMES, COEFFICIENTS), seed)
    n = dims_of(b.x)[0]
    x = b.op("Transpose", [b.x], "by_time", (FRAMES, n, COEFFICIENTS), perm=[1, 0, 2])
    inputs = [x, *_gru_weights(b, width)]
    y = b.op("GRU", inputs, "gru", (FRAMES, 1, n, width), hidden_size=width, linear_before_reset=1)
    *_, last = b.split(y, [FRAMES - 1, 1], 0, "last")
    x = b.reshape(
        b.op("Transpose", [last], "by_sample", (n, 1, 1, width), perm=[2, 0, 1, 3]), (n, width), "h"
    )
    x = b.binary_dense(b.binarized(x, "sign"), 2 * width, "hidden")
    x = b.relu(b.batch_norm(x, "norm", gamma=True), "relu")
    logits = b.dense(x, classes, "head", bias=True)
    return b.model(logits, "keyword-gru", "keyword spotting: Zhang et al., arXiv:1711.07128")


def _pooled(b: WrittenBuilder, x: ir.Value, name: str) -> ir.Value:
    """2-wide max pool along time."""
    n, c, length = dims_of(x)
    return b.op("MaxPool", [x], name, (n, c, int(length) // 2), kernel_shape=[2], strides=[2])


def _attention(b: WrittenBuilder, x: ir.Value, width: int) -> ir.Value:
    """softmax(q k.T / sqrt(d)) v of each head; x: (N, T, width)."""
    n, steps, _ = dims_of(x)
    weight = b.drawn("attention.in_proj_weight", (3 * width, width))
    bias = b.parameter("attention.in_proj_bias", 0.0, (3 * width,))
    depth = width // HEADS
    heads: list[ir.Value] = []
    for part, name in zip(
        b.split(b.linear(x, weight, "in_proj", bias), [width] * 3, 2, "qkv"), "qkv", strict=True
    ):
        split = b.reshape(part, (n, steps, HEADS, depth), f"{name}_heads")
        perm, shape = (
            ([0, 2, 3, 1], (depth, steps)) if name == "k" else ([0, 2, 1, 3], (steps, depth))
        )
        heads.append(b.op("Transpose", [split], f"{name}_turned", (n, HEADS, *shape), perm=perm))
    q, k, v = heads
    scores = b.op(
        "MatMul", [b.times(q, depth**-0.5, "scaled"), k], "scores", (n, HEADS, steps, steps)
    )
    mixed = b.op("MatMul", [b.op("Softmax", [scores], "attend", axis=3), v], "mixed", dims_of(v))
    y = b.op("Transpose", [mixed], "by_step", (n, steps, HEADS, depth), perm=[0, 2, 1, 3])
    return b.reshape(y, (n, steps, width), "heads_joined")


def _gru_weights(b: WrittenBuilder, width: int) -> list[ir.Value]:
    """W, R and B of the operator; PyTorch's gates are in the order reset, update, new."""
    fan_in = {
        "weight_ih_l0": (COEFFICIENTS,),
        "weight_hh_l0": (width,),
        "bias_ih_l0": (),
        "bias_hh_l0": (),
    }
    turned = []
    for name, shape in fan_in.items():
        own = b.drawn(f"gru.{name}", (3 * width, *shape), width**-0.5)
        r, z, new = b.split(own, [width] * 3, 0, f"gru.{name}_gates")
        turned.append(b.concat([z, r, new], 0, f"gru.{name}_turned"))
    w, r, *biases = turned
    first = b.integers([0], "gru.first")
    return [
        b.op("Unsqueeze", [value, first], f"gru.{name}", (1, *dims_of(value)))
        for name, value in (("W", w), ("R", r), ("B", b.concat(biases, 0, "gru.biases")))
    ]
