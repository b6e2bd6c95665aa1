"""What a budget bought, and what others would buy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bnnopt.passes import Pass


@dataclass(frozen=True)
class Point:
    """One choice: its passes, its plan and its price.

    Attributes
    ----------
    passes : tuple of Pass
        In their order, with the values that they leave.
    peak_bytes : int
        Of its plan.
    lossy : tuple of str
        The passes that change the numbers, of those that found something to do.
    loss : float
        Its loss class: how far those passes may turn gradients, see `price`; 0 if none ran.
    time : float
        Predicted time of a step, of that which computes nothing twice.
    left : int
        Values that are kept rather than computed again.
    process_bytes : int
        What a process takes beside the plan, see `bnnopt.plan.process_bytes`.
    """

    passes: tuple[Pass, ...]
    peak_bytes: int
    lossy: tuple[str, ...]
    loss: float
    time: float
    left: int = 0
    process_bytes: int = 0

    @property
    def needed_bytes(self) -> int:
        """What a budget is held against: the plan, and the process beside it."""
        return self.peak_bytes + self.process_bytes

    @property
    def title(self) -> str:
        """The loss class in words."""
        if not self.passes:
            return "no pass"
        return f"lossy: {', '.join(self.lossy)}" if self.lossy else "lossless"

    @property
    def price(self) -> tuple[float, float]:
        """What is compared: loss first, then time."""
        return self.loss, self.time

    def beats(self, other: Point) -> bool:
        """Whether it is no worse in memory, loss and time, and better in one."""
        mine, others = ((round(p.loss, 9), round(p.time, 9), p.needed_bytes) for p in (self, other))
        return mine != others and all(a <= b for a, b in zip(mine, others, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """For the report."""
        return {
            "peak_bytes": self.peak_bytes,
            "process_bytes": self.process_bytes,
            "title": self.title,
            "lossless": not self.lossy,
            "loss": self.loss,
            "cost": self.time,
            "kept_values": self.left,
            "passes": [p.spec for p in self.passes],
        }


def frontier(points: Iterable[Point]) -> list[Point]:
    """The points that no other beats, by memory."""
    unique = list({(p.needed_bytes, p.price): p for p in points}.values())
    left = [p for p in unique if not any(other.beats(p) for other in unique)]
    return sorted(left, key=lambda p: p.needed_bytes)


@dataclass(frozen=True)
class Spending:
    """The choice that was made, and the others.

    Attributes
    ----------
    solver : str
        ``highs``, or ``greedy`` where scipy is not installed.
    asked : str
        The budget, as it was given.
    chosen : Point
        The choice.
    points : tuple of Point
        All that were tried and no other beats, by memory.
    seconds : float
        That the search took.
    """

    solver: str
    asked: str
    chosen: Point
    points: tuple[Point, ...]
    seconds: float

    @property
    def smaller(self) -> Point | None:
        """The next one with less memory."""
        below = [p for p in self.points if p.needed_bytes < self.chosen.needed_bytes]
        return below[-1] if below else None

    @property
    def larger(self) -> Point | None:
        """The next one with more memory."""
        above = (p for p in self.points if p.needed_bytes > self.chosen.needed_bytes)
        return next(above, None)

    def to_dict(self) -> dict[str, Any]:
        """For the report."""
        return {
            "solver": self.solver,
            "asked": self.asked,
            "chosen": self.chosen.to_dict(),
            "frontier": [p.to_dict() for p in self.points],
            "seconds": round(self.seconds, 3),
        }
