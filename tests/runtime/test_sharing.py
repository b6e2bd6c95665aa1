"""One session used from several threads and processes, and several sessions side by side."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import bnnopt
from bnnopt import TrainingSession
from bnnopt.errors import UsageError
from bnnopt.runtime import BACKENDS
from bnnopt.runtime.library import library
from tests.graphs import write
from tests.passes.networks import BINARY, BINARY_WEIGHTS

Array = NDArray[Any]
BATCH = 16
each_backend = pytest.mark.parametrize("backend", BACKENDS)
often = pytest.mark.parametrize("repeats", [5, pytest.param(80, marks=pytest.mark.slow)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scratch = tmp_path_factory.mktemp("net")
    path = write(BINARY, BINARY_WEIGHTS, scratch)
    bnnopt.optimize(path, batch_size=BATCH, optimizer="sgd").save(scratch / "out")
    return scratch / "out"


def batch(n: int = BATCH) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (n, 2, 6, 6)).astype(np.float32), rng.integers(0, 3, n)


def after(folder: Path, steps: int, backend: str = "native") -> dict[str, Array]:
    """The weights after so many steps of one thread."""
    session = TrainingSession(folder, backend)
    for _ in range(steps):
        session.step(*batch())
    return session.parameters()


def assert_same(found: dict[str, Array], expected: dict[str, Array]) -> None:
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def at_once(*calls: Callable[[], object]) -> None:
    """Run all calls in threads of their own; what one raises is raised."""
    errors: list[BaseException] = []

    def run(call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def times(n: int, call: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        for _ in range(n):
            call()

    return run


# Threads -----------------------------------------------------------------------------------------


@each_backend
@often
def test_threads_of_one_session_take_turns(folder: Path, backend: str, repeats: int) -> None:
    session, (x, y) = TrainingSession(folder, backend, threads=2), batch()
    step = times(repeats, lambda: session.step(x, y))
    at_once(step, step, times(repeats, lambda: session.predict(x)))
    assert session.steps_done == 2 * repeats
    assert_same(session.parameters(), after(folder, 2 * repeats, backend))


@often
def test_two_sessions_in_two_threads(folder: Path, repeats: int) -> None:
    sessions = [TrainingSession(folder, threads=n) for n in (1, 3)]
    at_once(*(times(repeats, lambda s=s: s.step(*batch())) for s in sessions))  # type: ignore[misc]
    for session in sessions:
        assert_same(session.parameters(), after(folder, repeats))


@often
def test_another_number_of_threads_beside_a_step(folder: Path, repeats: int) -> None:
    """It holds for the thread that asks for it, and for no step that runs."""
    loaded = library()
    if loaded is None:
        pytest.skip("no compiled kernels")
    session = TrainingSession(folder, threads=2)
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            for n in (1, 4, 2):
                loaded.bnn_set_threads(n)
                loaded.bnn_set_default_threads(n)

    def work() -> None:
        times(repeats, lambda: session.step(*batch()))()
        assert loaded.bnn_threads() == 2
        stop.set()

    before = loaded.bnn_threads()
    at_once(ask, work)
    loaded.bnn_set_default_threads(before)
    assert_same(session.parameters(), after(folder, repeats))


def test_a_call_from_within_a_call_is_refused(folder: Path) -> None:
    """As a signal handler would make it: waiting for itself, it would wait for ever."""
    session = TrainingSession(folder)

    class Batch:
        def __array__(self, dtype: object = None, copy: object = None) -> Array:
            session.save("never-written")
            return batch()[0]

    with pytest.raises(UsageError, match=r"^save: the session is busy"):
        session.step(Batch(), batch()[1])  # type: ignore[arg-type]
    session.step(*batch())


# Processes ---------------------------------------------------------------------------------------


def ends_well(pid: int, seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


def forked(work: Callable[[], object]) -> int:
    """The process id of a child that ends with 0 if `work` returns."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


@each_backend
@often
def test_a_forked_child_goes_on(folder: Path, backend: str, repeats: int) -> None:
    session = TrainingSession(folder, backend, threads=2)
    session.step(*batch())
    expected = after(folder, 2, backend)

    def go_on() -> None:
        session.step(*batch())
        assert_same(session.parameters(), expected)
        assert_same(after(folder, 2, backend), expected)

    for _ in range(repeats):
        assert ends_well(forked(go_on))
    session.step(*batch())
    assert_same(session.parameters(), expected)


@often
def test_a_fork_while_another_thread_steps(folder: Path, repeats: int) -> None:
    """The copy of a session in the middle of a step refuses; one of its own runs."""
    session, stop = TrainingSession(folder, threads=2), threading.Event()

    def go_on() -> None:
        with contextlib.suppress(UsageError):
            session.step(*batch())
        after(folder, 1)

    def fork() -> None:
        children = [forked(go_on) for _ in range(repeats)]
        stop.set()
        assert all(ends_well(pid) for pid in children)

    def step() -> None:
        while not stop.is_set():
            session.step(*batch())

    at_once(step, fork)
    assert_same(session.parameters(), after(folder, session.steps_done))


def _trained(folder: Path) -> dict[str, Array]:
    return after(folder, 2)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_start_methods_of_multiprocessing(folder: Path, method: str) -> None:
    TrainingSession(folder).step(*batch())
    with multiprocessing.get_context(method).Pool(2) as pool:
        for found in pool.map_async(_trained, [folder] * 2).get(timeout=60):
            assert_same(found, after(folder, 2))
