"""Shapes that do not fit: refused when the file is read, in one line, as onnxruntime refuses them.

To add a rule: put an operator's right form and its wrong ones into `FORMS`. The right one must pass
here and run on stock onnxruntime; each wrong one must be refused here and fail there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from bnnopt.errors import ModelError
from bnnopt.frontend import load_forward
from bnnopt.ops.shapes import OUTPUT_RULES, RULES


class Form(NamedTuple):
    """A node that reads `x`, its weights, and its integer constants."""

    node: str
    x: Sequence[int]
    weights: Mapping[str, Sequence[int]] = {}
    integers: Mapping[str, Any] = {}
    stock: bool = True  # whether onnxruntime refuses it too


MAP = (2, 4, 6, 6)
CONV = {"w": (8, 4, 3, 3), "b": (8,)}
SCALES = {"s": (4,), "b": (4,), "m": (4,), "v": (4,)}
NORM = "y = BatchNormalization (x, s, b, m, v)"

FORMS: dict[str, tuple[Form, list[Form]]] = {
    "Conv": (
        Form("y = Conv <pads = [1,1,1,1]> (x, w, b)", MAP, CONV),
        [
            Form("y = Conv (x, w, b)", MAP, {**CONV, "w": (8, 3, 3, 3)}),
            Form("y = Conv (x, w, b)", MAP, {**CONV, "w": (8, 8, 3, 3)}),
            Form("y = Conv (x, w, b)", MAP, {**CONV, "b": (1,)}),
            Form("y = Conv (x, w, b)", MAP, {**CONV, "b": (9,)}),
            Form("y = Conv <group = 2> (x, w, b)", MAP, CONV),
            Form("y = Conv <group = 0> (x, w, b)", MAP, CONV, stock=False),  # it is killed
            Form("y = Conv <group = 4> (x, w)", MAP, {"w": (6, 1, 3, 3)}),
            Form("y = Conv <kernel_shape = [5, 5]> (x, w, b)", MAP, CONV),
            Form("y = Conv <strides = [0, 1]> (x, w, b)", MAP, CONV, stock=False),
            Form("y = Conv <strides = [-1, 1]> (x, w, b)", MAP, CONV, stock=False),
            Form("y = Conv <dilations = [0, 1]> (x, w, b)", MAP, CONV, stock=False),
            Form("y = Conv <pads = [-1, 0, 0, 0]> (x, w, b)", MAP, CONV, stock=False),
            Form("y = Conv <pads = [1, 1]> (x, w, b)", MAP, CONV),
            Form("y = Conv (x, w)", MAP, {"w": (8, 4, 7, 7)}),
            Form("y = Conv (x, w)", MAP, {"w": (8, 4, 3)}),
        ],
    ),
    "MaxPool": (
        Form("y = MaxPool <kernel_shape = [2, 2], storage_order = 1> (x)", MAP),
        [
            Form("y = MaxPool <kernel_shape = [2]> (x)", MAP),
            Form("y = MaxPool <kernel_shape = [0, 2]> (x)", MAP),
            Form("y = MaxPool <kernel_shape = [2, 2], pads = [2, 0, 0, 0]> (x)", MAP),
            Form("y = MaxPool <kernel_shape = [9, 9]> (x)", MAP),
            Form("y = MaxPool <kernel_shape = [2, 2], strides = [0, 1]> (x)", MAP, stock=False),
        ],
    ),
    "AveragePool": (
        Form("y = AveragePool <kernel_shape = [2, 2]> (x)", MAP),
        [Form("y = AveragePool <kernel_shape = [2, 2], pads = [2, 0, 0, 0]> (x)", MAP)],
    ),
    "Gemm": (
        Form("y = Gemm <transB = 1> (x, w, b)", (2, 4), {"w": (3, 4), "b": (3,)}),
        [
            Form("y = Gemm (x, w, b)", (2, 4), {"w": (3, 4), "b": (4,)}),
            Form("y = Gemm <transB = 1> (x, w, b)", (2, 4), {"w": (3, 4), "b": (4,)}),
            Form("y = Gemm <transB = 1> (x, w, b)", (2, 4), {"w": (3, 4), "b": (5, 3)}),
            Form("y = Gemm <transB = 1> (x, w, b)", (2, 4), {"w": (3, 4), "b": (1, 2, 3)}),
            Form("y = Gemm <transB = 2> (x, w, b)", (2, 4), {"w": (3, 4), "b": (3,)}, stock=False),
        ],
    ),
    "MatMul": (
        Form("y = MatMul (x, w)", (2, 5, 4), {"w": (4, 3)}),
        [Form("y = MatMul (x, w)", (2, 5, 4), {"w": (3, 4)})],
    ),
    "BatchNormalization": (
        Form(NORM, MAP, SCALES),
        [Form(NORM, MAP, {**SCALES, name: (n,)}) for name in SCALES for n in (1, 3, 5)],
    ),
    "PRelu": (
        Form("y = PRelu (x, a)", MAP, {"a": (4, 1, 1)}),
        [
            Form("y = PRelu (x, a)", MAP, {"a": (4,)}),
            Form("y = PRelu (x, a)", MAP, {"a": (1, 1, 4, 1, 1)}, stock=False),
        ],
    ),
    "Add": (Form("y = Add (x, b)", MAP, {"b": (6,)}), [Form("y = Add (x, b)", MAP, {"b": (4,)})]),
    "Transpose": (
        Form("y = Transpose <perm = [0, 2, 1]> (x)", (2, 3, 4)),
        [
            Form("y = Transpose <perm = [0, 2, 2]> (x)", (2, 3, 4)),
            Form("y = Transpose <perm = [0, 1]> (x)", (2, 3, 4)),
            Form("y = Transpose <perm = [0, 1, 3]> (x)", (2, 3, 4)),
        ],
    ),
    "Split": (
        Form("y, z = Split <axis = 1> (x, n)", (2, 6), integers={"n": (2, 4)}),
        [
            Form("y, z = Split <axis = 1> (x, n)", (2, 6), integers={"n": (-2, 8)}),
            Form("y, z = Split <axis = 1> (x, n)", (2, 6), integers={"n": (2, 5)}),
            Form("y, z = Split <axis = 3> (x, n)", (2, 6), integers={"n": (2, 4)}),
        ],
    ),
    "Gather": (
        Form("y = Gather <axis = 1> (x, i)", (2, 6), integers={"i": (0, -6, 5)}),
        [
            Form("y = Gather <axis = 1> (x, i)", (2, 6), integers={"i": (0, 6)}),
            Form("y = Gather <axis = 1> (x, i)", (2, 6), integers={"i": (-7,)}),
            Form("y = Gather <axis = 2> (x, i)", (2, 6), integers={"i": (0,)}),
        ],
    ),
    "ConvTranspose": (
        Form("y = ConvTranspose <strides = [2,2]> (x, w, b)", MAP, {"w": (4, 3, 2, 2), "b": (3,)}),
        [
            Form("y = ConvTranspose (x, w)", MAP, {"w": (3, 4, 2, 2)}),
            Form("y = ConvTranspose (x, w, b)", MAP, {"w": (4, 3, 2, 2), "b": (4,)}),
            Form("y = ConvTranspose <group = 3> (x, w)", MAP, {"w": (4, 3, 2, 2)}),
            Form("y = ConvTranspose <kernel_shape = [3, 3]> (x, w)", MAP, {"w": (4, 3, 2, 2)}),
            Form("y = ConvTranspose <strides = [2]> (x, w)", MAP, {"w": (4, 3, 2, 2)}),
            Form("y = ConvTranspose (x, w)", MAP, {"w": (4, 3, 2)}),
        ],
    ),
    "GatherElements": (
        Form("y = GatherElements <axis = 1> (x, i)", (2, 6), integers={"i": ((0, 5, -6),)}),
        [
            Form("y = GatherElements <axis = 1> (x, i)", (2, 6), integers={"i": ((0, 6),) * 2}),
            Form("y = GatherElements <axis = 1> (x, i)", (2, 6), integers={"i": ((0, 1),) * 3}),
            Form("y = GatherElements <axis = 1> (x, i)", (2, 6), integers={"i": (0, 1)}),
        ],
    ),
    "GatherND": (
        Form("y = GatherND (x, i)", (2, 6), integers={"i": ((1, 5), (-2, -6))}),
        [
            Form("y = GatherND (x, i)", (2, 6), integers={"i": ((2, 0),)}),
            Form("y = GatherND (x, i)", (2, 6), integers={"i": ((0, -7),)}),
            Form("y = GatherND (x, i)", (2, 6), integers={"i": ((0, 0, 0),)}),
        ],
    ),
    "ScatterElements": (
        Form("y = ScatterElements <axis = 1> (x, i, u)", (2, 6), {"u": (1, 2)},
             {"i": ((5, -6),)}),
        [
            Form("y = ScatterElements <axis = 1> (x, i, u)", (2, 6), {"u": (1, 2)},
                 {"i": ((6, 0),)}),
            Form("y = ScatterElements <axis = 1> (x, i, u)", (2, 6), {"u": (1, 3)},
                 {"i": ((1, 0),)}),
        ],
    ),
    "ScatterND": (
        Form("y = ScatterND (x, i, u)", (2, 6), {"u": (2, 6)}, {"i": ((1,), (-2,))}),
        [
            Form("y = ScatterND (x, i, u)", (2, 6), {"u": (1, 6)}, {"i": ((2,),)}),
            Form("y = ScatterND (x, i, u)", (2, 6), {"u": (1, 5)}, {"i": ((1,),)}),
        ],
    ),
    "CumSum": (
        Form("y = CumSum (x, a)", (2, 6), integers={"a": -2}),
        [Form("y = CumSum (x, a)", (2, 6), integers={"a": 2})],
    ),
    "Reshape": (
        Form("y = Reshape (x, n)", (2, 6), integers={"n": (0, 3, 2)}),
        [
            Form("y = Reshape (x, n)", (2, 6), integers={"n": (0, 4)}),
            Form("y = Reshape (x, n)", (2, 6), integers={"n": (0, -1, -1)}),
            Form("y = Reshape (x, n)", (2, 6), integers={"n": (0, 5, -1)}),
            Form("y = Reshape (x, n)", (2, 6), integers={"n": (-2, 6)}),
        ],
    ),
    "Concat": (
        Form("y = Concat <axis = 1> (x, w)", (2, 6), {"w": (2, 3)}),
        [
            Form("y = Concat <axis = 1> (x, w)", (2, 6), {"w": (3, 6)}),
            Form("y = Concat <axis = 2> (x, w)", (2, 6), {"w": (2, 3)}),
        ],
    ),
    "Pad": (
        Form("y = Pad (x, n)", (2, 6), integers={"n": (0, 1, 0, 1)}),
        [Form("y = Pad (x, n)", (2, 6), integers={"n": (0, 1, 1)})],
    ),
    "Slice": (
        Form("y = Slice (x, a, b, c)", (2, 6), integers={"a": (1,), "b": (4,), "c": (1,)}),
        [
            Form("y = Slice (x, a, b, c)", (2, 6), integers={"a": (1,), "b": (4,), "c": (2,)}),
            Form("y = Slice (x, a, b, c)", (2, 6), integers={"a": (1, 1), "b": (4,), "c": (1,)}),
            Form("y = Slice (x, a, b, c, c)", (2, 6), integers={"a": (9,), "b": (9,), "c": (1,)},
                 stock=False),
        ],
    ),
    "Flatten": (Form("y = Flatten (x)", MAP), [Form("y = Flatten <axis = 5> (x)", MAP)]),
    "Softmax": (Form("y = Softmax (x)", MAP), [Form("y = Softmax <axis = 4> (x)", MAP)]),
    "ReduceSum": (
        Form("y = ReduceSum (x, a)", MAP, integers={"a": (-1,)}),
        [
            Form("y = ReduceSum (x, a)", MAP, integers={"a": (4,)}),
            Form("y = ReduceSum (x, a)", MAP, integers={"a": (1, 1)}, stock=False),
        ],
    ),
    "Squeeze": (
        Form("y = Squeeze (x, a)", (2, 1, 3), integers={"a": (1,)}),
        [Form("y = Squeeze (x, a)", (2, 1, 3), integers={"a": (2,)})],
    ),
    "Unsqueeze": (
        Form("y = Unsqueeze (x, a)", (2, 3), integers={"a": (1,)}),
        [Form("y = Unsqueeze (x, a)", (2, 3), integers={"a": (4,)})],
    ),
    "Expand": (
        Form("y = Expand (x, n)", (2, 1), integers={"n": (2, 3)}),
        [Form("y = Expand (x, n)", (2, 3), integers={"n": (2, 4)})],
    ),
}  # fmt: skip


def written(form: Form, folder: Path) -> Path:
    sizes = ",".join(map(str, form.x))
    text = f'<ir_version: 8, opset_import: ["" : 18]> g (float[{sizes}] x) => (float[a,b] out)'
    model = onnx.parser.parse_model(f"{text} {{ {form.node}\n out = Flatten <axis = 0> (y) }}")
    arrays = {name: np.ones(shape, np.float32) for name, shape in form.weights.items()}
    arrays |= {name: np.array(values, np.int64) for name, values in form.integers.items()}
    for name, array in arrays.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    path = folder / "net.onnx"
    onnx.save(model, path)
    return path


def run_stock(path: Path, x: Sequence[int]) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    session.run(None, {"x": np.ones(x, np.float32)})


@pytest.mark.parametrize("operator", FORMS)
def test_the_right_form_is_accepted(operator: str, tmp_path: Path) -> None:
    right, _ = FORMS[operator]
    path = written(right, tmp_path)
    run_stock(path, right.x)
    load_forward(path, right.x[0])


@pytest.mark.parametrize("operator", FORMS)
def test_wrong_forms_are_refused_in_one_line(operator: str, tmp_path: Path) -> None:
    _, wrong = FORMS[operator]
    for form in wrong:
        path = written(form, tmp_path)
        with pytest.raises(ModelError, match=operator) as caught:
            load_forward(path, form.x[0])
        assert "\n" not in str(caught.value)
        if form.stock:
            with pytest.raises(Exception, match=r"\w"):  # onnxruntime's share no other base
                run_stock(path, form.x)


def test_a_message_names_node_found_and_expected(tmp_path: Path) -> None:
    form = Form("y = Conv (x, w, b)", MAP, {**CONV, "w": (8, 3, 3, 3)})
    with pytest.raises(ModelError) as caught:
        load_forward(written(form, tmp_path), 2)
    assert str(caught.value).endswith(
        "node 'y' (Conv): the shape of 'w' is [8, 3, 3, 3], expected [M, 4 channels of 'x' / "
        "group 1, ..]; correct the model"
    )


def test_every_form_is_of_a_rule() -> None:
    assert FORMS.keys() <= RULES.keys() | OUTPUT_RULES.keys()


def test_nodes_of_our_own_domain_are_refused(tmp_path: Path) -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 18, "bnnopt" : 1]> g (float[2,3] x) => (float[2,3] y)'
    )
    model = onnx.parser.parse_model(f"{text} {{ y = bnnopt.Ternarize (x) }}")
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(ModelError, match=r"'y' \(bnnopt\.Ternarize\).* own domain"):
        load_forward(tmp_path / "net.onnx", 2)
