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
from bnnopt.autodiff.context import Context
from bnnopt.autodiff.gradients import Rule
from bnnopt.errors import ModelError
from bnnopt.frontend import ForwardGraph, load_forward
from bnnopt.ops import dims
from bnnopt.training_step import TrainingStep
from tests.autodiff.cases import BATCH, CASES, Case, near, tiny
from tests.autodiff.interpreter import Kernel, central_difference, run, session, stock

Array = NDArray[Any]

RATE = np.float32(0.1)
BOUND = 1e-6  # of a central difference with step 1e-5, relative to the largest element
STOCK_BOUND = 1e-4  # of float32 arithmetic

# Tests of their own: below, in test_chance.py, of a frozen batch norm in test_selection.py, of what
# has a straight-through estimator in tests/frontend.
ELSEWHERE = {"BatchNormalization", "Binarize", "Ternarize", "Dropout", "SoftmaxCrossEntropy"} | {
    *("Ceil", "DrawUniform", "Floor", "Round", "StraightThrough"),
}


def load(
    model: onnx.ModelProto, folder: Path, ste: tuple[str, ...] = (), keep_zero: bool = False
) -> ForwardGraph:
    path = folder / "case.onnx"
    onnx.save(model, path)
    fixed = model.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value")
    return load_forward(path, None if fixed else BATCH, ste, keep_zero)


def differentiated(forward: ForwardGraph, loss: str = "none") -> TrainingStep:
    options = TrainingOptions(loss, make_optimizer("sgd", momentum=0))
    return build_training_step(forward, options, Path("case.onnx"))


def gradients(step: TrainingStep, feeds: Mapping[str, Array], **options: Any) -> dict[str, Array]:
    values = run(step.graph, {"learning_rate": RATE, **feeds}, **options)
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
    found = any(node.op_type == case.operator for node in step.graph)
    assert found or case.written_out, "the case lacks its operator"
    names = [str(step.loss.name), *(str(value.name) for value in step.gradients().values())]
    on_stock = stock(step.model, names) if case.stock else None
    for batch in (BATCH, BATCH - 1)[: 1 + case.any_batch]:
        drawn = case.feeds(forward.graph, forward.weights, batch)
        feeds = {**drawn, **forward.weights, "learning_rate": RATE}
        got = gradients(step, feeds)
        want = expected(forward.graph, feeds, forward.weights)
        assert_close(got, {name: want[name] for name in got}, BOUND)
        assert not any(want[name].any() for name in want.keys() - got.keys())
        if on_stock is None:
            continue
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


def network(body: str, values: Mapping[str, Array], x: str = "float[N,5] x") -> onnx.ModelProto:
    text = f"""<ir_version: 8, opset_import: ["": 18]> g ({x}, float[4,5] c) => (float loss) {{
        {body} weighted = Mul (y, c) loss = ReduceSum <keepdims = 0> (weighted) }}"""
    model = onnx.parser.parse_model(text)
    tensors = [onnx.numpy_helper.from_array(a.astype(np.float32), n) for n, a in values.items()]
    model.graph.initializer.extend(tensors)
    return model


SLOPES: dict[str, Kernel] = {  # functions whose derivatives the estimators are said to be
    "clipped": lambda x, **_: np.clip(x, -1, 1),
    "identity": lambda x, **_: x,
    "approx-sign": lambda x, **_: np.where(np.abs(x) <= 1, 2 * x - x * np.abs(x), np.sign(x)),
    "swish-sign": lambda x, **_: (
        2 / (1 + np.exp(-5 * x)) * (1 + 5 * x * (1 - 1 / (1 + np.exp(-5 * x)))) - 1
    ),
}


@pytest.mark.parametrize("ste", SLOPES)
@pytest.mark.parametrize("operator", ["Binarize", "Ternarize"])
@pytest.mark.parametrize("operand", ["activation", "weight"])
def test_binarization_has_the_gradient_of_its_surrogate(
    ste: str, operator: str, operand: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    values = {"w": near(rng, (4, 5)) / 2} | ({"b": tiny(rng, (5,))} if operand != "weight" else {})
    body = {"weight": "s = Sign (w) y = Mul (s, x)", "activation": "h = Add (x, b) y = Sign (h)"}
    forward = load(network(body[operand], values), tmp_path, (ste,), operator == "Ternarize")
    assert operator in {node.op_type for node in forward.graph}
    feeds = {"x": near(rng, (4, 5)) / 2, "c": rng.standard_normal((4, 5))}
    want = expected(forward.graph, feeds, forward.weights, replaced={operator: SLOPES[ste]})
    assert_close(gradients(differentiated(forward), {**feeds, **forward.weights}), want, BOUND)
    assert any(array.any() for array in want.values())


@pytest.mark.parametrize("ste", ["clipped", "approx-sign"])
def test_binarize_beyond_its_range_has_no_gradient(ste: str, tmp_path: Path) -> None:
    values = {"w": np.full((4, 5), 1.5)}
    forward = load(network("s = Sign (w) y = Mul (s, x)", values), tmp_path, (ste,))
    ones = {"x": np.ones((4, 5)), "c": np.ones((4, 5))}
    assert not gradients(differentiated(forward), {**ones, **forward.weights})["w"].any()


@pytest.mark.parametrize("batch", [BATCH, BATCH - 1])
def test_dropout(batch: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    body = """r = Constant <value_float = 0.4> () t = Constant <value = bool {1}> ()
        h = Add (x, b) d, m = Dropout (h, r, t) y = Mul (d, h)"""
    forward = load(network(body, {"b": tiny(rng, (5,))}), tmp_path)
    step = differentiated(forward)
    feeds = {name: rng.standard_normal((batch, 5)) for name in ("x", "c")}
    feeds |= {"step": np.int64(3), "learning_rate": RATE}
    got = gradients(step, {**feeds, **forward.weights})
    want = expected(step.graph, feeds, forward.weights)
    assert_close(got, want, BOUND)


@pytest.mark.parametrize("batch", [BATCH, BATCH - 1])
@pytest.mark.parametrize("space", [(), (2,)])
def test_softmax_cross_entropy(batch: int, space: tuple[int, ...], tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    shape = (5, *space)
    text = f"""<ir_version: 8, opset_import: ["": 18]>
        g (float[N,{",".join(map(str, shape))}] x) => (float[N,{",".join(map(str, shape))}] y)
        {{ y = Add (x, b) }}"""
    model = onnx.parser.parse_model(text)
    bias = onnx.numpy_helper.from_array(tiny(rng, shape).astype(np.float32), "b")
    model.graph.initializer.append(bias)
    forward = load(model, tmp_path)
    labels = rng.integers(0, 5, (batch, *space))
    feeds = {"x": rng.standard_normal((batch, *shape)), "labels": labels}

    def loss(values: Mapping[str, Array]) -> Array:
        y = np.moveaxis(values["y"], 1, -1).reshape(-1, 5)
        log_prob = y - np.log(np.exp(y).sum(axis=1, keepdims=True))
        return -log_prob[np.arange(len(y)), labels.reshape(-1)].mean()

    got = gradients(differentiated(forward, "cross-entropy"), {**feeds, **forward.weights})
    assert_close(got, expected(forward.graph, feeds, forward.weights, loss), BOUND)


def test_slice_from_far_before_the_start_backwards(tmp_path: Path) -> None:
    """ONNX clamps the start into the axis; here the gradient is checked on onnxruntime alone."""
    body = """s = Constant <value_ints = [-99]> () e = Constant <value_ints = [-99]> ()
        a = Constant <value_ints = [1]> () t = Constant <value_ints = [-1]> ()
        h = Add (x, b) y = Slice (h, s, e, a, t)"""
    forward = load(network(body, {"b": np.zeros(5)}), tmp_path)
    step = differentiated(forward)
    name = str(step.gradients()["b"].name)
    feeds = {"x": np.ones((4, 5), np.float32), "c": np.ones((4, 5), np.float32)}
    (got,) = stock(step.model, [name])({**feeds, **forward.weights, "learning_rate": RATE})
    np.testing.assert_array_equal(got, [20, 0, 0, 0, 0])


def wrong_slope(g: Context) -> Mapping[int, ir.Value]:
    return {0: g.emit("Mul", g.dy, g.scalar(1.001))}


def nothing(g: Context) -> Mapping[int, ir.Value]:
    return {}


@pytest.mark.parametrize("rule", [wrong_slope, nothing])
@pytest.mark.parametrize("operator", ["Tanh", "Softplus", "Exp"])
def test_a_wrong_rule_is_caught(
    rule: Rule, operator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = next(case for case in CASES if case.operator == operator)
    check_case(case, tmp_path)
    monkeypatch.setitem(GRADIENTS, operator, rule)
    with pytest.raises((AssertionError, ModelError)):
        check_case(case, tmp_path)


def test_a_rule_that_knows_one_batch_size_only_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flatten(g: Context) -> Mapping[int, ir.Value]:
        return {0: g.emit("Reshape", g.dy, g.integers(dims(g.x())))}

    case = next(case for case in CASES if case.operator == "Flatten")
    monkeypatch.setitem(GRADIENTS, "Flatten", flatten)
    with pytest.raises(ValueError, match="reshape"):
        check_case(case, tmp_path)
