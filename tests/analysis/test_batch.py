"""How shapes grow with the batch."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from bnnopt.analysis.batch import scaled


def value(*shape: int) -> ir.Value:
    return ir.Value(name="x", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


@pytest.mark.parametrize(
    ("at_4", "at_5", "expected"),
    [
        ((4, 3), (5, 3), (-1, 3)),
        ((8, 3), (10, 3), (-2, 3)),
        ((4, 3), (4, 3), (4, 3)),
        ((4, 3), (5, 2), None),
        ((4, 3), (4, 3, 1), None),  # a Squeeze, or a Reshape, of the batch
    ],
)
def test_axes_that_grow(
    at_4: tuple[int, ...], at_5: tuple[int, ...], expected: tuple[int, ...] | None
) -> None:
    assert scaled(value(*at_4), value(*at_5), 4) == expected
