"""``train --tensorboard``: event files, by tensorboardX (an extra)."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from bnnopt.errors import UsageError
from bnnopt.runtime.training import Callback, Epoch, Progress

_NAMES = ("loss", "accuracy", "valid_loss", "valid_accuracy", "images_per_s", "seen_bytes")


class Events(Callback):
    """Each number of an epoch as a scalar at its step.

    Parameters
    ----------
    folder : Path
        Where TensorBoard looks; made if it is not there. A resumed run writes on.

    Raises
    ------
    UsageError
        If tensorboardX is not installed, or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise UsageError(
                "--tensorboard: needs tensorboardX; pip install 'bnnopt[tensorboard]'"
            ) from None
        try:
            self._writer = SummaryWriter(str(folder))
        except OSError as error:
            raise UsageError(f"{folder}: cannot be written: {error.strerror}") from None

    def __enter__(self) -> Events:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()

    def on_epoch_end(self, progress: Progress, epoch: Epoch) -> None:
        """See `Callback`."""
        for name in _NAMES:
            value = getattr(epoch, name)
            if value is not None:
                self._writer.add_scalar(name, value, epoch.step)
        self._writer.flush()
