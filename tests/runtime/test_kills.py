"""Training that is killed at random instants goes on to the same bits; see `benchmarks.kills`."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.kills import kill_saves, kill_trainings, make_folder
from bnnopt import TrainingSession
from bnnopt.errors import ArtifactError
from bnnopt.runtime import tensors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("net"))


@pytest.mark.slow
def test_killed_saves_are_whole(folder: Path, tmp_path: Path) -> None:
    assert kill_saves(tmp_path, folder, 20, random.Random(0)).kills == 20


@pytest.mark.slow
def test_killed_trainings_end_in_the_same_bits(folder: Path, tmp_path: Path) -> None:
    assert kill_trainings(tmp_path, folder, 3, random.Random(0)).kills >= 3


@pytest.mark.slow
def test_a_save_in_place_is_found(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: a file that is empty for a while."""

    @contextlib.contextmanager
    def in_place(path: str) -> Iterator[str]:
        Path(path).write_bytes(b"")
        time.sleep(0.02)
        yield path

    monkeypatch.setattr(tensors, "replacing", in_place)
    with pytest.raises(ArtifactError, match="not a safetensors file"):
        kill_saves(tmp_path, folder, 50, random.Random(0))


def test_a_resume_that_loses_a_bit_is_found(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = TrainingSession.resume

    def lossy(self: TrainingSession, path: str) -> None:
        whole(self, path)
        weight = self._persistent["g1"]
        weight[0] = np.nextafter(weight[0], np.float32(2))

    monkeypatch.setattr(TrainingSession, "resume", lossy)
    with pytest.raises(AssertionError, match="other bits"):
        kill_saves(tmp_path, folder, 50, random.Random(0))
