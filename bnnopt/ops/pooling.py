"""Max pooling that keeps places of a few bits, and the gradients of max and average pooling."""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.ops.operator import Form, Operator, TypedDims, dims, dtype, ints, packed_row_bytes


def _pool_grad(node: ir.Node) -> list[TypedDims]:
    n, channels = dims(node.inputs[0])[:2]
    return [(dtype(node.inputs[0]), (n, channels, *ints(node, "input_shape")))]


def _packed_max_pool(node: ir.Node) -> list[TypedDims]:
    x, origin = node.inputs
    shape = (*dims(x)[:2], *dims(origin))
    n_bytes = packed_row_bytes(shape, len(ints(node, "bit_values")))
    return [(dtype(x), shape), (ir.DataType.UINT8, (shape[0], n_bytes))]


AVERAGE_POOL_GRAD = Operator(
    summary="""dx of y = AveragePool(x): dy / counts, added up over the windows of each element.

    dy: (N, C, *output) float. counts: (1, 1, *output) float, what each window divides by. dx: (N,
    C, *input_shape), of dy's type; the sums are in that of counts. The other attributes are those
    of ConvInputGrad, of one channel and a kernel of ones.
    """,
    signature=(
        "AveragePoolGrad <input_shape, kernel_shape, strides, pads, dilations, output_padding>"
        " (dy, counts) => (dx)"
    ),
    body="""
        one = Constant <value_ints = [1]> ()
        minus = Constant <value_ints = [-1]> ()
        dy_wide = CastLike (dy, counts)
        share = Div (dy_wide, counts)
        space = Shape <start = 2> (dy)
        planes_shape = Concat <axis = 0> (minus, one, space)
        planes = Reshape (share, planes_shape)
        kernel = Constant <value_ints: ints = @kernel_shape> ()
        w_shape = Concat <axis = 0> (one, one, kernel)
        one_float = CastLike (one, counts)
        w = Expand (one_float, w_shape)
        spread = ConvTranspose <
            strides: ints = @strides, pads: ints = @pads, dilations: ints = @dilations,
            output_padding: ints = @output_padding
        > (planes, w)
        channels = Shape <start = 0, end = 2> (dy)
        x_space = Constant <value_ints: ints = @input_shape> ()
        dx_shape = Concat <axis = 0> (channels, x_space)
        dx_wide = Reshape (spread, dx_shape)
        dx = CastLike (dx_wide, dy)
    """,
    type_rule=_pool_grad,
)

MAX_POOL_GRAD = Operator(
    summary="""dx of y, indices = MaxPool(x): dy added up at the indices, 0 elsewhere.

    dy: (N, C, *output) float. indices: the same shape, int64, into the whole input.
    dx: (N, C, *input_shape), of dy's type. Windows may overlap; the sums are float32.
    """,
    signature="MaxPoolGrad <input_shape> (dy, indices) => (dx)",
    body="""
        planes = Shape <start = 0, end = 2> (dy)
        space = Constant <value_ints: ints = @input_shape> ()
        dx_shape = Concat <axis = 0> (planes, space)
        length = ReduceProd <keepdims = 1> (dx_shape)
        nil = Constant <value_float = 0.0> ()
        empty = Expand (nil, length)
        flat = Constant <value_ints = [-1]> ()
        flat_indices = Reshape (indices, flat)
        dy_float = Cast <to = 1> (dy)
        flat_dy = Reshape (dy_float, flat)
        scattered = ScatterElements <axis = 0, reduction = "add"> (empty, flat_indices, flat_dy)
        dx_float = Reshape (scattered, dx_shape)
        dx = CastLike (dx_float, dy)
    """,
    type_rule=_pool_grad,
)

PACKED_MAX_POOL = Operator(
    summary="""y = MaxPool(x), and the place of every maximum in its window, in n bits each.

    x: (N, C, H, W) float32, float16 or int16; y: (N, C, Ho, Wo), of x's type. packed, origin and
    the attributes from `plane` on are PoolIndexPack's. `pads` are less than the dilated kernel.
    Source: Gist (Jain et al., ISCA 2018), pool encoding.
    """,
    signature=(
        "PackedMaxPool <kernel_shape, strides, pads, dilations, plane, width, kernel_width,"
        " row_dilation, column_dilation, bit_values> (x, origin) => (y, packed)"
    ),
    body="""
        x_float = Cast <to = 1> (x)
        y_float, indices = MaxPool <
            kernel_shape: ints = @kernel_shape, strides: ints = @strides, pads: ints = @pads,
            dilations: ints = @dilations
        > (x_float)
        y = CastLike (y_float, x)
        packed = bnnopt.PoolIndexPack <
            plane: int = @plane, width: int = @width, kernel_width: int = @kernel_width,
            row_dilation: int = @row_dilation, column_dilation: int = @column_dilation,
            bit_values: ints = @bit_values
        > (indices, origin)
    """,
    type_rule=_packed_max_pool,
    family="MaxPool",
    form=Form.PACKED,
)

PACKED_MAX_POOL_GRAD = Operator(
    summary="""dx of y, packed = PackedMaxPool(x): dy added up where each maximum was, 0 elsewhere.

    dy: (N, C, Ho, Wo) float, or int8 if no windows overlap; dx: (N, C, *input_shape), of dy's type;
    the sums are float32. packed, origin and the attributes from `plane` on are PoolIndexUnpack's.
    """,
    signature=(
        "PackedMaxPoolGrad <input_shape, plane, width, kernel_width, row_dilation,"
        " column_dilation, bit_values, bit_shape> (dy, packed, origin) => (dx)"
    ),
    body="""
        indices = bnnopt.PoolIndexUnpack <
            plane: int = @plane, width: int = @width, kernel_width: int = @kernel_width,
            row_dilation: int = @row_dilation, column_dilation: int = @column_dilation,
            bit_values: ints = @bit_values, bit_shape: ints = @bit_shape
        > (packed, origin)
        dx = bnnopt.MaxPoolGrad <input_shape: ints = @input_shape> (dy, indices)
    """,
    type_rule=_pool_grad,
    family="MaxPoolGrad",
    form=Form.PACKED,
)

OPERATORS = (AVERAGE_POOL_GRAD, MAX_POOL_GRAD, PACKED_MAX_POOL, PACKED_MAX_POOL_GRAD)
