"""The gradient of picking by indices."""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.ops.operator import Operator, TypedDims, dims, dtype


def _gather_grad(node: ir.Node) -> list[TypedDims]:
    dy, indices = (dims(value) for value in node.inputs)
    axis, length = (node.attributes[name].as_int() for name in ("axis", "length"))
    shape = (*dy[:axis], length, *dy[axis + len(indices) :])
    return [(dtype(node.inputs[0]), shape)]


GATHER_GRAD = Operator(
    summary="""dx of y = Gather(x, indices): dy added up at the indices along an axis, 0 elsewhere.

    dy: (*before, *picked, *behind) float. indices: (*picked) int32 or int64, negative ones count
    from the end. dx: (*before, length, *behind), of dy's type; `axis`, from 0 on, is the number of
    axes before. The terms of an element are added in the order of the indices.
    """,
    signature="GatherGrad <axis, length> (dy, indices) => (dx)",
    body="""
        none = Constant <value_ints = [0]> ()
        one = Constant <value_ints = [1]> ()
        rest = Constant <value_ints = [-1]> ()
        axis_value = Constant <value_int: int = @axis> ()
        axis_list = Reshape (axis_value, one)
        length_value = Constant <value_int: int = @length> ()
        length_list = Reshape (length_value, one)
        dy_shape = Shape (dy)
        fenced = Concat <axis = 0> (one, dy_shape, one)
        n_fenced = Shape (fenced)
        picked_shape = Shape (indices)
        picked_rank = Shape (picked_shape)
        first = Add (axis_list, one)
        last = Add (first, picked_rank)
        before = Slice (fenced, none, first, none)
        behind = Slice (fenced, last, n_fenced, none)
        n_before = ReduceProd <keepdims = 1> (before, none)
        n_behind = ReduceProd <keepdims = 1> (behind, none)
        column = Concat <axis = 0> (one, rest, one)
        flat_indices = Reshape (indices, column)
        n_picked = Size (indices)
        n_picked_list = Reshape (n_picked, one)
        flat_shape = Concat <axis = 0> (n_before, n_picked_list, n_behind)
        all_indices = Expand (flat_indices, flat_shape)
        flat_dy = Reshape (dy, flat_shape)
        nil = Constant <value_float = 0.0> ()
        nil_like = CastLike (nil, dy)
        empty_shape = Concat <axis = 0> (n_before, length_list, n_behind)
        empty = Expand (nil_like, empty_shape)
        added = ScatterElements <axis = 1, reduction = "add"> (empty, all_indices, flat_dy)
        fenced_dx_shape = Concat <axis = 0> (before, length_list, behind)
        fenced_dx = Reshape (added, fenced_dx_shape)
        fences = Concat <axis = 0> (none, rest)
        dx = Squeeze (fenced_dx, fences)
    """,
    type_rule=_gather_grad,
)

OPERATORS = (GATHER_GRAD,)
