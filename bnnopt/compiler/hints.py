"""What the passes did, or did not, that a user should know: notes that name options."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from bnnopt.frontend.straight_through import listed
from bnnopt.ops import dims
from bnnopt.passes import PassRecord, make_pass
from bnnopt.passes.int8_latents import PLACES
from bnnopt.training_step import TrainingStep

# Of fewer, a channel often does not vary at all over a batch: its gradient grows by 1 / sqrt(eps).
FEWEST_VALUES = 8


def hints(
    reference: TrainingStep, records: Sequence[PassRecord], enabled: Sequence[str]
) -> list[str]:
    """What to say of a rewritten step, given the step before and the passes that were asked for."""
    return [*_without_effect(records, enabled), *_overflows(reference, records)]


def cut_latents(
    weights: Mapping[str, NDArray[np.float32]], units: Mapping[str, float]
) -> list[str]:
    """What to say of weights that int8-latents starts smaller than they are, given their units."""
    reach = {name: PLACES * unit for name, unit in units.items()}
    cut = {n: np.count_nonzero(np.abs(weights[n]) > reach[n]) for n in reach}
    found = [name for name, count in cut.items() if count]
    if not found:
        return []
    share = sum(cut.values()) / sum(weights[name].size for name in units)
    return [
        f"{listed(found)}: {share:.2%} of the latent weights lie beyond {max(reach.values()):g} "
        "and start there, with their signs; --enable int8-latents{unit=U} for a larger unit"
    ]


def _without_effect(records: Sequence[PassRecord], enabled: Sequence[str]) -> Iterator[str]:
    names = {make_pass(spec).name for spec in enabled}
    for record in records:
        if record.name in names and not record.rewrites:
            first = record.skipped[0] if record.skipped else None
            why = "nothing is there for it" if first is None else f"{first.node!r}: {first.reason}"
            yield f"--enable {record.name} changes nothing: {why}"


def _overflows(reference: TrainingStep, records: Sequence[PassRecord]) -> Iterator[str]:
    few = [name for name, n_values in _batch_norms(reference) if n_values < FEWEST_VALUES]
    if few and any(r.name == "float16-gradients" and r.rewrites for r in records):
        yield (
            f"{listed(few)}: mean and deviation of fewer than {FEWEST_VALUES} values, so that "
            "gradients may overflow float16; take a larger batch or --disable float16-gradients"
        )


def _batch_norms(step: TrainingStep) -> Iterator[tuple[str, int]]:
    """Those with statistics of the batch, and of how many values each channel's are."""
    for node in step.graph:
        if node.op_type == "BatchNormalizationTraining" and (x := node.inputs[0]) is not None:
            yield str(node.name), math.prod(dims(x)) // dims(x)[1]
