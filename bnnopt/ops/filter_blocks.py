"""A convolution, its pooling and its batch norm in one operator: their maps are nowhere whole.

For both kinds of convolution, with and without a max pooling, and both batch norms that write bits:
BinaryConv, PackedMaxPool and L1BatchNormalizationSigns are BinaryConvPoolL1BatchNormalizationSigns.
A batch norm sums over a channel alone, so its kernel works on some filters after the other.
"""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.ops.binary_products import BINARY_CONV
from bnnopt.ops.convolution import REAL_CONV
from bnnopt.ops.normalization import BATCH_NORMALIZATION_SIGNS, L1_BATCH_NORMALIZATION_SIGNS
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


OPERATORS = tuple(
    _blocked(product, norm, pools=pools)
    for product in (BINARY_CONV, REAL_CONV)
    for pools in (False, True)
    for norm in (BATCH_NORMALIZATION_SIGNS, L1_BATCH_NORMALIZATION_SIGNS)
)
