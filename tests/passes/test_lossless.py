"""Every pass of -O1, alone and with the others: the same bits as -O0."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from bnnopt.runtime.executor import Executor
from bnnopt.runtime.format import StepSpec
from bnnopt.training_step import TrainingStep
from tests.graphs import (
    SAME_KERNELS,
    Network,
    Trajectory,
    assert_bit_equal,
    fingerprint,
    network_from_file,
    node,
    run_native,
    run_stock,
    zoo,
)
from tests.passes.networks import NETWORKS, small
from tests.zoo import EIGHTEEN, FIRST, LARGE

LOSSLESS = SAME_KERNELS
RUNNERS = {"native": run_native, "onnxruntime": run_stock}
# Building a portable graph takes a second or two for the zoo: there -O1 stands for its passes on
# onnxruntime, and the small networks, of the same layers, go through them one by one.
# binarynet has the layers of cnv and nine times its weights, and the 18-layer networks repeat the
# block of resnet-e-mini: -O1 alone as well.
ONE_BY_ONE = {
    "native": [*NETWORKS, *(name for name in FIRST if name not in LARGE)],
    "onnxruntime": [*NETWORKS],
}

each_backend = pytest.mark.parametrize("backend", RUNNERS)
each_name = pytest.mark.parametrize("name", [*NETWORKS, *(n for n in FIRST if n not in EIGHTEEN)])


@functools.cache
def subject(name: str) -> Network:
    if name in NETWORKS:
        return small(name)
    return zoo(name, 3 if name == "binarynet" else 4)


@functools.cache
def reference(name: str, backend: str) -> Trajectory:
    return RUNNERS[backend](subject(name), subject(name).step())


@pytest.mark.slow
@each_backend
@each_name
def test_o1_gives_the_bits_of_o0(name: str, backend: str) -> None:
    net = subject(name)
    found = RUNNERS[backend](net, net.with_passes(*LOSSLESS))
    assert_bit_equal(found, reference(name, backend))
    assert len(found.gradients[0]) == len(net.step().gradients())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "name"),
    [(backend, name) for backend, all_names in ONE_BY_ONE.items() for name in all_names],
)
@pytest.mark.parametrize("pass_", LOSSLESS)
def test_each_pass_alone_gives_the_bits_of_o0(pass_: str, name: str, backend: str) -> None:
    net = subject(name)
    step = net.with_passes(pass_)
    if fingerprint(step) == fingerprint(net.step()):
        return  # it does not fire here
    assert_bit_equal(RUNNERS[backend](net, step), reference(name, backend))


@pytest.mark.slow
@pytest.mark.parametrize("name", EIGHTEEN)
def test_eighteen_layers_give_the_bits_of_o0(name: str) -> None:
    net = subject(name)
    assert_bit_equal(run_native(net, net.with_passes(*LOSSLESS)), reference(name, "native"))


@pytest.mark.slow
@each_backend
@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
def test_optimizer_state_is_the_same_too(optimizer: str, backend: str) -> None:
    options = {"optimizer": "adam"} if optimizer == "adam" else {"momentum": 0.9}
    net = small("binary", **options)
    run = RUNNERS[backend]
    found = run(net, net.with_passes(*LOSSLESS))
    assert_bit_equal(found, run(net, net.step()))
    assert any(name.startswith("w1.") for name in found.persistent)


@pytest.mark.slow
@each_backend
@pytest.mark.parametrize(
    "options",
    [{"keep_zero": True}, {"ste": ["approx-sign"]}, {"ste": ["s1=swish-sign", "s2=identity"]}],
    ids=str,
)
def test_other_ways_to_binarize(options: dict[str, object], backend: str) -> None:
    net = small("binary", **options)
    run = RUNNERS[backend]
    assert_bit_equal(run(net, net.with_passes(*LOSSLESS)), run(net, net.step()))


# Smaller batches ---------------------------------------------------------------------------------


@pytest.mark.slow
@each_backend
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_smaller_batch_gives_what_a_graph_for_that_batch_gives(
    name: str, batch: int, backend: str
) -> None:
    large = subject(name)
    exact = small(name, batch=batch)
    run = RUNNERS[backend]
    found = run(large, large.with_passes(*LOSSLESS), batch=batch)
    assert_bit_equal(found, run(exact, exact.step()))


# Backends, and training --------------------------------------------------------------------------


@pytest.mark.slow
@each_name
def test_backends_agree(name: str) -> None:
    """On the first step: after it a weight near 0 may have another sign, and all be different."""
    native, stock = (reference(name, backend) for backend in RUNNERS)
    np.testing.assert_allclose(native.losses[0], stock.losses[0], rtol=1e-4)
    for parameter, expected in stock.gradients[0].items():
        difference = np.linalg.norm(native.gradients[0][parameter] - expected)
        # An element at the edge of an estimator's range may fall on either side of it.
        assert difference <= 5e-3 * max(float(np.linalg.norm(expected)), 1e-3), parameter


@pytest.mark.parametrize("name", ["mlp", "resnet-e-mini", "relu-mini"])
def test_training_goes_down(name: str) -> None:
    """Some steps on one batch, the rewritten graph."""
    net = zoo(name, 8)
    losses = run_native(net, net.with_passes(*LOSSLESS), 8, repeat=True).losses
    assert losses[-1] < 0.9 * losses[0]


# Negative controls: the comparison notices a rewrite that is a little wrong -----------------------


def rewritten() -> tuple[Network, TrainingStep]:
    net = subject("binary")
    return net, net.with_passes(*LOSSLESS)


@each_backend
def test_a_wrong_estimator_range_is_noticed(backend: str) -> None:
    net, step = rewritten()
    pack = node(step, "RangePack")
    pack.attributes["high"] = ir.AttrFloat32("high", 0.5)
    with pytest.raises(AssertionError):
        assert_bit_equal(RUNNERS[backend](net, step), reference("binary", backend))


@each_backend
def test_the_bits_of_another_mask_are_noticed(backend: str) -> None:
    net, step = rewritten()
    first = node(step, "SignUnpack")
    packed = next(
        n.outputs[0]
        for n in step.graph
        if n.op_type == "RangePack" and n.outputs[0].shape == first.inputs[0].shape
    )
    first.replace_input_with(0, packed)
    with pytest.raises(AssertionError):
        assert_bit_equal(RUNNERS[backend](net, step), reference("binary", backend))


@pytest.mark.parametrize("operator", ["SignUnpack", "MaskedGrad", "PackedMaxPoolGrad"])
def test_one_flipped_bit_is_noticed(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, step = rewritten()
    expected = reference("binary", "native")
    run_step = Executor._run_step

    def flip_and_run(self: Executor, spec: StepSpec, values: list[np.ndarray]) -> None:
        if spec.operator == operator:
            values[spec.inputs[0 if operator == "SignUnpack" else 1]].flat[0] ^= 1
        run_step(self, spec, values)

    monkeypatch.setattr(Executor, "_run_step", flip_and_run)
    with pytest.raises(AssertionError):
        assert_bit_equal(run_native(net, step), expected)


def test_each_part_of_a_trajectory_is_compared() -> None:
    good = reference("binary", "native")
    for name in ("losses", "gradients", "persistent"):
        part = getattr(good, name)
        arrays = {**part} if isinstance(part, dict) else list(part)
        key = next(iter(part)) if isinstance(part, dict) else 0
        if name == "gradients":
            arrays[0] = {k: np.nextafter(v, 9) for k, v in part[0].items()}
        else:
            arrays[key] = np.nextafter(part[key], np.float32(9))
        with pytest.raises(AssertionError):
            assert_bit_equal(dataclasses.replace(good, **{name: arrays}), good)


# PyTorch's own exports ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("name", ["mlp", "binarynet", "residual", "relu"])
def test_pytorch_exports(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.exports.torch_models import export

    options = {"width": 1 / 8} if name == "binarynet" else {}
    export(name, tmp_path / "net.onnx", **options)
    net = network_from_file(tmp_path / "net.onnx")
    for run in RUNNERS.values():
        expected = run(net, net.step())
        assert_bit_equal(run(net, net.with_passes(*LOSSLESS)), expected)
        smaller = run(net, net.with_passes(*LOSSLESS), batch=2)
        exact = network_from_file(tmp_path / "net.onnx", 2)
        assert_bit_equal(smaller, run(exact, exact.step()))
    for name in LOSSLESS:
        step = net.with_passes(name)
        assert_bit_equal(run_native(net, step), run_native(net, net.step()))
