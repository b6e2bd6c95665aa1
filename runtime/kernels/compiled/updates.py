"""The compiled weight gradients that step the weights of each tile as soon as it is finished."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, TypeVar

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled.binary_products import FUNCTIONS, dy_type
from bnnopt.runtime.kernels.compiled.calls import (
    Arrays,
    Attributes,
    check_finite,
    covered,
    integer,
    integers,
    is_half,
)
from bnnopt.runtime.kernels.compiled.convolution import (
    Cut,
    is_map,
    is_source,
    source,
    weight_grad_cut,
)
from bnnopt.runtime.kernels.compiled.functions import Argument, CFunction, again
from bnnopt.runtime.kernels.compiled.kernel import CompiledKernel, ScratchRule, Sizes
from bnnopt.runtime.kernels.compiled.optimizers import BOP, FORMS, make_update
from bnnopt.runtime.kernels.tiling import WITH_UNIT, tiling
from bnnopt.runtime.kernels.tiling import scratch_bytes as binary_scratch_bytes

Shape = Sequence[int]


class Fused(NamedTuple):
    """The product that makes a gradient, cut as for the bits of it, and the step that takes it."""

    product: str
    step: str


FUSED: dict[str, Fused] = {
    kind + step: Fused(product, step)
    for kind, product in {
        "BinaryConv": "BinaryConvWeightGradSigns",
        "BinaryConvInt4": "BinaryConvWeightGradSignsInt4",
        "BinaryConvInt8": "BinaryConvWeightGradSignsInt8",
        "BinaryConvPow2": "BinaryConvWeightGradSignsPow2",
        "BinaryGemm": "BinaryGemmWeightGradSigns",
        "BinaryGemmInt4": "BinaryGemmWeightGradSignsInt4",
        "BinaryGemmInt8": "BinaryGemmWeightGradSignsInt8",
        "BinaryGemmPow2": "BinaryGemmWeightGradSignsPow2",
        "Conv": "ConvWeightGrad",
    }.items()
    for step in FORMS
}


class _Call(NamedTuple):
    """A C function, and its arguments in front of the gradient and behind the update."""

    function: CFunction
    before: Sequence[Argument]
    behind: Sequence[Argument]


def fused_step(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array, *, operator: str
) -> bool:
    """`updates.FusedStep`; each output but the last may be the input that it replaces."""
    product, step = FUSED[operator]
    w, operands, rest = _split(product, inputs)
    *replaced, dw = outputs
    update = make_update(step, [w, None, *rest], replaced, attributes)
    arrays = [array for array in operands if array is not None]
    if update is None or len(arrays) < len(operands) or scratch.ctypes.data % 64:
        return False
    made = (_binary if product in FUNCTIONS else _real)(operator, arrays, attributes)
    if made is None or not (dw is None or covered(dw)):
        return False
    update.dw = dw.ctypes.data if dw is not None else None
    arguments = [*made.before, None, update, *made.behind, scratch, scratch.size]
    is_done = made.function(*arguments)
    again(check_finite)
    return is_done


_Item = TypeVar("_Item")


def _split(product: str, inputs: Sequence[_Item]) -> tuple[_Item, list[_Item], list[_Item]]:
    """The weights, what the product reads beside them, and the rest."""
    w, *others = inputs
    n = 3 if product.endswith(WITH_UNIT) else 2
    return w, others[:n], others[n:]


def _binary(operator: str, operands: Sequence[Array], attributes: Attributes) -> _Call | None:
    product = FUSED[operator].product
    function, wanted, _ = FUNCTIONS[product]
    for array, allowed in zip(operands, wanted, strict=True):
        if array.dtype not in allowed or not covered(array, dtype=array.dtype):
            return None
    shapes = [array.shape for array in operands]
    cut = tiling(product, shapes, shapes[1:2], attributes)
    if cut is None:
        return None
    x, dy, *unit = operands
    before: list[Argument] = [cut, x, dy, unit[0] if unit else None]
    return _Call(function, before, [dy_type(product, dy), 0])


def _real(operator: str, operands: Sequence[Array], attributes: Attributes) -> _Call | None:
    x, dy = operands
    cut = _real_cut(operator, x.shape, dy.shape, attributes)
    if cut is None or not is_source(x) or not is_map(dy):
        return None
    before: list[Argument] = [cut.geometry, *source(x), dy, is_half(dy)]
    return _Call(cut.function, before, cut.extra[1:])


def _real_cut(operator: str, x: Shape, dy: Shape, attributes: Attributes) -> Cut | None:
    """The cut, if its tiles can be handed on: whole planes cannot, nor parts of a byte of bits."""
    kernel = integers(attributes, "kernel_shape") or []
    dw = (dy[1], x[1] // integer(attributes, "group"), *kernel)
    cut = weight_grad_cut(x, dy, dw, attributes)
    if cut is None:
        return None
    g = cut.geometry
    is_bitwise = FORMS[FUSED[operator].step].rule == BOP
    if is_bitwise and g.channels < g.group_channels and g.channels * g.taps % 8:
        return None
    return cut


def scratch_bytes(
    operator: str, inputs: Sequence[Shape], attributes: Attributes, n_threads: int
) -> int | None:
    """Bytes of scratch that the compiled kernel needs, aligned to 64; None if not covered."""
    product = FUSED[operator].product
    _, operands, _ = _split(product, inputs)
    if product in FUNCTIONS:
        return binary_scratch_bytes(product, operands, operands[1:2], attributes, n_threads)
    x, dy = operands
    cut = _real_cut(operator, x, dy, attributes)
    return cut.scratch_bytes(n_threads) if cut is not None else None


def _scratch(name: str) -> ScratchRule:
    return lambda s: scratch_bytes(name, s.inputs, s.attributes, s.n_threads)


def _reads_bytes(sizes: Sizes, *, operator: str) -> frozenset[int]:
    """x of a real convolution."""
    if FUSED[operator].product in FUNCTIONS:
        return frozenset()
    _, (x, dy), _ = _split(FUSED[operator].product, sizes.inputs)
    is_covered = _real_cut(operator, x, dy, sizes.attributes) is not None
    return frozenset({1} if is_covered else ())


KERNELS: dict[str, CompiledKernel] = {
    name: CompiledKernel(
        partial(fused_step, operator=name),
        _scratch(name),
        repeatable=True,
        reads_bytes=partial(_reads_bytes, operator=name),
    )
    for name in FUSED
}
