"""Tables as text: one sample a row, its label in the last column or in one that is named."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnnopt.errors import UsageError
from bnnopt.runtime.data.dataset import Dataset

LABELS = ("label", "class", "target", "y")
_MOST_DIGITS = 19  # of a label; longer ones are words
DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": " "}


def is_table(path: str) -> bool:
    """Whether a file has the name of a table."""
    return os.path.splitext(path)[1].lower() in DELIMITERS


def read_table(path: str, shape: Sequence[int], dtype: str) -> Dataset:
    """Rows of numbers, such as sensor readings or token ids, reshaped to the model's input.

    Columns are separated by commas in ``.csv``, tabs in ``.tsv``, spaces in ``.txt``.

    The label is in the column called ``label``, ``class``, ``target`` or ``y``, else in the last
    one; where a row has as many numbers as the input, there is none. Words as labels become their
    place in sorted order.

    Parameters
    ----------
    shape : sequence of int
        Of a sample, as the model's input.
    dtype : str
        Of the model's input, float32 or int64.

    Raises
    ------
    UsageError
        If a row is no row of numbers, or has another length than the input.
    """
    header, rows = _rows(path)
    width = math.prod(shape)
    n_columns = len(rows[0][1])
    if n_columns not in (width, width + 1):
        raise UsageError(
            f"{path}: rows have {n_columns} columns, expected {width} numbers as the model's input "
            f"takes ({list(shape)}), and a label"
        )
    column = _label_column(header, n_columns) if n_columns > width else None
    x = np.empty((len(rows), width), dtype)
    parse = float if x.dtype.kind == "f" else int
    labels: list[str] = []
    for place, (line, row) in enumerate(rows):
        if column is not None:
            labels.append(row.pop(column).strip())
        try:
            x[place] = [parse(cell) for cell in row]
        except (OverflowError, ValueError) as error:
            raise UsageError(f"{path}: line {line}: {error}; expected numbers") from None
    y, classes = _targets(labels) if column is not None else (None, ())
    return Dataset({"x": x.reshape(-1, *shape)}, y, path, classes)


def _rows(path: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, empty where there is none, and (line, cells) of each row, of equal length."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            delimiter = DELIMITERS[os.path.splitext(path)[1].lower()]
            reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: not a CSV file ({error})") from None
    header: list[str] = []
    if rows and not any(_is_number(cell) for cell in rows[0][1]):
        header = [cell.strip().lower() for cell in rows.pop(0)[1]]
    if not rows:
        raise UsageError(f"{path}: holds no rows")
    for line, row in rows:
        if len(row) != len(rows[0][1]):
            raise UsageError(
                f"{path}: line {line} has {len(row)} columns, expected {len(rows[0][1])}"
            )
    return header, rows


def _label_column(header: Sequence[str], n_columns: int) -> int:
    return next((header.index(name) for name in LABELS if name in header), n_columns - 1)


def _targets(labels: Sequence[str]) -> tuple[NDArray[Any], list[str]]:
    if all(label.lstrip("-").isdecimal() and len(label) < _MOST_DIGITS for label in labels):
        return np.array([int(label) for label in labels]), []
    if all(_is_number(label) for label in labels):
        return np.array([float(label) for label in labels], np.float32), []
    classes = sorted(set(labels))
    return np.array([classes.index(label) for label in labels]), classes


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
