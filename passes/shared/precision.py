"""Types of maps and weights."""

from __future__ import annotations

import onnx_ir as ir


def is_half(value: ir.Value | None) -> bool:
    """Whether the value is float16."""
    return value is not None and value.dtype == ir.DataType.FLOAT16
