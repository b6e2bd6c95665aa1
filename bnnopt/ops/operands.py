"""A node as shape rules and bodies of operators read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from bnnopt.ops.operator import InferenceError, dims

Shape = tuple[int, ...]


class ShapeError(InferenceError):
    """Shapes or attributes that do not fit one another, with what was found and expected."""


class Operands:
    """Shapes, attributes and constants of a node whose shapes are known."""

    def __init__(self, node: ir.Node) -> None:
        self._node = node

    @property
    def n_inputs(self) -> int:
        """Number of inputs, those left out included."""
        return len(self._node.inputs)

    @property
    def n_outputs(self) -> int:
        """Number of outputs, those left out included."""
        return len(self._node.outputs)

    def has(self, index: int) -> bool:
        """Whether the input is given."""
        return index < self.n_inputs and self._node.inputs[index] is not None

    def shape(self, index: int) -> Shape:
        """Shape of an input, which has to be there."""
        return dims(self.value(index))

    def value(self, index: int) -> ir.Value:
        """An input, which has to be there."""
        found = self._node.inputs[index] if self.has(index) else None
        if found is None:
            raise ShapeError(f"input {index} is left out, expected a value")
        return found

    def name(self, index: int) -> str:
        """Name of an input, for messages."""
        value = self._node.inputs[index]
        return repr(value.name) if value is not None else f"input {index}"

    def output(self, index: int = 0) -> Shape:
        """Shape of an output, as it was inferred."""
        return dims(self._node.outputs[index])

    def ints(self, name: str, default: Sequence[int]) -> list[int]:
        """An attribute of integers."""
        found = self._node.attributes.get(name)
        return list(found.as_ints()) if found is not None else list(default)

    def number(self, name: str, default: int) -> int:
        """An integer attribute."""
        found = self._node.attributes.get(name)
        return found.as_int() if found is not None else default

    def number_or_none(self, name: str) -> int | None:
        """An integer attribute; None if it is not given."""
        found = self._node.attributes.get(name)
        return found.as_int() if found is not None else None

    def real(self, name: str, default: float) -> float:
        """A number attribute."""
        found = self._node.attributes.get(name)
        return float(found.value) if found is not None else default

    def text(self, name: str, default: str) -> str:
        """A text attribute."""
        found = self._node.attributes.get(name)
        return found.as_string() if found is not None else default

    def texts(self, name: str) -> list[str]:
        """An attribute of texts; empty if it is not given."""
        found = self._node.attributes.get(name)
        return list(found.as_strings()) if found is not None else []

    def array(self, index: int) -> NDArray[Any] | None:
        """The elements of an input that is a constant; None if it is not, or is left out."""
        value = self._node.inputs[index] if self.has(index) else None
        return None if value is None or value.const_value is None else value.const_value.numpy()

    def reals(self, index: int) -> list[float]:
        """The numbers of an input that is a constant; none if it is not, or is left out."""
        array = self.array(index)
        return [] if array is None else [float(x) for x in array.reshape(-1)]

    def constant(self, index: int) -> list[int] | None:
        """The integers of an input that is a constant; None if it is not, or is left out."""
        array = self.array(index)
        return None if array is None else [int(x) for x in array.reshape(-1)]

    def require(self, fits: bool, what: str, found: object, expected: str) -> None:
        """Raise `ShapeError` unless it fits."""
        if not fits:
            shown = list(found) if isinstance(found, tuple) else found
            raise ShapeError(f"{what} is {shown}, expected {expected}")

    def require_rank(self, index: int, least: int, most: int | None = None) -> None:
        """The number of axes of an input."""
        shape = self.shape(index)
        expected = f"{least} axes" if most == least else f"at least {least} axes"
        fits = least <= len(shape) <= (len(shape) if most is None else most)
        self.require(fits, f"the shape of {self.name(index)}", shape, expected)

    def require_shape(self, index: int, expected: Shape) -> None:
        """The shape of an input, if that is given."""
        if self.has(index):
            fits = self.shape(index) == expected
            what = f"the shape of {self.name(index)}"
            self.require(fits, what, self.shape(index), f"{list(expected)}")

    def require_axis(self, axis: int, rank: int, past_end: bool = False) -> None:
        """An axis of a shape of so many; `past_end` lets it be the one after the last."""
        last = rank if past_end else rank - 1
        self.require(-rank <= axis <= last, "the axis", axis, f"{-rank} to {last}")

    def require_axes(self, axes: Sequence[int], rank: int) -> None:
        """Different axes of a shape of so many."""
        for axis in axes:
            self.require_axis(axis, rank)
        distinct = len({axis % rank for axis in axes}) == len(axes) if rank else True
        self.require(distinct, "the list of axes", list(axes), "each axis once")
