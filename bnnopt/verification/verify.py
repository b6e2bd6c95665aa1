"""Does the rewritten step compute what the reference computes?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx_ir as ir

from bnnopt.analysis import one_a_sample
from bnnopt.artifact import REFERENCE_FILE, load_step
from bnnopt.errors import ArtifactError, DivergedError, UsageError
from bnnopt.ops import dims, dtype
from bnnopt.passes import Pass, least_cosine, make_pass, map_kernels
from bnnopt.passes.float16_gradients import Float16Gradients
from bnnopt.runtime import BACKENDS
from bnnopt.runtime.artifact import read_artifact
from bnnopt.runtime.format import ARTIFACT_FILE, TRAINING, WEIGHTS_FILE, Artifact
from bnnopt.runtime.kernels.latents import widened
from bnnopt.runtime.tensors import read_tensors
from bnnopt.training_step import (
    PERSISTENT,
    Role,
    TrainingStep,
    latent_units,
    name_gradients,
    phase,
)
from bnnopt.verification.compare import compare
from bnnopt.verification.outcome import Verification
from bnnopt.verification.trajectory import (
    Array,
    Arrays,
    Trajectory,
    run_native,
    run_onnxruntime,
)

Progress = Callable[[str], None]
Runner = Callable[[TrainingStep, Artifact, list[Arrays], Arrays, bool], Trajectory]


def verify_folder(
    folder: Path, backend: str, n_steps: int = 2, seed: int = 0, progress: Progress | None = None
) -> Verification:
    """Run reference and rewritten step from the same weights, batches and kernels.

    Where lossy passes ran, every step starts from the first weights again: after one step the
    weights differ, and signs of weights near 0 with them. Where a gradient differs that is kept in
    float16, another run of the reference, with its maps rounded to float16, says which gradients
    that alone rounds away.

    Parameters
    ----------
    folder : Path
        Written by ``bnnopt optimize``.
    backend : str
        ``native`` or ``onnxruntime``; both steps run on it.
    n_steps : int
        Steps, so that optimiser state and updated weights count too.
    seed : int
        Of the batches.
    progress : callable, optional
        Called with a line about what comes next.

    Raises
    ------
    UsageError
        If the backend is not known, or not installed.
    ArtifactError
        If the folder cannot be read, or its files do not belong together.
    DivergedError
        If a step overflows on a random batch.
    """
    say = progress or (lambda line: None)
    run = _runner(backend)
    about = read_artifact(folder)
    passes = passes_of(about, folder)
    min_cosine = least_cosine(passes)
    units = latent_units(load_step(folder / f"{TRAINING}.onnx"))
    runs = []
    for file in (REFERENCE_FILE, f"{TRAINING}.onnx"):
        say(f"running {n_steps} steps of {file} on {backend}")
        step = name_gradients(load_step(folder / file))
        _check_belongs(step, about, folder / file)
        if file == REFERENCE_FILE:
            step = map_kernels(step, passes)
        feeds = [batch_feeds(step, about, seed + i, i + 1) for i in range(n_steps)]
        with np.errstate(all="ignore"):
            buffers = _initial(step, folder, units)
            try:
                runs.append(run(step, about, feeds, buffers, min_cosine is not None))
            except DivergedError as error:
                raise _overflow(error, folder / file, about.batch_size) from None
    found = compare(runs[0], runs[1], min_cosine)
    scales = [p.scale(step) for p in passes if isinstance(p, Float16Gradients)]
    if not (found.defect and scales):
        return found
    say("rounding the reference's gradient maps to float16")
    rounded = _rounded(folder, about, passes, feeds, units, scales[0])
    return compare(runs[0], runs[1], min_cosine, rounded)


def _rounded(
    folder: Path,
    about: Artifact,
    passes: list[Pass],
    feeds: list[Arrays],
    units: Mapping[str, float],
    scale: float,
) -> Trajectory | None:
    """The reference's run with gradient maps, times `scale`, in float16; None where one overflows.

    No pass does it: what it turns, float16 turns.
    """
    step = map_kernels(name_gradients(load_step(folder / REFERENCE_FILE)), passes)
    maps = {v.name for v in one_a_sample(step) if _is_gradient(v)}

    def change(name: str, array: Array) -> None:
        if name in maps:
            array[...] = (array * scale).astype(np.float16) / np.float32(scale)

    with np.errstate(all="ignore"):
        try:
            return run_native(step, about, feeds, _initial(step, folder, units), True, change)
        except DivergedError:
            return None


def _is_gradient(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and phase(node) == "backward" and value.dtype == ir.DataType.FLOAT


def _overflow(error: DivergedError, path: Path, n: int) -> DivergedError:
    return DivergedError(
        f"{path}: {error} on random batches of {n}; expected finite numbers: take another --seed, "
        "or optimize for a larger batch, or --disable float16-gradients"
    )


def passes_of(about: Artifact, folder: Path) -> list[Pass]:
    """The passes that ran, with the options that they had."""
    try:
        return [make_pass(spec) for spec in about.passes]
    except UsageError as error:
        raise ArtifactError(f"{folder / ARTIFACT_FILE}: {error}; optimize again") from None


def _runner(backend: str) -> Runner:
    if backend not in BACKENDS:
        raise UsageError(f"--backend {backend}: expected {' or '.join(BACKENDS)}")
    if backend == "onnxruntime" and find_spec("onnxruntime") is None:
        raise UsageError(
            "--backend onnxruntime: is not installed; pip install 'bnnopt[onnxruntime]'"
        )
    return run_native if backend == "native" else run_onnxruntime


def _check_belongs(step: TrainingStep, about: Artifact, path: Path) -> None:
    """Refuse a step whose weights are not those of the folder.

    The state of a reference need not be there: a lossy pass may have dropped it.
    """
    for value in step.inputs(*PERSISTENT - {Role.STATE}):
        shape = about.persistent.get(str(value.name))
        if shape is None or list(shape) != list(dims(value)):
            raise ArtifactError(
                f"{path}: {value.name!r} has shape {list(dims(value))}, expected "
                f"{'no such value' if shape is None else list(shape)}; optimize again"
            )


def _initial(step: TrainingStep, folder: Path, units: Mapping[str, float]) -> Arrays:
    """The weights of the folder in the types of `step`, and zeros for its state."""
    weights, _ = read_tensors(folder / WEIGHTS_FILE)
    buffers: Arrays = {}
    for value in step.inputs(*PERSISTENT):
        name, kind = str(value.name), dtype(value).numpy()
        array = weights.get(name, np.zeros(dims(value), kind))
        if name in units and kind != array.dtype:
            array = widened(array, units[name])
        buffers[name] = array.astype(kind)
    return buffers


def batch_feeds(step: TrainingStep, about: Artifact, seed: int, number: int = 1) -> Arrays:
    """A batch by input name: normal data, uniform bytes and labels, the default rate, the step."""
    random = np.random.default_rng(seed)
    feeds: Arrays = {}
    for value in step.inputs(Role.DATA, Role.LABELS):
        assert value.shape is not None
        shape = tuple(value.shape.numpy())
        if value.dtype == ir.DataType.INT64:
            feeds[str(value.name)] = random.integers(0, max(about.classes, 2), shape)
        elif value.dtype == ir.DataType.UINT8:
            feeds[str(value.name)] = random.integers(0, 256, shape, np.uint8)
        else:
            assert value.dtype is not None
            feeds[str(value.name)] = random.standard_normal(shape).astype(value.dtype.numpy())
    for value in step.inputs(Role.RATE):
        feeds[str(value.name)] = np.array(about.learning_rate, np.float32)
    for value in step.inputs(Role.SHARE):
        feeds[str(value.name)] = np.array(-1, np.float32)  # one part is all of it
    for value in step.inputs(Role.STEP):
        feeds[str(value.name)] = np.array(number, np.int64)
    return feeds
