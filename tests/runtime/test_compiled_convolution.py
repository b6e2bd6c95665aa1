"""The compiled real-valued convolutions against their numpy twins in float64, and themselves."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnnopt.runtime.format import Attribute
from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled import convolution
from bnnopt.runtime.kernels.compiled.bitmap import SHORT_BLOCK
from bnnopt.runtime.kernels.compiled.convolution import scratch_bytes
from bnnopt.runtime.kernels.compiled.functions import CFunction
from bnnopt.runtime.kernels.compiled.table import COMPILED
from bnnopt.runtime.kernels.on_read import Images
from bnnopt.runtime.kernels.reference.table import KERNELS
from bnnopt.runtime.library import library
from tests.ops.oracles import Geometry
from tests.runtime.compiled_calls import (
    INSTRUCTIONS,
    Guarded,
    assert_float64_is_refused,
    assert_scratch_is_checked,
    settings_of,
)

pytestmark = pytest.mark.skipif(library() is None, reason="built without a C compiler")

# Largest difference relative to the sum of the absolute products that an element adds up, and,
# where the result is float16, to its own value besides: half a unit in the last place.
BOUND = 1e-6
HALF_BOUND = 2.0**-11

CONVOLUTIONS = {
    "tile": Geometry(3, 16, 128, (4, 4), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "tile-and-one": Geometry(1, 15, 129, (7, 7), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "lenet": Geometry(3, 6, 16, (14, 14), (5, 5), (1, 1), (0, 0, 0, 0), (1, 1)),
    "few-filters": Geometry(2, 9, 6, (40, 31), (3, 4), (2, 1), (1, 2, 0, 1), (1, 2)),
    "bands-of-planes": Geometry(1, 16, 16, (40, 70), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "stem": Geometry(2, 3, 20, (30, 31), (7, 7), (2, 2), (3, 3, 3, 3), (1, 1)),
    "first-layer": Geometry(5, 3, 70, (16, 16), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "strides": Geometry(3, 33, 70, (14, 15), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
    "stride-3-dilated": Geometry(2, 9, 11, (17, 30), (3, 2), (3, 3), (2, 0, 1, 3), (2, 3)),
    "dilation-is-stride": Geometry(2, 4, 3, (9, 9), (3, 3), (2, 2), (2, 2, 2, 2), (2, 2)),
    "stride-over-kernel": Geometry(2, 4, 3, (10, 11), (2, 2), (4, 3), (0, 1, 0, 1), (1, 1)),
    "pointwise": Geometry(2, 130, 33, (14, 14), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    "pointwise-stride": Geometry(2, 24, 8, (9, 9), (1, 1), (2, 2), (0, 0, 0, 0), (1, 1)),
    "tiles-of-filters": Geometry(1, 70, 340, (5, 6), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "many-channels": Geometry(1, 700, 4, (3, 3), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "many-weights": Geometry(1, 200, 1400, (2, 2), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    "kernel-over-image": Geometry(2, 4, 4, (3, 3), (7, 7), (1, 1), (3, 3, 3, 3), (1, 1)),
    "grouped": Geometry(2, 12, 30, (9, 8), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), group=3),
    "many-groups": Geometry(1, 128, 256, (4, 4), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), group=64),
    "long-line": Geometry(2, 3, 5, (2600,), (5,), (1,), (2, 2), (1,)),
    "line-stride": Geometry(3, 6, 4, (41,), (4,), (3,), (1, 2), (2,), group=2),
    "whole-padding": Geometry(1, 3, 2, (2, 2), (1, 1), (1, 1), (2, 3, 3, 2), (1, 1)),
    "nothing-but-padding": Geometry(2, 3, 2, (5, 1), (2, 3), (1, 2), (0, 3, 0, 0), (1, 1)),
    "depthwise": Geometry(3, 12, 12, (9, 8), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), group=12),
    "depthwise-bands": Geometry(1, 2, 2, (150, 120), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), group=2),
    "depthwise-several": Geometry(2, 5, 15, (9, 8), (3, 2), (2, 3), (1, 2, 0, 1), (2, 1), group=5),
    "depthwise-line": Geometry(2, 4, 4, (70,), (5,), (2,), (2, 2), (3,), group=4),
}


DENSITIES = (0, 0.05, 0.6, 1)


@dataclass(frozen=True)
class Call:
    """A call, and for every element of the result the sum of the absolute products in it."""

    operator: str
    inputs: Sequence[Array]
    attributes: Mapping[str, Attribute]
    dtype: np.dtype[np.generic]

    def twin(self, *, magnitude: bool = False) -> Array:
        floats = [a.floats() if isinstance(a, Images) else a for a in self.inputs]
        wide = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in floats]
        if magnitude:
            wide = [np.abs(a) for a in wide]
        result = KERNELS[self.operator](*wide, **self.attributes)
        assert isinstance(result, np.ndarray)
        return result

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """Of the result."""
        return self.twin().shape

    def scratch_bytes(self, threads: int) -> int:
        shapes = [a.shape for a in self.inputs], [self.shape]
        n_bytes = scratch_bytes(self.operator, *shapes, self.attributes, threads)
        assert n_bytes is not None
        return n_bytes


def calls_of(g: Geometry, seed: int, *, half: bool = False) -> list[Call]:
    """Forward with and without a bias, transposed too, and both gradients; dy, dx and y are float16
    if `half`, and so is x of some.
    """
    rng = np.random.default_rng(seed)
    x, w, b, dy = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in (g.x_shape, g.w_shape, g.m, g.conv_shape)
    )
    map_dtype = np.dtype(np.float16 if half else np.float32)
    dy = dy.astype(map_dtype)
    x = x.astype(map_dtype) if seed % 4 > 1 else x
    shared: dict[str, Attribute] = {
        "strides": list(g.strides),
        "pads": list(g.pads),
        "dilations": list(g.dilations),
        "group": g.group,
    }
    to_input = {
        "input_shape": list(g.space),
        "output_padding": list(g.output_padding),
        **shared,
    }
    to_weight = {"kernel_shape": list(g.kernel), **shared}
    bias = [rng.standard_normal(g.x_shape[1]).astype(np.float32)] * (seed % 2)
    transposed = {"output_padding": list(g.output_padding), **shared}
    return [
        Call("Conv", [x, w, b] if seed % 2 else [x, w], shared, map_dtype),
        Call("ConvWeightGrad", [x, dy], to_weight, np.dtype(np.float32)),
        Call("ConvInputGrad", [dy, w], to_input, map_dtype),
        *([] if half else [Call("ConvTranspose", [dy, w, *bias], transposed, map_dtype)]),
    ]


def run(call: Call, *, kernels: str = "avx512", threads: int) -> Array:
    """The compiled result, between guards, in exactly the scratch that was asked for."""
    result = Guarded(np.empty(call.shape, call.dtype), 0)
    scratch = Guarded(np.empty(call.scratch_bytes(threads), np.uint8), 0)
    before = [a.tobytes() for a in call.inputs]
    with settings_of(kernels=kernels, threads=threads):
        kernel = COMPILED[call.operator]
        done = kernel(call.inputs, [result.array], call.attributes, scratch.array)
    assert done, "not covered"
    result.check()
    scratch.check()
    assert [a.tobytes() for a in call.inputs] == before, "an input was written to"
    return result.array


def assert_close(call: Call, got: Array) -> None:
    """Within the bounds of the sum of the absolute products, and of the value if rounded."""
    want, magnitude = call.twin(), call.twin(magnitude=True)
    assert got.shape == want.shape
    assert np.isfinite(got).all()
    limit = BOUND * magnitude
    if call.dtype == np.float16:
        limit += HALF_BOUND * np.abs(want) + 2.0**-24
    assert (np.abs(got - want) <= limit).all()


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    rank = draw(st.sampled_from([1, 2, 2, 2]))

    def axes(low: int, high: int, times: int = 1) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(rank * times))

    kernel, strides, dilations = axes(1, 4), axes(1, 3), axes(1, 2)
    pads = axes(0, 3, 2)
    least = [
        max(1, d * (k - 1) + 1 - before - after)
        for k, d, before, after in zip(kernel, dilations, pads, pads[rank:], strict=False)
    ]
    space = tuple(draw(st.integers(low, low + 30)) for low in least)
    group = draw(st.sampled_from([1, 1, 1, 2, 3]))
    c, m = draw(st.sampled_from([1, 1, 2, 8, 21])), draw(st.sampled_from([1, 2, 9, 16, 50]))
    n = draw(st.integers(1, 5))
    return Geometry(n, c * group, m * group, space, kernel, strides, pads, dilations, group)


@settings(max_examples=120, deadline=None)
@given(
    geometries(),
    st.integers(0, 2**32 - 1),
    st.sampled_from(INSTRUCTIONS),
    st.integers(1, 2),
    st.booleans(),
)
def test_drawn_convolutions(g: Geometry, seed: int, kernels: str, threads: int, half: bool):
    for call in calls_of(g, seed, half=half):
        assert_close(call, run(call, kernels=kernels, threads=threads))


@pytest.mark.parametrize("note", CONVOLUTIONS)
@pytest.mark.parametrize("half", [False, True])
def test_same_bits_on_any_number_of_threads(note: str, half: bool):
    for call in calls_of(CONVOLUTIONS[note], seed=1, half=half):
        for kernels in INSTRUCTIONS:
            results = [run(call, kernels=kernels, threads=threads) for threads in (1, 2, 5)]
            assert_close(call, results[0])
            assert len({result.tobytes() for result in results}) == 1


@settings(max_examples=60, deadline=None)
@given(geometries(), st.integers(0, 2**32 - 1), st.sampled_from(INSTRUCTIONS), st.booleans())
def test_planes_as_they_lie_give_the_bits_of_gathered_columns(
    g: Geometry, seed: int, kernels: str, half: bool
):
    for call in calls_of(g, seed, half=half)[::2]:
        sliding = run(call, kernels=kernels, threads=1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(convolution, "SLIDING_FILTERS", 0)
            assert run(call, kernels=kernels, threads=1).tobytes() == sliding.tobytes()


@pytest.mark.parametrize(
    ("note", "sliding"),
    [
        ("lenet", {convolution.SLIDING_CONV, convolution.SLIDING_INPUT_GRAD}),
        ("few-filters", {convolution.SLIDING_CONV, convolution.INPUT_GRAD}),
        ("tile", {convolution.CONV, convolution.SLIDING_INPUT_GRAD}),
    ],
)
def test_which_kernel_a_geometry_gets(note: str, sliding: set[CFunction]):
    forward, _, input_grad, *_ = calls_of(CONVOLUTIONS[note], 0)
    assert {cut_of(forward).function, cut_of(input_grad).function} == sliding


def cut_of(call: Call) -> convolution.Cut:
    shapes = [a.shape for a in call.inputs]
    found = convolution._cut(call.operator, shapes, call.shape, call.attributes)
    assert found is not None
    return found


def test_the_vector_kernels_agree_where_they_sum_in_one_order():
    for call in calls_of(CONVOLUTIONS["strides"], seed=2):
        wide, narrow = (run(call, kernels=kernels, threads=1) for kernels in ("avx512", "avx2"))
        assert wide.tobytes() == narrow.tobytes()


def of_bitmap(call: Call, density: float, seed: int) -> tuple[Call, Call]:
    """A weight gradient of an x with so many zeros, and the same of its bitmap."""
    x, dy = call.inputs
    rng = np.random.default_rng(seed)
    x = np.where(rng.random(x.shape) < density, x, rng.choice(np.float32([0, -0.0]), x.shape))
    spare = seed % 3
    packed = KERNELS["BitmapPack"](x, capacity=np.count_nonzero(x.view(np.uint32)) + 1 + spare)
    assert isinstance(packed, tuple)
    attributes = {"shape": list(x.shape[1:]), **call.attributes}
    fused = dataclasses.replace(
        call, operator="BitmapConvWeightGrad", inputs=[*packed, dy], attributes=attributes
    )
    return dataclasses.replace(call, inputs=[x, dy]), fused


@settings(max_examples=80, deadline=None)
@given(
    geometries(),
    st.integers(0, 2**32 - 1),
    st.sampled_from(INSTRUCTIONS),
    st.sampled_from([1, 2, 5]),
    st.sampled_from(DENSITIES),
    st.booleans(),
)
def test_a_bitmap_gives_the_bits_of_the_dense_gradient(
    g: Geometry, seed: int, kernels: str, threads: int, density: float, half: bool
):
    dense, fused = of_bitmap(calls_of(g, seed, half=half)[1], density, seed)
    want = run(dense, kernels=kernels, threads=1)
    assert run(fused, kernels=kernels, threads=threads).tobytes() == want.tobytes()


@pytest.mark.parametrize(
    "note", ["stem", "long-line", "many-groups", "nothing-but-padding", "depthwise-bands"]
)
def test_a_bitmap_on_any_number_of_threads(note: str):
    dense, fused = of_bitmap(calls_of(CONVOLUTIONS[note], 7)[1], 0.6, 7)
    for kernels in INSTRUCTIONS:
        want = run(dense, kernels=kernels, threads=1).tobytes()
        assert {run(fused, kernels=kernels, threads=n).tobytes() for n in (1, 2, 5)} == {want}


def of_bytes(call: Call, seed: int) -> tuple[Call, Call]:
    """A product of bytes that are normalised before, and the same as they are read."""
    rng = np.random.default_rng(seed)
    x, *others = call.inputs
    scales = rng.standard_normal((2, x.shape[1])).astype(np.float32)
    read = Images.of(rng.integers(0, 256, x.shape, np.uint8), *scales)
    return tuple(dataclasses.replace(call, inputs=[a, *others]) for a in (read.floats(), read))


@settings(max_examples=80, deadline=None)
@given(
    geometries(),
    st.integers(0, 2**32 - 1),
    st.sampled_from(INSTRUCTIONS),
    st.sampled_from([1, 2, 5]),
    st.booleans(),
)
def test_bytes_are_normalised_as_they_are_read(
    g: Geometry, seed: int, kernels: str, threads: int, half: bool
):
    for call in calls_of(g, seed, half=half)[:2]:
        floats, read = of_bytes(call, seed)
        want = run(floats, kernels=kernels, threads=1)
        assert run(read, kernels=kernels, threads=threads).tobytes() == want.tobytes()


@pytest.mark.parametrize("note", CONVOLUTIONS)
def test_bytes_on_any_kernels(note: str):
    for call in calls_of(CONVOLUTIONS[note], 9)[:2]:
        floats, read = of_bytes(call, 9)
        assert_close(floats, run(read, threads=2))
        for kernels in INSTRUCTIONS:
            want = run(floats, kernels=kernels, threads=1).tobytes()
            assert run(read, kernels=kernels, threads=2).tobytes() == want


@pytest.mark.parametrize("note", ["first-layer", "depthwise", "grouped"])
def test_the_numbers_of_another_channel_are_noticed(note: str):
    for call in calls_of(CONVOLUTIONS[note], 10)[:2]:
        floats, read = of_bytes(call, 10)
        x, *others = read.inputs
        assert isinstance(x, Images)
        moved = Images.of(np.asarray(x), np.roll(x.factor, 1), x.shift)
        wrong = run(dataclasses.replace(read, inputs=[moved, *others]), threads=1)
        assert wrong.tobytes() != run(floats, threads=1).tobytes()


def test_plain_bytes_are_refused():
    """Bytes without numbers to normalise them by are no images: bits, perhaps."""
    for call in calls_of(CONVOLUTIONS["tile"], 3)[:2]:
        _, read = of_bytes(call, 3)
        inputs = [np.asarray(read.inputs[0]), *read.inputs[1:]]
        result, scratch = (
            np.empty(call.shape, call.dtype),
            np.empty(call.scratch_bytes(1), np.uint8),
        )
        assert not COMPILED[call.operator](inputs, [result], call.attributes, scratch)


@pytest.mark.parametrize("note", ["tile", "depthwise", "grouped", "pointwise"])
def test_a_changed_bit_of_a_bitmap_is_noticed(note: str):
    dense, fused = of_bitmap(calls_of(CONVOLUTIONS[note], 8)[1], 0.5, 8)
    bits = fused.inputs[0].copy()
    at = np.flatnonzero((bits[0] != 0) & (bits[0] != 255))[0]
    bits[0, at] = np.roll(np.unpackbits(bits[0, at]), 1) @ (1 << np.arange(8)[::-1])  # as many
    moved = dataclasses.replace(fused, inputs=[bits, *fused.inputs[1:]])
    want = run(dense, threads=2).tobytes()
    assert run(fused, threads=2).tobytes() == want
    assert run(moved, threads=2).tobytes() != want


@pytest.mark.parametrize("call", calls_of(CONVOLUTIONS["tile"], 3), ids=lambda call: call.operator)
class TestControls:
    def test_one_changed_number_is_noticed(self, call: Call):
        inputs = [a.copy() for a in call.inputs]
        inputs[0].reshape(-1)[5] += np.float32(1e-3)
        wrong = run(dataclasses.replace(call, inputs=inputs), threads=1)
        with pytest.raises(AssertionError):
            assert_close(call, wrong)

    def test_too_little_scratch_is_refused_and_nothing_written(self, call: Call):
        assert_scratch_is_checked(COMPILED[call.operator], call)

    def test_float64_is_left_to_numpy(self, call: Call):
        assert_float64_is_refused(COMPILED[call.operator], call)


def test_a_nan_in_the_scratch_is_never_read_into_a_result():
    for note in (
        "depthwise-bands",
        "depthwise-several",
        "stem",
        "lenet",
        "few-filters",
        "long-line",
    ):
        for call in calls_of(CONVOLUTIONS[note], seed=4):
            scratch = np.full(call.scratch_bytes(1) + 64, 0xFF, np.uint8)  # floats that are NaN
            scratch = scratch[-scratch.ctypes.data % 64 :][: call.scratch_bytes(1)]
            result = np.empty(call.twin().shape, np.float32)
            with settings_of(threads=1):
                kernel = COMPILED[call.operator]
                assert kernel(call.inputs, [result], call.attributes, scratch)
            assert_close(call, result)


def test_attributes_may_be_left_out():
    (call, *_) = calls_of(CONVOLUTIONS["pointwise"], seed=6)
    bare = dataclasses.replace(call, attributes={})
    np.testing.assert_array_equal(run(bare, threads=1), run(call, threads=1))
    same = dataclasses.replace(call, attributes={"auto_pad": "SAME_UPPER", "strides": [2, 2]})
    assert_close(same, run(same, threads=1))


def test_scratch_is_small_and_never_grows_with_the_batch():
    for g in [
        Geometry(20, 128, 128, (32, 32), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
        Geometry(100, 512, 512, (7, 7), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
        Geometry(20, 3, 64, (224, 224), (7, 7), (2, 2), (3, 3, 3, 3), (1, 1)),
        Geometry(20, 64, 64, (112, 112), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), group=64),
    ]:
        needs = {}
        for n in (1, g.n, 4 * g.n):
            x, y, w = (n, *g.x_shape[1:]), (n, *g.conv_shape[1:]), g.w_shape
            operators = {"Conv": (x, w, y), "ConvInputGrad": (y, w, x), "ConvWeightGrad": (x, y, w)}
            attributes = calls_of(dataclasses.replace(g, n=1), 0)[0].attributes
            needs[n] = [
                scratch_bytes(operator, shapes[:2], shapes[2:], attributes, 1) or 0
                for operator, shapes in operators.items()
            ]
        assert needs[g.n] == needs[4 * g.n]
        assert all(few <= many < 3 << 19 for few, many in zip(needs[1], needs[g.n], strict=True))


def test_a_bitmap_needs_room_for_a_band_and_for_its_offsets():
    for note in ("tile", "stem", "pointwise-stride", "depthwise-bands"):
        g = CONVOLUTIONS[note]
        dense, fused = of_bitmap(calls_of(g, 9)[1], 0.5, 9)
        n_blocks = -(-dense.inputs[0].size // SHORT_BLOCK)
        plane = math.prod(g.space)
        more = fused.scratch_bytes(2) - dense.scratch_bytes(2)
        assert 8 * n_blocks < more <= 8 * (n_blocks + g.n) + 2 * 4 * (plane + 16) + 4 * 64


def test_volumes_and_huge_kernels_are_left_to_numpy():
    for x in [(1, 1, 2, 2, 2), (1, 1, 40, 40)]:
        one = (1,) * len(x)
        assert scratch_bytes("Conv", [x, x], [one], {}, 1) is None
    assert scratch_bytes("Conv", [(1, 1, 4, 4), (1, 1, 4, 4)], [(1,) * 4], {}, 1) is not None
