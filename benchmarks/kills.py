"""Kills training at random instants, as a power cut would, and goes on from what is on the disk.

    python -m benchmarks.kills --kills 1000 --trainings 40

A child, forked from a process that has everything loaded, resumes from a checkpoint, steps and
saves over it, until it is killed. Then the file has to be whole, and its weights and state have to
be the bits that as many steps give that nobody interrupted. The next child goes on from there.

So many of the kills hit ``bnnopt train --checkpoint-every 3`` instead, which is run again with
--resume until it ends: weights and losses of every epoch are those of a run without kills.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import bnnopt
from bnnopt import TrainingSession
from bnnopt.runtime.tensors import read_tensors, tensors_checksum
from bnnopt.runtime.training.checkpoints import Checkpoints
from tests.graphs import write
from tests.passes.networks import BINARY, BINARY_WEIGHTS

BATCH = 16
SAMPLES = 100
EPOCHS = 4
Options = list[str]


class Outcome(NamedTuple):
    """Kills that hit a running process, those in the middle of a save, and steps in all."""

    kills: int
    in_saves: int
    steps: int


class Reference:
    """A session that nobody interrupts: the checksum of its state after any number of steps."""

    def __init__(self, folder: Path) -> None:
        self._session = TrainingSession(folder, threads=1)
        self._sums = [self._now()]

    def after(self, steps: int) -> int:
        """The checksum after so many steps."""
        while len(self._sums) <= steps:
            self._session.step(*batch(self._session.steps_done))
            self._sums.append(self._now())
        return self._sums[steps]

    def _now(self) -> int:
        return tensors_checksum(self._session._persistent)


def batch(step: int) -> tuple[Any, Any]:
    """What step number `step` sees."""
    rng = np.random.default_rng(step)
    return rng.standard_normal((BATCH, 2, 6, 6)).astype("f4"), rng.integers(0, 3, BATCH)


def make_folder(scratch: Path) -> Path:
    """A small binary network with Adam."""
    path = write(BINARY, BINARY_WEIGHTS, scratch)
    bnnopt.optimize(path, batch_size=BATCH, level="O2").save(scratch / "out")
    return scratch / "out"


def kill_saves(scratch: Path, folder: Path, kills: int, rng: random.Random) -> Outcome:
    """Kill a loop of steps and saves so often.

    Raises
    ------
    AssertionError
        If a file is torn, or holds other bits than those of so many steps.
    """
    path, reference, in_saves, steps = scratch / "k.safetensors", Reference(folder), 0, 0
    session = TrainingSession(folder, threads=1)
    session.save(path)

    def loop() -> None:
        session.resume(path)
        while True:
            session.step(*batch(session.steps_done))
            session.save(path)

    for _ in range(kills):
        assert killed(loop, rng.uniform(0, 0.05)), "the child ended by itself"
        in_saves += any(entry.suffix == ".tmp" for entry in scratch.iterdir())
        tensors, metadata = read_tensors(path)
        steps = int(metadata["steps_done"])
        expected = reference.after(steps)
        assert tensors_checksum(tensors) == expected, f"other bits after {steps} steps"
    return Outcome(kills, in_saves, steps)


def kill_trainings(scratch: Path, folder: Path, trainings: int, rng: random.Random) -> Outcome:
    """Kill ``bnnopt train`` at least once in each training, and resume it until it ends.

    Raises
    ------
    AssertionError
        If weights, state or losses are not those of a run without kills.
    """
    data = scratch / "data.npz"
    labels = np.random.default_rng(1).integers(0, 3, SAMPLES)
    x = np.random.default_rng(2).standard_normal((SAMPLES, 2, 6, 6)).astype("f4")
    np.savez(data, x=x + labels[:, None, None, None], y=labels)

    def train(place: Path) -> Callable[[], None]:
        options = ["--data", str(data), "--epochs", str(EPOCHS), "--checkpoint", str(place)]
        every = ["--checkpoint-every", "3", "--resume", "--threads", "1", "--quiet"]
        return lambda: command(["train", str(folder), *options, *every])

    begin = time.perf_counter()
    assert not killed(train(scratch / "whole"), 600), "the run without kills was killed"
    seconds = time.perf_counter() - begin
    expected, kills, in_saves = end_of(folder, scratch / "whole"), 0, 0
    for number in range(trainings):
        place = scratch / f"t{number}"
        hit = 0
        while killed(train(place), rng.uniform(0, seconds) if hit < 20 else 600) or not hit:
            hit += 1
            in_saves += place.exists() and any(e.suffix == ".tmp" for e in place.iterdir())
        assert end_of(folder, place) == expected, f"training {number} ends in other bits"
        kills += hit
    return Outcome(kills, in_saves, trainings)


def end_of(folder: Path, checkpoints: Path) -> tuple[int, int, list[Any]]:
    """Steps done, the checksum of weights and state, and loss and accuracy of each epoch."""
    session = TrainingSession(folder, threads=1)
    session.resume(Checkpoints(checkpoints).found()[0])
    progress: Mapping[str, Any] = json.loads(session.notes["training"])["progress"]
    epochs = [(e["step"], e["loss"], e["accuracy"]) for e in progress["history"]]
    assert len(epochs) == EPOCHS, f"{len(epochs)} epochs"
    return session.steps_done, tensors_checksum(session._persistent), epochs


def command(options: Options) -> None:
    """``bnnopt`` with these options, in this process."""
    from bnnopt.cli import main

    sys.argv = ["bnnopt", *options]
    main()


def killed(work: Callable[[], None], seconds: float) -> bool:
    """Run `work` in a child and kill it after so long; False if it had ended well before."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            work()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        finally:
            os._exit(code)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert status == 0, f"the child ended with {status}"
            return False
        time.sleep(min(0.002, max(0.0, end - time.monotonic())))
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


def main() -> None:
    """Run what the command line says, and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000, help="of loops of steps and saves")
    parser.add_argument("--trainings", type=int, default=40, help="each killed once or more")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="bnnopt-kills-") as made:
        scratch = Path(made)
        folder = make_folder(scratch)
        found = kill_saves(scratch, folder, options.kills, rng)
        print(
            f"steps and saves: {found.kills} kills, {found.in_saves} of them in the middle of a "
            f"save, {found.steps} steps: every file whole, every state bit-equal"
        )
        found = kill_trainings(scratch, folder, options.trainings, rng)
        print(
            f"bnnopt train --resume: {found.steps} trainings, {found.kills} kills, "
            f"{found.in_saves} of them in the middle of a save: weights and losses bit-equal"
        )


if __name__ == "__main__":
    main()
