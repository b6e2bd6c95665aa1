"""How much may be computed while a file is read: constants are, within bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from bnnopt.ops import InferenceError, dims, infer_types

MOST_BYTES = 1 << 28  # of a constant
UNSIZED = (None, ir.DataType.STRING, ir.DataType.UNDEFINED)
MOST_TRIPS = 1000  # of a loop
REPEATING = frozenset({"Loop", "Scan", "SequenceMap"})
GROWING = frozenset(
    {"Concat", "ConcatFromSequence", "ConstantOfShape", "Expand", "Pad", "Range", "Resize", "Tile"}
)


def check_loops(node: onnx.NodeProto, given: Mapping[str, NDArray[np.generic]]) -> None:
    """Refuse what may go on for long, or grow in each trip.

    Parameters
    ----------
    node : NodeProto
    given : mapping of str to ndarray
        The values of its inputs.

    Raises
    ------
    InferenceError
        Of a Loop without a small number of trips, one in another, and one whose tensors grow.
    """
    for inner in (n for a in node.attribute for n in a.g.node):
        if node.op_type in REPEATING and inner.op_type in REPEATING | GROWING:
            raise InferenceError(f"a {inner.op_type} within a {node.op_type}")
        check_loops(inner, {})
    if node.op_type == "Loop":
        trips = given.get(node.input[0])
        if trips is None or trips.size != 1 or int(trips.reshape(-1)[0]) > MOST_TRIPS:
            raise InferenceError(f"a Loop of no known number of trips up to {MOST_TRIPS}")


def check_size(node: ir.Node, opset: int) -> None:
    """Refuse a constant that is too large, where its type follows; outputs are typed then.

    Raises
    ------
    InferenceError
        Saying how large it would be.
    """
    try:
        infer_types(node, opset, may_vary=True)
    except InferenceError:  # what the evaluator says of it is clearer
        return
    for value in node.outputs:
        if value.dtype not in UNSIZED and value.shape is not None and value.shape.is_static():
            assert value.dtype is not None
            n_bytes = math.ceil(math.prod(dims(value)) * value.dtype.itemsize)
            if n_bytes > MOST_BYTES:
                raise InferenceError(f"it takes {n_bytes:,} bytes, expected at most {MOST_BYTES:,}")
