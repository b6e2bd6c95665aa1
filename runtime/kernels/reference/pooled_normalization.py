"""The gradient of max pooling over batch normalisation, from what pooling kept and one bit."""

from __future__ import annotations

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.reference.kernel import NumpyKernel
from bnnopt.runtime.kernels.reference.normalization import by_channel, column
from bnnopt.runtime.kernels.reference.packing import pack_bits, unpack_bits
from bnnopt.runtime.kernels.reference.pooling import packed_max_pool_grad


def threshold_pack(x: Array, threshold: Array) -> Array:
    """Pack the bits of x >= threshold.

    Parameters
    ----------
    x : (N, C, ...) float or int16
    threshold : (C,) float

    Returns
    -------
    (N, ceil(K / 8)) uint8
    """
    reached = by_channel(x) >= column(threshold)  # a comparison of the wider of both types
    return pack_bits(reached.reshape(x.shape))


def l1_batch_normalization_pool_grad(
    dy: Array,
    y: Array,
    packed: Array,
    origin: Array,
    signs: Array,
    scale: Array,
    bias: Array,
    inv_std: Array,
    *,
    relu: int,
    epsilon: float,
    shape: list[int],
    input_shape: list[int],
    plane: int,
    width: int,
    kernel_width: int,
    row_dilation: int,
    column_dilation: int,
    bit_values: list[int],
    bit_shape: list[int],
) -> tuple[Array, Array, Array]:
    """Differentiate max pooling over L1 batch norm, perhaps with a ReLU, without its input.

    Parameters
    ----------
    dy, y : (N, C, Ho, Wo) float
        Gradient of the pooled values, and those values.
    packed, origin, and all from `input_shape` on
        As `pooling.packed_max_pool_grad` takes them.
    signs : (N, ceil(K / 8)) uint8
        Bits of batch norm's output >= bias; its sample has `shape`, K elements.
    scale, bias, inv_std : (C,) float

    Returns
    -------
    dx : (N, *shape), dtype of dy
    dscale, dbias : (C,)
        sum(d xh) and sum(d), d = dy where y > 0 or there is no ReLU, xh = (y - bias) / scale.
    """
    wide = dy.astype(scale.dtype, copy=False)
    d = np.where(y > 0, wide, scale.dtype.type(0)) if relu else wide
    dbias = by_channel(d).sum(axis=(0, 2))
    along = np.einsum("ncl,ncl->c", by_channel(d), by_channel(y) - column(bias))
    full = packed_max_pool_grad(
        d, packed, origin, input_shape=input_shape, plane=plane, width=width,
        kernel_width=kernel_width, row_dilation=row_dilation, column_dilation=column_dilation,
        bit_values=bit_values, bit_shape=bit_shape,
    )  # fmt: skip
    dx = by_channel(full)
    sign = by_channel(unpack_bits(signs, shape=shape)) * scale.dtype.type(2) - 1
    sign -= column(sign.mean(axis=(0, 2)))
    count = dx.size // scale.size
    size = np.sqrt(np.maximum(1 - scale.dtype.type(epsilon) * inv_std * inv_std, 0))
    dx -= column(dbias / count)
    dx *= column(scale)
    dx -= sign * column(np.sign(scale) * size * along / count)
    dx *= column(inv_std)
    dscale = np.divide(along, scale, out=np.zeros_like(along), where=scale != 0)
    return dx.reshape(len(dy), *shape).astype(dy.dtype, copy=False), dscale, dbias


KERNELS: dict[str, NumpyKernel] = {
    "L1BatchNormalizationPoolGrad": NumpyKernel(l1_batch_normalization_pool_grad),
    "ThresholdPack": NumpyKernel(threshold_pack),
}
