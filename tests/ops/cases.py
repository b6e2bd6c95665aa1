"""The table that drives every oracle: each operator with shapes and values that have gone wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from bnnopt.ops import OPERATORS, Form, in_form, n_index_bits
from bnnopt.ops.operator import MIN_OPSET
from bnnopt.ops.optimizers import RULES
from bnnopt.runtime.kernels.reference.int4 import pack_codes
from tests.ops.harness import Array, Attribute, Case
from tests.ops.oracles import Geometry, clear_bias, max_pool, window_origin

RNG = np.random.default_rng(20240607)
EDGES = np.array(
    [[0.0, -0.0, np.nan, np.inf, -np.inf], [2e-38, -2e-38, 1.0, -1.0, 0.1]], np.float32
)

CURVED = np.linspace(-4, 4, 33, dtype=np.float32)

CONVOLUTIONS = {
    "same": Geometry(2, 3, 4, (7, 6), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "batch-1-stride-remainder": Geometry(1, 3, 2, (8, 9), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
    "remainder-of-two": Geometry(2, 2, 3, (9, 10), (2, 3), (3, 4), (0, 0, 0, 0), (1, 1)),
    "grouped": Geometry(3, 4, 6, (5, 5), (3, 2), (1, 1), (0, 0, 0, 0), (1, 1), group=2),
    "depthwise": Geometry(2, 4, 4, (6, 6), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), group=4),
    "depthwise-multiplier": Geometry(2, 3, 6, (5, 4), (2, 2), (1, 1), (0, 0, 0, 0), (1, 1), 3),
    "dilated": Geometry(2, 2, 3, (9, 8), (3, 3), (1, 1), (2, 1, 2, 1), (2, 1)),
    "asymmetric": Geometry(2, 2, 3, (6, 7), (3, 3), (2, 3), (0, 1, 2, 1), (1, 1)),
    "one-dimension": Geometry(3, 2, 4, (11,), (4,), (2,), (1, 2), (1,)),
    "one-dimension-dilated-group": Geometry(1, 4, 4, (12,), (3,), (2,), (0, 1), (3,), group=2),
    "pointwise-stride": Geometry(2, 5, 3, (6, 4), (1, 1), (2, 2), (0, 0, 0, 0), (1, 1)),
    "pointwise-padded": Geometry(2, 3, 2, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), (1, 1)),
    "whole-input": Geometry(4, 2, 5, (3, 4), (3, 4), (1, 1), (0, 0, 0, 0), (1, 1)),
    "everything": Geometry(1, 4, 8, (13, 11), (3, 2), (2, 3), (1, 0, 2, 1), (2, 3), group=2),
}
POOLINGS = {
    "plain": Geometry(2, 3, 3, (6, 8), (2, 2), (2, 2), (0, 0, 0, 0), (1, 1)),
    "overlap-pad": Geometry(2, 2, 2, (7, 7), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
    "overlap-stride-1": Geometry(1, 2, 2, (5, 6), (3, 2), (1, 1), (1, 0, 1, 1), (1, 1)),
    "dilated": Geometry(2, 1, 1, (9, 8), (3, 2), (1, 2), (0, 1, 2, 0), (2, 3)),
    "asymmetric": Geometry(3, 2, 2, (5, 4), (2, 3), (2, 1), (0, 2, 1, 0), (1, 1)),
    "remainder": Geometry(2, 2, 2, (8, 7), (3, 3), (3, 3), (0, 0, 0, 0), (1, 1)),
    "as-wide-as-input": Geometry(2, 2, 2, (6, 5), (2, 5), (1, 1), (1, 0, 0, 0), (1, 1)),
    "five-bits": Geometry(2, 1, 1, (9, 9), (5, 5), (2, 2), (2, 2, 2, 2), (1, 1)),
    "eight-bits": Geometry(1, 1, 1, (18, 17), (16, 16), (1, 1), (0, 0, 0, 0), (1, 1)),
    "single": Geometry(2, 3, 3, (2, 2), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
}
EVERY_BYTE = np.arange(256, dtype=np.uint8).repeat(2).reshape(256, 2, 1)
LINE_POOLING = Geometry(2, 3, 3, (9,), (3,), (2,), (1, 1), (1,))
SHAPES = {
    "one-bit": (1, 1),
    "seven": (3, 7),
    "whole-byte": (2, 8),
    "nine": (2, 9),
    "batch-1": (1, 2, 4, 2),
    "image": (2, 3, 5, 3),
    "rank-1": (5,),
    "long": (3, 1001),
}


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def softmax(x: Array, axis: int) -> Array:
    y = np.exp(x)
    return np.asarray(y / y.sum(axis, keepdims=True))


def scalar(value: float) -> Array:
    return np.array(value, np.float32)


def case(operator: str, note: str, *inputs: Array, **attributes: Attribute) -> Case:
    return Case(operator, note, inputs, attributes)


def binarize_cases() -> list[Case]:
    kinds = {"plus": 1.0, "minus": -1.0}
    values = {"edges": EDGES, "image": normal(2, 3, 5), "scalar": scalar(-0.5)}
    binarize = [
        case("Binarize", f"{kind}-{note}", x, zero=zero, ste="clip", clip=1.0)
        for kind, zero in kinds.items()
        for note, x in values.items()
    ]
    values["numbers"] = np.where(np.isnan(EDGES), np.float32(0), EDGES)  # sign(NaN) is anyone's
    del values["edges"]
    ternarize = [case("Ternarize", note, x, ste="clip", clip=1.0) for note, x in values.items()]
    straight = [
        case("StraightThrough", "same", EDGES, normal(*EDGES.shape)),
        case("StraightThrough", "broadcast", normal(2, 3, 5), normal(3, 1)),
        case("StraightThrough", "scalar", scalar(2), scalar(0.25)),
    ]
    return [*binarize, *ternarize, *straight]


def elementwise_grad_cases() -> list[Case]:
    dy, image = normal(*EDGES.shape), normal(2, 3, 3)
    table = []
    for note, low, high in [("unit", -1.0, 1.0), ("relu6", 0.0, 6.0), ("inexact", -0.3, 0.1)]:
        bounds = np.array([low, high, -0.0, 7.0], np.float32)
        for name, x in [("edges", EDGES), ("bounds", bounds), ("image", image)]:
            grad = dy if x is EDGES else normal(*x.shape)
            table.append(case("ClipGrad", f"{note}-{name}", grad, x, low=low, high=high))
            if x.ndim > 1:
                packed = case("RangePack", f"{note}-{name}", x, low=low, high=high)
                table.append(packed)
    table += [
        case("RangePack", "rank-1", np.linspace(-1, 1, 9, dtype=np.float32), low=-1.0, high=0.25),
        case("ReluGrad", "edges", dy, EDGES),
        case("ReluGrad", "nan-dy", EDGES, dy),
        case("ReluGrad", "image", normal(2, 3, 3), image),
        case("HardSwishGrad", "edges", dy, EDGES),
        case("HardSwishGrad", "bounds", normal(7), np.linspace(-4.5, 4.5, 7, dtype=np.float32)),
        case("HardSwishGrad", "image", normal(2, 3, 3), 3 * image),
        *(
            case("Gelu", note, x, approximate="none")
            for note, x in (("range", CURVED), ("image", image))
        ),
        *(
            case(operator, note, normal(*x.shape), x)
            for operator in ("GeluGrad", "TanhGeluGrad")
            for note, x in (("range", CURVED), ("image", image), ("scalar", scalar(-0.5)))
        ),
        *(
            case(
                "SoftmaxGrad",
                f"axis-{axis}",
                normal(2, 3, 5),
                softmax(normal(2, 3, 5), axis),
                axis=axis,
            )
            for axis in (0, 1, 2)
        ),
        *(
            case("PReluGrad", note, normal(2, 3, 5), normal(2, 3, 5), normal(*slope), axes=axes)
            for note, slope, axes in (
                ("channels", (3, 1), [0, 2]),
                ("one", (1,), [0, 1, 2]),
                ("columns", (5,), [0, 1]),
                ("each", (2, 3, 5), []),
                ("between", (2, 1, 5), [1]),
            )
        ),
        *(
            case(
                "LayerNormalizationGrad",
                note,
                normal(*shape),
                x,
                normal(*shape[axis:]),
                epsilon=1e-5,
            )
            for note, shape, axis, x in (
                ("rows", (4, 7), 1, normal(4, 7)),
                ("planes", (2, 3, 5), 1, normal(2, 3, 5)),
                ("deep", (2, 3, 70), 2, normal(2, 3, 70)),
                ("far", (3, 8), 1, 30 + normal(3, 8)),
            )
        ),
        case("ApproxSignGrad", "bounds", normal(7), np.linspace(-1.5, 1.5, 7, dtype=np.float32)),
        case("ApproxSignGrad", "infinite", normal(2), np.array([np.inf, -np.inf], np.float32)),
        case("ApproxSignGrad", "image", normal(2, 3, 3), image),
        case("ApproxSignGrad", "scalar", scalar(2), scalar(0.25)),
        case("SwishSignGrad", "image", normal(2, 3, 3), image, beta=5.0),
        case("SwishSignGrad", "far", normal(2, 3), 1e4 * normal(2, 3), beta=10.0),
        case("SwishSignGrad", "scalar", scalar(2), scalar(0.25), beta=1.5),
    ]
    return table


def packing_cases() -> list[Case]:
    table = []
    for note, shape in SHAPES.items():
        x, mask = normal(*shape), RNG.random(shape) < 0.5
        rest = list(shape[1:])
        n_bytes = math.ceil(math.prod(rest) / 8)
        packed = RNG.integers(0, 256, (shape[0], n_bytes), np.uint8)  # spare bits set as well
        table += [
            case("PackBits", note, mask),
            case("SignPack", note, x),
            case("BinarizePack", f"plus-{note}", x, zero=1.0),
            case("BinarizePack", f"minus-{note}", x, zero=-1.0),
            case("UnpackBits", note, packed, shape=rest),
            case("SignUnpack", note, packed, shape=rest),
            case("MaskedGrad", note, x, packed, shape=rest),
        ]
    half = np.array([[0b10110], [0b01001]], np.uint8)
    return [
        *table,
        case("SignPack", "edges", EDGES),
        case("BinarizePack", "plus-edges", EDGES, zero=1.0),
        case("BinarizePack", "minus-edges", EDGES, zero=-1.0),
        case("MaskedGrad", "edges", EDGES, half, shape=[5]),
    ]


def bitmap_cases() -> list[Case]:
    table = []
    edges = np.array([[0.0, -0.0, np.nan, np.inf, 0.0], [2e-38, 0.0, -0.0, -1.0, 0.1]], np.float32)
    sparse = {note: np.maximum(normal(*shape), 0) for note, shape in SHAPES.items()}
    extremes = {"zeros": np.zeros((2, 9), np.float32), "dense": normal(2, 9), "edges": edges}
    for spare, (note, x) in enumerate({**sparse, **extremes}.items()):
        used = int(np.count_nonzero(x.view(np.uint32))) + 1
        pack = case("BitmapPack", note, x, capacity=used + spare)
        shape = list(x.shape[1:])
        keep, plain = max(1, math.prod(shape) // 3), np.where(x == 0, np.float32(0), x)
        if not np.isnan(x).any():
            prune = case("PrunedBitmapPack", note, plain, capacity=x.size + 1, keep=[keep])
            table.append(prune)
        table += [
            pack,
            case("BitmapUnpack", note, *pack.twin, shape=shape),
            case("BitmapReluGrad", note, normal(*x.shape), *pack.twin, shape=shape),
        ]
    return table


def convolution_cases() -> list[Case]:
    table = []
    for note, g in CONVOLUTIONS.items():
        dy = normal(*g.conv_shape)
        shared: dict[str, Attribute] = {
            "strides": list(g.strides),
            "pads": list(g.pads),
            "dilations": list(g.dilations),
            "group": g.group,
        }
        space, padding, kernel = list(g.space), list(g.output_padding), list(g.kernel)
        w, x = normal(*g.w_shape), normal(*g.x_shape)
        table += [
            case(
                "ConvInputGrad", note, dy, w,
                input_shape=space, output_padding=padding, **shared,
            ),
            case("ConvWeightGrad", note, x, dy, kernel_shape=kernel, **shared),
            case("RealConv", note, x, w, dtype=1, **shared),
        ]  # fmt: skip
        table.append(of_bitmap(table[-2]))
        own = {name: value for name, value in shared.items() if name != "group"}
        taps: dict[str, Attribute] = {"input_shape": space, "kernel_shape": kernel, **own}
        halves = note == "same"
        table.insert(0, case("ConvTapSums", note, whole_halves(dy) if halves else dy, **taps))
        if note in ("same", "everything"):
            table += half_convolutions(note, table[-4:-1])
    return table


def of_bitmap(weight_grad: Case) -> Case:
    """The weight gradient of a rectified x, which comes as a bitmap with a spare value."""
    x, dy = weight_grad.inputs
    x = np.maximum(x, 0)
    packed = case("BitmapPack", "", x, capacity=int(np.count_nonzero(x)) + 2).twin
    options = {"shape": list(x.shape[1:]), **weight_grad.attributes}
    return case("BitmapConvWeightGrad", weight_grad.note, *packed, dy, **options)


def half_convolutions(note: str, cases: list[Case]) -> list[Case]:
    """Gradients of a float16 dy, and a float16 result; all whole, so that all sums agree."""
    input_grad, weight_grad, forward = cases
    (dy, w), (x, _) = input_grad.inputs, weight_grad.inputs
    halves, w, x = whole_halves(dy), whole_halves(w).astype("f"), whole_halves(x).astype("f")
    narrow = case("ConvWeightGrad", f"{note}-float16", x, halves, **weight_grad.attributes)
    half_x = x.astype(np.float16)
    return [
        case("ConvInputGrad", f"{note}-float16", halves, w, **input_grad.attributes),
        narrow,
        case("ConvWeightGrad", f"{note}-halves", half_x, halves, **weight_grad.attributes),
        case("RealConv", f"{note}-halves", half_x, w, **forward.attributes),
        of_bitmap(narrow),
        case("RealConv", f"{note}-float16", x, w, **{**forward.attributes, "dtype": 10}),
    ]


def binary_product_cases() -> list[Case]:
    table = []
    for note, g in CONVOLUTIONS.items():
        x_shape, w_shape = list(g.x_shape[1:]), list(g.w_shape[1:])
        x, w, dy = random_bits(g.n, x_shape), random_bits(g.m, w_shape), normal(*g.conv_shape)
        shared: dict[str, Attribute] = {
            "strides": list(g.strides),
            "pads": list(g.pads),
            "dilations": list(g.dilations),
            "group": g.group,
        }
        table += [
            case("BinaryConv", note, x, w, x_shape=x_shape, w_shape=w_shape, dtype=1, **shared),
            case(
                "BinaryConvWeightGrad", note, x, dy,
                x_shape=x_shape, kernel_shape=list(g.kernel), **shared,
            ),
            case(
                "BinaryConvInputGrad", note, dy, w, input_shape=list(g.space), w_shape=w_shape,
                output_padding=list(g.output_padding), **shared,
            ),
        ]  # fmt: skip
        gradient = table[-2]
        whole = whole_halves(dy).astype(np.float32)  # sums that have one sign in any order
        table.append(case(f"{gradient.operator}Signs", note, x, whole, **gradient.attributes))
        if note in ("same", "everything"):
            table += typed_products(note, table[-4:])
    for note, n, k, m in [("one", 1, 1, 1), ("bytes", 3, 16, 5), ("odd", 4, 27, 9)]:
        x, w, dy = random_bits(n, [k]), random_bits(m, [k]), normal(n, m)
        table += [
            case("BinaryGemm", note, x, w, x_shape=[k], w_shape=[k], dtype=1),
            case("BinaryGemmWeightGrad", note, x, dy, x_shape=[k]),
            case("BinaryGemmInputGrad", note, dy, w, w_shape=[k]),
            case(
                "BinaryGemmWeightGradSigns", note, x, whole_halves(dy).astype(np.float32),
                x_shape=[k],
            ),
        ]  # fmt: skip
    return table + typed_products("odd", table[-4:])


def typed_products(note: str, products: list[Case]) -> list[Case]:
    """A forward product and its gradients in other dtypes; dy is whole, so that all sums agree."""
    forward, *gradients = products
    table = [
        case(
            forward.operator, f"{note}-{name}", *forward.inputs,
            **{**forward.attributes, "dtype": dtype},
        )
        for name, dtype in (("int16", 5), ("float16", 10))
    ]  # fmt: skip
    for gradient in gradients:
        inputs = [whole_halves(a) if a.dtype == np.float32 else a for a in gradient.inputs]
        table.append(case(gradient.operator, f"{note}-float16", *inputs, **gradient.attributes))
    return table


def pow2_cases() -> list[Case]:
    """Both codecs, and the products of whole dy, of a few magnitudes and with zeros."""
    octaves = 2.0 ** RNG.integers(-18, 3, (3, 33)) * normal(3, 33)
    border = np.array([[0x3FB504F3, 0x3FB504F4, 0x407FFFFF, 0x38B504F3, 0x38B504F4]], np.uint32)
    values = {
        **{note: normal(*shape) for note, shape in SHAPES.items()},
        "octaves": octaves.astype(np.float32),
        "ties": border.view(np.float32),
        "half": normal(2, 3, 7).astype(np.float16),
        "small-halves": (np.arange(-8, 9) * 2.0**-24).astype(np.float16).reshape(1, -1),
        "zeros": np.array([[0.0, -0.0, 0.0]], np.float32),
        "smallest": np.array([[1e-45, -1e-38, 3e-38]], np.float32),
        "largest": np.array([[3.4e38, -3e38, 1e34]], np.float32),
        "infinite": np.array([[1.0, -np.inf], [2.0, 0.0]], np.float32),
        "not-a-number": np.array([[1.0, -2.0, np.nan]], np.float32),
    }
    table = []
    for note, x in values.items():
        pack = case("Pow2Pack", note, x)
        table += [pack, case("Pow2Unpack", note, *pack.twin, shape=list(x.shape[1:]))]
    table += products_in(Form.POW2)
    return [*table, case("Pow2Unpack", "any-bits", *any_pow2(3, 13), shape=[13])]


def int8_cases() -> list[Case]:
    """The codec, and the products, whose integer sums are exact in any order."""
    values = {
        **{note: normal(*shape) for note, shape in SHAPES.items()},
        "half": normal(2, 3, 7).astype(np.float16),
        "zeros": np.array([[0.0, -0.0, 0.0]], np.float32),
        "smallest": np.array([[1e-45, -1e-38, 3e-38]], np.float32),
        "largest": np.array([[3.4e38, -3.4e38, 1e34]], np.float32),
        "all-the-largest": np.full((2, 40), -0.3, np.float32),
        "infinite": np.array([[1.0, -np.inf], [2.0, 0.0]], np.float32),
        "not-a-number": np.array([[1.0, -2.0, np.nan]], np.float32),
    }
    packs = [
        case("Int8Pack", note, x, np.array(7), seed=3 * i)
        for i, (note, x) in enumerate(values.items())
    ]
    pool = next(c for c in packed_pooling_cases() if str(c) == "PackedMaxPoolGrad-plain")
    dy, *places = pool.inputs
    grad = case(pool.operator, "plain-int8", few_integers(dy)[0], *places, **pool.attributes)
    return [*packs, grad, *products_in(Form.INT8)]


def int4_cases() -> list[Case]:
    """The codec, cut off by every number of halvings, and the products."""
    values = {
        **{note: normal(*shape) for note, shape in SHAPES.items()},
        "half": normal(2, 3, 7).astype(np.float16),
        "tails": (normal(4, 33) ** 5).astype(np.float32),
        "halves-of-halves": (2.0 ** -np.arange(40)).astype(np.float32).reshape(2, 20),
        "zeros": np.array([[0.0, -0.0, 0.0]], np.float32),
        "smallest": np.array([[1e-45, -1e-38, 3e-38]], np.float32),
        "largest": np.array([[3.4e38, -3.4e38, 1e34]], np.float32),
        "all-the-largest": np.full((2, 40), -0.3, np.float32),
        "infinite": np.array([[1.0, -np.inf], [2.0, 0.0]], np.float32),
        "not-a-number": np.array([[1.0, -2.0, np.nan]], np.float32),
    }
    table = []
    for i, (note, x) in enumerate(values.items()):
        pack = case("Int4Pack", note, x, np.array(7), seed=3 * i, one_in=8)
        table += [pack, case("Int4Unpack", note, pack.twin[0], shape=list(x.shape[1:]))]
    return [*table, *products_in(Form.INT4)]


def products_in(form: Form) -> list[Case]:
    """The gradients of binary products that read their dy in a form."""
    table = []
    for product in binary_product_cases():
        plain = OPERATORS[product.operator]
        name = in_form(plain.base, plain.form | form)
        if name is not None and product.note in ("same", "everything", "odd"):
            dtypes = (1, 10) if "InputGrad" in name else (1,)
            table += [narrow_dy(name, form, product, dtype) for dtype in dtypes]
    return table


def narrow_dy(name: str, form: Form, product: Case, dtype: int) -> Case:
    """The same product of a dy of few values, packed; dx in an ONNX dtype."""
    is_dx, (a, b) = "InputGrad" in name, product.inputs
    shape = (a if is_dx else b).shape
    own: dict[str, Attribute] = {"dtype": dtype} if is_dx else {}
    few = {Form.POW2: few_powers, Form.INT8: few_integers, Form.INT4: few_nibbles}
    packed = few[form](np.empty(shape))
    if form is not Form.INT8:
        own["dy_shape"] = list(shape[1:])
    inputs = (*packed, b) if is_dx else (a, *packed)
    return case(name, f"{product.note}-{dtype}", *inputs, **product.attributes, **own)


def any_pow2(n: int, length: int) -> tuple[Array, Array]:
    """Bits as they come, the spare ones set as well."""
    n_bytes = math.ceil(length / 2) + math.ceil(length / 8)
    return RNG.integers(0, 256, (n, n_bytes), np.uint8), scalar(0.25)


def whole_halves(like: Array) -> Array:
    return RNG.integers(-90, 91, like.shape).astype(np.float16)


def random_bits(n: int, shape: list[int]) -> Array:
    """A packed tensor (n, *shape), its spare bits 0."""
    return np.packbits(RNG.random((n, math.prod(shape))) < 0.5, axis=1, bitorder="little")


def pooling_cases() -> list[Case]:
    table = []
    for note, g in [*POOLINGS.items(), ("one-dimension", LINE_POOLING)]:
        _, indices = max_pool(normal(*g.x_shape), g)
        dy = normal(*indices.shape)
        table.append(case("MaxPoolGrad", note, dy, indices, input_shape=list(g.space)))
        table += average_pool_grad_cases(note, g, dy)
        if len(g.space) == 2:
            table += pool_index_cases(note, g, indices)
    return table


def average_pool_grad_cases(note: str, g: Geometry, dy: Array) -> list[Case]:
    """One of float16 as well, of whole numbers, and counts of which a quotient is exact."""
    random = np.random.default_rng(6)  # the table's own goes on as it did
    own: dict[str, Attribute] = {
        "input_shape": list(g.space), "kernel_shape": list(g.kernel), "strides": list(g.strides),
        "pads": list(g.pads), "dilations": list(g.dilations),
        "output_padding": list(g.output_padding),
    }  # fmt: skip
    counts = random.choice(np.array([1, 2, 4], np.float32), (1, 1, *dy.shape[2:]))
    table = [case("AveragePoolGrad", note, dy, 3 * counts, **own)]
    if note == "overlap-pad":
        whole = random.integers(-90, 91, dy.shape).astype(np.float16)
        table.append(case("AveragePoolGrad", f"{note}-float16", whole, counts, **own))
    return table


def pool_index_cases(note: str, g: Geometry, indices: Array) -> list[Case]:
    pack = case(
        "PoolIndexPack", note, indices, window_origin(g), **pool_index_attributes(g)
    )  # fmt: skip
    bits = pack.attributes["bit_values"]
    assert isinstance(bits, list)
    bit_shape = [*indices.shape[1:], len(bits)]
    unpack = case(
        "PoolIndexUnpack", note, *pack.twin, window_origin(g), bit_shape=bit_shape,
        **pack.attributes,
    )  # fmt: skip
    return [pack, unpack]


def pool_index_attributes(g: Geometry) -> dict[str, Attribute]:
    return {
        "plane": math.prod(g.space),
        "width": g.space[1],
        "kernel_width": g.kernel[1],
        "row_dilation": g.dilations[0],
        "column_dilation": g.dilations[1],
        "bit_values": [1 << i for i in range(n_index_bits(math.prod(g.kernel)))],
    }


def packed_pooling_cases() -> list[Case]:
    table = []
    for i, (note, g) in enumerate(POOLINGS.items()):
        window: dict[str, Attribute] = {
            "kernel_shape": list(g.kernel),
            "strides": list(g.strides),
            "pads": list(g.pads),
            "dilations": list(g.dilations),
        }
        places = pool_index_attributes(g)
        x = (30 * normal(*g.x_shape)).astype([np.float32, np.int16, np.float16][i % 3])
        pool = case("PackedMaxPool", note, x, window_origin(g), **window, **places)
        y, packed = pool.twin
        bits = places["bit_values"]
        assert isinstance(bits, list)
        table += [
            pool,
            case(
                "PackedMaxPoolGrad", note,
                normal(*y.shape).astype([np.float32, np.float16][i % 2]), packed, window_origin(g),
                input_shape=list(g.space), bit_shape=[*y.shape[1:], len(bits)], **places,
            ),
        ]  # fmt: skip
    return table


def pooled_normalization_cases() -> list[Case]:
    """Both types of dy and y, a ReLU between or none, a scale of 0, planes of odd lengths."""
    table = []
    grads = [c for c in packed_pooling_cases() if c.operator == "PackedMaxPoolGrad"]
    for i, pooled in enumerate(grads):
        dy, packed, origin = pooled.inputs
        c, shape = dy.shape[1], [dy.shape[1], *pooled.attributes["input_shape"]]  # type: ignore[misc]
        y = normal(*dy.shape).astype([np.float16, np.float32, np.float32][i % 3])
        channel = [normal(c) * (np.arange(c) != 1), normal(c), 1 + abs(normal(c))]
        inputs = (dy, y, packed, origin, random_bits(len(dy), shape), *channel)
        own: dict[str, Attribute] = {"relu": i % 2, "epsilon": 0.1, "shape": shape}
        attributes = {**pooled.attributes, **own}
        table.append(Case("L1BatchNormalizationPoolGrad", pooled.note, inputs, attributes))
    edges = EDGES.reshape(1, 2, 5)
    table.append(case("ThresholdPack", "edges", edges, np.array([0, 1], np.float32)))
    for note, shape in [("image", (2, 3, 5, 3)), ("rows", (4, 19))]:
        for dtype in (np.float32, np.float16, np.int16):
            x = (3 * normal(*shape)).astype(dtype)
            table.append(case("ThresholdPack", f"{note}-{x.dtype}", x, normal(shape[1])))
    return table


def normalization_cases() -> list[Case]:
    inputs = {
        "image": normal(4, 3, 5, 2),
        "rows": normal(6, 5),
        "line-batch-1": normal(1, 2, 3),
        "many-elements": normal(16, 1, 200, 200),  # naive float32 sums of squares are off by 1e-4
        "far-from-zero": 100 + normal(8, 2, 4, 4),
        "constant-channel": np.concatenate([normal(4, 1, 6), np.ones((4, 1, 6), np.float32)], 1),
    }
    table = []
    for note, x in inputs.items():
        c = x.shape[1]
        scale, bias, mean, var = normal(c), normal(c), normal(c), normal(c) ** 2
        training = case(
            "BatchNormalizationTraining", note, x, scale, bias, mean, var,
            epsilon=1e-5, momentum=0.9, dtype=1,
        )  # fmt: skip
        *_, batch_mean, inv_std = training.twin
        dy = normal(*x.shape)
        table += [
            training,
            case("BatchNormalizationGrad", note, dy, x, scale, batch_mean, inv_std),
            case("BatchNormalizationApply", note, x, scale, bias, batch_mean, inv_std, dtype=1),
        ]
    *_, last = table[::3]
    options = {"epsilon": 0.1, "momentum": 0.25, "dtype": 10}
    return [*table, Case(last.operator, "options", last.inputs, options)]


def narrow_cases() -> list[Case]:
    """Integers of 16 bits and halves where a float32 map may be."""
    table = []
    for x in (EDGES.astype(np.float16), RNG.integers(-3, 4, (3, 11)).astype(np.int16)):
        table += [
            case("SignPack", x.dtype.name, x),
            case("BinarizePack", x.dtype.name, x, zero=1.0),
            case("RangePack", x.dtype.name, x, low=-0.3, high=0.1),
        ]
    dy, x, packed = normal(3, 5).astype(np.float16), normal(3, 5), random_bits(3, [5])
    table += [
        case("MaskedGrad", "float16", dy, packed, shape=[5]),
        case("ClipGrad", "float16", dy, x, low=-1.0, high=1.0),
        case("ReluGrad", "float16", dy, x),
    ]
    for note, dtype in [("int16", np.int16), ("float16", np.float16)]:
        x = (20 * normal(4, 3, 5, 2)).astype(dtype)
        scale, bias, mean, var = normal(3), normal(3), normal(3), normal(3) ** 2
        training = case(
            "BatchNormalizationTraining", note, x, scale, bias, mean, var,
            epsilon=1e-5, momentum=0.9, dtype=10,
        )  # fmt: skip
        *_, batch_mean, inv_std = training.twin
        dy = normal(*x.shape).astype(np.float16)
        grad = case("BatchNormalizationGrad", note, dy, x, scale, batch_mean, inv_std)
        again = "BatchNormalizationApply", note, x, scale, bias, batch_mean, inv_std
        table += [training, grad, case(*again, dtype=10)]
    return table


def normalization_sign_cases() -> list[Case]:
    """Integers, of which no result comes near a bound that decides on its bit."""
    table = []
    for note, shape, zero, low, high in [
        ("image", (4, 3, 5, 2), 1.0, -1.0, 1.0),
        ("rows", (6, 19), -1.0, -1.0, 1.0),
        ("line-batch-1", (1, 2, 3), 1.0, -0.75, 0.5),
        ("whole-bytes", (3, 2, 4, 4), 1.0, 0.0, 6.0),
    ]:
        for dtype in (np.float32, np.int16, np.float16):
            x = RNG.integers(-3, 4, shape).astype(dtype)
            channel = [1 + abs(normal(shape[1])), normal(shape[1]), normal(shape[1])]
            bounds = {"zero": zero, "low": low, "high": high, "epsilon": 1e-5, "momentum": 0.9}
            bias = clear_bias(RNG, x, channel[0], (0, low, high))
            inputs = (x, channel[0], bias, channel[1], channel[2] ** 2)
            name = f"{note}-{np.dtype(dtype).name}"
            bounds["shape"] = list(shape[1:])
            table.append(Case("BatchNormalizationSigns", name, inputs, bounds))
    return table


def l1_normalization_cases() -> list[Case]:
    table = []
    for note, x in {
        "image": normal(4, 3, 5, 2),
        "rows": normal(6, 5),
        "line-batch-1": normal(1, 2, 3),
        "int16": RNG.integers(-30, 30, (3, 2, 4, 4)).astype(np.int16),
        "constant-channel": np.concatenate([normal(4, 1, 6), np.ones((4, 1, 6), np.float32)], 1),
    }.items():
        c = x.shape[1]
        scale, bias, mean, var = normal(c), normal(c), normal(c), normal(c) ** 2
        training = case(
            "L1BatchNormalizationTraining", note, x, scale, bias, mean, var,
            epsilon=1e-5, momentum=0.9, dtype=10 if x.dtype == np.int16 else 1,
        )  # fmt: skip
        *_, batch_mean, inv_std = training.twin
        dy = normal(*x.shape)
        grad = case("L1BatchNormalizationGrad", note, dy, x, scale, batch_mean, inv_std)
        table += [training, grad]
    return table


def level_cases() -> list[Case]:
    """Both kinds of batch norm to bits, what the bits say, and the gradient from them alone."""
    table = []
    for fused in normalization_sign_cases():
        shape = fused.attributes["shape"]
        l1 = Case("L1BatchNormalizationSigns", fused.note, fused.inputs, fused.attributes)
        if fused.inputs[1].size > 1:  # L1 has another spread, and other biases that are clear
            bounds = [0.0, *(fused.attributes[name] for name in ("low", "high"))]
            inputs = list(fused.inputs)
            inputs[2] = clear_bias(RNG, inputs[0], inputs[1], bounds, l1=True)  # type: ignore[arg-type]
            l1 = Case(l1.operator, l1.note, tuple(inputs), l1.attributes)
        signs, mask, _, _, mean, inv_std, levels, slopes = l1.twin
        scale, x = l1.inputs[1], l1.inputs[0]
        dy = normal(*x.shape).astype(np.float16 if x.dtype == np.float16 else np.float32)
        inputs = (dy, signs, mask, scale, inv_std, levels, slopes)
        table += [
            fused,
            l1,
            case(
                "BatchNormalizationLevels", fused.note, x, signs, mask, mean, inv_std, shape=shape
            ),
            Case("BatchNormalizationSignsGrad", fused.note, inputs, {"shape": shape}),
        ]
    return table


def filter_block_cases() -> list[Case]:
    """Small integers all the way to the batch norm, which keeps clear of the bounds."""
    table = []
    for product, pools, dtype in [
        (product, pools, dtype)
        for product, dtypes in (("BinaryConv", (5, 1)), ("RealConv", (10, 1)))
        for pools in (False, True)
        for dtype in dtypes
    ]:
        read, own = _convolved(product, dtype)
        (y,) = case(product, "", *read, **own).twin
        origin: tuple[Array, ...] = ()
        if pools:
            g = POOLINGS["plain"]
            window: dict[str, Attribute] = {
                "kernel_shape": list(g.kernel), "strides": list(g.strides), "pads": list(g.pads),
                "dilations": list(g.dilations),
            }  # fmt: skip
            origin, places = (window_origin(g),), pool_index_attributes(g)
            y, _ = case("PackedMaxPool", "", y, *origin, **window, **places).twin
            own |= places | {f"pool_{name}": value for name, value in window.items()}
        own |= {"zero": 1.0, "low": -1.0, "high": 0.5, "epsilon": 1e-5, "momentum": 0.9}
        own["shape"] = list(y.shape[1:])
        for l1 in (False, True):
            scale, mean, var = 1 + abs(normal(4)), normal(4), normal(4) ** 2
            bias = clear_bias(RNG, y, scale, (0, -1, 0.5), l1=l1)
            name = product + "Pool" * pools + "L1" * l1 + "BatchNormalizationSigns"
            inputs = (*read, *origin, scale, bias, mean, var)
            table.append(Case(name, f"dtype-{dtype}", inputs, own))
    return table


def filter_block_gradient_cases() -> list[Case]:
    """Numbers of a few digits, so that all sums agree, whatever their order."""
    x_shape, own = [3, 6, 8], dict(_convolved("BinaryConv", 1)[1])
    w, bits = random_bits(4, [3, 3, 3]), [random_bits(2, x_shape) for _ in range(2)]
    own = {key: own[key] for key in ("strides", "pads", "dilations", "group", "w_shape")}
    own |= {"input_shape": x_shape[1:], "output_padding": [0, 0], "shape": x_shape}
    own |= {"conv_kernel_shape": [2, 2], "conv_strides": [1, 1], "conv_dilations": [1, 1]}
    own["conv_pads"] = [1, 0, 0, 1]
    x = whole_halves(normal(2, 5, *x_shape[1:])).astype(np.float32)
    tables = [2.0 ** RNG.integers(-2, 2, shape) for shape in ((3,), (3,), (3, 4), (3, 4))]
    rest = (*bits, *(np.asarray(table, np.float32) for table in tables), x)
    dy = whole_halves(normal(2, 4, *x_shape[1:]))
    table = [
        case("BinaryConvInputGradNormConvWeightGrad", dtype, dy.astype(dtype), w, *rest, **own)
        for dtype in ("float32", "float16")
    ]
    q, unit = RNG.integers(-9, 9, dy.shape, np.int8), np.array(0.5, np.float32)
    for dtype in (1, 10):
        name = "BinaryConvInputGradInt8NormConvWeightGrad"
        table.append(case(name, f"dtype-{dtype}", q, unit, w, *rest, **own, dtype=dtype))
    return table


def stem_cases() -> list[Case]:
    """Whole numbers up to the batch norm, of both types and with a ReLU or without; and back."""
    random, table = np.random.default_rng(3), []
    g = POOLINGS["overlap-pad"]
    window: dict[str, Attribute] = {
        "kernel_shape": list(g.kernel), "strides": list(g.strides), "pads": list(g.pads),
        "dilations": list(g.dilations),
    }  # fmt: skip
    own: dict[str, Attribute] = {"strides": [2, 2], "pads": [1, 0, 1, 0], "dilations": [1, 1]}
    x, w = (random.integers(-3, 4, s).astype("f") for s in ((2, 3, 14, 15), (4, 3, 3, 3)))
    scale, bias, mean = (random.standard_normal(4).astype("f") for _ in range(3))
    places = pool_index_attributes(g)
    of_pool = places | {f"pool_{name}": value for name, value in window.items()}
    of_norm: dict[str, Attribute] = {"epsilon": 1e-5, "momentum": 0.9}
    for dtype, relu in ((1, 0), (1, 1), (10, 1)):
        inputs = (x.astype("e") if relu else x, w, scale, bias, mean, mean**2, window_origin(g))
        attributes = {**own, "group": 1, **of_norm, **of_pool, "relu": relu, "dtype": dtype}
        forward = Case("RealConvNormMaxPool", f"dtype-{dtype}-relu-{relu}", inputs, attributes)
        table.append(forward)
        if dtype == 1:
            table.append(_stem_grad(forward, places, random))
    return table


def _stem_grad(forward: Case, places: Mapping[str, Attribute], random: np.random.Generator) -> Case:
    (y, packed, sides, *_, inv_std), (x, w, scale, bias, *_, origin) = forward.twin, forward.inputs
    bits = places["bit_values"]
    assert isinstance(bits, list)
    own = {name: forward.attributes[name] for name in ("strides", "pads", "dilations")}
    attributes: dict[str, Attribute] = {
        "relu": forward.attributes["relu"], "dtype": 1, "epsilon": 1e-5, "shape": [4, 7, 7],
        "input_shape": [7, 7], "bit_shape": [*y.shape[1:], len(bits)], **places,
        "conv_input_shape": list(x.shape[2:]), "conv_kernel_shape": list(w.shape[2:]),
        **{f"conv_{name}": value for name, value in own.items()},
    }  # fmt: skip
    dy = random.standard_normal(y.shape).astype("f")
    inputs = (dy, y, packed, origin, sides, scale, bias, inv_std, x)
    return Case("RealConvNormMaxPoolGrad", forward.note, inputs, attributes)


def _convolved(product: str, dtype: int) -> tuple[tuple[Array, Array], dict[str, Attribute]]:
    """Operands whose products are small integers (2, 4, 6, 8), and the attributes."""
    own: dict[str, Attribute] = {
        "strides": [1, 1], "pads": [1, 1, 1, 1], "dilations": [1, 1], "group": 1, "dtype": dtype,
    }  # fmt: skip
    x_shape, w_shape = [3, 6, 8], [3, 3, 3]
    if product == "BinaryConv":
        own |= {"x_shape": x_shape, "w_shape": w_shape}
        return (random_bits(2, x_shape), random_bits(4, w_shape)), own
    x, w = (RNG.integers(-1, 2, shape) for shape in ((2, *x_shape), (4, *w_shape)))
    return (x.astype(np.float32), w.astype(np.float32)), own


def loss_cases() -> list[Case]:
    masked = normal(3, 5)
    masked[:, 2] = -np.inf
    inputs = {
        "rows": (normal(4, 10), (4,)),
        "batch-1": (normal(1, 3), (1,)),
        "line": (normal(2, 5, 3), (2, 3)),
        "image": (normal(2, 4, 3, 2), (2, 3, 2)),
        "large": (1000 * normal(5, 4), (5,)),
        "masked-class": (masked, (3,)),
    }
    table = []
    for note, (logits, shape) in inputs.items():
        labels = RNG.integers(0, 2, shape) if note == "masked-class" else None
        if labels is None:
            labels = RNG.integers(0, logits.shape[1], shape)
        forward = case("SoftmaxCrossEntropy", note, logits, labels)
        log_prob = forward.twin[1]
        table += [
            forward,
            case("SoftmaxCrossEntropyGrad", note, scalar(1), log_prob, labels),
            case("SoftmaxCrossEntropyGrad", f"{note}-scaled", scalar(0.3), log_prob, labels),
        ]
    return table


def dropout_cases() -> list[Case]:
    table = []
    for note, x, step, ratio, seed in [
        ("half", normal(5, 7), 1, 0.5, 1),
        ("quarter-later", normal(2, 3, 5), 1000, 0.25, 2**31 + 5),
        ("keeps-all", normal(9), 3, 0.0, 0),
        ("late-step", normal(64), 3_000_000_000, 0.5, 2**40 + 7),
        ("negative-seed", normal(33), 2, 0.9, -12345),
        ("edges", EDGES, 4, 0.5, 9),
        ("scalar", scalar(3), 0, 0.3, 4),
    ]:
        threshold, scale = round(ratio * 2**32), 1 / (1 - ratio)
        attributes = {"threshold": threshold, "scale": scale, "seed": seed}
        table.append(case("Dropout", note, x, np.array(step), **attributes))
    for note, x, step, low, scale, seed in [
        ("unit", normal(5, 7), 1, 0.0, 1.0, 1),
        ("shifted", normal(2, 3, 5), 1000, -2.5, 0.7, 2**31 + 5),
        ("of-integers", np.arange(6), 3, 0.0, 1.0, -7),
        ("a-constant", normal(3), 0, 0.5, 0.0, 9),
        ("scalar", scalar(3), 0, 0.0, 1.0, 4),
    ]:
        attributes = {"low": low, "scale": scale, "seed": seed}
        table.append(case("DrawUniform", note, x, np.array(step), **attributes))
    return table


def optimizer_cases() -> list[Case]:
    table = []
    for note, shape, step in [
        ("scalar", (), 1),
        ("vector", (7,), 2),
        ("matrix", (4, 3), 10),
        ("filters", (4, 3, 3, 3), 100_000),
    ]:
        w, dw = normal(*shape), normal(*shape)
        table += optimizer_rules("", note, shape, step, [w, dw], {})
        if shape:
            signs: dict[str, Attribute] = {"shape": list(shape[1:]), "scale": 0.3, "limit": 1.0}
            packed = random_bits(shape[0], list(shape[1:]))
            table.append(case("SignGrad", note, packed, w, **signs))
            table += optimizer_rules("Sign", note, shape, step, [w, packed], signs)
            table += half_rules("Sign", note, shape, step, [w, packed], signs)
            table += byte_rules("Sign", note, shape, step, [w, packed], signs)
            table += byte_rules("", note, shape, step, [w, dw], {})
            signed = half_rules("Sign", note, shape, step, [w, packed], {**signs, "limit": 128.0})
            table += [
                of_latents(rule)
                for rule in (*signed, *byte_rules("", note, shape, step, [w, dw], {}))
            ]
        table += half_rules("", note, shape, step, [w, dw], {})
    bounds = np.array([[1.0, -1.0, 1.0000001, 0.0, np.inf]], np.float32)
    limited = case("SignGrad", "limits", np.array([[3]], np.uint8), bounds, shape=[5], **SIGNS)
    endless = {"shape": [5], "scale": 0.1, "limit": float(np.finfo(np.float32).max)}
    zeros = np.zeros(3, np.float32)
    first = (normal(3), zeros, zeros, zeros, scalar(0.1), np.array(1))
    return [
        *table,
        limited,
        case("SignGrad", "no-limit", np.array([[3]], np.uint8), 1e9 * normal(1, 5), **endless),
        case("AdamStep", "no-gradient", *first, beta1=0.5, beta2=0.9, epsilon=1e-3),
    ]


SIGNS: dict[str, Attribute] = {"scale": 0.5, "limit": 1.0}


def optimizer_rules(
    prefix: str, note: str, shape: tuple[int, ...], step: int, read: list[Array],
    more: dict[str, Attribute],
) -> list[Case]:  # fmt: skip
    """A case of each rule, reading `read` first and with `more` attributes."""
    given = {"m": normal(*shape), "v": np.asarray(normal(*shape) ** 2), "lr": scalar(0.01)}
    given["step"] = np.array(step)
    table = []
    for rule in RULES:
        function = rule.function(MIN_OPSET)
        inputs = [given[name] for name in function.input[2:]]
        numbers = {name: RULE_NUMBERS.get(name, 0.9) for name in function.attribute}
        table.append(case(prefix + rule.name, note, *read, *inputs, **numbers, **more))
    return table


# What makes a difference.
RULE_NUMBERS = {"beta2": 0.999, "epsilon": 1e-6, "decay": 0.3, "root": 0.3}


def half_rules(
    prefix: str, note: str, shape: tuple[int, ...], step: int, read: list[Array],
    more: dict[str, Attribute],
) -> list[Case]:  # fmt: skip
    """The same rules on weights and state in float16."""
    table = []
    for i, rule in enumerate(optimizer_rules(prefix, note, shape, step, read, more)):
        names = OPERATORS[rule.operator.removeprefix(prefix)].function(MIN_OPSET).input[2:]
        w, gradient, *kept = rule.inputs
        given = dict(zip(names, kept, strict=True))
        with_roots = given | {"v": np.sqrt(given.get("v", 0))}
        halves = [np.asarray(1024 * with_roots[n], np.float16) for n in names if n in ("m", "v")]
        tail = [given["lr"], np.array(step)]
        options = {**rule.attributes, "stochastic": i % 2, "seed": 11 * i + len(shape)}
        options["w_unit"] = 0.0
        inputs = (np.asarray(w, np.float16), gradient, *halves, *tail)
        name = prefix + "Half" + rule.operator.removeprefix(prefix)
        table.append(Case(name, note, inputs, options))
    return table


def byte_rules(
    prefix: str, note: str, shape: tuple[int, ...], step: int, read: list[Array],
    more: dict[str, Attribute],
) -> list[Case]:  # fmt: skip
    """Those of them that have a momentum, which is kept in int8."""
    table = []
    for rule in half_rules(prefix, note, shape, step, read, more):
        name = rule.operator.replace("Half", "Byte")
        if name not in OPERATORS:
            continue
        w, gradient, _, *rest = rule.inputs
        inputs = (w, gradient, peaks_of(shape[0]), byte_momentum(shape), *rest)
        table.append(Case(name, note, inputs, {**rule.attributes, "headroom": 2.0}))
    return table


def of_latents(rule: Case) -> Case:
    """The same rule on weights in int8."""
    latents = RNG.integers(-128, 128, rule.inputs[0].shape, np.int8)
    options = {**rule.attributes, "w_unit": 1 / 128}
    return Case(rule.operator, f"{rule.note}-latents", (latents, *rule.inputs[1:]), options)


def latent_cases() -> list[Case]:
    """Every integer, and what is rounded to them: beyond all of them and nowhere as well."""
    table = []
    for note, shape in SHAPES.items():
        q, x = RNG.integers(-128, 128, shape, np.int8), np.float32(0.3) * normal(*shape)
        table.append(case("WidenLatents", note, q, unit=2.0**-9))
        table.append(case("RoundToLatents", note, x, np.array(3), unit=2.0**-9, seed=len(table)))
    every = np.arange(-128, 128, dtype=np.int8).reshape(2, 128)
    far = np.array([[0.0, -0.0, 1.0, -1.0, 3e38, -3e38, np.inf, -np.inf, 1e-30]], np.float32)
    return [
        *table,
        case("WidenLatents", "every", every, unit=1 / 127),
        case("RoundToLatents", "far", far, np.array(1), unit=1 / 127, seed=1),
    ]


def byte_momentum(shape: tuple[int, ...]) -> Array:
    return RNG.integers(-127, 128, shape, np.int8)


def peaks_of(n_rows: int) -> Array:
    """Of rows that grow, that shrink, and one without a momentum so far."""
    peaks = RNG.uniform(0.5, 2, (n_rows, 4)).astype(np.float32)
    peaks[-1] = 0
    return peaks


def update_cases() -> list[Case]:
    """Every weight gradient with every optimiser step; the sums are exact, whatever their order."""
    g = CONVOLUTIONS["same"]
    x, dy = whole_halves(normal(*g.x_shape)), whole_halves(normal(*g.conv_shape))
    x, dy = x.astype(np.float32), dy.astype(np.float32)
    matrix = dy.ravel()[:12].reshape(3, 4)
    own: dict[str, Attribute] = {
        "kernel_shape": list(g.kernel), "strides": list(g.strides), "pads": list(g.pads),
        "dilations": list(g.dilations), "group": g.group,
    }  # fmt: skip
    x_shape = list(g.x_shape[1:])
    bits = {"x_shape": x_shape, **own}
    packed, few = random_bits(g.n, x_shape), random_bits(3, [27])
    pow2 = {**bits, "dy_shape": list(dy.shape[1:])}
    return [
        *updates("Conv", g.w_shape, (x, dy), own),
        *updates("Gemm", (4, 27), (matrix, whole_halves(normal(3, 27)).astype(np.float32)), {}),
        *updates("BinaryConv", g.w_shape, (packed, dy), bits),
        *updates("BinaryGemm", (4, 27), (few, matrix), {"x_shape": [27]}),
        *updates("BinaryConvPow2", g.w_shape, (packed, *few_powers(dy)), pow2),
        *updates(
            "BinaryGemmPow2",
            (4, 27),
            (few, *few_powers(matrix)),
            {"x_shape": [27], "dy_shape": [4]},
        ),
        *updates("BinaryConvInt4", g.w_shape, (packed, *few_nibbles(dy)), pow2),
        *updates(
            "BinaryGemmInt4",
            (4, 27),
            (few, *few_nibbles(matrix)),
            {"x_shape": [27], "dy_shape": [4]},
        ),
        *updates("BinaryConvInt8", g.w_shape, (packed, *few_integers(dy)), bits),
        *updates("BinaryGemmInt8", (4, 27), (few, *few_integers(matrix)), {"x_shape": [27]}),
    ]


def few_powers(like: Array) -> tuple[Array, Array]:
    """Packed powers of two and zeros whose sums are exact."""
    x = (2.0 ** RNG.integers(-2, 5, like.shape)).astype(np.float32)
    return case("Pow2Pack", "", x * RNG.integers(-1, 2, like.shape, np.int8)).twin


def few_integers(like: Array) -> tuple[Array, Array]:
    return RNG.integers(-127, 128, like.shape, np.int8), scalar(0.3)


def few_nibbles(like: Array) -> tuple[Array, Array]:
    return pack_codes(RNG.integers(-7, 8, like.shape, np.int8)), scalar(0.3)


def updates(
    kind: str, shape: tuple[int, ...], read: tuple[Array, ...], own: dict[str, Attribute]
) -> list[Case]:
    """One weight gradient with every optimiser step, masked and unmasked."""
    w, row = normal(*shape), list(shape[1:])
    signs: dict[str, Attribute] = {"shape": row, "scale": 0.3, "limit": 0.8}
    packed = random_bits(shape[0], row)
    floats = all_rules("", shape, [w, w], {})
    limits = [-1.0 if "AdamW" in step.operator else 0.8 for step in floats]
    steps: list[tuple[Case, dict[str, Attribute]]] = [
        (s, {"scale": 2.0**-8, "limit": n}) for s, n in zip(floats, limits, strict=True)
    ]
    if kind != "Gemm":
        steps += [(step, {}) for step in all_rules("Sign", shape, [w, packed], signs)]
        steps += [(step, {"scale": 2.0**-8}) for step in bop_of("same", shape)]
    return [fused(kind, step, read, {**own, **more}) for step, more in steps]


def all_rules(
    prefix: str, shape: tuple[int, ...], read: list[Array], more: dict[str, Attribute]
) -> list[Case]:
    return [
        *optimizer_rules(prefix, "same", shape, 3, read, more),
        *half_rules(prefix, "same", shape, 3, read, more),
        *byte_rules(prefix, "same", shape, 3, read, more),
    ]


def fused(kind: str, step: Case, read: tuple[Array, ...], more: dict[str, Attribute]) -> Case:
    """The step by the gradient of a product instead of its own."""
    w, _, *rest = step.inputs
    return case(kind + step.operator, step.note, w, *read, *rest, **more, **step.attributes)


def bop_cases() -> list[Case]:
    shapes = {"bytes": (3, 16), "odd": (4, 3, 3), "rank-1": (5,)}
    return [c for note, shape in shapes.items() for c in bop_of(note, shape)]


def bop_of(note: str, shape: tuple[int, ...]) -> list[Case]:
    w, dw, m = random_bits(shape[0], list(shape[1:])), normal(*shape), normal(*shape)
    options: dict[str, Attribute] = {"shape": list(shape[1:]), "gamma": 0.3, "tau": 0.5}
    half = np.asarray(1024 * m, np.float16)
    return [
        case("BopStep", note, w, dw, m, **options),
        case("HalfBopStep", note, w, dw, half, np.array(7), **options, seed=3),
        case(
            *("ByteBopStep", note, w, dw, peaks_of(shape[0]), byte_momentum(shape), np.array(7)),
            **options,
            seed=3,
            headroom=1.125,
        ),
    ]


def rounding_cases() -> list[Case]:
    halves = RNG.integers(0, 0x7C00, 200, np.uint16).view(np.float16).astype(np.float32)
    between = halves * RNG.uniform(0.9995, 1.0005, 200).astype(np.float32)
    edges = np.array([0, 65504, 65519.9, 65520, 1e9, 6e-8, 2.9e-8, 1e-12, 6.1e-5, 1, 2], np.float32)
    table = []
    for note, x in [
        ("halves", halves),
        ("between", between),
        ("edges", edges),
        ("rank", normal(3, 4)),
    ]:
        for stochastic in (0, 1):
            options: dict[str, Attribute] = {"stochastic": stochastic, "seed": 5}
            both = np.concatenate([x, -x])
            name = f"{note}-{'stochastic' if stochastic else 'nearest'}"
            table.append(case("RoundToHalf", name, both, np.array(3), **options))
    rows = np.stack([3 * normal(50), 1e9 * normal(50), np.zeros(50, np.float32), normal(50)])
    units = np.array([[0.02], [1.0], [0.5], [0.0]], np.float32)
    table.append(case("RoundToByte", "rows", rows, units, np.array(3), seed=5))
    return [*table, case("RandomBits", "image", normal(2, 3, 5), np.array(1000), seed=2**31 + 5)]


def indexing_cases() -> list[Case]:
    table = []
    for note, before, picked, behind, length in [
        ("rows", (), (5,), (3,), 4),
        ("table", (), (2, 3), (4,), 7),
        ("numbers", (), (3,), (), 2),
        ("one", (2,), (), (3,), 3),
        ("columns", (2, 3), (4,), (), 3),
        ("middle", (2,), (2, 2), (3, 2), 5),
    ]:
        dy, indices = normal(*before, *picked, *behind), RNG.integers(-length, length, picked)
        table.append(case("GatherGrad", note, dy, indices, axis=len(before), length=length))
    return table


def byte_cases() -> list[Case]:
    """Images, rows and single numbers, with a factor and a shift for each channel."""
    found = []
    for note, shape in {**SHAPES, "every-byte": (256, 2, 1)}.items():
        x = RNG.integers(0, 256, shape, np.uint8) if note != "every-byte" else EVERY_BYTE
        of_channels = (1, *shape[1:2], *[1] * (len(shape) - 2))
        scales = [RNG.standard_normal(of_channels).astype(np.float32) for _ in range(2)]
        found += [case(name, note, x, *scales) for name in ("NormalizeBytes", "NormalizeOnRead")]
        found.append(case("WidenOnRead", note, RNG.standard_normal(shape).astype(np.float16)))
    return found


CASES = [
    *binarize_cases(),
    *elementwise_grad_cases(),
    *packing_cases(),
    *convolution_cases(),
    *pooling_cases(),
    *normalization_cases(),
    *loss_cases(),
    *dropout_cases(),
    *optimizer_cases(),
    *binary_product_cases(),
    *packed_pooling_cases(),
    *pooled_normalization_cases(),
    *narrow_cases(),
    *bitmap_cases(),
    *rounding_cases(),
    *bop_cases(),
    *indexing_cases(),
    *update_cases(),
    *l1_normalization_cases(),
    *level_cases(),
    *filter_block_cases(),
    *filter_block_gradient_cases(),
    *stem_cases(),
    *pow2_cases(),
    *int4_cases(),
    *int8_cases(),
    *byte_cases(),
    *latent_cases(),
]
