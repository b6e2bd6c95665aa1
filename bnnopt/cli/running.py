"""What ``train``, ``eval`` and ``predict`` set up: a session, data, weights and how to train."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any

import numpy as np

from bnnopt.cli.terminal import STANDARD_OUTPUT, check_writable, say_note
from bnnopt.errors import ArtifactError, BnnoptError, UsageError
from bnnopt.runtime import BACKENDS, Predictor, TrainingSession, replay, schedules, training
from bnnopt.runtime.artifact import is_predictor
from bnnopt.runtime.data import Dataset, Normalization, open_data
from bnnopt.runtime.data.augmentation import parse
from bnnopt.runtime.data.normalization import choose
from bnnopt.runtime.replay import Replay
from bnnopt.runtime.training import (
    Callback,
    Checkpoints,
    Progress,
    Recipe,
    default_folder,
    load_newest,
)
from bnnopt.runtime.training.loop import NOTES, Schedule, left_out, read_notes
from bnnopt.units import size

Say = Callable[[str], None]
Options = Mapping[str, Any]
Network = TrainingSession | Predictor


@dataclass(frozen=True)
class Run:
    """All that `bnnopt.runtime.training.fit` takes."""

    session: TrainingSession
    data: Dataset
    valid: Dataset | None
    recipe: Recipe
    checkpoints: Checkpoints
    replay: Replay | None


def prepare(folder: Path, options: Options, say: Say) -> Run:
    """A training as the options of ``train`` describe it; `say` gets lines for people.

    Raises
    ------
    UsageError
        If options or data do not fit the model, or there are checkpoints and no ``--resume``.
    ArtifactError
        If the folder or a checkpoint cannot be read.
    """
    session = TrainingSession(folder, options["backend"], options["threads"])
    data = samples(session, options["data"], "train")
    valid = None if options["valid"] is None else samples(session, options["valid"], "test")
    checkpoints = Checkpoints(options["checkpoints"] or default_folder(folder), options["keep"])
    _begin(session, checkpoints, options["resume"], say)
    replays = _replay(session, folder, options, say)
    if n_samples := left_out(session, data):
        say(
            f"each epoch leaves out {n_samples} of {len(data)} samples, others each time: a batch "
            f"has at least {session.least_training_batch}"
        )
    normalization = normalization_of(session, data, options, say)
    recipe = Recipe(
        epochs=options["epochs"],
        schedule=_schedule(session, len(data), options),
        seed=options["seed"],
        normalization=normalization,
        changes=parse(options["augment"], next(iter(data.x.values())).shape[1:]),
        clip_weights=options["clip_weights"],
        checkpoint_every=options["checkpoint_every"],
    )
    return Run(session, data, valid, recipe, checkpoints, replays)


def trained(
    folder: Path, data: str, options: Options
) -> tuple[Network, Normalization | None, Dataset]:
    """A network with a checkpoint's weights, how it normalised, and data to measure on."""
    network = _open(folder, options)
    found = samples(network, data, "test")
    return network, normalization_of(network, found, options, say_note), found


def _open(folder: Path, options: Options) -> Network:
    """The folder of a training step with trained weights, or of a network that predicts."""
    if not is_predictor(folder):
        session = TrainingSession(folder, options["backend"], options["threads"])
        say_note(f"weights: {load_newest(session, folder, options['checkpoint'])}")
        return session
    if options["checkpoint"] is not None:
        raise UsageError(f"--checkpoint: {folder} has its weights inside; leave it out")
    if options["backend"] != BACKENDS[0]:
        raise UsageError(
            f"--backend {options['backend']}: {folder} is for {BACKENDS[0]}; leave it out; "
            f"onnxruntime itself runs {folder / 'evaluation.onnx'}"
        )
    return Predictor(folder, options["threads"])


def samples(session: Network, path: str, part: str) -> Dataset:
    """The data set at `path`, for the network's first input."""
    spec = next(iter(session.inputs.values()))
    return open_data(path, spec.shape_at(1)[1:], spec.dtype, part)


def asks_for_normalization(options: Options) -> bool:
    """Whether options say how samples are normalised."""
    return options["normalize"] or any(options[n] is not None for n in ("scale", "mean", "std"))


def normalization_of(
    session: Network, data: Dataset, options: Options, say: Say
) -> Normalization | None:
    """What options say; else the checkpoint's; else what the data need.

    None where samples are fed as bytes and nothing is said: the network has numbers of its own.
    """
    asked = asks_for_normalization(options)
    if session.takes_bytes:
        _check_bytes(session, data, asked)
        if not asked:
            return None
    notes = session.notes.get(NOTES)
    if notes is not None and not asked:
        return Normalization.from_fields(read_notes(notes)["normalization"])
    given = {name: options[name] for name in ("scale", "mean", "std")}
    found, line = choose(data, **given, from_data=options["normalize"])
    if line:
        say(line)
    return found


def _check_bytes(session: Network, data: Dataset, asked: bool) -> None:
    """Refuse samples that are no bytes, and numbers for a network that has its own inside."""
    for samples in data.x.values():
        if samples.dtype != np.uint8:
            raise UsageError(
                f"{data.source}: x is {samples.dtype}, expected uint8, images as they are stored; "
                "or optimize without --input uint8"
            )
    if asked and isinstance(session, Predictor):
        raise UsageError(
            "--scale, --mean, --std, --normalize: the network normalises bytes as it was trained "
            "to; leave them out"
        )


def _begin(session: TrainingSession, checkpoints: Checkpoints, resume: bool, say: Say) -> None:
    """Go to the newest checkpoint that is whole, if asked to; nothing of a run is written over."""
    found = checkpoints.found()
    if found and not resume:
        raise UsageError(
            f"{found[0]}: there is a training already; --resume goes on from it, and --checkpoint "
            "DIR keeps another one elsewhere"
        )
    for path in found:
        try:
            session.resume(path)
        except ArtifactError as error:
            if path == found[-1]:
                raise
            say(f"left out: {error}")
        else:
            return say(f"going on from step {session.steps_done}, {path}")
    if resume:
        say(f"{checkpoints.folder}: no checkpoint yet; starting from the first step")
    return None


def _replay(session: TrainingSession, folder: Path, options: Options, say: Say) -> Replay | None:
    """Mix earlier samples in, where ``--replay`` asks for it and some are kept."""
    if options["replay"] is None:
        return None
    path = options["replay_file"] or replay.default_file(folder)
    found = session.replay(path, options["replay"], options["seed"])
    if found.kept is None:
        say(f"{path}: keeps nothing yet; this training mixes nothing in")
    else:
        say(f"each batch has {options['replay']} of {len(found.kept)} earlier samples")
    return found


def remember(run: Run, keep: int) -> str:
    """Keep samples of the data for later trainings; returns a line about them."""
    assert run.replay is not None, "nothing is kept without --replay"
    recipe = run.recipe
    kept = training.remember(
        run.session, run.replay, run.data, recipe.normalization, keep, recipe.seed
    )
    each = size(kept.n_bytes / len(kept))
    return f"written: {run.replay.path}, {len(kept)} samples to replay, {each} each"


def _schedule(session: TrainingSession, n_samples: int, options: Options) -> Schedule:
    rate = session.about.learning_rate if options["lr"] is None else options["lr"]
    per_epoch = -(-n_samples // session.batch_size)
    steps, warmup = per_epoch * options["epochs"], options["warmup"]
    if options["schedule"] == "plateau":
        if warmup:
            raise UsageError("--warmup: not with --schedule plateau")
        return schedules.Plateau(rate, options["patience"])
    if warmup >= steps:
        raise UsageError(f"--warmup {warmup}: expected fewer than all {steps} steps")
    if options["schedule"] == "cosine":
        return schedules.Cosine(rate, steps, warmup=warmup)
    if options["schedule"] == "step":
        third = max(1, (options["epochs"] + 2) // 3) * per_epoch
        return schedules.Warmup(schedules.StepDecay(rate, third), warmup)
    return schedules.Warmup(schedules.Constant(rate), warmup)


class Stopped(BnnoptError):
    """A signal ended training; everything is kept."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + number  # as a shell reports a process that it ended


class Signals(Callback):
    """Ends training after the step that is running where Ctrl-C or SIGTERM comes.

    Attributes
    ----------
    received : int
        The signal's number; 0 where none came.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.received:  # asked twice: at once, as without this
            raise KeyboardInterrupt
        self.received = number

    def on_train_begin(self, progress: Progress) -> None:
        """See `Callback`."""
        self.on_step_end(progress)

    def on_step_end(self, progress: Progress) -> None:
        """See `Callback`."""
        if self.received:
            progress.stop = "stopped"


@contextmanager
def log_file(target: str, resume: bool) -> Iterator[IO[str]]:
    """The file of ``--log-json``; a resumed run writes on."""
    if target == STANDARD_OUTPUT:
        yield sys.stdout
        return
    check_writable(Path(target))
    try:
        file = open(target, "a" if resume else "w", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise UsageError(f"{target}: cannot be written: {error.strerror}") from None
    with file:
        yield file


def described(found: Mapping[str, Any], classes: Sequence[str]) -> Iterator[str]:
    """Metrics as lines for people."""
    for name, value in found.items():
        if name == "confusion" and value:
            yield "confusion (row: label, column: prediction)"
            names = classes or [str(i) for i in range(len(value))]
            width = max(len(str(max(map(max, value)))), 1)
            for label, row in zip(names, value, strict=False):
                yield f"  {label:>12}  " + " ".join(f"{count:>{width}}" for count in row)
        elif name == "samples":
            yield f"{name:<10}{value:>10}"
        elif isinstance(value, float):
            is_share = name in ("accuracy", "top5", "mean_iou")
            yield f"{name:<10}{100 * value:>9.2f}%" if is_share else f"{name:<10}{value:>10.4f}"
