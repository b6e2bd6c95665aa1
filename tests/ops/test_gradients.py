"""Gradient kernels against central differences of independent forward functions, in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from bnnopt.runtime.kernels.reference.table import KERNELS
from tests.ops.cases import CASES, CONVOLUTIONS, LINE_POOLING, POOLINGS
from tests.ops.harness import Array, assert_agree
from tests.ops.oracles import (
    Geometry,
    approx_sign,
    conv,
    finite_difference,
    max_pool,
    swish_sign,
)

BOUND = 1e-7  # of a central difference with step 1e-6, relative to the largest element
SMALL_POOLINGS = {note: g for note, g in POOLINGS.items() if note != "eight-bits"}
X = 0.07 * np.arange(60) - 2.033  # at least 0.002 away from the kinks at -1, 0, 1 and 1.5

Normal = Callable[[tuple[int, ...]], Array]


@pytest.fixture
def normal() -> Normal:
    return np.random.default_rng(7).standard_normal


def assert_gradient(
    got: Array, function: Callable[[Array], Array], x: Array, dy: Array, bound: float = BOUND
) -> None:
    assert_agree([got], [finite_difference(function, x, dy)], bound)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 1.5)])
def test_clip_grad(low: float, high: float, normal: Normal):
    x, dy = X, normal(X.shape)
    dx = KERNELS["ClipGrad"](dy, x, low=low, high=high)
    assert_gradient(dx, lambda x: np.clip(x, low, high), x, dy)


def test_masked_grad_of_packed_range(normal: Normal):
    x, dy = X.reshape(4, 15), normal((4, 15))
    packed = KERNELS["RangePack"](x, low=-1.0, high=1.0)
    dx = KERNELS["MaskedGrad"](dy, packed, shape=[15])
    assert_gradient(dx, lambda x: np.clip(x, -1, 1), x, dy)


def test_relu_grad(normal: Normal):
    x, dy = X, normal(X.shape)
    dx = KERNELS["ReluGrad"](dy, np.maximum(x, 0))
    assert_gradient(dx, lambda x: np.maximum(x, 0), x, dy)


def test_approx_sign_grad(normal: Normal):
    x, dy = X, normal(X.shape)
    assert_gradient(KERNELS["ApproxSignGrad"](dy, x), approx_sign, x, dy)


@pytest.mark.parametrize("beta", [1.0, 5.0, 10.0])
def test_swish_sign_grad(beta: float, normal: Normal):
    x, dy = X, normal(X.shape)
    dx = KERNELS["SwishSignGrad"](dy, x, beta=beta)
    assert_gradient(dx, lambda x: swish_sign(x, beta), x, dy)


@pytest.mark.slow
@pytest.mark.parametrize("g", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_conv_input_grad(g: Geometry, normal: Normal):
    one = Geometry(1, g.c, g.m, g.space, g.kernel, g.strides, g.pads, g.dilations, g.group)
    x, w, dy = normal(one.x_shape), normal(one.w_shape), normal(one.conv_shape)
    dx = KERNELS["ConvInputGrad"](
        dy, w, input_shape=list(g.space), strides=list(g.strides), pads=list(g.pads),
        dilations=list(g.dilations), group=g.group, output_padding=list(g.output_padding),
    )  # fmt: skip
    # A convolution is linear in x: a step of 1 has no error but rounding.
    want = finite_difference(lambda x: conv(x, w, one), x, dy, step=1.0)
    assert_agree([dx], [want], 1e-12)


@pytest.mark.parametrize("g", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_conv_weight_grad(g: Geometry, normal: Normal):
    x, w, dy = normal(g.x_shape), normal(g.w_shape), normal(g.conv_shape)
    dw = KERNELS["ConvWeightGrad"](
        x, dy, kernel_shape=list(g.kernel), strides=list(g.strides), pads=list(g.pads),
        dilations=list(g.dilations), group=g.group,
    )  # fmt: skip
    want = finite_difference(lambda w: conv(x, w, g), w, dy, step=1.0)
    assert_agree([dw], [want], 1e-12)


@pytest.mark.parametrize(
    "g", [*SMALL_POOLINGS.values(), LINE_POOLING], ids=[*SMALL_POOLINGS, "one-dimension"]
)
def test_max_pool_grad(g: Geometry, normal: Normal):
    one = Geometry(1, g.c, g.m, g.space, g.kernel, g.strides, g.pads, g.dilations)
    size = int(np.prod(one.x_shape))
    x = np.random.default_rng(size).permutation(size).reshape(one.x_shape) / size  # no ties
    y, indices = max_pool(x, one)
    dy = normal(y.shape)
    dx = KERNELS["MaxPoolGrad"](dy, indices, input_shape=list(g.space))
    assert_gradient(dx, lambda x: max_pool(x, one)[0], x, dy)


@pytest.mark.parametrize(
    "g", [*SMALL_POOLINGS.values(), LINE_POOLING], ids=[*SMALL_POOLINGS, "one-dimension"]
)
def test_average_pool_grad(g: Geometry, normal: Normal):
    """Against a convolution with ones, whose sums are divided by any counts."""
    one = Geometry(1, 1, 1, g.space, g.kernel, g.strides, g.pads, g.dilations)
    x, dy = normal(one.x_shape), normal(one.conv_shape)
    counts = 1 + np.abs(normal(one.conv_shape))
    dx = KERNELS["AveragePoolGrad"](
        dy, counts, input_shape=list(g.space), kernel_shape=list(g.kernel),
        strides=list(g.strides), pads=list(g.pads), dilations=list(g.dilations),
        output_padding=list(g.output_padding),
    )  # fmt: skip
    ones = np.ones(one.w_shape)
    want = finite_difference(lambda x: conv(x, ones, one) / counts, x, dy, step=1.0)
    assert_agree([dx], [want], 1e-12)


@pytest.mark.parametrize("kind", ["", "L1"])
@pytest.mark.parametrize("shape", [(3, 2, 4, 2), (5, 3), (1, 2, 6)], ids=str)
def test_batch_normalization_grad(kind: str, shape: tuple[int, ...], normal: Normal):
    channels = shape[1]
    x, dy = normal(shape), normal(shape)
    scale, bias = normal(channels), np.ones(channels)

    def forward(x: Array, scale: Array, bias: Array) -> Array:
        return normalized(x, scale, bias, l1=kind == "L1")

    y, *_, mean, inv_std = batch_norm(kind, x, scale, bias)
    np.testing.assert_allclose(y, forward(x, scale, bias), rtol=1e-12, atol=1e-12)
    gradient = KERNELS[f"{kind}BatchNormalizationGrad"]
    dx, dscale, dbias = gradient(dy, x, scale, mean, inv_std)
    assert_gradient(dx, lambda x: forward(x, scale, bias), x, dy)
    assert_gradient(dscale, lambda scale: forward(x, scale, bias), scale, dy)
    assert_gradient(dbias, lambda bias: forward(x, scale, bias), bias, dy)


@pytest.mark.parametrize("relu", [0, 1])
@pytest.mark.parametrize("pooling", ["overlap-pad", "plain", "asymmetric"])
def test_gradient_from_the_pool_is_that_of_the_chain(pooling: str, relu: int, normal: Normal):
    """In float64: what was pooled and on which side of the mean x lies say all that L1 asks."""
    g = POOLINGS[pooling]
    x, c = normal(g.x_shape), g.c
    scale, bias = np.array([1.5, -0.7, 0.3][:c]), np.array([0.2, -0.1, 0.4][:c])
    n, *_, mean, inv_std = batch_norm("L1", x, scale, bias)
    found = np.maximum(n, 0) if relu else n
    pool = next(k for k in CASES if str(k) == f"PackedMaxPool-{pooling}")
    grad = next(k for k in CASES if str(k) == f"PackedMaxPoolGrad-{pooling}")
    y, packed = KERNELS["PackedMaxPool"](found, pool.inputs[1], **pool.attributes)
    dy, places = normal(y.shape), (packed, pool.inputs[1])
    chain = KERNELS["PackedMaxPoolGrad"](dy, *places, **grad.attributes)
    chain = np.where(found > 0, chain, 0) if relu else chain
    want = KERNELS["L1BatchNormalizationGrad"](chain, x, scale, mean, inv_std)
    signs = KERNELS["ThresholdPack"](n, bias)
    shape = list(x.shape[1:])
    got = KERNELS["L1BatchNormalizationPoolGrad"](
        dy, y, *places, signs, scale, bias, inv_std,
        relu=relu, epsilon=1e-3, shape=shape, **grad.attributes,
    )  # fmt: skip
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * np.abs(b).max())


def batch_norm(kind: str, x: Array, scale: Array, bias: Array) -> tuple[Array, ...]:
    training = KERNELS[f"{kind}BatchNormalizationTraining"]
    return training(x, scale, bias, bias, bias, epsilon=1e-3, momentum=0.9)


def normalized(x: Array, scale: Array, bias: Array, *, l1: bool) -> Array:
    """Algorithm 1 of arXiv:1502.03167, channel by channel; in L1 with mean|x - mean|^2."""
    y = np.empty_like(x)
    for c in range(x.shape[1]):
        centred = x[:, c] - np.mean(x[:, c])
        variance = np.mean(np.abs(centred)) ** 2 if l1 else np.mean(centred**2)
        y[:, c] = scale[c] * centred / np.sqrt(variance + 1e-3) + bias[c]
    return y


@pytest.mark.parametrize("kind", ["", "L1"])
@pytest.mark.parametrize("sign_of_scale", [1, -1])
def test_gradient_from_bits_is_exact_where_they_tell_all(
    kind: str, sign_of_scale: int, normal: Normal
):
    """Four values a channel, one for each pair of bits: then levels are no approximation."""
    shape = (40, 3, 5)
    x = np.random.default_rng(3).choice(np.array([-2.0, -0.6, 0.7, 2.1]), shape)
    dy, scale, bias = normal(shape), np.full(3, sign_of_scale), np.array([0.0, 0.1, -0.1])
    scale = scale.astype(np.float64)
    fused = KERNELS[f"{kind}BatchNormalizationSigns"]
    signs, mask, _, _, mean, inv_std, *tables = fused(
        x, scale, bias, bias, bias, epsilon=1e-5, momentum=0.9, zero=1.0, low=-1.0, high=1.0,
        shape=[3, 5],
    )  # fmt: skip
    from_bits = KERNELS["BatchNormalizationSignsGrad"]
    found = from_bits(dy, signs, mask, scale, inv_std, *tables, shape=[3, 5])
    masked = KERNELS["MaskedGrad"](dy, mask, shape=[3, 5])
    exact = KERNELS[f"{kind}BatchNormalizationGrad"](masked, x, scale, mean, inv_std)
    assert_agree(found, exact, 1e-12)
    wrong = from_bits(dy, mask, signs, scale, inv_std, *tables, shape=[3, 5])
    with pytest.raises(AssertionError):
        assert_agree(wrong, exact, 1e-2)


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 4), (2, 4, 2, 3)], ids=str)
def test_softmax_cross_entropy_grad(shape: tuple[int, ...], normal: Normal):
    logits = normal(shape)
    labels = np.random.default_rng(0).integers(0, shape[1], (shape[0], *shape[2:]))
    loss, log_prob = KERNELS["SoftmaxCrossEntropy"](logits, labels)
    assert_agree([loss], [cross_entropy(logits, labels)], 1e-12)
    dloss = np.array(0.7)
    dlogits = KERNELS["SoftmaxCrossEntropyGrad"](dloss, log_prob, labels)
    assert_gradient(dlogits, lambda logits: cross_entropy(logits, labels), logits, dloss)


def cross_entropy(logits: Array, labels: Array) -> Array:
    rows = np.moveaxis(logits, 1, -1).reshape(-1, logits.shape[1])
    losses = [np.log(np.sum(np.exp(r))) - r[k] for r, k in zip(rows, labels.flat, strict=True)]
    return np.array(np.mean(losses))


@pytest.mark.parametrize("g", [*POOLINGS.values(), LINE_POOLING])
def test_pooling_oracle_is_onnxruntimes_max_pool(g: Geometry, normal: Normal):
    x = np.random.default_rng(1).standard_normal(g.x_shape).astype(np.float32)
    assert_agree(max_pool(x, g), onnxruntime_max_pool(x, g), 0)


def onnxruntime_max_pool(x: Array, g: Geometry) -> list[Array]:
    node = onnx.helper.make_node(
        "MaxPool", ["x"], ["y", "indices"], kernel_shape=g.kernel, strides=g.strides,
        pads=g.pads, dilations=g.dilations,
    )  # fmt: skip
    value = onnx.helper.make_tensor_value_info
    outputs = [value("y", 1, None), value("indices", 7, None)]
    graph = onnx.helper.make_graph([node], "g", [value("x", 1, x.shape)], outputs)
    opsets = [onnx.helper.make_opsetid("", 18)]
    content = onnx.helper.make_model(graph, ir_version=8, opset_imports=opsets)
    session = ort.InferenceSession(
        content.SerializeToString(), providers=["CPUExecutionProvider"]
    )  # fmt: skip
    return session.run(None, {"x": x})
