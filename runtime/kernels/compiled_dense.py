"""Steps of dense layers of real numbers: BLAS makes the gradient block by block, C takes each."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled import Arrays, Attributes, CompiledKernel, call, covered
from bnnopt.runtime.kernels.compiled_optimizers import BOP, FORMS, make_update
from bnnopt.runtime.kernels.linear import row_blocks, rows_at_a_time

Shape = Sequence[int]

# Not those of float16: their random bits are counted from the first weight on. Nor those of bits.
_STEPS = [
    step for step, form in FORMS.items() if not (form.half or form.of_signs or form.rule == BOP)
]
_PREFIX = "Gemm"


@np.errstate(all="ignore")
def _run(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array, *, step: str
) -> bool:
    """`updates.FusedStep` of a Gemm; each output but the last may be the input that it replaces."""
    w, a, b, *rest = inputs
    *replaced, dw = outputs
    if w is None or a is None or b is None or not covered(w, a, b):
        return False
    if dw is not None and not covered(dw):
        return False
    if scratch.size < scratch_bytes(f"{_PREFIX}{step}", [w.shape]) or scratch.ctypes.data % 64:
        return False
    for rows in row_blocks(*w.shape):

        def part(array: Array | None, rows: slice = rows) -> Array | None:
            return array[rows] if array is not None and array.shape == w.shape else array

        update = make_update(
            step, [w[rows], None, *map(part, rest)], [*map(part, replaced)], attributes
        )
        if update is None:
            return False
        tile = scratch.view(np.float32)[: (rows.stop - rows.start) * w.shape[1]]
        np.matmul(a[:, rows].T, b, out=tile.reshape(-1, w.shape[1]))
        if dw is not None:
            update.dw = dw[rows].ctypes.data
        call("bnn_optimizer_step", update, None, tile, None)
    return True


def scratch_bytes(operator: str, inputs: Sequence[Shape]) -> int:
    """Bytes of the gradient's largest block; a multiple of 64."""
    n_rows, row = inputs[0]
    n_bytes = 4 * row * min(n_rows, rows_at_a_time(row))
    return n_bytes + -n_bytes % 64


COMPILED_DENSE: dict[str, CompiledKernel] = {
    _PREFIX + step: functools.partial(_run, step=step) for step in _STEPS
}
