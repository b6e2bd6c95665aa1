"""A row of the table of compiled kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled.calls import Arrays, Attributes, KernelCall
from bnnopt.runtime.library import MAX_THREADS as MAX_THREADS  # plans ask here

Shapes: TypeAlias = Sequence[Sequence[int]]


class Sizes(NamedTuple):
    """What scratch memory follows from: shapes, an empty one for what is left out, and attributes.

    ``overwritten_bytes`` are those of the input that the first output is written over; 0 if it has
    memory of its own. `n_threads` are those that the kernels will use, at most.
    """

    inputs: Shapes
    outputs: Shapes
    attributes: Attributes
    overwritten_bytes: int = 0
    n_threads: int = MAX_THREADS


ScratchRule: TypeAlias = Callable[[Sizes], int | None]
ReadRule: TypeAlias = Callable[[Sizes], frozenset[int]]


def largest(needed: Iterable[int | None]) -> int | None:
    """What has room for each of them; None if one is not covered."""
    found = [*needed]
    known = [n for n in found if n is not None]
    return max(known, default=0) if len(known) == len(found) else None


class CompiledKernel(NamedTuple):
    """A row of the table.

    Attributes
    ----------
    call : KernelCall
        Does the work, or says that it does not cover these arrays.
    scratch : ScratchRule, optional
        Bytes beside inputs and outputs; None for shapes that the kernel does not cover. Without a
        rule it needs none, and covers all shapes.
    repeatable : bool
        The C calls follow from shapes, attributes and addresses alone, never from values, but for
        numbers that they `Read` and what they do `again`: they are prepared once and repeated.
        Others choose by a bound or an index.
    grows : bool
        An output may need more than its planned place: its size depends on the data.
    reads_bytes, reads_halves : ReadRule, optional
        Inputs that may also be `Images` or `Halves`, which it makes floats of as it reads them.
    """

    call: KernelCall
    scratch: ScratchRule | None = None
    repeatable: bool = False
    grows: bool = False
    reads_bytes: ReadRule | None = None
    reads_halves: ReadRule | None = None

    def __call__(
        self, inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array
    ) -> bool:
        """Run it; whether the outputs are written."""
        return self.call(inputs, outputs, attributes, scratch)
