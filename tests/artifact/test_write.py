"""An output folder is written whole or not at all."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import numpy as np
import pytest

import bnnopt
from bnnopt.artifact import write
from bnnopt.artifact.write import check_folder, owned_files
from bnnopt.compiler import Optimized
from bnnopt.errors import ArtifactError
from bnnopt.runtime.format import FORMAT
from bnnopt.runtime.tensors import read_tensors
from tests.graphs import write as write_model
from tests.passes.networks import DENSE, DENSE_WEIGHTS


@pytest.fixture(scope="module")
def optimized(tmp_path_factory: pytest.TempPathFactory) -> Optimized:
    path = write_model(DENSE, DENSE_WEIGHTS, tmp_path_factory.mktemp("model"))
    return bnnopt.optimize(path, batch_size=4)


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def rejected(optimized: Optimized, folder: Path, *parts: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        optimized.save(folder)
    text = str(caught.value)
    assert "\n" not in text
    assert all(part in text for part in (str(folder), *parts))


def test_what_is_in_it(optimized: Optimized, tmp_path: Path) -> None:
    optimized.save(tmp_path / "a" / "b" / "out")
    folder = tmp_path / "a" / "b" / "out"
    assert set(content(folder)) == owned_files()
    assert [p.name for p in folder.parent.iterdir()] == ["out"]  # no temporary is left
    about = json.loads((folder / "artifact.json").read_text())
    assert about["format"] == FORMAT
    assert set(about["files"]) == owned_files() - {"artifact.json"}
    weights, _ = read_tensors(folder / "weights.safetensors")
    assert set(weights) == set(about["weights"])
    for name, array in optimized.weights.items():
        np.testing.assert_array_equal(weights[name], array)
    modes = {stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()}
    assert len(modes) == 1  # all as readable as the user's other files


def test_a_second_save_replaces_the_first(optimized: Optimized, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    optimized.save(folder)
    before = content(folder)
    (folder / "report.json").write_text("old")
    optimized.save(str(folder))
    assert content(folder) == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_is_taken(optimized: Optimized, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    optimized.save(tmp_path / "out")
    assert set(content(tmp_path / "out")) == owned_files()


def test_a_link_stays_a_link(optimized: Optimized, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    optimized.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert set(content(tmp_path / "real")) == owned_files()


def test_foreign_files_are_refused(optimized: Optimized, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    rejected(optimized, tmp_path, "'thesis.tex'", "bnnopt did not write")
    assert set(content(tmp_path)) == {"thesis.tex"}


def test_a_file_in_its_place(optimized: Optimized, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    rejected(optimized, tmp_path / "out", "is a file")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_path_below_a_file(optimized: Optimized, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    rejected(optimized, tmp_path / "file" / "out", "cannot be written")
    rejected(optimized, tmp_path / "file" / "deep" / "out", "cannot be written")


@pytest.mark.parametrize("name", ["x" * 300, "nul\0byte"])
def test_a_name_that_the_system_refuses(optimized: Optimized, tmp_path: Path, name: str) -> None:
    rejected(optimized, tmp_path / name)


def test_the_working_directory_is_refused(
    optimized: Optimized, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rejected(optimized, Path("."), "working directory")


def test_no_permission(
    optimized: Optimized, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write.os, "access", lambda *_: False)
    rejected(optimized, tmp_path / "out", "no permission")


class Killed(BaseException):
    """Like KeyboardInterrupt."""


@pytest.mark.slow
@pytest.mark.parametrize("error", [Killed(), OSError(28, "No space left on device")], ids=repr)
@pytest.mark.parametrize(
    "where", ["check_program", "portable_model", "write_tensors", "_swap", "rename"]
)
@pytest.mark.parametrize("exists", [False, True])
def test_what_fails_midway_changes_nothing(
    optimized: Optimized,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    error: BaseException,
    exists: bool,
) -> None:
    folder = tmp_path / "out"
    if exists:
        optimized.save(folder)
    before = content(folder) if exists else None
    rename = Path.rename

    def fail(*_: object) -> None:
        raise error

    def fail_to_take_the_place(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise error
        return rename(self, target)

    if where == "rename":
        monkeypatch.setattr(Path, "rename", fail_to_take_the_place)
    else:
        monkeypatch.setattr(write, where, fail)
    with pytest.raises((Killed, ArtifactError)):
        optimized.save(folder)
    monkeypatch.undo()
    assert (content(folder) if folder.exists() else None) == before
    assert [p.name for p in tmp_path.iterdir()] == (["out"] if exists else [])


def test_check_folder_alone_writes_nothing(tmp_path: Path) -> None:
    check_folder(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


def test_checkpoints_in_the_folder_stay_where_it_is_written_again(tmp_path: Path) -> None:
    path = write_model(DENSE, DENSE_WEIGHTS, tmp_path)
    bnnopt.optimize(path, batch_size=4).save(tmp_path / "out")
    session = bnnopt.TrainingSession(tmp_path / "out")
    session.save(tmp_path / "out" / "mine.safetensors")
    content = (tmp_path / "out" / "mine.safetensors").read_bytes()
    bnnopt.optimize(path, batch_size=4, level="O2").save(tmp_path / "out")
    assert (tmp_path / "out" / "mine.safetensors").read_bytes() == content
    assert bnnopt.TrainingSession(tmp_path / "out").about.level == "O2"
    (tmp_path / "out" / "notes.safetensors").write_bytes(b"not ours")
    with pytest.raises(ArtifactError, match=r"notes\.safetensors"):
        bnnopt.optimize(path, batch_size=4).save(tmp_path / "out")


def test_the_folder_describes_every_file_of_it(tmp_path: Path) -> None:
    bnnopt.optimize(write_model(DENSE, DENSE_WEIGHTS, tmp_path), batch_size=4).save(
        tmp_path / "out"
    )
    text = (tmp_path / "out" / "README.md").read_text()
    names = {path.name for path in (tmp_path / "out").iterdir()} - {"README.md"}
    assert all(f"`{name}`" in text for name in names)
