"""Calls of the compiled kernels on drawn shapes, and the harness that checks one against numpy."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from hypothesis import strategies as st

from bnnopt.runtime.executor import aligned_empty
from bnnopt.runtime.format import Attribute
from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled.calls import KernelCall
from bnnopt.runtime.kernels.compiled.kernel import Sizes
from bnnopt.runtime.kernels.compiled.optimizers import FORMS
from bnnopt.runtime.kernels.compiled.table import COMPILED
from bnnopt.runtime.kernels.reference.table import KERNELS
from bnnopt.runtime.kernels.windows import Window, make_window
from bnnopt.runtime.library import library
from tests.ops.oracles import clear_bias

WINDOW_NAMES = {"kernel_shape": "kernel"}  # of an attribute, as a parameter of make_window
GUARD = 64  # bytes before and after every buffer that must stay as they are
FILL = 0xA5
INSTRUCTIONS = (
    "portable",
    "avx2",
    "avx512",
    "avx512-popcount",
)  # what there are kernels for; the machine may lack some
SIZES = [0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 1000]
SPECIAL = np.array(
    [0.0, -0.0, np.nan, np.inf, -np.inf, 1e-42, -1e-42, 3e38, 1.0, -1.0, 0.5], np.float32
)
ANY_ZERO = {
    "Relu",
    "Clip",
    "Max",
    "MaxPool",
    "Min",
    "PackedMaxPool",
    "ReduceMax",
}  # numpy's maximum takes either zero of +0 and -0

# Largest difference, relative to the largest absolute value (or what `Call.scales` gives). The
# operators that are not named agree to the last bit.
BOUNDS = {
    "BatchNormalizationGrad": 1e-5,  # the twin sums in float32
    "BatchNormalizationSigns": 1e-5,
    "BatchNormalizationSignsGrad": 1e-5,
    "BatchNormalizationTraining": 1e-5,
    "ConvTapSums": 1e-6,
    "Erf": 1e-6,  # the functions of C are its own: see bnn_math.h and test_math.py
    "Exp": 1e-6,
    "Gelu": 1e-6,
    "GeluGrad": 1e-6,
    "GlobalAveragePool": 1e-6,
    "L1BatchNormalizationGrad": 1e-5,
    "L1BatchNormalizationPoolGrad": 1e-5,
    "L1BatchNormalizationSigns": 1e-5,
    "L1BatchNormalizationTraining": 1e-5,
    "LayerNormalization": 1e-6,  # the twins are float64
    "LayerNormalizationGrad": 1e-6,
    "Log": 1e-6,
    "LogSoftmax": 1e-6,
    "PReluGrad": 1e-6,  # sums of float64 in another order
    "ReduceMean": 1e-6,  # the twins sum in float32
    "ReduceSum": 1e-6,
    "Sigmoid": 1e-6,
    "Softmax": 1e-6,
    "SoftmaxGrad": 1e-6,
    "Softplus": 1e-6,
    "SoftmaxCrossEntropy": 1e-6,
    "SoftmaxCrossEntropyGrad": 1e-6,
    "Tanh": 1e-6,
    "TanhGeluGrad": 1e-6,
}


@dataclass(frozen=True)
class Call:
    """An operator and what to call it with.

    `in_place` has output index to input index. `scales` is what the differences of the outputs are
    relative to, where that is not their largest value.
    """

    operator: str
    inputs: list[Array | None]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    in_place: Mapping[int, int] = field(default_factory=dict)
    scales: tuple[float, ...] = ()

    def twin(self) -> tuple[Array, ...]:
        """What numpy makes of it; read-only, for it is computed once."""
        return self._results

    @functools.cached_property
    def _results(self) -> tuple[Array, ...]:
        copies = [None if a is None else a.copy() for a in self.inputs]
        with np.errstate(all="ignore"):
            made = KERNELS[self.operator](*copies, **self.attributes)
        found = made if isinstance(made, tuple) else (made,)
        results = tuple(np.array(result, order="C") for result in found)  # it may be a view
        for result in results:
            result.flags.writeable = False
        return results


class Scratched(Protocol):
    """A call of a kernel that needs scratch memory; `dtype` is its result's."""

    inputs: Sequence[Array]
    attributes: Mapping[str, Attribute]
    dtype: np.dtype[np.generic] | type[np.generic]

    def twin(self) -> Array: ...

    def scratch_bytes(self, threads: int) -> int: ...


class Guarded:
    """An array between guard bytes, `offset` elements off a 64-byte boundary."""

    def __init__(self, like: Array, offset: int) -> None:
        n_bytes = like.size * like.itemsize
        raw = np.full(n_bytes + 4 * GUARD + offset * like.itemsize, FILL, np.uint8)
        self.begin = -raw.ctypes.data % 64 + GUARD + offset * like.itemsize
        self.end = self.begin + n_bytes
        self.raw = raw
        self.array: Array = raw[self.begin : self.end].view(like.dtype).reshape(like.shape)

    def check(self) -> None:
        outside = np.concatenate([self.raw[: self.begin], self.raw[self.end :]])
        assert (outside == FILL).all(), "wrote outside its buffer"


def run(
    call: Call, *, in_place: bool = False, offset: int = 0, kernel: KernelCall | None = None
) -> list[Array]:
    """The compiled results; inputs that are not overwritten must not change."""
    kernel = kernel or COMPILED[call.operator]
    buffers = [None if a is None else Guarded(a, offset) for a in call.inputs]
    for buffer, array in zip(buffers, call.inputs, strict=True):
        if buffer is not None:
            buffer.array[...] = array
    taken = call.in_place if in_place else {}
    outputs = []
    for i, like in enumerate(call.twin()):
        shared = buffers[taken[i]] if i in taken else Guarded(like, offset)
        assert shared is not None
        outputs.append(shared)
    inputs = [None if b is None else b.array for b in buffers]
    results = [
        b.array.view(like.dtype).ravel()[: like.size].reshape(like.shape)  # of a larger input
        for b, like in zip(outputs, call.twin(), strict=True)
    ]
    assert kernel(inputs, results, call.attributes, scratch_of(call)), "not covered"
    for i, (buffer, array) in enumerate(zip(buffers, call.inputs, strict=True)):
        if buffer is None:
            continue
        buffer.check()
        if i not in taken.values():
            assert array is not None
            assert buffer.array.tobytes() == array.tobytes(), "an input was written to"
    for buffer in outputs:
        buffer.check()
    return results


def scratch_of(call: Call) -> Array:
    """The memory that a call needs beside its inputs and outputs."""
    shapes = [[() if a is None else a.shape for a in some] for some in (call.inputs, call.twin())]
    rule = COMPILED[call.operator].scratch
    return aligned_empty((rule and rule(Sizes(*shapes, call.attributes))) or 0)


def assert_close(call: Call, got: list[Array], want: tuple[Array, ...]) -> None:
    """The same bits (NaN is NaN), or within the operator's bound."""
    scales = call.scales or tuple(largest(w) for w in want)
    for g, w, scale in zip(got, want, scales, strict=True):
        bound = BOUNDS.get(call.operator, 0.0)
        assert (g.dtype, g.shape) == (w.dtype, w.shape)
        if bound and w.dtype == np.float16:
            bound = max(bound, 2**-10)  # on either side of a tie
        if bound and w.dtype.kind == "f":
            np.testing.assert_allclose(g, w, rtol=0, atol=bound * scale)
            continue
        np.testing.assert_array_equal(g, w)
        if w.dtype.kind == "f" and call.operator not in ANY_ZERO:
            numbers = ~np.isnan(w)
            np.testing.assert_array_equal(np.signbit(g[numbers]), np.signbit(w[numbers]))


def bits(array: Array) -> bytes:
    """The array's bytes; all NaN are one, as IEEE 754 leaves open which of two a sum hands on."""
    is_nan = np.isnan(array) if array.dtype.kind == "f" else False
    return np.where(is_nan, array.dtype.type(0), array).tobytes() + np.asarray(is_nan).tobytes()


def assert_scratch_is_checked(kernel: KernelCall, call: Scratched) -> None:
    """With a little less than it needs it is refused, and nothing is written."""
    result = Guarded(np.zeros(call.twin().shape, call.dtype), 0)
    scratch = Guarded(np.empty(call.scratch_bytes(2) - 64, np.uint8), 0)
    with settings_of(threads=2):
        assert not kernel(call.inputs, [result.array], call.attributes, scratch.array)
    scratch.check()
    assert (scratch.array == FILL).all()
    assert (result.array.view(np.uint8) == FILL).all()


def assert_float64_is_refused(kernel: KernelCall, call: Scratched) -> None:
    result, scratch = np.empty(call.twin().shape, np.float64), np.empty(1 << 22, np.uint8)
    assert not kernel(call.inputs, [result], call.attributes, scratch)


def largest(array: Array) -> float:
    finite = np.abs(array[np.isfinite(array)].astype(np.float64))
    return float(finite.max()) if finite.size else 0.0


@contextlib.contextmanager
def settings_of(
    *, portable: bool = False, kernels: str = "avx512-popcount", threads: int
) -> Iterator[None]:
    """Run on so many threads, with no instructions above these."""
    loaded = library()
    assert loaded is not None
    before = loaded.bnn_threads()
    loaded.bnn_limit_kernels(INSTRUCTIONS.index("portable" if portable else kernels))
    loaded.bnn_set_threads(threads)
    try:
        yield
    finally:
        loaded.bnn_limit_kernels(len(INSTRUCTIONS) - 1)
        loaded.bnn_set_threads(before)


class Source:
    """Values and shapes: small and drawn, or large enough for several threads."""

    def __init__(self, seed: int, shape: tuple[int, ...], *, special: bool) -> None:
        self.rng = np.random.default_rng(seed)
        self.shape = shape
        self.special = special

    def floats(self, *shape: int) -> Array:
        values = self.rng.standard_normal(shape).astype(np.float32)
        if self.special:
            chosen = self.rng.random(shape) < 0.3
            values = np.where(chosen, self.rng.choice(SPECIAL, shape), values)
        return np.asarray(values, np.float32)

    def finite(self, *shape: int) -> Array:
        return np.asarray(self.rng.standard_normal(shape), np.float32)

    def any_map(self, values: Array, *dtypes: type[np.generic]) -> Array:
        """The values in one of the types that a map may have, or in one of `dtypes`."""
        dtype = self.rng.choice(np.array(dtypes or (np.float32, np.float16, np.int16)))
        with np.errstate(all="ignore"):
            whole = np.nan_to_num(np.clip(100 * values, -30_000, 30_000))
            return np.asarray(whole if dtype is np.int16 else values, dtype)

    def real_map(self) -> Array:
        return self.any_map(self.floats(*self.shape), np.float32, np.float16)

    def bits(self, shape: tuple[int, ...]) -> Array:
        n_bytes = math.ceil(math.prod(shape[1:]) / 8)
        return self.rng.integers(0, 256, (shape[0], n_bytes), np.uint8)

    def number(self, *values: float) -> float:
        return float(np.float32(self.rng.choice(values)))

    def integer(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))


def scalar(value: float) -> Array:
    return np.array(value, np.float32)


def unary(operator: str, s: Source, **attributes: Attribute) -> Call:
    return Call(operator, [s.real_map()], attributes, {0: 0})


def binary(operator: str, s: Source, **attributes: Attribute) -> Call:
    return Call(operator, [s.real_map(), s.real_map()], attributes, {0: 0})


def gelu_grad(operator: str, s: Source) -> Call:
    call = binary(operator, s)
    dy = call.inputs[0]
    assert dy is not None
    return dataclasses.replace(call, scales=(largest(dy),))  # of a slope of 1.13 at most


def cast(s: Source) -> Call:
    x = s.floats(*s.shape)
    kind = s.integer(0, 4)
    if kind == 0:
        return Call("Cast", [x], {"to": 10})
    if kind == 1:
        return Call("Cast", [x], {"to": 1})
    if kind == 2:
        return Call("Cast", [x > 0], {"to": 1})
    if kind == 3:
        return Call("Cast", [s.rng.integers(-(1 << 40), 1 << 40, s.shape)], {"to": 1})
    with np.errstate(over="ignore"):
        return Call("Cast", [x.astype(np.float16)], {"to": 1})


def clip_call(s: Source) -> Call:
    low, high = [(-0.5, 0.5), (0.0, 6.0), (1.0, -1.0), (-0.3, np.inf)][s.integer(0, 3)]
    bounds = [scalar(low), scalar(high)]
    given: list[Array | None] = [[*bounds], [bounds[0]], [None, bounds[1]]][s.integer(0, 2)]
    return Call("Clip", [s.floats(*s.shape), *given], {}, {0: 0})


def arithmetic(operator: str, s: Source) -> Call:
    dtype = np.float16 if s.integer(0, 1) else np.float32
    full = [s.any_map(s.floats(*s.shape), dtype) for _ in range(2)]
    one = s.any_map(s.floats(*[(), (1,), (1, 1)[: len(s.shape)]][s.integer(0, 2)]), dtype)
    kind = s.integer(0, 3)
    if kind == 0:
        return Call(operator, [*full], {}, {0: s.integer(0, 1)})
    if kind == 1:
        return Call(operator, [full[0], one], {}, {0: 0})
    if kind == 2:
        return Call(operator, [one, full[0]], {}, {0: 1})
    return stretched(operator, s)


def prelu(s: Source) -> Call:
    dtype = np.float16 if s.integer(0, 1) else np.float32
    shapes = [s.shape, (1,)]
    kind = s.integer(0, 2)
    if kind == 2:
        return stretched("PRelu", s)
    inputs = [s.any_map(s.floats(*shape), dtype) for shape in (s.shape, shapes[kind])]
    return Call("PRelu", [*inputs], {}, {0: 0})


def prelu_grad(s: Source) -> Call:
    """Of one slope, one for each channel, row, column or element."""
    shape = images(s)
    _, c, h, w = shape
    kept = [(1,), (c, 1, 1), (h, w), (w,), shape][s.integer(0, 4)]
    padded = (*[1] * (4 - len(kept)), *kept)
    axes = [i for i in range(4) if shape[i] != padded[i] or i < 4 - len(kept)]
    inputs = [s.floats(*shape), s.floats(*shape), s.floats(*kept)]
    return Call("PReluGrad", [*inputs], {"axes": axes}, {0: 0})


def softmax_grad(s: Source) -> Call:
    shape = normalized_shape(s)
    inputs = [s.floats(*shape), s.floats(*shape)]
    return Call("SoftmaxGrad", [*inputs], {"axis": s.integer(0, len(shape) - 1)}, {0: 0})


def layer_normalization(operator: str, s: Source) -> Call:
    """Rows of one axis or more, near 0 and far from it."""
    shape = normalized_shape(s)
    axis = s.integer(1, len(shape) - 1)
    x = s.finite(*shape) + np.float32(s.number(0, 10))
    scale, bias = s.finite(*shape[axis:]), s.finite(*shape[axis:])
    options: dict[str, Attribute] = {"epsilon": s.number(1e-5, 0.1)}
    if operator == "LayerNormalization":
        return Call(operator, [x, scale, *[bias] * s.integer(0, 1)], {"axis": axis, **options})
    call = Call(operator, [s.finite(*shape), x, scale], options, {0: 0})
    *_, inv_std = KERNELS["LayerNormalization"](x, scale, axis=axis, **options)
    terms = 4 * largest(inv_std) * largest(scale)  # that may cancel
    sums = 4 * math.sqrt(max(1, math.prod(shape[:axis])))  # of as many
    return dataclasses.replace(call, scales=(terms, sums, sums))


def stretched(operator: str, s: Source) -> Call:
    """A tensor and a scale by channel, a plane for all, a row, or another part; or two parts."""
    shape = images(s)
    n, c, h, w = shape
    parts = [(c, 1, 1), (1, c, 1, 1), (h, w), (1, 1, h, w), (w,), (1, h, 1), shape]
    kept = [*parts, (n, 1, h, 1), (n, 1, 1, w)][s.integer(0, 8)]
    inputs = [s.floats(*shape), s.floats(*kept)]
    if operator != "PRelu" and s.integer(0, 4) == 0:
        return Call(operator, [inputs[1], s.floats(n, c, 1, w)])
    return Call(operator, [*inputs], {}, {0: 0})


def comparison(operator: str, s: Source) -> Call:
    """Of floats that are often equal."""
    call = stretched(operator, s)
    rounded = [None if a is None else np.round(a) for a in call.inputs]
    return Call(operator, rounded, {}, {})


def of_any_type(s: Source, shape: tuple[int, ...]) -> Array:
    dtypes = (np.float32, np.float16, np.int64, np.int8)
    with np.errstate(all="ignore"):
        return s.any_map(s.finite(*shape), *dtypes)


def expand(s: Source) -> Call:
    """A number for each channel, row or image; or one for all."""
    shape = images(s)
    n, c, h, w = shape
    kept = [(c, 1, 1), (n, c, 1, 1), (h, w), (), (n, 1, h, 1), (n, 1, 1, w)][s.integer(0, 5)]
    return Call("Expand", [of_any_type(s, kept), np.array(shape)])


def parts_of(s: Source) -> tuple[tuple[int, ...], int, list[int]]:
    """A shape, an axis of it, and lengths that it falls into."""
    shape = images(s)
    axis = s.integer(0, 3)
    cuts = sorted(s.integer(0, shape[axis]) for _ in range(s.integer(0, 3)))
    return shape, axis, list(np.diff([0, *cuts, shape[axis]]))


def split(s: Source) -> Call:
    shape, axis, lengths = parts_of(s)
    return Call("Split", [of_any_type(s, shape), np.array(lengths, np.int64)], {"axis": axis - 4})


def concat(s: Source) -> Call:
    parts = split(s).twin()
    shape, axis, lengths = parts_of(s)
    dtype = parts[0].dtype
    whole = s.finite(*shape).astype(dtype)
    inputs = np.split(whole, np.cumsum(lengths)[:-1], axis)
    return Call("Concat", [np.ascontiguousarray(part) for part in inputs], {"axis": axis})


def slice_(s: Source) -> Call:
    """Along two axes, also backwards and from beyond the ends."""
    shape = images(s)
    starts, ends = ([s.integer(-9, 9) for _ in range(2)] for _ in range(2))
    bounds = [np.array(values) for values in (starts, ends, [2, -3], [1, -1, 2, 3][:2])]
    return Call("Slice", [of_any_type(s, shape), *bounds[: s.integer(2, 4)]])


def pad(s: Source) -> Call:
    shape = images(s)
    pads = np.array([s.integer(0, 2) for _ in range(8)])
    return Call(
        "Pad", [s.floats(*shape), pads, scalar(s.number(0, -1.5, np.inf))][: s.integer(2, 3)]
    )


def gather(s: Source) -> Call:
    rows = s.integer(1, 7)
    indices = s.rng.integers(-rows, rows, s.shape)
    return Call("Gather", [s.floats(rows, 3, 2), indices])


def one_hot(s: Source) -> Call:
    """Of classes that are there, counted from either end, and of others."""
    depth = s.integer(1, 9)
    indices = s.rng.integers(-depth - 2, depth + 2, s.shape)
    inputs = [indices, np.array(depth), s.finite(2)]
    return Call("OneHot", [*inputs], {"axis": s.integer(-1, len(s.shape))})


def gather_grad(s: Source) -> Call:
    rows = s.integer(1, 7)
    indices = s.rng.integers(-rows, rows, s.shape[:2])
    attributes = {"axis": 0, "length": rows}
    return Call("GatherGrad", [s.floats(*indices.shape, 5), indices], attributes)


def unpack(operator: str, s: Source) -> Call:
    return Call(operator, [s.bits(s.shape)], {"shape": list(s.shape[1:])})


def pow2_pack(s: Source) -> Call:
    """Values of many octaves; one in eight tensors has what is not finite, if special."""
    with np.errstate(over="ignore"):
        x = np.ldexp(s.floats(*s.shape), s.rng.integers(-12, 13, s.shape))
    if s.integer(0, 7):
        x = np.nan_to_num(x, nan=0.25, posinf=-3e38, neginf=1e-44)
    return Call("Pow2Pack", [s.any_map(x)])


def pow2_unpack(s: Source) -> Call:
    length = math.prod(s.shape[1:])
    n_bytes = math.ceil(length / 2) + math.ceil(length / 8)
    packed = s.rng.integers(0, 256, (s.shape[0], n_bytes), np.uint8)
    unit = scalar(s.number(2.0**-126, 2.0**112, 0.125, 0, np.nan))
    return Call("Pow2Unpack", [packed, unit], {"shape": list(s.shape[1:])})


def normalize_bytes(s: Source) -> Call:
    """With a factor and a shift for each channel."""
    x = s.rng.integers(0, 256, s.shape, np.uint8)
    of_channels = (1, *s.shape[1:2], *[1] * (len(s.shape) - 2))
    return Call("NormalizeBytes", [x, s.floats(*of_channels), s.floats(*of_channels)])


def int8_pack(s: Source) -> Call:
    """As the powers of two; written over x."""
    (x,) = pow2_pack(s).inputs
    return Call("Int8Pack", [x, np.array(s.integer(0, 99))], {"seed": s.integer(0, 9)}, {0: 0})


def int4_pack(s: Source) -> Call:
    """As the powers of two."""
    (x,) = pow2_pack(s).inputs
    number = np.array(s.integer(0, 99))
    return Call("Int4Pack", [x, number], {"seed": s.integer(0, 9), "one_in": s.integer(2, 99)})


def int4_unpack(s: Source) -> Call:
    n_bytes = math.ceil(math.prod(s.shape[1:]) / 2)
    packed = s.rng.integers(0, 256, (s.shape[0], n_bytes), np.uint8)
    return Call("Int4Unpack", [packed], {"shape": list(s.shape[1:])})


def draw_uniform(s: Source) -> Call:
    options: dict[str, Attribute] = {"low": s.number(0, -1.5), "scale": s.number(1, 0.7)}
    options["seed"] = s.integer(0, 2**32 - 1)
    return Call("DrawUniform", [s.floats(*s.shape), np.array(s.integer(1, 999))], options)


def dropout(s: Source) -> Call:
    options: dict[str, Attribute] = {
        "threshold": s.integer(0, 2**32 - 1),
        "scale": s.number(2, 1.3),
    }
    options["seed"] = s.integer(0, 2**32 - 1)
    return Call("Dropout", [s.floats(*s.shape), np.array(s.integer(1, 999))], options, {0: 0})


def masked_grad(s: Source) -> Call:
    dy = s.any_map(s.floats(*s.shape), np.float32, np.float16)
    inputs: list[Array | None] = [dy, s.bits(s.shape)]
    return Call("MaskedGrad", inputs, {"shape": list(s.shape[1:])}, {0: 0})


def optimizer(operator: str, s: Source) -> Call:
    shape = s.shape
    w, dw, m, v = (s.floats(*shape) for _ in range(4))
    lr, step = scalar(s.number(0.1, 0.003)), np.array(s.integer(1, 10_000))
    attributes: dict[str, Attribute] = {}
    gradient, rule = dw, operator.removeprefix("Sign").removeprefix("Half").removeprefix("Byte")
    if operator.startswith("Sign"):
        gradient = s.bits(shape)
        attributes = {"shape": list(shape[1:]), "scale": s.number(0.1, 1), "limit": s.number(1, 2)}
    parameters = inspect.signature(KERNELS[rule].function).parameters.values()
    numbers = {"decay": (0.0, 0.1), "epsilon": (1e-8,)}
    names = [p.name for p in parameters if p.kind == p.KEYWORD_ONLY]
    attributes |= {n: s.number(*numbers.get(n, (0.9, 0.5, 0.999))) for n in names}
    given = {"m": m, "v": np.abs(v)}
    states = [given[p.name] for p in parameters if p.name in given]
    counts = "step" in {p.name for p in parameters}
    if "Half" in operator or "Byte" in operator:
        with np.errstate(over="ignore"):
            w, *states = (np.asarray(a, np.float16) for a in (w, *states))
        attributes |= {"stochastic": s.integer(0, 1), "seed": s.integer(0, 2**32 - 1)}
        counts = True
    if "Byte" in operator:
        states = [peaks(s), in_bytes(s), *states[1:]]
        attributes["headroom"] = s.number(2, 1.125)
    if counts and w.dtype == np.float16 and s.integer(0, 1):
        w = s.rng.integers(-128, 128, w.shape, np.int8)
        attributes |= {"w_unit": s.number(2.0**-9, 1 / 127)}
        attributes |= {"limit": 128.0} if "limit" in attributes else {}
    inputs: list[Array | None] = [w, gradient, *states, lr, *[step] * counts]
    taken = {0: 0} | {i: i + 1 for i in range(1, len(states) + 1)}
    return Call(operator, inputs, attributes, taken)


def in_bytes(s: Source) -> Array:
    """A momentum in int8."""
    return s.rng.integers(-127, 128, s.shape, np.int8)


def peaks(s: Source) -> Array:
    """Of its rows, sometimes one without any; of rows without elements none has."""
    found = s.rng.uniform(0.5, 2, (s.shape[0], 4)).astype(np.float32)
    found[: s.integer(0, 1)] = 0
    found *= math.prod(s.shape) > 0
    return found


def bop(operator: str, s: Source) -> Call:
    w, dw, m = s.bits(s.shape), s.floats(*s.shape), s.floats(*s.shape)
    w &= KERNELS["PackBits"](np.ones(s.shape, np.bool_))  # spare bits are 0
    options: dict[str, Attribute] = {"gamma": s.number(0.3, 1e-4), "tau": s.number(0.5, 1e-8)}
    options["shape"] = list(s.shape[1:])
    if operator == "BopStep":
        return Call(operator, [w, dw, m], options, {0: 0, 1: 2})
    options["seed"] = s.integer(0, 2**32 - 1)
    if operator == "ByteBopStep":
        options["headroom"] = 1.125
        inputs = [w, dw, peaks(s), in_bytes(s), np.array(s.integer(1, 999))]
        return Call(operator, inputs, options, {0: 0, 1: 2, 2: 3})
    with np.errstate(over="ignore"):
        half = np.asarray(1024 * m, np.float16)
    return Call(operator, [w, dw, half, np.array(s.integer(1, 999))], options, {0: 0, 1: 2})


def images(s: Source) -> tuple[int, int, int, int]:
    """(N, C, H, W): the first axis of the shape is N C, the others are cut to small planes."""
    if math.prod(s.shape) > 10_000:
        return 2, 9, 128, 130
    return s.integer(1, 3), s.integer(1, 3), s.integer(1, 9), s.integer(1, 9) * s.integer(1, 16)


def window_attributes(s: Source, space: tuple[int, int]) -> dict[str, Attribute]:
    kernel = [s.integer(1, min(4, n)) for n in space]
    pads = [s.integer(0, k - 1) for k in kernel * 2]
    return {"kernel_shape": kernel, "strides": [s.integer(1, 3), s.integer(1, 3)], "pads": pads}


def conv_tap_sums(s: Source) -> Call:
    shape = images(s)
    attributes = window_attributes(s, shape[2:])
    attributes["dilations"] = [1, 1]
    window = make_window(shape[2:], **{WINDOW_NAMES.get(k, k): v for k, v in attributes.items()})  # type: ignore[arg-type]
    dy = s.any_map(s.finite(*shape[:2], *window.result), np.float32, np.float16)
    attributes["input_shape"] = list(shape[2:])
    scale = largest(dy) * math.prod(dy.shape) / shape[1]
    return Call("ConvTapSums", [dy], attributes, {}, (scale,))


def pooling(operator: str, s: Source) -> Call:
    shape = images(s)
    attributes = window_attributes(s, shape[2:])
    if min(shape[2:]) > 1 and s.integer(0, 1):
        attributes = {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 0, 0]}
    attributes["ceil_mode"] = s.integer(0, 1)
    if operator == "AveragePool":
        attributes["count_include_pad"] = s.integer(0, 1)
    if s.integer(0, 3) == 0:
        attributes["auto_pad"] = "SAME_LOWER"
        del attributes["pads"]
    elif min(shape[2:]) > 7:
        attributes["dilations"] = [s.integer(1, 2), s.integer(1, 2)]
    types = () if operator == "MaxPool" else (np.float32, np.float16)
    return Call(operator, [s.any_map(s.floats(*shape), *types)], attributes)


def average_pool_grad(s: Source) -> Call:
    shape = images(s)
    attributes = window_attributes(s, shape[2:])
    window = make_window(shape[2:], **{WINDOW_NAMES.get(k, k): v for k, v in attributes.items()})  # type: ignore[arg-type]
    dy = s.any_map(s.floats(*shape[:2], *window.result), np.float32, np.float16)
    counts = 1 + np.abs(s.finite(1, 1, *window.result))
    own = {"input_shape": list(shape[2:]), "output_padding": [0, 0], "dilations": [1, 1]}
    return Call("AveragePoolGrad", [dy, counts], {**own, **attributes})


def pooled(s: Source) -> tuple[Array, Window, tuple[int, ...]]:
    """Indices of a max pooling with a place for every window, its geometry and its input shape."""
    shape = images(s)
    attributes = window_attributes(s, shape[2:])
    _, indices = KERNELS["MaxPool"](s.finite(*shape), **attributes)
    kernel_shape = attributes.pop("kernel_shape")
    return indices, make_window(shape[2:], kernel_shape, **attributes), shape  # type: ignore[arg-type]


def max_pool_grad(s: Source) -> Call:
    indices, _, shape = pooled(s)
    dy = s.any_map(s.floats(*indices.shape), np.float32, np.float16)
    return Call("MaxPoolGrad", [dy, indices], {"input_shape": list(shape[2:])})


def packed_pooling(operator: str, s: Source) -> Call:
    """A pooling that keeps places, or its gradient, at times of windows of 2 x 2 side by side."""
    shape = images(s)
    attributes = window_attributes(s, shape[2:])
    if min(shape[2:]) > 1 and s.integer(0, 1):
        attributes = {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 0, 0]}
    attributes["dilations"] = [1, 1]
    window = make_window(shape[2:], **{WINDOW_NAMES.get(k, k): v for k, v in attributes.items()})  # type: ignore[arg-type]
    starts = [
        np.arange(n) * stride - begin
        for n, stride, begin in zip(window.result, window.strides, window.begin, strict=True)
    ]
    origin = np.add.outer(starts[0] * shape[3], starts[1]).astype(np.int32)
    n_bits = max(1, math.ceil(math.log2(math.prod(window.kernel))))
    places: dict[str, Attribute] = {
        "plane": shape[2] * shape[3],
        "width": shape[3],
        "kernel_width": window.kernel[1],
        "row_dilation": 1,
        "column_dilation": 1,
        "bit_values": [1 << i for i in range(n_bits)],
    }
    pool = Call("PackedMaxPool", [s.any_map(s.floats(*shape)), origin], {**attributes, **places})
    if operator == pool.operator:
        return pool
    y, packed = pool.twin()
    places |= {"input_shape": list(shape[2:]), "bit_shape": [*y.shape[1:], n_bits]}
    dy = s.any_map(s.floats(*y.shape), np.float32, np.float16)
    apart = all(stride >= size for stride, size in zip(window.strides, window.kernel, strict=True))
    if apart and s.integer(0, 1):
        dy = s.rng.integers(-127, 128, y.shape, np.int8)
    return Call("PackedMaxPoolGrad", [dy, packed, origin], places)


def pool_batch_normalization_grad(s: Source) -> Call:
    pooled = packed_pooling("PackedMaxPoolGrad", s)
    like, packed, origin = pooled.inputs
    assert like is not None
    n, c, h, w = len(like), like.shape[1], *pooled.attributes["input_shape"]  # type: ignore[misc]
    dy, y = s.any_map(s.finite(*like.shape), np.float32, np.float16), s.finite(*like.shape)
    scale, bias, inv_std = s.finite(c), s.finite(c), 1 + np.abs(s.finite(c))
    signs = s.bits((n, c * h * w))
    own: dict[str, Attribute] = {"relu": s.integer(0, 1), "epsilon": s.number(1e-5, 0.1)}
    attributes = {**pooled.attributes, **own, "shape": [c, h, w]}
    inputs = [dy, s.any_map(y, np.float32, np.float16), packed, origin, signs]
    size = largest(dy) * origin.size * n  # type: ignore[union-attr]
    scales = (9 * largest(dy) * largest(scale) * largest(inv_std) + 1e-3, 9 * size * 1e3, size)
    return Call(
        "L1BatchNormalizationPoolGrad", [*inputs, scale, bias, inv_std], attributes, {}, scales
    )


def threshold_pack(s: Source) -> Call:
    shape = normalized_shape(s)
    return Call("ThresholdPack", [s.any_map(s.floats(*shape)), s.finite(shape[1])])


def normalized_shape(s: Source) -> tuple[int, ...]:
    if math.prod(s.shape) > 10_000:
        return [(300, 515), (4, 70, 33, 17), (1000, 2, 7)][s.integer(0, 2)]
    n, c = s.integer(1, 40), s.integer(1, 5)
    return [(n, 30 * c + s.integer(0, 9)), (n, c, s.integer(1, 40)), (n, c, 3, 5)][s.integer(0, 2)]


def batch_normalization(operator: str, s: Source) -> Call:
    shape = normalized_shape(s)
    c = shape[1]
    x, dy = s.finite(*shape), s.finite(*shape)
    scale, bias, mean, var = s.finite(c), s.finite(c), s.finite(c), s.finite(c) ** 2
    attributes: dict[str, Attribute] = {
        "epsilon": s.number(1e-5, 0.1),
        "momentum": s.number(0.9, 0.25),
    }
    x, dy = s.any_map(x), s.any_map(dy, np.float32, np.float16)
    attributes["dtype"], in_place = normalized_type(s, x)
    training = Call(
        operator.replace("Grad", "Training"), [x, scale, bias, mean, var], attributes, in_place
    )
    *_, batch_mean, inv_std = training.twin()
    gain = float(np.max(np.abs(scale) * inv_std))
    size = largest(x) + 1
    if operator.endswith("Training"):  # (x - mean) cancels in small batches
        scales = (gain * size + largest(bias), size, size**2, size, float(inv_std.max()))
        return Call(operator, training.inputs, attributes, in_place, scales)
    total = largest(dy) * math.prod(shape) / c
    scales = (gain * largest(dy) * 4, total * float(inv_std.max()) * size, total)
    in_place = {0: 1 if x.itemsize == dy.itemsize and s.integer(0, 1) else 0}
    return Call(operator, [dy, x, scale, batch_mean, inv_std], {}, in_place, scales)


def batch_normalization_running(s: Source) -> Call:
    shape = normalized_shape(s)
    inputs = [s.floats(*shape), *(s.finite(shape[1]) for _ in range(3)), s.finite(shape[1]) ** 2]
    epsilon: dict[str, Attribute] = {"epsilon": s.number(1e-5, 0.1)} if s.integer(0, 3) else {}
    return Call("BatchNormalization", [*inputs], epsilon, {0: 0})


def batch_normalization_apply(s: Source) -> Call:
    shape = normalized_shape(s)
    channels = [s.finite(shape[1]) for _ in range(4)]
    x = s.any_map(s.finite(*shape))
    dtype, in_place = normalized_type(s, x)
    return Call("BatchNormalizationApply", [x, *channels], {"dtype": dtype}, in_place)


def normalized_type(s: Source, x: Array) -> tuple[int, dict[int, int]]:
    """What a batch norm of x writes, and whether it may do so over x."""
    dtype, n_bytes = [(1, 4), (10, 2)][s.integer(0, 1)]
    return dtype, {0: 0} if x.dtype.itemsize == n_bytes else {}


def batch_normalization_signs(operator: str, s: Source) -> Call:
    shape = normalized_shape(s)
    c = shape[1]
    x = s.any_map(s.rng.integers(-3, 4, shape).astype(np.float32) / 2)
    bounds = {"zero": s.number(1, -1), "low": s.number(-1, 0), "high": s.number(1, 0.5)}
    scale, mean, var = s.finite(c), s.finite(c), s.finite(c) ** 2
    l1 = operator.startswith("L1")
    bias = clear_bias(s.rng, x, scale, (0, bounds["low"], bounds["high"]), l1=l1)
    rates = {"epsilon": s.number(1e-5), "momentum": s.number(0.9)}
    inputs: list[Array | None] = [x, scale, bias, mean, var]
    call = Call(operator, inputs, {**bounds, **rates, "shape": list(shape[1:])})
    size, results = largest(x) + 1, call.twin()
    largest_unit = size * largest(results[5])  # levels are differences of sums
    scales = (0, 0, size, size**2, size, largest(results[5]), largest_unit, largest_unit)
    return dataclasses.replace(call, scales=scales)


def batch_normalization_signs_grad(s: Source) -> Call:
    shape = normalized_shape(s)
    c = shape[1]
    dy = s.any_map(s.finite(*shape), np.float32, np.float16)
    scale, inv_std, levels, slopes = (s.finite(*size) for size in ((c,), (c,), (c, 4), (c, 4)))
    inputs: list[Array | None] = [dy, s.bits(shape), s.bits(shape), scale, inv_std, levels, slopes]
    total = largest(dy) * math.prod(shape) / c
    gain = float(np.max(np.abs(scale * inv_std))) * (1 + largest(levels) * largest(slopes))
    scales = (gain * largest(dy), total * (1 + largest(levels)), total)
    attributes: dict[str, Attribute] = {"shape": list(shape[1:])}
    return Call("BatchNormalizationSignsGrad", inputs, attributes, {0: 0}, scales)


def transpose(s: Source) -> Call:
    if math.prod(s.shape) > 10_000:
        shape = [(517, 333), (3, 40, 33, 65), (2, 3, 5, 70, 130)][s.integer(0, 2)]
    else:
        shape = tuple(s.integer(1, 20) for _ in range(s.integer(1, 4)))
    perm = [int(axis) for axis in s.rng.permutation(len(shape))]
    if len(shape) == 5:
        perm = [0, 3, 4, 1, 2]
    return Call("Transpose", [s.floats(*shape)], {"perm": perm} if s.integer(0, 3) else {})


def global_average(s: Source) -> Call:
    x = s.finite(*images(s))
    return Call("GlobalAveragePool", [x], scales=(largest(x),))


def reduction(operator: str, s: Source) -> Call:
    shape = normalized_shape(s)
    space = range(2, len(shape))
    chosen = [[0], [1], [-1], [0, 1], [0, *space], [1, *space]][s.integer(0, 5)]
    axes: list[Array | None] = [np.array(chosen)] if s.integer(0, 5) else []
    x = s.finite(*shape)
    n_summed = math.prod(shape[axis] for axis in chosen) if axes else x.size
    scale = largest(x) * (1 if operator == "ReduceMean" else n_summed)
    return Call(operator, [x, *axes], {"keepdims": s.integer(0, 1)}, scales=(scale,))


def softmax(operator: str, s: Source) -> Call:
    shape = normalized_shape(s)
    x = s.finite(*shape) * np.float32(s.number(1, 30))
    return Call(operator, [x], {"axis": s.integer(-1, len(shape) - 1)}, {0: 0})


def where(s: Source) -> Call:
    """Of two tensors, or of numbers in their place."""
    full = [s.floats(*s.shape) for _ in range(2)]
    one = [s.floats(*shape) for shape in ((), (1,))]
    a, b = [full, [full[0], one[0]], [one[1], full[1]], one][s.integer(0, 3)]
    in_place = {0: 1} if a.shape == s.shape else {}
    return Call("Where", [s.rng.random(s.shape) < 0.5, a, b], {}, in_place)


def softmax_cross_entropy(s: Source) -> Call:
    shape = normalized_shape(s)
    logits = s.finite(*shape) * np.float32(s.number(1, 30))
    labels = s.rng.integers(0, shape[1], (shape[0], *shape[2:]))
    return Call("SoftmaxCrossEntropy", [logits, labels], {}, {1: 0})


def softmax_cross_entropy_grad(s: Source) -> Call:
    forward = softmax_cross_entropy(s)
    inputs = [scalar(s.number(1, 0.3)), forward.twin()[1], forward.inputs[1]]
    return Call("SoftmaxCrossEntropyGrad", inputs, {}, {0: 1})


def binarize_attributes(s: Source) -> dict[str, Attribute]:
    return {"zero": s.number(1, -1), "ste": "clip", "clip": 1.0}


CALLS: dict[str, Callable[[Source], Call]] = {
    "Abs": lambda s: unary("Abs", s),
    "Add": lambda s: arithmetic("Add", s),
    "ApproxSignGrad": lambda s: binary("ApproxSignGrad", s),
    "AveragePool": lambda s: pooling("AveragePool", s),
    "AveragePoolGrad": average_pool_grad,
    "BatchNormalization": batch_normalization_running,
    "BatchNormalizationApply": batch_normalization_apply,
    "BatchNormalizationGrad": lambda s: batch_normalization("BatchNormalizationGrad", s),
    "BatchNormalizationSigns": lambda s: batch_normalization_signs("BatchNormalizationSigns", s),
    "BatchNormalizationSignsGrad": batch_normalization_signs_grad,
    "BatchNormalizationTraining": lambda s: batch_normalization("BatchNormalizationTraining", s),
    "Binarize": lambda s: unary("Binarize", s, **binarize_attributes(s)),
    "BinarizePack": lambda s: Call(
        "BinarizePack", [s.any_map(s.floats(*s.shape))], {"zero": s.number(1, -1)}
    ),
    "Cast": cast,
    "Clip": clip_call,
    "ClipGrad": lambda s: binary("ClipGrad", s, low=s.number(-1, 0), high=s.number(1, 0.1)),
    "Concat": concat,
    "ConvTapSums": conv_tap_sums,
    "Div": lambda s: arithmetic("Div", s),
    "Dropout": dropout,
    "DrawUniform": draw_uniform,
    "Equal": lambda s: comparison("Equal", s),
    "Expand": expand,
    "Gather": gather,
    "GatherGrad": gather_grad,
    "Greater": lambda s: comparison("Greater", s),
    "GreaterOrEqual": lambda s: comparison("GreaterOrEqual", s),
    "Gelu": lambda s: unary("Gelu", s, approximate=["none", "tanh"][s.integer(0, 1)]),
    "GeluGrad": lambda s: gelu_grad("GeluGrad", s),
    "Erf": lambda s: unary("Erf", s),
    "Exp": lambda s: unary("Exp", s),
    "HardSwish": lambda s: unary("HardSwish", s),
    "HardSwishGrad": lambda s: binary("HardSwishGrad", s),
    "PRelu": prelu,
    "PReluGrad": prelu_grad,
    "GlobalAveragePool": global_average,
    "Identity": lambda s: Call("Identity", [of_any_type(s, s.shape)], {}, {0: 0}),
    "Int4Pack": int4_pack,
    "Int4Unpack": int4_unpack,
    "Int8Pack": int8_pack,
    "L1BatchNormalizationGrad": lambda s: batch_normalization("L1BatchNormalizationGrad", s),
    "L1BatchNormalizationSigns": lambda s: batch_normalization_signs(
        "L1BatchNormalizationSigns", s
    ),
    "L1BatchNormalizationTraining": lambda s: batch_normalization(
        "L1BatchNormalizationTraining", s
    ),
    "LayerNormalization": lambda s: layer_normalization("LayerNormalization", s),
    "LayerNormalizationGrad": lambda s: layer_normalization("LayerNormalizationGrad", s),
    "LeakyRelu": lambda s: unary("LeakyRelu", s, alpha=0.25),
    "Less": lambda s: comparison("Less", s),
    "LessOrEqual": lambda s: comparison("LessOrEqual", s),
    "Log": lambda s: unary("Log", s),
    "LogSoftmax": lambda s: softmax("LogSoftmax", s),
    "MaskedGrad": masked_grad,
    "L1BatchNormalizationPoolGrad": pool_batch_normalization_grad,
    "Max": lambda s: stretched("Max", s),
    "MaxPool": lambda s: pooling("MaxPool", s),
    "MaxPoolGrad": max_pool_grad,
    "Min": lambda s: stretched("Min", s),
    "Mul": lambda s: arithmetic("Mul", s),
    "Neg": lambda s: unary("Neg", s),
    "NormalizeBytes": normalize_bytes,
    "PackBits": lambda s: Call("PackBits", [s.rng.random(s.shape) < 0.5]),
    "PackedMaxPool": lambda s: packed_pooling("PackedMaxPool", s),
    "PackedMaxPoolGrad": lambda s: packed_pooling("PackedMaxPoolGrad", s),
    "OneHot": one_hot,
    "Pad": pad,
    "Pow2Pack": pow2_pack,
    "Pow2Unpack": pow2_unpack,
    "RangePack": lambda s: Call(
        "RangePack",
        [s.any_map(s.floats(*s.shape))],
        {"low": s.number(-1, 0), "high": s.number(1, 0.1)},
    ),
    "ReduceMax": lambda s: reduction("ReduceMax", s),
    "ReduceMean": lambda s: reduction("ReduceMean", s),
    "ReduceSum": lambda s: reduction("ReduceSum", s),
    "Relu": lambda s: unary("Relu", s),
    "ReluGrad": lambda s: binary("ReluGrad", s),
    "Round": lambda s: unary("Round", s),
    "Shape": lambda s: Call("Shape", [s.floats(*s.shape)], {"start": s.integer(0, 1)}),
    "Sigmoid": lambda s: unary("Sigmoid", s),
    "Sign": lambda s: unary("Sign", s),
    "SignPack": lambda s: Call("SignPack", [s.any_map(s.floats(*s.shape))]),
    "SignUnpack": lambda s: unpack("SignUnpack", s),
    "Slice": slice_,
    "Softmax": lambda s: softmax("Softmax", s),
    "SoftmaxGrad": softmax_grad,
    "SoftmaxCrossEntropy": softmax_cross_entropy,
    "SoftmaxCrossEntropyGrad": softmax_cross_entropy_grad,
    "Softplus": lambda s: unary("Softplus", s),
    "Split": split,
    "Sqrt": lambda s: unary("Sqrt", s),
    "Sub": lambda s: arithmetic("Sub", s),
    "Tanh": lambda s: unary("Tanh", s),
    "TanhGeluGrad": lambda s: gelu_grad("TanhGeluGrad", s),
    "ThresholdPack": threshold_pack,
    "Transpose": transpose,
    "UnpackBits": lambda s: unpack("UnpackBits", s),
    "Where": where,
    "WidenLatents": lambda s: Call(
        "WidenLatents",
        [s.rng.integers(-128, 128, s.shape, np.int8)],
        {"unit": s.number(2.0**-9, 1 / 127)},
    ),
    **{name: functools.partial(optimizer, name) for name in FORMS},
    **{name: functools.partial(bop, name) for name in ("BopStep", "HalfBopStep", "ByteBopStep")},
}

small_shapes = st.one_of(
    st.sampled_from(SIZES).map(lambda n: (n,)),
    st.tuples(st.integers(1, 5), st.sampled_from(SIZES)),
    st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(1, 9)),
)
LARGE_SHAPES = [(2 * 65536 + 13,), (3, 70_001), (5, 16, 32, 64)]
seeds = st.integers(0, 2**32 - 1)
