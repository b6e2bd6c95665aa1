"""How the compiled binary products are cut into tiles, and the scratch memory that this needs.

The C kernels take the numbers of `Convolution` and `Dense` in the order of their fields. A cut
depends on the shapes alone, never on the number of threads, so that neither does any sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

from bnnopt.runtime.format import Attribute

LANES = 64  # outputs side by side
STRIP = 16  # of them that share tables of signed sums: the least that a thread takes
STRINGS = 4  # outputs of a XNOR product together, for each lane
TERMS = 48  # rows of floats of a set of tables
TABLES_BYTES = (TERMS * LANES + 8 * 64 * 16) * 4  # those rows, and their signed sums for 16 lanes
MAX_STEPS = 2048  # nibbles that a panel of a XNOR product holds for each lane
INDEX_BYTES = 1 << 18  # nibbles of the weights at a time
MAX_BITS = 512  # of a block of a dense product
MAX_ROWS = 1152  # rows of partial sums: 128 channels of a 3 x 3 convolution
SHARED_LANES = 4 * LANES  # that share the bits of a band
HELD_LANES = 2 * LANES  # that keep the sums of their bands until they are handed on
PIECE = 256  # floats of a row that are handed on at a time where there is one band
MAX_TERMS = 85 * TERMS  # terms of a partial sum in float32
MAX_TAPS = 4096  # larger kernels are left to numpy
MAX_COUNT = 65535  # of differing bits
STAGED_UNITS = 8  # of work, for all threads, on the samples that are copied at a time
WINDOW_BYTES = 1 << 19  # of the input gradient, float32, that is not finished
PLANE_FLOATS = 1 << 13  # of a plane of a depthwise convolution at a time
SUM_LANES = 16  # parts that a sum over positions is kept in there
FLOAT16 = 10  # as ONNX numbers it
WITH_UNIT = "Pow2", "Int8", "Int4"  # ends of the names of products that read a unit behind dy

Shape = Sequence[int]
Attributes = Mapping[str, Attribute]


class Convolution(NamedTuple):
    """A convolution in two dimensions, `bnn_conv` in C, its tile behind the geometry.

    ``samples``, ``rows`` and ``cols`` are the output positions worked on together; ``channels`` and
    ``filters`` those of a group; ``staged`` the samples of dy that are copied at a time where dx is
    written over it.
    """

    n: int
    c: int
    h: int
    w: int
    m: int
    kh: int
    kw: int
    ho: int
    wo: int
    sh: int
    sw: int
    pt: int
    pl: int
    dh: int
    dw: int
    group: int
    samples: int = 0
    rows: int = 0
    cols: int = 0
    channels: int = 0
    filters: int = 0
    staged: int = 0

    @property
    def taps(self) -> int:
        """Elements of the kernel."""
        return self.kh * self.kw

    @property
    def group_channels(self) -> int:
        """Channels of one group."""
        return self.c // self.group

    @property
    def group_filters(self) -> int:
        """Filters of one group."""
        return self.m // self.group

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel is a group: planes of it, one by one, meet one filter."""
        return self.group == self.c > 1

    @property
    def n_bands(self) -> int:
        """Bands of a batch."""
        cut = (self.n, self.samples), (self.ho, self.rows), (self.wo, self.cols)
        return math.prod(math.ceil(size / part) for size, part in cut)

    def banded(self, positions: int, widest: int) -> Convolution:
        """Bands of about `positions` positions: whole samples, or rows of one, or part of a row."""
        if self.wo > widest:
            return self._replace(samples=1, rows=1, cols=widest)
        if self.ho * self.wo >= positions:
            rows = min(self.ho, math.ceil(positions / self.wo))
            return self._replace(samples=1, rows=rows, cols=self.wo)
        samples = min(self.n, math.ceil(positions / (self.ho * self.wo)))
        return self._replace(samples=samples, rows=self.ho, cols=self.wo)


class Dense(NamedTuple):
    """A dense product, `bnn_gemm` in C: sizes, and how rows and sums are cut."""

    n: int
    m: int
    k: int
    block: int
    chunk: int


Tiling = Convolution | Dense


def conv(input_shapes: Sequence[Shape], y: Shape, attributes: Attributes) -> Convolution:
    """BinaryConv: nibble planes of a band, a panel of a tile, indices of a block of filters."""
    channels, kernel = _shape(attributes, "x_shape"), _shape(attributes, "w_shape")[1:]
    g = _geometry(y[0], channels[0], channels[1:], y[1], kernel, y[2:], attributes)
    if g.is_depthwise:
        return _planes(g)
    is_half = attributes["dtype"] == FLOAT16  # which cannot hold partial sums: one block
    block = g.group_channels if is_half else min(g.group_channels, max(4, MAX_STEPS // g.taps * 4))
    steps = math.ceil(block / 4) * g.taps
    filters = min(g.group_filters, max(STRINGS, INDEX_BYTES // steps // STRINGS * STRINGS))
    return g.banded(256, 512)._replace(channels=block, filters=filters)


def _conv_scratch(g: Convolution) -> tuple[int, list[int]]:
    steps = math.ceil(g.channels / 4) * g.taps
    pitch = (g.cols + (g.kw - 1) * g.dw // g.sw) * g.sw
    in_rows = (g.rows - 1) * g.sh + (g.kh - 1) * g.dh + 1
    planes = math.ceil(g.channels / 4) * g.samples * in_rows * pitch
    lines = min(in_rows, g.h) * g.w
    return _up(g.filters, STRINGS) * steps, [steps * LANES + 64, lines + 64, planes + 64]


def conv_weight_grad(inputs: Sequence[Shape], dw: Shape, attributes: Attributes) -> Convolution:
    """BinaryConvWeightGrad: bits of a band for each tap column, sums of a block of channels."""
    _, dy = inputs
    shape = _shape(attributes, "x_shape")
    kernel = _shape(attributes, "kernel_shape")
    g = _geometry(dy[0], shape[0], shape[1:], dy[1], kernel, dy[2:], attributes)
    if g.is_depthwise:
        return _planes(g)
    channels = _block(g, math.ceil(g.group_filters / STRIP))
    filters = min(g.group_filters, SHARED_LANES)
    return g.banded(2048, 1024)._replace(channels=channels, filters=filters)


def conv_weight_grad_signs(
    inputs: Sequence[Shape], signs: Shape, attributes: Attributes
) -> Convolution:
    """BinaryConvWeightGradSigns: the same, in blocks of channels that end at whole bytes."""
    g = conv_weight_grad(inputs, signs, attributes)
    if g.is_depthwise:
        return g
    channels = _up(g.channels, 8 // math.gcd(8, g.taps))
    filters = min(g.filters, HELD_LANES) if g.n_bands > 1 else g.filters
    return g._replace(channels=min(channels, g.group_channels), filters=filters)


def _conv_weight_grad_signs_scratch(g: Convolution) -> tuple[int, list[int]]:
    shared, shares = _conv_weight_grad_scratch(g)
    held = g.filters * g.channels * g.taps * 4
    return shared, [*shares, held if g.n_bands > 1 else _piece_bytes(g)]


def _piece_bytes(g: Convolution) -> int:
    """Of what is handed on at a time where sums are finished."""
    return LANES * min(g.channels, _up(math.ceil(PIECE / g.taps), 8)) * g.taps * 4


def _conv_weight_grad_scratch(g: Convolution) -> tuple[int, list[int]]:
    rows = (g.rows + (g.kh - 1) * g.dh // g.sh) * g.sh
    bits = g.samples * g.channels * g.kw * rows * math.ceil(g.cols / 8)
    sums = (g.channels + 1) * g.taps * LANES * 4
    return 0, [bits + 64, g.taps * 8, TABLES_BYTES + sums]


def conv_input_grad(inputs: Sequence[Shape], dx: Shape, attributes: Attributes) -> Convolution:
    """BinaryConvInputGrad: all weight bits turned, sums and a window of a block of channels."""
    dy, _ = inputs
    kernel = _shape(attributes, "w_shape")[1:]
    g = _geometry(dy[0], dx[1], dx[2:], dy[1], kernel, dy[2:], attributes)
    if g.is_depthwise:
        return _planes_of_dx(g)
    g = g.banded(256, g.wo)
    channels = _block(g, math.ceil(g.n / g.samples))
    channels = min(channels, max(1, WINDOW_BYTES // _window_bytes(g)))
    n_blocks = g.group * math.ceil(g.group_channels / channels)
    staged = min(g.n, g.samples * math.ceil(STAGED_UNITS / n_blocks))
    return g._replace(channels=channels, filters=MAX_TERMS, staged=staged)


def _window_bytes(g: Convolution) -> int:
    """Of one channel of dx: the rows that a band of positions touches, in float32."""
    return g.samples * (g.rows * g.sh + (g.kh - 1) * g.dh) * g.w * 4


def _conv_input_grad_scratch(g: Convolution) -> tuple[int, list[int]]:
    words = math.ceil(g.group_filters / TERMS) * _up(g.group_channels * g.taps, 8) * 8
    pieces = g.taps * min(LANES, LANES // g.wo + 2) * 24
    window = g.channels * _window_bytes(g)
    return words, [TABLES_BYTES + g.channels * g.taps * LANES * 4, window, pieces]


def _planes(g: Convolution) -> Convolution:
    """A depthwise convolution or its weight gradient: rows of positions of a plane."""
    pitch = g.wo + (g.kw - 1) * g.dw // g.sw
    return g._replace(rows=max(1, PLANE_FLOATS // (g.sh * g.sw * pitch)))


def _planes_of_dx(g: Convolution) -> Convolution:
    """Its input gradient: rows of a plane of dx, for every phase of the strides."""
    pitch = math.ceil(g.w / g.sw) + (g.kw - 1) * g.dw // g.sw
    staged = min(g.n, math.ceil(STAGED_UNITS / g.c))
    return g._replace(rows=max(1, PLANE_FLOATS // pitch), staged=staged)


def _planes_scratch(g: Convolution, *, of_dx: bool) -> tuple[int, list[int]]:
    """Of a thread: a band with its padding, its sums, what is decoded of it, the taps."""
    if of_dx:
        height, width, step_y, step_x = g.ho, g.wo, 1, 1
        n_rows, cols = math.ceil(g.h / g.sh), math.ceil(g.w / g.sw)
    else:
        height, width, n_rows, cols, step_y, step_x = g.h, g.w, g.ho, g.wo, g.sh, g.sw
    rows = min(n_rows, g.rows)
    pitch = cols + (g.kw - 1) * g.dw // g.sw
    band = rows + (g.kh - 1) * g.dh // g.sh
    decoded = max(min(band * step_y, height) * width, rows * cols) + 8
    slack = 4 * SUM_LANES
    floats = [step_y * step_x * band * pitch + slack, rows * pitch + slack, decoded]
    floats += [g.taps * SUM_LANES] * 2 + [g.taps + 8] * 2
    return 0, [*(4 * n for n in floats), 8 * g.taps, 24 * g.taps]


def gemm(inputs: Sequence[Shape], y: Shape, attributes: Attributes) -> Dense:
    """BinaryGemm: indices of a block of samples, a panel of 64 filters."""
    (k,) = _shape(attributes, "x_shape")
    chunk = _up(k, 8) if attributes["dtype"] == FLOAT16 else min(_up(k, 8), 4 * MAX_STEPS)
    return Dense(y[0], y[1], k, min(y[0], 128), chunk)


def _gemm_scratch(g: Dense) -> tuple[int, list[int]]:
    return _up(g.block, STRINGS) * g.chunk // 4, [g.chunk // 4 * LANES]


def gemm_weight_grad(inputs: Sequence[Shape], dw: Shape, attributes: Attributes) -> Dense:
    """BinaryGemmWeightGrad and its signs: terms are samples."""
    (k,) = _shape(attributes, "x_shape")
    _, dy = inputs
    return _signed_sums(dy[0], dy[1], k, n_lanes=dy[1], n_terms=dy[0])


def gemm_input_grad(inputs: Sequence[Shape], dx: Shape, attributes: Attributes) -> Dense:
    """BinaryGemmInputGrad: terms are filters."""
    dy, _ = inputs
    return _signed_sums(dy[0], dy[1], dx[1], n_lanes=dy[0], n_terms=dy[1])


def _signed_sums(n: int, m: int, k: int, *, n_lanes: int, n_terms: int) -> Dense:
    """Blocks of bits as long as there are four units of work: tables are built once for a block."""
    n_blocks = math.ceil(4 / math.ceil(n_lanes / STRIP))
    block = min(MAX_BITS, _up(math.ceil(k / n_blocks), 64))
    return Dense(n, m, k, block, min(n_terms, 42 * TERMS))


def _gemm_weight_grad_scratch(g: Dense) -> tuple[int, list[int]]:
    words = math.ceil(g.chunk / TERMS) * g.block * 8
    return 0, [words, TABLES_BYTES + g.block * LANES * 4]


def _rounded_scratch(g: Dense) -> tuple[int, list[int]]:
    """The same, and the finished tile before it is rounded."""
    shared, shares = _gemm_weight_grad_scratch(g)
    return shared, [*shares, g.block * LANES * 4]


_CONVOLUTIONS: dict[
    str,
    tuple[
        Callable[[Sequence[Shape], Shape, Attributes], Convolution],
        Callable[[Convolution], tuple[int, list[int]]],
    ],
] = {
    "BinaryConv": (conv, _conv_scratch),
    "BinaryConvInputGrad": (conv_input_grad, _conv_input_grad_scratch),
    "BinaryConvWeightGrad": (conv_weight_grad, _conv_weight_grad_scratch),
    "BinaryConvWeightGradSigns": (conv_weight_grad_signs, _conv_weight_grad_signs_scratch),
}
_DENSE: dict[
    str,
    tuple[
        Callable[[Sequence[Shape], Shape, Attributes], Dense],
        Callable[[Dense], tuple[int, list[int]]],
    ],
] = {
    "BinaryGemm": (gemm, _gemm_scratch),
    "BinaryGemmInputGrad": (gemm_input_grad, _rounded_scratch),
    "BinaryGemmWeightGradSigns": (gemm_weight_grad, _rounded_scratch),
    "BinaryGemmWeightGrad": (gemm_weight_grad, _gemm_weight_grad_scratch),
}


def tiling(
    op: str,
    input_shapes: Sequence[Shape],
    output_shapes: Sequence[Shape],
    attributes: Attributes,
) -> Tiling | None:
    """How the compiled kernel of `op` is cut; None where it leaves the work to numpy."""
    op, input_shapes = _of_floats(op, input_shapes, attributes)
    if any(0 in shape for shape in (*input_shapes, *output_shapes)):
        return None
    if op in _DENSE:
        dense = _DENSE[op][0](input_shapes, output_shapes[0], attributes)
        return dense if op != "BinaryGemm" or dense.chunk <= MAX_COUNT else None
    if len(_ints(attributes, "strides")) > 2:
        return None
    g = _CONVOLUTIONS[op][0](input_shapes, output_shapes[0], attributes)
    is_counted = op != "BinaryConv" or g.channels * g.taps <= MAX_COUNT  # 0 channels of planes
    return g if g.taps <= MAX_TAPS and is_counted else None


def scratch_bytes(
    op: str,
    input_shapes: Sequence[Shape],
    output_shapes: Sequence[Shape],
    attributes: Attributes,
    n_threads: int,
    overwritten_bytes: int = 0,
) -> int | None:
    """Bytes of scratch that the compiled kernel of a binary product needs; None if not covered.

    Parameters
    ----------
    op : str
        ``BinaryConv``, ``BinaryGemm`` or one of their gradients.
    input_shapes, output_shapes : sequences of shapes
        As the operator's arrays have them, packed ones in bytes. A smaller batch needs no more.
    attributes : mapping
        The operator's own.
    n_threads : int
        Threads that the kernels will use, at most.
    overwritten_bytes : int
        Of the input that the output is written over; 0 if it has memory of its own.
    """
    g = tiling(op, input_shapes, output_shapes, attributes)
    if g is None:
        return None
    is_whole = op.endswith(("Int8", "Int4"))
    op, _ = _of_floats(op, input_shapes, attributes)
    if isinstance(g, Convolution) and g.is_depthwise:
        shared, shares = _planes_scratch(g, of_dx=op == "BinaryConvInputGrad")
        copied = overwritten_bytes // g.n * g.staged
    elif isinstance(g, Convolution):
        shared, shares = _CONVOLUTIONS[op][1](g)
        copied = overwritten_bytes // g.n * g.staged
    else:
        shared, shares = _DENSE[op][1](g)
        copied = 0
    if is_whole and not (isinstance(g, Convolution) and g.is_depthwise):
        shares = _whole_shares(op, g, shares)
    return _up(shared, 64) + _up(copied, 64) + n_threads * sum(_up(share, 64) for share in shares)


def _whole_shares(op: str, g: Tiling, shares: list[int]) -> list[int]:
    """The shares of a dy of integers, with its sums in int16; dx of a convolution has none.

    Unless the sums belong to the result, they are held until all terms are in, for all tiles of a
    unit, and then are finished by pieces in the memory of those in int16.
    """
    if op == "BinaryConvInputGrad":
        return shares
    if isinstance(g, Dense):
        n_rows, piece, n_tiles = g.block, min(PIECE, g.block) * LANES * 4, 1
    else:
        n_rows, piece = g.channels * g.taps, _piece_bytes(g)
        n_tiles = math.ceil(g.filters / LANES) if g.n_bands > 1 else 1
    if op.endswith("WeightGrad"):
        return [*shares, n_rows * LANES * 2]
    others = (n_tiles - 1) * n_rows * LANES * 4
    return [*shares[:-1], others, max(n_rows * LANES * 2, piece)]


def _of_floats(
    op: str, input_shapes: Sequence[Shape], attributes: Attributes
) -> tuple[str, Sequence[Shape]]:
    """The product, and its input shapes, of a dy that has a unit behind it, and may be packed."""
    end = next((end for end in WITH_UNIT if op.endswith(end)), "")
    if not end:
        return op, input_shapes
    dy = 0 if "InputGrad" in op else 1
    shape = list(input_shapes[dy])
    if "dy_shape" in attributes:
        shape[1:] = _ints(attributes, "dy_shape")
    return op.removesuffix(end), [
        *input_shapes[:dy],
        shape,
        *input_shapes[dy + 2 :],
    ]


def _geometry(
    n: int,
    c: int,
    space: Shape,
    m: int,
    kernel: Shape,
    result: Shape,
    attributes: Attributes,
) -> Convolution:
    """The convolution without a tile; one dimension becomes the second of two."""
    missing = 2 - len(space)
    strides, dilations = _ints(attributes, "strides"), _ints(attributes, "dilations")
    begins = _ints(attributes, "pads")[: len(space)]
    axes = [*zip(space, kernel, result, strides, begins, dilations, strict=True)]
    (h, kh, ho, sh, pt, dh), (w, kw, wo, sw, pl, dw) = [(1, 1, 1, 1, 0, 1)] * missing + axes
    group = int(cast(int, attributes["group"]))
    return Convolution(n, c, h, w, m, kh, kw, ho, wo, sh, sw, pt, pl, dh, dw, group)


def _block(g: Convolution, n_others: int) -> int:
    """Channels of a block: few enough for the sums and for four units of work in all.

    As many as that allows: tables are built once for a block.
    """
    at_most = max(1, MAX_ROWS // g.taps)
    n_blocks = max(math.ceil(g.group_channels / at_most), math.ceil(4 / n_others))
    return max(math.ceil(g.group_channels / n_blocks), min(16, at_most, g.group_channels))


def _shape(attributes: Attributes, name: str) -> list[int]:
    return _ints(attributes, name)


def _ints(attributes: Attributes, name: str) -> list[int]:
    return list(cast("list[int]", attributes[name]))


def _up(a: int, b: int) -> int:
    return -(-a // b) * b
