"""Runs inputs in worker processes: a crash, a hang or a traceback ends one input, not the run.

An input is known by a seed and a number: its kind and its bytes follow from them alone. A worker is
forked from a process that has everything loaded, says before an input which one it is, and how it
ended after it. The parent ends a worker that is silent for too long and starts another one.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import random
import select
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from bnnopt import errors
from bnnopt.errors import LONGEST, BnnoptError
from tests.fuzz.memory import allow
from tests.fuzz.targets import Target

SECONDS = 10.0
LIFE = 400  # inputs of a worker
KEPT = 3  # inputs of a fault that are kept
ACCEPTED, REFUSED = "accepted", "refused"


class Result(NamedTuple):
    """How an input ended: ``accepted``, ``refused``, or the kind of fault and where it lies."""

    number: int
    target: str
    outcome: str
    where: str = ""

    @property
    def is_fault(self) -> bool:
        """Whether it is neither accepted nor refused."""
        return self.outcome not in (ACCEPTED, REFUSED)


@dataclass
class Campaign:
    """What is run, and where.

    Attributes
    ----------
    targets : mapping of str to Target
    seeds : Path
        What `seeds.make_seeds` wrote.
    scratch : Path
        A folder for inputs that are being run.
    seed : int
    seconds : float
        Most of one input.
    """

    targets: Mapping[str, Target]
    seeds: Path
    scratch: Path
    seed: int = 0
    seconds: float = SECONDS
    _kinds: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self._kinds = [name for name, target in self.targets.items() for _ in range(target.share)]
        random.Random(0).shuffle(self._kinds)

    def kind(self, number: int) -> str:
        """The target of an input."""
        return self._kinds[number % len(self._kinds)]

    def make(self, number: int, folder: Path) -> None:
        """Write an input to an empty folder."""
        rng = random.Random(f"{self.seed}:{number}")
        self.targets[self.kind(number)].make(rng, folder, self.seeds)

    def run(self, numbers: Iterable[int], workers: int = 2) -> Iterator[Result]:
        """The results of inputs, in the order in which they end."""
        todo = list(numbers)[::-1]
        crew = [_Worker(self, todo) for _ in range(workers)]
        while crew:
            ready, _, _ = select.select([worker.pipe for worker in crew], [], [], 0.1)
            for worker in list(crew):
                yield from worker.results(worker.pipe in ready)
                if worker.is_done:
                    crew.remove(worker)
                    if todo:
                        crew.append(_Worker(self, todo))

    def run_one(self, number: int) -> Result:
        """Run an input in this process."""
        name, folder = self.kind(number), self.scratch / str(os.getpid())
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self.make(number, folder)
        allow()
        outcome, where = _outcome(self.targets[name], folder, self.seeds)
        return Result(number, name, outcome, where)


def _outcome(target: Target, folder: Path, seeds: Path) -> tuple[str, str]:
    try:
        return (ACCEPTED if target.use(folder, seeds) else REFUSED), ""
    except BnnoptError as error:
        line = str(error)
        if "\n" in line or not line or len(line) > LONGEST:
            return "unclear", f"{len(line)} characters: {line[:200]!r}"
        return REFUSED, type(error).__name__
    except BaseException as error:
        return type(error).__name__, _place(error)


def _place(error: BaseException) -> str:
    """Where it was raised, the last line of bnnopt's own, and what it says."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/fuzz/" not in f.filename and "-packages" not in f.filename]
    last = (own or frames)[-1]
    name = "/".join(Path(last.filename).parts[-2:])
    return f"{name}:{last.lineno} {last.name}: {' '.join(str(error).split())[:120]}"


class _Worker:
    """A process that takes numbers from a list that the parent hands out one by one."""

    def __init__(self, campaign: Campaign, todo: list[int]) -> None:
        self._campaign, self.is_done = campaign, False
        self._given = [todo.pop() for _ in range(min(LIFE, len(todo)))]
        self._todo, self._text, self._current, self._worked = todo, "", -1, 0.0
        self._since = time.monotonic()
        self.pipe, theirs = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(self.pipe)
            self._work(theirs)
        os.close(theirs)

    def _work(self, pipe: int) -> None:
        """In the child."""
        try:
            errors = os.open(
                self._campaign.scratch / f"{os.getpid()}.log", os.O_CREAT | os.O_WRONLY
            )
            os.dup2(errors, 2)
            os.dup2(errors, 1)
            faulthandler.enable(2)
            faulthandler.register(signal.SIGUSR1, 2)
            for number in self._given:
                os.write(pipe, f"{number}\n".encode())
                result = self._campaign.run_one(number)
                os.write(pipe, (json.dumps(result) + "\n").encode())
        finally:
            os._exit(0)

    def results(self, is_ready: bool) -> Iterator[Result]:
        """What the child said since; how it ended if it has."""
        if is_ready:
            said = os.read(self.pipe, 1 << 16).decode()
            *lines, self._text = (self._text + said).split("\n")
            for line in lines:
                self._since = time.monotonic()
                message = json.loads(line)
                if isinstance(message, int):
                    self._current, self._worked = message, self._time()
                else:
                    self._given.remove(message[0])
                    self._current = -1
                    yield Result(*message)
            if not said:
                yield from self._ended()
        elif self._is_late():
            os.kill(self.pid, signal.SIGUSR1)  # where it is
            time.sleep(0.2)
            os.kill(self.pid, signal.SIGKILL)
            yield from self._ended("hang")

    def _is_late(self) -> bool:
        """Of its own time, where the machine is busy; of the clock's, where it waits for ever."""
        waited, most = time.monotonic() - self._since, self._campaign.seconds
        return waited > most and (self._time() - self._worked > most or waited > 6 * most)

    def _time(self) -> float:
        """Seconds that the child's threads have run."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")

    def _ended(self, outcome: str = "crash") -> Iterator[Result]:
        os.close(self.pipe)
        _, status = os.waitpid(self.pid, 0)
        self.is_done = True
        log = self._campaign.scratch / f"{self.pid}.log"
        if self._current >= 0:
            said = log.read_text(errors="replace") if log.exists() else ""
            by = (
                f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {status >> 8}"
            )
            where = by if outcome == "crash" else ""
            self._given.remove(self._current)
            name = self._campaign.kind(self._current)
            yield Result(self._current, name, outcome, f"{where} {_told(said)}".strip())
        log.unlink(missing_ok=True)
        shutil.rmtree(self._campaign.scratch / str(self.pid), ignore_errors=True)
        self._todo.extend(reversed(self._given))


def _told(log: str) -> str:
    """What a sanitizer said, and where Python was, the innermost first."""
    lines = [line.strip() for line in log.splitlines()]
    sanitizer = [line for line in lines if "ERROR: " in line or "runtime error" in line]
    frames = [line.split("/")[-1] for line in lines if line.startswith('File "')]
    return "; ".join([*sanitizer[:1], *frames[:3]])


def load_everything() -> None:
    """Import all but what PyTorch and Flower need: no worker has to, nor reads later edits."""
    root = Path(errors.__file__).parent
    for folder, _, names in os.walk(root, followlinks=True):
        for name in names:
            parts = Path(folder, name).relative_to(root.parent).with_suffix("").parts
            if name.endswith(".py") and not {"torch", "fleet", "__main__"} & set(parts):
                importlib.import_module(".".join(p for p in parts if p != "__init__"))


class Tally:
    """Counts of results; faults of one place are one.

    Attributes
    ----------
    counts : Counter of (str, str)
        By target and outcome.
    """

    def __init__(self, campaign: Campaign, kept: Path | None = None) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self._faults: Counter[tuple[str, str, str]] = Counter()
        self._campaign, self._kept = campaign, kept

    @property
    def n_faults(self) -> int:
        """Inputs that are neither accepted nor refused."""
        return sum(self._faults.values())

    def add(self, result: Result) -> None:
        """Count a result; the input of a fault is written out."""
        self.counts[result.target, result.outcome] += 1
        if not result.is_fault:
            return
        key = result.target, result.outcome, result.where
        self._faults[key] += 1
        if self._faults[key] <= KEPT and self._kept is not None:
            folder = self._kept / f"{result.target}-{result.number}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            try:
                self._campaign.make(result.number, folder)
            except Exception as error:
                print(f"{result.number} cannot be made here: {error!r}", flush=True)
            (folder / "outcome.txt").write_text(f"{result.outcome}: {result.where}\n")
            print(f"{result.target} {result.number}: {result.outcome}: {result.where}", flush=True)

    def lines(self) -> Iterator[str]:
        """A table in Markdown, and each fault."""
        yield "| inputs | refused | accepted | faults |"
        yield "|---|---|---|---|"
        for name in self._campaign.targets:
            found = {o: n for (target, o), n in self.counts.items() if target == name}
            good = found.get(REFUSED, 0), found.get(ACCEPTED, 0)
            faults = sum(found.values()) - sum(good)
            yield f"| {name} | {good[0]:,} | {good[1]:,} | {faults:,} |"
        for (target, outcome, where), n in self._faults.most_common():
            yield f"{n:6d} {target}: {outcome}: {where}"


def say(text: str) -> None:
    """A line for people, at once."""
    print(text, file=sys.stderr, flush=True)
