"""Who looks on while a step runs: at its scores, at its time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from bnnopt.runtime.executor import Observer
from bnnopt.runtime.format import Program, StepSpec
from bnnopt.runtime.parts import Part

if TYPE_CHECKING:
    from bnnopt.runtime.replay import Latents, Replay

Array = NDArray[Any]


class PartObserver(Protocol):
    """Looks at what the nodes of a training step give."""

    def begin(self, part: Part) -> Observer:
        """Before some samples of a step; what is returned is called after each node."""


class Hits:
    """Labels whose score is the largest, before the update.

    Parameters
    ----------
    scores : int
        The value of the program that has a score for each class along axis 1.
    ignored : int, optional
        The label that counts for nothing.

    Attributes
    ----------
    hits, labels : int
        Of all parts so far.
    """

    def __init__(self, scores: int, ignored: int | None) -> None:
        self.hits = self.labels = 0
        self._scores, self._ignored = scores, ignored

    def begin(self, part: Part) -> Observer:
        """See `PartObserver`."""
        (truth,) = part.labels
        truth = truth[: len(truth) // part.times]  # each once

        def count(step: StepSpec, outputs: tuple[Array, ...]) -> None:
            if self._scores in step.outputs:
                place = [index for index in step.outputs if index >= 0].index(self._scores)
                counts = truth != self._ignored if self._ignored is not None else truth == truth
                found = outputs[place][: len(truth)].argmax(axis=1) == truth
                self.hits += int((found & counts).sum())
                self.labels += int(counts.sum())

        return count


class Injector:
    """Replayed samples at the end of a batch.

    Parameters
    ----------
    replay : Replay
        Knows where they belong.
    latents : Latents
        What the front gave for them.
    """

    def __init__(self, replay: Replay, latents: Latents) -> None:
        self._replay, self._latents = replay, latents

    def begin(self, part: Part) -> Observer:
        """See `PartObserver`."""
        return self._replay.injector(self._latents, part)


class Profile:
    """The time that each node takes.

    Parameters
    ----------
    program : Program
        The training step.
    """

    def __init__(self, program: Program) -> None:
        self._nodes = {step.name: step.operator for step in program.steps if not step.is_view}
        self._seconds = dict.fromkeys(self._nodes, 0.0)
        self._calls = dict.fromkeys(self._nodes, 0)
        self._last = 0.0
        self._steps = 0

    def begin(self, part: Part) -> Observer:
        """See `PartObserver`."""
        self._steps += part.is_last
        self._last = time.perf_counter()
        return self._take

    def _take(self, step: StepSpec, outputs: tuple[Array, ...]) -> None:
        now = time.perf_counter()
        if step.name in self._nodes:
            self._seconds[step.name] += now - self._last
            self._calls[step.name] += 1
        self._last = now

    def to_dict(self, seen_bytes: int) -> dict[str, Any]:
        """As ``profile.json`` has it: ``nodes`` in their order, ``seen_bytes``, ``steps``.

        A node has ``name``, ``op``, ``seconds`` (of all calls) and ``calls``.
        """
        nodes = [
            {"name": n, "op": op, "seconds": self._seconds[n], "calls": self._calls[n]}
            for n, op in self._nodes.items()
        ]
        return {"nodes": nodes, "seen_bytes": seen_bytes, "steps": self._steps}


def together(observers: list[Observer]) -> Observer | None:
    """All of them as one; None of none."""
    if len(observers) < 2:
        return observers[0] if observers else None

    def call(step: StepSpec, outputs: tuple[Array, ...]) -> None:
        for observer in observers:
            observer(step, outputs)

    return call
