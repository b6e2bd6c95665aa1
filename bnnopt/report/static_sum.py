"""The paper's static sum of a compiled step: as it was, and in the types that the passes chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bnnopt.analysis import STANDARD, PaperClass, Scheme, paper_rule, paper_rule_bytes
from bnnopt.passes import PassRecord
from bnnopt.training_step import TrainingStep

# What a pass changes in the paper's table, as fields of a `Scheme`.
_CHOICES: dict[str, dict[str, int | bool]] = {
    "sign-pack": {"binary_x": 1},
    "pool-index": {"masks": 1},
    "binary-weight-gradients": {"weight_gradients": 1},
    "drop-adam-second-moment": {"n_momenta": 1},
    "float16-state": {"weights": 16, "momenta": 16},
    "state-8bit": {"momenta": 8},
    "float16-gradients": {"outputs": 16, "dy": 16, "real_x": 16},
    "int4-gradients": {"dy": 4},
    "int8-gradients": {"dy": 8},
    "pow2-gradients": {"dy": 5},
    "bnn-batch-norm-backward": {"normalized": True, "statistics": 16},
}


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
