"""Operators that follow each other on the same channels; see `ops.filter_blocks`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from bnnopt.runtime.kernels import Array, Kernel
from bnnopt.runtime.kernels.chains import CHAINS, GRADIENTS, OF_WINDOW
from bnnopt.runtime.kernels.reference.adapters import real_conv
from bnnopt.runtime.kernels.reference.binary_products import binary_conv, binary_conv_input_grad
from bnnopt.runtime.kernels.reference.convolution import conv_weight_grad
from bnnopt.runtime.kernels.reference.int8 import binary_conv_input_grad_int8
from bnnopt.runtime.kernels.reference.kernel import NumpyKernel
from bnnopt.runtime.kernels.reference.normalization import (
    batch_normalization_signs,
    batch_normalization_signs_grad,
    l1_batch_normalization_signs,
)
from bnnopt.runtime.kernels.reference.pooling import packed_max_pool

PRODUCTS: dict[str, Kernel] = {"BinaryConv": binary_conv, "RealConv": real_conv}
INPUT_GRADS: dict[str, Kernel] = {
    "BinaryConvInputGrad": binary_conv_input_grad,
    "BinaryConvInputGradInt8": binary_conv_input_grad_int8,
}
NORMS: dict[str, Kernel] = {
    "BatchNormalizationSigns": batch_normalization_signs,
    "L1BatchNormalizationSigns": l1_batch_normalization_signs,
}


def blocked(product: Kernel, norm: Kernel, *, pools: bool) -> Kernel:
    """The kernel that runs `product`, a pooling of places if it `pools`, and `norm`."""
    of_product, of_pool = options_of(product), options_of(packed_max_pool)
    of_norm = options_of(batch_normalization_signs)
    renamed = {name: f"pool_{name}" if name in OF_WINDOW else name for name in of_pool}

    def run(x: Array, w: Array, *rest: Array, **given: Any) -> tuple[Array, ...]:
        y = product(x, w, **{name: given[name] for name in of_product})
        assert isinstance(y, np.ndarray)
        kept: tuple[Array, ...] = ()
        if pools:
            origin, *rest_ = rest
            y, *places = packed_max_pool(
                y, origin, **{name: given[own] for name, own in renamed.items()}
            )
            rest, kept = tuple(rest_), tuple(places)
        return (*norm(y, *rest, **{name: given[name] for name in of_norm}), *kept)

    inputs = [*inputs_of(product), *(inputs_of(packed_max_pool)[1:] if pools else [])]
    inputs += inputs_of(batch_normalization_signs)[1:]
    options = [*of_product.values(), *of_norm.values()]
    if pools:
        options += [p.replace(name=renamed[name]) for name, p in of_pool.items()]
    run.__signature__ = inspect.Signature([*inputs, *options])  # type: ignore[attr-defined]
    return run


def options_of(kernel: Kernel) -> Mapping[str, inspect.Parameter]:
    """The attributes that a kernel takes, by name."""
    found = inspect.signature(kernel).parameters
    return {name: p for name, p in found.items() if p.kind is p.KEYWORD_ONLY}


def inputs_of(kernel: Kernel) -> list[inspect.Parameter]:
    """What a kernel reads."""
    parameters = inspect.signature(kernel).parameters.values()
    return [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]


def blocked_gradient(product: Kernel) -> Kernel:
    """The kernel that runs `product`, a batch norm's gradient from bits and `conv_weight_grad`."""
    of_product, of_norm = options_of(product), options_of(batch_normalization_signs_grad)
    n_read = len(inputs_of(product))

    def run(*inputs: Array, **given: Any) -> tuple[Array, ...]:
        *rest, x = inputs[n_read:]
        dx = product(*inputs[:n_read], **{name: given[name] for name in of_product})
        assert isinstance(dx, np.ndarray)
        dx, *sums = batch_normalization_signs_grad(dx, *rest, shape=given["shape"])
        own = {name: given[f"conv_{name}"] for name in OF_WINDOW}
        return conv_weight_grad(x, dx, **own, group=given["group"]), *sums

    of_bits, x = inputs_of(batch_normalization_signs_grad)[1:], inputs_of(conv_weight_grad)[0]
    options = options_of(conv_weight_grad)
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            *(*inputs_of(product), *of_bits, x),
            *(*of_product.values(), *of_norm.values()),
            *(options[name].replace(name=f"conv_{name}") for name in OF_WINDOW),
        ]
    )
    return run


KERNELS: dict[str, NumpyKernel] = {
    **{
        name: NumpyKernel(blocked(PRODUCTS[chain.product], NORMS[chain.norm], pools=chain.pools))
        for name, chain in CHAINS.items()
    },
    **{
        name: NumpyKernel(blocked_gradient(INPUT_GRADS[product]))
        for name, product in GRADIENTS.items()
    },
}
