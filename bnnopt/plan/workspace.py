"""Scratch memory of a node's kernel: part of the plan, so that the peak is known beforehand."""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.ops import dims, dtype
from bnnopt.runtime.kernels.convolution import (
    conv_weight_grad_workspace_bytes,
    conv_workspace_bytes,
)


def workspace_bytes(node: ir.Node) -> int:
    """Bytes that the numpy kernel of `node` needs beside its inputs and outputs."""
    group = node.attributes.get("group")
    n_groups = group.as_int() if group is not None else 1
    inputs = [dims(value) for value in node.inputs[:2] if value is not None]
    output = dims(node.outputs[0])
    itemsize = int(dtype(node.outputs[0]).itemsize)
    if node.op_type == "Conv":
        return conv_workspace_bytes(inputs[0], inputs[1], output, itemsize, n_groups)
    if node.op_type == "ConvInputGrad":
        return conv_workspace_bytes(output, inputs[1], inputs[0], itemsize, n_groups)
    if node.op_type == "ConvWeightGrad":
        return conv_weight_grad_workspace_bytes(inputs[0], output, inputs[1], itemsize, n_groups)
    return 0
