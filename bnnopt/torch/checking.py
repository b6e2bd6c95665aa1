"""A compiled step against PyTorch: the same module, weights and batch; loss and every gradient."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import nn

from bnnopt.artifact import REFERENCE_FILE, load_step
from bnnopt.errors import UsageError, VerificationError
from bnnopt.ops import dims, dtype, traits
from bnnopt.passes import least_cosine
from bnnopt.runtime.artifact import read_artifact
from bnnopt.runtime.format import NORMALIZATIONS, TRAINING, WEIGHTS_FILE
from bnnopt.runtime.kernels.latents import nearest, widened
from bnnopt.runtime.kernels.on_read import normalized
from bnnopt.runtime.tensors import read_tensors
from bnnopt.torch.example import Example
from bnnopt.torch.reference import Reference
from bnnopt.torch.state import trained_names
from bnnopt.training_step import (
    PERSISTENT,
    Role,
    TrainingStep,
    latent_units,
    name_gradients,
)
from bnnopt.verification.compare import difference
from bnnopt.verification.outcome import ROUNDING
from bnnopt.verification.trajectory import run_native
from bnnopt.verification.verify import batch_feeds, passes_of

Array = NDArray[Any]
_COSINE = 0.9999
_NORM = 0.01
_LOSS = 1e-4
_NEGLIGIBLE = 1e-4  # of the largest gradient: what rounding alone may turn


@dataclass(frozen=True)
class Row:
    """One parameter: sizes of both gradients, their cosine, and what is wrong, if anything."""

    name: str
    right: float
    ours: float
    cosine: float
    defect: str = ""


@dataclass(frozen=True)
class Checked:
    """The outcome of `check`.

    Attributes
    ----------
    loss, right_loss : float
        Of the compiled step, and of PyTorch.
    rows : list of Row
        By parameter.
    loss_spread : float
        How far losses in float32 are from one another under tiny noise, where that was looked at.
    """

    loss: float
    right_loss: float
    rows: list[Row] = field(default_factory=list)
    loss_spread: float = 0.0

    @property
    def defect(self) -> str:
        """The first thing that differs, in a few words; empty if nothing does."""
        allowed = max(self.loss_spread, _LOSS * max(abs(self.right_loss), 1e-3))
        if not abs(self.loss - self.right_loss) <= allowed:
            return f"the loss is {self.loss:.6g}, PyTorch's {self.right_loss:.6g}"
        found = [row for row in self.rows if row.defect]
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        return f"{found[0].name!r}: {found[0].defect}{more}" if found else ""

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "loss": self.loss,
            "torch_loss": self.right_loss,
            "parameters": {
                row.name: {
                    "norm": row.ours,
                    "torch_norm": row.right,
                    "cosine": row.cosine,
                    "defect": row.defect or None,
                }
                for row in self.rows
            },
        }


def check(
    module: nn.Module,
    example: Any,
    folder: str | Path,
    *,
    labels: Any = None,
    seed: int = 0,
) -> Checked:
    """Compare the loss and each parameter's gradient of a compiled step with PyTorch's.

    Parameters
    ----------
    module : torch.nn.Module
        The module that was exported; its present weights are used, and left as they are.
    example : Tensor, tuple, dict or None
        A batch as `export` takes it, of the batch size of the folder; None for random numbers. Of
        a folder that takes bytes, bytes; of floats only the shape counts there.
    folder : path
        Written by ``bnnopt optimize`` or `Optimized.save`.
    labels : array, optional
        Targets of the loss; random ones if not given.
    seed : int
        Of what is random.

    Returns
    -------
    Checked
        What was found; a table when it is printed by ``bnnopt verify --torch``.

    Raises
    ------
    VerificationError
        If the loss or a gradient differs by more than rounding: float64 is the referee where
        float32 disagrees with itself, and the bounds of the lossy passes count.
    UsageError
        If the example does not fit the folder, or they differ and a pass changed the function.
    ArtifactError
        If the folder cannot be read.
    """
    found = compare_with_torch(module, example, Path(folder), labels, seed)
    if found.defect:
        raise VerificationError(f"{folder}: differs from PyTorch: {found.defect}")
    return found


def compare_with_torch(
    module: nn.Module, example: Any, folder: Path, labels: Any = None, seed: int = 0
) -> Checked:
    """As `check`, but what differs is in the outcome."""
    about = read_artifact(folder)
    if about.packed:
        raise UsageError(
            f"{folder}: optimizer {about.optimizer!r} keeps no latent weights to compare; "
            "optimize with another for the comparison"
        )
    step = name_gradients(load_step(folder / f"{TRAINING}.onnx"))
    feeds = batch_feeds(step, about, seed)
    if example is None:
        data = [torch.from_numpy(feeds[str(v.name)]) for v in step.inputs(Role.DATA)]
        example = tuple(data)
    inputs = Example.of(module, example)
    _feed(step, feeds, inputs, labels, folder)
    inputs = _as_floats(step, feeds, inputs, folder)
    with np.errstate(all="ignore"):
        buffers = _weights(step, module, folder)
        ran = run_native(step, about, [feeds], buffers, restart=False)
    draws = [n for n in load_step(folder / REFERENCE_FILE).graph if traits(n).draws]
    targets = [torch.from_numpy(feeds[str(v.name)]) for v in step.inputs(Role.LABELS)]
    module, passes = _with_weights(module, buffers, latent_units(step)), passes_of(about, folder)
    reference = Reference(module, inputs, targets, about, draws)
    rows = _rows(ran.gradients[0], reference, module, least_cosine(passes))
    found = Checked(float(ran.losses[0]), reference.right.loss, rows)
    if found.defect:
        found = replace(found, loss_spread=reference.loss_spread())
    others = [p.name for p in passes if p.changes_function]
    if found.defect and others:
        raise UsageError(
            f"{folder}: cannot be compared with PyTorch: {found.defect}, as {', '.join(others)} "
            "compute another function than the module; leave them out for the comparison "
            f"(optimize {' '.join(f'--disable {name}' for name in others)})"
        )
    return found


def _with_weights(
    module: nn.Module, stored: Mapping[str, Array], units: Mapping[str, float]
) -> nn.Module:
    """The module with its weights as the folder stores them, in half precision perhaps."""
    narrow = {name: array for name, array in stored.items() if array.dtype == np.float16}
    narrow |= {name: widened(stored[name], unit) for name, unit in units.items()}
    if not narrow:
        return module
    rounded = copy.deepcopy(module)
    with torch.no_grad():
        for name, parameter in rounded.named_parameters():
            if name in narrow:
                parameter.copy_(torch.from_numpy(narrow[name].astype(np.float32)))
    return rounded


def _feed(
    step: TrainingStep, feeds: dict[str, Array], inputs: Example, labels: Any, folder: Path
) -> None:
    """Put the example, and labels where they are given, into the feeds."""
    values = step.inputs(Role.DATA)
    given = dict(zip(inputs.names, inputs.tensors(), strict=True))
    if len(values) == 1 and len(given) == 1:
        given = {str(values[0].name): next(iter(given.values()))}
    for value in values:
        name = str(value.name)
        tensor = given.get(name)
        if tensor is None or tuple(tensor.shape) != dims(value):
            shape = "none" if tensor is None else str(list(tensor.shape))
            raise UsageError(
                f"example: input {name!r} has shape {shape}, expected {list(dims(value))}, as "
                f"{folder} was compiled for"
            )
        if dtype(value) == ir.DataType.UINT8 and tensor.dtype != torch.uint8:
            continue  # of floats the shape alone counts: what bytes they are of nobody knows
        feeds[name] = tensor.numpy().astype(dtype(value).numpy())
    if labels is not None:
        (target,) = step.inputs(Role.LABELS)
        feeds[str(target.name)] = np.asarray(labels).astype(dtype(target).numpy())


def _as_floats(
    step: TrainingStep, feeds: Mapping[str, Array], inputs: Example, folder: Path
) -> Example:
    """What the module is given of a batch that is fed as bytes: the floats that they stand for."""
    nodes = [node for node in step.graph if node.op_type in NORMALIZATIONS]
    if not nodes:
        return inputs
    x, factor, shift = (str(value.name) for value in nodes[0].inputs if value is not None)
    stored, _ = read_tensors(folder / WEIGHTS_FILE)
    leaves = list(inputs.leaves)
    floats = normalized(feeds[x], stored[factor], stored[shift])
    leaves[inputs.places[0]] = torch.from_numpy(floats)
    return replace(inputs, leaves=leaves)


def _weights(step: TrainingStep, module: nn.Module, folder: Path) -> dict[str, Array]:
    """The module's present weights as the step stores them; constants as the folder has them."""
    stored, _ = read_tensors(folder / WEIGHTS_FILE)
    own = {name: v.detach().numpy() for name, v in module.state_dict().items()}
    own |= {n: nearest(own[n], unit) for n, unit in latent_units(step).items() if n in own}
    found: dict[str, Array] = {}
    for value in step.inputs(*PERSISTENT):
        name, kind = str(value.name), dtype(value).numpy()
        array = own.get(name, stored.get(name))
        if array is not None and array.shape != dims(value):
            raise UsageError(
                f"{type(module).__name__}: {name!r} has shape {list(array.shape)}, expected "
                f"{list(dims(value))}, as {folder} has it; take the module that was exported"
            )
        found[name] = np.zeros(dims(value), kind) if array is None else array.astype(kind)
    return found


def _rows(
    ours: Mapping[str, Array], reference: Reference, module: nn.Module, min_cosine: float | None
) -> list[Row]:
    trained = trained_names(module)
    right = reference.right.gradients
    names = {id(p): n for n, p in module.named_parameters(remove_duplicate=False) if n in ours}
    top = max((float(np.linalg.norm(g)) for g in right.values()), default=0.0)
    rows = []
    for first, parameter in module.named_parameters():
        name = names.get(id(parameter), first)
        gradient = ours.get(name)
        if gradient is None and first not in right:
            continue
        t = right.get(first, np.zeros(tuple(parameter.shape), np.float32))
        a = np.zeros_like(t) if gradient is None else gradient.reshape(t.shape)
        if gradient is not None and name not in trained:
            defect = "trained in the folder, but requires no gradient in PyTorch"
        else:
            defect = _judged(first, a, t, reference, top, min_cosine)
            if defect and gradient is None:
                defect = "not trained in the folder, but in PyTorch; requires_grad_(False) there?"
        norms = float(np.linalg.norm(t)), float(np.linalg.norm(a))
        rows.append(Row(name, *norms, difference(t, a).cosine, defect))
    return rows


def _judged(
    name: str, a: Array, t: Array, reference: Reference, top: float, min_cosine: float | None
) -> str:
    """What is wrong with gradient a where PyTorch has t; empty if nothing is."""
    na, nt = float(np.linalg.norm(a)), float(np.linalg.norm(t))
    if max(na, nt) <= _NEGLIGIBLE * top:
        return ""
    found = difference(t, a)
    if min_cosine is not None:
        least = found.expected(min_cosine)
        short = found.cosine < least - ROUNDING
        return f"cosine {found.cosine:.4f}, expected at least {least:.4f}" if short else ""
    if found.cosine >= _COSINE and abs(na - nt) <= _NORM * nt:
        return ""
    exact, spread = reference.exact(name)
    if exact is not None:
        allowed = 3 * max(spread, float(np.linalg.norm(t - exact)))
        if np.linalg.norm(a - exact) <= allowed + 1e-3 * np.linalg.norm(exact):
            return ""
    return f"cosine {found.cosine:.4f}, norm {na:.4g}, PyTorch's {nt:.4g}"
