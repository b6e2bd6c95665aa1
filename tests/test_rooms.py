"""Who may import whom: the rooms of the package, from the operators up to the command line."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import bnnopt

ROOT = Path(bnnopt.__file__).parent
# Modules beside the rooms; any may read.
LOOSE = {"errors", "metadata", "settings", "tables", "training_step", "units"}

# To add a room: what it may import of the others, the fewer the better; see docs/architecture.md.
MAY: dict[str, set[str]] = {
    "runtime": set(),  # the device side
    "models": set(),
    "ops": set(),
    "analysis": {"ops"},
    "frontend": {"ops", "runtime"},
    "autodiff": {"ops", "frontend"},
    "plan": {"ops", "analysis", "runtime"},
    "passes": {"ops", "analysis", "plan", "runtime"},
    "artifact": {"ops", "analysis", "plan", "runtime"},
    "report": {
        *("ops", "analysis", "plan", "runtime", "passes", "frontend", "autodiff"),
        *("artifact", "__version__"),
    },
    "verification": {"ops", "analysis", "plan", "passes", "artifact", "report", "runtime"},
    "torch": {"ops", "frontend", "passes", "artifact", "report", "verification", "runtime"},
    "compiler": {
        *("ops", "analysis", "frontend", "autodiff", "passes", "plan"),
        *("artifact", "report", "torch", "runtime"),
    },
    "fleet": {"runtime"},  # many devices: Flower's side
    "emit": {"compiler", "artifact", "plan", "runtime"},  # C for what has no Python
    "cli": set(),
}
MAY["cli"] = MAY.keys() - {"cli"} | {"__version__"}
DEVICE = {"numpy", "safetensors", "onnxruntime"}  # onnxruntime in its own file
FROM_RUNTIME = {  # what the compiler's side takes from the device's: formats and tables, no session
    "frontend": {"files", "kernels"},
    "plan": {"format", "kernels"},
    "passes": {"kernels"},
    "report": {"format", "kernels"},
}


def imports(code: str) -> Iterator[str]:
    """Every module that the code imports, anywhere in it."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "bnnopt":
            yield from (f"bnnopt.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def of_room(room: str) -> set[tuple[str, str]]:
    """File names of a room, each with a module that it imports."""
    files = (ROOT / room).resolve().rglob("*.py")
    return {(path.name, module) for path in files for module in imports(path.read_text())}


def rooms() -> list[str]:
    return sorted(path.name for path in ROOT.iterdir() if (path / "__init__.py").exists())


def test_every_room_has_its_rule() -> None:
    assert set(rooms()) == MAY.keys()


@pytest.mark.parametrize("room", MAY)
def test_a_room_imports_what_it_may(room: str) -> None:
    ours = {(f, m.split(".")[1]) for f, m in of_room(room) if m.startswith("bnnopt.")}
    assert not {(f, m) for f, m in ours if m not in MAY[room] | LOOSE | {room}}


def test_the_order_of_the_rooms_has_no_cycle() -> None:
    above = dict(MAY)
    while above:
        lowest = [room for room, needed in above.items() if not needed & above.keys()]
        assert lowest, above
        for room in lowest:
            del above[room]


def test_the_device_side_imports_numpy_and_safetensors() -> None:
    others = {
        (file, module)
        for file, module in of_room("runtime")
        if module.split(".")[0] not in DEVICE | set(sys.stdlib_module_names)
    }
    assert {module.split(".")[1] for _, module in others} == {"errors", "runtime", "units"}
    using = {file for file, module in of_room("runtime") if module.startswith("onnxruntime")}
    assert using == {"onnxruntime_backend.py"}


@pytest.mark.parametrize("room", FROM_RUNTIME)
def test_of_the_device_side_the_compiler_reads_formats_and_tables(room: str) -> None:
    parts = {m.split(".")[2] for _, m in of_room(room) if m.startswith("bnnopt.runtime.")}
    assert parts == FROM_RUNTIME[room]


def test_every_form_of_an_import_is_found() -> None:
    code = "import a.b\ndef f():\n    from c.d import e\nfrom bnnopt import ops"
    assert set(imports(code)) == {"a.b", "c.d", "bnnopt.ops"}
