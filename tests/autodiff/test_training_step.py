"""The training and evaluation graphs: valid ONNX, phases, roles, updates, losses, optimisers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from bnnopt.autodiff import (
    GRADIENTS,
    OPTIMIZERS,
    Selection,
    TrainingOptions,
    build_evaluation,
    build_training_step,
    make_optimizer,
)
from bnnopt.errors import ModelError, UsageError
from bnnopt.frontend import ForwardGraph, load_forward
from bnnopt.ops import dims
from bnnopt.training_step import PERSISTENT, PHASES, Role, TrainingStep, phase, role
from tests.autodiff.interpreter import run, session, stock
from tests.zoo import FIRST, build_small

Array = NDArray[Any]
BATCH = 4
FILE = Path("net.onnx")


def load(text: str, values: Mapping[str, Array], folder: Path) -> ForwardGraph:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]> {text}')
    tensors = [onnx.numpy_helper.from_array(a.astype(np.float32), n) for n, a in values.items()]
    model.graph.initializer.extend(tensors)
    path = folder / FILE
    onnx.save(model, path)
    return load_forward(path, BATCH)


def training_step(
    forward: ForwardGraph,
    loss: str = "none",
    optimizer: str = "sgd",
    momentum: float = 0.0,
    freeze: tuple[str, ...] = (),
    seed: int = 0,
    train: tuple[str, ...] = (),
    last: int | None = None,
) -> TrainingStep:
    made = make_optimizer(optimizer, momentum=momentum)
    selection = Selection(freeze, train, last)
    return build_training_step(forward, TrainingOptions(loss, made, selection, seed), FILE)


@functools.cache
def zoo(name: str, tmp: str) -> ForwardGraph:
    path = Path(tmp) / f"{name}.onnx"
    ir.save(build_small(name), path)
    return load_forward(path, BATCH)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("zoo"))


def proto(step: TrainingStep) -> onnx.ModelProto:
    return ir.to_proto(step.model)


def random_feeds(step: TrainingStep, weights: Mapping[str, Array]) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    feeds: dict[str, Array] = {
        "learning_rate": np.float32(0.1),
        "step": np.int64(1),
        "labels": rng.integers(0, 10, BATCH),
        **weights,
    }
    for value in step.inputs(Role.DATA):
        feeds[str(value.name)] = rng.standard_normal(dims(value)).astype(np.float32)
    for value in step.inputs(Role.STATE):
        feeds[str(value.name)] = np.zeros(dims(value), np.float32)
    return {str(v.name): np.asarray(feeds[str(v.name)]) for v in step.graph.inputs}


# The zoo's graphs -------------------------------------------------------------------------------

each_model = pytest.mark.parametrize("name", FIRST)


@pytest.mark.slow
@each_model
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_graph_is_valid_and_loads(name: str, optimizer: str, folder: str) -> None:
    step = training_step(zoo(name, folder), "cross-entropy", optimizer, momentum=0.9)
    onnx.checker.check_model(proto(step), full_check=True)
    session(proto(step).SerializeToString())


@each_model
def test_evaluation_graph_is_valid_and_loads(name: str, folder: str) -> None:
    step = build_evaluation(zoo(name, folder))
    onnx.checker.check_model(proto(step), full_check=True)
    session(proto(step).SerializeToString())
    assert [v.name for v in step.graph.outputs] == ["logits"]
    assert {phase(node) for node in step.graph} == {"forward"}
    assert not list(step.updates())
    assert not {role(v) for v in step.graph.inputs} & {Role.STATE, Role.RATE, Role.LABELS}


@pytest.mark.parametrize("name", ["mlp", "resnet-e-mini", "relu-mini"])
def test_declared_types_are_what_runs(name: str, folder: str) -> None:
    forward = zoo(name, folder)
    step = training_step(forward, "cross-entropy", "adam")
    values = run(step.graph, random_feeds(step, forward.weights), np.float32)
    for node in step.graph:
        for output in node.outputs:
            array = np.asarray(values[str(output.name)])
            assert (ir.DataType.from_numpy(array.dtype), array.shape) == (
                output.dtype,
                dims(output),
            )


@each_model
@pytest.mark.parametrize(("optimizer", "momentum"), [("adam", 0), ("sgd", 0), ("sgd", 0.9)])
def test_phases_roles_and_updates(name: str, optimizer: str, momentum: float, folder: str) -> None:
    forward = zoo(name, folder)
    step = training_step(forward, "cross-entropy", optimizer, momentum)
    order = [PHASES.index(phase(node)) for node in step.graph]
    assert order == sorted(order)
    assert {phase(node) for node in step.graph} == {"forward", "backward", "update"}
    assert all(role(value) is not None for value in step.graph.inputs)
    persistent = {v.name for v in step.graph.inputs if role(v) in PERSISTENT - {Role.FROZEN}}
    assert {target.name for target, _ in step.updates()} == persistent
    assert len(step.graph.outputs) == 1 + len(persistent)
    assert not step.inputs(Role.FROZEN)
    trained = {v.name for v in step.inputs(Role.PARAMETER)}
    assert set(step.gradients()) == trained
    n_states = {"adam": 2, "sgd": 1 if momentum else 0}[optimizer]
    assert len(step.inputs(Role.STATE)) == n_states * len(trained)
    assert len(step.inputs(Role.STEP)) == (optimizer == "adam")
    statistics = {str(v.name) for v in step.inputs(Role.STATISTIC)}
    assert trained | statistics == set(forward.weights)
    assert all("running" in n for n in statistics)
    for target, output in step.updates():
        assert (target.dtype, dims(target)) == (output.dtype, dims(output))


def test_building_leaves_the_forward_graph_alone(folder: str) -> None:
    forward = zoo("relu-mini", folder)
    before = ir.to_proto(forward.model).SerializeToString()
    training_step(forward, "cross-entropy", "adam", freeze=("conv1.*",))
    build_evaluation(forward)
    assert ir.to_proto(forward.model).SerializeToString() == before


def test_building_twice_gives_the_same_bytes(folder: str) -> None:
    forward = zoo("resnet-e-mini", folder)
    first, again = (proto(training_step(forward, "cross-entropy", "adam")) for _ in range(2))
    assert first.SerializeToString(deterministic=True) == again.SerializeToString(
        deterministic=True
    )


# Batch norm -------------------------------------------------------------------------------------

STATISTICS = {"s": np.ones(3), "o": np.zeros(3), "m": np.full(3, 0.5), "v": np.full(3, 2.0)}
NORM = "BatchNormalization <training_mode = 1, momentum = 0.8, epsilon = 0.01>"
X = np.random.default_rng(5).standard_normal((BATCH, 3, 2))


def test_running_statistics_follow_onnx(tmp_path: Path) -> None:
    text = f"g (float[N,3,2] x) => (float loss) {{ y, a, b = {NORM} (x, s, o, m, v) {LOSS} }}"
    step = training_step(load(text, STATISTICS, tmp_path))
    values = run(step.graph, {"x": X, **STATISTICS, "learning_rate": np.float64(1)})
    new = {str(target.name): values[str(output.name)] for target, output in step.updates()}
    np.testing.assert_allclose(new["m"], 0.8 * 0.5 + 0.2 * X.mean(axis=(0, 2)), rtol=1e-6)
    np.testing.assert_allclose(new["v"], 0.8 * 2.0 + 0.2 * X.var(axis=(0, 2)), rtol=1e-6)
    assert {v.name for v in step.inputs(Role.STATISTIC)} == {"m", "v"}


LOSS = "z = Mul (y, y) u = Exp (z) loss = ReduceSum <keepdims = 0> (u)"


def test_a_shared_batch_norm_updates_its_statistics_twice(tmp_path: Path) -> None:
    text = f"""g (float[N,3,2] x) => (float loss) {{
        h, a, b = {NORM} (x, s, o, m, v)
        k = Tanh (h)
        y, c, d = {NORM} (k, s, o, m, v) {LOSS} }}"""
    step = training_step(load(text, STATISTICS, tmp_path))
    onnx.checker.check_model(proto(step), full_check=True)
    values = run(step.graph, {"x": X, **STATISTICS, "learning_rate": np.float64(1)})
    assert len(list(step.updates())) == 4
    new = {str(target.name): values[str(output.name)] for target, output in step.updates()}
    unit = (X - X.mean(axis=(0, 2), keepdims=True)) / np.sqrt(
        X.var(axis=(0, 2), keepdims=True) + np.float32(0.01)
    )
    second = np.tanh(unit)
    for name, first, later in (
        ("m", X.mean(axis=(0, 2)), second.mean(axis=(0, 2))),
        ("v", X.var(axis=(0, 2)), second.var(axis=(0, 2))),
    ):
        once = 0.8 * STATISTICS[name] + 0.2 * first
        np.testing.assert_allclose(new[name], 0.8 * once + 0.2 * later, rtol=1e-6)


def test_evaluation_uses_the_running_statistics(tmp_path: Path) -> None:
    text = f"g (float[N,3,2] x) => (float[N,3,2] y) {{ y, a, b = {NORM} (x, s, o, m, v) }}"
    evaluation = build_evaluation(load(text, STATISTICS, tmp_path))
    feeds = {n: a.astype(np.float32) for n, a in {"x": X, **STATISTICS}.items()}
    (y,) = stock(evaluation.model, ["y"])(feeds)
    np.testing.assert_allclose(y, (X - 0.5) / np.sqrt(2.01), rtol=1e-5, atol=1e-6)


def test_evaluation_where_the_file_lists_the_statistics_as_outputs(tmp_path: Path) -> None:
    text = f"""g (float[N,3,2] x) => (float[N,3,2] y, float[3] a) {{
        y, a, b = {NORM} (x, s, o, m, v) }}"""
    forward = load(text, STATISTICS, tmp_path)
    assert len(build_evaluation(forward).graph.outputs) == 2
    assert len(training_step(forward, "mse").graph.outputs) == 5


def test_constant_statistics_are_not_updated(tmp_path: Path) -> None:
    text = f"""g (float[N,3,2] x) => (float loss) {{
        m = Constant <value_floats = [0.0, 0.0, 0.0]> ()
        v = Constant <value_floats = [1.0, 1.0, 1.0]> ()
        y, a, b = {NORM} (x, s, o, m, v) {LOSS} }}"""
    learned = {name: STATISTICS[name] for name in ("s", "o")}
    step = training_step(load(text, learned, tmp_path))
    assert {target.name for target, _ in step.updates()} == {"s", "o"}


# Losses -----------------------------------------------------------------------------------------

CLASSIFIER = "g (float[N,3] x) => (float[N,5] y) { y = MatMul (x, w) }"
WEIGHT = {"w": np.random.default_rng(6).standard_normal((3, 5)).astype(np.float32)}
SAMPLES = np.random.default_rng(7).standard_normal((BATCH, 3)).astype(np.float32)
CLASSES = np.array([4, 0, 2, 2])
TARGETS = np.random.default_rng(8).standard_normal((BATCH, 5)).astype(np.float32)


def cross_entropy(y: Array, labels: Array) -> float:
    probability = np.exp(y) / np.exp(y).sum(axis=1, keepdims=True)
    return float(np.mean([-np.log(probability[i, label]) for i, label in enumerate(labels)]))


def mse(y: Array, targets: Array) -> float:
    return float(np.mean((y - targets) ** 2))


def squared_hinge(y: Array, labels: Array) -> float:
    signs = 2 * np.eye(5)[labels] - 1
    return float(np.mean(np.maximum(0, 1 - signs * y) ** 2))


@pytest.mark.parametrize("batch", [BATCH, BATCH - 1])
@pytest.mark.parametrize(
    ("name", "formula", "labels"),
    [
        ("cross-entropy", cross_entropy, CLASSES),
        ("mse", mse, TARGETS),
        ("squared-hinge", squared_hinge, CLASSES),
    ],
)
def test_loss(
    name: str, formula: Callable[[Array, Array], float], labels: Array, batch: int, tmp_path: Path
) -> None:
    forward = load(CLASSIFIER, WEIGHT, tmp_path)
    step = training_step(forward, name)
    (given,) = step.inputs(Role.LABELS)
    feeds = {"x": SAMPLES[:batch], str(given.name): labels[:batch], **WEIGHT}
    feeds["learning_rate"] = np.float32(0)
    want = formula(SAMPLES[:batch].astype(np.float64) @ WEIGHT["w"], labels[:batch])
    values = run(step.graph, feeds)
    assert float(values[str(step.loss.name)]) == pytest.approx(want, rel=1e-9)
    (got,) = stock(step.model, [str(step.loss.name)])(feeds)
    assert float(got) == pytest.approx(want, rel=1e-5)
    assert dims(step.loss) == ()


@pytest.mark.parametrize(("keepdims", "shape"), [(0, ()), (1, (1,))])
def test_loss_none_takes_the_graphs_own_scalar(
    keepdims: int, shape: tuple[int, ...], tmp_path: Path
) -> None:
    text = f"""g (float[N,3] x) => (float[{"1" if keepdims else ""}] loss) {{
        y = MatMul (x, w) s = Constant <value_ints = [-1]> () z = Reshape (y, s) q = Mul (z, z)
        loss = ReduceMean <keepdims = {keepdims}> (q) }}"""
    if not keepdims:
        text = text.replace("float[] loss", "float loss")
    step = training_step(load(text, WEIGHT, tmp_path))
    assert step.loss.name == "loss"
    assert dims(step.loss) == shape
    assert not step.inputs(Role.LABELS)
    feeds = {"x": SAMPLES, **WEIGHT, "learning_rate": np.float32(1)}
    values = run(step.graph, feeds)
    gradient = values[str(step.gradients()["w"].name)]
    wide = SAMPLES.astype(np.float64)
    np.testing.assert_allclose(gradient, wide.T @ (2 * wide @ WEIGHT["w"]) / 20, rtol=1e-9)


@pytest.mark.parametrize(
    ("loss", "text", "message"),
    [
        ("none", CLASSIFIER, "output 'y' has shape [4, 5], expected a scalar"),
        ("cross-entropy", "g (float[N,3] x) => (float[N] y) { i = Constant <value_ints = [1]> ()"
         " z = MatMul (x, w) y = ReduceSum <keepdims = 0> (z, i) }", "expected (batch, classes)"),
        ("mse", "g (float[N,3] x) => (bool[N,5] y) { z = MatMul (x, w)"
         " n = Constant <value_float = 0.0> () y = Greater (z, n) }", "is bool, expected float32"),
    ],
)  # fmt: skip
def test_an_output_that_does_not_fit_the_loss(
    loss: str, text: str, message: str, tmp_path: Path
) -> None:
    forward = load(text, WEIGHT, tmp_path)
    with pytest.raises(ModelError) as caught:
        training_step(forward, loss)
    assert_one_line(caught.value, "net.onnx: ", message)


def assert_one_line(error: Exception, *parts: str) -> None:
    assert "\n" not in str(error)
    for part in parts:
        assert part in str(error)


# Optimisers -------------------------------------------------------------------------------------


class Sgd:
    def __init__(self, momentum: float) -> None:
        self.momentum, self.m = momentum, np.zeros((3, 5))

    def __call__(self, w: Array, g: Array, lr: float, t: int) -> Array:
        self.m = self.momentum * self.m + g
        return w - lr * self.m


class Adam:
    """Kingma and Ba, arXiv:1412.6980, algorithm 1."""

    def __init__(self) -> None:
        self.m, self.v = np.zeros((3, 5)), np.zeros((3, 5))

    def __call__(self, w: Array, g: Array, lr: float, t: int) -> Array:
        b1, b2, epsilon = (float(np.float32(v)) for v in (0.9, 0.999, 1e-8))
        self.m = b1 * self.m + (1 - b1) * g
        self.v = b2 * self.v + (1 - b2) * g**2
        m_hat, v_hat = self.m / (1 - b1**t), self.v / (1 - b2**t)
        return w - lr * m_hat / (np.sqrt(v_hat) + epsilon)


@pytest.mark.parametrize(
    ("name", "momentum", "formula"),
    [("sgd", 0.0, Sgd(0)), ("sgd", 0.5, Sgd(0.5)), ("adam", 0.9, Adam())],
    ids=["sgd", "momentum", "adam"],
)
def test_three_steps(
    name: str, momentum: float, formula: Callable[..., Array], tmp_path: Path
) -> None:
    step = training_step(load(CLASSIFIER, WEIGHT, tmp_path), "mse", name, momentum)
    (target,) = (str(v.name) for v in step.inputs(Role.LABELS))
    kept: dict[str, Array] = {
        str(v.name): np.zeros(dims(v)) for v in step.inputs(Role.STATE)
    } | WEIGHT
    w = WEIGHT["w"].astype(np.float64)
    for t, rate in enumerate((0.1, 0.1, 0.02), start=1):
        feeds = {"x": SAMPLES, target: TARGETS, "step": np.int64(t), **kept}
        values = run(step.graph, {**feeds, "learning_rate": np.float64(rate)})
        kept = {str(v.name): values[str(output.name)] for v, output in step.updates()}
        wide = SAMPLES.astype(np.float64)
        gradient = wide.T @ (2 * (wide @ w - TARGETS)) / TARGETS.size
        w = formula(w, gradient, rate, t)
        np.testing.assert_allclose(kept["w"], w, rtol=1e-9)


def test_gradient_descent_lowers_the_loss_on_stock_onnxruntime(folder: str) -> None:
    forward = zoo("relu-mini", folder)
    step = training_step(forward, "cross-entropy", "adam")
    feeds = random_feeds(step, forward.weights)
    feeds["learning_rate"] = np.asarray(0.01, np.float32)
    updates = {str(output.name): str(target.name) for target, output in step.updates()}
    runs = stock(step.model, [str(step.loss.name), *updates])
    losses = []
    for t in range(1, 6):
        loss, *new = runs({**feeds, "step": np.asarray(t)})
        losses.append(float(loss))
        feeds |= dict(zip(updates.values(), new, strict=True))
    assert losses[-1] < 0.7 * losses[0]


# What is trained --------------------------------------------------------------------------------

TWO_LAYERS = """g (float[N,3] x) => (float[N,5] y) {
    h = MatMul (x, first) r = Tanh (h) y = MatMul (r, second) }"""
LAYERS = {"first": np.ones((3, 4)), "second": np.ones((4, 5))}


@pytest.mark.parametrize(
    ("freeze", "trained"),
    [(("first",), {"second"}), (("sec*",), {"first"}), (("f?rst",), {"second"}), ((), {*LAYERS})],
)
def test_freeze(freeze: tuple[str, ...], trained: set[str], tmp_path: Path) -> None:
    step = training_step(load(TWO_LAYERS, LAYERS, tmp_path), "mse", "adam", freeze=freeze)
    assert {v.name for v in step.inputs(Role.PARAMETER)} == trained
    assert {v.name for v in step.inputs(Role.FROZEN)} == {*LAYERS} - trained
    assert set(step.gradients()) == trained
    assert {v.name.split(".")[0] for v, _ in step.updates() if v.name} == trained
    produced = {str(v.name) for node in step.graph for v in node.outputs}
    assert not {f"{name}.grad" for name in {*LAYERS} - trained} & produced
    # Below the lowest trained layer nothing goes backward.
    assert ("h.grad" in produced) == ("first" in trained)


def test_freeze_keeps_batch_norm_statistics_going(folder: str) -> None:
    forward = zoo("relu-mini", folder)
    step = training_step(forward, "cross-entropy", freeze=("*conv*", "bn*", "*wise*", "residual*"))
    assert {v.name for v in step.inputs(Role.PARAMETER)} == {"fc.weight", "fc.bias"}
    n_backward = sum(phase(node) == "backward" for node in step.graph)
    assert n_backward <= 4
    assert {v.name for v, _ in step.updates()} == {
        *("fc.weight", "fc.bias"),
        *(v.name for v in step.inputs(Role.STATISTIC)),
    }


def test_freeze_that_matches_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        training_step(load(TWO_LAYERS, LAYERS, tmp_path), "mse", freeze=("conv*",))
    assert_one_line(caught.value, "--freeze conv*", "first, second")


def test_a_weight_that_the_loss_does_not_read_is_not_trained(tmp_path: Path) -> None:
    text = """g (float[N,3] x) => (float[N,5] y, float[N,5] z) {
        y = MatMul (x, w) z = MatMul (x, unread) }"""
    forward = load(text, {**WEIGHT, "unread": np.ones((3, 5))}, tmp_path)
    step = training_step(forward, "mse")
    assert set(step.gradients()) == {"w"}
    assert [v.name for v in step.graph.inputs if role(v) in PERSISTENT] == ["w"]
    assert forward.notes[0] == "2 outputs; the loss is taken of the first, 'y', alone"


def test_a_gradient_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    text = """g (float[N,3] x) => (float[N,5] y) { h = MatMul (x, first)
        ["pick"] k = ArgMax <axis = 1> (h) r = Cast <to = 1> (k)
        c = Concat <axis = 1> (r, r, r, r) y = MatMul (c, second) }"""
    with pytest.raises(ModelError) as caught:
        training_step(load(text, LAYERS, tmp_path), "mse")
    assert_one_line(caught.value, "parameter 'first': node 'pick' (ArgMax)", "--freeze first")
    step = training_step(load(text, LAYERS, tmp_path), "mse", freeze=("first",))
    assert set(step.gradients()) == {"second"}


def test_parameters_that_no_gradient_reaches_are_told(tmp_path: Path) -> None:
    """PyTorch gives none to what stands in a detached value alone."""
    text = """g (float[N,3] x) => (float[N,5] y) { b = MatMul (x, first) s = MatMul (x, third)
        d = Sub (b, s) h = Add (d, s) y = MatMul (h, second) }"""
    forward = load(text, {**LAYERS, "third": np.ones((3, 4))}, tmp_path)
    for _ in range(2):
        step = training_step(forward, "mse")
    assert {v.name for v in step.inputs(Role.FROZEN)} == {"first"}
    assert set(step.gradients()) == {"second", "third"}
    through, untrained = forward.notes
    assert through.startswith("'h': (b - s) + s")
    assert untrained == "no gradient reaches 1 parameters, which stay as they are: first"


@pytest.mark.parametrize("freeze", [("*",), ("first", "second")])
def test_nothing_to_train(freeze: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        training_step(load(TWO_LAYERS, LAYERS, tmp_path), "mse", freeze=freeze)
    assert_one_line(caught.value, "net.onnx: nothing to train", "freeze less")


def test_nothing_to_train_without_weights(tmp_path: Path) -> None:
    text = "g (float[N,3] x) => (float[N,3] y) { y = Tanh (x) }"
    with pytest.raises(ModelError, match="nothing to train"):
        training_step(load(text, {}, tmp_path), "mse")


def test_no_rule_names_node_operator_and_remedy(tmp_path: Path) -> None:
    text = 'g (float[N,3] x) => (float[N,5] y) { h = MatMul (x, w) ["odd one"] y = Hardmax (h) }'
    with pytest.raises(ModelError) as caught:
        training_step(load(text, WEIGHT, tmp_path), "mse")
    assert_one_line(caught.value, "net.onnx: node 'odd one' (Hardmax)", "gradient rule", "--freeze")
    assert "Hardmax" not in GRADIENTS


def test_no_rule_is_needed_where_nothing_is_trained(tmp_path: Path) -> None:
    text = "g (float[N,3] x) => (float[N,5] y) { c = Hardmax (x) y = MatMul (c, w) }"
    assert set(training_step(load(text, WEIGHT, tmp_path), "mse").gradients()) == {"w"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("i = Constant <value = int64[4,1] {0, 1, 2, 3}> () a = Constant <value_ints = [1]> () "
         "s = ReduceSum (h, a) y = ScatterElements <axis = 1, reduction = \"mul\"> (h, i, s)",
         "reduction 'mul'"),
    ],
)  # fmt: skip
def test_a_form_without_a_rule_is_one_line(body: str, message: str, tmp_path: Path) -> None:
    text = f"g (float[N,3] x) => (float loss) {{ h = MatMul (x, w) {body}"
    text += " loss = ReduceSum <keepdims = 0> (y) }"
    with pytest.raises(ModelError) as caught:
        training_step(load(text, WEIGHT, tmp_path))
    assert_one_line(caught.value, "net.onnx: node 'y'", message, "--freeze")


# Dropout ----------------------------------------------------------------------------------------

DROPOUT = """g (float[N,3] x) => (float[N,5] y) {
    r = Constant <value_float = 0.5> () t = Constant <value = bool {1}> ()
    h = MatMul (x, w) y, m = Dropout (h, r, t) }"""


def drawn(step: TrainingStep, t: int, x: Array = SAMPLES) -> Array:
    (target,) = (str(v.name) for v in step.inputs(Role.LABELS))
    feeds = {"x": x, target: TARGETS[: len(x)], "step": np.int64(t), **WEIGHT}
    return run(step.graph, {**feeds, "learning_rate": np.float32(0)})["y"]


def test_dropout_draws_by_step(tmp_path: Path) -> None:
    forward = load(DROPOUT, WEIGHT, tmp_path)
    step = training_step(forward, "mse")
    assert len(step.inputs(Role.STEP)) == 1
    first, again, second = drawn(step, 1), drawn(step, 1), drawn(step, 2)
    np.testing.assert_array_equal(first, again)
    assert ((first == 0) != (second == 0)).any()
    whole = SAMPLES.astype(np.float64) @ WEIGHT["w"]
    np.testing.assert_allclose(first[first != 0], 2 * whole[first != 0], rtol=1e-6)
    other_seed = training_step(forward, "mse", seed=1)
    assert ((first == 0) != (drawn(other_seed, 1) == 0)).any()


def test_two_dropouts_draw_differently_and_share_the_step_with_adam(tmp_path: Path) -> None:
    text = """g (float[N,3] x) => (float[N,5] y) {
        r = Constant <value_float = 0.5> () t = Constant <value = bool {1}> ()
        h = MatMul (x, w) a, m = Dropout (h, r, t) b, n = Dropout (h, r, t) y = Sub (a, b) }"""
    step = training_step(load(text, WEIGHT, tmp_path), "mse", "adam")
    assert len(step.inputs(Role.STEP)) == 1
    kept = {str(v.name): np.zeros(dims(v)) for v in step.inputs(Role.STATE)}
    (target,) = (str(v.name) for v in step.inputs(Role.LABELS))
    feeds = {"x": SAMPLES, target: TARGETS, "step": np.int64(1), **WEIGHT, **kept}
    assert run(step.graph, {**feeds, "learning_rate": np.float32(0)})["y"].any()


def test_evaluation_drops_dropout(tmp_path: Path) -> None:
    evaluation = build_evaluation(load(DROPOUT, WEIGHT, tmp_path))
    assert [node.op_type for node in evaluation.graph] == ["MatMul"]
    (y,) = stock(evaluation.model, [str(evaluation.loss.name)])({"x": SAMPLES, **WEIGHT})
    np.testing.assert_allclose(y, SAMPLES @ WEIGHT["w"], rtol=1e-6)


@pytest.mark.parametrize(
    "settings", ["(h)", "(h, r)", "(h, r, f)", "(h, nil, t)"], ids=["none", "ratio", "off", "zero"]
)
def test_a_dropout_that_drops_nothing_is_left_out(settings: str, tmp_path: Path) -> None:
    text = f"""g (float[N,3] x) => (float[N,5] y) {{
        r = Constant <value_float = 0.5> () nil = Constant <value_float = 0.0> ()
        t = Constant <value = bool {{1}}> () f = Constant <value = bool {{0}}> ()
        h = MatMul (x, w) y = Dropout {settings} }}"""
    step = training_step(load(text, WEIGHT, tmp_path), "mse")
    assert "Dropout" not in {node.op_type for node in step.graph}
    assert not step.inputs(Role.STEP)
