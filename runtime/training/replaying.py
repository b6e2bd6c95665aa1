"""Keeping samples of a data set for later trainings; see `bnnopt.runtime.replay`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bnnopt.errors import UsageError
from bnnopt.runtime.data import Dataset, Normalization, sampling
from bnnopt.runtime.replay import Latents, Replay, balanced
from bnnopt.runtime.training.evaluation import adopt, prepared

if TYPE_CHECKING:
    from bnnopt.runtime.session import TrainingSession


def remember(
    session: TrainingSession,
    replay: Replay,
    data: Dataset,
    normalization: Normalization | None,
    keep: int,
    seed: int = 0,
) -> Latents:
    """Let the file of `replay` keep so many samples, of each label alike; returns them.

    Those that are there already stay before those of `data`, which `seed` chooses: to remember the
    same data again changes nothing.

    Raises
    ------
    UsageError
        If the data have no targets, or do not fit the session.
    ArtifactError
        If the file cannot be written.
    """
    if data.y is None:
        raise UsageError(f"{data.source}: has no targets; expected an array named y beside x")
    numbers = adopt(normalization, session)
    order = sampling.order(len(data), seed, 0, True)
    targets = data.targets(order)
    assert targets is not None
    chosen = order[balanced(targets, keep)]
    found: Latents | None = None
    for start in range(0, len(chosen), session.batch_size):
        indices = chosen[start : start + session.batch_size]
        x, y = prepared(data.inputs(indices), numbers, session), data.targets(indices)
        part = session.latents(x, np.asarray(y))
        found = part if found is None else found.and_others(part)
    assert found is not None, "a data set has samples"
    return replay.remember(found, keep)
