"""The server of a fleet: a Flower ``ServerApp`` that measures, writes its state, and goes on."""

from __future__ import annotations

import json
import math
import os
import time
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from bnnopt.errors import ArtifactError
from bnnopt.fleet.layout import Layout, State
from bnnopt.fleet.options import RunOptions
from bnnopt.fleet.strategies import BinaryAverage, PlainAverage, SignMajority, SignStrategy
from bnnopt.runtime import TrainingSession
from bnnopt.runtime.checkpoint import read_checkpoint, write_checkpoint
from bnnopt.runtime.data import open_data
from bnnopt.runtime.data.normalization import choose
from bnnopt.runtime.training import evaluate

STATE, NETWORK, STRATEGY = "state.safetensors", "network.safetensors", "strategy"


def server_app() -> ServerApp:
    """The app of a server."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        serve(grid, RunOptions.of(context.run_config))

    return app


def serve(grid: Grid, options: RunOptions) -> None:
    """Run the rounds that are left; each is written to the checkpoints and measured.

    Raises
    ------
    UsageError
        If options or data do not fit the network.
    ArtifactError
        If folder or checkpoint cannot be read, or the checkpoint is of another fleet.
    """
    session = TrainingSession(options.folder)
    layout = layout_of(session, options)
    state, done = _resumed(options, layout.flat(session.parameters()))
    session.load_parameters(layout.named(state))
    if done < options.rounds:
        strategy = make_strategy(layout, state, options, done)
        strategy.start(
            grid,
            strategy.record(state),
            num_rounds=options.rounds - done,
            timeout=options.timeout,
            evaluate_fn=_Book(session, strategy, options, done).after,
        )


def layout_of(session: TrainingSession, options: RunOptions) -> Layout:
    """What travels under the strategy that the options name."""
    if options.strategy == "fedavg":
        return Layout.floats(session)
    return Layout.of(session, options.strategy == "binary-average")


def make_strategy(
    layout: Layout, state: State, options: RunOptions, done: int = 0
) -> SignStrategy | PlainAverage:
    """The strategy that the options name, `done` rounds after the first."""
    sampling: dict[str, Any] = {
        "fraction_train": options.fraction,
        "min_train_nodes": min(2, options.devices),
        "min_available_nodes": options.devices,
    }
    if options.strategy == "fedavg":
        return PlainAverage(layout, **sampling)
    sampling |= {"first_round": done, "seed": options.seed}
    if options.strategy == "binary-average":
        return BinaryAverage(layout, **sampling)

    def rate(number: int) -> float:
        return options.rate * (1 + math.cos(math.pi * (number - 1) / options.rounds)) / 2

    return SignMajority(layout, state, rate, options.weighted, **sampling)


class _Book:
    """What the server does after each round: measure the network, write a line and checkpoints."""

    def __init__(
        self,
        session: TrainingSession,
        strategy: SignStrategy | PlainAverage,
        options: RunOptions,
        done: int,
    ) -> None:
        self._session, self._strategy, self._options = session, strategy, options
        self._done, self._begin = done, time.monotonic()
        spec = next(iter(session.inputs.values()))
        shape = spec.shape_at(1)[1:]
        self._valid = open_data(options.valid, shape, spec.dtype, "test") if options.valid else None

    def after(self, number: int, arrays: ArrayRecord) -> MetricRecord:
        """Take the state of a round; Flower's ``evaluate_fn``."""
        state, number = self._strategy.state(arrays), number + self._done
        self._session.load_parameters(self._strategy.layout.named(state))
        traffic = self._strategy.traffic
        told: dict[str, Any] = {
            "seconds": round(time.monotonic() - self._begin, 3),
            "server-seconds": round(traffic.seconds, 3),
            "bytes-up": traffic.up,
            "bytes-down": traffic.down,
            "refused": len(self._strategy.refused),
            **self._scores(),
        }
        self._write(state, number)
        if self._options.log:
            with open(self._options.log, "a", encoding="utf-8") as file:
                file.write(json.dumps({"round": number, **told}) + "\n")
        return MetricRecord(told)

    def _scores(self) -> dict[str, float]:
        if self._valid is None:
            return {}
        normalization, _ = choose(self._valid)
        scores = evaluate(self._session, self._valid, normalization).to_dict()
        return {name: value for name, value in scores.items() if isinstance(value, float)}

    def _write(self, state: State, number: int) -> None:
        folder = self._options.checkpoints
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise ArtifactError(f"{folder}: cannot be written: {error.strerror}") from None
        self._session.save(os.path.join(folder, NETWORK))
        notes = {STRATEGY: self._options.strategy}
        write_checkpoint(os.path.join(folder, STATE), state._asdict(), number, notes)


def _resumed(options: RunOptions, first: State) -> tuple[State, int]:
    """The state of a checkpoint and the rounds that it has seen; where there is none, the first."""
    path = os.path.join(options.checkpoints, STATE)
    if not os.path.exists(path):
        return first, 0
    tensors: Any = {name: np.empty_like(array) for name, array in first._asdict().items()}
    found = read_checkpoint(path, tensors)
    strategy = found.notes.get(STRATEGY)
    if strategy != options.strategy:
        raise ArtifactError(
            f"{path}: is of strategy {strategy}, not {options.strategy}; remove it, or choose "
            "another folder for checkpoints"
        )
    return State(**tensors), found.steps_done
