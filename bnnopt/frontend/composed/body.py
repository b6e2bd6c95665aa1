"""What an operator is written out as."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from bnnopt.ops.operands import Operands


@dataclass(frozen=True)
class Body:
    """An ONNX function for one node.

    Attributes
    ----------
    text : str
        ``(inputs) => (outputs) { statements }`` in ONNX text, inputs and outputs by the node's
        positions. An input that the node leaves out, and an output that it does not give, may be
        named all the same.
    constants : mapping of str to ndarray
        Arrays that the statements read by these names.
    inputs : sequence of Value, optional
        What the inputs are, where they are not those of the node.
    """

    text: str
    constants: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    inputs: Sequence[ir.Value | None] | None = None


Writer = Callable[[Operands], Body | None]
"""From a node to its body; None where the node stays as it is."""


def ints(name: str, values: Sequence[int]) -> str:
    """The statement of a vector of int64."""
    return f"{name} = Constant <value_ints = [{', '.join(map(str, values))}]> ()\n"


def number(name: str, value: float) -> str:
    """The statement of a float32 scalar."""
    return f"{name} = Constant <value_float = {value!r}> ()\n"
