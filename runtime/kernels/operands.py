"""What the compiled kernels rely on: each takes its geometry from one or two of its operands.

One rule an operator that C runs: pairs of how many elements an operand has and how many its kernel
reads or writes. They are checked when a folder is opened, so that no call has to. What is not here
compares sizes itself, each time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias, cast

import numpy as np

from bnnopt.runtime.format import NORMALIZATIONS, Attribute
from bnnopt.runtime.kernels.chains import CHAINS, GRADIENTS, OF_WINDOW
from bnnopt.runtime.kernels.compiled.optimizers import BOP, FORMS
from bnnopt.runtime.kernels.compiled.updates import FUSED
from bnnopt.runtime.kernels.tiling import WITH_UNIT
from bnnopt.runtime.kernels.windows import make_window

Shape: TypeAlias = Sequence[int]
Pairs: TypeAlias = Iterable[tuple[int | None, int]]
LONGEST = 1 << 31  # a number that describes a window


class Operands(NamedTuple):
    """What a step reads and writes, None for what is left out, and its attributes."""

    inputs: Sequence[Shape | None]
    outputs: Sequence[Shape | None]
    attributes: Mapping[str, Attribute]

    def input(self, index: int) -> Shape:
        """The shape of an input that has to be there."""
        shape = self.inputs[index]
        if shape is None:
            raise ValueError(f"input {index} is left out")
        return shape

    def read(self, index: int) -> int | None:
        """Elements of an input; None if it is left out."""
        return _count(self.inputs, index)

    def written(self, index: int) -> int | None:
        """Elements of an output; None if it is left out."""
        return _count(self.outputs, index)

    def ints(self, name: str, default: Shape | None = None) -> list[int]:
        """A list of integers, none of which is out of all proportion."""
        found = self.attributes[name] if default is None else self.attributes.get(name, default)
        numbers = [int(number) for number in cast("list[int]", found)]
        if any(abs(number) > LONGEST for number in numbers):
            raise ValueError(f"{name} is {numbers}")
        return numbers

    def sizes(self, name: str) -> list[int]:
        """A shape, or a part of one."""
        numbers = self.ints(name)
        if min(numbers, default=1) < 1:
            raise ValueError(f"{name} is {numbers}")
        return numbers

    def integer(self, name: str, default: int | None = None) -> int:
        """One integer."""
        found = self.attributes[name] if default is None else self.attributes.get(name, default)
        return int(cast(int, found))


Rule: TypeAlias = Callable[[Operands], Pairs]


def misfit(operator: str, operands: Operands) -> str:
    """What does not fit of a step; empty if all does, or nothing has to.

    Raises
    ------
    LookupError, TypeError, ValueError, ArithmeticError
        If an operand or an attribute that the kernel reads is not there, or is something else.
    """
    rule = RULES.get(operator)
    for found, expected in rule(operands) if rule is not None else ():
        if found is not None and found != expected:
            return f"{found} elements where its kernel takes {expected}"
    return ""


def _count(shapes: Sequence[Shape | None], index: int) -> int | None:
    shape = shapes[index] if index < len(shapes) else None
    return None if shape is None else math.prod(shape)


def packed(shape: Shape, n_bits: int = 1) -> int:
    """Bytes of a tensor of `n_bits` an element, each row filled up to whole bytes."""
    return shape[0] * -(-math.prod(shape[1:]) * n_bits // 8)


def _pow2_bytes(shape: Shape) -> int:
    row = math.prod(shape[1:])
    return shape[0] * (-(-row // 2) + -(-row // 8))


def _int4_bytes(shape: Shape) -> int:
    return packed(shape, 4)


# Elementwise, sums, the loss ----------------------------------------------------------------------


def _like_first(o: Operands) -> Pairs:
    n = math.prod(o.input(0))
    return [(o.written(i), n) for i in range(len(o.outputs))]


def _planes(o: Operands) -> Pairs:
    return [(o.written(0), math.prod(o.input(0)[:2]))]


def _loss(o: Operands) -> Pairs:
    return [(o.written(1), math.prod(o.input(0)))]


def _loss_grad(o: Operands) -> Pairs:
    return [(o.written(0), math.prod(o.input(1)))]


def _int8_pack(o: Operands) -> Pairs:
    n = math.prod(o.input(0))
    return [(o.read(1), 1), (o.written(0), n), (o.written(1), 1)]


def _int4_pack(o: Operands) -> Pairs:
    return [(o.read(1), 1), (o.written(0), _int4_bytes(o.input(0))), (o.written(1), 1)]


def _normalized(o: Operands) -> Pairs:
    """x, a factor and a shift for each channel."""
    x = o.input(0)
    channels = x[1] if len(x) > 1 else 1
    return [(o.read(1), channels), (o.read(2), channels), (o.written(0), math.prod(x))]


# Codecs -------------------------------------------------------------------------------------------


def _threshold_pack(o: Operands) -> Pairs:
    x = o.input(0)
    return [(o.read(1), x[1]), (o.written(0), packed(x))]


def _masked_grad(o: Operands) -> Pairs:
    dy = o.input(0)
    return [(o.read(1), packed(dy)), (o.written(0), math.prod(dy))]


def _bitmap_pack(o: Operands) -> Pairs:
    return [(o.written(0), packed(o.input(0)))]


def _bitmap_unpack(o: Operands) -> Pairs:
    x = o.outputs[0]
    return [(o.read(0), packed(x))] if x is not None else []


def _bitmap_relu_grad(o: Operands) -> Pairs:
    dy = o.input(0)
    return [(o.read(1), packed(dy)), (o.written(0), math.prod(dy))]


# Batch normalisation ------------------------------------------------------------------------------


def _channels(o: Operands, inputs: int, outputs: int, channels: int) -> Pairs:
    """All inputs and outputs from these on have an element a channel."""
    yield from ((o.read(i), channels) for i in range(inputs, len(o.inputs)))
    yield from ((o.written(i), channels) for i in range(outputs, len(o.outputs)))


def _normalization(o: Operands) -> Pairs:
    x = o.input(0)
    return [(o.written(0), math.prod(x)), *_channels(o, 1, 1, x[1])]


def _normalization_signs(o: Operands) -> Pairs:
    x = o.input(0)
    yield from ((o.written(i), packed(x)) for i in (0, 1))
    yield from ((o.read(i), x[1]) for i in range(1, len(o.inputs)))
    yield from ((o.written(i), x[1]) for i in range(2, 6))
    yield from ((o.written(i), 4 * x[1]) for i in (6, 7))


def _normalization_grad(o: Operands) -> Pairs:
    x = o.input(1)
    yield from ((found, math.prod(x)) for found in (o.read(0), o.written(0)))
    yield from _channels(o, 2, 1, x[1])


def _normalization_signs_grad(o: Operands) -> Pairs:
    """Behind dy, signs and mask stand scale and inv_std, and the tables of levels and slopes."""
    dy = o.input(0)
    yield o.written(0), math.prod(dy)
    yield from ((o.read(i), packed(dy)) for i in (1, 2))
    yield from ((o.read(i), dy[1]) for i in (3, 4))
    yield from ((o.read(i), 4 * dy[1]) for i in (5, 6))
    yield from ((o.written(i), dy[1]) for i in (1, 2))


def _pool_grad(o: Operands) -> Pairs:
    """dy, the packed places of its maxima, where each window begins."""
    (n, channels, *space), dx = o.input(0), o.outputs[0]
    n_bits = _place_bits(o)
    yield o.read(1), packed((n, channels, *space), n_bits)
    yield o.read(2), math.prod(space)
    if dx is not None:
        yield math.prod(dx[:2]), n * channels


def _place_bits(o: Operands) -> int:
    """Of a place in a window of at least one element."""
    numbers = [o.integer(name) for name in ("kernel_width", "row_dilation", "column_dilation")]
    if min(numbers) < 1 or max(numbers) > LONGEST:
        raise ValueError(f"a window of width and dilations {numbers}")
    return _bits(o)


def _normalization_pool_grad(o: Operands) -> Pairs:
    dy, dx = o.input(0), o.outputs[0]
    yield o.read(1), math.prod(dy)
    yield o.read(2), packed(dy, _place_bits(o))
    yield o.read(3), math.prod(dy[2:])
    if dx is not None:
        yield o.read(4), packed(dx)
        yield math.prod(dx[:2]), math.prod(dy[:2])
    yield from _channels(o, 5, 1, dy[1])


# Windows ------------------------------------------------------------------------------------------


def _places(n_bits: Callable[[Operands], int] | None) -> Rule:
    """Of a pooling: its second output has a place for each of the first, of so many bits."""

    def rule(o: Operands) -> Pairs:
        y = o.outputs[0]
        _window(o, o.input(0)[2:], o.sizes("kernel_shape"))
        if y is not None:
            yield o.written(1), packed(y, n_bits(o)) if n_bits is not None else math.prod(y)

    return rule


def _average_pool_grad(o: Operands) -> Pairs:
    dy, space = o.input(0), o.sizes("input_shape")
    if tuple(_window(o, space, o.sizes("kernel_shape"))) != tuple(dy[2:]):
        raise ValueError(f"{dy} is no result of a window over {space}")
    return [(o.read(1), math.prod(dy[2:])), (o.written(0), math.prod([*dy[:2], *space]))]


def _tap_sums(o: Operands) -> Pairs:
    dy, kernel = o.input(0), o.sizes("kernel_shape")
    if tuple(_window(o, o.sizes("input_shape"), kernel)) != tuple(dy[2:]):
        raise ValueError(f"{dy} is no result of a window of {kernel}")
    return [(o.written(0), dy[1] * math.prod(kernel))]


def _window(o: Operands, space: Shape, kernel: Shape) -> Shape:
    """The lengths that a window's numbers give; they have to be those of a window."""
    n = len(space)
    strides, dilations = (o.ints(name, [1] * n) for name in ("strides", "dilations"))
    pads = o.ints("pads", [0] * 2 * n)
    fits = (len(kernel), len(strides), len(dilations), len(pads)) == (n, n, n, 2 * n)
    if not fits or min([*kernel, *strides, *dilations]) < 1 or min(pads) < 0:
        raise ValueError(f"a window of {kernel}, strides {strides}, pads {pads}, {dilations}")
    auto_pad = str(o.attributes.get("auto_pad", "NOTSET"))
    window = make_window(
        space, kernel, strides=strides, pads=pads, dilations=dilations, auto_pad=auto_pad,
        ceil_mode=o.integer("ceil_mode", 0),
    )  # fmt: skip
    return window.result


# Products -----------------------------------------------------------------------------------------


class Product(NamedTuple):
    """A product with its places: an index of an input, or -1 for the output.

    Attributes
    ----------
    x, w, y : int
        Where the (N, C, ...), the (M, C / group, ...) and the (N, M, ...) tensor are.
    x_packed, w_packed : bool
        Which of them are bits.
    """

    x: int
    w: int
    y: int
    x_packed: bool
    w_packed: bool


FORWARD = Product(0, 1, -1, True, True)
INPUT_GRAD = Product(-1, 1, 0, False, True)
WEIGHT_GRAD = Product(0, -1, 1, True, False)
SIGNS_GRAD = Product(0, -1, 1, True, True)


def _real(product: Product) -> Product:
    return product._replace(x_packed=False, w_packed=False)


def _conv(o: Operands) -> Pairs:
    return [(o.read(2), o.input(1)[0]), *_product_pairs(_real(FORWARD), o)]


def _conv_transpose(o: Operands) -> Pairs:
    """With pads that are given: the input gradient of a convolution, and what stands behind it."""
    if o.attributes.get("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in o.attributes:
        return  # numpy's
    y = _at(o, -1)
    behind = o.ints("output_padding", [0] * len(y[2:]))
    space = [n - padding for n, padding in zip(y[2:], behind, strict=True)]
    yield o.read(2), y[1]
    yield from _product_pairs(_real(INPUT_GRAD), o._replace(outputs=[(*y[:2], *space)]))


def _product(product: Product, name: str = "") -> Rule:
    """Of a binary convolution or dense product, or of a gradient of one."""

    def rule(o: Operands) -> Pairs:
        if name.endswith(WITH_UNIT):
            dense = _with_dense_dy(product, o)
            if "dy_shape" in o.attributes:
                n_bytes = _int4_bytes if name.endswith("Int4") else _pow2_bytes
                yield o.read(product.y), n_bytes(_at(dense, product.y))
            yield o.read(product.y + 1), 1
            o = dense
        yield from _product_pairs(product, o)

    return rule


def _with_dense_dy(product: Product, o: Operands) -> Operands:
    """The operands of a product whose dy has its unit behind it, and may be packed."""
    place = product.y
    y = o.input(place)
    if "dy_shape" in o.attributes:
        y = (y[0], *o.sizes("dy_shape"))
    return o._replace(inputs=[*o.inputs[:place], y, *o.inputs[place + 2 :]])


def _product_pairs(product: Product, o: Operands) -> Pairs:
    x, w, y = (_at(o, place) for place in product[:3])
    n, m = y[:2]
    sample, kernel, result = _sides(product, o, x, w, y[2:])
    group = o.integer("group", 1)
    if group < 1 or m % group or sample[0] != kernel[0] * group or tuple(result) != tuple(y[2:]):
        raise ValueError(f"{x}, {w} and {y} are no product")
    for shape, whole, is_packed in (
        (x, (n, *sample), product.x_packed),
        (w, (m, *kernel), product.w_packed),
    ):
        if not is_packed and tuple(shape) != whole:
            raise ValueError(f"{shape}, {whole} expected")
        yield math.prod(shape), packed(whole) if is_packed else math.prod(whole)


def _sides(
    product: Product, o: Operands, x: Shape, w: Shape, space: Shape
) -> tuple[Shape, Shape, Shape]:
    """A sample of x, a filter, and the lengths that the one gives on the other."""
    sample = o.sizes("x_shape") if product.x_packed else list(x[1:])
    if "w_shape" in o.attributes:
        kernel = o.sizes("w_shape")
    elif "kernel_shape" in o.attributes:
        kernel = [sample[0] // o.integer("group", 1), *o.sizes("kernel_shape")]
    else:
        kernel = sample if product.w_packed else list(w[1:])
    return sample, kernel, _window(o, sample[1:], kernel[1:]) if kernel[1:] else ()


def _at(o: Operands, place: int) -> Shape:
    shape = o.outputs[0] if place < 0 else o.inputs[place]
    if shape is None:
        raise ValueError("an operand is left out")
    return shape


def _bitmap_weight_grad(o: Operands) -> Pairs:
    """Inputs are bits, values, dy; `shape` is a sample of x."""
    n, shape, dy, dw = o.input(0)[0], o.sizes("shape"), o.input(2), _at(o, -1)
    group = o.integer("group", 1)
    result = _window(o, shape[1:], dw[2:])
    if group < 1 or (n, *result) != (dy[0], *dy[2:]) or dw[0] % group:
        raise ValueError(f"{shape}, {dw} and {dy} are no convolution")
    yield o.read(0), packed((n, *shape))
    yield math.prod(dw[:2]) * group, dy[1] * shape[0]


def _fused(operator: str) -> Rule:
    """Of an optimiser step behind its product: w, what the product reads, states; dw comes last."""
    product, step = FUSED[operator]
    is_bits = FORMS[step].rule == BOP
    has_unit = product.endswith(WITH_UNIT)
    n_operands = 3 if has_unit else 2

    def rule(o: Operands) -> Pairs:
        w, operands = o.input(0), o.inputs[1 : 1 + n_operands]
        sides = o._replace(inputs=operands, outputs=[w, *o.outputs])
        kind = SIGNS_GRAD if is_bits else WEIGHT_GRAD
        kind = kind._replace(x_packed=product != "ConvWeightGrad")
        yield from _product(kind, product)(sides)
        if is_bits:  # the momenta have the shape that bits hide
            sides = _with_dense_dy(kind, sides) if has_unit else sides
            x, bits, y = (_at(sides, place) for place in kind[:3])
            w = (y[1], *_sides(kind, sides, x, bits, y[2:])[1])
            yield o.read(1 + n_operands + FORMS[step].bytes), math.prod(w)
        yield o.written(len(o.outputs) - 1), math.prod(w)

    return rule


def _filter_block(operator: str) -> Rule:
    """Of a convolution, a pooling perhaps, and a batch norm that writes bits."""
    chain = CHAINS[operator]
    product = FORWARD if chain.product.startswith("Binary") else _real(FORWARD)

    def rule(o: Operands) -> Pairs:
        (x, w), channels = (o.input(0), o.input(1)), o.inputs[2 + chain.pools :]
        y = [x[0], w[0], *_sides(product, o, x, w, ())[2]]
        yield from _product_pairs(product, o._replace(outputs=[y]))
        if chain.pools:
            own = {name: o.attributes[f"pool_{name}"] for name in OF_WINDOW}
            window = o._replace(attributes={**o.attributes, **own})
            y = [*y[:2], *_window(window, y[2:], window.sizes("kernel_shape"))]
            yield o.read(2), math.prod(y[2:])
            yield o.written(8), packed(y, _place_bits(o))
        if y[1:] != o.sizes("shape"):
            raise ValueError(f"shape is {o.sizes('shape')} where a sample is {y[1:]}")
        yield from _normalization_signs(o._replace(inputs=[y, *channels], outputs=o.outputs[:8]))

    return rule


def _filter_block_gradient(operator: str) -> Rule:
    """From the dy of a binary convolution to the weights in front of a batch norm from bits."""
    n_read = 2 + GRADIENTS[operator].endswith(WITH_UNIT)
    product = INPUT_GRAD._replace(w=n_read - 1)

    def rule(o: Operands) -> Pairs:
        shape, dw = o.sizes("shape"), o.outputs[0]
        dx, x = (o.input(0)[0], *shape), o.inputs[-1]
        if x is None or dw is None:
            raise ValueError("an operand is left out")
        yield from _product_pairs(product, o._replace(inputs=o.inputs[:n_read], outputs=[dx]))
        norm = o._replace(inputs=[dx, *o.inputs[n_read:-1]], outputs=[dx, *o.outputs[1:]])
        yield from _normalization_signs_grad(norm)
        own = {name: o.attributes[f"conv_{name}"] for name in OF_WINDOW}
        last = Operands([x, dx], [dw], {"group": o.integer("group"), **own})
        yield from _product_pairs(_real(WEIGHT_GRAD), last)

    return rule


def _pooled_filter_block(o: Operands) -> Pairs:
    """Of a convolution, a batch norm and a pooling that keeps places and sides."""
    x, w = o.input(0), o.input(1)
    y = [x[0], w[0], *_sides(_real(FORWARD), o, x, w, ())[2]]
    yield from _product_pairs(_real(FORWARD), o._replace(outputs=[y]))
    own = {name: o.attributes[f"pool_{name}"] for name in OF_WINDOW}
    window = o._replace(attributes={**o.attributes, **own})
    pooled = [*y[:2], *_window(window, y[2:], window.sizes("kernel_shape"))]
    yield o.read(6), math.prod(pooled[2:])
    yield o.written(0), math.prod(pooled)
    yield o.written(1), packed(pooled, _place_bits(o))
    yield o.written(2), packed(y)
    yield from _channels(o._replace(inputs=o.inputs[:6]), 2, 3, w[0])


def _pooled_filter_block_gradient(o: Operands) -> Pairs:
    """From the dy of a pooling to the weights in front of a batch norm."""
    dw, x = o.outputs[0], o.inputs[-1]
    if x is None or dw is None:
        raise ValueError("an operand is left out")
    dx = (o.input(0)[0], dw[0], *o.sizes("shape")[1:])
    yield from _normalization_pool_grad(
        o._replace(inputs=o.inputs[:-1], outputs=[dx, *o.outputs[2:]])
    )
    own = {name: o.attributes[f"conv_{name}"] for name in (*OF_WINDOW, "input_shape")}
    yield from _product_pairs(_real(WEIGHT_GRAD), Operands([x, dx], [dw], own))
    yield from _tap_sums(Operands([dx], o.outputs[1:2], own))


# Dense products of real numbers -------------------------------------------------------------------


def _gemm(o: Operands) -> Pairs:
    turned = [o.integer(name, 0) != 0 for name in ("transA", "transB")]
    a, b = (o.input(i)[:: -1 if turned[i] else 1] for i in range(2))
    return _matrices(a, b, _at(o, -1))


def _matmul(o: Operands) -> Pairs:
    a, b, y = o.input(0), o.input(1), _at(o, -1)
    return _matrices(a, b, y) if min(len(a), len(b)) > 1 else []  # vectors are numpy's


def _matrices(a: Shape, b: Shape, y: Shape) -> Pairs:
    """Of y = a b, of matrices or stacks of them."""
    stack = np.broadcast_shapes(tuple(a[:-2]), tuple(b[:-2]))
    if tuple(y) != (*stack, a[-2], b[-1]) or a[-1] != b[-2]:
        raise ValueError(f"{a} times {b} is not {y}")
    return []


def _fused_gemm(o: Operands) -> Pairs:
    w = o.input(0)
    _matrices(o.input(1)[::-1], o.input(2), w)
    return [(o.written(len(o.outputs) - 1), math.prod(w))]


# Rows, axes, and what is taken of them ------------------------------------------------------------


def _gather(o: Operands) -> Pairs:
    """Rows are taken in C; a session compares indices of the batch with the length of any axis."""
    shape, indices, axis = o.input(0), o.input(1), o.integer("axis", 0)
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"axis {axis} of {tuple(shape)}")
    return [(o.written(0), math.prod([*indices, *shape[1:]]))] if axis == 0 else []


def _gather_grad(o: Operands) -> Pairs:
    dx = _at(o, -1)
    taken = math.prod([*o.input(1), *dx[1:]])
    return [(o.read(0), taken)] if o.integer("axis") == 0 else []


def _one_hot(o: Operands) -> Pairs:
    y, axis = _at(o, -1), o.integer("axis", -1)
    if not -len(y) <= axis < len(y):
        raise ValueError(f"axis {axis} of {tuple(y)}")
    return [(o.read(0), math.prod(y) // y[axis]), (o.read(2), 2)]


def _shape(o: Operands) -> Pairs:
    x = o.input(0)
    return [(o.written(0), len(x[o.integer("start", 0) : o.integer("end", len(x))]))]


def _softmax_grad(o: Operands) -> Pairs:
    n = math.prod(o.input(1))
    return [(o.read(0), n), (o.written(0), n)]


def _prelu_grad(o: Operands) -> Pairs:
    n, slopes = math.prod(o.input(1)), math.prod(o.input(2))
    return [(o.read(0), n), (o.written(0), n), (o.written(1), slopes)]


def _layer_normalization(o: Operands) -> Pairs:
    x, axis = o.input(0), o.integer("axis", -1)
    rows = math.prod(x[: axis % len(x)])
    return [(o.written(0), math.prod(x)), (o.written(1), rows), (o.written(2), rows)]


def _layer_normalization_grad(o: Operands) -> Pairs:
    x, length = o.input(1), math.prod(o.input(2))
    if math.prod(x) % length:
        raise ValueError(f"{x} has no rows of {length}")
    yield from ((found, math.prod(x)) for found in (o.read(0), o.written(0)))
    yield from ((o.written(i), length) for i in (1, 2))


def _bits(o: Operands) -> int:
    return len(o.ints("bit_values"))


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("Cast", "Dropout", "LogSoftmax", "Softmax", "Transpose"), _like_first),
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Gather": _gather,
    "GatherGrad": _gather_grad,
    "OneHot": _one_hot,
    "Shape": _shape,
    "SoftmaxGrad": _softmax_grad,
    "PReluGrad": _prelu_grad,
    "LayerNormalization": _layer_normalization,
    "LayerNormalizationGrad": _layer_normalization_grad,
    "GlobalAveragePool": _planes,
    "SoftmaxCrossEntropy": _loss,
    "SoftmaxCrossEntropyGrad": _loss_grad,
    "Int4Pack": _int4_pack,
    "Int8Pack": _int8_pack,
    **dict.fromkeys(NORMALIZATIONS, _normalized),
    "ThresholdPack": _threshold_pack,
    "MaskedGrad": _masked_grad,
    **dict.fromkeys(("BitmapPack", "PrunedBitmapPack"), _bitmap_pack),
    "BitmapUnpack": _bitmap_unpack,
    "BitmapReluGrad": _bitmap_relu_grad,
    **dict.fromkeys(("BatchNormalization", "BatchNormalizationApply"), _normalization),
    **{
        f"{kind}BatchNormalization{name}": rule
        for kind in ("", "L1")
        for name, rule in {
            "Training": _normalization,
            "Signs": _normalization_signs,
            "Grad": _normalization_grad,
        }.items()
    },
    "BatchNormalizationSignsGrad": _normalization_signs_grad,
    "L1BatchNormalizationPoolGrad": _normalization_pool_grad,
    "AveragePool": _places(None),
    "AveragePoolGrad": _average_pool_grad,
    "MaxPool": _places(None),
    "PackedMaxPool": _places(_bits),
    "PackedMaxPoolGrad": _pool_grad,
    "ConvTapSums": _tap_sums,
    **dict.fromkeys(("Conv", "RealConv"), _conv),
    "ConvTranspose": _conv_transpose,
    "ConvInputGrad": _product(_real(INPUT_GRAD)),
    "ConvWeightGrad": _product(_real(WEIGHT_GRAD)),
    "BitmapConvWeightGrad": _bitmap_weight_grad,
    **{f"Binary{kind}": _product(FORWARD) for kind in ("Conv", "Gemm")},
    **{
        f"Binary{kind}{name}{form}": _product(product, form)
        for kind in ("Conv", "Gemm")
        for name, product in {
            "InputGrad": INPUT_GRAD,
            "WeightGrad": WEIGHT_GRAD,
            "WeightGradSigns": SIGNS_GRAD,
        }.items()
        for form in ("", *WITH_UNIT)
    },
    **{operator: _fused(operator) for operator in FUSED},
    **{operator: _filter_block(operator) for operator in CHAINS},
    **{operator: _filter_block_gradient(operator) for operator in GRADIENTS},
    "RealConvNormMaxPool": _pooled_filter_block,
    "RealConvNormMaxPoolGrad": _pooled_filter_block_gradient,
    **{f"Gemm{step}": _fused_gemm for step in FORMS},
}
"""By operator, of what the compiled kernels have."""
