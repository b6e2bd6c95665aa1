"""What training went through, epoch by epoch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple


class Epoch(NamedTuple):
    """One epoch; None where there is no such number.

    Attributes
    ----------
    epoch : int
        1 is the first.
    step : int
        Steps done at its end, since the first epoch.
    loss, accuracy : float
        Means over the epoch's batches, each before its update.
    valid_loss, valid_accuracy : float
        Of the validation data at its end, with running statistics.
    images_per_s : float
        Samples trained in a second, without validation.
    seen_bytes : int
        The most memory that training took so far; of the native backend.
    """

    epoch: int
    step: int
    loss: float | None
    accuracy: float | None
    valid_loss: float | None
    valid_accuracy: float | None
    images_per_s: float | None
    seen_bytes: int | None


class History:
    """The epochs of a training, those before a resume included."""

    def __init__(self, epochs: Iterable[Epoch] = ()) -> None:
        self.epochs = list(epochs)

    def __len__(self) -> int:
        return len(self.epochs)

    def __iter__(self) -> Iterator[Epoch]:
        return iter(self.epochs)

    def __getitem__(self, name: str) -> list[Any]:
        """One number over the epochs, such as ``history["valid_accuracy"]``."""
        return [getattr(epoch, name) for epoch in self.epochs]

    def __repr__(self) -> str:
        last = self.epochs[-1]._asdict() if self.epochs else {}
        words = ", ".join(f"{k}={v:.4g}" for k, v in last.items() if v is not None)
        return f"History({len(self)} epochs; last: {words})" if words else "History(no epochs)"

    def to_list(self) -> list[dict[str, Any]]:
        """For JSON."""
        return [epoch._asdict() for epoch in self.epochs]

    @classmethod
    def from_list(cls, rows: Iterable[Mapping[str, Any]]) -> History:
        """From what `to_list` gave."""
        return cls(Epoch(**row) for row in rows)
