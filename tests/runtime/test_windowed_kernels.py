"""Convolution, pooling and their gradients on drawn shapes, and the scratch they claim to need."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bnnopt.runtime.kernels.reference.convolution import (
    conv,
    conv_input_grad,
    conv_transpose,
    conv_weight_grad,
)
from bnnopt.runtime.kernels.reference.pooling import average_pool, max_pool, max_pool_grad

Array = NDArray[Any]
Oracle = Callable[..., list[Array]]
Attributes = dict[str, Any]

FAST = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SLOW = settings(FAST, max_examples=60)


@st.composite
def conv_problems(draw: st.DrawFn, max_rank: int = 3) -> tuple[Array, Array, Attributes]:
    """Draw (x, w, attributes) of a convolution with at least one result, in float64."""
    rank = draw(st.integers(1, max_rank))
    group = draw(st.integers(1, 3))
    c, m = group * draw(st.integers(1, 2)), group * draw(st.integers(1, 2))
    kernel, spatial, pads_begin, pads_end, strides, dilations = [], [], [], [], [], []
    for _ in range(rank):
        kernel.append(draw(st.integers(1, 3)))
        strides.append(draw(st.integers(1, 3)))
        dilations.append(draw(st.integers(1, 2)))
        pads_begin.append(draw(st.integers(0, 2)))
        pads_end.append(draw(st.integers(0, 2)))
        span = (kernel[-1] - 1) * dilations[-1] + 1
        least = max(1, span - pads_begin[-1] - pads_end[-1])
        spatial.append(draw(st.integers(least, least + 3)))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    x = rng.standard_normal((draw(st.integers(1, 2)), c, *spatial))
    w = rng.standard_normal((m, c // group, *kernel))
    attributes = {
        "strides": strides,
        "pads": pads_begin + pads_end,
        "dilations": dilations,
        "group": group,
    }
    return x, w, attributes


@st.composite
def pool_problems(draw: st.DrawFn, max_rank: int = 3) -> tuple[Array, Attributes]:
    """Draw (x, attributes) of a pooling whose pads are less than the kernel, in float32."""
    rank = draw(st.integers(1, max_rank))
    kernel = [draw(st.integers(1, 3)) for _ in range(rank)]
    pads = [draw(st.integers(0, k - 1)) for k in kernel + kernel]
    spatial = [draw(st.integers(k, k + 5)) for k in kernel]
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    x = rng.integers(-3, 4, (2, draw(st.integers(1, 2)), *spatial)).astype(np.float32)
    attributes = {
        "kernel_shape": kernel,
        "strides": [draw(st.integers(1, 3)) for _ in kernel],
        "pads": pads,
        "ceil_mode": draw(st.integers(0, 1)),
    }
    return x, attributes


def central_differences(loss: Callable[[Array], float], x: Array, step: float = 1e-3) -> Array:
    gradient = np.empty_like(x)
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (loss(up) - loss(down)) / (2 * step)
    return gradient


def gradients_of(attributes: Attributes) -> Attributes:
    return {name: attributes[name] for name in ("strides", "pads", "dilations", "group")}


def unseen_at_the_end(x: Array, w: Array, attributes: Attributes) -> list[int]:
    """Elements of each spatial axis behind the last window; a stride steps over them."""
    rank = len(attributes["strides"])
    begin, end = attributes["pads"][:rank], attributes["pads"][rank:]
    kernel, dilations, strides = w.shape[2:], attributes["dilations"], attributes["strides"]
    axes = zip(x.shape[2:], begin, end, kernel, dilations, strides, strict=True)
    return [(n + p + q - (k - 1) * d - 1) % stride for n, p, q, k, d, stride in axes]


def is_close(a: Array, b: Array, rtol: float) -> bool:
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=rtol, atol=rtol))


@pytest.mark.slow
@FAST
@given(problem=conv_problems())
def test_conv_is_that_of_onnxruntime(
    stock: Oracle, problem: tuple[Array, Array, Attributes]
) -> None:
    x, w, attributes = problem
    x, w = x.astype(np.float32), w.astype(np.float32)
    b = np.arange(w.shape[0], dtype=np.float32)
    y = conv(x, w, b, **attributes)
    (wanted,) = stock("Conv", [x, w, b], attributes, [y.dtype])
    assert is_close(y, wanted, rtol=1e-5)


@pytest.mark.slow
@FAST
@given(problem=conv_problems())
def test_conv_transpose_is_that_of_onnxruntime(
    stock: Oracle, problem: tuple[Array, Array, Attributes]
) -> None:
    x, w, attributes = problem
    w, b = w.astype(np.float32), np.arange(x.shape[1], dtype=np.float32)
    dy = np.random.default_rng(0).standard_normal(conv(x, w, **attributes).shape)
    attributes["output_padding"] = unseen_at_the_end(x, w, attributes)
    y = conv_transpose(dy.astype(np.float32), w, b, **attributes)
    (wanted,) = stock("ConvTranspose", [dy.astype(np.float32), w, b], attributes, [y.dtype])
    assert y.shape == x.shape
    assert is_close(y, wanted, rtol=1e-5)


@FAST
@given(problem=pool_problems())
def test_max_pool_is_that_of_onnxruntime(stock: Oracle, problem: tuple[Array, Attributes]) -> None:
    x, attributes = problem
    y, indices = max_pool(x, **attributes)
    wanted, wanted_indices = stock("MaxPool", [x], attributes, [y.dtype, indices.dtype])
    np.testing.assert_array_equal(y, wanted)
    np.testing.assert_array_equal(indices, wanted_indices)
    np.testing.assert_array_equal(x.reshape(-1)[indices], y)


@pytest.mark.slow
@FAST
@given(problem=pool_problems(), count_include_pad=st.integers(0, 1))
def test_average_pool_is_that_of_onnxruntime(
    stock: Oracle, problem: tuple[Array, Attributes], count_include_pad: int
) -> None:
    x, attributes = problem
    attributes["count_include_pad"] = count_include_pad
    y = average_pool(x, **attributes)
    (wanted,) = stock("AveragePool", [x], attributes, [y.dtype], opset=19)
    assert is_close(y, wanted, rtol=1e-5)


@SLOW
@given(problem=conv_problems(max_rank=2))
def test_conv_gradients_are_those_of_finite_differences(
    problem: tuple[Array, Array, Attributes],
) -> None:
    x, w, attributes = problem
    dy = np.random.default_rng(1).standard_normal(conv(x, w, **attributes).shape)
    shared = gradients_of(attributes)
    dx = conv_input_grad(dy, w, input_shape=list(x.shape[2:]), **shared)
    dw = conv_weight_grad(x, dy, kernel_shape=list(w.shape[2:]), **shared)
    wanted_dx = central_differences(lambda x: float(np.vdot(conv(x, w, **attributes), dy)), x)
    wanted_dw = central_differences(lambda w: float(np.vdot(conv(x, w, **attributes), dy)), w)
    assert is_close(dx, wanted_dx, rtol=1e-8)
    assert is_close(dw, wanted_dw, rtol=1e-8)


@FAST
@given(problem=conv_problems())
def test_conv_gradients_are_adjoint_to_conv(problem: tuple[Array, Array, Attributes]) -> None:
    """<conv(x, w), dy> = <x, dx> = <w, dw>, for in all three arguments it is linear."""
    x, w, attributes = problem
    y = conv(x, w, **attributes)
    dy = np.random.default_rng(1).standard_normal(y.shape)
    shared = gradients_of(attributes)
    dx = conv_input_grad(dy, w, input_shape=list(x.shape[2:]), **shared)
    dw = conv_weight_grad(x, dy, kernel_shape=list(w.shape[2:]), **shared)
    assert dx.shape == x.shape
    assert dw.shape == w.shape
    np.testing.assert_allclose([np.vdot(x, dx), np.vdot(w, dw)], np.vdot(y, dy), rtol=1e-9)


@pytest.mark.parametrize("group", [1, 2, 4])
def test_finite_differences_reject_a_wrong_gradient(group: int) -> None:
    """Negative control: the begin and end pads exchanged, or a weight not transposed."""
    rng = np.random.default_rng(2)
    x, w = rng.standard_normal((2, 4, 5, 5)), rng.standard_normal((4, 4 // group, 3, 3))
    attributes = {"pads": [1, 0, 0, 1], "group": group}
    dy = rng.standard_normal(conv(x, w, **attributes).shape)
    wanted_dx = central_differences(lambda x: float(np.vdot(conv(x, w, **attributes), dy)), x)
    wanted_dw = central_differences(lambda w: float(np.vdot(conv(x, w, **attributes), dy)), w)

    def dx(w: Array, pads: list[int]) -> Array:
        return conv_input_grad(dy, w, input_shape=[5, 5], pads=pads, group=group)

    def dw(pads: list[int]) -> Array:
        return conv_weight_grad(x, dy, kernel_shape=[3, 3], pads=pads, group=group)

    assert is_close(dx(w, [1, 0, 0, 1]), wanted_dx, rtol=1e-8)
    assert not is_close(dx(w, [0, 1, 1, 0]), wanted_dx, rtol=1e-3)
    assert not is_close(dx(np.flip(w, (2, 3)), [1, 0, 0, 1]), wanted_dx, rtol=1e-3)
    assert is_close(dw([1, 0, 0, 1]), wanted_dw, rtol=1e-8)
    assert not is_close(dw([0, 1, 1, 0]), wanted_dw, rtol=1e-3)


@pytest.mark.slow
@SLOW
@given(problem=pool_problems(max_rank=2))
def test_max_pool_gradient_is_that_of_finite_differences(
    problem: tuple[Array, Attributes],
) -> None:
    x, attributes = problem
    # distinct values: at a tie there is no derivative
    x = np.random.default_rng(3).permutation(x.size).reshape(x.shape).astype(np.float64)
    y, indices = max_pool(x, **attributes)
    dy = np.random.default_rng(4).standard_normal(y.shape)
    dx = max_pool_grad(dy, indices, input_shape=list(x.shape[2:]))
    wanted = central_differences(lambda x: float(np.vdot(max_pool(x, **attributes)[0], dy)), x)
    assert is_close(dx, wanted, rtol=1e-8)


def test_finite_differences_reject_a_wrong_pool_gradient() -> None:
    """Negative control: indices that count within one channel only."""
    x = np.random.default_rng(5).permutation(72).reshape(2, 1, 6, 6).astype(np.float64)
    y, indices = max_pool(x, kernel_shape=[2, 2], strides=[2, 2])
    dy = np.random.default_rng(6).standard_normal(y.shape)
    wanted = central_differences(
        lambda x: float(np.vdot(max_pool(x, kernel_shape=[2, 2], strides=[2, 2])[0], dy)), x
    )
    assert is_close(max_pool_grad(dy, indices, input_shape=[6, 6]), wanted, rtol=1e-8)
    assert not is_close(max_pool_grad(dy, indices % 36, input_shape=[6, 6]), wanted, rtol=1e-3)


def test_max_pool_gradient_adds_where_windows_overlap() -> None:
    x = np.array([[[0.0, 5.0, 1.0]]], np.float32)
    y, indices = max_pool(x, kernel_shape=[2])
    dx = max_pool_grad(np.ones_like(y), indices, input_shape=[3])
    np.testing.assert_array_equal(dx, np.array([[[0, 2, 0]]], np.float32))
    assert dx.dtype == np.float32


WORKSPACES = [
    pytest.param((8, 32, 3, 3), 1, [1, 1], id="dense"),
    pytest.param((8, 16, 3, 3), 2, [1, 1], id="grouped"),
    pytest.param((32, 1, 3, 3), 32, [2, 2], id="depthwise"),
    pytest.param((64, 1, 3, 3), 32, [1, 1], id="depthwise-multiplier"),
    pytest.param((8, 32, 1, 1), 1, [1, 1], id="pointwise"),
    pytest.param((8, 32, 1, 1), 1, [2, 2], id="pointwise-strided"),
]


def peak_bytes(call: Callable[[], Array]) -> int:
    """Most memory at once that the call allocates, its result included."""
    call()  # imports and caches
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.parametrize(("w_shape", "group", "strides"), WORKSPACES)
def test_columns_are_those_of_one_sample(
    w_shape: tuple[int, ...], group: int, strides: list[int]
) -> None:
    """For a batch of 4 with 32 channels of 64 x 64: the peak is the result and the columns.

    Besides, numpy's iterator buffers up to three operands, and there are small objects.
    """
    slack = 3 * np.getbufsize() * 4 + 16 * 1024
    rng = np.random.default_rng(7)
    x = rng.standard_normal((4, 32, 64, 64)).astype(np.float32)
    w = rng.standard_normal(w_shape).astype(np.float32)
    edge = (w_shape[2] - 1) // 2
    shared: Attributes = {"strides": strides, "pads": [edge] * 4, "group": group}
    y = conv(x, w, **shared)
    columns = y.nbytes // len(x) // w_shape[0] * 32 * (1 if group == 32 else w_shape[2] ** 2)
    for result, scratch, call in (
        (y, columns, lambda: conv(x, w, **shared)),
        (x, columns, lambda: conv_input_grad(y, w, input_shape=[64, 64], **shared)),
        (w, columns + w.nbytes, lambda: conv_weight_grad(x, y, kernel_shape=w_shape[2:], **shared)),
    ):
        assert peak_bytes(call) - result.nbytes - scratch < slack
