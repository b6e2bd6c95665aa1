"""One small network per case: an operator between a trained layer and a weighted sum."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from tests.autodiff.interpreter import run

Array = NDArray[Any]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]

BATCH = 4


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.standard_normal(shape)


def positive(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.uniform(0.6, 2.0, shape)


def spaced(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """No two closer than 0.2, nor closer than 0.1 to a whole number."""
    n = int(np.prod(shape))
    values = (np.arange(n) - n // 2) * 0.5 + 0.25
    return rng.permutation(values).reshape(shape)


def near(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Between -4 and 4, not closer than 0.1 to a whole number."""
    return rng.integers(-4, 4, shape) + rng.uniform(0.1, 0.9, shape)


def tiny(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.uniform(-0.05, 0.05, shape)


@dataclass(frozen=True)
class Case:
    """An operator in a network of ONNX text.

    Attributes
    ----------
    operator : str
        A key of GRADIENTS.
    body : str
        Statements from ``x`` and the parameters to ``y``. ``h`` is x + b where `sample` is given.
    sample : tuple of int or None
        Shape of one sample of x: the graph gets the input ``x`` (N, *sample) and the parameter
        ``b`` (sample), and its body starts with ``h = Add(x, b)``.
    parameters : mapping of str to shape
        Further trained initialisers.
    draw, draw_parameter : Draw
        The values of x and of the parameters; b is always small.
    """

    operator: str
    note: str
    body: str
    sample: tuple[int, ...] | None = (5,)
    parameters: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    draw: Draw = normal
    draw_parameter: Draw = normal
    opset: int = 18
    stock: bool = True  # whether onnxruntime has a kernel for it
    written_out: bool = False  # the reader makes other operators of it
    any_batch: bool = True  # whether smaller batches run

    def __str__(self) -> str:
        return f"{self.operator}-{self.note}"

    def rng(self) -> np.random.Generator:
        return np.random.default_rng(zlib.crc32(str(self).encode()))

    def values(self) -> dict[str, Array]:
        """The float32 initialisers."""
        rng = self.rng()
        bias = {} if self.sample is None else {"b": tiny(rng, self.sample)}
        others = {n: self.draw_parameter(rng, s) for n, s in self.parameters.items()}
        return {n: a.astype(np.float32) for n, a in {**bias, **others}.items()}

    def model(self) -> onnx.ModelProto:
        """The network, ending in ``loss = sum(y * c)``; c is a second input like y."""
        sample = (
            ["N", *map(str, self.sample)] if self.sample is not None else ["N", "1", "1", "1", "1"]
        )
        values = self.values()
        declared = [f"float[{','.join(sample)}] x", "float c"]
        start = "h = Add (x, b)" if self.sample is not None else ""
        model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": {self.opset}]>
            g ({", ".join(declared)}) => (float loss) {{
                {start} {self.body}
                weighted = Mul (y, c)
                loss = ReduceSum <keepdims = 0> (weighted)
            }}""")
        tensors = [onnx.numpy_helper.from_array(a, n) for n, a in values.items()]
        model.graph.initializer.extend(tensors)
        shape = [d.dim_value for d in _shape_of(model, "y").dim] or [1]
        c = onnx.helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, shape)
        model.graph.input[1].CopyFrom(c)
        return model

    def feeds(
        self, forward: ir.Graph, weights: Mapping[str, Array], batch: int
    ) -> dict[str, Array]:
        """x and c in float32, c in the shape that y has at that batch size."""
        rng = self.rng()
        x = self.draw(rng, (BATCH, *(self.sample if self.sample is not None else (1, 1, 1, 1))))[
            :batch
        ].astype(np.float32)
        values = run(forward, {"x": x, "c": np.ones(1), **weights})
        return {"x": x, "c": rng.standard_normal(values["weighted"].shape).astype(np.float32)}


def _shape_of(model: onnx.ModelProto, name: str) -> onnx.TensorShapeProto:
    """The shape of a value at BATCH samples."""
    fixed = onnx.ModelProto.FromString(model.SerializeToString())
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = BATCH
    del fixed.graph.node[-2:]
    fixed.graph.output[0].name = name
    fixed.graph.output[0].type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(fixed, strict_mode=True, data_prop=True)
    return inferred.graph.output[0].type.tensor_type.shape


def _unary(operator: str, draw: Draw = normal, attributes: str = "", note: str = "x") -> Case:
    return Case(operator, note, f"y = {operator} {attributes} (h)", draw=draw)


def _binary(operator: str, draw: Draw = normal) -> list[Case]:
    """Both operands trained, broadcast this way and that, and one value used twice."""
    shapes = {
        "same": ((3, 5), (3, 5)), "row": ((3, 5), (5,)), "column": ((3, 5), (3, 1)),
        "scalar": ((3, 5), ()), "one": ((3, 5), (1,)), "left-column": ((3, 1), (3, 5)),
        "outer": ((3, 1), (1, 5)), "deeper": ((5,), (1, 2, 5)), "unit-rows": ((1, 5), (1, 1)),
    }  # fmt: skip
    pairs = [
        Case(operator, f"{note}-{order}", f"y = {operator} ({args})", sample,
             {"w": other}, draw, draw)
        for note, (sample, other) in shapes.items()
        for order, args in (("ab", "h, w"), ("ba", "w, h"))
        if len(other) <= len(sample)
    ]  # fmt: skip
    weights = [
        Case(operator, f"weights-{note}", f"z = {operator} (v, w) y = Mul (z, x)", None,
             {"v": a, "w": b}, draw, draw)
        for note, (a, b) in shapes.items()
    ]  # fmt: skip
    twice = Case(operator, "twice", f"y = {operator} (h, h)", draw=draw)
    per_sample = Case(
        operator, "per-sample",
        f"i = Constant <value_ints = [1]> () m = ReduceMean <keepdims = 1> (h, i)"
        f" y = {operator} (h, m) ", (5,), draw=draw,
    )  # fmt: skip
    same = [] if operator == "Sub" else [twice]  # x - x.detach(): the gradient of x
    return [*pairs, *[w for w in weights if "deeper" not in w.note], *same, per_sample]


ELEMENTWISE = [
    *_binary("Add"),
    *_binary("Sub"),
    *_binary("Mul"),
    *_binary("Div", positive),
    *_binary("Max"),
    *_binary("Min"),
    *(_unary(op) for op in ("Neg", "Exp", "Erf", "Sigmoid", "Tanh", "Softplus")),
    *(_unary(op, positive) for op in ("Sqrt", "Log", "Reciprocal")),
    *(_unary(op, near) for op in ("Abs", "Relu", "HardSwish")),
    replace(_unary("Gelu"), opset=20),
    replace(_unary("Gelu", normal, "<approximate = \"tanh\">", "tanh"), opset=20),
    _unary("LeakyRelu", near),
    _unary("LeakyRelu", near, "<alpha = 0.3>", "alpha"),
    _unary("HardSigmoid", near),
    _unary("HardSigmoid", near, "<alpha = 0.4, beta = 0.3>", "alpha-beta"),
    _unary("HardSigmoid", near, "<alpha = -0.4, beta = 0.3>", "negative-alpha"),
    *(
        Case("Pow", note, f"p = Constant <{value}> () y = Pow (h, p)", draw=positive)
        for note, value in {
            "2": "value_float = 2.0", "3": "value_float = 3.0", "half": "value_float = 0.5",
            "minus": "value_float = -1.5", "1": "value_float = 1.0",
            "wide": "value = float[1,1,1] {2.5}", "int": "value_int = 3",
        }.items()
    ),
    Case("Pow", "0-at-0", "p = Constant <value_float = 0.0> () z = Sub (h, h) u = Pow (z, p)"
         " y = Mul (u, h)"),
    *(
        Case("PRelu", note, "y = PRelu (h, w)", (3, 2, 2), {"w": shape}, near)
        for note, shape in {
            "channel": (3, 1, 1), "one": (1,), "scalar": (), "full": (3, 2, 2), "row": (2,),
            "leading": (1, 3, 1, 1),
        }.items()
    ),
    Case("Clip", "both", "l = Constant <value_float = -2.0> () u = Constant <value_float = 1.0> ()"
         " y = Clip (h, l, u)", draw=near),
    Case("Clip", "low", "l = Constant <value_float = -2.0> () y = Clip (h, l)", draw=near),
    Case("Clip", "high", "u = Constant <value_float = 1.0> () y = Clip (h, , u)", draw=near),
    Case("Clip", "none", "y = Clip (h)"),
    *(
        Case("Where", note, "z = Constant <value_float = 0.0> () k = Greater (x, z)"
             f" y = Where (k, {args})", (3, 5), {"w": shape}, near)
        for note, args, shape in (
            ("row", "h, w", (5,)), ("other-way", "w, h", (3, 1)), ("scalar", "w, h", ()),
            ("same", "h, h", ()),
        )
    ),
    Case("Where", "mask-broadcast", "k = Constant <value = bool[3,1] {1, 0, 1}> ()"
         " y = Where (k, h, w)", (3, 5), {"w": (3, 5)}),
    Case("Where", "value-broadcast", "k = Constant <value = bool[3,5]"
         " {1,0,1,0,1, 0,0,1,1,1, 1,0,0,0,0}> () z = Where (k, v, w) y = Mul (h, z)", (3, 5),
         {"v": (3, 1), "w": (1, 5)}),
    Case("Cast", "double", "d = Cast <to = 11> (h) e = Mul (d, d) y = Cast <to = 1> (e)"),
]  # fmt: skip

ALONG_AXES = [
    *(
        Case("LayerNormalization", note, f"y = LayerNormalization {attributes} (h, g{bias})",
             (3, 4), {"g": shape} | ({"k": shape} if bias else {}))
        for note, attributes, bias, shape in (
            ("default", "", ", k", (4,)), ("planes", "<axis = -2, epsilon = 0.1>", ", k", (3, 4)),
            ("no-bias", "", "", (4,)),
        )
    ),
    *(
        Case(op, note, f"y = {op} {attributes} (h)", (3, 4))
        for op in ("Softmax", "LogSoftmax")
        for note, attributes in {
            "default": "", "axis-1": "<axis = 1>", "axis-minus-2": "<axis = -2>",
        }.items()
    ),
]  # fmt: skip

PRODUCTS = [
    *(
        Case("Gemm", f"{note}-{'t' if ta else 'n'}{'t' if tb else 'n'}",
             f"{'a = Transpose (h)' if ta else 'a = Identity (h)'}"
             f" y = Gemm <transA = {ta}, transB = {tb} {scale}> (a, w {bias})",
             (3,), {"w": (5, 3) if tb else (3, 5), **shape})
        for ta in (0, 1) for tb in (0, 1)
        for note, scale, bias, shape in (
            ("plain", "", "", {}),
            ("bias", ", alpha = 0.7, beta = -1.3", ", v", {"v": (5,)}),
        )
    ),
    *(
        Case("Gemm", f"bias-{note}", "y = Gemm <beta = 0.5> (h, w, v)", (3,),
             {"w": (3, 5), "v": shape})
        for note, shape in {"row": (1, 5), "one": (1, 1), "scalar": (), "unit": (1,)}.items()
    ),
    Case("Gemm", "one-feature", "y = Gemm (h, w, v)", (3,), {"w": (3, 1), "v": (1, 1)}),
    Case("Gemm", "shared-weight", "u = Gemm <transB = 1> (h, w) y = Gemm (u, w)", (3,),
         {"w": (4, 3)}),
    Case("MatMul", "plain", "y = MatMul (h, w)", (3,), {"w": (3, 5)}),
    Case("MatMul", "transposed", "t = Transpose <perm = [1, 0]> (w) y = MatMul (h, t)", (3,),
         {"w": (5, 3)}),
    Case("MatMul", "batched-by-matrix", "y = MatMul (h, w)", (2, 3), {"w": (3, 5)}),
    Case("MatMul", "matrix-by-batched", "y = MatMul (w, h)", (3, 2), {"w": (5, 3)}),
    Case("MatMul", "batched", "t = Transpose <perm = [0, 2, 1]> (h) y = MatMul (h, t)", (2, 3)),
    Case("MatMul", "broadcast", "y = MatMul (h, w)", (2, 4, 3), {"w": (2, 3, 5)}),
    Case("MatMul", "broadcast-one", "y = MatMul (h, w)", (2, 4, 3), {"w": (1, 3, 5)}),
    Case("MatMul", "broadcast-left", "y = MatMul (h, w)", (1, 4, 3), {"w": (2, 3, 5)}),
    Case("MatMul", "weights-both-ways", "z = MatMul (v, w) y = Mul (z, x)", None,
         {"v": (2, 1, 4, 3), "w": (3, 3, 2)}),
]  # fmt: skip


def _conv(
    note: str, attributes: str, sample: tuple[int, ...], w: tuple[int, ...], bias: bool = False
) -> Case:
    parameters = {"w": w, "v": (w[0],)} if bias else {"w": w}
    return Case("Conv", note, f"y = Conv <{attributes}> (h, w{', v' if bias else ''})", sample,
                parameters)  # fmt: skip


CONVOLUTIONS = [
    _conv("plain", "kernel_shape = [3, 3]", (2, 5, 4), (3, 2, 3, 3)),
    _conv("no-attributes", "group = 1", (2, 5, 4), (3, 2, 2, 3), bias=True),
    _conv("padded", "pads = [1, 1, 1, 1]", (2, 4, 4), (3, 2, 3, 3), bias=True),
    _conv("uneven-pads", "pads = [0, 2, 1, 0]", (2, 4, 4), (3, 2, 3, 3)),
    _conv("strided", "strides = [2, 2], pads = [1, 1, 1, 1]", (2, 5, 6), (3, 2, 3, 3)),
    _conv("unread-ends", "strides = [3, 2]", (1, 6, 5), (2, 1, 2, 2), bias=True),
    _conv("stride-over-kernel", "strides = [3, 3]", (1, 6, 8), (2, 1, 1, 2)),
    _conv("dilated", "dilations = [2, 1], pads = [2, 0, 2, 0]", (1, 5, 4), (2, 1, 3, 2)),
    _conv("dilated-strided", "dilations = [2, 2], strides = [2, 1]", (1, 6, 6), (2, 1, 2, 3)),
    _conv("grouped", "group = 2, pads = [1, 1, 1, 1]", (4, 3, 3), (6, 2, 3, 3), bias=True),
    _conv("depthwise", "group = 3, strides = [2, 2]", (3, 5, 5), (3, 1, 3, 3)),
    _conv("depthwise-multiplier", "group = 2", (2, 4, 4), (4, 1, 2, 2), bias=True),
    _conv("same-upper", 'auto_pad = "SAME_UPPER", strides = [2, 2]', (1, 5, 4), (2, 1, 2, 3)),
    _conv("same-lower", 'auto_pad = "SAME_LOWER", strides = [2, 1]', (1, 4, 4), (2, 1, 3, 2)),
    Case("Conv", "same-dilated", 'y = Conv <auto_pad = "SAME_UPPER", dilations = [2, 2]> (h, w)',
         (1, 5, 4), {"w": (2, 1, 2, 3)}, stock=False),
    _conv("valid", 'auto_pad = "VALID", strides = [2, 2]', (1, 6, 5), (2, 1, 3, 3)),
    _conv("line", "pads = [1, 2], strides = [2]", (2, 7), (3, 2, 3), bias=True),
    _conv("line-dilated-grouped", "dilations = [2], group = 2", (4, 7), (2, 2, 2)),
    _conv("volume", "pads = [0, 1, 0, 0, 1, 0]", (1, 3, 3, 2), (2, 1, 2, 3, 2), bias=True),
    Case("Conv", "shared-weight", "u = Conv <pads = [1, 1, 1, 1]> (h, w)"
         " y = Conv <pads = [1, 1, 1, 1]> (u, w)", (2, 3, 3), {"w": (2, 2, 3, 3)}),
]  # fmt: skip

TRANSPOSED = [
    Case("ConvTranspose", note, f"y = ConvTranspose <{attributes}> (h, w{', k' if bias else ''})",
         sample, {"w": kernel} | ({"k": (bias,)} if bias else {}))
    for note, attributes, sample, kernel, bias in (
        ("plain", "kernel_shape = [3, 2]", (2, 3, 4), (2, 3, 3, 2), 0),
        ("doubled", "strides = [2, 2]", (2, 3, 3), (2, 3, 2, 2), 3),
        ("padded", "strides = [2, 3], pads = [1, 0, 0, 2]", (2, 3, 4), (2, 2, 3, 3), 2),
        ("output-padding", "strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]",
         (2, 3, 3), (2, 2, 3, 3), 0),
        ("dilated", "dilations = [1, 2], strides = [2, 1]", (1, 3, 4), (1, 2, 2, 3), 0),
        ("grouped", "group = 2, strides = [2, 2]", (4, 3, 2), (4, 3, 2, 2), 6),
        ("depthwise", "group = 3, pads = [1, 1, 1, 1]", (3, 3, 3), (3, 1, 3, 3), 0),
        ("output-shape", "strides = [2, 2], output_shape = [5, 6]", (1, 3, 3), (1, 2, 3, 3), 0),
        ("same-upper", 'auto_pad = "SAME_UPPER", strides = [2, 2]', (1, 3, 3), (1, 2, 3, 3), 0),
        ("same-lower", 'auto_pad = "SAME_LOWER", strides = [2, 2]', (1, 3, 3), (1, 2, 3, 3), 0),
        ("line", "strides = [3]", (2, 4), (2, 3, 4), 3),
        ("volume", "strides = [2, 1, 2]", (1, 2, 2, 2), (1, 2, 2, 2, 3), 0),
    )
]  # fmt: skip

TRANSPOSED.append(
    Case("ConvTranspose", "padding-over-stride",  # onnxruntime wants a shorter one
         "y = ConvTranspose <dilations = [2, 2], output_padding = [1, 0]> (h, w)",
         (1, 3, 4), {"w": (1, 2, 2, 2)}, stock=False)
)  # fmt: skip

POOL_WINDOWS = {
    "plain": ("kernel_shape = [2, 2], strides = [2, 2]", (2, 4, 4)),
    "odd": ("kernel_shape = [2, 2], strides = [2, 2]", (1, 5, 3)),
    "overlapping": ("kernel_shape = [3, 3]", (2, 4, 4)),
    "overlapping-strided": ("kernel_shape = [3, 3], strides = [2, 2]", (1, 7, 5)),
    "padded": ("kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]", (2, 4, 5)),
    "uneven-pads": ("kernel_shape = [3, 2], pads = [0, 1, 2, 0]", (1, 4, 4)),
    "ceil": ("kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1", (1, 5, 3)),
    "ceil-padded": (
        "kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1], ceil_mode = 1", (1, 6, 4)
    ),
    "ceil-dropped": (
        "kernel_shape = [2, 2], strides = [3, 3], pads = [1, 1, 1, 1], ceil_mode = 1", (1, 6, 3)
    ),
    "same-upper": ('kernel_shape = [2, 3], strides = [2, 2], auto_pad = "SAME_UPPER"', (1, 5, 4)),
    "same-lower": ('kernel_shape = [2, 3], strides = [2, 2], auto_pad = "SAME_LOWER"', (1, 5, 4)),
    "valid": ('kernel_shape = [2, 2], strides = [2, 2], auto_pad = "VALID"', (1, 5, 4)),
    "gaps": ("kernel_shape = [1, 2], strides = [3, 3]", (1, 6, 7)),
    "line": ("kernel_shape = [3], strides = [2], pads = [1, 1]", (2, 6)),
    "volume": ("kernel_shape = [2, 2, 2]", (1, 3, 2, 3)),
    "dilated": ("kernel_shape = [2, 2], dilations = [2, 1], pads = [1, 0, 0, 0]", (1, 4, 4)),
}  # fmt: skip

POOLINGS = [
    *(
        Case("MaxPool", note, f"y = MaxPool <{attributes}> (h)", sample, draw=spaced)
        for note, (attributes, sample) in POOL_WINDOWS.items()
    ),
    Case("MaxPool", "indices-listed", "y, i = MaxPool <kernel_shape = [2, 2]> (h)", (1, 3, 3),
         draw=spaced),
    *(
        Case("AveragePool", f"{note}{counted[0]}",
             f"y = AveragePool <{attributes}{counted[1]}> (h)", sample,
             opset=19 if note == "dilated" else 18)
        for note, (attributes, sample) in POOL_WINDOWS.items()
        for counted in (("", ""), ("-count-pads", ", count_include_pad = 1"))
    ),
    Case("GlobalAveragePool", "plane", "y = GlobalAveragePool (h)", (2, 3, 4)),
    Case("GlobalAveragePool", "line", "y = GlobalAveragePool (h)", (2, 3)),
]  # fmt: skip


def _reduce(op: str, note: str, axes: list[int] | None, options: str, sample=(3, 5)) -> Case:
    start = f"a = Constant <value_ints = {axes}> () " if axes else ""
    return Case(op, note, f"{start}y = {op} <{options}> (h{', a' if axes else ''})", sample)


REDUCTIONS = [
    reduce
    for op in ("ReduceSum", "ReduceMean")
    for reduce in (
        *(
            _reduce(op, f"{note}-keep{keep}", axes, f"keepdims = {keep}")
            for keep in (0, 1)
            for note, axes in {
                "last": [2], "middle": [1], "batch": [0], "two": [1, 2], "unsorted": [2, 0],
                "negative": [-1], "negative-two": [-1, -3], "all": None,
            }.items()
        ),
        _reduce(op, "noop", None, "noop_with_empty_axes = 1"),
        _reduce(op, "square-batch", [0], "keepdims = 0", (BATCH, 2)),
        _reduce(op, "square-batch-line", [0], "keepdims = 0", (BATCH,)),
        Case(op, "empty-axes", f"a = Constant <value = int64[0] {{}}> () y = {op}"
             " <keepdims = 0> (h, a)", (3, 5)),
        Case(op, "weight", f"a = Constant <value_ints = [0]> () m = {op} <keepdims = 0> (w, a)"
             " y = Mul (h, m)", (5,), {"w": (3, 5)}),
        Case(op, "weight-per-filter", f"a = Constant <value_ints = [1, 2]> ()"
             f" z = Abs (w) m = {op} <keepdims = 1> (z, a) s = Mul (z, m) y = Mul (h, s)",
             (2, 3, 2), {"w": (2, 3, 2)}),
    )
]  # fmt: skip


def _shaped(op: str, note: str, sample: tuple[int, ...], ints: list[int], **options: int) -> Case:
    attributes = ", ".join(f"{k} = {v}" for k, v in options.items())
    attributes = f"<{attributes}>" if attributes else ""
    return Case(op, note, f"s = Constant <value_ints = {ints}> () y = {op} {attributes} (h, s)",
                sample)  # fmt: skip


SHAPES = [
    _shaped("Reshape", "flat", (3, 5), [0, -1]),
    _shaped("Reshape", "all-flat", (3, 5), [-1]),
    _shaped("Reshape", "rows", (3, 5), [-1, 5]),
    _shaped("Reshape", "deeper", (6,), [-1, 2, 3]),
    _shaped("Reshape", "zeros", (2, 6), [0, 0, 3, -1]),
    _shaped("Reshape", "fixed-batch", (3, 5), [BATCH, 15]),
    _shaped("Reshape", "fixed-batch-all", (2, 5), [BATCH * 2, 5]),
    _shaped("Reshape", "fixed-batch-minus-one", (2, 5), [BATCH, -1]),
    _shaped("Reshape", "allow-zero", (3, 5), [BATCH, 15], allowzero=1),
    Case("Reshape", "weight", "s = Constant <value_ints = [2, 6]> () v = Reshape (w, s)"
         " y = MatMul (h, v)", (2,), {"w": (3, 4)}),
    Case("Reshape", "view-chain", "k = Shape (h) z = Constant <value_int = 0> ()"
         " n = Gather <axis = 0> (k, z) a = Constant <value_ints = [0]> () u = Unsqueeze (n, a)"
         " m = Constant <value_ints = [-1]> () s = Concat <axis = 0> (u, m) y = Reshape (h, s)",
         (3, 5)),
    Case("Reshape", "shuffle", "s = Constant <value_ints = [0, 2, 3, 2]> () u = Reshape (h, s)"
         " t = Transpose <perm = [0, 2, 1, 3]> (u) r = Constant <value_ints = [0, 6, 2]> ()"
         " y = Reshape (t, r)", (6, 2)),
    *(
        Case("Flatten", note, f"y = Flatten {attribute} (h)", (3, 2, 2))
        for note, attribute in {
            "default": "", "2": "<axis = 2>", "minus": "<axis = -1>",
        }.items()
    ),
    Case("Flatten", "0", "v = Flatten <axis = 0> (w) y = Mul (h, v)", (6,), {"w": (2, 3)}),
    _shaped("Squeeze", "one", (1, 5), [1]),
    _shaped("Squeeze", "two", (1, 5, 1), [1, -1]),
    Case("Squeeze", "all", "v = Squeeze (w) y = Mul (h, v)", (5,), {"w": (1, 5, 1)}),
    _shaped("Unsqueeze", "middle", (3, 5), [1]),
    _shaped("Unsqueeze", "two", (3,), [-1, 1]),
    Case("Unsqueeze", "weight", "a = Constant <value_ints = [0, 2]> () v = Unsqueeze (w, a)"
         " y = Mul (h, v)", (3, 2), {"w": (3,)}),
    *(
        Case("Transpose", note, f"y = Transpose {attribute} (h)", (2, 3, 4))
        for note, attribute in {
            "cycle": "<perm = [0, 2, 3, 1]>", "swap": "<perm = [0, 3, 2, 1]>",
        }.items()
    ),
    Case("Transpose", "default", "v = Transpose (w) y = MatMul (h, v)", (3,), {"w": (5, 3)}),
    *(
        # Behind it something that does not stretch by itself, else it would be dropped.
        Case("Expand", note, f"s = Constant <value_ints = {ints}> () v = Expand (h, s)"
             " y = Neg (v)", (1, 5))
        for note, ints in {"inner": [1, 3, 1], "deeper": [1, 1, 2, 5]}.items()
    ),
    Case("Expand", "scalar", "s = Constant <value_ints = [3]> () v = Expand (w, s)"
         " y = Mul (h, v)", (3,), {"w": ()}),
    *(
        Case("Concat", note, f"y = Concat <axis = {axis}> ({args})", (2, 3))
        for note, axis, args in (
            ("channels", 1, "h, x, h"), ("last", -1, "h, h"), ("one", 2, "h"),
        )
    ),
    Case("Concat", "weights", "u = Concat <axis = 0> (v, w) y = MatMul (h, u)", (5,),
         {"v": (2, 3), "w": (3, 3)}),
    Case("Split", "sizes", "s = Constant <value_ints = [1, 3]> () u, v = Split <axis = 1> (h, s)"
         " w = Exp (v) y = Concat <axis = 1> (w, u)", (4, 2)),
    Case("Split", "unused-output", "u, v, t = Split <axis = -1, num_outputs = 3> (h)"
         " y = Mul (u, t)", (2, 6)),
    Case("Split", "uneven", "u, v, t = Split <axis = 1, num_outputs = 3> (h) y = Mul (u, v)", (8,)),
    Case("Split", "first-unused", "u, v = Split <axis = 1, num_outputs = 2> (h) y = Exp (v)", (6,)),
]  # fmt: skip


def _slice(
    note: str, starts: list[int], ends: list[int], axes: list[int] | None = None,
    steps: list[int] | None = None, sample: tuple[int, ...] = (5, 7),
) -> Case:  # fmt: skip
    body = f"s = Constant <value_ints = {starts}> () e = Constant <value_ints = {ends}> () "
    body += f"a = Constant <value_ints = {axes}> () " if axes else ""
    body += f"t = Constant <value_ints = {steps}> () " if steps else ""
    tail = (", a" if axes else ", " if steps else "") + (", t" if steps else "")
    return Case("Slice", note, f"{body} y = Slice (h, s, e{tail})", sample)


FAR = 2**62
BORDERS = [
    _slice("inner", [1], [4], [1]),
    _slice("negative", [-3], [-1], [2]),
    _slice("to-the-end", [2], [FAR], [-1]),
    _slice("whole", [0], [FAR], [1]),
    _slice("all-axes", [0, 1, 2], [FAR, 4, 6]),
    _slice("two-axes", [1, 0], [5, 3], [2, 1]),
    _slice("strided", [0], [FAR], [2], [2]),
    _slice("strided-inner", [1, 0], [5, 7], [1, 2], [3, 2]),
    _slice("strided-one", [2], [4], [1], [5]),
    _slice("reversed", [-1], [-FAR], [2], [-1]),
    _slice("reversed-strided", [5], [0], [2], [-2]),
    _slice("reversed-inner", [-2], [-5], [2], [-1]),
    _slice("reversed-from-far", [FAR], [1], [1], [-2]),
    _slice("reversed-to-start", [2], [-6], [1], [-1]),
    _slice("clamped-start", [-FAR], [3], [1]),
    *(
        Case("Gather", note, f"i = Constant <{at}> () y = Gather <axis = {axis}> (h, i)", (4, 3))
        for note, at, axis in (
            ("one", "value_int = 2", 1),
            ("neighbours", "value_ints = [1, 2]", 1),
            ("apart", "value_ints = [3, -4]", 1),
            ("last-axis", "value_ints = [2, 0, 1]", -1),
            ("twice", "value_ints = [1, -3, 1, 0]", 1),
            ("table", "value = int64[2,3] {0, 2, 2, -1, 2, 0}", 2),
        )
    ),
    *(
        Case("Gather", f"embedding-{note}",
             "i = Cast <to = 7> (x) e = Gather (t, i) y = Mul (e, e)", sample, {"t": (6, 2)},
             draw=lambda rng, shape: rng.integers(-6, 6, shape))
        for note, sample in (("words", (3,)), ("tables", (2, 2)))
    ),
    Case("Slice", "overlapping", "s = Constant <value_ints = [0]> ()"
         " e = Constant <value_ints = [3]> () a = Constant <value_ints = [1]> ()"
         " p = Constant <value_ints = [1]> () q = Constant <value_ints = [4]> ()"
         " u = Slice (h, s, e, a) v = Slice (h, p, q, a) y = Mul (u, v)", (4,)),
    *(
        Case("Pad", note, f"p = Constant <value_ints = {pads}> () {more} y = Pad (h, p {tail})",
             (2, 3))
        for note, pads, more, tail in (
            ("all", [0, 1, 0, 0, 0, 2], "", ""),
            ("value", [0, 0, 1, 0, 1, 1], "v = Constant <value_float = 1.5> ()", ", v"),
            ("axes", [1, 2, 0, 3], "a = Constant <value_ints = [-1, 1]> ()", ", , a"),
            ("axis", [0, 2], "a = Constant <value_ints = [2]> ()", ", , a"),
            ("nothing", [0] * 6, "", ""),
            ("cut", [0, 1, -1, 0, -1, 0], "", ""),
            ("shifted", [0, 1, 0, 0, -1, 0], "", ""),
        )
    ),
]  # fmt: skip

FUNCTIONS = [
    Case("CastLike", "same", "u = CastLike (h, x) y = Tanh (u)", written_out=True),
    *(Case(name, "plain", f"y = {name} (h)", draw=normal) for name in
      ("Sin", "Cos", "Atan", "Sinh", "Cosh", "Asinh")),
    *(Case(name, "inside", f"k = Constant <value_float = 0.15> () u = Mul (h, k) y = {name} (u)",
           draw=near) for name in ("Tan", "Asin", "Acos", "Atanh")),
    Case("Acosh", "above", "k = Constant <value_float = 1.5> () u = Add (h, k) y = Acosh (u)",
         draw=positive),
    Case("Mod", "constant", "d = Constant <value_float = 0.7> () y = Mod <fmod = 1> (h, d)"),
    Case("Mod", "divisor", "d = Abs (w) y = Mod <fmod = 1> (h, d)", (3, 2), {"w": (2,)}),
    Case("Pow", "tensors", "w2 = Abs (w) y = Pow (h, w2)", (5,), {"w": (5,)}, draw=positive),
    Case("Pow", "broadcast", "w2 = Abs (w) y = Pow (w2, h)", (3, 2), {"w": (2,)}, draw=positive),
    Case("Pow", "constants", "p = Constant <value_floats = [2.0, 0.0, 3.0, 1.0, 0.5]> ()"
         " y = Pow (h, p)", draw=positive),
    *(Case("Trilu", f"{upper}", f"y = Trilu <upper = {upper}> (h)", (3, 3)) for upper in (0, 1)),
    *(Case("CumSum", f"{a}{b}", "i = Constant <value_int = 1> ()"
           f" y = CumSum <exclusive = {a}, reverse = {b}> (h, i)", (4,))
      for a in (0, 1) for b in (0, 1)),
]  # fmt: skip
EXTREMES = [
    *(
        Case(name, note,
             f"a = Constant <value_ints = [{axes}]> () y = {name} <{attributes}> (h, a)",
             (3, 4), draw=spaced)
        for name in ("ReduceMax", "ReduceMin")
        for note, axes, attributes in (
            ("axis", "1", "keepdims = 1"), ("flat", "-1", "keepdims = 0"),
            ("two", "1, 2", "keepdims = 0"),
        )
    ),
    *(
        Case(name, note,
             f"a = Constant <value_ints = [{axes}]> () y = {name} <{attributes}> (h, a)",
             (3, 2))
        for name in ("ReduceLogSumExp", "ReduceProd")
        for note, axes, attributes in (
            ("axis", "1", "keepdims = 1"), ("flat", "-1", "keepdims = 0"),
            ("two", "1, 2", "keepdims = 0"),
        )
    ),
]  # fmt: skip
INDEXING = [
    Case("GatherElements", "axis", "i = Constant <value = int64[4,2] {0, 2, 1, 1, 2, -1, 0, 0}> ()"
         " y = GatherElements <axis = 1> (h, i)", (3,), any_batch=False),
    *(Case("ScatterElements", reduction,
           "i = Constant <value = int64[4,2] {0, 2, 1, 0, 2, 0, 0, 1}> ()"
           f' y = ScatterElements <axis = 1, reduction = "{reduction}"> (h, i, w)',
           (3,), {"w": (4, 2)}, any_batch=False) for reduction in ("none", "add")),
    Case("GatherND", "rows", "i = Constant <value = int64[3,2] {0, 1, 3, -1, 0, 1}> ()"
         " y = GatherND (h, i)", (3, 2), any_batch=False),
    *(Case("ScatterND", reduction, "i = Constant <value = int64[2,1] {2, 0}> ()"
           f' y = ScatterND <reduction = "{reduction}"> (h, i, w)', (3,), {"w": (2, 3)},
           any_batch=False) for reduction in ("none", "add")),
    *(Case("TopK", note, "k = Constant <value_ints = [2]> ()"
           f" y, i = TopK <axis = {axis}, largest = {largest}> (h, k)", (4, 3), draw=spaced)
      for note, axis, largest in (("largest", -1, 1), ("smallest", 1, 0))),
]  # fmt: skip

REUSE = [
    Case("Add", "residual", "u = Tanh (h) v = Exp (u) s = Add (u, v) y = Add (s, h)"),
    Case("Mul", "weight-in-three-places", "u = Mul (h, w) v = Add (u, w) y = Mul (v, w)", (5,),
         {"w": (5,)}),
    Case("Tanh", "unused-weight-branch", "u = Tanh (h) v = Exp (w) y = Add (u, u)", (5,),
         {"w": (5,)}),
]  # fmt: skip

NORMALIZATIONS = [
    *(Case("BatchNormalizationTraining", note,
         "m = Constant <value_floats = [0.1, -0.2, 0.3]> ()"
         " q = Constant <value_floats = [1.0, 2.0, 3.0]> ()"
         f" y, r, t = BatchNormalization <training_mode = 1 {attributes}> (h, s, w, m, q)",
         sample, {"s": (3,), "w": (3,)})
    for note, attributes, sample in (
        ("plane", "", (3, 2, 2)), ("vector", ", epsilon = 0.1", (3,)),
        ("line", ", momentum = 0.5", (3, 4)),
    )),
    Case(
        "BatchNormalizationTraining",
        "shared",
        "k, a, i = BatchNormalization <training_mode = 1> (h, s, w, m, q)"
        " t = Tanh (k) y, e, f = BatchNormalization <training_mode = 1> (t, s, w, m, q)",
        (3, 2),
        {"s": (3,), "w": (3,), "m": (3,), "q": (3,)},
    ),
]  # fmt: skip

CASES = [
    *ELEMENTWISE,
    *ALONG_AXES,
    *PRODUCTS,
    *CONVOLUTIONS,
    *TRANSPOSED,
    *POOLINGS,
    *REDUCTIONS,
    *SHAPES,
    *BORDERS,
    *FUNCTIONS,
    *EXTREMES,
    *INDEXING,
    *REUSE,
    *NORMALIZATIONS,
]
