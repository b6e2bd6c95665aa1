"""Partial training: what is trained, and that nothing is built or kept for what is frozen."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnnopt.analysis import kept_values
from bnnopt.autodiff.selection import layers_of
from bnnopt.errors import UsageError
from bnnopt.training_step import Role
from tests.autodiff.interpreter import run
from tests.autodiff.test_training_step import (
    BATCH,
    LAYERS,
    TWO_LAYERS,
    assert_one_line,
    load,
    training_step,
)
from tests.autodiff.test_training_step import zoo as forward_of


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        ({"train": ("first",)}, {"first"}),
        ({"train": ("*",), "freeze": ("first",)}, {"second"}),
        ({"last": 1}, {"second"}),
        ({"last": 2}, {*LAYERS}),
        ({"last": 2, "train": ("f*", "none*", "second")}, None),
        ({"last": 1, "train": ("s*",)}, {"second"}),
    ],
)
def test_train_and_last(options: Any, trained: set[str] | None, tmp_path: Path) -> None:
    forward = load(TWO_LAYERS, LAYERS, tmp_path)
    if trained is None:
        with pytest.raises(UsageError, match=r"--train none\*: no parameter matches"):
            training_step(forward, "mse", **options)
        return
    step = training_step(forward, "mse", **options)
    assert {v.name for v in step.inputs(Role.PARAMETER)} == trained


def test_last_needs_a_layer(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        training_step(load(TWO_LAYERS, LAYERS, tmp_path), "mse", last=0)
    assert_one_line(caught.value, "--last 0", "1 to 2")


def test_a_layer_is_a_product_and_what_follows_it(tmp_path: Path) -> None:
    forward = forward_of("relu-mini", str(tmp_path))
    layers = {str(v.name): i for v, i in layers_of(forward.graph).items()}
    step = training_step(forward, "cross-entropy", last=2)
    trained = {str(v.name) for v in step.inputs(Role.PARAMETER)}
    assert {"fc.weight", "fc.bias"} < trained
    assert trained == {name for name, i in layers.items() if i >= max(layers.values()) - 1}
    assert len(trained) < len(layers)


BIASED = """g (float[N,2,6,6] x) => (float[N,5] y) {
    c1 = Conv <kernel_shape = [3, 3]> (x, w1, b1) r1 = Relu (c1)
    p1 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r1)
    c2 = Conv <kernel_shape = [2, 2]> (p1, w2, b2) r2 = Relu (c2)
    f = Flatten (r2) y = Gemm (f, w3, b3) }"""
BIASED_SHAPES = {"w1": (3, 2, 3, 3), "b1": (3,), "w2": (4, 3, 2, 2), "b2": (4,)}
BIASED_SHAPES |= {"w3": (4, 5), "b3": (5,)}


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, {"x", "r1", "p1.indices", "p1", "r2", "log_prob", "labels"}),
        ({"train": ("b*",)}, {"r1", "p1.indices", "r2", "log_prob", "labels"}),
        ({"last": 1}, {"r2", "log_prob", "labels"}),
        ({"last": 2}, {"p1", "r2", "log_prob", "labels"}),
        ({"train": ("b3",)}, {"log_prob", "labels"}),
    ],
)
def test_nothing_is_kept_for_what_is_frozen(options: Any, kept: set[str], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = {name: rng.standard_normal(shape) for name, shape in BIASED_SHAPES.items()}
    step = training_step(load(BIASED, values, tmp_path), "cross-entropy", **options)
    assert {str(value.name).replace("loss.1", "log_prob") for value in kept_values(step)} == kept


FROZEN_NORM = """g (float[N,2,4,4] x) => (float[N,5] y) {
    c = Conv <kernel_shape = [3, 3]> (x, w)
    n = BatchNormalization <epsilon = 0.01> (c, scale, bias, mean, var)
    f = Flatten (n) y = MatMul (f, v) }"""
FROZEN_NORM_VALUES = {
    "w": np.random.default_rng(0).standard_normal((3, 2, 3, 3)),
    "scale": np.array([0.5, -1.0, 2.0]),
    "bias": np.array([0.1, 0.2, 0.3]),
    "mean": np.array([1.0, 0.0, -1.0]),
    "var": np.array([0.5, 1.0, 2.0]),
    "v": np.random.default_rng(1).standard_normal((12, 5)),
}


def test_gradient_through_a_frozen_batch_norm(tmp_path: Path) -> None:
    """In inference mode it is a scale and a shift: the numbers of a network that has just those."""
    folded = FROZEN_NORM.replace("BatchNormalization <epsilon = 0.01>", "BN")
    folded = folded.replace("n = BN (c, scale, bias, mean, var)", "m = Mul (c, a) n = Add (m, b)")
    values = FROZEN_NORM_VALUES
    a = values["scale"] / np.sqrt(values["var"] + float(np.float32(0.01)))
    affine = {"a": a, "b": values["bias"] - values["mean"] * a}
    affine = {key: array.reshape(1, 3, 1, 1) for key, array in affine.items()}
    rng, found = np.random.default_rng(2), []
    x, labels = rng.standard_normal((BATCH, 2, 4, 4)), np.array([0, 1, 2, 4])
    for text, more, freeze in ((FROZEN_NORM, {}, ("scale",)), (folded, affine, ("a",))):
        read = {key: v for key, v in {**values, **more}.items() if re.search(rf"\b{key}\b", text)}
        forward = load(text, read, tmp_path)
        step = training_step(forward, "cross-entropy", freeze=freeze)
        feeds = {"x": x, "labels": labels, "learning_rate": np.float64(0), **read}
        run_values = run(step.graph, feeds)
        found.append([run_values[str(step.gradients()[key].name)] for key in ("w", "v")])
        shift = run_values[str(step.gradients()["bias" if "bias" in read else "b"].name)]
        found[-1].append(shift.reshape(3))
        assert "scale" not in step.gradients()
        assert "c" not in {str(value.name) for value in kept_values(step)}
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9)


def test_more_layers_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        training_step(load(TWO_LAYERS, LAYERS, tmp_path), "mse", last=3)
    assert_one_line(caught.value, "--last 3", "1 to 2")
