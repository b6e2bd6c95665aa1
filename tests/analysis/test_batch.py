"""How shapes grow with the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from bnnopt.analysis.batch import Known, scaled, with_one_more
from bnnopt.frontend import load_forward
from bnnopt.ops import InferenceError, infer_types
from tests.frontend.models import parse, save

OPSET, BATCH = 18, 4


def graph(body: str, path: Path) -> ir.Graph:
    text = f"g (float[batch,3] x) => (float[n,m] y) {{ {body} }}"
    weights = {"w": np.ones((3, 2), np.float32)}
    return load_forward(save(parse(text, weights, opset=OPSET), path), BATCH).graph


def states(found: ir.Graph) -> dict[str | None, tuple[object, object]]:
    values = [*found.inputs, *(value for node in found for value in node.outputs)]
    return {value.name: (value.shape, value.const_value) for value in values}


def test_what_follows_from_the_batch_is_another_and_all_stays_as_it_is(tmp_path: Path) -> None:
    found = graph("v = Mul (w, w) z = MatMul (x, v) y = Relu (z)", tmp_path)
    before = states(found)
    larger = with_one_more(found, lambda node: infer_types(node, OPSET))
    sizes = {str(value.name): known.dims for value, known in larger.items()}
    assert sizes == {"x": (5, 3), "z": (5, 2), "y": (5, 2)}
    assert states(found) == before


def test_a_graph_that_is_tied_stays_as_it_is(tmp_path: Path) -> None:
    found = graph("s = Constant <value = int64[2] {2, 6}> () y = Reshape (x, s)", tmp_path)
    before = states(found)
    with pytest.raises(InferenceError):
        with_one_more(found, lambda node: infer_types(node, OPSET))
    assert states(found) == before


def test_elements_that_are_too_many_with_one_more_are_not_those_of_before(tmp_path: Path) -> None:
    found = graph("z = MatMul (x, w) y = Relu (z)", tmp_path)
    first = ir.Tensor(np.zeros((BATCH, 2), np.float32))
    (y,) = found.outputs
    y.const_value = first
    larger = with_one_more(found, lambda node: infer_types(node, OPSET))
    assert larger[y] == Known(ir.Shape((5, 2)), None)
    assert y.const_value is first


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
    assert scaled(at_4, at_5, 4) == expected
