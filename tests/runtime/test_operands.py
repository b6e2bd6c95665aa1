"""What does not fit is found when a folder is opened, or refused by the kernel: nothing is written.

That nothing is read outside of an array either is tried by `python -m tests.fuzz --sanitizers`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from bnnopt.ops import OPERATORS, Form
from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled.calls import Arrays, Attributes
from bnnopt.runtime.kernels.compiled.kernel import Sizes
from bnnopt.runtime.kernels.compiled.table import COMPILED
from bnnopt.runtime.kernels.operands import Operands, misfit
from bnnopt.runtime.library import library
from tests.ops.cases import CASES
from tests.runtime.compiled_calls import CALLS, Guarded, Source, aligned_empty

pytestmark = pytest.mark.skipif(library() is None, reason="built without a C compiler")

Shape = tuple[int, ...]
SHAPES: tuple[Shape, ...] = ((3, 4), (2, 3, 4, 5))
OF_STEPS = ("GemmHalfAdamStep", "ConvSignByteAdamStep", "BinaryConvInt8BopStep")


def is_one_of_many(operator: str) -> bool:
    known = OPERATORS.get(operator)
    is_fused = known is not None and Form.FUSED in known.form
    return is_fused and operator.endswith("Step") and not operator.endswith(OF_STEPS)


PLAIN: dict[str, tuple[list[Shape], list[Shape], Attributes]] = {
    "Gemm": ([(4, 3), (5, 3), (5,)], [(4, 5)], {"transB": 1}),
    "MatMul": ([(2, 4, 3), (2, 3, 5)], [(2, 4, 5)], {}),
    "Conv": ([(2, 4, 5, 6), (6, 2, 3, 3), (6,)], [(2, 6, 3, 4)], {"group": 2}),
    "ConvTranspose": ([(2, 4, 5, 6), (4, 3, 3, 3), (6,)], [(2, 6, 7, 8)], {"group": 2}),
}
"""Shapes of inputs and outputs, and attributes."""


def calls(operator: str) -> Iterator[tuple[Arrays, list[Array], Attributes]]:
    """Inputs, outputs and attributes that fit; few of each operator."""
    for case in [case for case in CASES if case.operator == operator][:2]:
        yield case.inputs, list(case.twin), case.attributes
    if operator in PLAIN:
        inputs, outputs, attributes = PLAIN[operator]
        yield (
            [np.ones(shape, np.float32) for shape in inputs],
            [np.ones(shape, np.float32) for shape in outputs],
            attributes,
        )
    for shape in SHAPES if operator in CALLS else ():
        call = CALLS[operator](Source(5, shape, special=False))
        yield call.inputs, list(call.twin()), call.attributes


def others(shape: Shape) -> Iterator[Shape]:
    """Shapes that are a little different: an axis longer or shorter, turned, joined or more."""
    for axis, n in enumerate(shape):
        for length in {n - 1, n + 1, 2 * n} - {n, 0, -1}:
            yield (*shape[:axis], length, *shape[axis + 1 :])
    if len(shape) > 1:
        yield from ((math.prod(shape),), shape[1:], shape[::-1])
    yield from ((*shape, 1), (3, *shape))


def accepts(operator: str, inputs: Arrays, outputs: list[Array], attributes: Attributes) -> bool:
    """Whether it is opened, and the kernel does it; it writes nothing but its outputs."""
    shapes = [[None if a is None else a.shape for a in arrays] for arrays in (inputs, outputs)]
    try:
        if misfit(operator, Operands(*shapes, attributes)):
            return False
    except (ArithmeticError, LookupError, TypeError, ValueError):
        return False  # as program_check takes it
    kernel = COMPILED[operator]
    sizes = Sizes(
        *([() if shape is None else shape for shape in some] for some in shapes), attributes
    )
    n_bytes = kernel.scratch(sizes) if kernel.scratch is not None else 0
    if n_bytes is None:
        return False
    read = [None if a is None else Guarded(a, 0) for a in inputs]
    for buffer, array in zip(read, inputs, strict=True):
        if buffer is not None:
            buffer.array[...] = array
    written = [Guarded(a, 0) for a in outputs]
    scratch = Guarded(aligned_empty(n_bytes), 0)
    arrays = [None if buffer is None else buffer.array for buffer in read]
    results = [buffer.array for buffer in written]
    try:
        done = kernel.call(arrays, results, attributes, scratch.array)
    except (ArithmeticError, LookupError, TypeError, ValueError):
        done = False
    for buffer in (*read, *written, scratch):
        if buffer is not None:
            buffer.check()
    return done


@pytest.mark.parametrize(
    "operator",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in OPERATORS else name
        for name in sorted(COMPILED)
        if not is_one_of_many(name)
    ],
)
def test_nothing_is_written_where_shapes_do_not_fit(operator: str) -> None:
    n_accepted = 0
    for inputs, outputs, attributes in calls(operator):
        n_accepted += accepts(operator, inputs, outputs, attributes)
        arrays = [*inputs, *outputs]
        for i, array in enumerate(arrays):
            for shape in others(array.shape) if array is not None else ():
                assert array is not None
                changed = [*arrays[:i], np.resize(array, shape), *arrays[i + 1 :]]
                accepts(operator, changed[: len(inputs)], changed[len(inputs) :], attributes)
    assert n_accepted, "the kernel does none of the calls that fit"
