"""Files that are read whole, and files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import zlib
from _thread import get_ident
from collections.abc import Iterator

StrPath = str | os.PathLike[str]
_TEMPORARY = ".bnnopt-"


def reason_of(error: OSError | ValueError) -> str:
    """What went wrong, without the path."""
    return getattr(error, "strerror", None) or str(error)


def shown_path(path: StrPath) -> str:
    """A path for a message, cut where it goes on and on, and in one line."""
    text = os.fsdecode(path)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= 200 else f"{text[:200]} .."


def check_regular(path: StrPath) -> None:
    """Refuse what is no regular file: reading a pipe or a device may never end.

    Raises
    ------
    OSError
        If it is something else, or is not there.
    ValueError
        If the path has a NUL in it.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, expected a file", os.fspath(path))


@contextlib.contextmanager
def replacing(path: StrPath) -> Iterator[str]:
    """Yield the name of a temporary file, which then takes the place of `path`.

    A crash at any moment leaves the old file or the new one; what a killed process has left is
    removed by the next write to the same path. A link stays, and leads to what is written. Threads
    and processes may write to one path: the last one to end has it.

    Raises
    ------
    OSError
        If it cannot be written; the old file is untouched.
    ValueError
        If the path has a NUL in it.
    """
    target = os.path.realpath(os.fsdecode(path))
    with contextlib.suppress(FileNotFoundError):
        check_regular(target)
    folder, name = os.path.split(target)
    prefix = f"{_TEMPORARY}{zlib.crc32(os.fsencode(name)):08x}-"
    _remove_abandoned(folder, prefix)
    temporary = os.path.join(folder, f"{prefix}{os.getpid()}-{get_ident()}.tmp")
    try:
        open(temporary, "ab").close()
        mode = os.stat(temporary).st_mode
        yield temporary
        os.chmod(temporary, mode)  # whoever wrote it may have made it the owner's alone
        _sync(temporary)
        os.replace(temporary, target)
        _sync(folder)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _remove_abandoned(folder: str, prefix: str) -> None:
    """Remove the temporary files of processes that are no more."""
    for name in os.listdir(folder):
        if name.startswith(prefix) and name.endswith(".tmp"):
            pid = name.removeprefix(prefix).split("-")[0]
            if pid.isdecimal() and not _is_alive(int(pid)):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(folder, name))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _sync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
