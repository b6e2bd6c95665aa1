"""input-gradient-sums: sums of a convolution's input gradient, without the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from bnnopt.ops import Emitter, dims, ints
from bnnopt.ops.emit import Attribute
from bnnopt.passes.infra.base import Pass, Trace
from bnnopt.passes.shared.rewriting import replace_node
from bnnopt.training_step import TrainingStep, phase, readers


@dataclass(frozen=True)
class InputGradientSums(Pass):
    """Sum the gradient of a convolution's input from sums of its output's gradient.

    Forward:   y = conv(x + bias, w), where x is the data, normalised: nothing else asks for dx
    Backward:  dbias = sum(dx) = sum over filters and taps of w * t, where t is the sum of dy over
               the outputs whose tap lies inside the input.
    Saves:     dx, and the transposed convolution, the slowest of all in the first layer.
    Numbers:   exact but for the order of the sums, so the reference is mapped as well before it is
               compared.
    Skips:     a grouped convolution; another reader of dx; sums over other axes.
    Levels:    all of them, since they share their kernels.
    """

    name: ClassVar[str] = "input-gradient-sums"
    maps_kernels: ClassVar[bool] = True

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        sums = [node for node in step.graph if node.op_type == "ReduceSum"]
        return sum(_replace(step, trace, node) for node in sums)


def _replace(step: TrainingStep, trace: Trace, node: ir.Node) -> int:
    dx = node.inputs[0]
    grad = dx.producer() if dx is not None else None
    if dx is None or grad is None or grad.op_type != "ConvInputGrad":
        return 0
    if grad.attributes["group"].as_int() != 1:
        return trace.skip(node, "its convolution has groups")
    if readers(dx) != [node] or dx.is_graph_output():
        return trace.skip(node, f"{dx.name!r} has another reader")
    if not _leaves_channels(node, len(dims(dx))):
        return trace.skip(node, "it sums over other axes than batch and space")
    dy, w = grad.inputs
    emit = Emitter(step.graph, phase(node))
    names = ("input_shape", "strides", "pads", "dilations")
    attributes: dict[str, Attribute] = {name: ints(grad, name) for name in names}
    attributes["kernel_shape"] = list(dims(w)[2:])
    taps = emit("ConvTapSums", dy, name=f"{dx.name}.taps", n_outputs=1, **attributes)
    products = emit("Mul", w, taps, name=f"{dx.name}.products")
    emit("ReduceSum", products, node.inputs[1], name=str(node.name), keepdims=0)
    replace_node(step, node, emit)
    step.graph.remove(grad, safe=True)
    return 1


def _leaves_channels(node: ir.Node, rank: int) -> bool:
    """Whether a sum is over all axes but the second, and drops them."""
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if axes is None or axes.const_value is None:
        return False
    keepdims = node.attributes.get("keepdims")
    drops = keepdims is not None and keepdims.as_int() == 0
    summed = {int(axis) % rank for axis in axes.const_value.numpy()}
    return drops and summed == set(range(rank)) - {1}
