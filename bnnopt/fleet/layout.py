"""What of a network travels between devices and server: signs of weights, and a few floats."""

from __future__ import annotations

import math
from collections.abc import Mapping
from hashlib import sha256
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bnnopt.errors import UsageError
from bnnopt.runtime import TrainingSession

Floats = NDArray[np.float32]
Bits = NDArray[np.uint8]
Counts = NDArray[np.int64]


class State(NamedTuple):
    """The parameters of a network, flat.

    Attributes
    ----------
    signed : (n,) float32
        Weights of which signs travel.
    averaged : (m,) float32
        Running statistics and parameters that belong to channels, such as biases.
    """

    signed: Floats
    averaged: Floats


class Layout(NamedTuple):
    """The parameters that travel, by name, with their shapes; what is frozen stays at home.

    Attributes
    ----------
    signed, averaged : mapping of str to tuple of int
    """

    signed: Mapping[str, tuple[int, ...]]
    averaged: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, session: TrainingSession, binary_only: bool = False) -> Layout:
        """The layout of a compiled network.

        Parameters
        ----------
        session : TrainingSession
        binary_only : bool
            Signs of latent binary weights alone travel; if not, of every trained weight of two axes
            and more.

        Raises
        ------
        UsageError
            If the network has no such weights.
        """
        about, trained = session.about, session.trained_weights
        shapes = {
            name: tuple(about.persistent[name]) for name in trained if name not in about.packed
        }
        binary = [name for name in shapes if name in about.latent]
        signed = binary if binary_only else [name for name, s in shapes.items() if len(s) > 1]
        if not signed or about.packed:
            raise UsageError(
                f"{about.model} was compiled for {about.optimizer}, and has no "
                f"{'binary ' * binary_only}weights in float to take signs of; optimize with "
                "--optimizer sgd or adam"
            )
        others = [*(n for n in shapes if n not in signed), *session.statistics]
        return cls(
            {name: shapes[name] for name in signed},
            {name: tuple(about.persistent[name]) for name in others},
        )

    @classmethod
    def floats(cls, session: TrainingSession) -> Layout:
        """All that is trained travels as floats, as in federated averaging."""
        names, shapes = [*session.trained_weights, *session.statistics], session.about.persistent
        return cls({}, {n: tuple(session.about.packed.get(n, shapes[n])) for n in names})

    @property
    def n_signed(self) -> int:
        """Weights of which signs travel."""
        return sum(map(math.prod, self.signed.values()))

    @property
    def n_averaged(self) -> int:
        """Numbers that travel as floats."""
        return sum(map(math.prod, self.averaged.values()))

    @property
    def n_bytes_of_signs(self) -> int:
        """Packed."""
        return -(-self.n_signed // 8)

    def flat(self, parameters: Mapping[str, ArrayLike]) -> State:
        """The parameters of `TrainingSession.parameters`, one behind the other."""
        return State(*(_flat(parameters, shapes) for shapes in self))

    def named(self, state: State) -> dict[str, Floats]:
        """The reverse of `flat`: views, for `TrainingSession.load_parameters`."""
        found = {}
        for shapes, values in zip(self, state, strict=True):
            place = 0
            for name, shape in shapes.items():
                n = math.prod(shape)
                found[name] = values[place : place + n].reshape(shape)
                place += n
        return found


def _flat(parameters: Mapping[str, ArrayLike], shapes: Mapping[str, tuple[int, ...]]) -> Floats:
    arrays = [np.asarray(parameters[name], np.float32).reshape(-1) for name in shapes]
    return np.concatenate([*arrays, np.empty(0, np.float32)])


def digest(state: State) -> str:
    """That tells one state from another: SHA-256, in hexadecimal digits."""
    return sha256(b"".join(array.tobytes() for array in state)).hexdigest()


def pack_signs(values: Floats, random: np.random.Generator) -> Bits:
    """One bit for each of (n,) values, set where it is positive; by chance where it is 0.

    Returns
    -------
    (ceil(n / 8),) uint8
        Bit j of byte b is value ``8 b + j``; the spare bits of the last byte are 0.
    """
    positive = values > 0
    zeros = np.flatnonzero(values == 0)
    positive[zeros] = random.integers(0, 2, len(zeros)).astype(bool)
    return np.packbits(positive, bitorder="little")


def unpack_signs(bits: Bits, n: int) -> Floats:
    """-1 and +1 of packed signs: (n,) float32."""
    ones = np.unpackbits(bits, count=n, bitorder="little").astype(np.float32)
    return 2 * ones - 1


def pack_counts(counts: Counts, most: int) -> Bits:
    """Whole numbers from 0 to `most` as planes of bits, the lowest first.

    Parameters
    ----------
    counts : (n,) int64
    most : int

    Returns
    -------
    (bits of most, ceil(n / 8)) uint8
        Each plane packed as in `pack_signs`.
    """
    planes = [np.packbits((counts >> k) & 1, bitorder="little") for k in range(most.bit_length())]
    return np.stack(planes)


def unpack_counts(planes: Bits, n: int) -> Counts:
    """The reverse of `pack_counts`: (n,) int64."""
    counts = np.zeros(n, np.int64)
    for k, plane in enumerate(planes):
        counts += np.unpackbits(plane, count=n, bitorder="little").astype(np.int64) << k
    return counts
