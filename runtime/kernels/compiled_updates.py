"""The compiled weight gradients that step the weights of each tile as soon as it is finished."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled import Arrays, Attributes, CompiledKernel, call, covered
from bnnopt.runtime.kernels.compiled_optimizers import FORMS, make_update
from bnnopt.runtime.kernels.compiled_products import BITS, FLOATS, FUNCTIONS, NUMBERS
from bnnopt.runtime.kernels.product_tiling import scratch_bytes as product_scratch_bytes
from bnnopt.runtime.kernels.product_tiling import tiling
from bnnopt.runtime.library import int64s

Shape = Sequence[int]


class Fused(NamedTuple):
    """A product that hands on what it finishes, and the step that takes it."""

    product: str
    step: str


FUSED = {
    kind + step: Fused(f"{kind}WeightGradSigns", step)
    for kind in ("BinaryConv", "BinaryGemm")
    for step in FORMS
}


def _run(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array, *, operator: str
) -> bool:
    """`updates.FusedStep`; each output but the last may be the input that it replaces."""
    product, step = FUSED[operator]
    w, x, dy, *rest = inputs
    *replaced, dw = outputs
    update = make_update(step, [w, None, *rest], replaced, attributes)
    if update is None or x is None or dy is None or dy.dtype not in FLOATS:
        return False
    if not (covered(x, dtype=BITS[0]) and covered(dy, dtype=dy.dtype)):
        return False
    if dw is not None:
        if not covered(dw):
            return False
        update.dw = dw.ctypes.data
    cut = tiling(product, [x.shape, dy.shape], [(update.rows, update.row)], attributes)
    if cut is None or scratch.ctypes.data % 64:
        return False
    return bool(
        call(
            FUNCTIONS[product][0], int64s(cut), x, dy, None, None, update, NUMBERS[dy.dtype], 0,
            scratch, scratch.size,
        )
    )  # fmt: skip


def scratch_bytes(
    operator: str, inputs: Sequence[Shape], attributes: Attributes, n_threads: int
) -> int:
    """Bytes of scratch that the compiled kernel needs, aligned to 64; 0 if it is not covered."""
    w, x, dy, *_ = inputs
    return product_scratch_bytes(FUSED[operator].product, [x, dy], [w], attributes, n_threads)


COMPILED_UPDATES: dict[str, CompiledKernel] = {
    operator: functools.partial(_run, operator=operator) for operator in FUSED
}
