"""The table of the compiled kernels: one row an operator.

To add one: write its call in the family's file, and a row of `KERNELS` there.
`tests/runtime/compiled_calls.py` then asks for inputs to test it on, and the numpy kernel is its
oracle.
"""

from __future__ import annotations

from bnnopt.runtime.kernels.compiled import (
    binary_products,
    bitmap,
    convolution,
    elementwise,
    filter_blocks,
    layer_normalization,
    linear,
    loss,
    moving,
    normalization,
    normalize_bytes,
    optimizers,
    packing,
    pooled_filter_blocks,
    pooling,
    reduction,
    updates,
)
from bnnopt.runtime.kernels.compiled.kernel import CompiledKernel, ReadRule, Sizes

COMPILED: dict[str, CompiledKernel] = {
    **binary_products.KERNELS,
    **bitmap.KERNELS,
    **convolution.KERNELS,
    **elementwise.KERNELS,
    **filter_blocks.KERNELS,
    **pooled_filter_blocks.KERNELS,
    **layer_normalization.KERNELS,
    **linear.KERNELS,
    **loss.KERNELS,
    **moving.KERNELS,
    **normalization.KERNELS,
    **normalize_bytes.KERNELS,
    **optimizers.KERNELS,
    **packing.KERNELS,
    **pooling.KERNELS,
    **reduction.KERNELS,
    **updates.KERNELS,
}

GROWING = frozenset(name for name, kernel in COMPILED.items() if kernel.grows)
"""Operators whose values may need more than the plan has, and are freed behind their readers."""


def covers(operator: str, sizes: Sizes) -> bool:
    """Whether a compiled kernel does an operator's work on these shapes, in a type that it has."""
    kernel = COMPILED.get(operator)
    return kernel is not None and (kernel.scratch is None or kernel.scratch(sizes) is not None)


def has_scratch(operator: str) -> bool:
    """Whether the kernel of a step may need memory beside its inputs and outputs."""
    kernel = COMPILED.get(operator)
    return kernel is not None and kernel.scratch is not None


def reads_bytes(operator: str, sizes: Sizes) -> frozenset[int]:
    """The inputs of an operator that may be bytes, which its kernel normalises as it reads them."""
    return _read_by(COMPILED[operator].reads_bytes, sizes) if operator in COMPILED else frozenset()


def reads_halves(operator: str, sizes: Sizes) -> frozenset[int]:
    """The inputs of an operator that may be float16, which its kernel widens as it reads them."""
    return _read_by(COMPILED[operator].reads_halves, sizes) if operator in COMPILED else frozenset()


def _read_by(rule: ReadRule | None, sizes: Sizes) -> frozenset[int]:
    return rule(sizes) if rule is not None else frozenset()


def scratch_bytes(operator: str, sizes: Sizes) -> int:
    """Bytes that the kernel of a step needs beside its inputs and outputs; numpy's need none."""
    kernel = COMPILED.get(operator)
    return (kernel.scratch(sizes) or 0) if kernel is not None and kernel.scratch else 0
