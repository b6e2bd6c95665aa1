"""``bnnopt verify --torch``: a folder against the module that it came from."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from bnnopt.cli.terminal import answer, progress
from bnnopt.errors import UsageError, VerificationError


def verify_with_torch(folder: Path, source: str, seed: int, json_file: str | None) -> None:
    """Compare, print the table, and fail where the two differ."""
    try:
        from bnnopt.torch.checking import compare_with_torch
        from bnnopt.torch.text import render_check
    except ImportError:
        raise UsageError("--torch: is not installed; pip install 'bnnopt[torch]'") from None
    module, example = _made(source)
    with progress() as say:
        say("running a step here and in PyTorch")
        found = compare_with_torch(module, example, folder, None, seed)
    answer(json_file, found.to_dict(), render_check(found, f"{folder} against {source}"))
    if found.defect:
        raise VerificationError(f"{folder}: differs from PyTorch: {found.defect}")


def _made(source: str) -> tuple[Any, Any]:
    """What the function of a file gives: a module, and an example or None."""
    file, _, name = source.rpartition(":")
    path = Path(file)
    if not file or not os.path.isfile(path):
        raise UsageError(f"--torch {source}: no such file; expected FILE.py:FUNCTION")
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = code
    try:
        spec.loader.exec_module(code)
        made = getattr(code, name)()
    except Exception as error:  # whatever the user's code raises
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UsageError(f"--torch {source}: {reason}; correct the file") from None
    return made if isinstance(made, tuple) and len(made) == 2 else (made, None)
