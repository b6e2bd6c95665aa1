"""How training goes, for people: a bar on a terminal, a line an epoch elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from types import TracebackType

from bnnopt.cli.terminal import say_note
from bnnopt.errors import DivergedError
from bnnopt.runtime.training import Callback, Epoch
from bnnopt.runtime.training import Progress as Training
from bnnopt.units import size

_INTERVAL = 0.1  # seconds between two pictures of the bar
_LEAST = 8  # columns of the bar itself


class Lines(Callback):
    """A line for each epoch, and for each batch that is skipped."""

    def on_batch_skipped(self, progress: Training, error: DivergedError) -> None:
        """See `Callback`."""
        say_note(f"batch {progress.batch} of epoch {progress.epoch + 1} is skipped: {error}")

    def on_epoch_end(self, progress: Training, epoch: Epoch) -> None:
        """See `Callback`."""
        say_note(described(progress, epoch))

    def on_train_end(self, progress: Training) -> None:
        """See `Callback`."""
        if progress.stop:
            say_note(f"stopped after step {progress.session.steps_done}: {progress.stop}")


class Bar(Lines):
    """A bar for all epochs: loss, accuracy, speed, memory and time left, in one line."""

    def __init__(self) -> None:
        self._started = self._drawn = time.monotonic()
        self._begun_at = 0

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._clear()

    def on_train_begin(self, progress: Training) -> None:
        """See `Callback`."""
        self._started, self._begun_at = time.monotonic(), _done(progress)
        self._draw(progress)

    def on_step_end(self, progress: Training) -> None:
        """See `Callback`."""
        if time.monotonic() - self._drawn >= _INTERVAL:
            self._draw(progress)

    def on_batch_skipped(self, progress: Training, error: DivergedError) -> None:
        """See `Callback`."""
        self._clear()
        super().on_batch_skipped(progress, error)

    def on_epoch_end(self, progress: Training, epoch: Epoch) -> None:
        """See `Callback`."""
        self._clear()
        super().on_epoch_end(progress, epoch)

    def _draw(self, progress: Training) -> None:
        self._drawn = time.monotonic()
        done, total = _done(progress), progress.n_epochs * progress.n_batches
        spent, new = self._drawn - self._started, done - self._begun_at
        left = spent / new * (total - done) if new else None
        line = bar_line(progress, done / total, left, shutil.get_terminal_size().columns - 1)
        sys.stderr.write(f"\r{line}\x1b[K")  # and nothing behind it
        sys.stderr.flush()

    def _clear(self) -> None:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def _done(progress: Training) -> int:
    return progress.epoch * progress.n_batches + progress.batch


def bar_line(progress: Training, share: float, seconds_left: float | None, columns: int) -> str:
    """The bar as a line of at most so many columns; what has no room is left out, the last first.

    Parameters
    ----------
    share : float
        Of all steps, how many are done.
    seconds_left : float, optional
        None where nobody knows.
    """
    epoch = min(progress.epoch + 1, progress.n_epochs)
    numbers = _numbers(
        progress.mean_loss, progress.accuracy, progress.images_per_s, progress.seen_bytes
    )
    parts = [f"epoch {epoch}/{progress.n_epochs}", _time(seconds_left), *numbers]
    while len(parts) > 1 and len("  ".join(parts)) + 2 + _LEAST > columns:
        parts.pop()
    head, *tail = parts
    width = columns - len("  ".join(parts)) - 2
    if width < _LEAST:
        return head[:columns]
    filled = int(share * width)
    return "  ".join([head, "#" * filled + "-" * (width - filled), *tail])


def _time(seconds: float | None) -> str:
    """Time left as hours, minutes and seconds."""
    if seconds is None:
        return "-:--:--"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def described(progress: Training, epoch: Epoch) -> str:
    """An epoch in a line."""
    parts = [f"epoch {epoch.epoch}/{progress.n_epochs}"]
    parts += _numbers(epoch.loss, epoch.accuracy, epoch.images_per_s, epoch.seen_bytes)
    valid = _numbers(epoch.valid_loss, epoch.valid_accuracy)
    return "  ".join([*parts, *(["valid:", *valid] if valid else [])])


def _numbers(
    loss: float | None,
    accuracy: float | None,
    speed: float | None = None,
    seen_bytes: int | None = None,
) -> list[str]:
    """Those that there are."""
    return [
        *([] if loss is None else [f"loss {loss:.4f}"]),
        *([] if accuracy is None else [f"accuracy {100 * accuracy:.2f} %"]),
        *([] if speed is None else [f"{speed:.0f}/s"]),
        *([] if seen_bytes is None else [size(seen_bytes)]),
    ]
