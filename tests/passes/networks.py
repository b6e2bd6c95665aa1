"""Small networks as ONNX text, with the shapes of their weights."""

from __future__ import annotations

from typing import Any

from tests.graphs import Network, network

BN = "BatchNormalization <training_mode = 1>"


def batch_norm(x: str, y: str, index: int) -> str:
    """A batch norm in training mode with weights g, b, m, var of this index."""
    read = ", ".join(f"{name}{index}" for name in ("g", "b", "m", "var"))
    return f"{y}, {y}_m, {y}_v = {BN} ({x}, {read})"


def batch_norm_weights(index: int, channels: int) -> dict[str, list[int]]:
    return {f"{name}{index}": [channels] for name in ("g", "b", "m", "var")}


# Two binary convolutions, the second pooled, and a binary dense layer behind a Flatten.
BINARY = f"""g (float[batch,2,6,6] x) => (float[batch,3] y) {{
    w1b = Sign (w1)
    c1 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1b)
    {batch_norm("c1", "n1", 1)}
    s1 = Sign (n1)
    w2b = Sign (w2)
    c2 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (s1, w2b)
    p2 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (c2)
    {batch_norm("p2", "n2", 2)}
    s2 = Sign (n2)
    f = Flatten (s2)
    w3b = Sign (w3)
    y = Gemm <transB = 1> (f, w3b)
}}"""
BINARY_WEIGHTS = {
    "w1": [4, 2, 3, 3],
    **batch_norm_weights(1, 4),
    "w2": [4, 4, 3, 3],
    **batch_norm_weights(2, 4),
    "w3": [3, 36],
}

# A binary block with a shortcut, in the manner of Bi-Real nets.
RESIDUAL = f"""g (float[batch,4,4,4] x) => (float[batch,3] y) {{
    c0 = Conv <kernel_shape = [1, 1]> (x, w0)
    {batch_norm("c0", "a", 0)}
    s1 = Sign (a)
    w1b = Sign (w1)
    c1 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (s1, w1b)
    {batch_norm("c1", "n1", 1)}
    r = Add (n1, a)
    s2 = Sign (r)
    w2b = Sign (w2)
    c2 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (s2, w2b)
    {batch_norm("c2", "n2", 2)}
    r2 = Add (n2, r)
    h = Relu (r2)
    p = GlobalAveragePool (h)
    f = Flatten (p)
    y = Gemm <transB = 1> (f, w3)
}}"""
RESIDUAL_WEIGHTS = {
    "w0": [4, 4, 1, 1],
    **batch_norm_weights(0, 4),
    "w1": [4, 4, 3, 3],
    **batch_norm_weights(1, 4),
    "w2": [4, 4, 3, 3],
    **batch_norm_weights(2, 4),
    "w3": [3, 4],
}

# No binary tensor: a padded, overlapping pooling, ReLU and ReLU6.
FLOAT = f"""g (float[batch,2,7,7] x) => (float[batch,3] y) {{
    low = Constant <value_float = 0.0> ()
    high = Constant <value_float = 6.0> ()
    c1 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1)
    {batch_norm("c1", "n1", 1)}
    r1 = Clip (n1, low, high)
    p1 = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (r1)
    c2 = Conv <kernel_shape = [1, 1]> (p1, w2)
    {batch_norm("c2", "n2", 2)}
    r2 = Relu (n2)
    f = Flatten (r2)
    y = Gemm <transB = 1> (f, w3, b)
}}"""
FLOAT_WEIGHTS = {
    "w1": [4, 2, 3, 3],
    **batch_norm_weights(1, 4),
    "w2": [3, 4, 1, 1],
    **batch_norm_weights(2, 3),
    "w3": [3, 48],
    "b": [3],
}

# Real layers without batch norm, one of them depthwise, whose inputs are rectified.
RELU = """g (float[batch,2,7,7] x) => (float[batch,3] y) {
    c1 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1, b1)
    r1 = Relu (c1)
    c2 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 4> (r1, w2)
    r2 = Relu (c2)
    c3 = Conv <kernel_shape = [3, 3], strides = [2, 2]> (r2, w3)
    r3 = Relu (c3)
    f = Flatten (r3)
    y = Gemm <transB = 1> (f, w4)
}"""
RELU_WEIGHTS = {
    "w1": [4, 2, 3, 3],
    "b1": [4],
    "w2": [4, 1, 3, 3],
    "w3": [5, 4, 3, 3],
    "w4": [3, 45],
}

# Two branches, joined and pooled, as in SqueezeNet.
JOINED = """g (float[batch,2,7,7] x) => (float[batch,3] y) {
    c1 = Conv <kernel_shape = [1, 1]> (x, w1)
    r1 = Relu (c1)
    c2 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w2)
    r2 = Relu (c2)
    j = Concat <axis = 1> (r1, r2)
    p = MaxPool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1> (j)
    f = Flatten (p)
    y = Gemm <transB = 1> (f, w3)
}"""
JOINED_WEIGHTS = {"w1": [3, 2, 1, 1], "w2": [5, 2, 3, 3], "w3": [3, 72]}

# A dense binary network as PyTorch's F.linear without bias comes out: Transpose, MatMul.
DENSE = f"""g (float[batch,6] x) => (float[batch,3] y) {{
    w1s = Sign (w1)
    w1b = Transpose <perm = [1, 0]> (w1s)
    c1 = MatMul (x, w1b)
    {batch_norm("c1", "n1", 1)}
    s1 = Sign (n1)
    w2t = Transpose <perm = [1, 0]> (w2)
    w2b = Sign (w2t)
    y = MatMul (s1, w2b)
}}"""
DENSE_WEIGHTS = {"w1": [5, 6], **batch_norm_weights(1, 5), "w2": [3, 5]}

DROPOUT = """g (float[batch,6] x) => (float[batch,3] y) {
    ratio = Constant <value_float = 0.5> ()
    mode = Constant <value = bool {1}> ()
    c1 = Gemm <transB = 1> (x, w1)
    d = Dropout (c1, ratio, mode)
    y = Gemm <transB = 1> (d, w2)
}"""
DROPOUT_WEIGHTS = {"w1": [9, 6], "w2": [3, 9]}

# A stem as in ResNets, then a shortcut around a binary convolution and an average pool.
STEM = f"""g (float[batch,2,8,8] x) => (float[batch,3] y) {{
    c0 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w0)
    {batch_norm("c0", "n0", 0)}
    r0 = Relu (n0)
    p0 = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (r0)
    {batch_norm("p0", "a", 1)}
    s = Sign (a)
    wb = Sign (w)
    c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (s, wb)
    {batch_norm("c", "n", 2)}
    r = Add (n, a)
    q = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (r)
    f = Flatten (q)
    y = Gemm <transB = 1> (f, w3)
}}"""
STEM_WEIGHTS = {
    "w0": [4, 2, 3, 3],
    **batch_norm_weights(0, 4),
    **batch_norm_weights(1, 4),
    "w": [4, 4, 3, 3],
    **batch_norm_weights(2, 4),
    "w3": [3, 16],
}

# As "stem", of maps that are worth cutting, behind a shifted input.
TALL = STEM.replace("(x, w0)", "(shifted, w0)").replace(
    "    c0 =", "    shifted = Add (x, shift)\n    c0 ="
)
TALL = TALL.replace("AveragePool <kernel_shape = [2, 2], strides = [2, 2]>", "GlobalAveragePool")
TALL_WEIGHTS = {
    **STEM_WEIGHTS,
    "shift": [1, 2, 1, 1],
    "w0": [64, 2, 3, 3],
    **batch_norm_weights(0, 64),
    **batch_norm_weights(1, 64),
    "w": [64, 64, 3, 3],
    **batch_norm_weights(2, 64),
    "w3": [3, 64],
}

# The data, normalised in front of a convolution, and the pooled shortcut of ResNetE.
SHORTCUT = f"""g (float[batch,2,8,8] x) => (float[batch,3] y) {{
    {batch_norm("x", "a", 0)}
    c0 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (a, w0)
    {batch_norm("c0", "n0", 1)}
    s = Sign (n0)
    wb = Sign (w)
    c = Conv <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (s, wb)
    {batch_norm("c", "n", 2)}
    p = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (n0)
    d = Conv <kernel_shape = [1, 1]> (p, w1)
    {batch_norm("d", "e", 3)}
    r = Add (n, e)
    q = GlobalAveragePool (r)
    f = Flatten (q)
    y = Gemm <transB = 1> (f, w2)
}}"""
SHORTCUT_WEIGHTS = {
    **batch_norm_weights(0, 2),
    "w0": [4, 2, 3, 3],
    **batch_norm_weights(1, 4),
    "w": [4, 4, 3, 3],
    **batch_norm_weights(2, 4),
    "w1": [4, 4, 1, 1],
    **batch_norm_weights(3, 4),
    "w2": [3, 4],
}

# The data, shifted by a trained bias and convolved, as behind the first batch norm of ResNetE.
SHIFTED = """g (float[batch,3,9,8] x) => (float[batch,3] y) {
    shifted = Add (x, shift)
    c = Conv <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (shifted, w1)
    r = Relu (c)
    f = Flatten (r)
    y = Gemm <transB = 1> (f, w2)
}"""
SHIFTED_WEIGHTS = {"shift": [1, 3, 1, 1], "w1": [4, 3, 3, 3], "w2": [3, 80]}

# Signs whose zeros are kept: one that a batch norm makes again, and 0 and 1 behind a ReLU.
ZEROS = f"""g (float[batch,6] x) => (float[batch,3] y) {{
    c0 = Gemm <transB = 1> (x, w0)
    {batch_norm("c0", "n0", 0)}
    s0 = Sign (n0)
    c1 = Gemm <transB = 1> (s0, w1)
    r1 = Relu (c1)
    s1 = Sign (r1)
    y = Gemm <transB = 1> (s1, w2)
}}"""
ZEROS_WEIGHTS = {"w0": [7, 6], **batch_norm_weights(0, 7), "w1": [9, 7], "w2": [3, 9]}

# Images that are fed as bytes, to a layer that reads them as such and to signs, which do not.
BYTES = """g (float[batch,3,6,6] x) => (float[batch,3] y) {
    c1 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1)
    s = Sign (x)
    w2b = Sign (w2)
    c2 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (s, w2b)
    c = Add (c1, c2)
    r = Relu (c)
    f = Flatten (r)
    y = Gemm <transB = 1> (f, w3)
}"""
BYTES_WEIGHTS = {"w1": [4, 3, 3, 3], "w2": [4, 3, 3, 3], "w3": [3, 144]}

# As "binary", of maps that are worth cutting.
WIDE = BINARY.replace("2,6,6", "2,16,16")
WIDE_WEIGHTS = {
    "w1": [96, 2, 3, 3],
    **batch_norm_weights(1, 96),
    "w2": [72, 96, 3, 3],
    **batch_norm_weights(2, 72),
    "w3": [3, 4608],
}

NETWORKS = {
    "binary": (BINARY, BINARY_WEIGHTS),
    "residual": (RESIDUAL, RESIDUAL_WEIGHTS),
    "float": (FLOAT, FLOAT_WEIGHTS),
    "joined": (JOINED, JOINED_WEIGHTS),
    "relu": (RELU, RELU_WEIGHTS),
    "dense": (DENSE, DENSE_WEIGHTS),
    "dropout": (DROPOUT, DROPOUT_WEIGHTS),
}
OTHERS = {
    "stem": (STEM, STEM_WEIGHTS),
    "tall": (TALL, TALL_WEIGHTS),
    "shortcut": (SHORTCUT, SHORTCUT_WEIGHTS),
    "shifted": (SHIFTED, SHIFTED_WEIGHTS),
    "zeros": (ZEROS, ZEROS_WEIGHTS),
    "wide": (WIDE, WIDE_WEIGHTS),
    "bytes": (BYTES, BYTES_WEIGHTS),
}
BATCH_NORM_NETWORKS = ("binary", "residual", "float")  # of images


# A layer with twice as many outputs as inputs: its dx is not written over its dy.
WIDER = f"""g (float[batch,2,16,16] x) => (float[batch,3] y) {{
    c1 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1)
    {batch_norm("c1", "n1", 1)}
    s1 = Sign (n1)
    w2b = Sign (w2)
    c2 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (s1, w2b)
    {batch_norm("c2", "n2", 2)}
    s2 = Sign (n2)
    w3b = Sign (w3)
    c3 = Conv <kernel_shape = [2, 2], strides = [2, 2]> (s2, w3b)
    p = GlobalAveragePool (c3)
    y = Flatten (p)
}}"""
WIDER_WEIGHTS: dict[str, list[int]] = {
    "w1": [8, 2, 3, 3],
    **batch_norm_weights(1, 8),
    "w2": [16, 8, 3, 3],
    **batch_norm_weights(2, 16),
    "w3": [3, 16, 2, 2],
}


def small(name: str, **options: Any) -> Network:
    """A network of the table, or one that few passes are for."""
    text, weights = {**NETWORKS, **OTHERS}[name]
    own = {"keep_zero": name == "zeros", "fed_bytes": name == "bytes"}
    return network(text, weights, **{**own, **options})
