"""Graphs for stock onnxruntime."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from bnnopt.ops import DOMAIN
from bnnopt.training_step import Role, TrainingStep, role


def portable_model(step: TrainingStep) -> ir.Model:
    """The step with all functions inlined, in the order of the step, for any batch size.

    onnxruntime inlines a function after loading, and then its nodes get late places in the order.
    The batch axis becomes symbolic, and shapes inside are left to onnxruntime.
    """
    model = step.model.clone()
    InlinePass()(model)
    model.graph.opset_imports.pop(DOMAIN, None)
    for value in model.graph.inputs:
        if role(value) in (Role.DATA, Role.LABELS) and value.shape is not None:
            value.shape = ir.Shape(("batch", *value.shape[1:]))
    for node in model.graph:
        for output in node.outputs:
            output.shape = None
    return model
