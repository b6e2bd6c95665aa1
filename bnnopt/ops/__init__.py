"""The ``bnnopt`` operator domain: one place per operator.

Every operator is an ONNX function with a body in standard operators, so a graph that uses it is a
valid ONNX model that stock tools can check, draw and run.
"""

from bnnopt.ops.emit import Emitter, shared_names
from bnnopt.ops.filter_blocks import blocked_gradient_name, blocked_name
from bnnopt.ops.inference import has_inference, infer_types, is_static
from bnnopt.ops.int4 import int4_row_bytes
from bnnopt.ops.operands import ShapeError
from bnnopt.ops.operator import (
    DOMAIN,
    DOMAIN_VERSION,
    MIN_OPSET,
    Form,
    InferenceError,
    Operator,
    dims,
    dtype,
    ints,
    packed_row_bytes,
)
from bnnopt.ops.packing import n_index_bits
from bnnopt.ops.pow2 import pow2_row_bytes
from bnnopt.ops.registry import OPERATORS, family, form, functions_for, in_form
from bnnopt.ops.traits import QONNX_DOMAINS, Cheap, Layer, Traits, is_view, plain, traits
from bnnopt.ops.updates import fused_name
from bnnopt.ops.windows import NodeWindow, transposed_window, window

__all__ = [
    "DOMAIN",
    "DOMAIN_VERSION",
    "MIN_OPSET",
    "OPERATORS",
    "QONNX_DOMAINS",
    "Cheap",
    "Emitter",
    "Form",
    "InferenceError",
    "Layer",
    "NodeWindow",
    "Operator",
    "ShapeError",
    "Traits",
    "blocked_gradient_name",
    "blocked_name",
    "dims",
    "dtype",
    "family",
    "form",
    "functions_for",
    "fused_name",
    "has_inference",
    "in_form",
    "infer_types",
    "int4_row_bytes",
    "ints",
    "is_static",
    "is_view",
    "n_index_bits",
    "packed_row_bytes",
    "plain",
    "pow2_row_bytes",
    "shared_names",
    "traits",
    "transposed_window",
    "window",
]
