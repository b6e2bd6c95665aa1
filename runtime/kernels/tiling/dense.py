"""How dense products of bits are cut, and their gradients."""

from __future__ import annotations

import math

from bnnopt.runtime.kernels.tiling.shapes import (
    FLOAT16,
    LANES,
    MAX_STEPS,
    PIECE,
    STRINGS,
    STRIP,
    TABLES_BYTES,
    TERMS,
    Attributes,
    Dense,
    Memory,
    up,
)

MAX_BITS = 512  # of a block
MAX_TERMS = 42 * TERMS  # of a partial sum in float32
SHARE = 1 << 18  # products of a gradient that are worth a thread, and its tables


def forward(g: Dense, attributes: Attributes) -> Dense:
    """BinaryGemm: indices of a block of samples, a panel of 64 filters."""
    is_half = attributes["dtype"] == FLOAT16  # which cannot hold partial sums: one chunk
    chunk = up(g.k, 8) if is_half else min(up(g.k, 8), 4 * MAX_STEPS)
    return g._replace(block=min(g.n, 128), chunk=chunk)


def forward_memory(g: Dense) -> Memory:
    """Of `forward`."""
    return Memory(up(g.block, STRINGS) * g.chunk // 4, [g.chunk // 4 * LANES])


def weight_grad(g: Dense, attributes: Attributes) -> Dense:
    """BinaryGemmWeightGrad and its signs: terms are samples."""
    return _signed_sums(g, n_lanes=g.m, n_terms=g.n)


def input_grad(g: Dense, attributes: Attributes) -> Dense:
    """BinaryGemmInputGrad: terms are filters."""
    return _signed_sums(g, n_lanes=g.n, n_terms=g.m)


def _signed_sums(g: Dense, *, n_lanes: int, n_terms: int) -> Dense:
    """Blocks of bits as long as there are four units of work: tables are built once for a block."""
    n_blocks = math.ceil(4 / math.ceil(n_lanes / STRIP))
    block = min(MAX_BITS, up(math.ceil(g.k / n_blocks), 64))
    return g._replace(block=block, chunk=min(n_terms, MAX_TERMS))


def threads_of_gradient(g: Dense, n_threads: int) -> int:
    """How many of the threads a gradient is worth: a small one does with one, and its memory."""
    return min(n_threads, math.ceil(g.n * g.m * g.k / SHARE))


def sums_memory(g: Dense) -> Memory:
    """Of a gradient whose sums belong to the result."""
    words = math.ceil(g.chunk / TERMS) * g.block * 8
    return Memory(0, [words, TABLES_BYTES + g.block * LANES * 4])


def sums_of_integers(g: Dense) -> Memory:
    """The same for a dy of integers, with its sums in int16."""
    shared, shares = sums_memory(g)
    return Memory(shared, [*shares, g.block * LANES * 2])


def rounded_memory(g: Dense) -> Memory:
    """Of a gradient that is rounded, or of which the signs are taken: a finished tile as well."""
    shared, shares = sums_memory(g)
    return Memory(shared, [*shares, g.block * LANES * 4])


def rounded_of_integers(g: Dense) -> Memory:
    """The same for a dy of integers: finished by pieces, in the memory of the sums in int16."""
    shared, shares = sums_memory(g)
    piece = min(PIECE, g.block) * LANES * 4
    return Memory(shared, [*shares, max(g.block * LANES * 2, piece)])
