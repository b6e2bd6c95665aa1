"""The stem of a residual network in one, there and back; see `ops.pooled_filter_blocks`."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from bnnopt.runtime.kernels import Array, Kernel
from bnnopt.runtime.kernels.chains import OF_WINDOW
from bnnopt.runtime.kernels.reference.adapters import real_conv
from bnnopt.runtime.kernels.reference.convolution import conv_tap_sums, conv_weight_grad
from bnnopt.runtime.kernels.reference.filter_blocks import inputs_of, options_of
from bnnopt.runtime.kernels.reference.kernel import NumpyKernel
from bnnopt.runtime.kernels.reference.normalization import (
    HALF,
    batch_normalization_training,
    l1_batch_normalization_training,
)
from bnnopt.runtime.kernels.reference.pooled_normalization import (
    l1_batch_normalization_pool_grad,
    threshold_pack,
)
from bnnopt.runtime.kernels.reference.pooling import packed_max_pool

_OF_CONV, _OF_NORM = options_of(real_conv), options_of(batch_normalization_training)
_OF_POOL, _OF_GRAD = options_of(packed_max_pool), options_of(l1_batch_normalization_pool_grad)
_POOLED = {name: f"pool_{name}" if name in OF_WINDOW else name for name in _OF_POOL}
_WINDOW = {name: f"conv_{name}" for name in ("input_shape", *OF_WINDOW)}


def real_conv_norm_max_pool(
    x: Array,
    w: Array,
    scale: Array,
    bias: Array,
    running_mean: Array,
    running_var: Array,
    origin: Array,
    *,
    relu: int,
    **given: Any,
) -> tuple[Array, ...]:
    """Convolve, normalise, keep the sides of the mean, and pool; then rectify if `relu`.

    Parameters
    ----------
    x : (N, C, H, W) float32 or float16
    w : (M, C, kh, kw) float32
    scale, bias, running_mean, running_var : (M,) float32
    origin : (Ho, Wo) int32
    **given
        Those of `real_conv`, `l1_batch_normalization_training` and `packed_max_pool`.

    Returns
    -------
    y : (N, M, Ho, Wo) of the dtype with ONNX's number `dtype`
    packed, sides : (N, bytes) uint8
        Places of the maxima, and the bits of what is pooled >= bias.
    next_mean, next_var, batch_mean, inv_std : (M,) float32
    """
    channels, of_norm = (scale, bias, running_mean, running_var), _taken(_OF_NORM, given)
    y = real_conv(x, w, **_taken(_OF_CONV, given))
    y, *statistics = l1_batch_normalization_training(y, *channels, **of_norm)
    sides = threshold_pack(y, bias)
    y, packed = packed_max_pool(y, origin, **{k: given[own] for k, own in _POOLED.items()})
    return np.maximum(y, y.dtype.type(0)) if relu else y, packed, sides, *statistics


def real_conv_norm_max_pool_grad(
    dy: Array,
    y: Array,
    packed: Array,
    origin: Array,
    signs: Array,
    scale: Array,
    bias: Array,
    inv_std: Array,
    x: Array,
    *,
    dtype: int,
    **given: Any,
) -> tuple[Array, ...]:
    """Differentiate `real_conv_norm_max_pool` with respect to its parameters.

    Parameters
    ----------
    dy, y, packed, origin, signs, scale, bias, inv_std
        As `l1_batch_normalization_pool_grad` takes them.
    x : (N, C, H, W) float32 or float16
    dtype : int
        ONNX's number of the type of the map's gradient.
    **given
        Those of `l1_batch_normalization_pool_grad` and, as `conv_...`, of `conv_tap_sums`.

    Returns
    -------
    dw : (M, C, kh, kw) float32
    taps : (M, 1, kh, kw) float32, of `conv_tap_sums`
    dscale, dbias : (M,) float32
    """
    dy = dy.astype(np.float16) if dtype == HALF else dy
    read = dy, y, packed, origin, signs, scale, bias, inv_std
    dx, *sums = l1_batch_normalization_pool_grad(*read, **_taken(_OF_GRAD, given))
    window = {name: given[own] for name, own in _WINDOW.items()}
    taps = conv_tap_sums(dx, **window)
    del window["input_shape"]
    return conv_weight_grad(x, dx, **window), taps, *sums


def _taken(options: Iterable[str], given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in options}


def _named(kernel: Kernel, options: Mapping[str, inspect.Parameter]) -> Kernel:
    """The kernel, whose signature has these options by name."""
    own = [*inputs_of(kernel), *options_of(kernel).values()]
    named = [option for name, option in options.items() if name not in options_of(kernel)]
    kernel.__signature__ = inspect.Signature([*own, *named])  # type: ignore[attr-defined]
    return kernel


_TAPS = options_of(conv_tap_sums)
_FORWARD_OPTIONS = {
    **_OF_CONV,
    **_OF_NORM,
    **{own: _OF_POOL[name].replace(name=own) for name, own in _POOLED.items()},
}
_GRAD_OPTIONS = {
    **_OF_GRAD,
    **{own: _TAPS[name].replace(name=own) for name, own in _WINDOW.items()},
}
KERNELS: dict[str, NumpyKernel] = {
    "RealConvNormMaxPool": NumpyKernel(_named(real_conv_norm_max_pool, _FORWARD_OPTIONS)),
    "RealConvNormMaxPoolGrad": NumpyKernel(_named(real_conv_norm_max_pool_grad, _GRAD_OPTIONS)),
}
