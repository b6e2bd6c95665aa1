"""What may look on while a session trains."""

from __future__ import annotations

import json
import math
from typing import IO, TYPE_CHECKING

from bnnopt.errors import DivergedError
from bnnopt.runtime.training.history import Epoch

if TYPE_CHECKING:
    from bnnopt.runtime.training.loop import Progress


class Callback:
    """Called by `fit`; subclasses override what they need.

    Every method but the last may set ``progress.stop`` to a reason, and training ends after it.
    """

    def on_train_begin(self, progress: Progress) -> None:
        """Before the first step; after a resume at the place where it goes on."""

    def on_step_end(self, progress: Progress) -> None:
        """After each step: ``progress.loss`` is its loss."""

    def on_batch_skipped(self, progress: Progress, error: DivergedError) -> None:
        """Where a batch would have made the weights infinite, and was left out instead."""

    def on_epoch_end(self, progress: Progress, epoch: Epoch) -> None:
        """After an epoch and its validation."""

    def on_train_end(self, progress: Progress) -> None:
        """After the last step, or where training was stopped."""


class JsonLines(Callback):
    """One JSON object a line and epoch, written at once: what a device without a screen leaves.

    Parameters
    ----------
    file : text file
        Opened for writing; stays open.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def on_epoch_end(self, progress: Progress, epoch: Epoch) -> None:
        """See `Callback`."""
        self._file.write(json.dumps(epoch._asdict()) + "\n")
        self._file.flush()


class EarlyStop(Callback):
    """Stops when the loss has not become lower for `patience` epochs.

    The validation loss where there is one, else the loss of training.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience

    def on_epoch_end(self, progress: Progress, epoch: Epoch) -> None:
        """See `Callback`; the history alone decides, so a resumed run stops at the same epoch."""
        losses = [e.loss if e.valid_loss is None else e.valid_loss for e in progress.history]
        known = [math.inf if loss is None else loss for loss in losses]
        if len(known) - 1 - known.index(min(known)) >= self._patience:
            progress.stop = f"no lower loss for {self._patience} epochs"
