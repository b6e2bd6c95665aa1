"""Whether what a folder says about itself is what a session can go by."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bnnopt.runtime.format import Artifact

DTYPES = frozenset({"float16", "float32", "uint8", "int8", "int16", "int32", "int64", "bool"})
MOST_PARTS = 1 << 16  # of a batch
LOSS_OPTIONS = {"label_smoothing", "class_weights", "ignore_index"}
PRUNING = {"sparsity", "end", "weights"}


def checked_fields(fields: Mapping[str, Any]) -> Artifact:
    """The fields of ``artifact.json``, each of its type and fitting the others.

    Raises
    ------
    ValueError
        Naming the first field that is not.
    """
    if fields.keys() != set(Artifact._fields):
        raise ValueError(f"its fields are {', '.join(fields)}")
    for name, is_right in _FIELDS.items():
        if not is_right(fields[name]):
            raise ValueError(f"{name} is {fields[name]!r}")
    about = Artifact(**fields)
    _check_buffers(about)
    return about


def persistent_bytes(about: Artifact) -> int:
    """Bytes of the buffers that outlive a step."""
    items = {name: np.dtype(about.dtypes[name]).itemsize for name in about.persistent}
    return sum(math.prod(shape) * items[name] for name, shape in about.persistent.items())


def _check_buffers(about: Artifact) -> None:
    """Every name is one of a buffer, and bits have the size of what they stand for."""
    known = about.persistent.keys()
    pruned = about.pruning["weights"] if about.pruning is not None else ()
    named = {*about.dtypes, *about.weights, *about.latent, *about.packed, *pruned}
    strange = sorted((named - known) | (known ^ about.dtypes.keys()))
    if strange:
        raise ValueError(f"{strange[0]!r} is no weight or state of it")
    for name, shape in about.packed.items():
        expected = [*shape[:1], -(-math.prod(shape[1:]) // 8)]
        if list(about.persistent[name]) != expected or about.dtypes[name] != "uint8":
            raise ValueError(f"{name!r} does not hold the bits of {list(shape)}")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_count(least: int) -> Callable[[object], bool]:
    return lambda value: type(value) is int and value >= least


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _is_list(of: Callable[[Any], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(map(of, value))


def _is_table(of: Callable[[Any], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, dict) and all(map(of, value.values()))


def _is_loss_options(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == LOSS_OPTIONS
        and _is_number(value["label_smoothing"])
        and _is_list(_is_number)(value["class_weights"])
        and (value["ignore_index"] is None or type(value["ignore_index"]) is int)
    )


def _is_pruning(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict)
        and value.keys() == PRUNING
        and _is_number(value["sparsity"])
        and 0 < value["sparsity"] < 1
        and _is_count(1)(value["end"])
        and _is_list(_is_text)(value["weights"])
    )


_FIELDS: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("model", "level", "optimizer", "loss"), _is_text),
    "batch_size": _is_count(1),
    "parts": lambda value: _is_count(1)(value) and value <= MOST_PARTS,
    "loss_options": _is_loss_options,
    "learning_rate": _is_number,
    "persistent": _is_table(_is_list(_is_count(1))),
    "dtypes": _is_table(lambda value: _is_text(value) and value in DTYPES),
    "weights": _is_list(_is_text),
    "classes": _is_count(0),
    "passes": _is_list(_is_text),
    "pruning": _is_pruning,
    "packed": _is_table(_is_list(_is_count(1))),
    "latent": _is_list(_is_text),
    "files": _is_table(_is_count(0)),
}
