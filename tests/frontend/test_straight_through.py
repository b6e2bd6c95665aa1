"""Which sums have the value of one tensor and the gradient of another, and which are sums."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bnnopt.autodiff import TrainingOptions, build_training_step, make_optimizer
from bnnopt.errors import BnnoptError, ModelError
from bnnopt.frontend import ForwardGraph
from tests.autodiff.interpreter import run
from tests.frontend.models import Array, load, parse

X = np.array([[-2.0, -0.4, 0.3, 1.7]])
W = np.array([0.9, 0.8, 0.7, 1.1])
NUMBERS = "zero = Constant <value_float = 0.0> () one = Constant <value_float = 1.0> () " \
    "minus = Constant <value_float = -1.0> () two = Constant <value_float = 2.0> ()"  # fmt: skip


def forward_of(text: str, folder: Path, ste: tuple[str, ...] = ()) -> ForwardGraph:
    """z is the sum of what the idiom makes of h = x w, taken by a layer of ones."""
    body = f"""g (float[batch,4] x) => (float z) {{ {NUMBERS} h = Mul (x, w)
        {text} p = Gemm (y, k) z = ReduceMean <keepdims = 0> (p) }}"""
    values = {"w": W.astype(np.float32), "k": np.ones((4, 2), np.float32)}
    return load(parse(body, values), folder, batch_size=1, ste=ste)


def step_of(forward: ForwardGraph) -> tuple[float, Array]:
    """The sum of y, and dy/dh."""
    options = TrainingOptions("none", make_optimizer("sgd", momentum=0))
    step = build_training_step(forward, options, Path("net.onnx"))
    feeds = {"x": X, "learning_rate": np.float32(0), **forward.weights, "w": W}
    values = run(step.graph, feeds)
    return float(values["z"]), values[str(step.gradients()["w"].name)] / X[0]


S = "s = Tanh (h)"
B = f"{S} b = Round (h)"
SUMS = {
    "(b - s) + s": f"{B} d = Sub (b, s) y = Add (d, s)",
    "s + (b - s)": f"{B} d = Sub (b, s) y = Add (s, d)",
    "s - (s - b)": f"{B} d = Sub (s, b) y = Sub (s, d)",
    "-(s - b) + s": f"{B} d = Sub (s, b) n = Neg (d) y = Add (n, s)",
    "(b + s) - s": f"{B} d = Add (b, s) y = Sub (d, s)",
    "(s + b) - s": f"{B} d = Add (s, b) y = Sub (d, s)",
    "b + (s - s)": f"{B} d = Sub (s, s) y = Add (b, d)",
    "(s - s) + b": f"{B} d = Sub (s, s) y = Add (d, b)",
    "(b + c) - s + s": f"{B} a = Add (b, one) m = Sub (a, one) d = Sub (m, s) y = Add (d, s)",
    "written twice": f"{B} d = Sub (b, s) t = Tanh (h) y = Add (d, t)",
    "all of it twice": f"{B} r = Round (h) q = Tanh (h) d = Sub (r, q) y = Add (s, d)",
}


@pytest.mark.parametrize("name", SUMS)
def test_the_value_of_one_and_the_gradient_of_the_other(name: str, tmp_path: Path) -> None:
    forward = forward_of(SUMS[name], tmp_path)
    total, slope = step_of(forward)
    assert total == np.rint(X * W).sum()
    np.testing.assert_allclose(slope, 1 - np.tanh(X * W)[0] ** 2, rtol=1e-6)
    (note,) = forward.notes
    assert "'y'" in note
    assert "the value of b and the gradient of s" in note


def test_anything_may_stand_in_the_value(tmp_path: Path) -> None:
    """No operator of b needs a gradient rule, nor kernels of their gradients."""
    text = """i = ArgMax <axis = 1> (h) f = Cast <to = 1> (i) r = Mod <fmod = 1> (h, two)
        c = Ceil (h) m = Max (c, r) b = Add (m, f) d = Sub (b, h) y = Add (d, h)"""
    total, slope = step_of(forward_of(text, tmp_path))
    h = (X * W)[0]
    assert total == pytest.approx((np.maximum(np.ceil(h), np.fmod(h, 2)) + 3).sum())
    np.testing.assert_allclose(slope, 1)


def test_a_value_that_is_broadcast(tmp_path: Path) -> None:
    text = """m = ReduceMean <axes = [1]> (h) r = Round (m)
        d = Sub (r, h) y = Add (d, h)"""
    total, slope = step_of(forward_of(text, tmp_path))
    assert total == 4 * np.rint((X * W).mean())
    np.testing.assert_allclose(slope, 1)


def test_a_tensor_taken_off_itself_has_its_gradient(tmp_path: Path) -> None:
    """``1 + s - s.detach()``."""
    text = f"{S} d = Sub (s, s) y = Add (d, one)"
    total, slope = step_of(forward_of(text, tmp_path))
    assert total == 4
    np.testing.assert_allclose(slope, 1 - np.tanh(X * W)[0] ** 2, rtol=1e-6)


def test_a_shortcut_that_is_taken_off_again_is_a_sum(tmp_path: Path) -> None:
    """(h + f(h)) - h has the gradient of f, which rounds nothing."""
    forward = forward_of(f"{S} a = Add (h, s) y = Sub (a, h)", tmp_path)
    _, slope = step_of(forward)
    np.testing.assert_allclose(slope, 1 - np.tanh(X * W)[0] ** 2, rtol=1e-6)
    assert not forward.notes


# What rounds without an estimator ---------------------------------------------------------------

CLIPPED = "c = Clip (h, zero, one) t = Mul (c, two)"
IN_UNIT = ((X * W >= 0) & (X * W <= 1))[0]


@pytest.mark.parametrize("operator", ["Round", "Floor", "Ceil"])
def test_a_rounding_passes_the_gradient_on(operator: str, tmp_path: Path) -> None:
    forward = forward_of(f"{CLIPPED} r = {operator} (t) y = Div (r, two)", tmp_path)
    total, slope = step_of(forward)
    rounded = {"Round": np.rint, "Floor": np.floor, "Ceil": np.ceil}[operator]
    assert total == rounded(2 * np.clip(X * W, 0, 1)).sum() / 2
    np.testing.assert_allclose(slope, IN_UNIT)
    assert forward.quantized == ["r"]
    assert "'r': a rounding passes the gradient on" in forward.notes[0]


def test_a_fraction_has_the_gradient_of_its_tensor(tmp_path: Path) -> None:
    forward = forward_of("f = Floor (h) y = Sub (h, f)", tmp_path)
    _, slope = step_of(forward)
    np.testing.assert_allclose(slope, 1)
    assert not forward.quantized


def test_steps_get_the_estimator_of_a_sign(tmp_path: Path) -> None:
    text = "c = Greater (h, zero) y = Cast <to = 1> (c)"
    for ste, expected in [((), abs(X * W)[0] <= 1), (("y=identity",), 1.0)]:
        total, slope = step_of(forward_of(text, tmp_path, ste))
        assert total == 2
        np.testing.assert_allclose(slope, expected)


@pytest.mark.parametrize(
    "text",
    [
        "b = Sign (h) y = Neg (b)",
        "c = GreaterOrEqual (h, zero) b = Where (c, one, minus) y = Mul (b, minus)",
    ],
)
def test_a_negated_sign_has_the_negated_gradient(text: str, tmp_path: Path) -> None:
    forward = forward_of(text, tmp_path)
    assert [b.name for b in forward.binarized] == ["b"]
    total, slope = step_of(forward)
    assert total == -np.sign(X * W).sum()
    np.testing.assert_allclose(slope, -1.0 * (abs(X * W) <= 1)[0])


def test_a_mask_passes_no_gradient(tmp_path: Path) -> None:
    """A ReLU by hand."""
    forward = forward_of("c = Greater (h, zero) m = Cast <to = 1> (c) y = Mul (h, m)", tmp_path)
    _, slope = step_of(forward)
    np.testing.assert_allclose(slope, (X * W > 0)[0])
    assert "no gradient passes 'm': a mask" in forward.notes[0]


UNKNOWN = {
    "mirrored": ("c = Greater (h, zero) y = Where (c, minus, one)", "gives -1 where x > 0"),
    "falling": (
        "a = Abs (h) c = Less (a, one) y = Cast <to = 1> (c)",
        "steps whose gradient is not in the file",
    ),
    "two tensors": (
        "t = ReduceMean <axes = [1]> (h) c = Greater (h, t) y = Cast <to = 1> (c)",
        "steps whose gradient is not in the file",
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_gradient_that_nobody_can_know_is_refused(name: str, tmp_path: Path) -> None:
    text, reason = UNKNOWN[name]
    with pytest.raises(BnnoptError) as caught:
        forward_of(text, tmp_path)
    message = str(caught.value)
    assert isinstance(caught.value, ModelError)
    assert "net.onnx: node 'y'" in message
    assert reason in message
    assert "s + (b - s).detach()" in message
    assert "\n" not in message
    forward_of(text, tmp_path, ("y=identity",))
