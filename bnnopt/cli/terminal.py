"""What the command line prints and writes: standard output, progress, and files for people."""

from __future__ import annotations

import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnnopt.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

STANDARD_OUTPUT = "-"


def prepare_streams() -> None:
    """Print names that are no text with escapes, instead of failing; and warnings in one line.

    A stream that is closed (``>&-``) swallows what is printed.
    """
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    warnings.formatwarning = lambda message, *place, **more: f"bnnopt: {message}\n"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def show(renderable: RenderableType) -> None:
    """Print a table, a text or the like on standard output.

    Names come from files: nothing in them is taken as markup.
    """
    if isinstance(renderable, str):
        return say_line(renderable)
    with _standard_output():
        _console().print(renderable)
    return None


def say_line(line: str) -> None:
    """Print a line on standard output as it is, however long."""
    with _standard_output():
        print(line)


def say_note(line: str) -> None:
    """Print a line about the work on standard error, which leaves standard output to its result."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _console(stderr: bool = False) -> Console:
    """Made for each use: the width may have changed since. A device has no rich."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


@contextmanager
def _standard_output() -> Iterator[None]:
    """A full disk is one line; a reader that has gone away is left to click."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        with suppress(OSError, io.UnsupportedOperation):  # or the flush at exit fails again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise UsageError(f"standard output: cannot be written: {error.strerror}") from None


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A line on standard error that says what is going on, where that is a terminal."""
    from rich.text import Text

    with _console(stderr=True).status(Text("starting")) as status:
        yield lambda line: status.update(Text(line))


def check_writable(path: Path) -> None:
    """Refuse a file that cannot be written, before the long work rather than after it.

    Raises
    ------
    UsageError
        One line that says what is in the way.
    """
    parent = path.absolute().parent
    try:
        is_folder, has_parent = path.is_dir(), parent.is_dir()
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from None
    if is_folder:
        raise UsageError(f"{path}: is a folder; expected a file to write to")
    if not has_parent:
        raise UsageError(f"{path}: cannot be written: there is no folder {parent}")
    target = path if path.exists() and not path.is_file() else parent
    if not os.access(target, os.W_OK):
        raise UsageError(f"{path}: cannot be written: no permission in {target}")


def write_file(path: Path, content: bytes) -> None:
    """Write a file, complete or not at all.

    What is no regular file (a pipe, ``/dev/null``) is written to, not replaced.

    Raises
    ------
    UsageError
        If it cannot be written; what was there is still there.
    """
    check_writable(path)
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
        else:
            _replace(path.resolve(), content)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from None


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def check_json_target(target: str | None) -> None:
    """Refuse a ``--json`` that cannot be written; see `check_writable`."""
    if target is not None and target != STANDARD_OUTPUT:
        check_writable(Path(target))


def check_targets(html_file: Path | None, json_target: str | None) -> None:
    """Refuse files that cannot be written; see `check_writable`."""
    check_json_target(json_target)
    if html_file is not None:
        check_writable(html_file)


def answer(
    json_target: str | None,
    content: dict[str, Any],
    tables: RenderableType,
    html_file: Path | None = None,
    page: str | None = None,
) -> None:
    """Print the tables, and write what ``--json`` and ``--html`` ask for, and say so.

    JSON on standard output is all that is printed.
    """
    text = json.dumps(content, indent=1, allow_nan=False)
    if html_file is not None and page is not None:
        write_file(html_file, page.encode(errors="backslashreplace"))
    if json_target == STANDARD_OUTPUT:
        say_line(text)
        return
    if json_target is not None:
        write_file(Path(json_target), text.encode() + b"\n")
    show(tables)
    if html_file is not None:
        say_line(f"written: {html_file}; open it in a browser")
