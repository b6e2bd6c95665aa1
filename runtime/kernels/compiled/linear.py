"""Dense layers of real numbers.

Where the bits have to be those of any machine (`library.is_portable`) a plain loop makes their
products. A weight gradient is made block by block; in a step of weights each is taken at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled import elementwise
from bnnopt.runtime.kernels.compiled.calls import (
    Arrays,
    Attributes,
    check_finite,
    covered,
    integer,
    is_half,
    number,
    optional,
)
from bnnopt.runtime.kernels.compiled.elementwise import function_of
from bnnopt.runtime.kernels.compiled.functions import Argument, CFunction, again
from bnnopt.runtime.kernels.compiled.kernel import CompiledKernel, Sizes
from bnnopt.runtime.kernels.compiled.optimizers import (
    BOP,
    FORMS,
    OPTIMIZER_STEP,
    make_update,
)
from bnnopt.runtime.kernels.formulas import row_blocks, rows_at_a_time
from bnnopt.runtime.kernels.on_read import Halves, Images
from bnnopt.runtime.library import is_portable

GEMM = CFunction("void bnn_gemm_f32f32f32(float*, void*, i64, float*, i64*, i64, i64, i64, i64)")
PORTABLE_GEMM = CFunction("void bnn_gemm_f32(float*, void*, i64, float*, i64*, i64, i64, i64, i64)")
IMAGES_GEMM = CFunction(
    "void bnn_gemm_u8f32f32(float*, void*, i64, float*, i64*, i64, i64, i64, i64, uint8_t*, i64, "
    "float*, float*, i64, i64)"
)
PORTABLE_IMAGES_GEMM = CFunction(
    "void bnn_gemm_u8f32(float*, void*, i64, float*, i64*, i64, i64, i64, i64, uint8_t*, i64, "
    "float*, float*, i64, i64)"
)

Shape = Sequence[int]

STEPS: list[str] = [  # those of real weights, by what is no bit
    step for step, form in FORMS.items() if not (form.of_signs or form.rule == BOP)
]


def gemm(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`linear.gemm`."""
    (a, b), c, y = inputs[:2], optional(inputs, 2), outputs[0]
    options = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0, **attributes}
    alpha, beta = number(options, "alpha"), number(options, "beta")
    if not (_are_matrices(a, b) and covered(y)) or alpha != 1:
        return False
    if c is not None and (not covered(c) or c.size == 1 or beta != 1):
        return False
    assert a is not None
    assert b is not None
    assert y is not None
    if integer(options, "transA") and not integer(options, "transB"):
        for rows in row_blocks(*y.shape):
            _multiply(a[:, rows].T, b, y[rows])
    else:
        a = a.T if integer(options, "transA") else a
        _multiply(a, b.T if integer(options, "transB") else b, y)
    if c is not None and c.shape == y.shape[1:]:
        return function_of("add", "stretched_f32")(y, c, y, *y.shape, 1)
    return c is None or elementwise.add([y, c], [y], {}, scratch)


def matmul(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`linear.matmul` of matrices, or of stacks of them that are equal or one of which is one."""
    (a, b), y = inputs, outputs[0]
    if not (_are_matrices(a, b) and covered(y)):
        return False
    assert a is not None
    assert b is not None
    assert y is not None
    if min(a.ndim, b.ndim) < 2:
        return False
    if b.ndim == 2:  # then it goes with the rows of all
        (k, n), n_rows = b.shape, math.prod(a.shape[:-1])
        a, y = a.reshape(n_rows, k), y.reshape(n_rows, n)
    stacks = {x.shape[:-2] for x in (a, b) if math.prod(x.shape[:-2]) > 1}
    if len(stacks) <= 1:
        _multiply(a, b, y)
    return len(stacks) <= 1


def _multiply(a: Array, b: Array, y: Array) -> None:
    """y = a b, (..., M, K) times (..., K, N) of any strides; one may go with each of a stack."""
    batches = math.prod(y.shape[:-2])
    strides = [
        n_bytes // x.itemsize for x in (a, b) for n_bytes in (_batch_bytes(x), *x.strides[-2:])
    ]
    left, right = (None if isinstance(x, Images) else x for x in (a, b))
    sizes = (strides, batches, *y.shape[-2:], a.shape[-1])
    operands: tuple[Argument, ...] = (left, right, is_half(right), y, *sizes)
    for x in (a, b):
        if isinstance(x, Images):
            function = PORTABLE_IMAGES_GEMM if is_portable() else IMAGES_GEMM
            function(*operands, *_images(x))
            return
    function = PORTABLE_GEMM if is_portable() else GEMM
    function(*operands)


def _images(x: Images) -> tuple[Argument, ...]:
    """All of the images of which x is a part, and where it begins."""
    whole = x.whole
    first = x.ctypes.data - whole.ctypes.data
    return (whole, first, x.factor, x.shift, x.factor.size, x.plane)


def _are_matrices(a: Array | None, b: Array | None) -> bool:
    """Whether both are matrices that C can read: one of them images perhaps, and b halves."""
    n_images = sum(isinstance(x, Images) and covered(x, dtype=np.uint8) for x in (a, b))
    is_b = isinstance(b, Halves) and covered(b, dtype=np.float16)
    n_others = sum(covered(x) for x in (a, b)) + is_b
    return n_images + n_others == 2 and n_images < 2


def _batch_bytes(x: Array) -> int:
    """From one matrix of a contiguous stack to the next."""
    return math.prod(x.shape[-2:]) * x.itemsize if math.prod(x.shape[:-2]) > 1 else 0


def fused_step(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array, *, step: str
) -> bool:
    """`updates.FusedStep` of a Gemm; each output but the last may be the input that it replaces."""
    w, a, b, dw = *inputs[:3], outputs[-1]
    if w is None or a is None or b is None or not _are_matrices(a, b):
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
        block = [_rows_of(array, rows) for array in (w, None, *rest)]
        results = [_rows_of(array, rows) for array in replaced]
        update = make_update(step, block, results, attributes, rows.start * w.shape[1])
        if update is None:
            return False
        tile = scratch.view(np.float32)[: (rows.stop - rows.start) * w.shape[1]]
        _multiply(a[:, rows].T, b, tile.reshape(-1, w.shape[1]))
        if dw is not None:
            update.dw = dw[rows].ctypes.data
        OPTIMIZER_STEP(update, None, tile, None)
        again(check_finite)
    return True


def _rows_of(array: Array | None, rows: slice) -> Array | None:
    """Those rows, where the array has what the weights have by rows; else what it is."""
    return array[rows] if array is not None and array.ndim == 2 else array


def scratch_bytes(w: Shape) -> int:
    """Bytes of the largest block of the gradient of weights of this shape; a multiple of 64."""
    n_rows, row = w
    n_bytes = 4 * row * min(n_rows, rows_at_a_time(row))
    return n_bytes + -n_bytes % 64


def _reads_halves(sizes: Sizes) -> frozenset[int]:
    """The second matrix: weights in the forward pass, and for the gradient of its input."""
    options = {"transA": 0, "alpha": 1.0, "beta": 1.0, **sizes.attributes}
    is_covered = options["transA"] == 0 and options["alpha"] == options["beta"] == 1.0
    is_bias = all(math.prod(shape) > 1 for shape in sizes.inputs[2:])
    return frozenset({1} if is_covered and is_bias else ())


def _matmul_reads_halves(sizes: Sizes) -> frozenset[int]:
    return frozenset({1} if len(sizes.inputs[1]) == 2 and len(sizes.inputs[0]) > 1 else ())


def _no_scratch(sizes: Sizes) -> int:
    """Panels and tiles lie on the stack: their size does not depend on the shapes."""
    return 0


def _reads_bytes(sizes: Sizes) -> frozenset[int]:
    """Images as the first matrix, or as the second of a weight gradient: rows lie side by side."""
    turned = [bool(sizes.attributes.get(name, 0)) for name in ("transA", "transB")]
    if sizes.attributes.get("alpha", 1.0) != 1.0 or all(turned):
        return frozenset()
    return frozenset({0, 1} if turned[0] else {0})


def _matmul_reads_bytes(sizes: Sizes) -> frozenset[int]:
    return frozenset({0} if len(sizes.inputs[1]) == 2 else ())


KERNELS: dict[str, CompiledKernel] = {
    "Gemm": CompiledKernel(
        gemm,
        _no_scratch,
        repeatable=True,
        reads_bytes=_reads_bytes,
        reads_halves=_reads_halves,
    ),
    "MatMul": CompiledKernel(
        matmul,
        _no_scratch,
        repeatable=True,
        reads_bytes=_matmul_reads_bytes,
        reads_halves=_matmul_reads_halves,
    ),
    **{
        f"Gemm{step}": CompiledKernel(
            partial(fused_step, step=step),
            lambda sizes: scratch_bytes(sizes.inputs[0]),
            repeatable=True,
            reads_bytes=lambda sizes: frozenset({1, 2}),
        )
        for step in STEPS
    },
}
