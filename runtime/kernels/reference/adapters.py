"""Kernels under the attributes that their operators have."""

from __future__ import annotations

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.reference import convolution
from bnnopt.runtime.kernels.reference.elementwise import cast
from bnnopt.runtime.kernels.reference.kernel import NumpyKernel
from bnnopt.runtime.kernels.reference.parts import Axes


def conv_input_grad(
    dy: Array,
    w: Array,
    *,
    input_shape: list[int],
    strides: list[int],
    pads: list[int],
    dilations: list[int],
    group: int,
    output_padding: list[int],
) -> Array:
    """`convolution.conv_input_grad`; `output_padding` follows from the shapes."""
    return convolution.conv_input_grad(
        dy,
        w,
        input_shape=input_shape,
        strides=strides,
        pads=pads,
        dilations=dilations,
        group=group,
    )


def real_conv(
    x: Array,
    w: Array,
    *,
    dtype: int,
    strides: list[int],
    pads: list[int],
    dilations: list[int],
    group: int,
) -> Array:
    """`convolution.conv`, summed in the dtype of w, to the one with ONNX's number `dtype`."""
    x = x.astype(w.dtype, copy=False)
    y = convolution.conv(x, w, strides=strides, pads=pads, dilations=dilations, group=group)
    return cast(y, to=dtype)


KERNELS: dict[str, NumpyKernel] = {
    "ConvInputGrad": NumpyKernel(conv_input_grad, Axes("0", "0")),
    "RealConv": NumpyKernel(real_conv, Axes("0", "0")),
}
