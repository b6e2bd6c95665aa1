"""A model layer by layer, as larq's ``summary``: parameters, bits, multiplications, memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx_ir as ir
from rich.console import Group, RenderableType
from rich.text import Text

from bnnopt.analysis import fan_in, is_binary
from bnnopt.autodiff.selection import layers_of
from bnnopt.frontend import ForwardGraph
from bnnopt.ops import Layer, dims, dtype, traits
from bnnopt.tables import Column, Listing, Row
from bnnopt.training_step import Role, role
from bnnopt.units import size


@dataclass(frozen=True)
class LayerSummary:
    """One layer: a convolution or dense layer with what follows it up to the next one.

    Attributes
    ----------
    name, operator : str
        Of its product; empty of what comes before the first one.
    output : tuple of int
        Shape of the product's output, without the batch.
    input_bits : int
        Bits an element of the product's input: 1 where it is -1 or +1.
    binary, real : int
        Parameters of which the network sees the signs, and the others.
    binary_macs, real_macs : int
        Multiply-accumulates of a sample: of two binary operands, and others.
    weight_bytes : int
        Of its parameters in a trained network: binary ones as bits, others as they are.
    trained : int
        How many of the parameters are trained.
    """

    name: str
    operator: str
    output: tuple[int, ...]
    input_bits: int
    binary: int
    real: int
    binary_macs: int
    real_macs: int
    weight_bytes: int
    trained: int


@dataclass(frozen=True)
class Summary:
    """A model layer by layer."""

    model: str
    layers: Sequence[LayerSummary]

    def total(self, field: str) -> int:
        """The sum of a number over the layers."""
        return sum(getattr(layer, field) for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        fields = ("binary", "real", "binary_macs", "real_macs", "weight_bytes", "trained")
        return {
            "model": self.model,
            "layers": [asdict(layer) for layer in self.layers],
            "total": {field: self.total(field) for field in fields},
        }

    def render(self) -> RenderableType:
        """The table, and the totals in words."""
        columns = [
            Column("layer"),
            Column("operator", optional=True),
            Column("output", optional=True),
            Column("input\nbits", is_figure=True, optional=True),
            Column("1-bit\nweights", is_figure=True),
            Column("other\nweights", is_figure=True),
            Column("1-bit\nMACs", is_figure=True),
            Column("other\nMACs", is_figure=True),
            Column("memory", is_figure=True),
            Column("trained", optional=True),
        ]
        rows = [_row(layer) for layer in self.layers]
        return Group(Listing(self.model, columns, rows), Text(), self._totals())

    def _totals(self) -> Text:
        binary, real, macs = self.total("binary"), self.total("real"), self.total("binary_macs")
        parameters, n_macs = binary + real, macs + self.total("real_macs")
        float_bytes = 4 * parameters
        n_bytes = self.total("weight_bytes")
        lines = (
            f"parameters: {parameters:,}, {_share(binary, parameters)} binary; "
            f"trained: {self.total('trained'):,}",
            f"multiply-accumulates a sample: {n_macs:,}, {_share(macs, n_macs)} binary",
            f"weights of the trained network: {size(n_bytes)}, in float32 {size(float_bytes)}",
        )
        return Text("\n".join(lines))


def summarize(forward: ForwardGraph, name: str) -> Summary:
    """The layers of a forward graph, in their order.

    Parameters
    ----------
    forward : ForwardGraph
        For any batch size; the figures are those of one sample.
    name : str
        Of the model.
    """
    layers = layers_of(forward.graph)
    products: dict[int, ir.Node] = {}
    for node in forward.graph:
        if traits(node).layer is not None and _weights(node.inputs[1]):
            products.setdefault(len(products), node)
    numbers = sorted({*products, *layers.values()})
    return Summary(
        name, [_layer(forward, number, products.get(number), layers) for number in numbers]
    )


def _layer(
    forward: ForwardGraph, number: int, product: ir.Node | None, layers: dict[ir.Value, int]
) -> LayerSummary:
    weights = [value for value, layer in layers.items() if layer == number]
    signs = [value for value in weights if _seen_as_signs(value)]
    binary, real = (_elements(v for v in weights if (v in signs) is b) for b in (True, False))
    trained = _elements(value for value in weights if role(value) is Role.PARAMETER)
    sizes = [
        dtype(value).itemsize * math.prod(dims(value)) for value in weights if value not in signs
    ]
    n_bytes = math.ceil(binary / 8) + int(sum(sizes))
    if product is None:
        return LayerSummary("", "", (), 32, binary, real, 0, 0, n_bytes, trained)
    macs = _macs(product) // forward.batch_size
    reads_signs = is_binary(product.inputs[0])
    is_both = reads_signs and bool(signs)
    return LayerSummary(
        str(product.name),
        product.op_type,
        dims(product.outputs[0])[1:],
        1 if reads_signs else 32,
        binary,
        real,
        macs if is_both else 0,
        0 if is_both else macs,
        n_bytes,
        trained,
    )


def _macs(product: ir.Node) -> int:
    """Multiply-accumulates of a whole batch."""
    if traits(product).layer is Layer.TRANSPOSED:
        return math.prod(dims(product.inputs[0])) * math.prod(dims(product.inputs[1])[1:])
    return math.prod(dims(product.outputs[0])) * fan_in(product)


def _weights(value: ir.Value | None) -> set[ir.Value]:
    """The parameters that a value is a function of, if of nothing else."""
    if value is None or value.is_initializer():
        return set()
    producer = value.producer()
    if producer is None:
        return {value} if role(value) in (Role.PARAMETER, Role.FROZEN) else set()
    return set().union(*(_weights(source) for source in producer.inputs))


def _seen_as_signs(weight: ir.Value) -> bool:
    """Whether the network sees the signs of a weight, or keeps it as such."""
    if dtype(weight) == ir.DataType.UINT8:
        return True
    return any(traits(use.node).gives_signs for use in weight.uses())


def _elements(values: Any) -> int:
    return sum(math.prod(dims(value)) for value in values)


def _row(layer: LayerSummary) -> Row:
    n_weights = layer.binary + layer.real
    trained = "no" if not layer.trained else "yes" if layer.trained == n_weights else "in part"
    return Row(
        [
            layer.name or "(before)",
            layer.operator,
            " x ".join(map(str, layer.output)),
            str(layer.input_bits),
            *(f"{n:,}" for n in (layer.binary, layer.real, layer.binary_macs, layer.real_macs)),
            size(layer.weight_bytes),
            trained,
        ]
    )


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none"
