"""The kernels' C sources: which files a set of functions needs, and what they declare."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import bnnopt.runtime
from bnnopt.errors import UsageError

# Of one processor, or of an operating system: an emitted program has one thread and no choice.
LEFT_OUT = re.compile(r"_avx\w*\.c$|^bnn_(threads|cpu)\.c$")
_INCLUDE = re.compile(r'#include "([^"]+)"')
_NAME = re.compile(r"\bbnn_\w+")
# At the beginning of a line, so that what is static is not found; a table of functions as well.
_DEFINED = re.compile(
    r"^(?:BNN_EXPORT )?(?:const )?\w+ \*?(bnn_\w+)(?:\(|\[| =)|^#define CORES (bnn_\w+)", re.M
)
_EXPORTED = re.compile(r"^BNN_EXPORT ((?:int|void) (bnn_\w+)\([^)]*\))\s*\{", re.M)
_MACRO = re.compile(r"^#define (\w+)\((NAME[^)]*)\)((?:.*\\\n)*.*)\n", re.M)


class Sources(NamedTuple):
    """What a program is compiled with.

    Attributes
    ----------
    files : mapping of str to str
        Names to contents, headers too.
    prototypes : list of str
        Of the functions that were asked for, without the semicolon.
    """

    files: Mapping[str, str]
    prototypes: list[str]


def sources_of(functions: Collection[str]) -> Sources:
    """The files that define some of the exported functions, and all that those need.

    Raises
    ------
    UsageError
        If bnnopt is installed without its sources.
    """
    texts = _texts()
    defined = {name: file for file in texts for name in _definitions(file)}
    prototypes = {n: p for f in texts for n, p in _prototypes(f).items() if n in functions}
    needed: set[str] = set()
    waiting = [defined[name] for name in functions]
    while waiting:
        file = waiting.pop()
        if file in needed:
            continue
        needed.add(file)
        waiting += _INCLUDE.findall(texts[file])
        waiting += {defined[n] for n in _NAME.findall(texts[file]) if n in defined} - needed
    return Sources(
        {f: texts[f] for f in sorted(needed)}, [prototypes[n] for n in sorted(prototypes)]
    )


@functools.cache
def _texts() -> Mapping[str, str]:
    """The contents of the sources that any machine compiles, by name."""
    for folder in bnnopt.runtime.__path__:
        path = Path(folder, "csrc")
        if path.is_dir():
            names = sorted(n for n in os.listdir(path) if n.endswith((".c", ".h", ".inc")))
            return {n: (path / n).read_text() for n in names if not LEFT_OUT.search(n)}
    raise UsageError(
        "emit: the C sources of the kernels are not installed; expected csrc/ beside "
        "bnnopt.runtime: install bnnopt's wheel, or from a checkout"
    )


def _definitions(file: str) -> Iterator[str]:
    """The functions and tables that a file defines for others."""
    if file.endswith(".c"):
        yield from (a or b for a, b in _DEFINED.findall(_expanded(file)))


def _prototypes(file: str) -> Mapping[str, str]:
    return {name: " ".join(text.split()) for text, name in _EXPORTED.findall(_expanded(file))}


@functools.cache
def _expanded(file: str) -> str:
    """A source with the functions that its macros of a NAME define behind it."""
    text = _texts()[file]
    made = [text]
    for macro, _, body in _MACRO.findall(text):
        body = re.sub(r"\s*\\\n\s*", "\n", body)
        for name in re.findall(rf"^{macro}\((\w+)", text, re.M):
            made.append(re.sub(r"(?:##)?\bNAME\b(?:##)?", name, body))
    return "\n".join(made)
