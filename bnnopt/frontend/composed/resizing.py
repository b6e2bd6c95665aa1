"""Resize, written out.

Along each axis the output is linear in the input, so it is a product with a matrix: what the
operator gives for the unit vectors.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from bnnopt.frontend.composed.body import Body, Writer, ints
from bnnopt.ops.operands import Operands
from bnnopt.ops.operator import InferenceError

Matrix = NDArray[np.float32]
_SETTINGS = {"mode": "nearest", "nearest_mode": "round_prefer_floor"} | {
    "coordinate_transformation_mode": "half_pixel"
}


def _resize(o: Operands) -> Body:
    scales, sizes = o.reals(2), o.constant(3)
    rank = len(o.shape(0))
    if not scales and sizes is None:
        raise InferenceError("its scales or sizes must be constants")
    _require_plain(o)
    axes = [axis % rank for axis in o.ints("axes", range(rank))]
    value, steps, matrices = "x", "", {}
    for axis, i in sorted(((axis, i) for i, axis in enumerate(axes)), reverse=True):
        scale = scales[i] if scales else None
        matrix = _matrix(o, axis, scale)
        if np.array_equal(matrix, np.eye(len(matrix))):
            continue
        statements = _repeated(o, axis, matrix) or _multiplied(axis, rank)
        matrices[f"m{axis}"] = matrix if axis != rank - 2 else np.ascontiguousarray(matrix.T)
        steps += statements.replace("IN", value).replace("OUT", f"v{axis}")
        value = f"v{axis}"
    used = {
        name: matrix
        for name, matrix in matrices.items()
        if f"{name}," in steps or f"{name})" in steps
    }
    return Body(f"(x, roi, scales, sizes) => (y) {{ {steps} y = Identity ({value}) }}", used)


def _require_plain(o: Operands) -> None:
    mode = o.text("coordinate_transformation_mode", "half_pixel")
    o.require(mode != "tf_crop_and_resize", "coordinate_transformation_mode", mode, "another one")
    policy = o.text("keep_aspect_ratio_policy", "stretch")
    o.require(policy == "stretch", "keep_aspect_ratio_policy", policy, "stretch")


def _matrix(o: Operands, axis: int, scale: float | None) -> Matrix:
    """(input, output) float32: row i is what becomes of the i-th unit vector."""
    size, target = o.shape(0)[axis], o.output()[axis]
    if size == target and scale in (None, 1.0):
        return np.eye(size, dtype=np.float32)
    options = {name: o.text(name, default) for name, default in _SETTINGS.items()}
    inputs = ["x", "", "s"] if scale is not None else ["x", "", "", "s"]
    node = onnx.helper.make_node(
        "Resize",
        inputs,
        ["y"],
        antialias=o.number("antialias", 0),
        cubic_coeff_a=o.real("cubic_coeff_a", -0.75),
        exclude_outside=o.number("exclude_outside", 0),
        extrapolation_value=o.real("extrapolation_value", 0.0),
        **options,
    )
    along = np.array([1, scale], np.float32) if scale is not None else np.array([size, target])
    unit = np.eye(size, dtype=np.float32)
    (rows,) = ReferenceEvaluator(node).run(None, {"x": unit, "s": along})
    return np.asarray(rows, np.float32)


def _repeated(o: Operands, axis: int, matrix: Matrix) -> str:
    """Statements where each element is repeated, else none."""
    size, target = matrix.shape
    n = target // size
    if target % size or not np.array_equal(matrix, np.repeat(np.eye(size), n, axis=1)):
        return ""
    before, behind = o.shape(0)[:axis], o.output()[axis + 1 :]
    joined = [0] * len(before) + [target if axis else -1, *behind]
    long = [1] * (axis + 1) + [n] + [1] * len(behind)
    return f"""{ints(f"a{axis}", [axis + 1])} u{axis} = Unsqueeze (IN, a{axis})
        {ints(f"l{axis}", long)} e{axis} = Expand (u{axis}, l{axis})
        {ints(f"j{axis}", joined)} OUT = Reshape (e{axis}, j{axis})
        """


def _multiplied(axis: int, rank: int) -> str:
    if axis == rank - 1:
        return f"OUT = MatMul (IN, m{axis})\n"
    if axis == rank - 2:
        return f"OUT = MatMul (m{axis}, IN)\n"
    perm = list(range(rank))
    perm[axis], perm[-1] = perm[-1], perm[axis]
    return f"""s{axis} = Transpose <perm = {perm}> (IN) p{axis} = MatMul (s{axis}, m{axis})
        OUT = Transpose <perm = {perm}> (p{axis})
        """


BODIES: dict[str, Writer] = {"Resize": _resize}
