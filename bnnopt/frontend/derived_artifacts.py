"""Artifacts whose gradient operators stand for more than one forward operator of ours.

onnxruntime-training fuses what a file had apart, and has operators for whole recurrent layers. Of
these the forward nodes are read, in standard operators, and the compiler differentiates them anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import onnx

Nodes = Sequence[onnx.NodeProto]

BACKWARD = frozenset(
    {"BroadcastGradientArgs", "GatherElementsGrad", "LayerNormalizationGrad", "ReduceLogSumExpGrad"}
)
"""Gradient operators whose forward operators are known, but not read off the gradient."""
LAYER_NORMALIZATION_OPSET = 17


def is_derived(nodes: Iterable[onnx.NodeProto]) -> bool:
    """Whether a training graph has an operator that makes its forward part be read alone."""
    return any(node.op_type in BACKWARD or is_fused(node) for node in nodes)


def is_fused(node: onnx.NodeProto) -> bool:
    """Whether a node is an operator of onnxruntime that stands for standard ones."""
    return node.domain == "com.microsoft" and node.op_type in FUSED


def in_standard_operators(node: onnx.NodeProto) -> Nodes:
    """A fused forward node, taken apart."""
    return FUSED[node.op_type](node)


def _recurrent(operator: str, n_outputs: int) -> Callable[[onnx.NodeProto], Nodes]:
    """The operator without what it keeps for its gradient."""

    def write(node: onnx.NodeProto) -> Nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.op_type, copy.domain = operator, ""
        del copy.output[n_outputs:]
        return [copy]

    return write


def _gelu(node: onnx.NodeProto) -> Nodes:
    """Y = x (1 + erf(x / sqrt 2)) / 2."""
    x, y = node.input[0], node.output[0]
    return [
        _number(y, "root", 0.5**0.5),
        _number(y, "one", 1.0),
        _number(y, "half", 0.5),
        _node("Mul", [x, f"{y}.root"], f"{y}.scaled"),
        _node("Erf", [f"{y}.scaled"], f"{y}.erf"),
        _node("Add", [f"{y}.erf", f"{y}.one"], f"{y}.sum"),
        _node("Mul", [x, f"{y}.half"], f"{y}.share"),
        _node("Mul", [f"{y}.share", f"{y}.sum"], y, node.name),
    ]


def _quick_gelu(node: onnx.NodeProto) -> Nodes:
    """Y = x sigmoid(alpha x)."""
    x, y = node.input[0], node.output[0]
    alpha = next((a.f for a in node.attribute if a.name == "alpha"), 1.702)
    return [
        _number(y, "alpha", alpha),
        _node("Mul", [x, f"{y}.alpha"], f"{y}.scaled"),
        _node("Sigmoid", [f"{y}.scaled"], f"{y}.gate"),
        _node("Mul", [x, f"{y}.gate"], y, node.name),
    ]


def _number(prefix: str, name: str, value: float) -> onnx.NodeProto:
    full = f"{prefix}.{name}"
    return onnx.helper.make_node("Constant", [], [full], name=full, value_float=value)


def _node(operator: str, inputs: list[str], output: str, name: str = "") -> onnx.NodeProto:
    return onnx.helper.make_node(operator, inputs, [output], name=name or output)


FUSED: dict[str, Callable[[onnx.NodeProto], Nodes]] = {
    "GRUTraining": _recurrent("GRU", 2),
    "Gelu": _gelu,
    "LSTMTraining": _recurrent("LSTM", 3),
    "QuickGelu": _quick_gelu,
}
