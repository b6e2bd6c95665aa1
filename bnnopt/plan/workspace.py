"""Scratch memory of a node's kernel: part of the plan, so that the peak is known beforehand."""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.ops import dims
from bnnopt.runtime.kernels.dispatch import scratch_bytes


def workspace_bytes(node: ir.Node) -> int:
    """Bytes that the native kernel of `node` needs beside its inputs and outputs."""
    inputs = [dims(value) if value is not None else () for value in node.inputs]
    outputs = [dims(value) if value.name else () for value in node.outputs]
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    return scratch_bytes(node.op_type, inputs, outputs, attributes)
