"""The largest tensors at the peak, and what would make them smaller."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bnnopt.analysis import Buffer, VariableClass
from bnnopt.ops import dims
from bnnopt.report.page.contents import Page, Version, codec
from bnnopt.report.text import CLASS_TITLES
from bnnopt.training_step import Role, role
from bnnopt.units import size

N_LARGEST = 10


@dataclass(frozen=True)
class Large:
    """A tensor at the peak, and what would make it smaller, the best first."""

    name: str
    kind: str
    n_bytes: int
    kept_as: str
    advice: tuple[str, ...]


def largest(page: Page, version: Version) -> list[Large]:
    """The largest buffers of a version at its peak."""
    others = [v for v in (*page.versions, *page.others) if v is not version and v.passes]
    return [
        Large(
            str(buffer.values[0].name),
            CLASS_TITLES[version.profile.classes[buffer].value],
            buffer.n_bytes,
            codec(buffer.values[0]),
            tuple(_advice(buffer, version, others)),
        )
        for buffer in version.alive_at_peak()[:N_LARGEST]
    ]


def _advice(buffer: Buffer, version: Version, others: list[Version]) -> Iterator[str]:
    """Other versions, another optimiser, a smaller batch; and why passes left it alone."""
    for other in others:
        found = _bytes_in(other, str(buffer.values[0].name))
        if found < buffer.n_bytes:
            yield f"{other.label}: {size(found) if found else 'not there at the peak'}"
    if version.profile.classes[buffer] is VariableClass.OPTIMIZER_STATE:
        yield (
            "--optimizer sgd keeps one number a weight, with --momentum 0 none; bop, of binary "
            "weights, one and no latent weight"
        )
    if role(buffer.values[0]) is Role.PARAMETER:
        yield "not training it (--freeze, --last) spares its state and its gradient"
    shape = dims(buffer.values[0])
    if not buffer.persistent and shape[:1] == (version.step.batch_size,):
        yield f"half the batch: {size(buffer.n_bytes / 2)}"
    names = {str(value.name) for value in buffer.values}
    for record in version.passes:
        for skip in record["skipped"]:
            if skip["node"] in names:
                yield f"{record['name']} left it: {skip['reason']}"


def _bytes_in(version: Version, name: str) -> int:
    """What is in memory under a name at the peak of a version."""
    return max(
        (b.n_bytes for b in version.alive_at_peak() if any(v.name == name for v in b.values)),
        default=0,
    )
