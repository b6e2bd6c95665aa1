"""The compiled weight gradients that step their weights, against the product and then the step."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from bnnopt.runtime.format import Attribute
from bnnopt.runtime.kernels import Array, formulas
from bnnopt.runtime.kernels.compiled.kernel import Sizes
from bnnopt.runtime.kernels.compiled.linear import STEPS as DENSE_STEPS
from bnnopt.runtime.kernels.compiled.optimizers import FORMS
from bnnopt.runtime.kernels.compiled.table import COMPILED, scratch_bytes
from bnnopt.runtime.kernels.reference.packing import binarize_pack
from bnnopt.runtime.kernels.reference.updates import masked, scaled
from bnnopt.runtime.library import MAX_THREADS, library
from tests.runtime.compiled_calls import CALLS, Call, Guarded, Source, settings_of
from tests.runtime.test_compiled_convolution import CONVOLUTIONS as REAL_CONVOLUTIONS
from tests.runtime.test_compiled_convolution import Call as RealProduct
from tests.runtime.test_compiled_convolution import calls_of
from tests.runtime.test_compiled_convolution import run as run_real
from tests.runtime.test_compiled_products import (
    CONVOLUTIONS,
    LAYERS,
    Product,
    conv_products,
    layer_products,
    with_integers,
    with_packed_dy,
)
from tests.runtime.test_compiled_products import run as run_binary

pytestmark = pytest.mark.skipif(library() is None, reason="built without a C compiler")


@dataclasses.dataclass(frozen=True)
class Fused:
    """A product, the step that takes its gradient, and what happens in between."""

    product: Product | RealProduct
    step: Call
    between: dict[str, Attribute]

    @property
    def operator(self) -> str:
        return self.product.operator.replace("WeightGrad", "") + self.step.operator

    @property
    def attributes(self) -> dict[str, Attribute]:
        return {**self.product.attributes, **self.step.attributes, **self.between}


def fused(product: Product | RealProduct, step: str, seed: int) -> Fused:
    call = CALLS[step](Source(seed, product.twin().shape, special=True))
    between: dict[str, Attribute] = {}
    if not FORMS[step].of_signs:
        between["scale"] = 0.3
        if "Bop" not in step:
            is_float = call.attributes.get("w_unit", 0) == 0  # all integers are within a limit
            between["limit"] = (-1.0, 0.7)[seed % 2] if is_float else -1.0
    return Fused(product, call, between)


def separately(case: Fused, kernels: str) -> list[Array]:
    """The compiled product, its mask and factor, and the compiled step."""
    step, form = case.step, FORMS[case.step.operator]
    w, *rest = case.step.inputs[0], *case.step.inputs[2:]
    run = run_binary if isinstance(case.product, Product) else run_real
    raw = run(case.product, kernels=kernels, threads=2)
    if form.of_signs:
        gradient = binarize_pack(raw, zero=1.0)
    else:
        gradient = (scaled if "Bop" in form.rule else masked)(raw, w, **case.between)
    call = dataclasses.replace(step, inputs=[w, gradient, *rest])
    results = [np.empty_like(array) for array in call.twin()]
    done = COMPILED[step.operator](call.inputs, results, step.attributes, np.empty(0))
    assert done, "not covered"
    return results if form.of_signs else [*results, gradient]


def together(case: Fused, *, kernels: str, threads: int, with_dw: bool = True) -> list[Array]:
    """The one compiled kernel, its outputs in place, in the scratch that a plan would have."""
    w, _, *rest = case.step.inputs
    buffers = [Guarded(array, 0) for array in (w, *rest)]
    for buffer, array in zip(buffers, (w, *rest), strict=True):
        buffer.array[...] = array
    dw = Guarded(np.empty(case.product.twin().shape, np.float32), 0)
    inputs = [buffers[0].array, *case.product.inputs, *(buffer.array for buffer in buffers[1:])]
    outputs = [buffer.array for buffer in buffers[: len(case.step.in_place)]]
    shapes = [array.shape for array in inputs]
    n_bytes = scratch_bytes(case.operator, Sizes(shapes, [], case.attributes))
    scratch = Guarded(np.empty(n_bytes, np.uint8), 0)
    assert threads <= MAX_THREADS
    with settings_of(kernels=kernels, threads=threads):
        kernel = COMPILED[case.operator]
        given = [*outputs, dw.array if with_dw else None]
        assert kernel(inputs, given, case.attributes, scratch.array), "not covered"
    for guarded in (*buffers, dw, scratch):
        guarded.check()
    return [*outputs, *([dw.array] if with_dw else [])]


def assert_same(got: list[Array], want: list[Array]) -> None:
    for g, w in zip(got, want, strict=False):
        np.testing.assert_array_equal(g, w)


SHAPES = {
    **{f"binary-{note}": g for note, g in CONVOLUTIONS.items()},
    **{f"dense-{n}-{k}-{m}": (n, k, m) for n, k, m in LAYERS},
    **{n: g for n, g in REAL_CONVOLUTIONS.items() if "depthwise" not in n},
}
STEPS = [*FORMS]


def case_of(name: str, index: int) -> Fused:
    """Every shape with some steps, and so every step with some shapes."""
    shape, seed, half = SHAPES[name], index, index % 2 == 1
    if isinstance(shape, tuple):
        product = layer_products(*shape, seed)[1]
    elif name.startswith("binary-"):
        product = conv_products(shape, seed, dtype=10 if half else 1)[1]
    else:
        product = calls_of(shape, seed, half=half)[1]
    assert "WeightGrad" in product.operator
    return fused(product, STEPS[index % len(STEPS)], seed)


def small_updates() -> list[Call]:
    """Each fused operator once."""
    binary = [conv_products(CONVOLUTIONS["tile"], seed=3)[1], layer_products(5, 70, 9, seed=3)[1]]
    products: list[Product | RealProduct] = [*binary, *(with_packed_dy(p)[1] for p in binary)]
    products += [with_integers(p, 1, 3, n_bits) for p in binary for n_bits in (4, 8)]
    products.append(calls_of(REAL_CONVOLUTIONS["pointwise"], seed=3)[1])
    cases = [fused(product, step, seed=3) for product in products for step in STEPS]
    joined = [
        Call(case.operator, [w, *case.product.inputs, *rest], case.attributes)
        for case in cases
        for w, _, *rest in [case.step.inputs]
    ]
    return [
        *joined,
        *(dense_update(name, Source(3, (7, 33), special=False)) for name in DENSE_STEPS),
    ]


def dense_update(name: str, source: Source) -> Call:
    """`name` of a dense layer of real numbers, of weights of the shape of `source`."""
    step = CALLS[name](source)
    w, _, *rest = step.inputs
    a, b = (source.floats(5, n) for n in w.shape)
    limit = 0.7 if w.dtype.kind == "f" else -1.0  # all integers are within a limit
    between = {"scale": 0.3, "limit": limit}
    return Call(f"Gemm{name}", [w, a, b, *rest], {**step.attributes, **between})


@pytest.mark.parametrize("index", range(2 * len(SHAPES)))
def test_the_same_bits_as_the_product_and_then_the_step(index: int):
    case = case_of([*SHAPES][index // 2], index)
    for kernels, threads in (("avx512", 1), ("avx2", 4), ("portable", 2)):
        want = separately(case, kernels)
        assert_same(together(case, kernels=kernels, threads=threads), want)
    assert_same(together(case, kernels=kernels, threads=3, with_dw=False), want)


@pytest.mark.parametrize("step", ["AdamStep", "SignFirstMomentStep", "HalfBopStep"])
@pytest.mark.parametrize(
    "product",
    [conv_products(CONVOLUTIONS["strides"], seed=5)[1], layer_products(65, 65, 65, seed=5)[1]],
    ids=lambda product: product.operator,
)
def test_packed_powers_of_two_step_as_the_same_floats(product: Product, step: str):
    plain, packed = with_packed_dy(product)
    want = together(fused(plain, step, 4), kernels="avx512", threads=2)
    case = fused(packed, step, 4)
    for kernels, threads in (("avx512", 1), ("portable", 2)):
        assert_same(together(case, kernels=kernels, threads=threads), want)


@pytest.mark.parametrize("step", STEPS)
def test_another_gradient_is_noticed(step: str):
    case = fused(conv_products(CONVOLUTIONS["tile"], seed=3)[1], step, 3)
    x, dy = case.product.inputs
    other = dataclasses.replace(case.product, inputs=[x, -dy])
    changed = dataclasses.replace(case, product=other)
    with pytest.raises(AssertionError):
        assert_same(together(changed, kernels="avx2", threads=1), separately(case, "avx2"))


@pytest.mark.parametrize("step", ["AdamStep", "HalfBopStep"])
def test_too_little_scratch_is_refused_and_nothing_written(step: str):
    case = fused(layer_products(5, 70, 9, seed=3)[1], step, 3)
    w, *rest = case.step.inputs[0], *case.step.inputs[2:]
    before = w.tobytes()
    inputs = [w, *case.product.inputs, *rest]
    kernel = COMPILED[case.operator]
    outputs = [w, *rest[: len(case.step.in_place) - 1], None]
    assert not kernel(inputs, outputs, case.attributes, np.empty(0, np.uint8))
    assert w.tobytes() == before


@pytest.mark.parametrize("block", [1, 100, 1 << 19])
@pytest.mark.parametrize("name", DENSE_STEPS)
def test_a_dense_layer_of_real_numbers(
    name: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits as the gradient, its mask and the step, whatever the block."""
    monkeypatch.setattr(formulas, "BLOCK", block)
    call = dense_update(name, Source(block, (7, 33), special=False))
    w, a, b, *rest = call.inputs
    product = np.empty(w.shape, np.float32)
    assert COMPILED["Gemm"]([a, b], [product], {"transA": 1}, np.empty(0))
    between = {key: call.attributes[key] for key in ("scale", "limit")}
    gradient = masked(product, w, **between)
    numbers = {key: n for key, n in call.attributes.items() if key not in between}
    step = Call(name, [w, gradient, *rest], numbers)
    want = [np.empty_like(array) for array in step.twin()]
    assert COMPILED[name](step.inputs, want, step.attributes, np.empty(0))
    got = [*(np.empty_like(array) for array in want), np.empty_like(product)]
    n_bytes = scratch_bytes(call.operator, Sizes([w.shape], [], call.attributes))
    scratch = Guarded(np.empty(n_bytes, np.uint8), 0)
    assert COMPILED[call.operator](call.inputs, got, call.attributes, scratch.array)
    scratch.check()
    assert between["limit"] < 0 or (np.abs(w) > 0.7).any()
    assert_same(got, [*want, gradient])
