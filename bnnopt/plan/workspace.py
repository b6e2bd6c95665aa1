"""Scratch memory of a node's kernel: part of the plan, so that the peak is known beforehand."""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.analysis import in_place_pairs, size_bytes
from bnnopt.ops import dims
from bnnopt.runtime.kernels.compiled.kernel import MAX_THREADS, Sizes
from bnnopt.runtime.kernels.compiled.table import has_scratch, scratch_bytes


def workspace_bytes(node: ir.Node, n_threads: int = MAX_THREADS) -> int:
    """Bytes that the native kernel of `node` needs beside its inputs and outputs."""
    if not has_scratch(node.op_type):
        return 0
    inputs = [dims(value) if value is not None else () for value in node.inputs]
    outputs = [dims(value) if value.name else () for value in node.outputs]
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    overwritten = in_place_pairs(node).get(0)
    n_bytes = size_bytes(_input(node, overwritten)) if overwritten is not None else 0
    return scratch_bytes(node.op_type, Sizes(inputs, outputs, attributes, n_bytes, n_threads))


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value
