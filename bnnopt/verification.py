"""Does the rewritten step compute what the reference computes?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.text import Text

from bnnopt.artifact import REFERENCE_FILE, make_program, portable_model
from bnnopt.errors import ArtifactError, UsageError
from bnnopt.ops import dims
from bnnopt.passes import PASSES, map_kernels
from bnnopt.plan import make_plan
from bnnopt.runtime import BACKENDS
from bnnopt.runtime.artifact import read_artifact, read_tensors
from bnnopt.runtime.executor import Executor
from bnnopt.runtime.format import TRAINING, WEIGHTS_FILE, Artifact
from bnnopt.tables import Column, Listing, Row
from bnnopt.training_step import PERSISTENT, Role, TrainingStep, is_constant, phase

Array = NDArray[Any]
Arrays = dict[str, Array]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Difference:
    """How far two gradients are apart: largest absolute difference, and cosine.

    Where only one of them is finite, `max_abs` is the largest number and `cosine` 0.
    """

    max_abs: float
    cosine: float


@dataclass(frozen=True)
class Verification:
    """The outcome of `verify_folder`.

    Attributes
    ----------
    parameters : dict of str to Difference
        The worst of all steps, by parameter.
    bit_equal : bool
        Whether losses, gradients, new weights, statistics and optimiser state were the same bits.
    lossless : bool
        Whether they should be: no pass that ran is lossy.
    """

    parameters: dict[str, Difference]
    bit_equal: bool
    lossless: bool

    @property
    def is_defect(self) -> bool:
        """Whether bits differ that should not."""
        return self.lossless and not self.bit_equal

    def to_dict(self) -> dict[str, Any]:
        """The JSON contract."""
        return {
            "parameters": {
                name: {"max_abs": d.max_abs, "cosine": d.cosine}
                for name, d in self.parameters.items()
            },
            "bit_equal": self.bit_equal,
        }


@dataclass(frozen=True)
class _Trajectory:
    """What some steps left behind: losses, gradients of each step, buffers after the last."""

    losses: list[Array]
    gradients: list[Arrays]
    persistent: Arrays


Runner = Callable[[TrainingStep, Artifact, list[Arrays], Arrays], _Trajectory]


def verify_folder(
    folder: Path, backend: str, n_steps: int = 2, seed: int = 0, progress: Progress | None = None
) -> Verification:
    """Run reference and rewritten step from the same weights, batches and kernels.

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
    """
    say = progress or (lambda line: None)
    run = _runner(backend)
    about = read_artifact(folder)
    runs = []
    for file in (REFERENCE_FILE, f"{TRAINING}.onnx"):
        say(f"running {n_steps} steps of {file} on {backend}")
        step = load_step(folder / file)
        _check_belongs(step, about, folder / file)
        if file == REFERENCE_FILE:
            step = map_kernels(step, about.passes)
        feeds = [_random_feeds(step, about, seed + i, i + 1) for i in range(n_steps)]
        with np.errstate(all="ignore"):
            runs.append(run(step, about, feeds, _initial(folder, about)))
    return _compare(runs[0], runs[1], _lossless(about))


def _runner(backend: str) -> Runner:
    if backend not in BACKENDS:
        raise UsageError(f"--backend {backend}: expected {' or '.join(BACKENDS)}")
    if backend == "onnxruntime" and find_spec("onnxruntime") is None:
        raise UsageError(
            "--backend onnxruntime: is not installed; pip install 'bnnopt[onnxruntime]'"
        )
    return _run_native if backend == "native" else _run_onnxruntime


def _lossless(about: Artifact) -> bool:
    """Whether every pass that ran is one that we know to be lossless."""
    return set(about.passes) <= {entry.name for entry in PASSES if entry.lossless}


def load_step(path: Path) -> TrainingStep:
    """A training step that bnnopt wrote.

    Raises
    ------
    ArtifactError
        If the file is missing or damaged.
    """
    try:
        step = TrainingStep(ir.load(path))
        steps = [phase(node) for node in step.graph]
    except KeyError:
        raise ArtifactError(f"{path}: not a training step of bnnopt; optimize again") from None
    except Exception as error:  # the reader raises whatever protobuf and numpy do
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ArtifactError(f"{path}: cannot be read ({reason}); optimize again") from None
    if not steps or not step.graph.outputs:
        raise ArtifactError(f"{path}: not a training step of bnnopt; optimize again")
    return step


def _check_belongs(step: TrainingStep, about: Artifact, path: Path) -> None:
    """Refuse a step whose weights and state are not those of the folder."""
    for value in step.inputs(*PERSISTENT):
        shape = about.persistent.get(str(value.name))
        if shape is None or list(shape) != list(dims(value)):
            raise ArtifactError(
                f"{path}: {value.name!r} has shape {list(dims(value))}, expected "
                f"{'no such value' if shape is None else list(shape)}; optimize again"
            )


def _initial(folder: Path, about: Artifact) -> Arrays:
    weights, _ = read_tensors(folder / WEIGHTS_FILE)
    return {
        name: np.array(weights[name]) if name in weights else np.zeros(shape, np.float32)
        for name, shape in about.persistent.items()
    }


def _random_feeds(step: TrainingStep, about: Artifact, seed: int, number: int) -> Arrays:
    """A batch by input name: normal data, uniform labels, the default rate, the step's number."""
    random = np.random.default_rng(seed)
    feeds: Arrays = {}
    for value in step.inputs(Role.DATA, Role.LABELS):
        assert value.shape is not None
        shape = tuple(value.shape.numpy())
        if value.dtype == ir.DataType.INT64:
            feeds[str(value.name)] = random.integers(0, max(about.classes, 2), shape)
        else:
            assert value.dtype is not None
            feeds[str(value.name)] = random.standard_normal(shape).astype(value.dtype.numpy())
    for value in step.inputs(Role.RATE):
        feeds[str(value.name)] = np.array(about.learning_rate, np.float32)
    for value in step.inputs(Role.STEP):
        feeds[str(value.name)] = np.array(number, np.int64)
    return feeds


def _run_native(
    step: TrainingStep, about: Artifact, feeds: list[Arrays], persistent: Arrays
) -> _Trajectory:
    program = make_program(step, make_plan(step), about.batch_size)
    constants = {
        name: value.const_value.numpy()
        for name, value in step.graph.initializers.items()
        if is_constant(value) and value.const_value is not None
    }
    executor = Executor(program, persistent, constants)
    parameter_of = {index: name for name, index in program.gradients.items()}
    losses, gradients = [], []
    for feed in feeds:
        seen: Arrays = {}

        def observe(spec: Any, outputs: tuple[Array, ...], seen: Arrays = seen) -> None:
            written = [i for i in spec.outputs if i >= 0]
            for index, array in zip(written, outputs, strict=True):
                if index in parameter_of:
                    seen[parameter_of[index]] = array.copy()

        by_role = {
            role: tuple(feed[program.values[i].name] for i in indices)
            for role, indices in program.roles.items()
        }
        losses.append(np.array(executor.run(by_role, about.batch_size, observe)[0]))
        gradients.append(seen)
    return _Trajectory(losses, gradients, persistent)


def _run_onnxruntime(
    step: TrainingStep, about: Artifact, feeds: list[Arrays], persistent: Arrays
) -> _Trajectory:
    from bnnopt.runtime.onnxruntime_backend import open_session

    names = {name: str(value.name) for name, value in step.gradients().items()}
    updates = {str(output.name): str(target.name) for target, output in step.updates()}
    outputs = set(step.graph.outputs)
    step.graph.outputs.extend(v for v in set(step.gradients().values()) if v not in outputs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step.onnx"
        ir.save(portable_model(step, about.batch_size), path)
        session = open_session(path)
    losses, gradients = [], []
    reads = {value.name for value in session.get_inputs()}
    written = [value.name for value in session.get_outputs()]
    for feed in feeds:
        given = {name: array for name, array in (persistent | feed).items() if name in reads}
        found = dict(zip(written, session.run(written, given), strict=True))
        losses.append(found[written[0]])
        gradients.append({name: found[value] for name, value in names.items()})
        persistent = persistent | {target: found[name] for name, target in updates.items()}
    return _Trajectory(losses, gradients, persistent)


def _compare(reference: _Trajectory, rewritten: _Trajectory, lossless: bool) -> Verification:
    trained = [name for name in reference.persistent if name in reference.gradients[0]]
    gradients = {
        name: [
            (a[name], b[name])
            for a, b in zip(reference.gradients, rewritten.gradients, strict=True)
        ]
        for name in trained
    }
    pairs = [
        *zip(reference.losses, rewritten.losses, strict=True),
        *(pair for of_parameter in gradients.values() for pair in of_parameter),
        *((array, rewritten.persistent[n]) for n, array in reference.persistent.items()),
    ]
    return Verification(
        parameters={name: _worst(of_parameter) for name, of_parameter in gradients.items()},
        bit_equal=all(_same_bits(a, b) for a, b in pairs),
        lossless=lossless,
    )


def _same_bits(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _worst(pairs: list[tuple[Array, Array]]) -> Difference:
    found = [_difference(a, b) for a, b in pairs]
    return Difference(max(d.max_abs for d in found), min(d.cosine for d in found))


def _difference(a: Array, b: Array) -> Difference:
    """In float64; the cosine of two zero gradients is 1."""
    if _same_bits(a, b):
        return Difference(0.0, 1.0)
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return Difference(float(np.finfo(np.float64).max), 0.0)
    scale = float(np.linalg.norm(x) * np.linalg.norm(y))
    cosine = float(x @ y) / scale if scale else float(not x.any() and not y.any())
    return Difference(float(np.max(np.abs(x - y), initial=0)), float(np.clip(cosine, -1, 1)))


def render_verification(found: Verification, title: str) -> RenderableType:
    """The differences by parameter, and the verdict."""
    columns = [
        Column("gradient of"),
        Column("max difference", is_figure=True),
        Column("cosine", is_figure=True),
    ]
    rows = [
        Row([name, f"{d.max_abs:.3g}", f"{d.cosine:.6f}"]) for name, d in found.parameters.items()
    ]
    expected = (
        "expected: all passes that ran are lossless" if found.lossless else "lossy passes ran"
    )
    verdict = f"bit-equal: {'yes' if found.bit_equal else 'no'} ({expected})"
    note = Text("bits of losses, gradients, new weights, statistics, optimizer state", "dim")
    return Group(Listing(title, columns, rows), Text(), Text(verdict), note)
