"""How convolutions of bits are cut, and their gradients, where channels are worked on together."""

from __future__ import annotations

import math

from bnnopt.runtime.kernels.tiling.shapes import (
    FLOAT16,
    LANES,
    MAX_STEPS,
    PIECE,
    STAGED_UNITS,
    STRINGS,
    STRIP,
    TABLES_BYTES,
    TERMS,
    Attributes,
    Convolution,
    Memory,
    up,
)

INDEX_BYTES = 1 << 18  # nibbles of the weights at a time
MAX_ROWS = 1152  # rows of partial sums: 128 channels of a 3 x 3 convolution
SHARED_LANES = 4 * LANES  # that share the bits of a band
HELD_LANES = 2 * LANES  # that keep the sums of their bands until they are handed on
MAX_TERMS = 85 * TERMS  # terms of a partial sum in float32
WINDOW_BYTES = 1 << 19  # of the input gradient, float32, that is not finished


def forward(g: Convolution, attributes: Attributes) -> Convolution:
    """BinaryConv: nibble planes of a band, a panel of a tile, indices of a block of filters."""
    is_half = attributes["dtype"] == FLOAT16  # which cannot hold partial sums: one block
    block = g.group_channels if is_half else min(g.group_channels, max(4, MAX_STEPS // g.taps * 4))
    steps = math.ceil(block / 4) * g.taps
    filters = min(g.group_filters, max(STRINGS, INDEX_BYTES // steps // STRINGS * STRINGS))
    return g.banded(256, 512)._replace(channels=block, filters=filters)


def forward_memory(g: Convolution) -> Memory:
    """Of `forward`."""
    steps = math.ceil(g.channels / 4) * g.taps
    pitch = (g.cols + (g.kw - 1) * g.dw // g.sw) * g.sw
    in_rows = (g.rows - 1) * g.sh + (g.kh - 1) * g.dh + 1
    planes = math.ceil(g.channels / 4) * g.samples * in_rows * pitch
    lines = min(in_rows, g.h) * g.w
    return Memory(up(g.filters, STRINGS) * steps, [steps * LANES + 64, lines + 64, planes + 64])


def weight_grad(g: Convolution, attributes: Attributes) -> Convolution:
    """BinaryConvWeightGrad: bits of a band for each tap column, sums of a block of channels."""
    channels = _block(g, math.ceil(g.group_filters / STRIP))
    filters = min(g.group_filters, SHARED_LANES)
    return g.banded(2048, 1024)._replace(channels=channels, filters=filters)


def weight_grad_memory(g: Convolution) -> Memory:
    """Of `weight_grad`."""
    rows = (g.rows + (g.kh - 1) * g.dh // g.sh) * g.sh
    bits = g.samples * g.channels * g.kw * rows * math.ceil(g.cols / 8)
    sums = (g.channels + 1) * g.taps * LANES * 4
    return Memory(0, [bits + 64, g.taps * 8, TABLES_BYTES + sums])


def weight_grad_of_integers(g: Convolution) -> Memory:
    """The same for a dy of integers, with its sums in int16."""
    shared, shares = weight_grad_memory(g)
    return Memory(shared, [*shares, g.channels * g.taps * LANES * 2])


def weight_grad_signs(g: Convolution, attributes: Attributes) -> Convolution:
    """BinaryConvWeightGradSigns: the same, in blocks of channels that end at whole bytes."""
    g = weight_grad(g, attributes)
    channels = up(g.channels, 8 // math.gcd(8, g.taps))
    filters = min(g.filters, HELD_LANES) if g.n_bands > 1 else g.filters
    return g._replace(channels=min(channels, g.group_channels), filters=filters)


def weight_grad_signs_memory(g: Convolution) -> Memory:
    """Of `weight_grad_signs`: sums of all bands are held, of one they go on by pieces."""
    shared, shares = weight_grad_memory(g)
    held = g.filters * g.channels * g.taps * 4
    return Memory(shared, [*shares, held if g.n_bands > 1 else _piece_bytes(g)])


def weight_grad_signs_of_integers(g: Convolution) -> Memory:
    """The same for a dy of integers.

    The sums are held until all terms are in, for all tiles of a unit, and are finished by pieces in
    the memory of those in int16.
    """
    shared, shares = weight_grad_memory(g)
    n_rows = g.channels * g.taps
    n_tiles = math.ceil(g.filters / LANES) if g.n_bands > 1 else 1
    others = (n_tiles - 1) * n_rows * LANES * 4
    return Memory(shared, [*shares, others, max(n_rows * LANES * 2, _piece_bytes(g))])


def _piece_bytes(g: Convolution) -> int:
    """Of what is handed on at a time where sums are finished."""
    return LANES * min(g.channels, up(math.ceil(PIECE / g.taps), 8)) * g.taps * 4


def input_grad(g: Convolution, attributes: Attributes) -> Convolution:
    """BinaryConvInputGrad: all weight bits turned, sums and a window of a block of channels."""
    g = g.banded(256, g.wo)
    channels = _block(g, math.ceil(g.n / g.samples))
    channels = min(channels, max(1, WINDOW_BYTES // _window_bytes(g)))
    n_blocks = g.group * math.ceil(g.group_channels / channels)
    staged = min(g.n, g.samples * math.ceil(STAGED_UNITS / n_blocks))
    return g._replace(channels=channels, filters=MAX_TERMS, staged=staged)


def input_grad_memory(g: Convolution) -> Memory:
    """Of `input_grad`, whatever dy is."""
    words = math.ceil(g.group_filters / TERMS) * up(g.group_channels * g.taps, 8) * 8
    pieces = g.taps * min(LANES, LANES // g.wo + 2) * 24
    window = g.channels * _window_bytes(g)
    return Memory(words, [TABLES_BYTES + g.channels * g.taps * LANES * 4, window, pieces])


def _window_bytes(g: Convolution) -> int:
    """Of one channel of dx: the rows that a band of positions touches, in float32."""
    return g.samples * (g.rows * g.sh + (g.kh - 1) * g.dh) * g.w * 4


def _block(g: Convolution, n_others: int) -> int:
    """Channels of a block: few enough for the sums and for four units of work in all.

    As many as that allows: tables are built once for a block.
    """
    at_most = max(1, MAX_ROWS // g.taps)
    n_blocks = max(math.ceil(g.group_channels / at_most), math.ceil(4 / n_others))
    return max(math.ceil(g.group_channels / n_blocks), min(16, at_most, g.group_channels))
