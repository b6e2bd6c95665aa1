"""Operators that follow each other, on some channels after the other.

The compiled kernels of them run on a block of channels each, whose maps lie in scratch memory:
no channel depends on another. So the bits are the same as of whole maps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.chains import CHAINS, GRADIENTS, OF_WINDOW, Chain
from bnnopt.runtime.kernels.compiled import binary_products, convolution, normalization, pooling
from bnnopt.runtime.kernels.compiled.calls import TYPES, Arrays, Attributes, integers, optional
from bnnopt.runtime.kernels.compiled.kernel import CompiledKernel, Sizes, largest
from bnnopt.runtime.kernels.compiled.moving import copied
from bnnopt.runtime.kernels.tiling import WITH_UNIT
from bnnopt.runtime.kernels.windows import make_window

N_BLOCKS = 2  # for each of them a convolution prepares its input
FILTERS = 32  # of a block, at least
CHANNELS = 24  # of a block on the way back: 216 rows of a 3 x 3 kernel, for tables to pay
DTYPES: dict[int, np.dtype[Any]] = {number: dtype for dtype, number in TYPES.items()}

Shape = Sequence[int]


_KERNELS: dict[str, CompiledKernel] = {
    **binary_products.KERNELS,
    **convolution.KERNELS,
    **pooling.KERNELS,
    **normalization.KERNELS,
}


class Layout(NamedTuple):
    """Shapes of a chain, and how its filters are cut.

    Attributes
    ----------
    x, w : shape
        As the product reads them.
    y, pooled : shape
        Of its map, and of what the batch norm reads, for all filters.
    dtype : numpy dtype
        Of both.
    n_place_bits : int
        Of a place in a pooling window; 0 without one.
    """

    chain: Chain
    x: Shape
    w: Shape
    y: Shape
    pooled: Shape
    dtype: np.dtype[Any]
    n_place_bits: int
    attributes: Attributes

    @classmethod
    def of(cls, chain: Chain, x: Shape, w: Shape, attributes: Attributes) -> Layout | None:
        """None where the product has groups, whose filters read not all channels."""
        given = {
            name: cast("list[int]", attributes.get(name, [])) for name in ("x_shape", "w_shape")
        }
        space, kernel = (given["x_shape"] or x[1:])[1:], (given["w_shape"] or w[1:])[1:]
        dtype = DTYPES.get(cast(int, attributes["dtype"]))
        if attributes.get("group", 1) != 1 or dtype is None or len(kernel) != len(space):
            return None
        strides, pads, dilations = (integers(attributes, name) for name in OF_WINDOW[1:])
        window = make_window(space, kernel, strides=strides, pads=pads, dilations=dilations)
        pooled = integers(attributes, "shape") or []
        return cls(
            chain, x, w, (x[0], w[0], *window.result), (x[0], *pooled), dtype,
            len(integers(attributes, "bit_values") or []) if chain.pools else 0, attributes,
        )  # fmt: skip

    @property
    def plane(self) -> int:
        """Elements of a channel behind the pooling."""
        return math.prod(self.pooled[2:])

    def blocks(self) -> Iterator[slice]:
        """The filters of each block; its bits begin at whole bytes."""
        unit = 8 // math.gcd(8, self.plane)
        step = max(FILTERS, -(-self.w[0] // N_BLOCKS))
        step = -(-step // unit) * unit
        for start in range(0, self.w[0], step):
            yield slice(start, min(start + step, self.w[0]))

    def bytes_of(self, filters: slice, n_bits: int = 1) -> slice:
        """Where the bits of some channels are in a sample's row."""
        begin, end = (n * self.plane * n_bits for n in (filters.start, filters.stop))
        return slice(begin // 8, -(-end // 8))

    def sample_bytes(self, filters: slice) -> tuple[int, int]:
        """Of a block's map, and of what is pooled of it."""
        each = (filters.stop - filters.start) * self.dtype.itemsize
        return each * math.prod(self.y[2:]), each * self.plane

    def lead(self, filters: slice) -> int:
        """Bytes in front of a block's map, from which on what is pooled of it follows the map's
        samples as they are read: an eighth of it, if it is half as large, else all of it.
        """
        if not self.chain.pools:
            return 0
        y, pooled = self.sample_bytes(filters)
        ahead = math.ceil(self.y[0] / 8) if 2 * pooled <= y else self.y[0]
        return -(-ahead * pooled // 64) * 64

    def turns(self, filters: slice) -> Iterator[slice]:
        """Samples that are pooled at a time, none over another that is still to be read."""
        y, pooled = self.sample_bytes(filters)
        end = 0
        while end < self.y[0]:
            begin, end = end, min(self.y[0], (self.lead(filters) + end * y) // pooled)
            yield slice(begin, end)

    def parts(self, filters: slice) -> list[tuple[Shape, np.dtype[Any]]]:
        """Of a block: its map and what is pooled of it, signs, mask, places."""
        n_samples, bits = self.y[0], self.bytes_of(filters)
        places = self.bytes_of(filters, self.n_place_bits)
        byte = np.dtype(np.uint8)
        packed: tuple[Shape, np.dtype[Any]] = (n_samples, bits.stop - bits.start), byte
        maps: Shape = (self.lead(filters) + n_samples * self.sample_bytes(filters)[0],)
        found = [(maps, byte), packed, packed]
        if self.chain.pools:
            found.append(((n_samples, places.stop - places.start), byte))
        return found

    def maps(self, filters: slice, memory: Array) -> tuple[Array, Array]:
        """A block's map, and what is pooled of it, in the memory of both; the same without."""
        n, lead = filters.stop - filters.start, self.lead(filters)
        y = memory[lead:].view(self.dtype).reshape(self.y[0], n, *self.y[2:])
        if not self.chain.pools:
            return y, y
        shape = self.y[0], n, *self.pooled[2:]
        n_bytes = math.prod(shape) * self.dtype.itemsize
        return y, memory[:n_bytes].view(self.dtype).reshape(shape)

    def room(self, filters: slice) -> int:
        """Bytes of the parts, each aligned to 64."""
        return sum(aligned_bytes(shape, dtype) for shape, dtype in self.parts(filters))

    def product_scratch(self, filters: slice, n_threads: int) -> int | None:
        """What the product needs beside them."""
        n, rule = filters.stop - filters.start, _KERNELS[self.chain.product].scratch
        assert rule is not None
        shapes = [self.x, (n, *self.w[1:])], [(self.y[0], n, *self.y[2:])]
        return rule(Sizes(*shapes, self.attributes, n_threads=n_threads))


def aligned_bytes(shape: Shape, dtype: np.dtype[Any]) -> int:
    """Of an array in scratch memory."""
    return -(-math.prod(shape) * dtype.itemsize // 64) * 64


def cut(scratch: Array, parts: Iterable[tuple[Shape, np.dtype[Any]]]) -> tuple[list[Array], Array]:
    """Arrays at the beginning of the scratch memory, each aligned to 64, and the rest."""
    arrays: list[Array] = []
    for shape, dtype in parts:
        n_bytes = math.prod(shape) * dtype.itemsize
        arrays.append(scratch[:n_bytes].view(dtype).reshape(shape))
        scratch = scratch[aligned_bytes(shape, dtype) :]
    return arrays, scratch


def run(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array, *, operator: str
) -> bool:
    """`filter_blocks.blocked`; signs, mask and places may be left out."""
    chain = CHAINS[operator]
    x, w, *rest = inputs
    if x is None or w is None or scratch.ctypes.data % 64:
        return False
    layout = Layout.of(chain, x.shape, w.shape, attributes)
    return layout is not None and all(
        _run_block(layout, filters, [x, w, *rest], outputs, scratch) for filters in layout.blocks()
    )


def _run_block(
    layout: Layout, filters: slice, inputs: Arrays, outputs: Arrays, scratch: Array
) -> bool:
    chain, attributes = layout.chain, layout.attributes
    (memory, signs, mask, *places), rest = cut(scratch, layout.parts(filters))
    y, normalized = layout.maps(filters, memory)
    (x, w), (origin, *channels) = inputs[:2], inputs[2:] if chain.pools else (None, *inputs[2:])
    assert w is not None
    if not _KERNELS[chain.product]([x, w[filters]], [y], attributes, rest):
        return False
    if chain.pools:
        own = {**attributes, **{name: attributes[f"pool_{name}"] for name in OF_WINDOW}}
        to = places[0] if outputs[8] is not None else None
        for n in layout.turns(filters):
            made = [normalized[n], None if to is None else to[n]]
            if not _KERNELS["PackedMaxPool"]([y[n], origin], made, own, rest):
                return False
    read = [normalized, *(c[filters] for c in channels if c is not None)]
    made = [signs if outputs[0] is not None else None, mask if outputs[1] is not None else None]
    made += [None if o is None else o[filters] for o in (optional(outputs, i) for i in range(2, 8))]
    if not _KERNELS[chain.norm](read, made, attributes, rest):
        return False
    bits = layout.bytes_of(filters)
    pairs = [(signs, outputs[0], bits), (mask, outputs[1], bits)]
    if chain.pools:
        pairs.append((places[0], outputs[8], layout.bytes_of(filters, layout.n_place_bits)))
    return all(to is None or copied(part, to[:, where]) for part, to, where in pairs)


def scratch_bytes(operator: str, sizes: Sizes) -> int | None:
    """Bytes of the maps of a block, and of what its product needs beside them."""
    x, w = sizes.inputs[:2]
    layout = Layout.of(CHAINS[operator], x, w, sizes.attributes)
    if layout is None:
        return None
    needed = 0
    for filters in layout.blocks():
        beside = layout.product_scratch(filters, sizes.n_threads)
        if beside is None:
            return None
        needed = max(needed, layout.room(filters) + beside)
    return needed


# The way back ------------------------------------------------------------------------------------


class GradientLayout(NamedTuple):
    """Shapes of a gradient's way to the first weights, and how its channels are cut.

    Attributes
    ----------
    product : str
        What makes the gradient of the batch norm's output.
    dy, w, x : shape
        Of the product's gradient and its packed weights (M, bytes); of the first layer's input.
    shape : shape
        Of a sample of the batch norm.
    """

    product: str
    dy: Shape
    w: Shape
    x: Shape
    shape: Shape
    dtype: np.dtype[Any]
    attributes: Attributes

    @classmethod
    def of(
        cls, operator: str, shapes: Sequence[Shape], attributes: Attributes, dtype: np.dtype[Any]
    ) -> GradientLayout | None:
        """None where a block's bits do not begin at whole bytes, or there are groups."""
        product = GRADIENTS[operator]
        place = 1 + product.endswith(WITH_UNIT)
        shape = integers(attributes, "shape") or []
        found = cls(product, shapes[0], shapes[place], shapes[-1], shape, dtype, attributes)
        bits = math.prod(found.kernel), math.prod(shape[1:])
        is_whole = all(CHANNELS * n % 8 == 0 for n in bits)
        return found if is_whole and attributes["group"] == 1 else None

    @property
    def kernel(self) -> Shape:
        """The product's."""
        return (integers(self.attributes, "w_shape") or [])[1:]

    def blocks(self) -> Iterator[slice]:
        """The channels of each block."""
        for start in range(0, self.shape[0], CHANNELS):
            yield slice(start, min(start + CHANNELS, self.shape[0]))

    def bits_of(self, channels: slice, each: int) -> slice:
        """Where the bits of some channels are in a row, `each` of them a channel."""
        return slice(channels.start * each // 8, -(-channels.stop * each // 8))

    def parts(self, channels: slice) -> list[tuple[Shape, np.dtype[Any]]]:
        """Of a block: weights, dx, signs, mask."""
        n, byte = channels.stop - channels.start, np.dtype(np.uint8)
        w = self.bits_of(channels, math.prod(self.kernel))
        bits = self.bits_of(channels, math.prod(self.shape[1:]))
        packed: tuple[Shape, np.dtype[Any]] = (self.dy[0], bits.stop - bits.start), byte
        weights: tuple[Shape, np.dtype[Any]] = (self.w[0], w.stop - w.start), byte
        return [weights, ((self.dy[0], n, *self.shape[1:]), self.dtype), packed, packed]

    def room(self, channels: slice) -> int:
        """Bytes of the parts, each aligned to 64."""
        return sum(aligned_bytes(shape, dtype) for shape, dtype in self.parts(channels))

    def of_product(self, channels: slice) -> Attributes:
        """The product's attributes for a block."""
        return {**self.attributes, "w_shape": [channels.stop - channels.start, *self.kernel]}

    @property
    def of_conv(self) -> Attributes:
        """The attributes of the first layer's weight gradient."""
        own = {name: self.attributes[f"conv_{name}"] for name in OF_WINDOW}
        return {**self.attributes, **own, convolution.ALL_FILTERS: self.shape[0]}

    def scratch(self, channels: slice, n_threads: int) -> int | None:
        """What the products need beside the parts."""
        (w, _), (dx, _), *_ = self.parts(channels)
        unit: list[Shape] = [()] * self.product.endswith(WITH_UNIT)
        given = Sizes([self.dy, *unit, w], [dx], self.of_product(channels), n_threads=n_threads)
        kernel = cast("list[int]", self.attributes["conv_kernel_shape"])
        dw = (dx[1], self.x[1], *kernel)
        last = Sizes([self.x, dx], [dw], self.of_conv, n_threads=n_threads)
        rules = (_KERNELS[self.product].scratch, given), (_KERNELS["ConvWeightGrad"].scratch, last)
        return largest(rule(sizes) for rule, sizes in rules if rule is not None)


def run_gradient(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array, *, operator: str
) -> bool:
    """`filter_blocks.blocked_gradient`; the sums may be left out."""
    if any(array is None for array in inputs) or scratch.ctypes.data % 64:
        return False
    arrays = cast("list[Array]", inputs)
    dtype = arrays[0].dtype if "dtype" not in attributes else DTYPES[cast(int, attributes["dtype"])]
    layout = GradientLayout.of(operator, [a.shape for a in arrays], attributes, dtype)
    return layout is not None and all(
        _run_channels(layout, channels, arrays, outputs, scratch) for channels in layout.blocks()
    )


def _run_channels(
    layout: GradientLayout, channels: slice, inputs: list[Array], outputs: Arrays, scratch: Array
) -> bool:
    (w, dx, signs, mask), rest = cut(scratch, layout.parts(channels))
    *given, all_w, all_signs, all_mask = inputs[:-5]
    *tables, x = inputs[-5:]
    bits = layout.bits_of(channels, math.prod(layout.shape[1:]))
    own = layout.bits_of(channels, math.prod(layout.kernel))
    moved = ((all_w, w, own), (all_signs, signs, bits), (all_mask, mask, bits))
    if not all(copied(whole[:, where], part) for whole, part, where in moved):
        return False
    if not _KERNELS[layout.product]([*given, w], [dx], layout.of_product(channels), rest):
        return False
    sums = [None if o is None else o[channels] for o in (optional(outputs, i) for i in (1, 2))]
    read = [dx, signs, mask, *(table[channels] for table in tables)]
    norm = _KERNELS["BatchNormalizationSignsGrad"]
    if not norm(read, [dx, *sums], layout.attributes, rest):
        return False
    dw = optional(outputs, 0)
    assert dw is not None
    return _KERNELS["ConvWeightGrad"]([x, dx], [dw[channels]], layout.of_conv, rest)


def gradient_scratch_bytes(operator: str, sizes: Sizes) -> int | None:
    """Bytes of the maps of a block, in float32 at most, and of what the products need."""
    dtype = DTYPES[cast(int, sizes.attributes.get("dtype", 1))]
    layout = GradientLayout.of(operator, sizes.inputs, sizes.attributes, dtype)
    if layout is None:
        return None
    needed = 0
    for channels in layout.blocks():
        beside = layout.scratch(channels, sizes.n_threads)
        if beside is None:
            return None
        needed = max(needed, layout.room(channels) + beside)
    return needed


def _reads_bytes(sizes: Sizes, *, operator: str) -> frozenset[int]:
    """x of a real convolution, which is covered where the scratch of its blocks is known."""
    is_real = CHAINS[operator].product == "RealConv"
    return frozenset({0} if is_real and scratch_bytes(operator, sizes) else ())


def _gradient_reads_bytes(sizes: Sizes, *, operator: str) -> frozenset[int]:
    """x, the last input."""
    is_covered = gradient_scratch_bytes(operator, sizes) is not None
    return frozenset({len(sizes.inputs) - 1} if is_covered else ())


KERNELS: dict[str, CompiledKernel] = {
    **{
        name: CompiledKernel(
            partial(run, operator=name),
            partial(scratch_bytes, name),
            reads_bytes=partial(_reads_bytes, operator=name),
            repeatable=True,
        )
        for name, chain in CHAINS.items()
    },
    **{
        name: CompiledKernel(
            partial(run_gradient, operator=name),
            partial(gradient_scratch_bytes, name),
            repeatable=True,
            reads_bytes=partial(_gradient_reads_bytes, operator=name),
        )
        for name in GRADIENTS
    },
}
