"""A message is one line, however long the names and the reasons in it."""

from __future__ import annotations

from bnnopt.errors import LONGEST, ModelError


def test_breaks_become_spaces() -> None:
    assert str(ModelError("m.onnx: a\n  b;\r\ndo this")) == "m.onnx: a b; do this"


def test_a_long_one_loses_its_middle() -> None:
    text = str(ModelError(f"m.onnx: the name {'n' * 5000!r} is no text; export it again"))
    assert len(text) <= LONGEST
    assert text.startswith("m.onnx: the name 'nnn")
    assert text.endswith("is no text; export it again")


def test_others_stay_as_they_are() -> None:
    line = "m.onnx: " + "n" * (LONGEST - 8)
    assert str(ModelError(line)) == line
