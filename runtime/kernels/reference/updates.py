"""Weight gradients that an optimiser step takes at once: a product and a step in one kernel."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from bnnopt.runtime.kernels import Array, Kernel, at_least_float32
from bnnopt.runtime.kernels.reference.binary_products import (
    binary_conv_weight_grad,
    binary_gemm_weight_grad,
)
from bnnopt.runtime.kernels.reference.convolution import conv_weight_grad
from bnnopt.runtime.kernels.reference.int4 import (
    binary_conv_weight_grad_int4,
    binary_gemm_weight_grad_int4,
)
from bnnopt.runtime.kernels.reference.int8 import (
    binary_conv_weight_grad_int8,
    binary_gemm_weight_grad_int8,
)
from bnnopt.runtime.kernels.reference.kernel import NumpyKernel
from bnnopt.runtime.kernels.reference.linear import dense_weight_grad
from bnnopt.runtime.kernels.reference.optimizers import STEPS, sign_grad
from bnnopt.runtime.kernels.reference.packing import binarize_pack
from bnnopt.runtime.kernels.reference.parts import WHOLE, by_filters
from bnnopt.runtime.kernels.reference.pow2 import (
    binary_conv_weight_grad_pow2,
    binary_gemm_weight_grad_pow2,
)

FUSED_PRODUCTS: dict[str, Kernel] = {
    "BinaryConv": binary_conv_weight_grad,
    "BinaryConvInt4": binary_conv_weight_grad_int4,
    "BinaryConvInt8": binary_conv_weight_grad_int8,
    "BinaryConvPow2": binary_conv_weight_grad_pow2,
    "BinaryGemm": binary_gemm_weight_grad,
    "BinaryGemmInt4": binary_gemm_weight_grad_int4,
    "BinaryGemmInt8": binary_gemm_weight_grad_int8,
    "BinaryGemmPow2": binary_gemm_weight_grad_pow2,
    "Conv": conv_weight_grad,
    "Gemm": dense_weight_grad,
}
# Those that can make some filters' gradient alone.
BY_FILTERS = ("BinaryConv", "BinaryConvInt8", "BinaryGemm", "BinaryGemmInt8", "Conv")


def masked(raw: Array, w: Array, *, scale: float, limit: float) -> Array:
    """Return scale times raw, 0 where |w| > limit; everywhere scale times raw if limit < 0."""
    passes = (np.abs(at_least_float32(w)) <= limit) | (limit < 0)
    return np.asarray(raw * passes * scale)


def scaled(raw: Array, w: Array, *, scale: float) -> Array:
    """Return scale times raw."""
    return np.asarray(raw * scale)


class FusedStep:
    """`step` by the gradient that `product` makes; returns what the step returns, and the gradient.

    Inputs are those of the step, with those of the product where the step has its gradient.

    Attributes
    ----------
    by_filters : bool
        Whether some filters can be stepped without the others.
    """

    def __init__(self, product: str, step: str) -> None:
        self._product, self._step = FUSED_PRODUCTS[product], STEPS[step]
        self.by_filters = product in BY_FILTERS
        self._of_signs = step.startswith("Sign")
        self._made = sign_grad if self._of_signs else scaled if "Bop" in step else masked

    def __call__(self, w: Array, *read: Array, **given: Any) -> Any:
        """Run both."""
        n = len(_parameters(self._product, False))
        operands, rest = read[:n], read[n:]
        raw = self._product(*operands, **_chosen(given, self._product))
        assert isinstance(raw, np.ndarray)
        if self._of_signs:
            raw = binarize_pack(raw, zero=1.0)
            dw = sign_grad(raw, w, **_chosen(given, sign_grad))
        else:
            raw = dw = self._made(raw, w, **_chosen(given, self._made))
        results = self._step(w, raw, *rest, **_chosen(given, self._step))
        return (*results, dw) if isinstance(results, tuple) else (results, dw)

    @property
    def __signature__(self) -> inspect.Signature:
        inputs = [[*_parameters(f, False).values()] for f in (self._step, self._product)]
        options: dict[str, inspect.Parameter] = {}
        for function in (self._product, self._made, self._step):
            options |= _parameters(function, True)
        (w, _, *rest), own = inputs
        return inspect.Signature([w, *own, *rest, *options.values()])


@functools.cache
def _parameters(function: Kernel, keyword_only: bool) -> Mapping[str, inspect.Parameter]:
    found = inspect.signature(function).parameters
    return {n: p for n, p in found.items() if (p.kind is p.KEYWORD_ONLY) == keyword_only}


def _chosen(given: Mapping[str, Any], function: Kernel) -> dict[str, Any]:
    """The options that `function` has."""
    return {name: given[name] for name in _parameters(function, True) if name in given}


FUSED: dict[str, FusedStep] = {
    product + step: FusedStep(product, step)
    for product in FUSED_PRODUCTS
    for step in STEPS
    if product != "Gemm" or not (step.startswith("Sign") or step.endswith("BopStep"))
}


KERNELS: dict[str, NumpyKernel] = {
    name: NumpyKernel(fused, by_filters if fused.by_filters else WHOLE, updates=True)
    for name, fused in FUSED.items()
}
