"""A convolution, its pooling and its batch norm, some filters after the other.

The compiled kernels of the three run on a block of filters each, whose maps lie in scratch memory:
a filter's channel depends on no other. So the bits are the same as of whole maps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled import binary_products, convolution, normalization, pooling
from bnnopt.runtime.kernels.compiled.calls import TYPES, Arrays, Attributes, integers, optional
from bnnopt.runtime.kernels.compiled.kernel import CompiledKernel, Sizes
from bnnopt.runtime.kernels.compiled.moving import copied
from bnnopt.runtime.kernels.reference.filter_blocks import CHAINS, OF_WINDOW, Chain
from bnnopt.runtime.kernels.windows import make_window

N_BLOCKS = 2  # for each of them a convolution prepares its input
FILTERS = 32  # of a block, at least
DTYPES: dict[int, np.dtype[Any]] = {number: dtype for dtype, number in TYPES.items()}

Shape = Sequence[int]


_KERNELS: dict[str, CompiledKernel] = {
    **binary_products.KERNELS,
    **convolution.KERNELS,
    **pooling.KERNELS,
    **normalization.KERNELS,
}


@dataclass(frozen=True)
class Layout:
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

    def parts(self, filters: slice) -> list[tuple[Shape, np.dtype[Any]]]:
        """Of a block: its map, what is pooled of it, signs, mask, places."""
        n, bits = filters.stop - filters.start, self.bytes_of(filters)
        places = self.bytes_of(filters, self.n_place_bits)
        byte = np.dtype(np.uint8)
        packed: tuple[Shape, np.dtype[Any]] = (self.y[0], bits.stop - bits.start), byte
        found = [((self.y[0], n, *self.y[2:]), self.dtype), packed, packed]
        if self.chain.pools:
            found.append(((self.y[0], n, *self.pooled[2:]), self.dtype))
            found.append(((self.y[0], places.stop - places.start), byte))
        return found

    def room(self, filters: slice) -> int:
        """Bytes of the parts, each aligned to 64."""
        return sum(_aligned(shape, dtype) for shape, dtype in self.parts(filters))

    def product_scratch(self, filters: slice, n_threads: int) -> int | None:
        """What the product needs beside them."""
        n, rule = filters.stop - filters.start, _KERNELS[self.chain.product].scratch
        assert rule is not None
        shapes = [self.x, (n, *self.w[1:])], [(self.y[0], n, *self.y[2:])]
        return rule(Sizes(*shapes, self.attributes, n_threads=n_threads))


def _aligned(shape: Shape, dtype: np.dtype[Any]) -> int:
    return -(-math.prod(shape) * dtype.itemsize // 64) * 64


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
    taken = 0
    arrays: list[Array] = []
    for shape, dtype in layout.parts(filters):
        n_bytes = math.prod(shape) * dtype.itemsize
        arrays.append(scratch[taken : taken + n_bytes].view(dtype).reshape(shape))
        taken += _aligned(shape, dtype)
    y, signs, mask, *of_pool = arrays
    rest = scratch[taken:]
    (x, w), (origin, *channels) = inputs[:2], inputs[2:] if chain.pools else (None, *inputs[2:])
    assert w is not None
    if not _KERNELS[chain.product]([x, w[filters]], [y], attributes, rest):
        return False
    if chain.pools:
        own = {name: attributes[f"pool_{name}"] for name in OF_WINDOW}
        places = of_pool[1] if outputs[8] is not None else None
        call = _KERNELS["PackedMaxPool"]
        if not call([y, origin], [of_pool[0], places], {**attributes, **own}, rest):
            return False
    read = [of_pool[0] if chain.pools else y, *(c[filters] for c in channels if c is not None)]
    made = [signs if outputs[0] is not None else None, mask if outputs[1] is not None else None]
    made += [None if o is None else o[filters] for o in (optional(outputs, i) for i in range(2, 8))]
    if not _KERNELS[chain.norm](read, made, attributes, rest):
        return False
    bits = layout.bytes_of(filters)
    pairs = [(signs, outputs[0], bits), (mask, outputs[1], bits)]
    if chain.pools:
        pairs.append((of_pool[1], outputs[8], layout.bytes_of(filters, layout.n_place_bits)))
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


KERNELS: dict[str, CompiledKernel] = {
    name: CompiledKernel(
        partial(run, operator=name),
        partial(scratch_bytes, name),
        repeatable=_KERNELS[chain.product].repeatable,
    )
    for name, chain in CHAINS.items()
}
