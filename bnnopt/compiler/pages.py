"""Pages that show a step before and after: of a compiled model, a file, a folder, two of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bnnopt.artifact import REFERENCE_FILE, REPORT_FILE, load_step
from bnnopt.compiler.building import Progress
from bnnopt.compiler.pipeline import Optimized, optimize
from bnnopt.errors import ArtifactError
from bnnopt.passes import LEVELS, Pass, in_order, make_pass, map_kernels, run_passes
from bnnopt.passes import select as passes_of_level
from bnnopt.report.page import Measured, Page, Version
from bnnopt.runtime.artifact import read_artifact, read_program
from bnnopt.runtime.format import TRAINING, Artifact
from bnnopt.training_step import TrainingStep

PROFILE_FILE = "profile.json"
BEFORE = "before any pass"


def page_of(optimized: Optimized) -> Page:
    """Of a compiled model: before and after, and what the levels above would give."""
    report = optimized.report.to_dict()
    kernels = _kernels(optimized.about.passes)
    versions = [
        Version(BEFORE, map_kernels(optimized.reference, kernels)),
        Version(f"-{report['level']}", optimized.training, report["passes"]),
    ]
    others = _levels_above(optimized.reference, report["level"], kernels)
    return Page(report["model"], _about(report), versions, others, frontier=_frontier(report))


def page_of_model(path: Path, settings: Mapping[str, Any], say: Progress) -> Page:
    """Of a model file: the step at every level."""
    versions: list[Version] = []
    for level in LEVELS:
        made = optimize(path, level=level, progress=say, **settings)
        report = made.report.to_dict()
        if not versions:
            versions.append(Version(BEFORE, made.training))
        else:
            versions.append(Version(f"-{level}", made.training, report["passes"]))
    return Page(path.name, _about(report, with_level=False), versions)


def page_of_folder(folder: Path) -> Page:
    """Of a folder: before and after, what the levels above would give, and what was measured.

    Raises
    ------
    ArtifactError
        If the folder cannot be read.
    """
    about, report = read_artifact(folder), _report(folder)
    reference, training = _before(folder, about), load_step(folder / f"{TRAINING}.onnx")
    versions = [
        Version(BEFORE, reference),
        Version(f"-{report['level']}", training, report["passes"], read_program(folder, TRAINING)),
    ]
    others = _levels_above(reference, report["level"], _kernels(about.passes))
    line = f"{report['model']}, {_about(report)}"
    measured, points = _measured(folder / PROFILE_FILE), _frontier(report)
    return Page(str(folder), line, versions, others, measured, points)


def version_of_folder(folder: Path, report: Mapping[str, Any]) -> Version:
    """The step of a folder whose report is known, for `page_of_pair`.

    Raises
    ------
    ArtifactError
        If it cannot be read.
    """
    step, program = load_step(folder / f"{TRAINING}.onnx"), read_program(folder, TRAINING)
    return Version(str(folder), step, report["passes"], program)


def page_of_pair(sides: Sequence[tuple[Version, Mapping[str, Any]]]) -> Page:
    """One step beside the other, each with its report."""
    abouts = [f"{v.label}: {report['model']}, {_about(report)}" for v, report in sides]
    title = " and ".join(version.label for version, _ in sides)
    return Page(title, "; ".join(abouts), [version for version, _ in sides])


def _before(folder: Path, about: Artifact) -> TrainingStep:
    """The step before any pass, on the kernels that the folder's runs on."""
    return map_kernels(load_step(folder / REFERENCE_FILE), _kernels(about.passes))


def _kernels(specs: Sequence[str]) -> list[Pass]:
    return [p for p in map(make_pass, specs) if p.maps_kernels]


def _levels_above(step: TrainingStep, level: str, kernels: Sequence[Pass]) -> list[Version]:
    """The versions of higher levels."""
    above = LEVELS[LEVELS.index(level) + 1 :] if level in LEVELS else ()
    versions = []
    for name in above:
        copy = TrainingStep(step.model.clone())
        records = run_passes(copy, in_order([*kernels, *passes_of_level(name)]))
        versions.append(Version(f"-{name}", copy, [asdict(record) for record in records]))
    return versions


def _about(report: Mapping[str, Any], with_level: bool = True) -> str:
    level = f", -{report['level']}" if with_level else ""
    return f"batch size {report['batch_size']}, {report['optimizer']}{level}"


def _frontier(report: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """What a budget could have bought, if there was one, and which of it was chosen."""
    budget = report.get("budget")
    if not budget:
        return ()
    keys = ("peak_bytes", "loss", "cost")
    chosen = [budget["chosen"][key] for key in keys]
    return [{**p, "is_chosen": [p[key] for key in keys] == chosen} for p in budget["frontier"]]


def _report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / REPORT_FILE).read_text())
    return found


def _measured(path: Path) -> Measured | None:
    """What ``train --profile`` wrote, if it is there."""
    if not os.path.exists(path):
        return None
    try:
        return Measured.of(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ArtifactError(
            f"{path}: not a profile of bnnopt train --profile; remove it, or profile again"
        ) from None
