"""Files that are no files, paths that are no paths, and checkpoints that many write at once."""

from __future__ import annotations

import functools
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnnopt
from bnnopt import TrainingSession
from bnnopt.errors import ArtifactError, BnnoptError, ModelError, UsageError
from bnnopt.runtime.files import replacing
from bnnopt.runtime.tensors import read_tensors, write_tensors
from tests.graphs import write

NETWORK = """g (float[batch,6] x) => (float[batch,3] y) {
    h = MatMul (x, __metadata__)
    y = MatMul (h, v)
}"""
WEIGHTS = {"__metadata__": [6, 5], "v": [5, 3]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scratch = tmp_path_factory.mktemp("net")
    bnnopt.optimize(write(NETWORK, WEIGHTS, scratch), batch_size=4).save(scratch / "out")
    return scratch / "out"


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def refusal(kind: type[BnnoptError], call: Callable[[], object]) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    return str(caught.value)


# What cannot be read -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["a\0b", "a" * 5000, "/dev/zero", b"no-such-file", ""])
def test_paths_of_models(path: Any) -> None:
    refusal(ModelError, lambda: bnnopt.optimize(path, batch_size=4))


@pytest.mark.parametrize("path", ["a\0b", "a" * 5000, "/dev/zero", b"no-such-file"])
def test_paths_of_checkpoints_and_folders(folder: Path, path: Any) -> None:
    session = TrainingSession(folder)
    refusal(ArtifactError, lambda: session.resume(path))
    refusal(ArtifactError, lambda: TrainingSession(path))


def test_a_path_in_bytes(folder: Path, tmp_path: Path) -> None:
    session = TrainingSession(os.fsencode(folder))  # type: ignore[arg-type]
    session.save(os.fsencode(tmp_path / "saved"))  # type: ignore[arg-type]
    session.resume(tmp_path / "saved")


def test_pipes_are_not_waited_for(folder: Path, pipe: Path) -> None:
    session = TrainingSession(folder)
    assert "pipe or a device" in refusal(ModelError, lambda: bnnopt.optimize(pipe, batch_size=4))
    assert "pipe or a device" in refusal(ArtifactError, lambda: session.resume(pipe))
    assert "pipe or a device" in refusal(ArtifactError, lambda: session.save(pipe))
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_lack_of_permission_is_named(folder: Path, tmp_path: Path) -> None:
    """In a process of a user that may not: the one that runs the tests may be allowed all."""
    TrainingSession(folder).save(tmp_path / "saved")
    os.chmod(tmp_path / "saved", 0)
    os.chmod(tmp_path, 0o755)
    script = f"""
import os, bnnopt
session = bnnopt.TrainingSession({str(folder)!r})
session.step([[0.0] * 6] * 4, [0, 1, 2, 0])
if os.getuid() == 0: os.setuid(65534)
for call in (session.resume, session.save):
    try: call({str(tmp_path / "saved")!r})
    except bnnopt.errors.ArtifactError as error: print(error)
"""
    for parent in (tmp_path, *tmp_path.parents):
        if not os.access(parent, os.X_OK) or not parent.stat().st_mode & 0o001:
            pytest.skip(f"{parent} is closed to other users")
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    lines = run.stdout.splitlines()
    assert [line.rsplit(": ", 1)[-1] for line in lines] == ["Permission denied"] * 2, run.stderr


# What is written ---------------------------------------------------------------------------------


def test_a_weight_by_the_name_that_the_format_keeps(folder: Path, tmp_path: Path) -> None:
    session = TrainingSession(folder)
    assert session.parameters().keys() == WEIGHTS.keys()
    session.step(np.ones((4, 6)), np.arange(4) % 3)
    session.save(tmp_path / "saved")
    other = TrainingSession(folder)
    other.resume(tmp_path / "saved")
    for name, array in session.parameters().items():
        np.testing.assert_array_equal(other.parameters()[name], array)


@pytest.mark.parametrize("names", [["__metadata__", "__metadata__.", "__metadata__.."], ["a", ""]])
def test_every_name_of_a_tensor_comes_back(names: list[str], tmp_path: Path) -> None:
    tensors = {name: np.full(3, i, np.float32) for i, name in enumerate(names)}
    write_tensors(tmp_path / "file", tensors, {"key": "text"})
    found, metadata = read_tensors(tmp_path / "file")
    assert metadata == {"key": "text"}
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(found[name], array)


def test_what_a_killed_save_left_is_removed_by_the_next(tmp_path: Path) -> None:
    script = """
import os, sys
from bnnopt.runtime.files import replacing
with replacing(sys.argv[1]) as temporary:
    open(temporary, "w").write("half")
    os.kill(os.getpid(), 9)
"""
    target = tmp_path / "saved"
    subprocess.run([sys.executable, "-c", script, str(target)])
    (left,) = os.listdir(tmp_path)
    ours = tmp_path / left.replace(left.split("-")[2], str(os.getpid()))
    foreign = tmp_path / ".bnnopt-other.tmp"
    for path in (ours, foreign):
        path.write_text("of another thread, and of another file")
    with replacing(target) as temporary:
        Path(temporary).write_text("whole")
    assert sorted(os.listdir(tmp_path)) == sorted([target.name, ours.name, foreign.name])
    assert target.read_text() == "whole"


def test_two_threads_save_to_one_path(folder: Path, tmp_path: Path) -> None:
    """The last one has it, and it is whole; no name of a temporary file is shared."""
    sessions, errors = [TrainingSession(folder) for _ in range(3)], []
    for i, session in enumerate(sessions):
        for _ in range(i):
            session.step(np.ones((4, 6)), np.arange(4) % 3)

    def save(session: TrainingSession) -> None:
        try:
            for _ in range(20):
                session.save(tmp_path / "saved")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=save, args=(session,)) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert os.listdir(tmp_path) == ["saved"]
    reader = TrainingSession(folder)
    reader.resume(tmp_path / "saved")
    assert reader.steps_done in range(3)


def test_a_link_stays_and_leads_to_what_is_written(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real" / "saved")
    session = TrainingSession(folder)
    for _ in range(2):
        session.save(link)
        assert link.is_symlink()
        assert (tmp_path / "real" / "saved").is_file()
        session.resume(link)


# Numbers that are no rates -----------------------------------------------------------------------


def test_rates_beyond_all_numbers(folder: Path) -> None:
    session, batch = TrainingSession(folder), (np.ones((4, 6)), np.arange(4) % 3)
    rates: list[Any] = [10**400, -(10**400), 10**5000, "1e400", float("nan"), [0.1], 1j]
    for rate in rates:
        message = refusal(UsageError, functools.partial(session.step, *batch, lr=rate))
        assert "expected a finite number" in message
