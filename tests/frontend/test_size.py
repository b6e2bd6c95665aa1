"""Functions that call one another are counted before anything inlines them."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import onnx
import pytest
from onnx import helper, parser

from bnnopt.errors import ModelError
from bnnopt.frontend.size import MOST_NODES, check_size

MODEL = '<ir_version: 8, opset_import: ["" : 17, "local" : 1]>\n' + (
    "g (float[batch,6] x) => (float[batch,6] y) { y = local.Level%d (x) }"
)
IMPORTS = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]


def nested(depth: int, times: int) -> onnx.ModelProto:
    """Functions each of which calls the one below it so many times."""
    model = parser.parse_model(MODEL % depth)
    for level in range(depth + 1):
        called, domain = (f"Level{level - 1}", "local") if level else ("Relu", "")
        names = ["a0", *(f"a{i + 1}" for i in range(times))]
        nodes = [
            helper.make_node(called, [a], [b], domain=domain) for a, b in itertools.pairwise(names)
        ]
        made = helper.make_function("local", f"Level{level}", ["a0"], names[-1:], nodes, IMPORTS)
        model.functions.append(made)
    return model


def test_doubling_functions_are_refused_at_once() -> None:
    begin = time.process_time()
    with pytest.raises(ModelError, match=r"^m.onnx: comes to 2,199,023,255,552 nodes"):
        check_size(nested(40, 2), Path("m.onnx"))
    assert time.process_time() - begin < 1


def test_what_is_called_often_is_fine() -> None:
    check_size(nested(3, 10), Path("m.onnx"))
    with pytest.raises(ModelError, match=f"at most {MOST_NODES:,}"):
        check_size(nested(4, 11), Path("m.onnx"))


def test_calls_that_go_too_deep_are_refused() -> None:
    with pytest.raises(ModelError, match="too deep"):
        check_size(nested(3000, 1), Path("m.onnx"))


def test_one_that_calls_itself_is_left_to_the_checker() -> None:
    model = nested(1, 2)
    model.functions[0].node[0].op_type = "Level1"
    model.functions[0].node[0].domain = "local"
    check_size(model, Path("m.onnx"))
