"""Matrix products."""

from __future__ import annotations

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.formulas import row_blocks
from bnnopt.runtime.kernels.reference.kernel import NumpyKernel
from bnnopt.runtime.kernels.reference.parts import OUT


def matmul(a: Array, b: Array, *, out: Array | None = None) -> Array:
    """Matrix product of the last two axes, the others broadcast; written to `out` if given.

    Where all of a stack go with one matrix, that is one product.
    """
    if a.ndim > 2 and b.ndim == 2 and a.flags.c_contiguous and a.size:
        rows = a.reshape(-1, a.shape[-1])
        flat = None if out is None else out.reshape(-1, b.shape[1])
        return np.matmul(rows, b, out=flat).reshape(*a.shape[:-1], b.shape[1])
    return np.asarray(np.matmul(a, b, out=out))


def dense_weight_grad(a: Array, b: Array, *, out: Array | None = None) -> Array:
    """Compute a^T b, the weight gradient of a dense layer; written to `out` if given.

    Parameters
    ----------
    a : (N, M)
    b : (N, K)
    out : (M, K), optional
    """
    result = np.empty((a.shape[1], b.shape[1]), a.dtype) if out is None else out
    for rows in row_blocks(*result.shape):
        np.matmul(a[:, rows].T, b, out=result[rows])
    return result


def gemm(
    a: Array,
    b: Array,
    c: Array | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    out: Array | None = None,
) -> Array:
    """Compute alpha a b + beta c.

    Parameters
    ----------
    a : (M, K), or (K, M) if `transA`
    b : (K, N), or (N, K) if `transB`
    c : broadcasts to (M, N), optional
    out : (M, N), optional
        Where to write the result.
    """
    if transA and not transB:
        y = dense_weight_grad(a, b, out=out)
    else:
        y = np.asarray(np.matmul(a.T if transA else a, b.T if transB else b, out=out))
    if alpha != 1:
        y *= a.dtype.type(alpha)
    if c is not None:
        y += c if beta == 1 else np.asarray(c * beta).astype(a.dtype, copy=False)
    return y


def matmul_integer(
    a: Array,
    b: Array,
    a_zero_point: Array | None = None,
    b_zero_point: Array | None = None,
) -> Array:
    """Matrix product of 8-bit integers less their zero points, in int32.

    Parameters
    ----------
    a : (..., M, K) int8 or uint8
    b : (..., K, N) int8 or uint8
    a_zero_point : one value, (M,) or (..., M, 1), optional
    b_zero_point : one value, (N,) or (..., 1, N), optional
    """
    a, b = a.astype(np.int32), b.astype(np.int32)
    if a_zero_point is not None:
        per_row = a_zero_point.ndim == 1 and a_zero_point.size > 1
        a -= a_zero_point[:, None] if per_row else a_zero_point
    if b_zero_point is not None:
        b -= b_zero_point
    return np.asarray(np.matmul(a, b))


KERNELS: dict[str, NumpyKernel] = {
    "Gemm": NumpyKernel(gemm, OUT),
    "MatMul": NumpyKernel(matmul, OUT),
    "MatMulInteger": NumpyKernel(matmul_integer),
}
