"""Runs numpy kernels over the caller's memory; loaded with the first step that C does not cover.

Elementwise kernels go tile by tile: what they allocate stays small, and in the cache. Some others
write where the result belongs. The rest return new arrays, or views of their inputs, part by part
where they can, and these are copied.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from bnnopt.runtime.kernels import Array, Kernel
from bnnopt.runtime.kernels.compiled.calls import Arrays, Attributes, NotFinite, diverged
from bnnopt.runtime.kernels.compiled.functions import again
from bnnopt.runtime.kernels.on_read import OnRead
from bnnopt.runtime.kernels.reference.parts import OUT, TILES, in_parts
from bnnopt.runtime.kernels.reference.table import KERNELS

TILE = 8192  # elements


@np.errstate(all="ignore")
def run_numpy(
    operator: str, inputs: Arrays, outputs: list[Array | None], attributes: Attributes
) -> bool:
    """Run an operator's numpy kernel; an output that outgrows its place is replaced in the list.

    Returns
    -------
    bool
        Whether that was one call on this memory, which can be repeated; it is recorded then.
    """
    row, output = KERNELS[operator], outputs[0]
    is_on_read = any(isinstance(a, OnRead) for a in inputs)
    inputs = [a.floats() if isinstance(a, OnRead) else a for a in inputs]
    if row.how == TILES and output is not None:
        _run_in_tiles(row.function, inputs, output, attributes)
        return False
    types = {a.dtype for a in (*inputs, output) if a is not None}
    if row.how == OUT and len(types) == 1 and not is_on_read:
        again(partial(row.function, *inputs, **attributes, out=output))
        return True
    for taken, own, places in in_parts(row.how, inputs, outputs, attributes):
        made = row.function(*taken, **own)
        results = made if isinstance(made, tuple) else (made,)
        if row.updates and diverged() is not None:
            _check_finite(results)
        _deliver(results, places)
    return False


def _check_finite(results: tuple[Array, ...]) -> None:
    """Refuse what an optimiser step gives before it is written."""
    if not all(np.isfinite(result).all() for result in results):
        raise NotFinite


def _run_in_tiles(kernel: Kernel, inputs: Arrays, output: Array, attributes: Attributes) -> None:
    """The output may be the memory of an input: each tile is read before it is written."""
    operands = [*(array for array in inputs if array is not None), output]
    access: list[Any] = [*[["readonly"]] * (len(operands) - 1), ["writeonly"]]
    flags: list[Any] = ["external_loop", "buffered", "zerosize_ok"]
    with np.nditer(operands, flags, access, buffersize=TILE) as tiles:
        for *tile, y in tiles:
            pieces = iter(tile)
            y[...] = kernel(*(None if a is None else next(pieces) for a in inputs), **attributes)


def _deliver(results: tuple[Array, ...], outputs: list[Array | None]) -> None:
    """Copy results to where they belong; one that has outgrown its place takes that over."""
    for i, (output, result) in enumerate(zip(outputs, results, strict=False)):
        if output is None:
            continue
        if result.size > output.size:
            outputs[i] = result
        else:
            np.copyto(output, result)
