"""Random changes of a batch of images that leave the label as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnnopt.errors import UsageError

Array = NDArray[Any]
Change = Callable[[Array, np.random.Generator], Array]
_PADDING = 1 / 8  # of the height and width, as He et al., arXiv:1512.03385, pad CIFAR by 4 of 32
_SHIFT = 1 / 10


def flip(x: Array, random: np.random.Generator) -> Array:
    """Mirror each image (n, c, h, w) left to right with probability 1/2."""
    mirrored = random.random(len(x)) < 0.5
    return np.where(mirrored[:, None, None, None], x[..., ::-1], x)


def crop(x: Array, random: np.random.Generator) -> Array:
    """Pad each image (n, c, h, w) with its edge by an eighth, and cut its size out anywhere."""
    return _moved(x, random, _PADDING, "edge")


def shift(x: Array, random: np.random.Generator) -> Array:
    """Move each image (n, c, h, w) by up to a tenth each way; its darkest value comes in."""
    return _moved(x, random, _SHIFT, "constant")


CHANGES: Mapping[str, Change] = {"flip": flip, "shift": shift, "crop": crop}


def parse(names: Sequence[str], shape: Sequence[int]) -> list[Change]:
    """The changes that are named, for samples of `shape`.

    Raises
    ------
    UsageError
        If there is no such change, or the samples are no images (c, h, w).
    """
    for name in names:
        if name not in CHANGES:
            raise UsageError(f"--augment {name}: expected some of {', '.join(CHANGES)}")
    if names and len(shape) != 3:
        raise UsageError(
            f"--augment: is for images [n, channels, height, width]; x is {['n', *shape]}"
        )
    return [CHANGES[name] for name in names]


def _moved(x: Array, random: np.random.Generator, share: float, mode: Any) -> Array:
    height, width = x.shape[2:]
    down, right = (max(1, round(share * side)) for side in (height, width))
    filler = {"constant_values": x.min()} if mode == "constant" else {}
    padded = np.pad(x, ((0, 0), (0, 0), (down, down), (right, right)), mode, **filler)
    tops = random.integers(0, 2 * down + 1, len(x))
    lefts = random.integers(0, 2 * right + 1, len(x))
    moved = np.empty_like(x)
    for image, source, top, left in zip(moved, padded, tops, lefts, strict=True):
        image[:] = source[:, top : top + height, left : left + width]
    return moved
