"""Keys of ONNX metadata: those that are declared, and no others."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import bnnopt
from bnnopt.metadata import Key

ROOT = Path(bnnopt.__file__).parent
FILES = [*ROOT.rglob("*.py"), *(ROOT / "passes").resolve().rglob("*.py")]  # a link
DECLARED = {name for name in vars(Key) if name.isupper()}
OF_FILES = {"GRADIENT"}  # of a file that bnnopt.torch writes, settled by the frontend: its marks.py


def keys(code: str) -> Iterator[str]:
    """The source text of every key with which metadata is read or written."""
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Subscript(ast.Attribute(attr="metadata_props"), key) if not isinstance(
                key, ast.Slice
            ):
                yield ast.unparse(key)
            case ast.Call(
                ast.Attribute(ast.Attribute(attr="metadata_props"), "get" | "pop" | "setdefault"),
                [key, *_],
            ):
                yield ast.unparse(key)
            case ast.Compare(key, [ast.In() | ast.NotIn()], [ast.Attribute(attr="metadata_props")]):
                yield ast.unparse(key)
            case ast.keyword("metadata_props", ast.Dict(entries)):
                yield from (ast.unparse(key) for key in entries if key is not None)


def test_only_declared_keys_are_used() -> None:
    used = {(key, path.name) for path in FILES for key in keys(path.read_text())}
    assert {key for key, _ in used} - OF_FILES == {f"Key.{name}" for name in DECLARED}, sorted(used)


def test_every_way_to_use_a_key_is_found() -> None:
    code = """
node.metadata_props["a"] = node.metadata_props.get("b", "") + node.metadata_props.pop("c")
if "d" in node.metadata_props or "e" not in node.metadata_props: del node.metadata_props["f"]
ir.Node(metadata_props={"g": "1"})
"""
    assert sorted(keys(code)) == [repr(letter) for letter in "abcdefg"]
