"""What the kernels of the standard operators rely on, one rule an operator.

onnx's shape inference takes what it needs for the output and lets the rest through: channels, the
length of a bias, an axis that is not there. Kernels take their geometry from some operands and read
the others by it, so all of them are compared here, for every node, whoever wrote it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from bnnopt.ops.index_shapes import (
    cum_sum,
    gather_elements,
    gather_nd,
    scatter_elements,
    scatter_nd,
)
from bnnopt.ops.operands import Operands, Shape, ShapeError
from bnnopt.ops.operator import dims

Rule = Callable[[Operands], None]

_AUTO_PADS = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")


def _window(o: Operands, kernel: Sequence[int]) -> None:
    """Strides, dilations and pads of a window; each output must have room for one."""
    n = len(kernel)
    positive = {"kernel_shape": kernel, "strides": o.ints("strides", [1] * n)}
    positive["dilations"] = o.ints("dilations", [1] * n)
    for name, sizes in positive.items():
        fits = len(sizes) == n and all(size >= 1 for size in sizes)
        o.require(fits, name, list(sizes), f"{n} numbers from 1 on")
    pads = o.ints("pads", [0] * 2 * n)
    fits = len(pads) == 2 * n and all(pad >= 0 for pad in pads)
    o.require(fits, "pads", pads, f"{2 * n} numbers from 0 on")
    auto = o.text("auto_pad", "NOTSET")
    o.require(auto in _AUTO_PADS, "auto_pad", auto, ", ".join(_AUTO_PADS))


def conv(o: Operands) -> None:
    """x (N, C, ...), w (M, C / group, *kernel), bias (M)."""
    o.require_rank(0, 3)
    x, w, group = o.shape(0), o.shape(1), o.number("group", 1)
    o.require_rank(1, len(x), len(x))
    o.require(group >= 1, "group", group, "at least 1")
    channels = f"{x[1]} channels of {o.name(0)} / group {group}"
    o.require(w[1] * group == x[1], f"the shape of {o.name(1)}", w, f"[M, {channels}, ..]")
    o.require(w[0] % group == 0, f"the shape of {o.name(1)}", w, f"a multiple of {group} in front")
    kernel = o.ints("kernel_shape", w[2:])
    o.require(kernel == list(w[2:]), "kernel_shape", kernel, f"{list(w[2:])} as {o.name(1)}")
    o.require_shape(2, w[:1])
    _window(o, kernel)


def conv_transpose(o: Operands) -> None:
    """x (N, C, ...), w (C, M / group, *kernel), bias (M)."""
    o.require_rank(0, 3)
    x, w, group = o.shape(0), o.shape(1), o.number("group", 1)
    o.require_rank(1, len(x), len(x))
    o.require(group >= 1, "group", group, "at least 1")
    o.require(w[0] == x[1], f"the shape of {o.name(1)}", w, f"[{x[1]}, M / group, ..]")
    o.require(w[0] % group == 0, "group", group, f"a divisor of {w[0]}")
    kernel = o.ints("kernel_shape", w[2:])
    o.require(kernel == list(w[2:]), "kernel_shape", kernel, f"{list(w[2:])} as {o.name(1)}")
    o.require_shape(2, (w[1] * group,))
    _window(o, kernel)


def pool(o: Operands) -> None:
    """x (N, C, ...), a kernel with as many axes; no padding that is a window of its own."""
    o.require_rank(0, 3)
    kernel = o.ints("kernel_shape", [])
    n = len(o.shape(0)) - 2
    o.require(len(kernel) == n, "kernel_shape", kernel, f"{n} numbers")
    _window(o, kernel)
    limits = [(k - 1) * d for k, d in zip(kernel, o.ints("dilations", [1] * n), strict=True)]
    pads = o.ints("pads", [0] * 2 * n)
    fits = all(pad <= limit for pad, limit in zip(pads, limits * 2, strict=True))
    o.require(fits, "pads", pads, f"less than a window of {kernel}")
    order = o.number("storage_order", 0)
    o.require(order == 0 or o.n_outputs == 1, "storage_order", order, "0 where indices are read")


def planes(o: Operands) -> None:
    """x (N, C, ...)."""
    o.require_rank(0, 3)


def gemm(o: Operands) -> None:
    """a (M, K), b (K, N), either transposed; c stretches to (M, N)."""
    for index in (0, 1):
        o.require_rank(index, 2, 2)
    a = o.shape(0)[:: -1 if o.number("transA", 0) else 1]
    b = o.shape(1)[:: -1 if o.number("transB", 0) else 1]
    o.require(b[0] == a[1], f"the inner size of {o.name(1)}", b[0], f"{a[1]} as of {o.name(0)}")
    _require_stretches(o, 2, (a[0], b[1]))


def matmul(o: Operands) -> None:
    """a (..., M, K), b (..., K, N); batch axes stretch."""
    for index in (0, 1):
        o.require_rank(index, 1)
    a, b = o.shape(0), o.shape(1)
    inner = b[-2] if len(b) > 1 else b[0]
    o.require(inner == a[-1], f"the inner size of {o.name(1)}", inner, f"{a[-1]} as {o.name(0)}")
    _require_broadcast(o, [a[:-2], b[:-2]])


def batch_normalization(o: Operands) -> None:
    """x (N, C, ...) and four vectors of C."""
    o.require_rank(0, 2)
    for index in range(1, 5):
        o.require_shape(index, o.shape(0)[1:2])


def prelu(o: Operands) -> None:
    """x, and a slope that stretches to it."""
    _require_stretches(o, 1, o.shape(0))


def broadcast(o: Operands) -> None:
    """Inputs that stretch to one another."""
    _require_broadcast(o, [o.shape(i) for i in range(o.n_inputs) if o.has(i)])


def _require_broadcast(o: Operands, shapes: Sequence[Shape]) -> None:
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        names = " and ".join(str(list(shape)) for shape in shapes)
        raise ShapeError(f"shapes are {names}, expected such that stretch to one another") from None


def _require_stretches(o: Operands, index: int, target: Shape) -> None:
    """An optional input that stretches to a shape, and not that to it."""
    if not o.has(index):
        return
    shape = o.shape(index)
    padded = (1,) * (len(target) - len(shape)) + shape
    fits = len(padded) == len(target) and all(
        d in (1, t) for d, t in zip(padded, target, strict=True)
    )
    what = f"the shape of {o.name(index)}"
    o.require(fits, what, shape, f"one that stretches to {list(target)}")


def transpose(o: Operands) -> None:
    """A permutation of all axes."""
    rank = len(o.shape(0))
    perm = o.ints("perm", range(rank))
    o.require(sorted(perm) == [*range(rank)], "perm", perm, f"each of 0 to {rank - 1} once")


def split(o: Operands) -> None:
    """Sizes from 1 on that add up to the axis."""
    shape, axis = o.shape(0), o.number("axis", 0)
    o.require_axis(axis, len(shape))
    sizes = o.constant(1)
    if sizes is None:
        sizes = [o.output(i)[axis] for i in range(o.n_outputs)]
    fits = len(sizes) == o.n_outputs and all(size >= 1 for size in sizes)
    o.require(fits, "split", sizes, f"{o.n_outputs} sizes from 1 on")
    o.require(sum(sizes) == shape[axis], "the sum of split", sum(sizes), f"{shape[axis]}")


def gather(o: Operands) -> None:
    """Constant indices that the axis has."""
    o.require_rank(0, 1)
    axis = o.number("axis", 0)
    o.require_axis(axis, len(o.shape(0)))
    length = o.shape(0)[axis]
    outside = [i for i in o.constant(1) or [] if not -length <= i < length]
    o.require(not outside, "an index", outside[:1], f"{-length} to {length - 1}")


def reshape(o: Operands) -> None:
    """As many elements as before; at most one size left open."""
    target = o.constant(1)
    if target is not None:
        fits = all(d >= -1 for d in target) and target.count(-1) <= 1
        o.require(fits, "the new shape", target, "sizes, and at most one -1")
    what = f"the number of elements of the new shape {list(o.output())}"
    count = math.prod(o.shape(0))
    o.require(math.prod(o.output()) == count, what, math.prod(o.output()), f"{count} as before")


def concat(o: Operands) -> None:
    """Shapes that differ along the axis only."""
    first, axis = o.shape(0), o.number("axis", 0)
    o.require_axis(axis, len(first))
    axis %= len(first)
    for index in range(1, o.n_inputs):
        shape = o.shape(index)
        rest = (*shape[:axis], *shape[axis + 1 :])
        fits = len(shape) == len(first) and rest == (*first[:axis], *first[axis + 1 :])
        expected = f"{list(first)} but for axis {axis}"
        o.require(fits, f"the shape of {o.name(index)}", shape, expected)


def pad(o: Operands) -> None:
    """Two pads for each axis that is padded; negative ones cut."""
    rank, axes = len(o.shape(0)), o.constant(3)
    o.require_axes(axes or [], rank)
    n = 2 * (rank if axes is None else len(axes))
    pads = o.constant(1)
    o.require(pads is None or len(pads) == n, "pads", pads, f"{n} numbers")


def slice_(o: Operands) -> None:
    """As many starts, ends, axes and steps; no step of 0."""
    rank = len(o.shape(0))
    starts, ends, axes, steps = (o.constant(index) for index in range(1, 5))
    o.require_axes(axes or [], rank)
    n = len(starts or [])
    for name, given in (("ends", ends), ("axes", axes), ("steps", steps)):
        fits = given is None or starts is None or len(given) == n
        o.require(fits, name, given, f"{n} numbers as starts")
    o.require(0 not in (steps or []), "steps", steps, "no 0")


def flatten(o: Operands) -> None:
    """An axis to cut at."""
    o.require_axis(o.number("axis", 1), len(o.shape(0)), past_end=True)


def along_axis(o: Operands) -> None:
    """An axis to go along."""
    o.require_axis(o.number("axis", -1), len(o.shape(0)))


def reduce(o: Operands) -> None:
    """Axes to reduce, each once."""
    o.require_axes(o.constant(1) or o.ints("axes", []), len(o.shape(0)))


def squeeze(o: Operands) -> None:
    """Axes of one element."""
    shape, axes = o.shape(0), o.constant(1) or []
    o.require_axes(axes, len(shape))
    for axis in axes:
        o.require(shape[axis] == 1, f"the length of axis {axis}", shape[axis], "1")


def unsqueeze(o: Operands) -> None:
    """Places of new axes, each once."""
    axes = o.constant(1) or []
    o.require_axes(axes, len(o.shape(0)) + len(axes))


def expand(o: Operands) -> None:
    """A shape that the input stretches with."""
    target = o.constant(1)
    if target is not None:
        o.require(all(d >= 1 for d in target), "the new shape", target, "sizes from 1 on")
        _require_broadcast(o, [o.shape(0), tuple(target)])


def scalars(o: Operands) -> None:
    """Bounds, or a ratio and a mode, of one element each."""
    for index in range(1, o.n_inputs):
        if o.has(index):
            shape = o.shape(index)
            o.require(math.prod(shape) == 1, f"the shape of {o.name(index)}", shape, "one number")


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow", "Where", "Max", "Min", "Sum"), broadcast),
    **dict.fromkeys(("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"), broadcast),
    **dict.fromkeys(("And", "Or", "Xor", "Mean", "Mod"), broadcast),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1"), reduce),
    **dict.fromkeys(("ReduceL2", "ReduceMax", "ReduceMin", "ReduceProd"), reduce),
    "AveragePool": pool,
    "BatchNormalization": batch_normalization,
    "Clip": scalars,
    "Concat": concat,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "CumSum": cum_sum,
    "Dropout": scalars,
    "Expand": expand,
    "Flatten": flatten,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "Gemm": gemm,
    "GlobalAveragePool": planes,
    "GlobalMaxPool": planes,
    "LogSoftmax": along_axis,
    "MatMul": matmul,
    "MaxPool": pool,
    "PRelu": prelu,
    "Pad": pad,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "Slice": slice_,
    "Softmax": along_axis,
    "Squeeze": squeeze,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
"""By operator, what its inputs must be. The others take what onnx's inference lets through."""

OUTPUT_RULES: Mapping[str, Rule] = {"Reshape": reshape, "Split": split}
"""By operator, how the outputs that were inferred must fit the inputs."""


SWITCHES = frozenset(
    {"allowzero", "ceil_mode", "count_include_pad", "exclusive", "keepdims", "noop_with_empty_axes"}
    | {"reverse", "select_last_index", "storage_order", "training_mode", "transA", "transB"}
)
"""Attributes that are 0 or 1; what another number means depends on who reads it."""


def check_inputs(node: ir.Node) -> None:
    """Compare what a node of the standard domain reads.

    Raises
    ------
    ShapeError
        Saying what was found and what was expected.
    """
    for name in SWITCHES & node.attributes.keys():
        found = node.attributes[name].value
        if found not in (0, 1):
            raise ShapeError(f"{name} is {found!r}, expected 0 or 1")
    if node.op_type in RULES and _are_static(node.inputs):
        try:
            RULES[node.op_type](Operands(node))
        except TypeError as error:  # an attribute of another type
            raise ShapeError(str(error)) from None


def check_outputs(node: ir.Node) -> None:
    """Compare what was inferred for the outputs of a node with what it reads.

    Raises
    ------
    ShapeError
        Saying what was found and what was expected.
    """
    outputs = [output for output in node.outputs if output.name]
    if not _are_static([*node.inputs, *outputs]):
        return
    if node.op_type in OUTPUT_RULES:
        OUTPUT_RULES[node.op_type](Operands(node))
    for output in outputs:
        if min(dims(output), default=1) < 1:
            found = f"the shape of {output.name!r} is {list(dims(output))}"
            raise ShapeError(f"{found}, expected no axis shorter than 1")


def _are_static(values: Sequence[ir.Value | None]) -> bool:
    return all(v is None or (v.shape is not None and v.shape.is_static()) for v in values)
