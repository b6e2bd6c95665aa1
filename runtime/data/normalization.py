"""How stored numbers become what the network sees: (x / scale - mean) / std, batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnnopt.errors import UsageError
from bnnopt.runtime.data.dataset import Dataset
from bnnopt.runtime.kernels.on_read import normalized

Array = NDArray[Any]
_SAMPLES = 10_000  # that mean and deviation are taken from
_CHUNK = 256
_LARGEST = 30.0  # beyond it, numbers look as if nobody had scaled them


class Normalization(NamedTuple):
    """``(x / scale - mean) / std``; mean and std are one number, or one a channel (axis 1).

    Attributes
    ----------
    scale : float
        255 brings images of 8 bits to [0, 1].
    mean, std : tuple of float
        After the division by `scale`.
    """

    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @property
    def is_identity(self) -> bool:
        """Whether it changes nothing."""
        return self == AS_IT_IS

    def __str__(self) -> str:
        mean, std = (" ".join(f"{v:.4g}" for v in values) for values in (self.mean, self.std))
        return f"(x / {self.scale:g} - {mean}) / {std}"

    def __call__(self, x: Array) -> NDArray[np.float32]:
        """The batch x (n, ...) of any dtype as float32; one multiplication and one addition."""
        return normalized(x, *self.numbers(x.ndim))

    def numbers(self, n_axes: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The factor of x, and what is added then: one number each, or one a channel."""
        factor = 1 / (self.scale * np.array(self.std, np.float64))
        shift = -np.array(self.mean, np.float64) / self.std
        return _along(factor, n_axes), _along(shift, n_axes)

    def check(self, shape: Sequence[int], source: str) -> None:
        """Refuse numbers that are none for samples of `shape` (n, channels, ...).

        Raises
        ------
        UsageError
            Naming `source`.
        """
        if not (np.isfinite([self.scale, *self.mean]).all() and self.scale != 0):
            raise UsageError(f"{source}: {self}: expected finite numbers, and a scale other than 0")
        if not all(0 < v < np.inf for v in self.std):
            raise UsageError(f"{source}: std is {list(self.std)}, expected numbers above 0")
        for what, values in (("mean", self.mean), ("std", self.std)):
            if len(values) > 1 and (len(shape) < 2 or len(values) != shape[1]):
                raise UsageError(
                    f"{source}: {what} has {len(values)} numbers, expected 1, or one for each of "
                    f"the channels of {['n', *shape[1:]]}"
                )

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Normalization:
        """From what ``_asdict`` gave, through JSON."""
        return cls(float(fields["scale"]), tuple(fields["mean"]), tuple(fields["std"]))


AS_IT_IS = Normalization()
HALVES = Normalization(255.0, (0.5,), (0.5,))
"""Images of 8 bits to [-1, 1]: what a network whose first layer takes signs needs."""


def choose(
    dataset: Dataset,
    scale: float | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    from_data: bool = False,
) -> tuple[Normalization, str]:
    """The normalisation that options ask for, or that the data need, and a line that says which.

    Parameters
    ----------
    dataset : Dataset
        With one input; of several, only their own numbers are taken.
    scale, mean, std : optional
        Given numbers; what is left out is 1, 0 and 1.
    from_data : bool
        Mean and standard deviation of each channel, from the first 10,000 samples.

    Raises
    ------
    UsageError
        If numbers do not fit the data.
    """
    asked = scale is not None or mean is not None or std is not None or from_data
    if set(dataset.x) != {"x"}:
        if asked:
            raise UsageError(f"{dataset.source}: has several inputs; normalise them in the file")
        return Normalization(), ""
    x = dataset.x["x"]
    if asked:
        found = _measured(dataset, scale or 1.0) if from_data else _given(scale, mean, std)
        found.check(x.shape, dataset.source)
        return found, f"x becomes {found}"
    if x.dtype == np.uint8:
        return HALVES, f"x is uint8 and becomes {HALVES}, -1 to 1; --scale, --mean, --std change it"
    return Normalization(), _warning(dataset)


def _given(
    scale: float | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Normalization:
    return Normalization(scale or 1.0, tuple(mean or (0.0,)), tuple(std or (1.0,)))


def _measured(dataset: Dataset, scale: float) -> Normalization:
    """In float64, channel by channel, a chunk of samples at a time."""
    n = min(len(dataset), _SAMPLES)
    total = square = count = np.float64(0)
    for start in range(0, n, _CHUNK):
        x = np.asarray(dataset.inputs(np.arange(start, min(start + _CHUNK, n))), np.float64) / scale
        axes = tuple(i for i in range(x.ndim) if i != 1 or x.ndim < 3)
        total, square = total + x.sum(axes), square + (x * x).sum(axes)
        count += x.size / max(np.size(total), 1)
    mean = np.atleast_1d(total / count)
    deviation = np.sqrt(np.maximum(np.atleast_1d(square / count) - mean**2, 0))
    std = np.where(deviation > 0, deviation, 1.0)
    return Normalization(scale, tuple(map(float, mean)), tuple(map(float, std)))


def _warning(dataset: Dataset) -> str:
    """A word where numbers look as if nobody had scaled them."""
    x = np.asarray(dataset.inputs(np.arange(min(len(dataset), _CHUNK))))
    largest = float(np.abs(x).max(initial=0)) if x.dtype.kind == "f" else 0.0
    if largest <= _LARGEST:
        return ""
    return (
        f"x reaches {largest:g}; networks learn best from numbers of about -1 to 1: --scale 255 "
        "for images of 8 bits, --normalize for mean 0 and deviation 1"
    )


def _along(values: Array, n_axes: int) -> NDArray[np.float32]:
    """One number, or one for each place along axis 1."""
    shape = (1, -1) + (1,) * (n_axes - 2) if len(values) > 1 else (1,)
    return values.astype(np.float32).reshape(shape)
