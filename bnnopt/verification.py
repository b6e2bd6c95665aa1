"""Does the rewritten step compute what the reference computes?"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from bnnopt.ops import dims, dtype
from bnnopt.passes import least_cosine, map_kernels
from bnnopt.passes.binary_weight_gradients import BinaryWeightGradients
from bnnopt.plan import make_plan
from bnnopt.runtime import BACKENDS
from bnnopt.runtime.artifact import read_artifact, read_tensors
from bnnopt.runtime.executor import Executor
from bnnopt.runtime.format import TRAINING, WEIGHTS_FILE, Artifact
from bnnopt.tables import Column, Listing, Row
from bnnopt.training_step import (
    PERSISTENT,
    Role,
    TrainingStep,
    is_constant,
    name_gradients,
    phase,
)

Array = NDArray[Any]
Arrays = dict[str, Array]
Progress = Callable[[str], None]
NEGLIGIBLE = 1e-5  # of the largest gradient, in root mean square: what rounding alone may turn
ROUNDING = 1e-6  # of a cosine


@dataclass(frozen=True)
class Difference:
    """How far two gradients are apart: largest absolute difference, and cosine.

    Where only one of them is finite, `max_abs` is the largest number and `cosine` 0. The direction
    of a `negligible` gradient, as that of a bias in front of a batch norm, is rounding. `reach` is
    the cosine of the reference's gradient to its own signs, where signs are all that is kept: no
    others come nearer. It is 0.8 for a normal distribution, less where few elements dominate.
    """

    max_abs: float
    cosine: float
    negligible: bool = False
    reach: float = 1.0

    def expected(self, min_cosine: float) -> float:
        """The least cosine where the passes that ran promise `min_cosine`."""
        return min_cosine * min(1.0, self.reach / BinaryWeightGradients.min_cosine)


@dataclass(frozen=True)
class Verification:
    """The outcome of `verify_folder`.

    Attributes
    ----------
    parameters : dict of str to Difference
        The worst of all steps, by parameter.
    bit_equal : bool
        Whether losses, gradients, new weights, statistics and optimiser state were the same bits.
    min_cosine : float or None
        What the passes that ran promise together; None where all are lossless.
    """

    parameters: dict[str, Difference]
    bit_equal: bool
    min_cosine: float | None = None

    @property
    def defect(self) -> str:
        """What should not be, in a few words; empty if all is as promised."""
        if self.min_cosine is None:
            promise = "expected it to be: all passes that ran are lossless"
            return "" if self.bit_equal else f"not bit-equal to the reference, {promise}"
        expected = {name: d.expected(self.min_cosine) for name, d in self.parameters.items()}
        short = {
            name: expected[name] - d.cosine
            for name, d in self.parameters.items()
            if not d.negligible and d.cosine < expected[name] - ROUNDING
        }
        if not short:
            return ""
        worst = max(short, key=short.__getitem__)
        return (
            f"the gradient of {worst!r} has cosine {self.parameters[worst].cosine:.4f} to the "
            f"reference's, expected at least {expected[worst]:.4f}"
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON contract."""
        return {
            "parameters": {
                name: {"max_abs": d.max_abs, "cosine": d.cosine}
                for name, d in self.parameters.items()
            },
            "bit_equal": self.bit_equal,
            "min_cosine": self.min_cosine,
        }


@dataclass(frozen=True)
class _Trajectory:
    """What some steps left behind: losses, gradients of each step, buffers after the last."""

    losses: list[Array]
    gradients: list[Arrays]
    persistent: Arrays


Runner = Callable[[TrainingStep, Artifact, list[Arrays], Arrays, bool], _Trajectory]


def verify_folder(
    folder: Path, backend: str, n_steps: int = 2, seed: int = 0, progress: Progress | None = None
) -> Verification:
    """Run reference and rewritten step from the same weights, batches and kernels.

    Where lossy passes ran, every step starts from the first weights again: after one step the
    weights differ, and signs of weights near 0 with them.

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
    min_cosine = least_cosine(about.passes)
    runs = []
    for file in (REFERENCE_FILE, f"{TRAINING}.onnx"):
        say(f"running {n_steps} steps of {file} on {backend}")
        step = name_gradients(load_step(folder / file))
        _check_belongs(step, about, folder / file)
        if file == REFERENCE_FILE:
            step = map_kernels(step, about.passes)
        feeds = [_random_feeds(step, about, seed + i, i + 1) for i in range(n_steps)]
        with np.errstate(all="ignore"):
            buffers = _initial(step, folder)
            runs.append(run(step, about, feeds, buffers, min_cosine is not None))
    return _compare(runs[0], runs[1], min_cosine)


def _runner(backend: str) -> Runner:
    if backend not in BACKENDS:
        raise UsageError(f"--backend {backend}: expected {' or '.join(BACKENDS)}")
    if backend == "onnxruntime" and find_spec("onnxruntime") is None:
        raise UsageError(
            "--backend onnxruntime: is not installed; pip install 'bnnopt[onnxruntime]'"
        )
    return _run_native if backend == "native" else _run_onnxruntime


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


def _initial(step: TrainingStep, folder: Path) -> Arrays:
    """The weights of the folder in the types of `step`, and zeros for its state."""
    weights, _ = read_tensors(folder / WEIGHTS_FILE)
    buffers: Arrays = {}
    for value in step.inputs(*PERSISTENT):
        name, kind = str(value.name), dtype(value).numpy()
        buffers[name] = (
            weights[name].astype(kind) if name in weights else np.zeros(dims(value), kind)
        )
    return buffers


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
    step: TrainingStep, about: Artifact, feeds: list[Arrays], initial: Arrays, restart: bool
) -> _Trajectory:
    """Each step goes on from the one before it, or from `initial` again if `restart`."""
    program = make_program(step, make_plan(step), about.batch_size)
    constants = {
        name: value.const_value.numpy()
        for name, value in step.graph.initializers.items()
        if is_constant(value) and value.const_value is not None
    }
    persistent = {name: array.copy() for name, array in initial.items()}
    executor = Executor(program, persistent, constants)
    parameter_of = {index: name for name, index in program.gradients.items()}
    shapes = {str(value.name): dims(value) for value in step.inputs(Role.PARAMETER)}
    losses, gradients = [], []
    for feed in feeds:
        seen: Arrays = {}
        for name, array in persistent.items() if restart else ():
            np.copyto(array, initial[name])

        def observe(spec: Any, outputs: tuple[Array, ...], seen: Arrays = seen) -> None:
            written = [i for i in spec.outputs if i >= 0]
            for index, array in zip(written, outputs, strict=True):
                if index in parameter_of:
                    name = parameter_of[index]
                    seen[name] = _decoded(array, shapes[name])

        by_role = {
            role: tuple(feed[program.values[i].name] for i in indices)
            for role, indices in program.roles.items()
        }
        losses.append(np.array(executor.run(by_role, about.batch_size, observe)[0]))
        gradients.append(seen)
    return _Trajectory(losses, gradients, persistent)


def _decoded(gradient: Array, shape: tuple[int, ...]) -> Array:
    """A copy of a gradient; of one that is kept as sign bits (rows, ceil(K / 8)) the signs."""
    if gradient.dtype != np.uint8:
        return gradient.copy()
    row_length = math.prod(shape[1:])
    bits = np.unpackbits(gradient, axis=1, count=row_length, bitorder="little")
    return (bits.astype(np.float32) * 2 - 1).reshape(shape)


def _run_onnxruntime(
    step: TrainingStep, about: Artifact, feeds: list[Arrays], initial: Arrays, restart: bool
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
    losses, gradients, persistent = [], [], initial
    shapes = {str(value.name): dims(value) for value in step.inputs(Role.PARAMETER)}
    reads = {value.name for value in session.get_inputs()}
    written = [value.name for value in session.get_outputs()]
    for feed in feeds:
        buffers = initial if restart else persistent
        given = {name: array for name, array in (buffers | feed).items() if name in reads}
        found = dict(zip(written, session.run(written, given), strict=True))
        losses.append(found[written[0]])
        gradients.append({n: _decoded(found[value], shapes[n]) for n, value in names.items()})
        persistent = persistent | {target: found[name] for name, target in updates.items()}
    return _Trajectory(losses, gradients, persistent)


def _compare(
    reference: _Trajectory, rewritten: _Trajectory, min_cosine: float | None
) -> Verification:
    trained = [name for name in reference.persistent if name in reference.gradients[0]]
    gradients = {
        name: [
            (a[name], b[name])
            for a, b in zip(reference.gradients, rewritten.gradients, strict=True)
        ]
        for name in trained
    }
    same_buffers = reference.persistent.keys() == rewritten.persistent.keys()
    pairs = [
        *zip(reference.losses, rewritten.losses, strict=True),
        *(pair for of_parameter in gradients.values() for pair in of_parameter),
        *((a, rewritten.persistent[n]) for n, a in reference.persistent.items() if same_buffers),
    ]
    sizes = {n: max(_size(a) for a, _ in of_parameter) for n, of_parameter in gradients.items()}
    largest = max(sizes.values(), default=0.0)
    return Verification(
        parameters={
            name: replace(_worst(of_parameter), negligible=sizes[name] < NEGLIGIBLE * largest)
            for name, of_parameter in gradients.items()
        },
        bit_equal=same_buffers and all(_same_bits(a, b) for a, b in pairs),
        min_cosine=min_cosine,
    )


def _size(gradient: Array) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(gradient, dtype=np.float64)))) if gradient.size else 0.0


def _same_bits(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _worst(pairs: list[tuple[Array, Array]]) -> Difference:
    found = [_difference(a, b) for a, b in pairs]
    furthest = min(found, key=lambda d: d.cosine)
    return replace(furthest, max_abs=max(d.max_abs for d in found))


def _difference(a: Array, b: Array) -> Difference:
    """In float64; the cosine of two zero gradients is 1."""
    if _same_bits(a, b):
        return Difference(0.0, 1.0)
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return Difference(float(np.finfo(np.float64).max), 0.0)
    furthest = float(np.max(np.abs(x - y), initial=0))
    return Difference(furthest, _cosine(x, y), reach=_reach(x, y))


def _reach(x: Array, y: Array) -> float:
    """What the signs of x reach, where y has signs of one size and zeros alone."""
    sizes = np.abs(y[y != 0])
    if sizes.size < 2 or sizes.min() != sizes.max():
        return 1.0
    return _cosine(x, np.where(x < 0, -1.0, 1.0) * (y != 0))


def _cosine(x: Array, y: Array) -> float:
    scale = float(np.linalg.norm(x) * np.linalg.norm(y))
    cosine = float(x @ y) / scale if scale else float(not x.any() and not y.any())
    return float(np.clip(cosine, -1, 1))


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
    if found.min_cosine is None:
        expected = "expected: all passes that ran are lossless"
        note = "bits of losses, gradients, new weights, statistics, optimizer state"
    else:
        expected = f"lossy passes ran, which allow a cosine of {found.min_cosine:.4f}"
        note = (
            "each step from the same weights; a gradient that is kept as signs counts as those, "
            "and comes no nearer than the reference's own signs"
        )
    verdict = f"bit-equal: {'yes' if found.bit_equal else 'no'} ({expected})"
    return Group(Listing(title, columns, rows), Text(), Text(verdict), Text(note, "dim"))
