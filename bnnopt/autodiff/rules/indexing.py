"""Operators that pick and put elements by indices, which may depend on the data."""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.autodiff.context import Context, UnknownInput
from bnnopt.autodiff.rules import Grads


def gather_elements(g: Context) -> Grads:
    """Forward: y = x at an index along an axis. Backward: dx = dy added up at those places."""
    return {0: _put(g, g.x(1), g.dy, g.int_attribute("axis", 0))}


def scatter_elements(g: Context) -> Grads:
    """Forward: y = x with u put in, or added. Backward: du = dy there, dx = dy elsewhere."""
    axis = g.int_attribute("axis", 0)
    grads = {2: g.emit("GatherElements", g.dy, g.x(1), axis=axis)} if 2 in g.wanted else {}
    if 0 in g.wanted:
        nil = g.zeros_like(g.x(2))
        kept = not _adds(g)
        grads[0] = g.emit("ScatterElements", g.dy, g.x(1), nil, axis=axis) if kept else g.dy
    return grads


def gather_nd(g: Context) -> Grads:
    """Forward: y = slices of x. Backward: dx = dy added up at those places."""
    if g.int_attribute("batch_dims", 0):
        raise UnknownInput("batch_dims above 0")
    nil = g.zeros_like(g.x())
    return {0: g.emit("ScatterND", nil, g.x(1), g.dy, reduction="add")}


def scatter_nd(g: Context) -> Grads:
    """Forward: y = x with slices u put in, or added. Backward: du = dy there, dx = dy elsewhere."""
    grads = {2: g.emit("GatherND", g.dy, g.x(1))} if 2 in g.wanted else {}
    if 0 in g.wanted:
        nil = g.zeros_like(g.x(2))
        grads[0] = g.dy if _adds(g) else g.emit("ScatterND", g.dy, g.x(1), nil)
    return grads


def top_k(g: Context) -> Grads:
    """Forward: y, i = the largest of x along an axis, and where. Backward: dx = dy at i."""
    return {0: _put(g, g.y(1), g.dy, g.int_attribute("axis", -1))}


def trilu(g: Context) -> Grads:
    """Forward: y = a triangle of x, 0 elsewhere. Backward: dx = that of dy."""
    diagonal = g.node.inputs[1] if len(g.node.inputs) > 1 else None
    return {0: g.emit("Trilu", g.dy, diagonal, upper=g.int_attribute("upper", 1))}


def _put(g: Context, indices: ir.Value, dy: ir.Value, axis: int) -> ir.Value:
    nil = g.zeros_like(g.x())
    return g.emit("ScatterElements", nil, indices, dy, axis=axis, reduction="add")


def _adds(g: Context) -> bool:
    found = g.node.attributes.get("reduction")
    reduction = "none" if found is None else found.as_string()
    if reduction not in ("none", "add"):
        raise UnknownInput(f"reduction {reduction!r}: expected none or add")
    return reduction == "add"
