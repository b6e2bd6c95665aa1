"""Operators that move, cut and pick elements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from bnnopt.autodiff.context import Context, UnknownInput
from bnnopt.autodiff.rules import Grads
from bnnopt.ops import dims


def same_elements(g: Context) -> Grads:
    """Forward: y = x under another shape. Backward: dx = dy under the shape of x."""
    return {0: g.reshape_like(g.dy, g.x())}


def shape_alone(g: Context) -> Grads:
    """Forward: y has the shape of x, and reads none of it. Backward: nothing."""
    return {}


def squeeze(g: Context) -> Grads:
    """Forward: y = x without some axes of length 1. Backward: dx = dy with them."""
    axes = [axis for axis, size in enumerate(dims(g.x())) if size == 1]
    given = g.known(1)
    if given is not None:
        axes = sorted(int(axis) % len(dims(g.x())) for axis in given.flat)
    return {0: g.emit("Unsqueeze", g.dy, g.integers(axes)) if axes else g.dy}


def unsqueeze(g: Context) -> Grads:
    """Forward: y = x with new axes of length 1. Backward: dx = dy without them."""
    return {0: g.emit("Squeeze", g.dy, g.x(1))}


def transpose(g: Context) -> Grads:
    """Forward: y = x with its axes permuted. Backward: dx = dy permuted back."""
    rank = len(dims(g.x()))
    attribute = g.node.attributes.get("perm")
    perm = list(attribute.as_ints()) if attribute else list(reversed(range(rank)))
    return {0: g.emit("Transpose", g.dy, perm=[int(i) for i in np.argsort(perm)])}


def expand(g: Context) -> Grads:
    """Forward: y = x broadcast. Backward: dx = dy summed over the broadcast axes."""
    return {0: g.unbroadcast(g.dy, g.x())}


def concat(g: Context) -> Grads:
    """Forward: y = [a, b, ..]. Backward: the pieces of dy."""
    axis = g.int_attribute("axis", 0)
    sizes = [dims(g.x(i))[axis] for i in range(len(g.node.inputs))]
    name, n = f"{g.y().name}.grad", len(sizes)
    return g.gradients("Split", g.dy, g.integers(sizes), n_outputs=n, name=name, axis=axis)


def split(g: Context) -> Grads:
    """Forward: the pieces of x. Backward: dx = their gradients joined."""
    pairs = zip(g.output_grads, g.node.outputs, strict=True)
    pieces = [grad if grad is not None else g.zeros_like(output) for grad, output in pairs]
    return {0: g.emit("Concat", *pieces, axis=g.int_attribute("axis", 0))}


def slice_(g: Context) -> Grads:
    """Forward: y = x[start:end:step]. Backward: dx = dy at those places, 0 elsewhere."""
    rank = len(dims(g.x()))
    starts, ends, axes, steps = (g.known(i) for i in (1, 2, 3, 4))
    assert starts is not None
    assert ends is not None
    along = range(len(starts)) if axes is None else [int(a) % rank for a in axes]
    strides = [1] * len(starts) if steps is None else [int(s) for s in steps]
    grad = g.dy
    for axis, start, end, step in zip(along, starts, ends, strides, strict=True):
        length = dims(g.x())[axis]
        first = max(int(start), -length)  # ONNX clamps where Python finds nothing
        picked = range(length)[first : int(end) : step]
        grad = _scatter(g, grad, axis, picked, length)
    return {0: grad}


def gather(g: Context) -> Grads:
    """Forward: y = x at indices of an axis. Backward: dx = dy added up at those places."""
    axis = g.int_attribute("axis", 0) % len(dims(g.x()))
    length = dims(g.x())[axis]
    indices = g.x(1).const_value
    if indices is not None and indices.shape.rank() < 2:
        picked = [int(i) % length for i in indices.numpy().flat]
        if len(set(picked)) == len(picked):
            grad = g.dy if indices.shape.rank() else g.emit("Unsqueeze", g.dy, g.integers([axis]))
            return {0: _scatter(g, grad, axis, picked, length)}
    return {0: g.emit("GatherGrad", g.dy, g.x(1), axis=axis, length=length)}


def _scatter(g: Context, grad: ir.Value, axis: int, picked: Sequence[int], length: int) -> ir.Value:
    """`grad` at positions `picked` of an axis of `length`, zeros between."""
    if picked and list(picked) == list(range(picked[0], picked[-1] + 1)):
        before, after = picked[0], length - picked[-1] - 1
        if before == after == 0:
            return grad
        return _pad_axis(g, grad, axis, before, after)
    n = len(picked)
    places = np.full(length, n, np.int64)
    places[list(picked)] = np.arange(n)
    padded = _pad_axis(g, grad, axis, 0, 1)
    index = g.backward.constant(places, np.int64, "places")
    return g.emit("Gather", padded, index, axis=axis)


def _pad_axis(g: Context, value: ir.Value, axis: int, before: int, after: int) -> ir.Value:
    rank = len(dims(value))
    pads = [0] * (2 * rank)
    pads[axis], pads[rank + axis] = before, after
    return g.emit("Pad", value, g.integers(pads))


def pad(g: Context) -> Grads:
    """Forward: y = x with a constant border. Backward: dx = dy without the border."""
    mode = g.node.attributes.get("mode")
    if mode is not None and mode.as_string() != "constant":
        raise UnknownInput(f"mode {mode.as_string()!r}: only constant padding has a gradient rule")
    pads, axes, rank = g.known(1), g.known(3), len(dims(g.x()))
    assert pads is not None
    along = range(rank) if axes is None else [int(a) % rank for a in axes]
    grad = g.dy
    for axis, begin, end in zip(along, *np.split(pads.astype(int), 2), strict=True):
        grad = _cut_axis(g, grad, axis, int(begin), int(end))
    return {0: grad}


def _cut_axis(g: Context, value: ir.Value, axis: int, begin: int, end: int) -> ir.Value:
    """Undo padding of one axis by `begin` and `end`; a negative one has cut, so zeros come back."""
    if begin > 0 or end > 0:
        stop = dims(value)[axis] - max(end, 0)
        places = [g.integers([at]) for at in (max(begin, 0), stop, axis)]
        value = g.emit("Slice", value, *places)
    if begin < 0 or end < 0:
        value = _pad_axis(g, value, axis, max(-begin, 0), max(-end, 0))
    return value
