"""What one operator of the ``bnnopt`` domain is: its ONNX body, its type rule, its buffer rules."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Flag, auto
from typing import cast

import onnx
import onnx_ir as ir

DOMAIN = "bnnopt"
DOMAIN_VERSION = 1
MIN_OPSET = 18  # the bodies use ReduceSum/ReduceMean with axes as input and BitwiseAnd

Dims = tuple[int, ...]
_INT = frozenset({int})
TypedDims = tuple[ir.DataType, Dims]
TypeRule = Callable[[ir.Node], Sequence[TypedDims]]


class Form(Flag):
    """How an operator differs from that of its family which it computes the same as."""

    PLAIN = 0
    HALF = auto()  # weights and states in float16
    BYTES = auto()  # a momentum in int8, all else as HALF
    SIGNS = auto()  # reads or gives sign bits where the plain one has floats
    POW2 = auto()  # reads dy as packed powers of two
    INT8 = auto()  # reads dy as integers and their unit
    INT4 = auto()  # reads dy as packed integers and their unit
    L1 = auto()  # by mean absolute deviations
    PACKED = auto()  # gives or reads packed places where the plain one has indices
    TYPED = auto()  # gives the type that an attribute names
    FUSED = auto()  # an optimiser step behind the product that makes its gradient


@dataclass(frozen=True)
class Operator:
    """One operator of the ``bnnopt`` domain.

    Attributes
    ----------
    summary : str
        What it computes, with shapes, dtypes and the source of the formula.
    signature : str
        ``Name <attributes> (inputs) => (outputs)`` in ONNX text.
    body : str
        The statements of the ONNX function, in standard operators and others of this domain.
    type_rule : TypeRule
        The dtype and shape of every output, from a node whose inputs are typed.
    in_place : mapping of int to int
        Output index to the index of the input whose buffer it may take over.
    or_in_place : mapping of int to int
        The same, to another input, where the first is read later or is of another size.
    family, form : str, Form
        The plain operator that it is a form of, and which form; see `registry.in_form`.
    """

    summary: str
    signature: str
    body: str
    type_rule: TypeRule
    in_place: Mapping[int, int] = field(default_factory=dict)
    or_in_place: Mapping[int, int] = field(default_factory=dict)
    family: str = ""
    form: Form = Form.PLAIN

    @property
    def base(self) -> str:
        """The family: the name of the plain operator, its own if it is that."""
        return self.family or self.name

    @property
    def name(self) -> str:
        """The operator's name, read from its signature."""
        return self.signature.split(maxsplit=1)[0]

    @functools.cached_property
    def calls(self) -> bool:
        """Whether the body calls other operators of this domain."""
        return f"{DOMAIN}." in self.body

    def function(self, opset: int) -> onnx.FunctionProto:
        """The operator as an ONNX function over standard opset `opset`."""
        imports = f'"" : {opset}' + (f', "{DOMAIN}" : {DOMAIN_VERSION}' if self.calls else "")
        text = f'<domain: "{DOMAIN}", opset_import: [{imports}]>\n{self.signature} {{{self.body}}}'
        function = onnx.parser.parse_function(text)
        function.doc_string = self.summary
        return function


class InferenceError(Exception):
    """The types or shapes of a node's inputs do not fit its operator."""


def dims(value: ir.Value | None) -> Dims:
    """The shape of a typed value as plain integers."""
    assert value is not None, "an input that the operator requires is missing"
    assert value.shape is not None, f"value {value.name!r} has no shape"
    found = value.shape.dims
    if not _INT.issuperset(map(type, found)):
        return value.shape.numpy()  # which says that it is open
    return cast(Dims, found)


def dtype(value: ir.Value | None) -> ir.DataType:
    """The dtype of a typed value."""
    assert value is not None, "an input that the operator requires is missing"
    assert value.dtype is not None, f"value {value.name!r} has no dtype"
    return value.dtype


def ints(node: ir.Node, name: str) -> list[int]:
    """The integer-list attribute `name` of `node`."""
    return list(node.attributes[name].as_ints())


def like(*input_indices: int) -> TypeRule:
    """A rule: output i has the type and shape of input ``input_indices[i]``."""
    return lambda node: [(dtype(node.inputs[i]), dims(node.inputs[i])) for i in input_indices]


_INTEGERS = frozenset(
    {"group", "stochastic", "seed", "dtype", "one_in", "relu"}
    | {"plane", "width", "kernel_width", "row_dilation", "column_dilation"}
)
_LISTS = frozenset(
    {"x_shape", "w_shape", "dy_shape", "input_shape", "kernel_shape", "shape"}
    | {"strides", "pads", "dilations", "output_padding", "bit_values", "bit_shape"}
)


def signature_of(operator: Operator) -> tuple[str, list[str], list[str], str]:
    """Name, attributes, inputs and the only output of an operator."""
    made = operator.function(MIN_OPSET)
    (output,) = made.output
    return operator.name, [*made.attribute], [*made.input], output


def passed_on(names: Iterable[str]) -> str:
    """A function's attributes as it hands them on to another, in ONNX text.

    Of a mapping, the names of the other to its own.
    """
    own = names if isinstance(names, Mapping) else {name: name for name in names}
    listed = ", ".join(f"{name}: {_kind(name)} = @{mine}" for name, mine in own.items())
    return f"<{listed}>" if listed else ""


def _kind(name: str) -> str:
    return "int" if name in _INTEGERS else "ints" if name in _LISTS else "float"


def packed_row_bytes(shape: Dims, n_bits: int = 1) -> int:
    """Bytes of one packed row: all of `shape` but its first axis, `n_bits` an element."""
    return math.ceil(math.prod(shape[1:]) * n_bits / 8)
