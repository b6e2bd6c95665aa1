"""Elementwise arithmetic, activations, logic and casts, with numpy broadcasting.

All follow IEEE 754 in silence: a division by zero or an overflow gives inf or NaN, no warning.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.reference.kernel import NumpyKernel
from bnnopt.runtime.kernels.reference.parts import TILES

_DTYPE_OF_ONNX: dict[int, type[np.generic]] = {
    1: np.float32,
    2: np.uint8,
    3: np.int8,
    4: np.uint16,
    5: np.int16,
    6: np.int32,
    7: np.int64,
    9: np.bool_,
    10: np.float16,
    11: np.float64,
    12: np.uint32,
    13: np.uint64,
}

vector_erf = np.vectorize(math.erf, otypes=[np.float64])


def from_ufunc(ufunc: np.ufunc) -> Callable[..., Array]:
    """Make a kernel of a numpy function whose result has the dtype that ONNX asks for."""

    def kernel(*inputs: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(ufunc(*inputs))  # numpy returns a scalar for 0-d inputs

    kernel.__name__ = kernel.__qualname__ = ufunc.__name__
    kernel.__doc__ = f"Apply ``numpy.{ufunc.__name__}`` element by element."
    return kernel


def from_fold(ufunc: np.ufunc) -> Callable[..., Array]:
    """Make a kernel with any number of inputs of a two-input numpy function, left to right."""

    def kernel(*inputs: Array) -> Array:
        with np.errstate(all="ignore"):
            first = np.array(inputs[0], order="C")  # a single input is not handed out as the result
            return np.asarray(functools.reduce(ufunc, inputs[1:], first))

    kernel.__name__ = kernel.__qualname__ = f"fold_{ufunc.__name__}"
    kernel.__doc__ = f"Fold ``numpy.{ufunc.__name__}`` over the inputs, left to right."
    return kernel


_sum = from_fold(np.add)


def mean(*inputs: Array) -> Array:
    """Mean of all inputs, element by element."""
    total = _sum(*inputs)
    total /= len(inputs)
    return total


@np.errstate(all="ignore")
def div(a: Array, b: Array) -> Array:
    """Divide a by b; integers truncate toward zero."""
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    quotient = np.asarray(a // b)
    if a.dtype.kind == "i":  # numpy floors: one too low where the signs differ
        quotient += (quotient * b != a) & ((a < 0) != (b < 0)) & (b != 0)
    return quotient


@np.errstate(all="ignore")
def mod(a: Array, b: Array, *, fmod: int = 0) -> Array:
    """Remainder, with the sign of b, or of a if `fmod` is 1."""
    return np.asarray(np.fmod(a, b) if fmod else np.mod(a, b))


@np.errstate(all="ignore")
def power(x: Array, exponent: Array) -> Array:
    """Raise x to a power; the result has the dtype of x whatever that of the exponent."""
    if x.dtype.kind == "f":
        return np.asarray(np.power(x, exponent.astype(x.dtype, copy=False)))
    if exponent.dtype.kind in "iu" and (exponent >= 0).all():
        return np.asarray(np.power(x, exponent)).astype(x.dtype)
    return np.asarray(np.power(x.astype(np.float64), exponent)).astype(x.dtype)


def erf(x: Array) -> Array:
    """Error function, computed in float64 whatever the dtype of x."""
    return np.asarray(vector_erf(x)).astype(x.dtype)


def relu(x: Array) -> Array:
    """max(x, 0)."""
    return np.asarray(np.maximum(x, 0))


def clip(x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    """Limit x to [low, high]; a missing limit is none, and high wins where low > high."""
    y = x.copy()
    if low is not None:
        np.maximum(y, low, out=y)
    if high is not None:
        np.minimum(y, high, out=y)
    return y


@np.errstate(all="ignore")
def leaky_relu(x: Array, *, alpha: float = 0.01) -> Array:
    """Return x where x >= 0, else alpha x."""
    return np.asarray(np.where(x < 0, alpha * x, x))


@np.errstate(all="ignore")
def prelu(x: Array, slope: Array) -> Array:
    """Return x where x >= 0, else slope x; the slope broadcasts to the shape of x."""
    return np.asarray(np.where(x < 0, slope * x, x))


@np.errstate(all="ignore")
def elu(x: Array, *, alpha: float = 1.0) -> Array:
    """Return x where x >= 0, else alpha (exp(x) - 1)."""
    return np.asarray(np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x))


@np.errstate(all="ignore")
def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), with full relative accuracy in both tails."""
    wide = x.astype(np.result_type(x, np.float32), copy=False)
    e = np.exp(-np.abs(wide))  # at most 1: nothing overflows
    return np.asarray(np.where(x < 0, e, 1) / (1 + e)).astype(x.dtype, copy=False)


@np.errstate(all="ignore")
def gelu(x: Array, *, approximate: str = "none") -> Array:
    """Return x Phi(x), computed in float64: Phi by erf, or near it by tanh.

    Source: Hendrycks and Gimpel, arXiv:1606.08415.
    """
    wide = x.astype(np.float64)
    if approximate == "tanh":
        phi = 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))
    else:
        phi = 0.5 * (1 + vector_erf(wide / math.sqrt(2)))
    return np.asarray(wide * phi).astype(x.dtype)


def hard_sigmoid(x: Array, *, alpha: float = 0.2, beta: float = 0.5) -> Array:
    """alpha x + beta, limited to [0, 1]."""
    return np.asarray(np.clip(alpha * x + beta, 0, 1))


@np.errstate(invalid="ignore")
def hard_swish(x: Array) -> Array:
    """x hard_sigmoid(x), the latter with alpha = 1/6 and beta = 1/2."""
    wide = x.astype(np.result_type(x, np.float32), copy=False)
    return np.asarray(wide * hard_sigmoid(wide, alpha=1 / 6, beta=0.5)).astype(x.dtype)


@np.errstate(all="ignore")
def softplus(x: Array) -> Array:
    """log(1 + exp(x)), without overflow."""
    return np.asarray(np.logaddexp(x, x.dtype.type(0)))


def where(condition: Array, a: Array, b: Array) -> Array:
    """Return a where the condition holds, else b."""
    return np.asarray(np.where(condition, a, b))


def bit_shift(x: Array, count: Array, *, direction: str) -> Array:
    """Shift unsigned x by `count` bits, `direction` LEFT or RIGHT."""
    shift = {"LEFT": np.left_shift, "RIGHT": np.right_shift}[direction]
    return np.asarray(shift(x, count))


@np.errstate(all="ignore")
def cast(x: Array, *, to: int, saturate: int = 1, round_mode: str = "up") -> Array:
    """Convert x to the dtype with the ONNX number `to`; a float becomes an integer toward zero.

    `saturate` and `round_mode` concern 8-bit floats only, which numpy lacks.

    Raises
    ------
    ValueError
        If numpy has no such dtype.
    """
    if to not in _DTYPE_OF_ONNX:
        raise ValueError(f"Cast: numpy has no dtype for ONNX data type {to}")
    return x.astype(_DTYPE_OF_ONNX[to])


@np.errstate(all="ignore")
def cast_like(x: Array, like: Array, *, saturate: int = 1, round_mode: str = "up") -> Array:
    """Convert x to the dtype of `like`."""
    return x.astype(like.dtype)


def identity(x: Array) -> Array:
    """Return x itself."""
    return x


KERNELS: dict[str, NumpyKernel] = {
    "Add": NumpyKernel(from_ufunc(np.add), TILES),
    "Sub": NumpyKernel(from_ufunc(np.subtract), TILES),
    "Mul": NumpyKernel(from_ufunc(np.multiply), TILES),
    "Div": NumpyKernel(div, TILES),
    "Mod": NumpyKernel(mod, TILES),
    "Neg": NumpyKernel(from_ufunc(np.negative), TILES),
    "Abs": NumpyKernel(from_ufunc(np.absolute), TILES),
    "Sqrt": NumpyKernel(from_ufunc(np.sqrt), TILES),
    "Pow": NumpyKernel(power, TILES),
    "Exp": NumpyKernel(from_ufunc(np.exp), TILES),
    "Log": NumpyKernel(from_ufunc(np.log), TILES),
    "Reciprocal": NumpyKernel(from_ufunc(np.reciprocal), TILES),
    "Sign": NumpyKernel(from_ufunc(np.sign), TILES),
    "Floor": NumpyKernel(from_ufunc(np.floor), TILES),
    "Ceil": NumpyKernel(from_ufunc(np.ceil), TILES),
    "Round": NumpyKernel(from_ufunc(np.rint), TILES),
    "Erf": NumpyKernel(erf, TILES),
    "Max": NumpyKernel(from_fold(np.maximum), TILES),
    "Min": NumpyKernel(from_fold(np.minimum), TILES),
    "Sum": NumpyKernel(from_fold(np.add), TILES),
    "Mean": NumpyKernel(mean, TILES),
    "Sin": NumpyKernel(from_ufunc(np.sin), TILES),
    "Cos": NumpyKernel(from_ufunc(np.cos), TILES),
    "Tan": NumpyKernel(from_ufunc(np.tan), TILES),
    "Asin": NumpyKernel(from_ufunc(np.arcsin), TILES),
    "Acos": NumpyKernel(from_ufunc(np.arccos), TILES),
    "Atan": NumpyKernel(from_ufunc(np.arctan), TILES),
    "Sinh": NumpyKernel(from_ufunc(np.sinh), TILES),
    "Cosh": NumpyKernel(from_ufunc(np.cosh), TILES),
    "Asinh": NumpyKernel(from_ufunc(np.arcsinh), TILES),
    "Acosh": NumpyKernel(from_ufunc(np.arccosh), TILES),
    "Atanh": NumpyKernel(from_ufunc(np.arctanh), TILES),
    "Relu": NumpyKernel(relu, TILES),
    "Clip": NumpyKernel(clip, TILES),
    "LeakyRelu": NumpyKernel(leaky_relu, TILES),
    "PRelu": NumpyKernel(prelu, TILES),
    "Elu": NumpyKernel(elu, TILES),
    "Sigmoid": NumpyKernel(sigmoid, TILES),
    "Gelu": NumpyKernel(gelu, TILES),
    "Tanh": NumpyKernel(from_ufunc(np.tanh), TILES),
    "HardSigmoid": NumpyKernel(hard_sigmoid, TILES),
    "HardSwish": NumpyKernel(hard_swish, TILES),
    "Softplus": NumpyKernel(softplus, TILES),
    "Where": NumpyKernel(where, TILES),
    "Less": NumpyKernel(from_ufunc(np.less), TILES),
    "LessOrEqual": NumpyKernel(from_ufunc(np.less_equal), TILES),
    "Greater": NumpyKernel(from_ufunc(np.greater), TILES),
    "GreaterOrEqual": NumpyKernel(from_ufunc(np.greater_equal), TILES),
    "Equal": NumpyKernel(from_ufunc(np.equal), TILES),
    "And": NumpyKernel(from_ufunc(np.logical_and), TILES),
    "Or": NumpyKernel(from_ufunc(np.logical_or), TILES),
    "Xor": NumpyKernel(from_ufunc(np.logical_xor), TILES),
    "Not": NumpyKernel(from_ufunc(np.logical_not), TILES),
    "IsNaN": NumpyKernel(from_ufunc(np.isnan), TILES),
    "BitwiseAnd": NumpyKernel(from_ufunc(np.bitwise_and), TILES),
    "BitwiseOr": NumpyKernel(from_ufunc(np.bitwise_or), TILES),
    "BitwiseXor": NumpyKernel(from_ufunc(np.bitwise_xor), TILES),
    "BitwiseNot": NumpyKernel(from_ufunc(np.invert), TILES),
    "BitShift": NumpyKernel(bit_shift, TILES),
    "Cast": NumpyKernel(cast, TILES),
    "CastLike": NumpyKernel(cast_like),
    "Identity": NumpyKernel(identity),
}
