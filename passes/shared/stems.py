"""The stem of a residual network: a convolution, an L1 batch norm, a ReLU, a pooling; and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import onnx_ir as ir

from bnnopt.ops import dims
from bnnopt.training_step import phase, readers

OF_WINDOW = ("kernel_shape", "strides", "pads", "dilations")


class Stretch(NamedTuple):
    """Nodes that one operator can do.

    Attributes
    ----------
    y : Value
        The map between them.
    nodes : sequence of Node
        The last is where all that they read is there, and what they make is not yet read.
    name : str
        The operator.
    inputs, attributes
        The operator's.
    outputs : sequence of Value or None
        What the operator's stand for, in their order.
    """

    y: ir.Value
    nodes: Sequence[ir.Node]
    name: str
    inputs: Sequence[ir.Value]
    attributes: dict[str, Any]
    outputs: Sequence[ir.Value | None]


def forward_stem(grad: ir.Node) -> Stretch | str:
    """From the convolution to the pooling whose gradient an L1BatchNormalizationPoolGrad is.

    Returns
    -------
    Stretch or str
        Or why it is none.
    """
    pool, pack = _maker(grad.inputs[2]), _maker(grad.inputs[4])
    norm = _maker(pack.inputs[0]) if pack is not None else None
    conv = _maker(norm.inputs[0]) if norm is not None else None
    if pool is None or pack is None or norm is None or conv is None or conv.op_type != "RealConv":
        return "no convolution that writes float16 makes it"
    before = _maker(pool.inputs[0])
    relu = before if before is not norm else None
    chain = [conv, norm, *([relu] if relu is not None else []), pool]
    allowed = {*chain, pack}
    for node in chain[:-1]:
        others = [reader for reader in readers(node.outputs[0]) if reader not in allowed]
        if others:
            return f"{others[0].op_type} {others[0].name!r} reads it too"
    of_conv, of_norm = _attributes(conv), _attributes(norm)
    if of_conv["dtype"] != of_norm["dtype"] or pack.inputs[1] is not norm.inputs[2]:
        return "its batch norm writes another type"
    of_pool = {f"pool_{k}" if k in OF_WINDOW else k: v for k, v in _attributes(pool).items()}
    return Stretch(
        conv.outputs[0],
        [*chain[:-1], pack, pool],
        "RealConvNormMaxPool",
        _present([*conv.inputs, *norm.inputs[1:], pool.inputs[1]]),
        {"relu": int(relu is not None), **of_conv, **of_norm, **of_pool},
        [*pool.outputs, pack.outputs[0], *norm.outputs[1:]],
    )


def backward_stem(grad: ir.Node) -> Stretch | str:
    """From an L1BatchNormalizationPoolGrad to the weights of its convolution, and its taps.

    Returns
    -------
    Stretch or str
        Or why it is none.
    """
    dx = grad.outputs[0]
    found = {reader.op_type: reader for reader in readers(dx)}
    weights, taps = found.pop("ConvWeightGrad", None), found.pop("ConvTapSums", None)
    if found:
        return f"{next(iter(found))} reads it too"
    if weights is None or weights.attributes["group"].as_int() != 1:
        return "its convolution has groups"
    x, own = weights.inputs[0], _attributes(weights)
    assert x is not None
    window = {f"conv_{key}": own[key] for key in OF_WINDOW}
    shape = {"conv_input_shape": list(dims(x)[2:]), "dtype": int(dx.dtype or 0)}
    return Stretch(
        dx,
        [weights, *([taps] if taps is not None else []), grad],
        "RealConvNormMaxPoolGrad",
        _present([*grad.inputs, x]),
        {**_attributes(grad), **window, **shape},
        [weights.outputs[0], taps.outputs[0] if taps is not None else None, *grad.outputs[1:]],
    )


def _maker(value: ir.Value | None) -> ir.Node | None:
    """What makes a value in the forward pass."""
    node = value.producer() if value is not None else None
    return node if node is not None and phase(node) == "forward" else None


def _attributes(node: ir.Node) -> dict[str, Any]:
    return {name: attribute.value for name, attribute in node.attributes.items()}


def _present(values: list[ir.Value | None]) -> list[ir.Value]:
    return [value for value in values if value is not None]
