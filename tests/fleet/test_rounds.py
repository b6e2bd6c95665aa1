"""Rounds of devices that train, die and lie: the two apps, over a grid in this process.

Needs the extra ``flower``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnnopt
from bnnopt import TrainingSession
from bnnopt.errors import ArtifactError, UsageError
from bnnopt.fleet import Layout, RunOptions, State
from tests.fleet.setting import (
    DEVICES,
    NETWORK,
    WEIGHTS,
    log_of,
    options,
    parameters,
    samples,
    write_base,
)
from tests.graphs import write

flwr = pytest.importorskip("flwr.app")
from benchmarks.fleet_grid import Devices, Reply, identity  # noqa: E402
from bnnopt.fleet.server import serve  # noqa: E402

pytestmark = pytest.mark.fleet


@pytest.fixture(autouse=True)
def identified() -> Iterator[None]:
    with identity():
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("fleet"))


def states(grid: Devices) -> dict[int, dict[str, bytes]]:
    """The network that each device kept."""
    return {
        k: {n: context.state["bnnopt-state"][n].numpy().tobytes() for n in State._fields}
        for k, context in grid.contexts.items()
        if "bnnopt-state" in context.state
    }


def run(config: dict[str, Any], misbehave: dict[int, Reply] | None = None) -> Devices:
    grid = Devices(config, DEVICES, misbehave)
    serve(grid, RunOptions.of(config))
    return grid


@pytest.mark.parametrize("strategy", ["sign-majority", "binary-average", "fedavg"])
def test_a_fleet_learns(base: Path, tmp_path: Path, strategy: str) -> None:
    config = options(base, tmp_path, strategy=strategy, rounds=6, epochs=3, lr=0.1)
    run(config)
    lines = log_of(config)
    assert [line["round"] for line in lines] == list(range(7))
    assert lines[-1]["accuracy"] > 0.95 > 0.5 > lines[0]["accuracy"]
    assert lines[-1]["refused"] == 0


@pytest.mark.parametrize("strategy", ["sign-majority", "binary-average", "fedavg"])
def test_a_step_that_takes_bytes_learns_as_one_of_floats(strategy: str, tmp_path: Path) -> None:
    found = []
    for fed in ("uint8", "float32"):
        (tmp_path / fed).mkdir()
        base = write_base(tmp_path / fed, fed, as_bytes=True)
        config = options(base, tmp_path / fed, strategy=strategy, rounds=2)
        run(config)
        lines = log_of(config)
        assert [line["refused"] for line in lines] == [0, 0, 0]
        found.append((parameters(config), [line["loss"] for line in lines]))
    (weights, losses), (expected, loss_of_floats) = found
    assert losses == pytest.approx(loss_of_floats, rel=0.02)
    assert losses[-1] < losses[0]
    if strategy != "fedavg":  # whose mean in Flower is of the order in which devices answer
        assert (weights, losses) == (expected, loss_of_floats)


def test_only_votes_come_down(base: Path, tmp_path: Path) -> None:
    grid = run(config := options(base, tmp_path))
    assert not any(full for _, full in grid.received)
    assert len({tuple(sorted(s.items())) for s in states(grid).values()}) == 1
    first, last = (log_of(config)[i] for i in (1, 4))
    layout = Layout.of(TrainingSession(config["folder"]))
    sent = layout.n_bytes_of_signs + 4 * layout.n_averaged + 2 * 128  # numpy's headers
    assert last["bytes-up"] == 4 * DEVICES * sent
    assert last["bytes-down"] - first["bytes-down"] == 3 * DEVICES * sent


def test_counts_come_down_where_weights_are_averaged(base: Path, tmp_path: Path) -> None:
    """Of five devices, in three bits."""
    grid = run(config := options(base, tmp_path, strategy="binary-average"))
    assert [full for _, full in grid.received] == [True] * DEVICES + [False] * 3 * DEVICES
    first, last = (log_of(config)[i] for i in (1, 4))
    layout = Layout.of(TrainingSession(config["folder"]), True)
    sent = 3 * layout.n_bytes_of_signs + 4 * layout.n_averaged + 2 * 128  # numpy's headers
    assert last["bytes-down"] - first["bytes-down"] == 3 * DEVICES * sent


def test_a_device_that_missed_rounds_gets_their_votes(base: Path, tmp_path: Path) -> None:
    """It dies in rounds 2 and 3 before it replies, and has the others' state after round 4."""
    calls = 0

    def absent(message: Any, context: Any) -> Any:
        nonlocal calls
        calls += 1
        return None if calls in (2, 3) else grid.app(message, context)

    config = options(base, tmp_path)
    grid = Devices(config, DEVICES, {2: absent})
    serve(grid, RunOptions.of(config))
    assert [full for node, full in grid.received if node == 2] == [False] * 4
    assert len({tuple(sorted(s.items())) for s in states(grid).values()}) == 1


def test_a_device_that_lost_its_state_is_sent_all_weights(base: Path, tmp_path: Path) -> None:
    calls = 0

    def forgetful(message: Any, context: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            context.state.clear()
        return grid.app(message, context)

    config = options(base, tmp_path)
    grid = Devices(config, DEVICES, {2: forgetful})
    serve(grid, RunOptions.of(config))
    assert [full for node, full in grid.received if node == 2] == [False, False, False, True]
    assert [line["refused"] for line in log_of(config)] == [0, 0, 0, 1, 0]
    assert len({tuple(sorted(s.items())) for s in states(grid).values()}) == 1


def test_a_device_whose_folder_holds_other_weights_is_sent_all(base: Path, tmp_path: Path) -> None:
    other = TrainingSession(base / "out")
    x, y = samples(7).values()
    other.step(x[:16], y[:16])
    other.save(tmp_path / "other.safetensors")
    network = write(NETWORK, WEIGHTS, tmp_path)
    compiled = bnnopt.optimize(
        network,
        batch_size=16,
        optimizer="sgd",
        level="O2",
        init=str(tmp_path / "other.safetensors"),
    )
    compiled.save(tmp_path / "out")
    config = options(base, tmp_path)
    grid = Devices(config, DEVICES)
    grid.contexts[2].node_config["folder"] = str(tmp_path / "out")
    serve(grid, RunOptions.of(config))
    assert [full for node, full in grid.received if node == 2] == [False, True, False, False]
    assert [line["refused"] for line in log_of(config)] == [0, 1, 0, 0, 0]
    assert len({tuple(sorted(s.items())) for s in states(grid).values()}) == 1


def lie(**changed: Any) -> Reply:
    """Reply with arrays of another kind."""

    def reply(message: Any, context: Any) -> Any:
        arrays = flwr.ArrayRecord({n: flwr.Array(a) for n, a in changed.items()})
        metrics = flwr.MetricRecord({"num-examples": 10**12, "loss": float("nan")})
        content = flwr.RecordDict({"update": arrays, "metrics": metrics})
        return flwr.Message(content=content, reply_to=message)

    return reply


def nothing(message: Any, context: Any) -> Any:
    return None


def empty(message: Any, context: Any) -> Any:
    return flwr.Message(content=flwr.RecordDict({}), reply_to=message)


SIGNS = np.zeros(100, np.uint8)
LIARS: dict[str, Reply] = {
    "no reply": nothing,
    "an empty reply": empty,
    "wrong shapes": lie(signs=np.zeros((3, 3), np.uint8), averaged=np.zeros(2, np.float32)),
    "nothing finite": lie(signs=SIGNS, averaged=np.full(20, np.nan, np.float32)),
    "too much": lie(signs=np.zeros(1 << 20, np.uint8), averaged=np.zeros(2, np.float32)),
}


@pytest.mark.parametrize("strategy", ["sign-majority", "binary-average"])
@pytest.mark.parametrize("kind", LIARS)
def test_a_liar_changes_nothing_but_the_count(
    base: Path, tmp_path: Path, strategy: str, kind: str
) -> None:
    """The others' weights are those of a run in which it is absent, to the last bit."""
    found = {}
    for name, reply in ((kind, LIARS[kind]), ("absent", nothing)):
        (tmp_path / name).mkdir()
        config = options(base, tmp_path / name, strategy=strategy, rounds=2)
        run(config, {3: reply})
        found[name] = parameters(config)
        assert log_of(config)[-1]["refused"] == (reply is not nothing)
    assert found[kind] == found["absent"]


def test_random_bits_are_outvoted(base: Path, tmp_path: Path) -> None:
    layout = Layout.of(TrainingSession(base / "out"))

    def noise(message: Any, context: Any) -> Any:
        bits = np.random.default_rng(5).integers(0, 256, layout.n_bytes_of_signs).astype(np.uint8)
        bits[-1] &= (1 << (8 - -layout.n_signed % 8)) - 1
        return lie(signs=bits, averaged=np.full(layout.n_averaged, 1e5, "f4"))(message, context)

    config = options(base, tmp_path, rounds=6)
    run(config, {3: noise})
    lines = log_of(config)
    assert lines[-1]["refused"] == 0
    assert lines[-1]["accuracy"] > 0.85


def test_a_server_goes_on_from_its_checkpoint(base: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for path in (whole, parts):
        path.mkdir()
    run(config := options(base, whole, rounds=4))

    class Stop(Exception):
        pass

    def stop(message: Any, context: Any) -> Any:
        if message.content["config"]["round"] == 3:
            raise Stop
        return grid.app(message, context)

    half = options(base, parts, rounds=4)
    grid = Devices(half, DEVICES, dict.fromkeys(range(DEVICES), stop))
    with pytest.raises(Stop):
        serve(grid, RunOptions.of(half))
    grid.misbehave = {}
    serve(grid, RunOptions.of(half))
    assert parameters(half) == parameters(config)
    assert [line["round"] for line in log_of(half)] == [0, 1, 2, 2, 3, 4]


def test_a_checkpoint_of_another_fleet(base: Path, tmp_path: Path) -> None:
    config = options(base, tmp_path, rounds=1)
    run(config)
    with pytest.raises(ArtifactError, match="is of strategy sign-majority, not binary-average"):
        run(config | {"strategy": "binary-average"})
    TrainingSession(config["folder"]).save(Path(config["checkpoints"], "state.safetensors"))
    with pytest.raises(ArtifactError, match="another model"):
        run(config)


def test_part_of_the_devices_takes_part(base: Path, tmp_path: Path) -> None:
    config = options(base, tmp_path, fraction=0.4, rounds=8)
    grid = run(config)
    assert len(grid.received) == 16
    assert log_of(config)[-1]["accuracy"] > 0.85


def test_feedback_keeps_what_a_sign_does_not_say(base: Path, tmp_path: Path) -> None:
    config = options(base, tmp_path, feedback=True)
    grid = run(config)
    assert all("residual" in c.state["bnnopt-state"] for c in grid.contexts.values())
    assert log_of(config)[-1]["accuracy"] > 0.85


def test_devices_say_why_they_do_not_train(base: Path, tmp_path: Path) -> None:
    config = options(base, tmp_path, rounds=1)
    run(config | {"data": str(base / "nowhere.npz")})
    assert log_of(config)[-1]["refused"] == DEVICES
    assert log_of(config)[-1]["accuracy"] == log_of(config)[0]["accuracy"]


def test_weights_that_have_no_sign_to_take(tmp_path: Path) -> None:
    network = write(NETWORK, WEIGHTS, tmp_path)
    bnnopt.optimize(network, batch_size=16, optimizer="bop").save(tmp_path / "out")
    with pytest.raises(UsageError, match="compiled for bop"):
        Layout.of(TrainingSession(tmp_path / "out"))
