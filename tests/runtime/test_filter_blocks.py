"""Chains of a convolution, a pooling and a batch norm: the bits of the kernels one by one."""

from __future__ import annotations

import dataclasses
import inspect

import numpy as np
import pytest

from bnnopt.runtime.format import Attribute
from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.chains import CHAINS, GRADIENTS, OF_WINDOW
from bnnopt.runtime.kernels.compiled import filter_blocks
from bnnopt.runtime.kernels.compiled.convolution import ALL_FILTERS
from bnnopt.runtime.kernels.compiled.kernel import Sizes
from bnnopt.runtime.kernels.compiled.table import COMPILED, scratch_bytes
from bnnopt.runtime.kernels.reference.table import KERNELS
from bnnopt.runtime.library import MAX_THREADS, library
from tests.runtime.compiled_calls import Guarded, settings_of

pytestmark = pytest.mark.skipif(library() is None, reason="built without a C compiler")

DTYPES = {"BinaryConv": (5, 1), "RealConv": (10, 1)}
# Channels, filters, rows, columns, kernel, stride; of the pooling: kernel, stride.
SHAPES = {
    "one-block": (3, 8, 6, 8, 3, 1, 2, 2),
    "two-blocks": (5, 64, 8, 8, 3, 1, 2, 2),
    "a-block-and-a-bit": (4, 67, 5, 7, 3, 1, 3, 2),
    "odd-planes": (2, 71, 7, 9, 2, 2, 2, 1),
    "many": (9, 200, 6, 6, 3, 1, 2, 2),
}

SLOW = ("odd-planes", "many")
SAMPLES = {"two-blocks": 19}


@dataclasses.dataclass(frozen=True)
class Call:
    """What a chain reads, and its attributes."""

    operator: str
    inputs: list[Array]
    attributes: dict[str, Attribute]


def call_of(operator: str, name: str, dtype: int, seed: int = 1) -> Call:
    chain, random = CHAINS[operator], np.random.default_rng(seed)
    c, m, h, w, k, stride, pool, pool_stride = SHAPES[name]
    x = random.standard_normal((SAMPLES.get(name, 3), c, h, w))
    weights = random.standard_normal((m, c, k, k))
    operands = [np.asarray(a, np.float32) for a in (x, weights)]
    own: dict[str, Attribute] = {
        "strides": [stride] * 2, "pads": [1, 1, 1, 1], "dilations": [1, 1], "group": 1,
        "dtype": dtype, "zero": 1.0, "low": -1.0, "high": 0.5, "epsilon": 1e-5, "momentum": 0.9,
    }  # fmt: skip
    if chain.product == "BinaryConv":
        own |= {"x_shape": [c, h, w], "w_shape": [c, k, k]}
        operands = [KERNELS["SignPack"](a) for a in operands]
    rows, columns = ((n + 2 - k) // stride + 1 for n in (h, w))
    if chain.pools:
        pooled = [(n - pool) // pool_stride + 1 for n in (rows, columns)]
        places = np.add.outer(np.arange(pooled[0]) * columns, np.arange(pooled[1])) * pool_stride
        operands.append(places.astype(np.int32))
        window = ([pool] * 2, [pool_stride] * 2, [0] * 4, [1] * 2)
        own |= {f"pool_{key}": value for key, value in zip(OF_WINDOW, window, strict=True)}
        own |= {
            "plane": rows * columns, "width": columns, "kernel_width": pool, "row_dilation": 1,
            "column_dilation": 1, "bit_values": [1, 2, 4, 8][: 2 if pool == 2 else 4],
        }  # fmt: skip
        rows, columns = pooled
    channels = [random.standard_normal(m).astype(np.float32) for _ in range(4)]
    return Call(
        operator, [*operands, *channels[:3], channels[3] ** 2], {**own, "shape": [m, rows, columns]}
    )


def one_by_one(call: Call) -> list[Array]:
    """The three compiled kernels on whole maps."""
    chain, attributes = CHAINS[call.operator], call.attributes
    (x, w), rest = call.inputs[:2], call.inputs[2:]
    (y,) = compiled(chain.product, [x, w], attributes)
    kept = []
    if chain.pools:
        own = {name: attributes[f"pool_{name}"] for name in OF_WINDOW}
        y, *kept = compiled("PackedMaxPool", [y, rest.pop(0)], {**attributes, **own})
    return [*compiled(chain.norm, [y, *rest], attributes), *kept]


def compiled(name: str, inputs: list[Array], attributes: dict[str, Attribute]) -> list[Array]:
    kernel = KERNELS[name].function
    known = {k: v for k, v in attributes.items() if k in inspect.signature(kernel).parameters}
    made = kernel(*inputs, **known)
    outputs = [np.zeros_like(a) for a in (made if isinstance(made, tuple) else (made,))]
    shapes = [[a.shape for a in arrays] for arrays in (inputs, outputs)]
    scratch = Guarded(np.empty(scratch_bytes(name, Sizes(*shapes, attributes)), np.uint8), 0)
    assert COMPILED[name](inputs, outputs, attributes, scratch.array)
    return outputs


def blocked(call: Call, *, without: int | None = None) -> list[Array | None]:
    like = KERNELS[call.operator](*call.inputs, **call.attributes)
    buffers = [Guarded(np.zeros_like(array), 0) for array in like]
    outputs = [None if i == without else b.array for i, b in enumerate(buffers)]
    sizes = Sizes([a.shape for a in call.inputs], [], call.attributes, n_threads=MAX_THREADS)
    scratch = Guarded(np.empty(scratch_bytes(call.operator, sizes), np.uint8), 0)
    assert COMPILED[call.operator](call.inputs, outputs, call.attributes, scratch.array)
    for guarded in (*buffers, scratch):
        guarded.check()
    return outputs


@pytest.mark.parametrize("operator", CHAINS)
@pytest.mark.parametrize(
    "shape", [pytest.param(s, marks=pytest.mark.slow) if s in SLOW else s for s in SHAPES]
)
def test_the_same_bits_as_one_by_one(operator: str, shape: str) -> None:
    for dtype in DTYPES[CHAINS[operator].product]:
        call = call_of(operator, shape, dtype)
        for kernels, threads in (("avx512", 1), ("avx2", 4), ("portable", 2)):
            with settings_of(kernels=kernels, threads=threads):
                want, got = one_by_one(call), blocked(call)
            for a, b in zip(got, want, strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("index", [0, 1, 2, 7, 8])
def test_an_output_may_be_left_out(index: int) -> None:
    call = call_of("BinaryConvPoolL1BatchNormalizationSigns", "two-blocks", 5)
    whole, partly = blocked(call), blocked(call, without=index)
    for i, (a, b) in enumerate(zip(whole, partly, strict=True)):
        assert (b is None) == (i == index)
        if b is not None:
            np.testing.assert_array_equal(a, b)


def test_a_block_in_another_place_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    call = call_of("BinaryConvL1BatchNormalizationSigns", "two-blocks", 5)
    want = one_by_one(call)
    monkeypatch.setattr(
        filter_blocks.Layout, "bytes_of", lambda layout, filters, n_bits=1: slice(0, 256)
    )
    got = blocked(call)
    assert not all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))


def test_it_takes_half_of_the_map_or_less() -> None:
    call = call_of("BinaryConvPoolL1BatchNormalizationSigns", "many", 5)
    layout = filter_blocks.Layout.of(
        CHAINS[call.operator], *(a.shape for a in call.inputs[:2]), call.attributes
    )
    assert layout is not None
    blocks = list(layout.blocks())
    assert [(b.start, b.stop) for b in blocks] == [(0, 104), (104, 200)]
    groups = {**call.attributes, "group": 2}
    assert scratch_bytes(call.operator, Sizes([a.shape for a in call.inputs], [], groups)) == 0


@pytest.mark.parametrize("n", [1, 2, 8, 100])
@pytest.mark.parametrize(("shape", "least"), [("two-blocks", 0.15), ("odd-planes", 1.0)])
def test_what_is_pooled_lies_over_samples_that_were_read(n: int, shape: str, least: float) -> None:
    """In an eighth of its own memory, or in all of it where it is as large as the map."""
    call = call_of("BinaryConvPoolL1BatchNormalizationSigns", shape, 5)
    x, w = (a.shape for a in call.inputs[:2])
    layout = filter_blocks.Layout.of(CHAINS[call.operator], (n, *x[1:]), w, call.attributes)
    assert layout is not None
    filters = next(layout.blocks())
    memory = np.zeros(*layout.parts(filters)[0])
    y, pooled = layout.maps(filters, memory)
    turns = list(layout.turns(filters))
    assert [i for turn in turns for i in range(n)[turn]] == list(range(n))
    assert not any(np.shares_memory(pooled[turn], y[turn.start :]) for turn in turns)
    assert layout.lead(filters) <= max(least * pooled.nbytes, pooled[0].nbytes) + 64


# The way back ------------------------------------------------------------------------------------

BACK = {
    "two-blocks": (40, 24, 8, 8, 3),
    "one": (16, 9, 6, 4, 3),
    "odd-kernel": (72, 10, 4, 6, 1),
    "parts": (96, 8, 32, 16, 3),
}


def gradient_call(operator: str, name: str, half: bool, seed: int = 2) -> Call:
    """From m filters over c channels to a first layer of 2 x 2 on 3 channels."""
    c, m, h, w, k = BACK[name]
    random = np.random.default_rng(seed)
    dy = random.standard_normal((3, m, h, w)).astype(np.float16 if half else np.float32)
    weights = KERNELS["SignPack"](random.standard_normal((m, c, k, k)).astype(np.float32))
    bits = [KERNELS["SignPack"](random.standard_normal((3, c, h, w), np.float32)) for _ in "sm"]
    tables = [random.standard_normal(s, np.float32) for s in ((c,), (c,), (c, 4), (c, 4))]
    x = random.standard_normal((3, 3, h, w), np.float32)
    pad = k // 2
    own: dict[str, Attribute] = {
        "strides": [1, 1], "pads": [pad] * 4, "dilations": [1, 1], "group": 1,
        "w_shape": [c, k, k], "input_shape": [h, w], "output_padding": [0, 0], "shape": [c, h, w],
    }  # fmt: skip
    window = ([2, 2], [1, 1], [1, 0, 0, 1], [1, 1])
    own |= {f"conv_{key}": value for key, value in zip(OF_WINDOW, window, strict=True)}
    read: list[Array] = [dy]
    if operator.startswith("BinaryConvInputGradInt8"):
        read = [random.integers(-99, 99, dy.shape, np.int8), np.array(0.01, np.float32)]
        own["dtype"] = 10 if half else 1
    return Call(operator, [*read, weights, *bits, *tables, x], own)


def gradient_one_by_one(call: Call) -> list[Array]:
    product, attributes = GRADIENTS[call.operator], call.attributes
    n = len(call.inputs) - 7  # two kinds of bits, four tables, x
    *rest, x = call.inputs[n:]
    (dx,) = compiled(product, call.inputs[:n], attributes)
    dy, *sums = compiled("BatchNormalizationSignsGrad", [dx, *rest], attributes)
    own = {name: attributes[f"conv_{name}"] for name in OF_WINDOW}
    return [*compiled("ConvWeightGrad", [x, dy], {**attributes, **own}), *sums]


@pytest.mark.parametrize("operator", GRADIENTS)
@pytest.mark.parametrize("shape", [s for s in BACK if s != "parts"])
@pytest.mark.parametrize("half", [False, True])
def test_the_same_gradients_as_one_by_one(operator: str, shape: str, half: bool) -> None:
    call = gradient_call(operator, shape, half)
    for kernels, threads in (("avx512", 1), ("avx2", 4), ("portable", 2)):
        with settings_of(kernels=kernels, threads=threads):
            want, got = gradient_one_by_one(call), blocked(call)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a, b)


def test_parts_of_a_batch_go_by_all_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a block of them would be summed in more parts, and rounded in other places."""
    call = gradient_call("BinaryConvInputGradNormConvWeightGrad", "parts", half=True)
    want = gradient_one_by_one(call)[0]
    np.testing.assert_array_equal(blocked(call)[0], want)
    told = filter_blocks.GradientLayout.of_conv.fget  # type: ignore[attr-defined]
    untold = property(lambda layout: {**told(layout), ALL_FILTERS: 32})
    monkeypatch.setattr(filter_blocks.GradientLayout, "of_conv", untold)
    assert not np.array_equal(blocked(call)[0], want)


def test_another_mask_is_noticed_and_sums_may_be_left_out() -> None:
    call = gradient_call("BinaryConvInputGradNormConvWeightGrad", "two-blocks", half=True)
    want = gradient_one_by_one(call)
    assert blocked(call, without=1)[1] is None
    call.inputs[3] = call.inputs[3] ^ 1
    assert not np.array_equal(blocked(call)[0], want[0])
