"""Files of tensors read piece by piece: what comes back, how much of it is in memory, and when."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from bnnopt.errors import ArtifactError
from bnnopt.runtime import tensors
from bnnopt.runtime.checkpoint import check_checkpoint, read_state, write_checkpoint
from bnnopt.runtime.tensors import TensorFile, read_tensors, tensors_checksum, write_tensors

DTYPES = [np.float32, np.float16, np.int8, np.uint8, np.int64, np.bool_]
shapes = npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9)
arrays = st.sampled_from(DTYPES).flatmap(lambda dtype: npst.arrays(dtype, shapes))


@given(drawn=st.lists(arrays, min_size=1, max_size=4), piece=st.integers(1, 200))
def test_pieces_of_any_size_make_the_tensors(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[np.ndarray], piece: int
) -> None:
    path = tmp_path_factory.mktemp("t") / "file"
    named = {str(i): array for i, array in enumerate(drawn)}
    write_tensors(path, named, {"key": "text"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensors, "PIECE", piece)
        patch.setattr(tensors, "MAPPED", 3 * piece)
        found, metadata = read_tensors(path)
        with TensorFile(path) as file:
            assert file.checksum() == tensors_checksum(named, metadata)
            for name, array in named.items():
                assert file.spec(name) == (array.shape, array.dtype)
    for name, array in named.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


def test_it_stays_the_file_that_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "MAPPED", 0)  # mapped anew for each piece
    old, new = np.arange(40_000), np.arange(40_000) + 1
    write_tensors(tmp_path / "file", {"a": old}, {})
    with TensorFile(tmp_path / "file") as file:
        next(file.pieces("a"))
        write_tensors(tmp_path / "file", {"a": new}, {})
        np.testing.assert_array_equal(file.read("a"), old)
        os.unlink(tmp_path / "file")
        np.testing.assert_array_equal(file.read("a"), old)


def test_a_checkpoint_that_is_written_to_while_it_is_read_is_told(tmp_path: Path) -> None:
    path, state = tmp_path / "file", {"a": np.zeros(1000, np.float32)}
    write_checkpoint(path, state, 3, {})
    with TensorFile(path) as file:
        check_checkpoint(file, state)
        with path.open("r+b") as other:
            other.seek(-1, os.SEEK_END)
            other.write(b"\x01")
        with pytest.raises(ArtifactError, match="was changed while it was read"):
            read_state(file, state)


SCRIPT = """
import json, sys
from pathlib import Path
import numpy as np
from bnnopt.runtime.checkpoint import read_checkpoint

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))

state = {name: np.ones(shape, dtype) for name, shape, dtype in json.loads(sys.argv[2])}
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
read_checkpoint(sys.argv[1], state)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak")
def test_little_of_a_checkpoint_is_in_memory_at_once(tmp_path: Path) -> None:
    specs = [("w", (4096, 4096), "float16"), ("m", (4096, 4096), "int8")]  # 48 MiB
    write_checkpoint(tmp_path / "c", {n: np.ones(s, d) for n, s, d in specs}, 3, {})
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "c"), json.dumps(specs)]
    found = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    assert int(found) < 8 << 20
