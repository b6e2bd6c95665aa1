"""Pruning of weights while they are trained: the smallest become 0, more with each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled.calls import covered
from bnnopt.runtime.kernels.compiled.functions import CFunction

KEEP_LARGEST = CFunction("void bnn_keep_largest_f32(float*, i64, i64)")


class Pruning(NamedTuple):
    """Which weights are pruned, and how fast.

    After step t the share of zeros in every weight tensor is at least

        sparsity (1 - (1 - t / end)^3), and sparsity from step `end` on.

    Pruned weights stay in training: one that grows above the others comes back.
    Source: Zhu and Gupta, arXiv:1710.01878, equation 1; used by Hosny et al., arXiv:2110.15362.

    Attributes
    ----------
    sparsity : float
        Above 0, below 1.
    end : int
        Steps until it is reached.
    weights : sequence of str
        Names of the tensors, each pruned by itself.
    """

    sparsity: float
    end: int
    weights: Sequence[str]

    def share_at(self, step: int) -> float:
        """The share of zeros after step number `step`."""
        left = max(0.0, 1 - step / self.end)
        return self.sparsity * (1 - left**3)

    def apply(self, buffers: Mapping[str, Array], step: int) -> None:
        """Set the smallest weights to zero in place, after step number `step`."""
        for name in self.weights:
            prune(buffers[name], self.share_at(step))


def prune(weight: Array, share: float) -> None:
    """Set all but the largest magnitudes to +0.0 in place; of equal ones all stay or all go.

    Parameters
    ----------
    weight : ndarray of float32 or float16
    share : float
        Of elements that become zero, rounded down; of equal magnitudes at the bound all stay.
    """
    keep = weight.size - int(share * weight.size)
    if keep == weight.size:
        return
    if covered(weight):
        KEEP_LARGEST(weight, weight.size, keep)
        return
    kind = f"u{weight.itemsize}"
    magnitude = weight.view(kind) & np.array(2 ** (8 * weight.itemsize - 1) - 1, kind)
    floor = np.partition(magnitude, weight.size - keep, axis=None)[weight.size - keep]
    weight[magnitude < floor] = 0
