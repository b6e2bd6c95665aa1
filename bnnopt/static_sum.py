"""The paper's static sum of a compiled step: as it was, and in the types that the passes chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from bnnopt.analysis import STANDARD, PaperClass, Scheme, paper_rule, paper_rule_bytes
from bnnopt.passes import PassRecord
from bnnopt.tables import BeforeAfter, Listing, before_after
from bnnopt.training_step import TrainingStep

# What a pass changes in the paper's table, as fields of a `Scheme`.
_CHOICES: dict[str, dict[str, int | bool]] = {
    "sign-pack": {"binary_x": 1},
    "pool-index": {"masks": 1},
    "binary-weight-gradients": {"weight_gradients": 1},
    "drop-adam-second-moment": {"n_momenta": 1},
    "float16-state": {"weights": 16, "momenta": 16},
    "float16-gradients": {"outputs": 16, "dy": 16, "real_x": 16},
    "pow2-gradients": {"dy": 5},
    "bnn-batch-norm-backward": {"normalized": True, "statistics": 16},
}
# Class: its sign in the paper, and the field that holds its bits.
_ROWS = {
    PaperClass.ACTIVATIONS: ("X, retained activations", "binary_x"),
    PaperClass.OUTPUTS: ("dX and Y, one buffer", "outputs"),
    PaperClass.GRADIENTS: ("dY", "dy"),
    PaperClass.WEIGHTS: ("W", "weights"),
    PaperClass.WEIGHT_GRADIENTS: ("dW", "weight_gradients"),
    PaperClass.MOMENTA: ("momenta", "momenta"),
    PaperClass.MASKS: ("pooling masks", "masks"),
    PaperClass.STATISTICS: ("mu, psi, omega, beta", "statistics"),
}
_TYPES = {1: "bool", 16: "float16", 32: "float32"}


@dataclass(frozen=True)
class StaticSum:
    """Bytes by class, of the standard scheme and of the one that the passes amount to.

    Attributes
    ----------
    before, after : mapping of PaperClass to int
        Pooling masks are counted on both sides.
    masked_before, masked_after : int
        The totals with pooling masks in the standard alone, as published for CNV and ResNetE-18.
    scheme : Scheme
        Of `after`.
    """

    before: Mapping[PaperClass, int]
    after: Mapping[PaperClass, int]
    masked_before: int
    masked_after: int
    scheme: Scheme

    @classmethod
    def of(cls, reference: TrainingStep, records: Sequence[PassRecord]) -> StaticSum:
        """The sums of an unrewritten step and the ledger of its passes."""
        changes: dict[str, Any] = {}
        for record in records:
            if record.rewrites:
                changes |= _CHOICES.get(record.name, {})
        scheme = replace(STANDARD, **changes)
        packed = scheme.masks < STANDARD.masks
        published = replace(STANDARD, published_masks=packed)
        without_masks = replace(scheme, masks=0 if packed else scheme.masks)
        return cls(
            before=paper_rule(reference),
            after=paper_rule(reference, scheme),
            masked_before=paper_rule_bytes(reference, published),
            masked_after=paper_rule_bytes(reference, without_masks),
            scheme=scheme,
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON contract."""
        return {
            "standard_bytes": sum(self.before.values()),
            "optimized_bytes": sum(self.after.values()),
            "masks_before_alone": {
                "standard_bytes": self.masked_before,
                "optimized_bytes": self.masked_after,
            },
            "classes": {
                kind.value: {
                    "standard_bytes": self.before[kind],
                    "optimized_bytes": self.after[kind],
                }
                for kind in PaperClass
            },
        }


def render_static(found: StaticSum) -> Listing:
    """The paper's table 2 for this step."""
    bits_before, bits_after = asdict(STANDARD), asdict(found.scheme)
    rows = [
        BeforeAfter(
            title,
            _type(bits_before[field]),
            found.before[kind],
            _type(bits_after[field]),
            found.after[kind],
        )
        for kind, (title, field) in _ROWS.items()
    ]
    totals = [BeforeAfter("total", "", sum(found.before.values()), "", sum(found.after.values()))]
    if found.after[PaperClass.MASKS] < found.before[PaperClass.MASKS]:
        title, after = "total, masks before alone", found.masked_after
        totals.append(BeforeAfter(title, "", found.masked_before, "", after))
    return before_after("The same by the paper's static rule", rows, totals)


def _type(n_bits: int) -> str:
    return _TYPES.get(n_bits, f"{n_bits} bits")
