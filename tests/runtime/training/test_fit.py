"""Training over a data set: what it learns, and going on from wherever it was stopped."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import bnnopt
from bnnopt import TrainingSession
from bnnopt.errors import ArtifactError, DivergedError, UsageError
from bnnopt.runtime import BACKENDS
from bnnopt.runtime.data import Normalization
from bnnopt.runtime.data.augmentation import parse
from bnnopt.runtime.schedules import Cosine, Plateau
from bnnopt.runtime.training import Callback, Checkpoints, EarlyStop, Epoch, JsonLines, Progress
from bnnopt.runtime.training.checkpoints import BEST
from bnnopt.runtime.training.loop import MAX_SKIPPED
from tests.graphs import write
from tests.passes.networks import BINARY, BINARY_WEIGHTS

Array = NDArray[Any]
BATCH = 4
N_SAMPLES = 18  # four batches of four, and one of two


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scratch = tmp_path_factory.mktemp("net")
    path = write(BINARY, BINARY_WEIGHTS, scratch)
    bnnopt.optimize(path, batch_size=BATCH, level="O1").save(scratch / "out")
    return scratch / "out"


def samples(n: int = N_SAMPLES, seed: int = 0) -> tuple[Array, Array]:
    """Images whose brightness tells their class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    x = rng.uniform(-1, 1, (n, 2, 6, 6)) + (y - 1)[:, None, None, None]
    return x.astype(np.float32), y


def weights(session: TrainingSession) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in session.parameters().items()}


class StopAt(Callback):
    """Stops after a number of steps."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, progress: Progress) -> None:
        if progress.session.steps_done == self._step:
            progress.stop = "asked to"


RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "every step": {"checkpoint_every": 1},
    "changes": {"changes": parse(["flip", "crop"], (2, 6, 6)), "seed": 3},
    "clipped": {"clip_weights": 0.2, "normalization": Normalization(2.0, (0.1,), (0.5,))},
}


def schedules() -> list[Callable[[], Any]]:
    return [lambda: Cosine(0.01, 15, warmup=2), lambda: Plateau(0.01, patience=1)]


def fit(folder: Path, checkpoints: Path, make: Callable[[], Any], *look: Callback, **recipe: Any):
    session = TrainingSession(folder, threads=1)
    found = Checkpoints(checkpoints).found()
    if found:
        session.resume(found[0])
    options = {"schedule": make(), **recipe}
    history = session.fit(samples(), 3, samples(7, 1), checkpoints, look, **options)
    return session, history


@pytest.mark.parametrize("make", schedules(), ids=["cosine", "plateau"])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_run_stopped_anywhere_goes_on_to_the_same_bits(
    folder: Path, tmp_path: Path, recipe: dict[str, Any], make: Callable[[], Any]
) -> None:
    whole, history = fit(folder, tmp_path / "whole", make, **recipe)
    assert whole.steps_done == 15
    for stop in (2, 5, 9):
        fit(folder, tmp_path / "parts", make, StopAt(stop), **recipe)
    resumed, joined = fit(folder, tmp_path / "parts", make, **recipe)
    assert weights(resumed) == weights(whole)
    for name in ("epoch", "step", "loss", "accuracy", "valid_loss", "valid_accuracy"):
        assert joined[name] == history[name], name


def test_a_norm_over_places_takes_a_last_batch_of_one(folder: Path) -> None:
    session = TrainingSession(folder)
    assert session.least_training_batch == 1
    session.fit(samples(2 * BATCH + 1), epochs=1)
    assert session.steps_done == 3


def test_another_seed_gives_other_weights(folder: Path, tmp_path: Path) -> None:
    a, _ = fit(folder, tmp_path / "a", schedules()[0], seed=0)
    b, _ = fit(folder, tmp_path / "b", schedules()[0], seed=1)
    assert weights(a) != weights(b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_learns(folder: Path, backend: str) -> None:
    session = TrainingSession(folder, backend)
    history = session.fit(samples(200), 12, samples(100, 1), schedule=Cosine(0.01, 600))
    assert history["loss"][-1] < 0.7 * history["loss"][0]
    assert history["valid_accuracy"][-1] > 0.8
    assert history["step"] == [50 * e for e in range(1, 13)]
    if backend == "native":
        assert history["accuracy"][-1] > 0.75
        assert history["seen_bytes"][-1] == session.memory.seen_bytes
    else:
        assert history["accuracy"][-1] is history["seen_bytes"][-1] is None


def test_the_history_has_the_losses_of_the_steps(folder: Path) -> None:
    x, y = samples()
    by_hand = TrainingSession(folder, threads=1)
    session = TrainingSession(folder, threads=1)
    history = session.fit((x, y), 1, shuffle=False)
    parts = [slice(i, i + BATCH) for i in range(0, N_SAMPLES, BATCH)]
    losses = [by_hand.step(x[p], y[p]) * len(y[p]) for p in parts]
    assert history["loss"] == [pytest.approx(sum(losses) / N_SAMPLES)]
    assert weights(session) == weights(by_hand)


def test_weights_are_cut_where_the_network_sees_signs(folder: Path) -> None:
    session = TrainingSession(folder)
    session.fit(samples(), 1, clip_weights=0.05)
    largest = {name: float(np.abs(w).max()) for name, w in session.parameters().items()}
    latent = set(session.about.latent)
    assert latent
    assert all(largest[name] <= np.float32(0.05) for name in latent)
    assert any(bound > 0.05 for name, bound in largest.items() if name not in latent)


class Skipped(Callback):
    """Which batches were left out."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def on_batch_skipped(self, progress: Progress, error: DivergedError) -> None:
        assert error.is_undone
        self.batches.append(progress.batch)


def test_batches_that_overflow_are_left_out(folder: Path) -> None:
    """Here the second of three: the weights are those of the other two."""
    x, y = samples(3 * BATCH)
    x[BATCH : 2 * BATCH] *= 1e30
    session, look, other = TrainingSession(folder), Skipped(), TrainingSession(folder)
    session.fit((x, y), 1, callbacks=[look], shuffle=False)
    assert (look.batches, session.steps_done) == ([2], 2)
    for start in (0, 2 * BATCH):
        other.step(x[start : start + BATCH], y[start : start + BATCH])
    assert weights(session) == weights(other)


def test_too_many_batches_that_overflow_end_the_training(folder: Path) -> None:
    x, y = samples((MAX_SKIPPED + 2) * BATCH)
    x[BATCH:] *= 1e30
    session, look = TrainingSession(folder), Skipped()
    with pytest.raises(DivergedError, match=r"^step 2: .* nothing has changed"):
        session.fit((x, y), 1, callbacks=[look], shuffle=False)
    assert len(look.batches) == MAX_SKIPPED - 1
    assert session.steps_done == 1


def test_one_object_a_line_and_epoch(folder: Path) -> None:
    lines = io.StringIO()
    history = TrainingSession(folder).fit(samples(), 2, callbacks=[JsonLines(lines)])
    rows = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [Epoch(**row) for row in rows] == list(history)
    assert rows[0]["valid_loss"] is None


def test_it_stops_early_where_nothing_gets_better(folder: Path) -> None:
    history = TrainingSession(folder).fit(
        samples(), 50, samples(7, 1), callbacks=[EarlyStop(2)], schedule=lambda step: 0.0
    )
    assert len(history) <= 8
    losses = history["valid_loss"]
    assert min(losses[-2:]) >= min(losses[:-2])


def test_the_newest_checkpoints_and_the_best_stay(folder: Path, tmp_path: Path) -> None:
    _, history = fit(folder, tmp_path, schedules()[0])
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [BEST, "step-000000010.safetensors", "step-000000015.safetensors"]
    best = TrainingSession(folder)
    best.resume(tmp_path / BEST)
    losses = history["valid_loss"]
    assert best.steps_done == history["step"][losses.index(min(losses))]


def test_a_resume_with_other_data_or_seed_is_refused(folder: Path, tmp_path: Path) -> None:
    fit(folder, tmp_path, schedules()[0], StopAt(3))
    with pytest.raises(UsageError, match="trained with seed 0, now it is 5"):
        fit(folder, tmp_path, schedules()[0], seed=5)
    session = TrainingSession(folder)
    session.resume(Checkpoints(tmp_path).found()[0])
    with pytest.raises(UsageError, match="trained with samples 18, now it is 10"):
        session.fit(samples(10), 3)


@pytest.mark.parametrize(
    "edit",
    [
        lambda notes: notes.update(progress=3),
        lambda notes: notes.update(recipe=[]),
        lambda notes: notes.update(normalization={"scale": "wide"}),
        lambda notes: notes["progress"].pop("loss_sum"),
        lambda notes: notes["progress"].update(session=0),
        lambda notes: notes["progress"].update(epoch="1"),
        lambda notes: notes["progress"].update(batch=-1),
        lambda notes: notes["progress"].update(batch=99),
        lambda notes: notes["progress"].update(loss_sum=math.nan),
        lambda notes: notes["progress"].update(history=[{"epoch": 1}]),
    ],
)
def test_a_training_state_that_is_damaged(
    folder: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], Any]
) -> None:
    fit(folder, tmp_path, schedules()[0], StopAt(3))
    session = TrainingSession(folder)
    session.resume(Checkpoints(tmp_path).found()[0])
    notes = json.loads(session.notes["training"])
    edit(notes)
    session.save(tmp_path / "k", {"training": json.dumps(notes)})
    session.resume(tmp_path / "k")
    with pytest.raises(ArtifactError, match="training state is damaged"):
        session.fit(samples(), 3)


def test_a_checkpoint_that_cannot_be_written_is_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError, match="cannot be written"):
        TrainingSession(folder).fit(samples(), 1, checkpoints=tmp_path / "file")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ((samples()[0], samples()[1][:-1]), "y has 17 samples"),
        ((samples()[0], np.eye(3)[samples()[1]]), "y has shape"),
        ((samples()[0], samples()[1] + 1), "labels from"),
        ("train.npz", "is str, expected"),
    ],
)
def test_data_that_do_not_fit_are_one_line(folder: Path, data: Any, expected: str) -> None:
    with pytest.raises(UsageError, match=expected) as caught:
        TrainingSession(folder).fit(data, 1)
    assert "\n" not in str(caught.value)


def test_the_state_that_callbacks_see(folder: Path) -> None:
    seen: list[tuple[int, int, bool]] = []

    class Look(Callback):
        def on_step_end(self, progress: Progress) -> None:
            seen.append((progress.epoch, progress.batch, math.isfinite(progress.loss)))

    TrainingSession(folder).fit(samples(), 2, callbacks=[Look()])
    assert seen == [(e, b, True) for e in (0, 1) for b in (1, 2, 3, 4, 5)]
