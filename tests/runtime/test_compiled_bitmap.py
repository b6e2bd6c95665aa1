"""The compiled bitmap codec against its numpy twin, bit by bit."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnnopt.runtime.executor import aligned_empty
from bnnopt.runtime.format import Attribute
from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled import bitmap
from bnnopt.runtime.kernels.compiled.bitmap import BLOCK, scratch_bytes
from bnnopt.runtime.kernels.compiled.table import COMPILED, Sizes
from bnnopt.runtime.kernels.compiled.table import scratch_bytes as workspace
from bnnopt.runtime.kernels.reference.table import KERNELS
from bnnopt.runtime.library import library
from tests.runtime.compiled_calls import SPECIAL, Guarded, settings_of

pytestmark = pytest.mark.skipif(library() is None, reason="built without a C compiler")

ISAS = st.sampled_from(["portable", "avx2"])
LARGE = [(3, BLOCK), (2, BLOCK + 8), (3, 2 * BLOCK + 5), (40, 5 * BLOCK - 8)]
shapes = st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple)


def sparse(shape: tuple[int, ...], density: float, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).astype(np.float32)
    x[rng.random(shape) < 0.1] = rng.choice(SPECIAL)
    return np.where(rng.random(shape) < density, x, np.float32(0))


def compiled(
    operator: str,
    inputs: list[Array],
    like: list[Array],
    attributes: Mapping[str, Attribute] = {},
) -> list[Array]:
    """The kernel's outputs; the inputs stay, and nothing around the outputs is touched."""
    read = [Guarded(array, 1) for array in inputs]
    for guarded, array in zip(read, inputs, strict=True):
        guarded.array[...] = array
    written = [Guarded(array, 1) for array in like]
    sizes = [a.shape for a in inputs], [a.shape for a in like]
    scratch = Guarded(np.empty(scratch_bytes(operator, *sizes), np.uint8), 0)
    outputs = [guarded.array for guarded in written]
    kernel = COMPILED[operator]
    assert kernel([g.array for g in read], outputs, attributes, scratch.array)
    for guarded in (*read, *written, scratch):
        guarded.check()
    for guarded, array in zip(read, inputs, strict=True):
        assert guarded.array.tobytes() == array.tobytes()
    return outputs


def check(x: Array, dy: Array, spare: int) -> None:
    """All three kernels on one tensor, the values `spare` longer than they have to be."""
    capacity = np.count_nonzero(x.view(np.uint32)) + 1 + spare
    bits, values = KERNELS["BitmapPack"](x, capacity=capacity)
    packed = compiled("BitmapPack", [x], [bits, values])
    assert [a.tobytes() for a in packed] == [bits.tobytes(), values.tobytes()]
    (unpacked,) = compiled("BitmapUnpack", [bits, values], [x])
    assert unpacked.tobytes() == x.tobytes()
    keep = [max(1, math.prod(x.shape[1:]) // 4)]
    pruned = KERNELS["PrunedBitmapPack"](x, capacity=capacity, keep=keep)
    found = compiled("PrunedBitmapPack", [x], list(pruned), {"keep": keep})
    assert [a.tobytes() for a in found] == [a.tobytes() for a in pruned]
    twin = KERNELS["BitmapReluGrad"](dy, bits, values, shape=list(x.shape[1:]))
    (dx,) = compiled("BitmapReluGrad", [dy, bits, values], [dy])
    assert dx.tobytes() == twin.tobytes()


@settings(max_examples=80, deadline=None)
@given(shapes, st.sampled_from([0, 0.02, 0.5, 0.98, 1]), st.integers(0, 99), ISAS)
def test_agrees_with_numpy(shape: tuple[int, ...], density: float, seed: int, kernels: str) -> None:
    dy = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    with settings_of(kernels=kernels, threads=2):
        check(sparse(shape, density, seed), dy, spare=seed % 3)


@pytest.mark.parametrize("shape", LARGE, ids=str)
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("kernels", ["portable", "avx2"])
def test_blocks_on_any_number_of_threads(
    shape: tuple[int, ...], threads: int, kernels: str
) -> None:
    dy = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    with settings_of(kernels=kernels, threads=threads):
        for density in (0.01, 0.6):
            check(sparse(shape, density, 1), dy, spare=0)


def test_a_tensor_that_is_too_dense_gets_an_array_of_its_own() -> None:
    x = sparse((4, 100), 0.5, 3)
    bits, values = KERNELS["BitmapPack"](x, capacity=1)
    planned = np.full(7, 5, np.float32)
    outputs = [np.empty_like(bits), planned]
    scratch = np.empty(scratch_bytes("BitmapPack", [x.shape], []), np.uint8)
    assert COMPILED["BitmapPack"]([x], outputs, {}, scratch)
    assert outputs[1] is not planned
    assert (planned == 5).all()
    assert [a.tobytes() for a in outputs] == [bits.tobytes(), values.tobytes()]


@pytest.mark.parametrize("operator", ["BitmapUnpack", "BitmapReluGrad", "BitmapConvWeightGrad"])
@pytest.mark.parametrize("lacking", [0, 1, 5])
def test_fewer_values_than_bits_are_left_to_numpy(operator: str, lacking: int) -> None:
    """Which refuses them: nothing is read behind the values, and nothing is written."""
    x = np.abs(sparse((2, 3, 8, 8), 1, 0)) + 1
    bits, values = KERNELS["BitmapPack"](x, capacity=x.size + 1)
    values = values[: values.size - lacking]
    dy, dw = np.ones((2, 2, 8, 8), np.float32), np.zeros((2, 3, 1, 1), np.float32)
    inputs, output, attributes = {
        "BitmapUnpack": ([bits, values], np.zeros_like(x), {}),
        "BitmapReluGrad": ([np.ones_like(x), bits, values], np.zeros_like(x), {}),
        "BitmapConvWeightGrad": (
            [bits, values, dy],
            dw,
            {"shape": [3, 8, 8], "kernel_shape": [1, 1], "group": 1},
        ),
    }[operator]
    sizes = Sizes([a.shape for a in inputs], [output.shape], attributes)
    scratch = aligned_empty(workspace(operator, sizes))
    assert COMPILED[operator](inputs, [output], attributes, scratch) is (lacking == 0)
    assert output.any() == (lacking == 0)


def test_the_gradient_may_overwrite_dy() -> None:
    x, dy = sparse((3, 50), 0.5, 1), sparse((3, 50), 1, 2)
    packed = KERNELS["BitmapPack"](x, capacity=math.prod(x.shape) + 1)
    expected = KERNELS["BitmapReluGrad"](dy, *packed, shape=[50])
    scratch = np.empty(scratch_bytes("BitmapReluGrad", [x.shape], []), np.uint8)
    assert COMPILED["BitmapReluGrad"]([dy, *packed], [dy], {}, scratch)
    assert dy.tobytes() == expected.tobytes()


def test_a_bitmap_that_is_full_is_refused() -> None:
    """What a program without an allocator calls: it says so, and does not write."""
    x = np.array([[0, 1, 2, 0, 3, 0, 0, 4]], np.float32)
    offsets = np.zeros(scratch_bytes("BitmapPack", [x.shape], []) // 8, np.int64)
    bits, room = np.zeros((1, 1), np.uint8), np.full(7, 9, np.float32)
    bitmap.MARK(x, bits, offsets, 1, 8)
    assert not bitmap.FILL(x, bits, room[:4], 4, offsets, 1, 8, 0)
    assert (room == 9).all()
    assert bitmap.FILL(x, bits, room, 7, offsets, 1, 8, 0)
    np.testing.assert_array_equal(room, [0, 1, 2, 3, 4, 0, 0])
