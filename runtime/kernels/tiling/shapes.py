"""What is cut: the geometry of a convolution and the sizes of a dense product, with their tiles.

The C kernels take the numbers of `Convolution` and `Dense` in the order of their fields. A cut
depends on the shapes alone, never on the number of threads, so that neither does any sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

from bnnopt.runtime.format import Attribute

LANES = 64  # outputs side by side
STRIP = 16  # of them that share tables of signed sums: the least that a thread takes
STRINGS = 4  # outputs of a XNOR product together, for each lane
TERMS = 48  # rows of floats of a set of tables
TABLES_BYTES = (TERMS * LANES + 8 * 64 * 16) * 4  # those rows, and their signed sums for 16 lanes
MAX_STEPS = 2048  # nibbles that a panel of a XNOR product holds for each lane
PIECE = 256  # floats of a row that are handed on at a time where sums are finished at once
STAGED_UNITS = 8  # of work, for all threads, on the samples that are copied at a time
FLOAT16 = 10  # as ONNX numbers it

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
    block: int = 0
    chunk: int = 0


class Memory(NamedTuple):
    """Bytes of scratch: what threads share, and what each of them has, part by part."""

    shared: int
    shares: list[int]


def convolution_of(
    operator: str, inputs: Sequence[Shape], output: Shape, attributes: Attributes
) -> Convolution:
    """The geometry of ``BinaryConv`` or of one of its gradients, without a tile."""
    if operator == "BinaryConv":
        n, c, *space = output[0], *ints(attributes, "x_shape")
        m, *kernel = output[1], *ints(attributes, "w_shape")[1:]
        return _geometry((n, c, *space), (m, *kernel), output[2:], attributes)
    if operator == "BinaryConvInputGrad":
        dy, kernel = inputs[0], ints(attributes, "w_shape")[1:]
        return _geometry(output, (dy[1], *kernel), dy[2:], attributes)
    dy, kernel = inputs[1], ints(attributes, "kernel_shape")
    return _geometry((dy[0], *ints(attributes, "x_shape")), (dy[1], *kernel), dy[2:], attributes)


def _geometry(x: Shape, filters: Shape, result: Shape, attributes: Attributes) -> Convolution:
    """Of x (N, C, H, W), filters (M, KH, KW); one dimension becomes the second of two."""
    (n, c, *space), (m, *kernel) = x, filters
    missing = 2 - len(space)
    strides, dilations = ints(attributes, "strides"), ints(attributes, "dilations")
    begins = ints(attributes, "pads")[: len(space)]
    axes = [*zip(space, kernel, result, strides, begins, dilations, strict=True)]
    (h, kh, ho, sh, pt, dh), (w, kw, wo, sw, pl, dw) = [(1, 1, 1, 1, 0, 1)] * missing + axes
    group = int(cast(int, attributes["group"]))
    return Convolution(n, c, h, w, m, kh, kw, ho, wo, sh, sw, pt, pl, dh, dw, group)


def dense_of(
    operator: str, inputs: Sequence[Shape], output: Shape, attributes: Attributes
) -> Dense:
    """The sizes of ``BinaryGemm`` or of one of its gradients, not cut."""
    if operator == "BinaryGemm":
        return Dense(output[0], output[1], *ints(attributes, "x_shape"))
    if operator == "BinaryGemmInputGrad":
        (n, m), k = inputs[0], output[1]
        return Dense(n, m, k)
    return Dense(*inputs[1], *ints(attributes, "x_shape"))


def ints(attributes: Attributes, name: str) -> list[int]:
    """A list of integers of an operator."""
    return list(cast("list[int]", attributes[name]))


def up(a: int, b: int) -> int:
    """The least multiple of b that a fits into."""
    return -(-a // b) * b
