"""Predictions and scores over a data set, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bnnopt.errors import UsageError
from bnnopt.runtime.data import Batch, Dataset, Normalization
from bnnopt.runtime.data.normalization import AS_IT_IS
from bnnopt.runtime.feeding import check_classes
from bnnopt.runtime.format import Artifact
from bnnopt.runtime.predictor import Predictor
from bnnopt.runtime.training.metrics import Scores

if TYPE_CHECKING:
    from bnnopt.runtime.session import TrainingSession

Array = NDArray[Any]
Network: TypeAlias = "TrainingSession | Predictor"


def adopt(normalization: Normalization | None, session: Network) -> Normalization:
    """What batches are to be normalised by; a session that takes bytes does it by that itself.

    None stands for what such a session has, and for no change of others. A `Predictor` has its
    numbers inside.
    """
    if normalization is not None and session.takes_bytes and not isinstance(session, Predictor):
        session.normalize(normalization)
    return normalization or AS_IT_IS


def prepared(x: Batch, normalization: Normalization, session: Network) -> Batch:
    """A batch as the session takes it: float32 and normalised, or integers as they are."""
    if isinstance(x, dict):
        known = session.inputs
        return {
            name: _prepared(array, normalization, known[name].dtype) if name in known else array
            for name, array in x.items()
        }
    return _prepared(x, normalization, next(iter(session.inputs.values())).dtype)


def _prepared(x: Array, normalization: Normalization, dtype: str) -> Array:
    if dtype == "uint8":
        return x
    if np.dtype(dtype).kind != "f":
        return x.astype(dtype, copy=False) if x.dtype.kind in "iub" else x
    return x if normalization.is_identity and x.dtype.kind == "f" else normalization(x)


def predictions(
    session: Network,
    data: Dataset,
    normalization: Normalization | None,
    output: str | None = None,
) -> Iterator[tuple[NDArray[np.int64], Array]]:
    """Indices of each batch, in order, and an output for it, the first if not named."""
    numbers = adopt(normalization, session)
    for start in range(0, len(data), session.batch_size):
        indices = np.arange(start, min(start + session.batch_size, len(data)))
        x = prepared(data.inputs(indices), numbers, session)
        yield indices, session.predict(x, output)


def evaluate(
    session: Network,
    data: Dataset,
    normalization: Normalization | None,
    output: str | None = None,
) -> Scores:
    """The scores of `session` on `data`, with running statistics; memory for one batch only.

    Of another `output` than the first, which the loss is of, there is no loss; where it has an axis
    of classes and targets are integers, there is an accuracy.

    Raises
    ------
    UsageError
        If the data have no targets, or these do not fit the output.
    """
    if data.y is None:
        raise UsageError(f"{data.source}: has no targets; expected an array named y beside x")
    about = _about_output(session, data.y.dtype.kind in "iu", output)
    scores = Scores(about.loss, about.classes, about.loss_options)
    for indices, found in predictions(session, data, normalization, output):
        targets = data.targets(indices)
        assert targets is not None
        scores.add(found, _fitted(targets, found, about, data.source))
    return scores


def _about_output(session: Network, of_classes: bool, output: str | None) -> Artifact:
    """What the folder says, or would if the loss were of this output."""
    about, (first, *_) = session.about, session.outputs
    if output in (None, first) and about.loss != "none":
        return about
    spec = session.outputs.get(output or first)
    classes = spec.shape[1] if spec is not None and of_classes and len(spec.shape) > 1 else 0
    return about._replace(loss="none", classes=max(classes, 0))


def _fitted(targets: Array, output: Array, about: Artifact, source: str) -> Array:
    """Targets of the shape and kind that belong to the output."""
    classes = about.classes
    expected = (len(output), *output.shape[2:]) if classes else output.shape
    if targets.shape != expected:
        raise UsageError(f"{source}: y is {list(targets.shape)}, expected {list(expected)}")
    if not classes:
        return targets
    check_classes(targets, classes, f"{source}: y", about.loss_options["ignore_index"])
    return targets.astype(np.int64, copy=False)
