"""How training goes, for people: a bar on a terminal, a line an epoch elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from bnnopt.cli.terminal import say_note
from bnnopt.runtime.training import Callback, Epoch
from bnnopt.runtime.training import Progress as Training
from bnnopt.units import size


class Lines(Callback):
    """A line for each epoch."""

    def on_epoch_end(self, progress: Training, epoch: Epoch) -> None:
        """See `Callback`."""
        say_note(described(progress, epoch))

    def on_train_end(self, progress: Training) -> None:
        """See `Callback`."""
        if progress.stop:
            say_note(f"stopped after step {progress.session.steps_done}: {progress.stop}")


class Bar(Lines):
    """A bar for the epoch that is running: loss, accuracy, speed, memory and time left."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task: TaskID | None = None

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def on_train_begin(self, progress: Training) -> None:
        """See `Callback`."""
        total = progress.n_epochs * progress.n_batches
        self._task = self._bar.add_task("starting", total=total, numbers="")
        self.on_step_end(progress)

    def on_step_end(self, progress: Training) -> None:
        """See `Callback`."""
        assert self._task is not None
        epoch = min(progress.epoch + 1, progress.n_epochs)
        self._bar.update(
            self._task,
            completed=progress.epoch * progress.n_batches + progress.batch,
            description=f"epoch {epoch}/{progress.n_epochs}",
            numbers="  ".join(
                _numbers(
                    progress.mean_loss,
                    progress.accuracy,
                    progress.images_per_s,
                    progress.seen_bytes,
                )
            ),
        )


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
