"""Steps that overflow, and steps that are interrupted: what they say, and what they leave."""

from __future__ import annotations

import ctypes
import functools
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

import bnnopt
from bnnopt import TrainingSession
from bnnopt.errors import DivergedError, UsageError
from bnnopt.runtime import BACKENDS, guard
from bnnopt.runtime.kernels.compiled import calls
from bnnopt.runtime.parts import SCALED_RANGE
from tests.graphs import write
from tests.passes.networks import BINARY, BINARY_WEIGHTS

Array = NDArray[Any]
BATCH = 4
each_backend = pytest.mark.parametrize("backend", BACKENDS)
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("sgd", "bop")]
each_optimizer = pytest.mark.parametrize("optimizer", ["adam", *OTHERS])
LINEAR = "g (float[batch,6] x) => (float[batch,3] y) { h = MatMul (x, u)\n y = MatMul (h, v) }"
TOKENS = """g (int64[batch,4] x) => (float[batch,3] y) {
    e = Gather (table, x)
    f = Flatten (e)
    n, m1, v1 = BatchNormalization <training_mode = 1> (f, s, b, m, v)
    y = MatMul (n, w)
}"""
WEIGHTS: dict[str, dict[str, list[int]]] = {
    BINARY: BINARY_WEIGHTS,
    LINEAR: {"u": [6, 5], "v": [5, 3]},
    TOKENS: {"table": [7, 2], "s": [8], "b": [8], "m": [8], "v": [8], "w": [8, 3]},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Output folders by network text and options, each written once."""

    @functools.cache
    def make(
        text: str, level: str = "O1", optimizer: str = "adam", batch: int = BATCH, disable: str = ""
    ) -> Path:
        scratch = tmp_path_factory.mktemp("net")
        path = write(text, WEIGHTS[text], scratch)
        options: Any = {
            "level": level,
            "optimizer": optimizer,
            "freeze": ["table"] * (text == TOKENS),
            "disable": [disable] if disable else [],
        }
        bnnopt.optimize(path, batch_size=batch, **options).save(scratch / "out")
        return scratch / "out"

    return make


def batch(n: int = BATCH, scale: float = 1.0) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    return (rng.uniform(-1, 1, (n, 2, 6, 6)) * scale).astype("f4"), rng.integers(0, 3, n)


def state(session: TrainingSession) -> dict[str, bytes]:
    arrays = {name: array.tobytes() for name, array in session._persistent.items()}
    return {**arrays, "steps": str(session.steps_done).encode()}


# Overflow ----------------------------------------------------------------------------------------


@pytest.mark.slow
@each_backend
@each_optimizer
@pytest.mark.parametrize(("level", "scale"), [("O1", 1e30), ("O2", 1e30)])
def test_an_overflow_is_told_and_changes_nothing(
    folders: Callable[..., Path], backend: str, optimizer: str, level: str, scale: float
) -> None:
    session = TrainingSession(folders(BINARY, level, optimizer), backend)
    session.step(*batch())
    before = state(session)
    with pytest.raises(DivergedError, match=r"^step 2: .* nothing has changed; .* learning rate"):
        session.step(*batch(scale=scale))
    assert state(session) == before
    assert np.isfinite(session.step(*batch()))


@pytest.mark.parametrize("is_watched", [True, False])
def test_black_images_change_nothing(
    folders: Callable[..., Path], is_watched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing varies in them: batch norm makes gradients that float16 does not hold."""
    if not is_watched:
        monkeypatch.setattr(guard, "COLLAPSE", 1e-30)
    session = TrainingSession(folders(BINARY, "O2"))
    for _ in range(3):
        session.step(*batch())
    before, (x, y) = state(session), batch()
    with pytest.raises(DivergedError) as raised:
        session.step(np.zeros_like(x), y)
    assert raised.value.is_undone == is_watched
    assert (state(session) == before) == is_watched


def test_float32_holds_what_float16_gradients_do_not(folders: Callable[..., Path]) -> None:
    """Nothing varies: each of two batch norms makes gradients 300 times as large."""
    x, y = np.zeros((BATCH, 2, 6, 6), np.float32), batch()[1]
    with pytest.raises(DivergedError, match=r"or optimize --disable float16-gradients$"):
        TrainingSession(folders(BINARY, "O2")).step(x, y)
    session = TrainingSession(folders(BINARY, "O2", disable="float16-gradients"))
    assert np.isfinite(session.step(x, y))
    with pytest.raises(DivergedError, match=r"or scale the data$"):
        session.step(*batch(scale=1e30))


@each_backend
def test_a_batch_in_float16_range_and_above_it(folders: Callable[..., Path], backend: str) -> None:
    """1e5 is above what float16 holds: told, or a step that leaves finite numbers."""
    session = TrainingSession(folders(BINARY, "O2"), backend)
    before = state(session)
    try:
        session.step(*batch(scale=1e5))
    except DivergedError:
        assert state(session) == before
    assert all(np.isfinite(array).all() for array in session.parameters().values())


@each_backend
def test_a_rate_that_no_weight_survives(folders: Callable[..., Path], backend: str) -> None:
    """The first step may leave numbers that are finite, if large: then the second says so."""
    session = TrainingSession(folders(LINEAR, "O1", "sgd"), backend)
    x, y = np.full((BATCH, 6), 1e3, np.float32), batch()[1]
    before = {}

    def train() -> None:
        nonlocal before
        for _ in range(3):
            before = state(session)
            session.step(x, y, lr=1e38)

    with pytest.raises(DivergedError, match=r"nothing has changed; .* now 1e\+38"):
        train()
    assert state(session) == before


@each_backend
def test_a_weight_that_is_not_finite_is_named(folders: Callable[..., Path], backend: str) -> None:
    session = TrainingSession(folders(LINEAR), backend)
    session._persistent["v"][0, 0] = np.nan
    session._bad_weight = session._first_not_finite()
    before = state(session)
    with pytest.raises(DivergedError, match=r"^step 1: 'v' is not finite; nothing has changed"):
        session.step(np.ones((BATCH, 6)), batch()[1])
    assert state(session) == before


def test_infinity_in_the_file_is_told_at_the_first_step(tmp_path: Path) -> None:
    path = write(LINEAR, WEIGHTS[LINEAR], tmp_path)
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == "v":
            tensor.CopyFrom(numpy_helper.from_array(np.full((5, 3), np.inf, np.float32), "v"))
    onnx.save(model, path)
    bnnopt.optimize(path, batch_size=BATCH).save(tmp_path / "out")
    session = TrainingSession(tmp_path / "out")
    with pytest.raises(DivergedError, match="'v' is not finite"):
        session.step(np.ones((BATCH, 6)), batch()[1])


@pytest.fixture
def unannounced(monkeypatch: pytest.MonkeyPatch) -> Callable[[TrainingSession], None]:
    """Make the next steps overflow between the first update and the last, by a bad state."""

    def spoil(session: TrainingSession) -> None:
        name = sorted(set(session._persistent) - set(session.parameters()) or ["w0"])[0]
        session._persistent[name][...] = np.float32(np.nan)

    monkeypatch.setattr(guard, "LARGE_LOSS", np.inf)
    return spoil


@each_optimizer
def test_without_a_copy_the_session_has_to_resume(
    folders: Callable[..., Path],
    optimizer: str,
    unannounced: Callable[[TrainingSession], None],
    tmp_path: Path,
) -> None:
    """An overflow that nothing announced, and a step ago there was a checkpoint."""
    session = TrainingSession(folders(BINARY, "O1", optimizer))
    session.save(tmp_path / "saved")
    session.step(*batch())
    unannounced(session)
    with pytest.raises(DivergedError, match="would not be finite; resume from the last checkpoint"):
        session.step(*batch())
    for call in (lambda: session.step(*batch()), lambda: session.predict(batch()[0])):
        with pytest.raises(UsageError, match=r"half a step, which broke off; resume"):
            call()
    with pytest.raises(UsageError, match=r"^parameters: the session holds half a step"):
        session.parameters()
    with pytest.raises(UsageError, match=r"^save: the session holds half a step"):
        session.save(tmp_path / "half")
    assert not (tmp_path / "half").exists()
    session.resume(tmp_path / "saved")
    assert state(session) == state(TrainingSession(folders(BINARY, "O1", optimizer)))
    session.step(*batch())


@each_optimizer
@pytest.mark.parametrize("place", ["folder", "saved", "resumed"])
def test_a_state_that_lies_in_a_file_is_read_again(
    folders: Callable[..., Path],
    optimizer: str,
    place: str,
    unannounced: Callable[[TrainingSession], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = TrainingSession(folders(BINARY, "O1", optimizer))
    monkeypatch.chdir(tmp_path)
    if place != "folder":
        session.step(*batch())
        session.save("saved")
    if place == "resumed":
        session.step(*batch())
        session.resume("saved")
    before = state(session)
    unannounced(session)
    monkeypatch.chdir("/")
    with pytest.raises(DivergedError, match="would not be finite; nothing has changed"):
        session.step(*batch())
    assert state(session) == before
    session.step(*batch())


def test_a_file_that_was_replaced_is_not(
    folders: Callable[..., Path], unannounced: Callable[[TrainingSession], None], tmp_path: Path
) -> None:
    """Of another session with as many steps."""
    session, other = (TrainingSession(folders(BINARY)) for _ in range(2))
    for one, scale in ((session, 1.0), (other, 2.0)):
        one.step(*batch(scale=scale))
        one.save(tmp_path / "saved")
    unannounced(session)
    with pytest.raises(DivergedError, match="resume from the last checkpoint"):
        session.step(*batch())


@each_optimizer
def test_with_a_copy_of_each_step(
    folders: Callable[..., Path],
    optimizer: str,
    unannounced: Callable[[TrainingSession], None],
) -> None:
    session = TrainingSession(folders(BINARY, "O1", optimizer), undo=True)
    session.step(*batch())
    unannounced(session)
    before = state(session)
    with pytest.raises(DivergedError, match="would not be finite; nothing has changed"):
        session.step(*batch())
    assert state(session) == before


def test_a_copy_stays_from_one_suspicious_step_to_the_next(
    folders: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = TrainingSession(folders(BINARY))
    session.step(*batch())
    assert not session._guard._spare
    monkeypatch.setattr(guard, "LARGE_INPUT", 0.1)
    session.step(*batch())
    copies = {id(array) for array in session._guard._spare}
    assert copies
    session.step(*batch())
    assert {id(array) for array in session._guard._spare} == copies
    before = state(session)
    with pytest.raises(DivergedError) as raised:
        session.step(*batch(), lr=3e38)
    assert raised.value.is_undone
    assert state(session) == before
    monkeypatch.undo()
    session.step(*batch())
    assert not session._guard._spare


def test_an_update_that_is_not_finite_is_told() -> None:
    """The control: outside of a session the same kernel says nothing."""
    from bnnopt.runtime.kernels.compiled.table import COMPILED

    w, dw = np.ones(5, np.float32), np.array([1, 1, np.inf, 1, 1], np.float32)
    rate, out = np.float32(0.5).reshape(1), np.ones(5, np.float32)
    run = functools.partial(COMPILED["SgdStep"], [w, dw, rate], [out], {}, np.empty(0, np.uint8))
    if not calls.covered(w):
        pytest.skip("no compiled kernels")
    with calls.finite_updates(ctypes.c_int()), pytest.raises(calls.NotFinite):
        run()
    assert run()
    np.testing.assert_array_equal(out, [0.5, 0.5, -np.inf, 0.5, 0.5])


# Small batches, and what a batch says ------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2])
def test_a_small_batch_of_a_large_folder(folders: Callable[..., Path], n: int) -> None:
    """Float16 gradients are scaled for the folder's batch: repeated samples have the same means."""
    large = TrainingSession(folders(BINARY, "O2", "sgd", 4 * SCALED_RANGE))
    fitting = TrainingSession(folders(BINARY, "O2", "sgd", n))
    losses = [session.step(*batch(n), lr=1e-3) for session in (large, fitting)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    found, expected = large.parameters(), fitting.parameters()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=2e-2, atol=2e-3)


@each_backend
def test_a_token_out_of_range_changes_nothing(folders: Callable[..., Path], backend: str) -> None:
    session = TrainingSession(folders(TOKENS), backend)
    tokens, y = np.arange(16).reshape(4, 4) % 7, batch()[1]
    session.step(tokens, y)
    before = state(session)
    tokens[2, 1] = 7
    with pytest.raises(UsageError, match=r"^step: x has indices from 0 to 7, expected -7 to 6$"):
        session.step(tokens, y)
    assert state(session) == before
    session.step(tokens % 7, y)


# Interruptions -----------------------------------------------------------------------------------


@pytest.fixture
def alarm() -> Iterator[Callable[[float], None]]:
    """Raise KeyboardInterrupt in so many seconds, as Ctrl-C would."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds) and None
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("repeats", [10, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("on_disk", [True, False])
def test_an_interrupted_step_leaves_the_old_state_or_the_new_one_or_says_so(
    folders: Callable[..., Path],
    alarm: Callable[[float], None],
    repeats: int,
    on_disk: bool,
    tmp_path: Path,
) -> None:
    session, rng = TrainingSession(folders(BINARY)), np.random.default_rng(0)
    session.step(*batch())
    session.save(tmp_path / "old")
    old = state(session)
    start = time.perf_counter()
    session.step(*batch())
    seconds, new = time.perf_counter() - start, state(session)
    outcomes = set()
    for _ in range(repeats):
        session.resume(tmp_path / "old")
        if not on_disk:
            session._on_disk = session._on_disk._replace(steps_done=-1)
        try:
            alarm(max(seconds * rng.uniform(0, 1.1), 1e-6))
            session.step(*batch())
            alarm(0)
        except KeyboardInterrupt:
            pass
        if state(session) in (old, new):
            outcomes.add("whole")
        else:
            outcomes.add("half")
            with pytest.raises(UsageError, match="half a step"):
                session.save(tmp_path / "half")
            assert all(np.isfinite(array).all() for array in session.parameters().values())
    assert outcomes == {"whole"} if on_disk else "whole" in outcomes
    session.resume(tmp_path / "old")
    session.step(*batch())
    assert state(session) == new


def test_an_interruption_before_the_first_update_changes_nothing(
    folders: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = TrainingSession(folders(BINARY))
    session.step(*batch())
    before = state(session)

    def interrupt(self: guard.Guard) -> bool:
        raise KeyboardInterrupt  # the statistics have changed by now

    monkeypatch.setattr(guard.Guard, "_is_suspicious", interrupt)
    with pytest.raises(KeyboardInterrupt):
        session.step(*batch())
    assert state(session) == before
    monkeypatch.undo()
    session.step(*batch())


def test_a_session_is_not_pickled(folders: Callable[..., Path]) -> None:
    import copy

    session = TrainingSession(folders(LINEAR))
    for make in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(UsageError, match=r"open one there with TrainingSession\("):
            make(session)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_each_statistic_is_looked_at(folders: Callable[..., Path], value: float) -> None:
    """Wherever it stands among the others: a maximum would pass over NaN."""
    session = TrainingSession(folders(BINARY, "O1", "sgd"))
    session.step(*batch())
    watch = guard.Guard(session._backend.training, session._persistent)
    assert len(watch._statistics) > 1
    values = [np.zeros(1, np.float32) for _ in session._backend.training.values]
    for name in watch._statistics:
        watch.begin({})
        before = session._persistent[name].copy()
        session._persistent[name][-1] = value
        with pytest.raises(DivergedError, match=f"'{name}' is not finite"):
            watch.before_updates(values)
        session._persistent[name][...] = before
    watch.begin({})
    watch.before_updates(values)


@pytest.mark.parametrize("place", [0, guard.BLOCK - 1, guard.BLOCK, 2 * guard.BLOCK + 6])
def test_narrow_floats_are_looked_through_block_by_block(place: int) -> None:
    array = np.ones((2 * guard.BLOCK + 7,), np.float16)
    assert guard.is_finite(array)
    for wrong in (np.nan, np.inf):
        array[place] = wrong
        assert not guard.is_finite(array)
