"""The compiled binary products against their numpy twins in float64, and against themselves."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bnnopt.runtime.format import Attribute
from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled.table import COMPILED
from bnnopt.runtime.kernels.reference.binary_products import TILE_BYTES
from bnnopt.runtime.kernels.reference.int4 import pack_codes
from bnnopt.runtime.kernels.reference.table import KERNELS
from bnnopt.runtime.kernels.tiling import scratch_bytes
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

# Largest difference of a gradient, relative to the sum of |dy| that the element adds up.
BOUND = 1e-6
HALF_ULP = 2.0**-11, 2.0**-25  # of float16: relative, and of its subnormals
DTYPES = {1: np.float32, 5: np.int16, 10: np.float16}

CONVOLUTIONS = {
    "tile": Geometry(2, 16, 64, (8, 8), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "tile-and-one": Geometry(1, 65, 65, (13, 5), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "wide-image": Geometry(1, 5, 9, (20, 224), (7, 7), (2, 2), (3, 3, 3, 3), (1, 1)),
    "seven": Geometry(9, 40, 70, (7, 7), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "sixteen": Geometry(3, 20, 12, (16, 16), (5, 5), (1, 1), (2, 2, 2, 2), (1, 1)),
    "strides": Geometry(3, 33, 70, (14, 15), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
    "stride-3-dilated": Geometry(2, 9, 11, (17, 30), (3, 2), (3, 3), (2, 0, 1, 3), (2, 3)),
    "pointwise": Geometry(2, 130, 33, (14, 14), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    "pointwise-stride": Geometry(2, 24, 8, (9, 9), (1, 1), (2, 2), (0, 0, 0, 0), (1, 1)),
    "many-channels": Geometry(1, 1500, 4, (3, 3), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "many-filters": Geometry(1, 3, 4200, (2, 3), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    "many-bands": Geometry(3, 4, 5, (60, 60), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "kernel-over-image": Geometry(2, 4, 4, (3, 3), (7, 7), (1, 1), (3, 3, 3, 3), (1, 1)),
    "depthwise": Geometry(2, 12, 12, (9, 8), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), group=12),
    "depthwise-stride": Geometry(3, 5, 10, (13, 70), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), group=5),
    "depthwise-bands": Geometry(1, 2, 2, (130, 90), (5, 3), (1, 1), (2, 0, 2, 3), (1, 2), group=2),
    "depthwise-line": Geometry(2, 6, 12, (57,), (6,), (3,), (4, 2), (2,), group=6),
    "grouped": Geometry(2, 12, 30, (9, 8), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), group=3),
    "long-line": Geometry(2, 3, 5, (2600,), (5,), (1,), (2, 2), (1,)),
    "line-stride": Geometry(3, 6, 4, (41,), (4,), (3,), (1, 2), (2,), group=2),
    "many-samples": Geometry(70, 5, 6, (7, 9), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "many-larger": Geometry(70, 9, 6, (7, 9), (3, 3), (1, 1), (0, 0, 0, 0), (1, 1)),
    "words": Geometry(2, 64, 9, (5, 61), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "words-one-band": Geometry(3, 96, 131, (3, 2), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "words-stride": Geometry(2, 100, 6, (11, 130), (3, 2), (3, 2), (2, 0, 1, 3), (2, 3)),
    "words-many-taps": Geometry(1, 96, 6, (9, 9), (8, 8), (1, 1), (4, 3, 4, 3), (1, 1), group=2),
    "whole-padding": Geometry(1, 3, 2, (2, 2), (1, 1), (1, 1), (2, 3, 3, 2), (1, 1)),
}
LAYERS = [  # N, K, M
    (1, 1, 1),
    (5, 7, 3),
    (64, 64, 64),
    (65, 65, 65),
    (100, 513, 130),
    (3, 9001, 70),
    (2100, 33, 9),
    (9, 40, 2100),
    (131, 8, 4),
    (1, 515, 700),
    (3, 64, 257),
    (4, 64, 257),
]


@dataclass(frozen=True)
class Product:
    """A call, and for every element of the result the sum of the |dy| that it adds up."""

    operator: str
    inputs: Sequence[Array]
    attributes: Mapping[str, Attribute]
    scale: Array | float = 0.0  # 0: the result is exact

    @property
    def dtype(self) -> type[np.generic]:
        """Of the result."""
        if "dtype" in self.attributes:
            return DTYPES[self.attributes["dtype"]]
        if "Signs" in self.operator:
            return np.uint8
        return self.inputs[0].dtype.type if "InputGrad" in self.operator else np.float32

    def twin(self) -> Array:
        return self._twin

    @functools.cached_property
    def _twin(self) -> Array:
        wide = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in self.inputs]
        result = KERNELS[self.operator](*wide, **self.attributes)
        assert isinstance(result, np.ndarray)
        return result

    def scratch_bytes(self, threads: int, overwritten_bytes: int = 0) -> int:
        shapes = [a.shape for a in self.inputs], [self.twin().shape]
        return (
            scratch_bytes(self.operator, *shapes, self.attributes, threads, overwritten_bytes) or 0
        )


def packed(rng: np.random.Generator, n: int, shape: Sequence[int]) -> Array:
    return np.packbits(rng.random((n, math.prod(shape))) < 0.5, axis=1, bitorder="little")


def gradient(rng: np.random.Generator, shape: Sequence[int], dtype: int) -> Array:
    """A dy for the output dtype with this ONNX number; int16 goes with float16."""
    return rng.standard_normal(shape).astype(np.float32 if dtype == 1 else np.float16)


def conv_products(g: Geometry, seed: int, dtype: int = 1) -> list[Product]:
    rng = np.random.default_rng(seed)
    shared: dict[str, Attribute] = {
        "strides": list(g.strides),
        "pads": list(g.pads),
        "dilations": list(g.dilations),
        "group": g.group,
    }
    x_shape, w_shape = list(g.x_shape[1:]), list(g.w_shape[1:])
    x, w = packed(rng, g.n, x_shape), packed(rng, g.m, w_shape)
    dy = gradient(rng, g.conv_shape, dtype)
    per_filter = np.abs(dy).sum(axis=(0, *range(2, dy.ndim)), dtype=np.float64)
    to_input = {
        "input_shape": list(g.space),
        "w_shape": w_shape,
        "output_padding": list(g.output_padding),
        **shared,
    }
    ones = np.full_like(w, 255)
    size = np.abs(dy).astype(np.float32)
    magnitude = KERNELS["BinaryConvInputGrad"](size, ones, **to_input)
    assert isinstance(magnitude, np.ndarray)
    kernel = {"x_shape": x_shape, "kernel_shape": list(g.kernel), **shared}
    return [
        Product(
            "BinaryConv", [x, w], {"x_shape": x_shape, "w_shape": w_shape, "dtype": dtype, **shared}
        ),
        Product(
            "BinaryConvWeightGrad", [x, dy], kernel,
            per_filter.reshape(-1, *(1,) * (dy.ndim - 1)),
        ),
        Product("BinaryConvInputGrad", [dy, w], to_input, magnitude),
    ]  # fmt: skip


def layer_products(n: int, k: int, m: int, seed: int, dtype: int = 1) -> list[Product]:
    rng = np.random.default_rng(seed)
    x, w = packed(rng, n, [k]), packed(rng, m, [k])
    dy = gradient(rng, (n, m), dtype)
    x_shape, w_shape, size = [k], [k], np.abs(dy).astype(np.float32)
    return [
        Product("BinaryGemm", [x, w], {"x_shape": x_shape, "w_shape": w_shape, "dtype": dtype}),
        Product("BinaryGemmWeightGrad", [x, dy], {"x_shape": x_shape}, size.sum(0)[:, None]),
        Product("BinaryGemmInputGrad", [dy, w], {"w_shape": w_shape}, size.sum(1)[:, None]),
    ]


def run(product: Product, *, kernels: str = "avx512", threads: int) -> Array:
    """The compiled result, between guards, in exactly the scratch that was asked for."""
    result = Guarded(np.empty(product.twin().shape, product.dtype), 0)
    scratch = Guarded(np.empty(product.scratch_bytes(threads), np.uint8), 0)
    before = [a.tobytes() for a in product.inputs]
    with settings_of(kernels=kernels, threads=threads):
        kernel = COMPILED[product.operator]
        done = kernel(product.inputs, [result.array], product.attributes, scratch.array)
    assert done, "not covered"
    result.check()
    scratch.check()
    assert [a.tobytes() for a in product.inputs] == before, "an input was written to"
    return result.array


def assert_close(product: Product, got: Array) -> None:
    """Equal if exact, else within BOUND of the sum of absolute values, and of one rounding."""
    want = product.twin()
    assert (got.dtype, got.shape) == (product.dtype, want.shape)
    assert np.isfinite(got).all()
    bound = BOUND * product.scale
    if got.dtype == np.float16 and "dtype" not in product.attributes:
        relative, absolute = HALF_ULP
        bound = bound + relative * (np.abs(want) + bound) + absolute
    assert (np.abs(got.astype(np.float64) - want) <= bound).all()


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
    c, m = draw(st.just(1) | st.integers(1, 24) | st.integers(43, 72)), draw(st.integers(1, 24))
    n = draw(st.integers(1, 5))
    return Geometry(n, c * group, m * group, space, kernel, strides, pads, dilations, group)


@settings(max_examples=100, deadline=None)
@given(
    geometries(),
    st.integers(0, 2**32 - 1),
    st.sampled_from(INSTRUCTIONS),
    st.integers(1, 2),
    st.sampled_from([*DTYPES]),
)
@example(  # 57 positions, one more than are spread from one word
    Geometry(1, 1, 1, (3, 19), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1), 0, "portable", 1, 1
)
def test_drawn_convolutions(g: Geometry, seed: int, kernels: str, threads: int, dtype: int):
    for product in conv_products(g, seed, dtype):
        assert_close(product, run(product, kernels=kernels, threads=threads))


@settings(max_examples=100, deadline=None)
@given(
    st.tuples(st.integers(1, 140), st.integers(1, 300), st.integers(1, 140)),
    st.integers(0, 2**32 - 1),
    st.sampled_from(INSTRUCTIONS),
    st.integers(1, 2),
    st.sampled_from([*DTYPES]),
)
def test_drawn_layers(
    shape: tuple[int, int, int], seed: int, kernels: str, threads: int, dtype: int
):
    for product in layer_products(*shape, seed, dtype):
        assert_close(product, run(product, kernels=kernels, threads=threads))


def assert_signs_are_those_of(gradient: Product) -> None:
    """The operator that keeps the signs of this one's result alone, bit for bit."""
    dw = run(gradient, threads=2)
    want = np.packbits(dw.reshape(len(dw), -1) >= 0, axis=1, bitorder="little")
    signs = dataclasses.replace(gradient, operator=f"{gradient.operator}Signs")
    for kernels in INSTRUCTIONS:
        for threads in (1, 5):
            got = run(signs, kernels=kernels, threads=threads)
            np.testing.assert_array_equal(got, want)
    other = dataclasses.replace(signs, inputs=[gradient.inputs[0], -gradient.inputs[1]])
    assert (run(other, threads=1) != want).any()


@pytest.mark.parametrize("note", CONVOLUTIONS)
@pytest.mark.parametrize("dtype", [1, 10])
def test_signs_of_weight_gradients_of_convolutions(note: str, dtype: int):
    assert_signs_are_those_of(conv_products(CONVOLUTIONS[note], seed=7, dtype=dtype)[1])


@pytest.mark.parametrize("shape", LAYERS, ids=str)
@pytest.mark.parametrize("dtype", [1, 10])
def test_signs_of_weight_gradients_of_layers(shape: tuple[int, int, int], dtype: int):
    assert_signs_are_those_of(layer_products(*shape, seed=8, dtype=dtype)[1])


def run_over_dy(product: Product, kernels: str, threads: int) -> Array:
    """The compiled dx where it is written over dy."""
    dy, w = product.inputs
    shape = product.twin().shape
    memory = Guarded(np.empty(max(dy.size, math.prod(shape)), dy.dtype), 0)
    over, dx = (memory.array[: math.prod(s)].reshape(s) for s in (dy.shape, shape))
    over[...] = dy
    scratch = Guarded(np.empty(product.scratch_bytes(threads, dy.nbytes), np.uint8), 0)
    with settings_of(kernels=kernels, threads=threads):
        kernel = COMPILED[product.operator]
        assert kernel([over, w], [dx], product.attributes, scratch.array)
    memory.check()
    scratch.check()
    return dx


@pytest.mark.parametrize("note", CONVOLUTIONS)
@pytest.mark.parametrize("dtype", [1, 10])
def test_an_input_gradient_written_over_dy_has_the_same_bits(note: str, dtype: int):
    product = conv_products(CONVOLUTIONS[note], seed=9, dtype=dtype)[2]
    want = run(product, threads=1)
    for kernels, threads in (("avx512", 1), ("avx2", 5), ("portable", 2)):
        assert run_over_dy(product, kernels, threads).tobytes() == want.tobytes()


def test_dx_over_dy_needs_the_scratch_of_its_copies():
    product = conv_products(CONVOLUTIONS["many-samples"], seed=9)[2]
    n_bytes = [product.scratch_bytes(1, overwritten) for overwritten in (0, 1 << 20)]
    assert 0 < n_bytes[1] - n_bytes[0] < 1 << 20


def assert_same_bits_everywhere(product: Product) -> None:
    results = [
        run(product, kernels=kernels, threads=threads)
        for kernels in INSTRUCTIONS
        for threads in (1, 2, 5)
    ]
    assert_close(product, results[0])
    assert len({result.tobytes() for result in results}) == 1


@pytest.mark.parametrize("note", CONVOLUTIONS)
def test_convolutions_give_the_same_bits_on_any_threads_and_instructions(note: str):
    for product in conv_products(CONVOLUTIONS[note], seed=1):
        assert_same_bits_everywhere(product)


@pytest.mark.parametrize("shape", LAYERS, ids=str)
def test_layers_give_the_same_bits_on_any_threads_and_instructions(shape: tuple[int, int, int]):
    for product in layer_products(*shape, seed=2):
        assert_same_bits_everywhere(product)


def with_float32(product: Product) -> Product:
    inputs = [a.astype(np.float32) if a.dtype == np.float16 else a for a in product.inputs]
    return dataclasses.replace(product, inputs=inputs)


def assert_half_is_the_float32_result_rounded_once(product: Product) -> None:
    with np.errstate(over="ignore"):
        want = run(with_float32(product), threads=2).astype(product.dtype)
    for kernels in INSTRUCTIONS:
        assert run(product, kernels=kernels, threads=2).tobytes() == want.tobytes()


@pytest.mark.parametrize("note", CONVOLUTIONS)
def test_convolutions_in_half_precision(note: str):
    forward, *gradients = conv_products(CONVOLUTIONS[note], seed=5, dtype=10)
    for product in gradients:
        assert_half_is_the_float32_result_rounded_once(product)
    single = {**forward.attributes, "dtype": 1}
    want = run(dataclasses.replace(forward, attributes=single), threads=2)
    for dtype in (5, 10):
        narrow = dataclasses.replace(forward, attributes={**forward.attributes, "dtype": dtype})
        np.testing.assert_array_equal(run(narrow, threads=2), want.astype(DTYPES[dtype]))


@pytest.mark.parametrize("shape", LAYERS, ids=str)
def test_layers_in_half_precision(shape: tuple[int, int, int]):
    forward, *gradients = layer_products(*shape, seed=6, dtype=10)
    for product in gradients:
        assert_half_is_the_float32_result_rounded_once(product)
    assert_close(forward, run(forward, threads=2))


def with_packed_dy(product: Product, dtype: int = 1) -> tuple[Product, Product]:
    """The gradient of powers of two, and the same of their 5 bits."""
    is_dx = "InputGrad" in product.operator
    inputs, place = [*product.inputs], 0 if is_dx else 1
    shape = list(inputs[place].shape[1:])
    packed, unit = KERNELS["Pow2Pack"](inputs[place])
    inputs[place] = KERNELS["Pow2Unpack"](packed, unit, shape=shape)
    plain = dataclasses.replace(product, inputs=inputs)
    return plain, dataclasses.replace(
        product,
        operator=f"{product.operator}Pow2",
        inputs=[*inputs[:place], packed, unit, *inputs[place + 1 :]],
        attributes={**product.attributes, "dy_shape": shape, **({"dtype": dtype} if is_dx else {})},
    )


def assert_packed_dy_gives_the_same_bits(product: Product) -> None:
    plain, packed = with_packed_dy(product)
    want = run(plain, threads=2)
    for kernels, threads in (("avx512", 1), ("avx2", 2), ("portable", 5)):
        assert run(packed, kernels=kernels, threads=threads).tobytes() == want.tobytes()
    half = run(with_packed_dy(product, dtype=10)[1], threads=2)
    with np.errstate(over="ignore"):
        assert half.tobytes() == want.astype(half.dtype).tobytes()


@pytest.mark.parametrize("note", CONVOLUTIONS)
def test_convolutions_of_packed_powers_of_two(note: str):
    for product in conv_products(CONVOLUTIONS[note], seed=10)[1:]:
        assert_packed_dy_gives_the_same_bits(product)


@pytest.mark.parametrize("shape", LAYERS, ids=str)
def test_layers_of_packed_powers_of_two(shape: tuple[int, int, int]):
    for product in layer_products(*shape, seed=11)[1:]:
        assert_packed_dy_gives_the_same_bits(product)


def test_signs_of_weight_gradients_of_packed_powers_of_two():
    for product in (
        conv_products(CONVOLUTIONS["strides"], seed=12)[1],
        layer_products(65, 65, 65, seed=12)[1],
    ):
        signs = dataclasses.replace(product, operator=f"{product.operator}Signs")
        plain, packed = with_packed_dy(signs)
        np.testing.assert_array_equal(run(packed, threads=2), run(plain, threads=2))


def small_products() -> list[Product]:
    products = [*conv_products(CONVOLUTIONS["tile"], seed=3), *layer_products(5, 70, 9, seed=3)]
    gradients = [product for product in products if "WeightGrad" in product.operator]
    signs = [dataclasses.replace(p, operator=f"{p.operator}Signs") for p in gradients]
    packed = [with_packed_dy(p)[1] for p in (*products, *signs) if "Grad" in p.operator]
    return [*products, *signs, *packed]


@pytest.mark.parametrize("product", small_products(), ids=lambda product: product.operator)
class TestControls:
    def test_one_flipped_bit_is_noticed(self, product: Product):
        inputs = [a.copy() for a in product.inputs]
        next(a for a in inputs if a.dtype == np.uint8)[0, 0] ^= 1
        wrong = run(dataclasses.replace(product, inputs=inputs), threads=1)
        with pytest.raises(AssertionError):
            assert_close(product, wrong)

    def test_too_little_scratch_is_refused_and_nothing_written(self, product: Product):
        assert_scratch_is_checked(COMPILED[product.operator], product)

    def test_float64_is_left_to_numpy(self, product: Product):
        assert_float64_is_refused(COMPILED[product.operator], product)


def test_scratch_is_small_and_never_grows_with_the_batch():
    for g in [
        Geometry(20, 128, 128, (32, 32), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
        Geometry(100, 512, 512, (7, 7), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
        Geometry(20, 64, 64, (112, 112), (7, 7), (2, 2), (3, 3, 3, 3), (1, 1)),
    ]:
        shared = {"strides": list(g.strides), "pads": list(g.pads), "dilations": [1, 1]}
        attributes: dict[str, Attribute] = {
            **shared, "group": 1, "x_shape": list(g.x_shape[1:]), "w_shape": list(g.w_shape[1:]),
            "kernel_shape": list(g.kernel), "input_shape": list(g.space), "output_padding": [0, 0],
            "dtype": 1,
        }  # fmt: skip
        needs = {}
        for n in (1, g.n, 4 * g.n):
            x, w = (n, math.prod(g.x_shape[1:]) // 8), (g.m, math.prod(g.w_shape[1:]) // 8)
            y = (n, *g.conv_shape[1:])
            needs[n] = [
                scratch_bytes("BinaryConv", [x, w], [y], attributes, 1),
                scratch_bytes("BinaryConvWeightGrad", [x, y], [g.w_shape], attributes, 1),
                scratch_bytes("BinaryConvInputGrad", [y, w], [(n, *g.x_shape[1:])], attributes, 1),
            ]
        assert needs[g.n] == needs[4 * g.n]
        assert all(few <= many < 1 << 20 for few, many in zip(needs[1], needs[g.n], strict=True))


def test_kernels_that_are_too_large_and_volumes_are_left_to_numpy():
    volume = {"strides": [1] * 3, "pads": [0] * 6, "dilations": [1] * 3, "group": 1}
    attributes: dict[str, Attribute] = {
        **volume, "x_shape": [1, 2, 2, 2], "w_shape": [1] * 4, "dtype": 1,
    }  # fmt: skip
    assert scratch_bytes("BinaryConv", [(1, 1), (1, 1)], [(1, 1, 2, 2, 2)], attributes, 1) is None


def test_the_twin_goes_through_several_tiles():
    n, k = 5, TILE_BYTES // 8
    (product, *_) = layer_products(n, k, n, seed=4)
    x, w = (
        2 * np.unpackbits(a, axis=1, bitorder="little").astype(np.int64) - 1 for a in product.inputs
    )
    np.testing.assert_array_equal(product.twin(), x @ w.T)


def with_integers(product: Product, dtype: int, seed: int, n_bits: int = 8) -> Product:
    """The gradient of a dy of integers: of all magnitudes, of small ones, or all the largest."""
    is_dx, rng = "InputGrad" in product.operator, np.random.default_rng(seed)
    inputs, place = [*product.inputs], 0 if is_dx else 1
    largest = 2 ** (n_bits - 1) - 1
    top = (largest, min(largest, 9), largest)[seed % 3]
    dy = rng.integers(-top, top + 1, inputs[place].shape, np.int8)
    if seed % 3 == 2:
        dy[...] = top
    unit, own = np.array(0.3, np.float32), {"dtype": dtype} if is_dx else {}
    if n_bits == 4:
        own["dy_shape"] = list(dy.shape[1:])
        dy = pack_codes(dy)
    return Product(
        f"{product.operator}Int{n_bits}",
        [*inputs[:place], dy, unit, *inputs[place + 1 :]],
        {**product.attributes, **own},
    )


def assert_integers_are_exact(product: Product, seed: int, n_bits: int = 8) -> None:
    """Sums below 2^24 are whole in float32: all there is to round is a product, and a half."""
    whole = with_integers(product, 1, seed, n_bits)
    want = whole.twin().astype(np.float32)  # of a product that is exact in float64
    for kernels, threads in (("avx512", 1), ("avx2", 2), ("portable", 5)):
        assert run(whole, kernels=kernels, threads=threads).tobytes() == want.tobytes()
    if "InputGrad" in product.operator:
        half = run(with_integers(product, 10, seed, n_bits), threads=2)
        assert half.tobytes() == want.astype(np.float16).tobytes()


@pytest.mark.parametrize("n_bits", [4, 8])
@pytest.mark.parametrize("note", CONVOLUTIONS)
def test_convolutions_of_integers(note: str, n_bits: int):
    for seed, product in enumerate(conv_products(CONVOLUTIONS[note], seed=12)[1:], len(note)):
        assert_integers_are_exact(product, seed, n_bits)


@pytest.mark.parametrize("n_bits", [4, 8])
@pytest.mark.parametrize("shape", LAYERS, ids=str)
def test_layers_of_integers(shape: tuple[int, int, int], n_bits: int):
    for seed, product in enumerate(layer_products(*shape, seed=13)[1:], sum(shape)):
        assert_integers_are_exact(product, seed, n_bits)


@settings(max_examples=20, deadline=None)
@given(geometries(), st.integers(0, 2**32 - 1), st.sampled_from([4, 8]))
def test_drawn_convolutions_of_integers(g: Geometry, seed: int, n_bits: int):
    for product in conv_products(g, seed)[1:]:
        assert_integers_are_exact(product, seed, n_bits)


def test_signs_of_integer_sums() -> None:
    for product in (conv_products(CONVOLUTIONS["seven"], 14)[1], layer_products(9, 40, 70, 14)[1]):
        dw = with_integers(product, 1, 0)
        want = np.packbits(run(dw, threads=2).reshape(len(dw.twin()), -1) >= 0, 1, "little")
        signs = dataclasses.replace(dw, operator=dw.operator.replace("Int8", "SignsInt8"))
        np.testing.assert_array_equal(run(signs, threads=2), want)
        assert 0 < np.unpackbits(want).mean() < 1


@pytest.mark.parametrize("note", ["many-samples", "many-larger", "strides", "grouped"])
def test_a_wider_dx_written_over_integers_has_the_same_bits(note: str):
    product = with_integers(conv_products(CONVOLUTIONS[note], seed=15)[2], 10, 0)
    want, (dy, unit, w) = run(product, threads=1), product.inputs
    for kernels, threads in (("avx512", 1), ("portable", 5)):
        memory = Guarded(np.empty(max(want.nbytes, dy.nbytes), np.uint8), 0)
        over = memory.array[: dy.nbytes].view(np.int8).reshape(dy.shape)
        dx = memory.array[: want.nbytes].view(want.dtype).reshape(want.shape)
        over[...] = dy
        scratch = Guarded(np.empty(product.scratch_bytes(threads, dy.nbytes), np.uint8), 0)
        with settings_of(kernels=kernels, threads=threads):
            kernel = COMPILED[product.operator]
            assert kernel([over, unit, w], [dx], product.attributes, scratch.array)
        memory.check()
        scratch.check()
        assert dx.tobytes() == want.tobytes()
