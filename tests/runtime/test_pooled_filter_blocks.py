"""The stem of a residual network by blocks of filters: the bits of the kernels one by one."""

from __future__ import annotations

import numpy as np
import pytest

from bnnopt.runtime.format import Attribute
from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.chains import OF_WINDOW
from bnnopt.runtime.kernels.compiled import pooled_filter_blocks
from bnnopt.runtime.kernels.compiled.kernel import Sizes
from bnnopt.runtime.kernels.compiled.table import scratch_bytes
from bnnopt.runtime.kernels.windows import make_window
from bnnopt.runtime.library import library
from tests.runtime.compiled_calls import settings_of
from tests.runtime.test_filter_blocks import Call, blocked, compiled

pytestmark = pytest.mark.skipif(library() is None, reason="built without a C compiler")

# Samples, channels, filters, rows, columns, kernel, stride; of the pooling: kernel, stride, pad.
SHAPES = {
    "stem": (2, 3, 64, 30, 28, 7, 2, 3, 2, 1),
    "a-block-and-a-bit": (3, 4, 35, 9, 11, 3, 1, 2, 2, 0),
    "one-block": (3, 1, 5, 8, 7, 3, 1, 3, 1, 1),
    "parts": (2, 2, 70, 40, 40, 3, 1, 3, 3, 0),
}
SETTINGS = (("avx512", 1), ("avx2", 4), ("portable", 2))


def stem(name: str, half: bool, relu: int, seed: int = 1) -> Call:
    n, c, m, h, w, k, stride, pool, pool_stride, pad = SHAPES[name]
    random = np.random.default_rng(seed)
    x = random.standard_normal((n, c, h, w)).astype(np.float16 if half else np.float32)
    weights, scale, bias, mean = (
        random.standard_normal(s).astype("f") for s in ((m, c, k, k), m, m, m)
    )
    own: dict[str, Attribute] = {
        "strides": [stride] * 2, "pads": [k // 2] * 4, "dilations": [1, 1], "group": 1,
        "dtype": 10 if half else 1, "epsilon": 1e-5, "momentum": 0.9, "relu": relu,
    }  # fmt: skip
    space = make_window((h, w), (k, k), strides=[stride] * 2, pads=[k // 2] * 4).result
    window = ([pool] * 2, [pool_stride] * 2, [pad] * 4, [1] * 2)
    pooled = make_window(space, (pool, pool), strides=window[1], pads=window[2]).result
    starts = [np.arange(size) * pool_stride - pad for size in pooled]
    origin = np.add.outer(starts[0] * space[1], starts[1]).astype(np.int32)
    own |= {f"pool_{key}": value for key, value in zip(OF_WINDOW, window, strict=True)}
    own |= {
        "plane": space[0] * space[1], "width": space[1], "kernel_width": pool, "row_dilation": 1,
        "column_dilation": 1, "bit_values": [1, 2, 4, 8][: 2 if pool == 2 else 4],
    }  # fmt: skip
    inputs = [x, weights, scale, bias, mean, mean**2, origin]
    return Call("RealConvNormMaxPool", inputs, own)


def way_back(forward: Call, results: list[Array]) -> Call:
    y, packed, sides, *_, inv_std = results
    x, weights, scale, bias, *_, origin = forward.inputs
    own = forward.attributes
    plane, width, bits = own["plane"], own["width"], own["bit_values"]
    assert isinstance(plane, int)
    assert isinstance(width, int)
    assert isinstance(bits, list)
    space = [plane // width, width]
    names = ("plane", "width", "kernel_width", "row_dilation", "column_dilation", "bit_values")
    attributes: dict[str, Attribute] = {name: own[name] for name in (*names, "relu", "dtype")}
    attributes |= {
        "epsilon": 1e-5, "shape": [len(weights), *space], "input_shape": space,
        "bit_shape": [*y.shape[1:], len(bits)], "conv_input_shape": list(x.shape[2:]),
        "conv_kernel_shape": list(weights.shape[2:]),
    }  # fmt: skip
    attributes |= {f"conv_{name}": own[name] for name in OF_WINDOW[1:]}
    dy = np.random.default_rng(5).standard_normal(y.shape).astype(y.dtype)
    inputs = [dy, y, packed, origin, sides, scale, bias, inv_std, x]
    return Call("RealConvNormMaxPoolGrad", inputs, attributes)


def forward_one_by_one(call: Call) -> list[Array]:
    """On whole maps, and rectified in front of the pooling, as the graph has it."""
    x, weights, *channels, origin = call.inputs
    own = call.attributes
    (y,) = compiled("RealConv", [x, weights], own)
    y, *statistics = compiled("L1BatchNormalizationTraining", [y, *channels], own)
    (sides,) = compiled("ThresholdPack", [y, channels[1]], {})
    if own["relu"]:
        y = np.maximum(y, y.dtype.type(0))
    window = {name: own[f"pool_{name}"] for name in OF_WINDOW}
    y, packed = compiled("PackedMaxPool", [y, origin], {**own, **window})
    return [y, packed, sides, *statistics]


def gradient_one_by_one(call: Call) -> list[Array]:
    *read, x = call.inputs
    dx, *sums = compiled("L1BatchNormalizationPoolGrad", read, call.attributes)
    own = {name: call.attributes[f"conv_{name}"] for name in ("input_shape", *OF_WINDOW)}
    (dw,) = compiled("ConvWeightGrad", [x, dx], {"group": 1, **own})
    (taps,) = compiled("ConvTapSums", [dx], own)
    return [dw, taps, *sums]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("relu", [0, 1])
@pytest.mark.parametrize(
    "name", [pytest.param(s, marks=pytest.mark.slow) if s == "parts" else s for s in SHAPES]
)
def test_the_same_bits_as_one_by_one(name: str, relu: int, half: bool) -> None:
    """But for the places of maxima that a ReLU makes 0, which the gradient leaves out."""
    call = stem(name, half, relu)
    for kernels, threads in SETTINGS:
        with settings_of(kernels=kernels, threads=threads):
            want, got = forward_one_by_one(call), blocked(call)
            back = way_back(call, want)
            gradients = gradient_one_by_one(back)
            for i, (a, b) in enumerate(zip(got, want, strict=True)):
                if i != 1 or not relu:
                    np.testing.assert_array_equal(a, b)
            for given in (back, way_back(call, [a for a in got if a is not None])):
                for a, b in zip(blocked(given), gradients, strict=True):
                    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("index", [1, 2, 3])
def test_sums_may_be_left_out(index: int) -> None:
    forward = stem("a-block-and-a-bit", half=True, relu=1)
    call = way_back(forward, forward_one_by_one(forward))
    whole, partly = blocked(call), blocked(call, without=index)
    assert [b is None for b in partly] == [i == index for i in range(4)]
    for a, b in zip(whole, partly, strict=True):
        assert b is None or np.array_equal(a, b)  # type: ignore[arg-type]


def test_another_block_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What belongs to the second block of filters is written over the first."""
    forward = stem("a-block-and-a-bit", half=True, relu=0)
    want, told = forward_one_by_one(forward), pooled_filter_blocks._bytes_of

    def first(filters: slice, bits: int) -> slice:
        found = told(filters, bits)
        return slice(0, found.stop - found.start)

    monkeypatch.setattr(pooled_filter_blocks, "_bytes_of", first)
    assert not np.array_equal(blocked(forward)[2], want[2])  # type: ignore[arg-type]


def test_it_needs_a_block_of_the_map() -> None:
    call = stem("parts", half=True, relu=1)
    x, weights, *_ = (a.shape for a in call.inputs)
    map_bytes = x[0] * weights[0] * 40 * 40 * 2
    needed = scratch_bytes(
        call.operator, Sizes([a.shape for a in call.inputs], [], call.attributes)
    )
    assert map_bytes * 32 / 70 <= needed < 0.8 * map_bytes
    groups = Sizes([a.shape for a in call.inputs], [], {**call.attributes, "group": 2})
    assert scratch_bytes(call.operator, groups) == 0


def test_planes_too_large_for_the_sums_of_taps_are_not_covered() -> None:
    forward = stem("one-block", half=True, relu=0)
    call = way_back(forward, forward_one_by_one(forward))
    shapes = [a.shape for a in call.inputs]
    large = [*shapes[:-1], (1, 1, 150, 150)]
    assert scratch_bytes(call.operator, Sizes(shapes, [], call.attributes)) > 0
    assert scratch_bytes(call.operator, Sizes(large, [], call.attributes)) == 0
