"""The reader of onnxruntime-training's checkpoints."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnnopt.errors import ModelError
from bnnopt.frontend.checkpoint import Checkpoint, read_checkpoint

FOLDER = Path(__file__).parents[1] / "exports" / "artifacts" / "small"
CONTENT = (FOLDER / "checkpoint").read_bytes()
Field = tuple[str, Any] | bytes | list[Any] | None


def encode(field: Field) -> bytes:
    """What an offset points to: a vector of tables, a string or raw vector, or a table."""
    if isinstance(field, bytes):
        return field
    assert isinstance(field, list)
    children = [table(*slots) for slots in field]
    content, places = b"", []
    for n_bytes, child in children:
        places.append(len(content) + n_bytes)
        content += child
    head = 4 + 4 * len(children)
    offsets = [head + place - (4 + 4 * i) for i, place in enumerate(places)]
    return struct.pack(f"<I{len(offsets)}I", len(offsets), *offsets) + content


def table(*slots: Field) -> tuple[int, bytes]:
    """A table behind its vtable: where it starts, and the bytes. Scalars are (layout, value)."""
    start = 4 + 2 * len(slots)
    places = [0 if slot is None else 4 + 8 * i for i, slot in enumerate(slots)]
    size = 4 + 8 * len(slots)
    content = struct.pack(f"<HH{len(slots)}H", start, size, *places) + struct.pack("<i", start)
    tail = b""
    for i, slot in enumerate(slots):
        if isinstance(slot, tuple):
            content += struct.pack(slot[0], slot[1]).ljust(8, b"\0")
        elif slot is None:
            content += bytes(8)
        else:
            content += struct.pack("<I", size - (4 + 8 * i) + len(tail)).ljust(8, b"\0")
            tail += encode(slot)
    return start, content + tail


def vector(items: bytes, n: int) -> bytes:
    return struct.pack("<I", n) + items


def tensor(
    name: str, values: Sequence[float], data_type: int = 1, offset: int | None = None
) -> list[Field]:
    raw = None
    if offset is None:
        raw = vector(struct.pack(f"<{len(values)}f", *values), 4 * len(values))
    shape = vector(struct.pack("<q", len(values)), 1)
    at: Field = None if offset is None else ("<q", offset)
    return [vector(name.encode(), len(name)), None, shape, ("<i", data_type), raw, None, at]


def checkpoint(
    tensors: list[list[Field]], version: int = 2, nominal: int = 0, external: int = 0
) -> bytes:
    flags = (("<B", nominal), ("<B", external))
    start, state = table(tensors, None, *flags)
    state = struct.pack("<I", 4 + start) + state  # the state's own offset, found as the table's
    root = struct.pack("<HH2H", 8, 12, 4, 8) + struct.pack("<ii", 8, version)
    return struct.pack("<I", 16) + b"ODTC" + root + struct.pack("<I", 4 + start) + state[4:]


def read(content: bytes, folder: Path) -> Checkpoint:
    (folder / "checkpoint").write_bytes(content)
    return read_checkpoint(folder / "checkpoint")


def rejected(content: bytes, folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        read(content, folder)
    message = str(caught.value)
    assert str(folder / "checkpoint") in message
    assert "\n" not in message
    return message


def test_holds_the_weights_of_the_forward_file() -> None:
    found = read_checkpoint(FOLDER / "checkpoint")
    forward = onnx.load(FOLDER / "forward.onnx")
    expected = {t.name: onnx.numpy_helper.to_array(t) for t in forward.graph.initializer}
    assert found.arrays.keys() == expected.keys()
    assert found.frozen.keys() == {"bn.running_mean", "bn.running_var"}
    for name, array in expected.items():
        np.testing.assert_array_equal(found.arrays[name], array)


@pytest.mark.parametrize("version", [1, 2])
def test_made_by_hand(version: int, tmp_path: Path) -> None:
    found = read(checkpoint([tensor("a", [1, 2]), tensor("b", [])], version), tmp_path)
    assert {n: a.tolist() for n, a in found.trained.items()} == {"a": [1.0, 2.0], "b": []}
    assert found.frozen == {}


def test_external_data(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.data").write_bytes(struct.pack("<3f", 0, 5, 6))
    content = checkpoint([tensor("a", [0, 0], offset=4)], external=1)
    assert read(content, tmp_path).trained["a"].tolist() == [5.0, 6.0]
    content = checkpoint([tensor("a", [0, 0], offset=8)], external=1)
    assert "lies outside of the .data file" in rejected(content, tmp_path)


def test_what_is_not_supported(tmp_path: Path) -> None:
    a = [tensor("a", [1])]
    assert "version 3, expected 1 to 2" in rejected(checkpoint(a, version=3), tmp_path)
    assert "nominal" in rejected(checkpoint(a, nominal=1), tmp_path)
    halves = checkpoint([tensor("a", [1], data_type=10)])
    assert "'a' has ONNX data type 10, expected 1" in rejected(halves, tmp_path)
    assert "lacks the mark 'ODTC'" in rejected(b"not a checkpoint", tmp_path)
    assert "lacks the mark" in rejected(b"", tmp_path)


def test_no_file_and_no_external_data(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        read_checkpoint(tmp_path / "checkpoint")
    (tmp_path / "checkpoint").write_bytes(checkpoint([tensor("a", [1], offset=0)], external=1))
    with pytest.raises(ModelError, match=r"checkpoint\.data: cannot be read"):
        read_checkpoint(tmp_path / "checkpoint")


def survives(content: bytes, folder: Path) -> None:
    try:
        found = read(content, folder)
    except ModelError:
        return
    assert all(array.dtype == np.float32 for array in found.arrays.values())


@given(st.integers(0, len(CONTENT) - 1))
@settings(max_examples=100, deadline=None)
def test_cut_short(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    survives(CONTENT[:length], tmp_path_factory.getbasetemp())


@given(st.lists(st.tuples(st.integers(0, len(CONTENT) - 1), st.integers(1, 255)), min_size=1))
@settings(max_examples=200, deadline=None)
def test_damaged(tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]) -> None:
    content = bytearray(CONTENT)
    for place, flip in changes:
        content[place] ^= flip
    survives(bytes(content), tmp_path_factory.getbasetemp())


def test_every_byte_of_the_structure(tmp_path: Path) -> None:
    """The first bytes are all offsets and lengths: each to the extremes."""
    for place in range(0, 160):
        for value in (0x7F, 0xFF):
            content = bytearray(CONTENT)
            content[place] = value
            survives(bytes(content), tmp_path)
