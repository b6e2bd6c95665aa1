"""Operators that work on some channels after the other, so that their maps are nowhere whole.

A convolution, its pooling and its batch norm, for both kinds of convolution, with and without a max
pooling, and both batch norms that write bits: BinaryConv, PackedMaxPool and
L1BatchNormalizationSigns are BinaryConvPoolL1BatchNormalizationSigns. And on the way back, from a
binary convolution to the weights of the real one in front of it: the gradient of its input, that of
a batch norm from bits, and that of the weights. No batch norm reads another channel.
"""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.ops.binary_products import BINARY_CONV, BINARY_CONV_INPUT_GRAD
from bnnopt.ops.convolution import CONV_WEIGHT_GRAD, REAL_CONV
from bnnopt.ops.int8 import INT8_PRODUCTS
from bnnopt.ops.normalization import (
    BATCH_NORMALIZATION_SIGNS,
    BATCH_NORMALIZATION_SIGNS_GRAD,
    L1_BATCH_NORMALIZATION_SIGNS,
)
from bnnopt.ops.operator import (
    MIN_OPSET,
    Form,
    Operator,
    TypedDims,
    TypeRule,
    dims,
    dtype,
    ints,
    packed_row_bytes,
    passed_on,
)
from bnnopt.ops.pooling import PACKED_MAX_POOL

OF_WINDOW = ("kernel_shape", "strides", "pads", "dilations")  # which a pooling has as `pool_...`


def blocked_name(product: str, pools: bool, norm: str) -> str:
    """The operator that does these one after the other."""
    return product + "Pool" * pools + norm


def _types(pools: bool) -> TypeRule:
    def rule(node: ir.Node) -> list[TypedDims]:
        n, scale = dims(node.inputs[0])[0], node.inputs[2 + pools]
        shape = (n, *ints(node, "shape"))
        bits = (ir.DataType.UINT8, (n, packed_row_bytes(shape)))
        channels = (dtype(scale), dims(scale))
        table = (dtype(scale), (*dims(scale), 4))
        n_bits = len(ints(node, "bit_values")) if pools else 0
        places = (ir.DataType.UINT8, (n, packed_row_bytes(shape, n_bits)))
        return [bits, bits, *[channels] * 4, table, table, *[places] * pools]

    return rule


def _blocked(product: Operator, norm: Operator, *, pools: bool) -> Operator:
    made, pooled, normed = (o.function(MIN_OPSET) for o in (product, PACKED_MAX_POOL, norm))
    pool_attributes = {
        name: f"pool_{name}" if name in OF_WINDOW else name for name in pooled.attribute
    }
    own = [*made.attribute, *(pool_attributes.values() if pools else ()), *normed.attribute]
    inputs = [*made.input, *(["origin"] if pools else []), *normed.input[1:]]
    outputs = [*normed.output, *(["packed"] if pools else [])]
    pool = f"""
        pooled, packed = bnnopt.PackedMaxPool {passed_on(pool_attributes)} (y, origin)"""
    name = blocked_name(product.name, pools, norm.name)
    between = ", PackedMaxPool" if pools else ""
    return Operator(
        summary=f"""{product.name}{between} and {norm.name} after each other; no map is kept.

        Inputs, outputs and attributes are theirs; those of the pooling's window begin with `pool_`.
        """,
        signature=f"{name} <{', '.join(own)}> ({', '.join(inputs)}) => ({', '.join(outputs)})",
        body=f"""
        y = bnnopt.{product.name} {passed_on(made.attribute)} ({", ".join(made.input)})
        {pool.strip() if pools else "pooled = Identity (y)"}
        {", ".join(normed.output)} = bnnopt.{norm.name} {passed_on(normed.attribute)} (
            pooled, {", ".join(normed.input[1:])}
        )
        """,
        type_rule=_types(pools),
        family=blocked_name(product.base, pools, norm.base),
        form=product.form | norm.form | Form.FUSED,
    )


def blocked_gradient_name(product: str) -> str:
    """The operator that goes on to the weights in front of the batch norm."""
    return f"{product}NormConvWeightGrad"


def _first_weights(node: ir.Node) -> list[TypedDims]:
    scale, x = node.inputs[-5], node.inputs[-1]
    channels = (dtype(scale), dims(scale))
    shape = (*dims(scale), dims(x)[1], *ints(node, "conv_kernel_shape"))
    return [(ir.DataType.FLOAT, shape), channels, channels]


def _blocked_gradient(product: Operator) -> Operator:
    made = product.function(MIN_OPSET)
    norm = BATCH_NORMALIZATION_SIGNS_GRAD.function(MIN_OPSET)
    of_conv = {name: f"conv_{name}" for name in OF_WINDOW} | {"group": "group"}
    own = [*made.attribute, *norm.attribute, *(f"conv_{name}" for name in OF_WINDOW)]
    inputs = [*made.input, *norm.input[1:], "x"]
    name = blocked_gradient_name(product.name)
    return Operator(
        summary=f"""{product.name}, {BATCH_NORMALIZATION_SIGNS_GRAD.name} and ConvWeightGrad.

        Inputs and attributes are theirs; those of the last one's window begin with `conv_`. `group`
        is 1. dw, dscale and dbias as they give them; no map is kept.
        """,
        signature=f"{name} <{', '.join(own)}> ({', '.join(inputs)}) => (dw, dscale, dbias)",
        body=f"""
        dx = bnnopt.{product.name} {passed_on(made.attribute)} ({", ".join(made.input)})
        dy_conv, dscale, dbias =
            bnnopt.{BATCH_NORMALIZATION_SIGNS_GRAD.name} {passed_on(norm.attribute)} (
                dx, {", ".join(norm.input[1:])}
            )
        dw = bnnopt.{CONV_WEIGHT_GRAD.name} {passed_on(of_conv)} (x, dy_conv)
        """,
        type_rule=_first_weights,
        family=blocked_gradient_name(product.base),
        form=product.form,
    )


_INPUT_GRADS = (BINARY_CONV_INPUT_GRAD, *INT8_PRODUCTS)
OPERATORS = (
    *(
        _blocked(product, norm, pools=pools)
        for product in (BINARY_CONV, REAL_CONV)
        for pools in (False, True)
        for norm in (BATCH_NORMALIZATION_SIGNS, L1_BATCH_NORMALIZATION_SIGNS)
    ),
    *(_blocked_gradient(o) for o in _INPUT_GRADS if o.base == BINARY_CONV_INPUT_GRAD.name),
)
