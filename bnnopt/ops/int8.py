"""A gradient in int8: the codec, and the binary products that read it.

A map q goes with one number for the whole tensor, its unit: an element is unit * q, q from -127 to
127. One unit for all, as the products sum the integers: dx over filters, dw over samples and
positions. Sums are exact integers until they are multiplied by the unit.
"""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.ops import binary_products
from bnnopt.ops.operator import Form, Operator, TypedDims, dims, passed_on, signature_of


def _packed(node: ir.Node) -> list[TypedDims]:
    return [(ir.DataType.INT8, dims(node.inputs[0])), (ir.DataType.FLOAT, ())]


# Of Int8Pack and Int4Pack: statements for `largest`, of the magnitudes of x and 2^-100, and
# for `poison`, NaN where x is not finite, else 0; then for `sound`, x / unit rounded by chance.
LARGEST = """
        x_float = Cast <to = 1> (x)
        nil = Constant <value_float = 0.0> ()
        none = Mul (x_float, nil)
        poison = ReduceSum <keepdims = 0> (none)
        magnitude = Abs (x_float)
        found = ReduceMax <keepdims = 0> (magnitude)
        least = Constant <value_float = 7.8886090522101181e-31> ()
        largest = Max (found, least)"""
ROUNDED = """
        place = Mul (x_float, inverse)
        fraction = bnnopt.DrawUniform <low = 0.0, scale = 1.0, seed: int = @seed> (x, step)
        moved = Add (place, fraction)
        below = Floor (moved)
        bottom = Neg (top)
        inside = Clip (below, bottom, top)
        is_sound = Greater (unit, nil)
        sound = Where (is_sound, inside, nil)"""

INT8_PACK = Operator(
    summary="""q, unit = the integers next to x / unit, one above or one below by chance.

    x: any shape, floating point; step: int64 scalar. q: int8, the shape of x; unit: () float32, the
    largest magnitude of x, but at least 2^-100, divided by 127. q = floor(x / unit + f) within -127
    and 127, f in [0, 1) being the first 24 of the element's RandomBits: its mean is x / unit. Where
    x has an infinity or a NaN, unit is NaN and all of q is 0. q may be written over x.
    Source of the rounding: Gupta et al., arXiv:1502.02551.
    """,
    signature="Int8Pack <seed> (x, step) => (q, unit)",
    body=f"""
        {LARGEST}
        top = Constant <value_float = 127.0> ()
        finite_unit = Div (largest, top)
        unit = Add (finite_unit, poison)
        inverse = Div (top, largest)
        {ROUNDED}
        q = Cast <to = 3> (sound)
    """,
    type_rule=_packed,
    in_place={0: 0},
)


def _reading_int8(plain: Operator) -> Operator:
    """The gradient of a binary product that reads its dy in int8."""
    name, attributes, inputs, output = signature_of(plain)
    gives_dx, is_packed = output == "dx", Form.SIGNS in plain.form
    own = [*attributes, *(["dtype"] if gives_dx else [])]
    given = ", ".join(inputs)
    read = given.replace("dy", "dy, dy_unit")
    if is_packed:
        body = f"""
        dw = bnnopt.{plain.base}Int8 {passed_on(attributes)} ({read})
        {output} = bnnopt.BinarizePack <zero = 1.0> (dw)
        """
    else:
        result = "dx = Cast <to: int = @dtype> (scaled)" if gives_dx else "dw = Identity (scaled)"
        body = f"""
        wide = Cast <to = 1> (dy)
        raw = bnnopt.{name} {passed_on(attributes)} ({given.replace("dy", "wide")})
        scaled = Mul (raw, dy_unit)
        {result}
        """
    return Operator(
        summary=f"""{name} of a dy in int8, which is summed before it is multiplied by its unit.

    dy: int8, dy_unit: () float32. {_DX_TYPE if gives_dx else ""}All else is that operator's.
    """,
        signature=f"{name}Int8 <{', '.join(own)}> ({read}) => ({output})",
        body=body,
        type_rule=plain.type_rule,
        in_place=plain.in_place,
        family=plain.base,
        form=plain.form | Form.INT8,
    )


_DX_TYPE = "dx is of the ONNX `dtype`: 1, float32, or 10, float16. "

BINARY_CONV_WEIGHT_GRAD_INT8 = _reading_int8(binary_products.BINARY_CONV_WEIGHT_GRAD)
BINARY_GEMM_WEIGHT_GRAD_INT8 = _reading_int8(binary_products.BINARY_GEMM_WEIGHT_GRAD)
INT8_PRODUCTS = (
    BINARY_CONV_WEIGHT_GRAD_INT8,
    _reading_int8(binary_products.BINARY_CONV_WEIGHT_GRAD_SIGNS),
    _reading_int8(binary_products.BINARY_CONV_INPUT_GRAD),
    BINARY_GEMM_WEIGHT_GRAD_INT8,
    _reading_int8(binary_products.BINARY_GEMM_WEIGHT_GRAD_SIGNS),
    _reading_int8(binary_products.BINARY_GEMM_INPUT_GRAD),
)
OPERATORS = (INT8_PACK, *INT8_PRODUCTS)
