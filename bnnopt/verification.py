"""Does the rewritten step compute what the reference computes?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnnopt.artifact import REFERENCE_FILE, make_program, portable_model
from bnnopt.errors import ArtifactError
from bnnopt.plan import make_plan
from bnnopt.runtime.artifact import read_artifact, read_tensors
from bnnopt.runtime.executor import Executor
from bnnopt.runtime.format import WEIGHTS_FILE, Artifact
from bnnopt.training_step import Role, TrainingStep, is_constant

Array = NDArray[Any]
Arrays = dict[str, Array]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Difference:
    """How far two gradients are apart: largest absolute difference, and cosine."""

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
    """

    parameters: dict[str, Difference]
    bit_equal: bool

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


def verify_folder(
    folder: Path, backend: str, n_steps: int = 2, seed: int = 0, progress: Progress | None = None
) -> Verification:
    """Run reference and rewritten step from the same weights on the same random batches.

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
    ArtifactError
        If the folder cannot be read.
    """
    say = progress or (lambda line: None)
    about = read_artifact(folder)
    runs = []
    for file in (REFERENCE_FILE, "training.onnx"):
        say(f"running {n_steps} steps of {file} on {backend}")
        step = load_step(folder / file)
        feeds = [_random_feeds(step, about, seed + i, i + 1) for i in range(n_steps)]
        persistent = _initial(folder, about)
        run = _run_native if backend == "native" else _run_onnxruntime
        runs.append(run(step, about, feeds, persistent))
    return _compare(*runs)


def load_step(path: Path) -> TrainingStep:
    """A training step that bnnopt wrote.

    Raises
    ------
    ArtifactError
        If the file is missing or damaged.
    """
    try:
        return TrainingStep(ir.load(path))
    except Exception as error:  # the reader raises whatever protobuf and numpy do
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ArtifactError(f"{path}: cannot be read ({reason}); optimize again") from None


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


def _compare(reference: _Trajectory, rewritten: _Trajectory) -> Verification:
    names = reference.gradients[0]
    differences = {
        name: _worst(
            [
                (a[name], b[name])
                for a, b in zip(reference.gradients, rewritten.gradients, strict=True)
            ]
        )
        for name in names
    }
    pairs = [
        *zip(reference.losses, rewritten.losses, strict=True),
        *(
            (a[n], b[n])
            for a, b in zip(reference.gradients, rewritten.gradients, strict=True)
            for n in names
        ),
        *((array, rewritten.persistent[n]) for n, array in reference.persistent.items()),
    ]
    return Verification(differences, all(_same_bits(a, b) for a, b in pairs))


def _same_bits(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _worst(pairs: list[tuple[Array, Array]]) -> Difference:
    return Difference(
        max_abs=max(float(np.max(np.abs(a - b), initial=0)) for a, b in pairs),
        cosine=min(_cosine(a, b) for a, b in pairs),
    )


def _cosine(a: Array, b: Array) -> float:
    """1 where both are zero."""
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    scale = float(np.linalg.norm(x) * np.linalg.norm(y))
    if scale == 0:
        return float(not x.any() and not y.any())
    return float(np.clip(x @ y / scale, -1, 1))
