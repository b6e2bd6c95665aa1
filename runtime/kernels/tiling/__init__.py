"""How the compiled binary products are cut into tiles, and the scratch memory that this needs.

`shapes` has what is cut; `convolution`, `depthwise` and `dense` the ways to cut it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

from bnnopt.runtime.kernels.tiling import convolution, dense, depthwise
from bnnopt.runtime.kernels.tiling.shapes import (
    LANES,
    STRINGS,
    TABLES_BYTES,
    TERMS,
    Attributes,
    Convolution,
    Dense,
    Memory,
    Shape,
    convolution_of,
    dense_of,
    ints,
    up,
)

__all__ = [
    "LANES",
    "STRINGS",
    "TABLES_BYTES",
    "TERMS",
    "WITH_UNIT",
    "Convolution",
    "Dense",
    "scratch_bytes",
    "tiling",
]

MAX_TAPS = 4096  # larger kernels are left to numpy
MAX_COUNT = 65535  # of differing bits
WITH_UNIT = "Pow2", "Int8", "Int4"  # ends of the names of products that read a unit behind dy
OF_INTEGERS = WITH_UNIT[1:]

Tiling = Convolution | Dense
_T = TypeVar("_T", Convolution, Dense)


class _Way(NamedTuple, Generic[_T]):
    """How a product is cut, and the memory of a cut; where it is another, that for integers."""

    cut: Callable[[_T, Attributes], _T]
    memory: Callable[[_T], Memory]
    of_integers: Callable[[_T], Memory] | None = None


_CONVOLUTIONS: Mapping[str, _Way[Convolution]] = {
    "BinaryConv": _Way(convolution.forward, convolution.forward_memory),
    "BinaryConvInputGrad": _Way(convolution.input_grad, convolution.input_grad_memory),
    "BinaryConvWeightGrad": _Way(
        convolution.weight_grad,
        convolution.weight_grad_memory,
        convolution.weight_grad_of_integers,
    ),
    "BinaryConvWeightGradSigns": _Way(
        convolution.weight_grad_signs,
        convolution.weight_grad_signs_memory,
        convolution.weight_grad_signs_of_integers,
    ),
}
_DEPTHWISE: Mapping[str, _Way[Convolution]] = {
    "BinaryConv": _Way(depthwise.of_y, depthwise.of_y_memory),
    "BinaryConvInputGrad": _Way(depthwise.of_dx, depthwise.of_dx_memory),
    "BinaryConvWeightGrad": _Way(depthwise.of_y, depthwise.of_y_memory),
    "BinaryConvWeightGradSigns": _Way(depthwise.of_y, depthwise.of_y_memory),
}
_DENSE: Mapping[str, _Way[Dense]] = {
    "BinaryGemm": _Way(dense.forward, dense.forward_memory),
    "BinaryGemmInputGrad": _Way(dense.input_grad, dense.rounded_memory, dense.rounded_of_integers),
    "BinaryGemmWeightGrad": _Way(dense.weight_grad, dense.sums_memory, dense.sums_of_integers),
    "BinaryGemmWeightGradSigns": _Way(
        dense.weight_grad, dense.rounded_memory, dense.rounded_of_integers
    ),
}


def tiling(
    op: str,
    input_shapes: Sequence[Shape],
    output_shapes: Sequence[Shape],
    attributes: Attributes,
) -> Tiling | None:
    """How the compiled kernel of `op` is cut; None where it leaves the work to numpy."""
    op, input_shapes = _of_floats(op, input_shapes, attributes)
    if any(0 in shape for shape in (*input_shapes, *output_shapes)):
        return None
    if op in _DENSE:
        sizes = dense_of(op, input_shapes, output_shapes[0], attributes)
        d = _DENSE[op].cut(sizes, attributes)
        return d if op != "BinaryGemm" or d.chunk <= MAX_COUNT else None
    if len(ints(attributes, "strides")) > 2:
        return None
    geometry = convolution_of(op, input_shapes, output_shapes[0], attributes)
    g = _way(op, geometry).cut(geometry, attributes)
    is_counted = op != "BinaryConv" or g.channels * g.taps <= MAX_COUNT  # 0 channels of planes
    return g if g.taps <= MAX_TAPS and is_counted else None


def _way(op: str, g: Convolution) -> _Way[Convolution]:
    return (_DEPTHWISE if g.is_depthwise else _CONVOLUTIONS)[op]


def scratch_bytes(
    op: str,
    input_shapes: Sequence[Shape],
    output_shapes: Sequence[Shape],
    attributes: Attributes,
    n_threads: int,
    overwritten_bytes: int = 0,
) -> int | None:
    """Bytes of scratch that the compiled kernel of a binary product needs; None if not covered.

    Parameters
    ----------
    op : str
        ``BinaryConv``, ``BinaryGemm`` or one of their gradients.
    input_shapes, output_shapes : sequences of shapes
        As the operator's arrays have them, packed ones in bytes. A smaller batch needs no more.
    attributes : mapping
        The operator's own.
    n_threads : int
        Threads that the kernels will use, at most.
    overwritten_bytes : int
        Of the input that the output is written over; 0 if it has memory of its own.
    """
    g = tiling(op, input_shapes, output_shapes, attributes)
    if g is None:
        return None
    memory, copied = _memory(op, g), 0
    if isinstance(g, Convolution):
        copied = overwritten_bytes // g.n * g.staged
    elif _stem(op) != "BinaryGemm":
        n_threads = dense.threads_of_gradient(g, n_threads)
    shares = sum(up(share, 64) for share in memory.shares)
    return up(memory.shared, 64) + up(copied, 64) + n_threads * shares


def _memory(op: str, g: Tiling) -> Memory:
    stem, is_whole = _stem(op), op.endswith(OF_INTEGERS)
    if isinstance(g, Dense):
        return _of_way(_DENSE[stem], g, is_whole)
    return _of_way(_way(stem, g), g, is_whole)


def _of_way(way: _Way[_T], g: _T, is_whole: bool) -> Memory:
    of_integers = way.of_integers if is_whole else None
    return (of_integers or way.memory)(g)


def _stem(op: str) -> str:
    """The product of a dy of floats."""
    end = next((end for end in WITH_UNIT if op.endswith(end)), "")
    return op.removesuffix(end)


def _of_floats(
    op: str, input_shapes: Sequence[Shape], attributes: Attributes
) -> tuple[str, Sequence[Shape]]:
    """The product, and its input shapes, of a dy that has a unit behind it, and may be packed."""
    stem = _stem(op)
    if stem == op:
        return op, input_shapes
    dy = 0 if "InputGrad" in op else 1
    shape = list(input_shapes[dy])
    if "dy_shape" in attributes:
        shape[1:] = ints(attributes, "dy_shape")
    return stem, [*input_shapes[:dy], shape, *input_shapes[dy + 2 :]]
