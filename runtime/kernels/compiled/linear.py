"""Steps of dense layers of real numbers: BLAS makes the gradient block by block, C takes each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled.calls import Arrays, Attributes, check_finite, covered
from bnnopt.runtime.kernels.compiled.functions import again
from bnnopt.runtime.kernels.compiled.kernel import CompiledKernel
from bnnopt.runtime.kernels.compiled.optimizers import (
    BOP,
    FORMS,
    OPTIMIZER_STEP,
    make_update,
)
from bnnopt.runtime.kernels.formulas import row_blocks, rows_at_a_time

Shape = Sequence[int]

# Not those of float16: their random bits are counted from the first weight on. Nor those of bits.
STEPS: list[str] = [
    step for step, form in FORMS.items() if not (form.half or form.of_signs or form.rule == BOP)
]


def fused_step(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array, *, step: str
) -> bool:
    """`updates.FusedStep` of a Gemm; each output but the last may be the input that it replaces."""
    w, a, b, dw = *inputs[:3], outputs[-1]
    if w is None or a is None or b is None or not covered(w, a, b):
        return False
    if dw is not None and not covered(dw):
        return False
    if scratch.size < scratch_bytes(w.shape) or scratch.ctypes.data % 64:
        return False
    with np.errstate(all="ignore"):
        return _in_blocks(inputs, outputs, attributes, scratch, step)


def _in_blocks(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array, step: str
) -> bool:
    w, a, b, *rest = inputs
    *replaced, dw = outputs
    assert w is not None
    assert a is not None
    assert b is not None
    for rows in row_blocks(*w.shape):
        block = [_rows_of(array, rows, w.shape) for array in (w, None, *rest)]
        results = [_rows_of(array, rows, w.shape) for array in replaced]
        update = make_update(step, block, results, attributes)
        if update is None:
            return False
        tile = scratch.view(np.float32)[: (rows.stop - rows.start) * w.shape[1]]
        again(partial(np.matmul, a[:, rows].T, b, out=tile.reshape(-1, w.shape[1])))
        if dw is not None:
            update.dw = dw[rows].ctypes.data
        OPTIMIZER_STEP(update, None, tile, None)
        again(check_finite)
    return True


def _rows_of(array: Array | None, rows: slice, shape: Shape) -> Array | None:
    """Those rows, where the array is one of the shape of the weights; else what it is."""
    return array[rows] if array is not None and array.shape == shape else array


def scratch_bytes(w: Shape) -> int:
    """Bytes of the largest block of the gradient of weights of this shape; a multiple of 64."""
    n_rows, row = w
    n_bytes = 4 * row * min(n_rows, rows_at_a_time(row))
    return n_bytes + -n_bytes % 64


KERNELS: dict[str, CompiledKernel] = {
    f"Gemm{step}": CompiledKernel(
        partial(fused_step, step=step),
        lambda sizes: scratch_bytes(sizes.inputs[0]),
        repeatable=True,
    )
    for step in STEPS
}
