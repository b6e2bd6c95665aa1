"""Samples for an emitted program: the file that its ``main.c`` reads."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnnopt.emit.model import Model
from bnnopt.errors import ArtifactError, UsageError
from bnnopt.runtime.data import Batch
from bnnopt.runtime.files import reason_of

Array = NDArray[Any]


def write_samples(model: Model, batches: Iterable[tuple[Batch, Array | None]], path: Path) -> int:
    """Write samples one behind the other.

    A sample is the values of its inputs in the order of ``bnn_train_step``'s parameters, then its
    label, all in the types of the header, little-endian, nothing in between.

    Parameters
    ----------
    model : Model
    batches : iterable of (x, y)
        As a session's `step` takes them.
    path : Path
        The file, replaced if it is there.

    Returns
    -------
    int
        Samples.

    Raises
    ------
    UsageError
        If they have no labels where the step takes some, or another shape.
    ArtifactError
        If the file cannot be written.
    """
    n = 0
    try:
        with path.open("wb") as file:
            for x, y in batches:
                records = _records(model, x, y)
                file.write(records.tobytes())
                n += len(records)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written: {reason_of(error)}") from None
    return n


def _records(model: Model, x: Batch, y: Array | None) -> NDArray[np.uint8]:
    """(n, bytes of a sample)."""
    columns = []
    for parameter in model.parameters(model.training):
        spec = parameter.spec
        values = y if parameter.is_label else x[spec.name] if isinstance(x, dict) else x
        if values is None:
            raise UsageError("emit: the samples have no labels, which the step takes; expected y")
        array = np.ascontiguousarray(values, np.dtype(spec.dtype).newbyteorder("<"))
        columns.append(array.reshape(len(array), -1).view(np.uint8))
        found, expected = columns[-1].shape[1], model.sample_bytes(parameter)
        if found != expected:
            raise UsageError(
                f"emit: a sample of {spec.name!r} has {found} bytes of {spec.dtype}, the step "
                f"takes {expected}"
            )
    return np.concatenate(columns, axis=1)
