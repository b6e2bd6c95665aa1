"""Every gradient rule against central differences in float64, and against stock onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from bnnopt.autodiff import GRADIENTS, TrainingOptions, build_training_step, make_optimizer
from bnnopt.frontend import ForwardGraph, load_forward
from bnnopt.ops import dims
from bnnopt.training_step import Role, TrainingStep
from tests.autodiff.cases import BATCH, CASES, Case, near
from tests.autodiff.interpreter import Kernel, central_difference, run, session, stock

Array = NDArray[Any]

RATE = np.float32(0.1)
BOUND = 1e-6  # of a central difference with step 1e-5, relative to the largest element
STOCK_BOUND = 1e-4  # of float32 arithmetic

ELSEWHERE = {"Binarize", "Dropout", "SoftmaxCrossEntropy"}  # tests of their own below


def load(model: onnx.ModelProto, folder: Path, ste: tuple[str, ...] = ()) -> ForwardGraph:
    path = folder / "case.onnx"
    onnx.save(model, path)
    fixed = model.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value")
    return load_forward(path, None if fixed else BATCH, ste)


def differentiated(forward: ForwardGraph, loss: str = "none") -> TrainingStep:
    options = TrainingOptions(loss, make_optimizer("sgd", momentum=0))
    return build_training_step(forward, options, Path("case.onnx"))


def gradients(
    step: TrainingStep, feeds: Mapping[str, Array], **options: Any
) -> dict[str, Array]:
    values = run(step.graph, feeds, **options)
    return {name: values[str(value.name)] for name, value in step.gradients().items()}


def expected(
    graph: ir.Graph,
    feeds: Mapping[str, Array],
    weights: Mapping[str, Array],
    loss: Callable[[Mapping[str, Array]], Array] = lambda values: values["loss"],
    replaced: Mapping[str, Kernel] | None = None,
) -> dict[str, Array]:
    """Gradients of the weights by central differences of a graph's loss in float64."""

    def at(name: str, array: Array) -> float:
        values = run(graph, {**feeds, **weights, name: array}, replaced=replaced)
        return float(np.asarray(loss(values)).item())

    wide = {name: array.astype(np.float64) for name, array in weights.items()}
    return {
        name: central_difference(lambda array, name=name: at(name, array), value)
        for name, value in wide.items()
    }


def assert_close(got: Mapping[str, Array], want: Mapping[str, Array], bound: float) -> None:
    assert got.keys() == want.keys()
    for name, array in got.items():
        assert array.shape == want[name].shape, name
        scale = max(1.0, float(np.abs(want[name]).max(initial=0)))
        np.testing.assert_allclose(array, want[name], rtol=0, atol=bound * scale, err_msg=name)


def check_case(case: Case, folder: Path) -> None:
    model = case.model()
    forward = load(model, folder)
    step = differentiated(forward)
    assert any(node.op_type == case.operator for node in step.graph), "the case lacks its operator"
    names = [str(step.loss.name), *(str(value.name) for value in step.gradients().values())]
    on_stock = stock(step.model, names)
    for batch in (BATCH, BATCH - 1):
        drawn = case.feeds(forward.graph, forward.weights, batch)
        feeds = {**drawn, **forward.weights, "learning_rate": RATE}
        got = gradients(step, feeds)
        want = expected(forward.graph, feeds, forward.weights)
        assert_close(got, {name: want[name] for name in got}, BOUND)
        assert not any(want[name].any() for name in want.keys() - got.keys())
        single = run(step.graph, feeds, np.float32)
        theirs = dict(zip(names, on_stock(feeds), strict=True))
        assert_close({name: single[name] for name in names}, theirs, STOCK_BOUND)
        if batch == BATCH:
            (loss,) = session(model.SerializeToString()).run(["loss"], sampled(feeds, model))
            assert_close({"loss": single["loss"]}, {"loss": loss}, STOCK_BOUND)


def sampled(feeds: Mapping[str, Array], model: onnx.ModelProto) -> dict[str, Array]:
    return {v.name: feeds[v.name] for v in model.graph.input[:2]}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradient(case: Case, tmp_path: Path) -> None:
    check_case(case, tmp_path)


def test_every_rule_has_a_case() -> None:
    assert {case.operator for case in CASES} | ELSEWHERE == set(GRADIENTS)


def test_cases_have_names_of_their_own() -> None:
    assert len({str(case) for case in CASES}) == len(CASES)
