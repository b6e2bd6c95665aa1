"""The compiled convolutions of real numbers and their gradients, in one and two dimensions.

A convolution is a matrix product whose columns are gathered a panel of 48 at a time, or of a few
filters are read where they lie in padded planes, to the same bits; a depthwise one goes plane by
plane. Maps are float32 or float16, sums float32. How the work is cut depends on
the shapes alone, never on the number of threads, so that neither does any sum. A weight gradient
also takes x as a bitmap, and decodes of a plane what a band of positions reads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled.bitmap import SHORT_BLOCK, offset_bytes
from bnnopt.runtime.kernels.compiled.calls import (
    Arrays,
    Attributes,
    covered,
    integers,
    is_half,
    optional,
)
from bnnopt.runtime.kernels.compiled.functions import Argument, CFunction
from bnnopt.runtime.kernels.compiled.kernel import CompiledKernel, ReadRule, ScratchRule
from bnnopt.runtime.kernels.on_read import Images
from bnnopt.runtime.kernels.tiling import Convolution
from bnnopt.runtime.kernels.tiling.shapes import up
from bnnopt.runtime.kernels.windows import Window, make_window

CONV = CFunction(
    "int bnn_conv_f32f32f32(bnn_conv*, void*, i64, float*, float*, float*, float*, void*, i64, "
    "uint8_t*, i64)"
)
INPUT_GRAD = CFunction(
    "int bnn_conv_input_grad_f32f32f32(bnn_conv*, void*, i64, float*, void*, i64, i64, uint8_t*, "
    "i64)"
)
SLIDING_CONV = CFunction(
    "int bnn_conv_sliding_f32f32f32(bnn_conv*, void*, i64, float*, float*, float*, float*, void*, "
    "i64, uint8_t*, i64)"
)
SLIDING_INPUT_GRAD = CFunction(
    "int bnn_conv_sliding_input_grad_f32f32f32(bnn_conv*, void*, i64, float*, void*, i64, "
    "uint8_t*, i64)"
)
ADD_CHANNELS = CFunction("void bnn_add_stretched_f32(float*, float*, float*, i64, i64, i64)")
WEIGHT_GRAD = CFunction(
    "int bnn_conv_weight_grad_f32f32f32(bnn_conv*, void*, i64, float*, float*, void*, i64, float*, "
    "bnn_update*, i64, uint8_t*, i64)"
)
BITMAP_WEIGHT_GRAD = CFunction(
    "int bnn_bitmap_conv_weight_grad_f32f32f32(bnn_conv*, uint8_t*, float*, i64, void*, i64, "
    "float*, bnn_update*, i64, uint8_t*, i64)"
)
DEPTHWISE_CONV = CFunction(
    "int bnn_conv_depthwise_f32f32f32(bnn_conv*, void*, i64, float*, float*, float*, float*, "
    "void*, i64, uint8_t*, i64)"
)
DEPTHWISE_INPUT_GRAD = CFunction(
    "int bnn_conv_depthwise_input_grad_f32f32f32(bnn_conv*, void*, i64, float*, void*, i64, "
    "uint8_t*, i64)"
)
DEPTHWISE_WEIGHT_GRAD = CFunction(
    "int bnn_conv_depthwise_weight_grad_f32f32f32(bnn_conv*, void*, i64, float*, float*, void*, "
    "i64, float*, uint8_t*, i64)"
)
BITMAP_DEPTHWISE_WEIGHT_GRAD = CFunction(
    "int bnn_bitmap_conv_depthwise_weight_grad_f32f32f32(bnn_conv*, uint8_t*, float*, i64, void*, "
    "i64, float*, uint8_t*, i64)"
)
DEPTHWISE = {
    "Conv": DEPTHWISE_CONV,
    "ConvInputGrad": DEPTHWISE_INPUT_GRAD,
    "ConvWeightGrad": DEPTHWISE_WEIGHT_GRAD,
}
OF_BITMAP = {
    WEIGHT_GRAD: BITMAP_WEIGHT_GRAD,
    DEPTHWISE_WEIGHT_GRAD: BITMAP_DEPTHWISE_WEIGHT_GRAD,
}

PANEL = 48  # lanes
LANES16 = 16  # floats of the widest vector
TAP_BYTES = 24
FLOAT_BYTES = 4
MAX_TAPS = 1024  # larger kernels are left to numpy
TERMS = 128  # of a panel, which shares the first-level cache with a row of factors
ROWS = 128  # of a tile of sums
TURNED_FLOATS = 1 << 18  # weights that the input gradient turns at a time
GRADIENT_ROWS = 288  # pairs of channel and tap: 32 channels of a 3 x 3 convolution
GRADIENT_POSITIONS = 128
COPIED_FLOATS = 1 << 15  # of x, with its padding
ALL_FILTERS = "all_filters"  # what a weight gradient of some filters is told beside its attributes
N_UNITS = 6  # of work that a weight gradient should have, for four threads
PLANE_FLOATS = 1 << 13  # of a plane of a depthwise convolution at a time
SLIDING_FLOATS = 1 << 13, 1 << 16  # of planes with their padding at a time, at least and at most
SLIDING_SHARE = 16  # or this part of the source
SLIDING_FILTERS = 64  # for more, gathered columns cost little

Shape = Sequence[int]


def conv(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`convolution.conv` and `adapters.real_conv`, x and y float32 or float16, x bytes perhaps."""
    (x, w), b, y = inputs[:2], optional(inputs, 2), outputs[0]
    if not (is_source(x) and is_map(y) and covered(w)) or not (b is None or covered(b)):
        return False
    arrays = [*source(x), w, b, y, is_half(y)]
    return _run("Conv", (x, w), y, attributes, scratch, arrays)


def conv_input_grad(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array
) -> bool:
    """`convolution.conv_input_grad`, dy and dx float32 or float16."""
    (dy, w), dx = inputs, outputs[0]
    if not (is_map(dy) and is_map(dx) and covered(w)):
        return False
    arrays: list[Argument] = [dy, is_half(dy), w, dx, is_half(dx)]
    return _run("ConvInputGrad", (dy, w), dx, attributes, scratch, arrays)


def conv_transpose(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`convolution.conv_transpose` with pads that are given: an input gradient, and a bias."""
    (x, w), b, y = inputs[:2], optional(inputs, 2), outputs[0]
    if not covered(x, w, y) or not (b is None or covered(b)):
        return False
    assert y is not None
    arrays: list[Argument] = [x, is_half(x), w, y, is_half(y)]
    if not _run("ConvTranspose", (x, w), y, attributes, scratch, arrays):
        return False
    n, c, *space = y.shape
    return b is None or ADD_CHANNELS(y, b, y, n, c, math.prod(space))


def conv_weight_grad(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array
) -> bool:
    """`convolution.conv_weight_grad`, x and dy float32 or float16, x bytes perhaps."""
    (x, dy), dw = inputs, outputs[0]
    if not (is_source(x) and is_map(dy) and covered(dw)):
        return False
    arrays = [*source(x), dy, is_half(dy), dw]
    return _run("ConvWeightGrad", (x, dy), dw, attributes, scratch, arrays)


def bitmap_conv_weight_grad(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array
) -> bool:
    """`convolution.bitmap_conv_weight_grad`, values float32, dy float32 or float16."""
    (bits, values, dy), dw = inputs, outputs[0]
    if not (covered(bits, dtype=np.uint8) and covered(values, dw) and is_map(dy)):
        return False
    assert values is not None
    arrays: list[Argument] = [bits, values, values.size, dy, is_half(dy), dw]
    return _run("BitmapConvWeightGrad", inputs, dw, attributes, scratch, arrays)


def is_map(array: Array | None) -> bool:
    """Whether an array is one of float32 or float16 that C can read."""
    return array is not None and covered(array, dtype=np.float16 if is_half(array) else np.float32)


def is_source(x: Array | None) -> bool:
    """Whether x is a map, or bytes that are normalised as they are read."""
    return is_map(x) or (isinstance(x, Images) and covered(x, dtype=np.uint8))


def source(x: Array | None) -> list[Argument]:
    """x as the kernels take it: whether it is float16, and by what it is normalised if it is."""
    scales = [x.factor, x.shift] if isinstance(x, Images) else [None, None]
    return [x, is_half(x), *scales]


class Cut(NamedTuple):
    """The function for a geometry, what it takes besides, and its scratch: shared, for a thread.

    ``decoded`` floats of a bitmap are what a thread needs room for, if x is one.
    """

    function: CFunction
    geometry: Convolution
    extra: Sequence[int | None]
    shared: Sequence[int]
    share: Sequence[int]
    decoded: int = 0

    def scratch_bytes(self, n_threads: int) -> int:
        """Bytes of scratch, each piece aligned to 64."""
        return sum(map(_aligned, self.shared)) + n_threads * sum(map(_aligned, self.share))


def _run(
    operator: str,
    inputs: Arrays,
    output: Array | None,
    attributes: Attributes,
    scratch: Array,
    arrays: Sequence[Argument],
) -> bool:
    assert output is not None
    shapes = [a.shape for a in inputs if a is not None]
    cut = _cut(operator, shapes, output.shape, attributes)
    if cut is None or scratch.ctypes.data % 64:
        return False
    return cut.function(cut.geometry, *arrays, *cut.extra, scratch, scratch.size)


def scratch_bytes(
    operator: str,
    inputs: Sequence[Shape],
    outputs: Sequence[Shape],
    attributes: Attributes,
    n_threads: int,
) -> int | None:
    """Bytes of scratch that the compiled kernel needs, aligned to 64; None if it is not covered.

    Parameters
    ----------
    operator : str
        ``Conv``, ``RealConv``, ``ConvTranspose``, ``ConvInputGrad``, ``ConvWeightGrad`` or
        ``BitmapConvWeightGrad``.
    inputs, outputs : sequences of shapes
        The operator's. A smaller batch needs no more.
    attributes : mapping
        The operator's own.
    n_threads : int
        Threads that the kernels will use, at most.
    """
    cut = _cut(operator, inputs, outputs[0], attributes)
    return cut.scratch_bytes(n_threads) if cut is not None else None


def weight_grad_cut(x: Shape, dy: Shape, dw: Shape, attributes: Attributes) -> Cut | None:
    """The cut of a ConvWeightGrad in tiles that are finished one after the other, if it has one."""
    cut = _cut("ConvWeightGrad", (x, dy), dw, attributes)
    return cut if cut is not None and cut.function is WEIGHT_GRAD else None


def _cut(
    operator: str, inputs: Sequence[Shape], output: Shape, attributes: Attributes
) -> Cut | None:
    if operator == "BitmapConvWeightGrad":
        x = (inputs[0][0], *(integers(attributes, "shape") or ()))
        return _of_bitmap(_cut("ConvWeightGrad", (x, inputs[2]), output, attributes), x)
    if any(0 in shape for shape in (*inputs[:2], output)) or len(output) not in (3, 4):
        return None
    if operator == "ConvTranspose":
        return (
            None if _finds_pads(attributes) else _cut("ConvInputGrad", inputs, output, attributes)
        )
    if operator in ("Conv", "RealConv"):
        operator = "Conv"
        g = geometry_of(inputs[0], inputs[1], output, attributes)
    elif operator == "ConvInputGrad":
        g = geometry_of(output, inputs[1], inputs[0], attributes)
    else:
        g = geometry_of(inputs[0], output, inputs[1], attributes)
    if g is None or g.taps > MAX_TAPS:
        return None
    if g.group == g.c > 1:
        return _depthwise(operator, g)
    if operator == "ConvWeightGrad":
        return _weight_grad(g, int(cast(int, attributes.get(ALL_FILTERS, g.m))))
    return (_forward if operator == "Conv" else _input_grad)(g)


def _finds_pads(attributes: Attributes) -> bool:
    """Whether the pads of a ConvTranspose follow from something else."""
    return attributes.get("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in attributes


def geometry_of(x: Shape, w: Shape, y: Shape, attributes: Attributes) -> Convolution | None:
    """The convolution without a tile; one dimension becomes the second of two."""
    window = make_window(
        x[2:],
        w[2:],
        strides=integers(attributes, "strides"),
        pads=integers(attributes, "pads"),
        dilations=integers(attributes, "dilations"),
        auto_pad=cast(str, attributes.get("auto_pad", "NOTSET")),
        result=y[2:],
    )
    axes = [(1, 1, 1, 1, 0, 1)] * (2 - len(window.kernel)) + _axes(window)
    if window.is_pointwise:  # then a plane is one row
        axes = [(1, 1, 1, 1, 0, 1), (math.prod(x[2:]), 1, math.prod(x[2:]), 1, 0, 1)]
    (h, kh, ho, sh, pt, dh), (width, kw, wo, sw, pl, dw) = axes
    group = int(cast(int, attributes.get("group", 1)))
    return Convolution(
        x[0], x[1], h, width, y[1], kh, kw, ho, wo, sh, sw, pt, pl, dh, dw, group
    )  # fmt: skip


def _axes(window: Window) -> list[tuple[int, ...]]:
    return [
        *zip(
            window.source, window.kernel, window.result, window.strides, window.begin,
            window.dilations, strict=True,
        )
    ]  # fmt: skip


def _forward(g: Convolution) -> Cut:
    cut = g._replace(
        channels=min(g.group_channels, max(1, TERMS // g.taps)),
        filters=min(g.group_filters, ROWS),
    )
    planes = _Planes(
        g.n * g.c * g.h * g.w, g.group_channels * g.sh * g.sw, g.ho, g.wo,
        (g.kh - 1) * g.dh // g.sh, (g.kw - 1) * g.dw // g.sw,
    )  # fmt: skip
    rows = planes.band_rows
    if rows and _slides(g, g.group_filters, g.group_channels):
        share = [planes.copied_bytes(rows), *_tile(cut.filters)]
        return Cut(SLIDING_CONV, cut._replace(rows=rows), (), [g.taps * 8], share)
    share = [cut.channels * g.taps * PANEL * FLOAT_BYTES, *_tile(cut.filters)]
    return Cut(CONV, cut, (), [g.taps * TAP_BYTES], share)


def _input_grad(g: Convolution) -> Cut:
    cut = g._replace(
        channels=min(g.group_channels, ROWS),
        filters=min(g.group_filters, max(1, TERMS // g.taps)),
    )
    planes = _Planes(
        g.n * g.m * g.ho * g.wo, g.group_filters, g.h, g.w, (g.kh - 1) * g.dh, (g.kw - 1) * g.dw
    )
    rows = planes.band_rows if g.sh == g.sw == 1 else 0
    if rows and _slides(g, g.group_channels, g.group_filters):
        share = [planes.copied_bytes(rows), *_tile(cut.channels)]
        taps = [g.taps * 8, g.taps * TAP_BYTES]
        return Cut(SLIDING_INPUT_GRAD, cut._replace(rows=rows), (), taps, share)
    terms = g.group_filters * g.taps
    room = min(g.c * terms, max(terms, TURNED_FLOATS))
    shared = [g.taps * TAP_BYTES, room * FLOAT_BYTES]
    share = [cut.filters * g.taps * PANEL * FLOAT_BYTES, *_tile(cut.channels)]
    return Cut(INPUT_GRAD, cut, (room,), shared, share)


def _tile(n_rows: int) -> list[int]:
    """Of the sums of a tile, and of where its rows begin."""
    return [n_rows * PANEL * FLOAT_BYTES, n_rows * 8]


def _slides(g: Convolution, n_results: int, n_sources: int) -> bool:
    """Whether the planes of a group are read as they lie: columns would be gathered for few sums.

    Sums of few terms for many filters take long to be stored, and longer row by row.
    """
    return g.taps > 1 and n_results <= min(SLIDING_FILTERS, 2 * n_sources * g.taps)


class _Planes(NamedTuple):
    """The planes that a group reads, by phases of the strides, for positions rows x cols.

    ``size`` are the elements of the whole source; ``span_y`` and ``span_x`` what the taps of a
    position reach over beside it.
    """

    size: int
    n: int
    rows: int
    cols: int
    span_y: int
    span_x: int

    @property
    def band_rows(self) -> int:
        """Rows of positions at a time; 0 where too much of what is copied would be padding."""
        least, most = SLIDING_FLOATS
        floats = min(max(least, self.size // SLIDING_SHARE), most)
        rows = min(self.rows, floats // (self.n * (self.cols + self.span_x)) - self.span_y)
        is_worth_it = rows >= min(self.rows, 4 * self.span_y) and self.span_x <= self.cols
        return rows if rows > 0 and is_worth_it else 0

    def copied_bytes(self, rows: int) -> int:
        """Of a band, and what the last vectors read behind it."""
        copied = self.n * (rows + self.span_y) * (self.cols + self.span_x)
        return (copied + PANEL) * FLOAT_BYTES


def _weight_grad(g: Convolution, n_filters: int) -> Cut:
    """`n_filters` are those of the layer, where `g` has some: sums in parts go by all of them."""
    banded = g.banded(GRADIENT_POSITIONS, GRADIENT_POSITIONS)
    rows = (banded.rows - 1) * (g.sh if g.kh > 1 else 1) + (g.kh - 1) * g.dh + 1
    cols = (banded.cols - 1) * (g.sw if g.kw > 1 else 1) + (g.kw - 1) * g.dw + 1
    plane = banded.samples * rows * cols
    at_most = max(1, min(GRADIENT_ROWS // g.taps, COPIED_FLOATS // plane))
    n_blocks = math.ceil(g.group_channels / at_most)
    lanes = up(math.ceil(g.group_filters / math.ceil(g.group_filters / PANEL)), LANES16)
    n_tiles = math.ceil(g.group_filters / lanes)
    tiles = max(1, min(3, g.group * n_blocks * n_tiles // N_UNITS))  # that share copies of x
    cut = banded._replace(channels=math.ceil(g.group_channels / n_blocks), filters=tiles * lanes)
    n_bands = math.ceil(g.n / cut.samples) * math.ceil(g.ho / cut.rows) * math.ceil(g.wo / cut.cols)
    n_units = g.group * n_blocks * math.ceil(g.group_filters / cut.filters)
    least = math.ceil(N_UNITS / n_units)
    n_parts = min(n_bands, 1 << (least - 1).bit_length())  # as many for each of two threads
    if n_filters != g.m:
        n_parts = cast(int, _weight_grad(g._replace(m=n_filters), n_filters).extra[1])
    sums = tiles * cut.channels * g.taps * PANEL * FLOAT_BYTES
    share = [
        cut.channels * plane * FLOAT_BYTES,
        cut.samples * cut.rows * cut.cols * PANEL * FLOAT_BYTES,
        sums,
        cut.channels * g.taps * 8,
    ]
    shared = [n_parts * n_units * _aligned(sums)] if n_parts > 1 else []
    step = (g.sh if g.kh == 1 else 1) * g.w
    decoded = (rows - 1) * step + (cols - 1) * (g.sw if g.kw == 1 else 1) + 8
    extra = None, n_parts  # no optimiser takes the result
    return Cut(WEIGHT_GRAD, cut, extra, shared, share, decoded)


def _of_bitmap(cut: Cut | None, x: Shape) -> Cut | None:
    """For x in its bitmap form: offsets to find a band by, and room to decode it."""
    if cut is None:
        return None
    return cut._replace(
        function=OF_BITMAP[cut.function],
        shared=[offset_bytes(x, block=SHORT_BLOCK), *cut.shared],
        share=[cut.decoded * FLOAT_BYTES, *cut.share],
    )


def _depthwise(operator: str, g: Convolution) -> Cut:
    """A band of a plane with its padding, the positions that read it, and what goes with taps."""
    span_y, span_x = (g.kh - 1) * g.dh // g.sh, (g.kw - 1) * g.dw // g.sw
    if operator == "ConvInputGrad":
        all_rows, cols, phases = math.ceil(g.h / g.sh), math.ceil(g.w / g.sw), 1
    else:
        all_rows, cols, phases = g.ho, g.wo, g.sh * g.sw
    pitch = cols + span_x
    cut = g._replace(rows=max(1, PLANE_FLOATS // (phases * pitch)))
    rows = min(all_rows, cut.rows)
    share = [
        (phases * (rows + span_y) * pitch + 4 * LANES16) * FLOAT_BYTES,
        (rows * pitch + 4 * LANES16) * FLOAT_BYTES,
        g.taps * LANES16 * FLOAT_BYTES,
        g.taps * FLOAT_BYTES,
        g.taps * 8,
        g.taps * TAP_BYTES,
    ]
    decoded = min(g.h, (rows + span_y) * g.sh) * g.w + 7
    return Cut(DEPTHWISE[operator], cut, (), [], share, decoded)


def _aligned(n_bytes: int) -> int:
    return up(n_bytes, 64)


def _scratch(name: str) -> ScratchRule:
    return lambda s: scratch_bytes(name, s.inputs, s.outputs, s.attributes, s.n_threads)


def _reads_bytes(name: str) -> ReadRule:
    """x, where the kernel covers the shapes."""
    return lambda s: frozenset({0} if _cut(name, s.inputs, s.outputs[0], s.attributes) else ())


KERNELS: dict[str, CompiledKernel] = {
    "BitmapConvWeightGrad": CompiledKernel(
        bitmap_conv_weight_grad, _scratch("BitmapConvWeightGrad")
    ),
    "Conv": CompiledKernel(
        conv, _scratch("Conv"), repeatable=True, reads_bytes=_reads_bytes("Conv")
    ),
    "ConvInputGrad": CompiledKernel(conv_input_grad, _scratch("ConvInputGrad"), repeatable=True),
    "ConvTranspose": CompiledKernel(conv_transpose, _scratch("ConvTranspose"), repeatable=True),
    "ConvWeightGrad": CompiledKernel(
        conv_weight_grad,
        _scratch("ConvWeightGrad"),
        repeatable=True,
        reads_bytes=_reads_bytes("ConvWeightGrad"),
    ),
    "RealConv": CompiledKernel(
        conv, _scratch("RealConv"), repeatable=True, reads_bytes=_reads_bytes("RealConv")
    ),
}
