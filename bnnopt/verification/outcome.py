"""What a comparison of two steps found, and whether that is as promised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bnnopt.passes.binary_weight_gradients import BinaryWeightGradients

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
