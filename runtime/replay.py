"""Latent replay: what a frozen front gave for earlier samples, mixed into the batches of new ones.

A network that learns new classes forgets the old ones. Samples of these are kept as what the frozen
front makes of them: signs as bits where the trained layers behind it are binary, else int8.

Source: Vorabbi et al., arXiv:2401.09916, whose replays have one bit an element.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnnopt.errors import ArtifactError, UsageError
from bnnopt.runtime.executor import Observer
from bnnopt.runtime.files import StrPath, reason_of
from bnnopt.runtime.format import Program, StepSpec
from bnnopt.runtime.front import Front
from bnnopt.runtime.native import NativeBackend
from bnnopt.runtime.parts import Part, in_parts, lengthened
from bnnopt.runtime.tensors import read_tensors, write_tensors

Array = NDArray[Any]
_ENDING = ".replay.safetensors"
_FRONT = "front"  # metadata: the checksum of the front that gave them
_INT8 = 127


def default_file(out: StrPath) -> str:
    """Where the replays of an output folder go: beside it."""
    return os.path.abspath(os.fspath(out)) + _ENDING


class Latents(NamedTuple):
    """Samples as the front gives them.

    Attributes
    ----------
    rows : list of ndarray
        (n, bytes or numbers of a sample) for each group of `Front.latents`; numbers that were
        floats are int8.
    scales : list of ndarray
        (n,) float32 of each, by which int8 is multiplied; empty for what is kept as it is.
    labels : ndarray
        (n, ...): targets.
    """

    rows: list[Array]
    scales: list[Array]
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def n_bytes(self) -> int:
        """Of all but the labels."""
        return sum(array.nbytes for array in (*self.rows, *self.scales))

    def take(self, indices: Array) -> Latents:
        """Some of them."""
        return Latents(
            [rows[indices] for rows in self.rows],
            [scale[indices] if len(scale) else scale for scale in self.scales],
            self.labels[indices],
        )

    def and_others(self, others: Latents) -> Latents:
        """These, and others of the same front behind them."""
        pairs = zip((*self.rows, *self.scales), (*others.rows, *others.scales), strict=True)
        joined = [np.concatenate(pair) for pair in pairs]
        labels = np.concatenate([self.labels, others.labels])
        return Latents(joined[: len(self.rows)], joined[len(self.rows) :], labels)


class Replay:
    """A file of latents, and how they come into a session's batches.

    Parameters
    ----------
    program : Program
        The training step.
    persistent : mapping of str to ndarray
        The session's weights.
    path : path
        The file; there may be none yet.
    n : int
        Rows of each batch that are drawn from it.
    seed : int
        Of which ones a step takes.

    Raises
    ------
    UsageError
        If the step has no frozen front, the file was made with another, or `n` leaves no room for
        new samples.
    ArtifactError
        If the file is damaged.

    Attributes
    ----------
    kept : Latents or None
        What the file holds.
    mixed : int
        `n`, or 0 where nothing was kept yet.
    """

    def __init__(
        self,
        program: Program,
        persistent: Mapping[str, Array],
        path: StrPath,
        n: int = 0,
        seed: int = 0,
    ) -> None:
        if not 0 <= n < program.batch_size:
            raise UsageError(
                f"replay: {n} of a batch of {program.batch_size} samples; expected 0 to "
                f"{program.batch_size - 1}, so that there is room for new ones"
            )
        self.front = Front.of(program)
        self.path = os.fspath(path)
        self._program = program
        self._checksum = self.front.checksum(persistent)
        self.kept = self._read() if os.path.exists(self.path) else None
        self.mixed, self._seed = n if self.kept is not None else 0, seed

    def remember(self, found: Latents, keep: int) -> Latents:
        """Keep so many in the file, of each label alike: those that are there, then `found`.

        Raises
        ------
        ArtifactError
            If the file cannot be written; what was there still is.
        """
        known = found if self.kept is None else self.kept.and_others(found)
        self.kept = known.take(balanced(known.labels, keep))
        tensors = {"labels": self.kept.labels}
        for i, (rows, scale) in enumerate(zip(self.kept.rows, self.kept.scales, strict=True)):
            tensors |= {f"rows.{i}": rows, f"scale.{i}": scale}
        try:
            write_tensors(self.path, tensors, {_FRONT: str(self._checksum)})
        except OSError as error:
            raise ArtifactError(f"{self.path}: cannot be written: {reason_of(error)}") from None
        return self.kept

    def drawn(self, step: int) -> Latents:
        """The latents that a step replays: different ones, where there are so many."""
        assert self.kept is not None, "nothing is kept yet"
        random, n = np.random.default_rng([self._seed, step]), len(self.kept)
        return self.kept.take(random.choice(n, self.mixed, replace=self.mixed > n))

    def latents(
        self, backend: NativeBackend, data: tuple[Array, ...], labels: tuple[Array, ...]
    ) -> Latents:
        """What the front gives for some samples, at most a batch."""
        program, n = self._program, len(data[0])
        rest = -n % program.batch_size if program.fixed_batch else 0
        (part,) = in_parts(lengthened(data, rest), lengthened(labels, rest), program.batch_size)
        rows: list[Array] = []
        feeds = part.feeds(0.0, 1, program.roles)
        backend.run_only(self.front.positions, feeds, part.batch, self.collector(part.batch, rows))
        return encoded([array[:n] for array in rows], labels[0])

    def injector(self, latents: Latents, part: Part) -> Observer:
        """Puts latents into the last rows of a part, behind the node that gives them."""
        place = {i: g for g, group in enumerate(self.front.latents) for i in group}

        def inject(step: StepSpec, outputs: tuple[Array, ...]) -> None:
            written = [i for i in step.outputs if i >= 0]
            for i, array in zip(written, outputs, strict=True):
                if i in place:
                    rows, scale = latents.rows[place[i]], latents.scales[place[i]]
                    samples = array.reshape(part.times, part.batch // part.times, -1)
                    samples[:, -len(latents) :] = rows * scale[:, None] if len(scale) else rows

        return inject

    def collector(self, batch: int, into: list[Array]) -> Observer:
        """Takes down the rows of a batch, one array for each group of the front's latents."""
        first = {group[0]: g for g, group in enumerate(self.front.latents)}
        into[:] = [np.empty(0)] * len(first)

        def collect(step: StepSpec, outputs: tuple[Array, ...]) -> None:
            written = [i for i in step.outputs if i >= 0]
            for i, array in zip(written, outputs, strict=True):
                if i in first:
                    into[first[i]] = array.reshape(batch, -1).copy()

        return collect

    def _read(self) -> Latents:
        tensors, metadata = read_tensors(self.path)
        if metadata.get(_FRONT) != str(self._checksum):
            raise UsageError(
                f"{self.path}: was kept by another frozen front; go on with the same weights and "
                "frozen layers, or choose another file"
            )
        try:
            n_groups = len(self.front.latents)
            rows = [tensors[f"rows.{i}"] for i in range(n_groups)]
            found = Latents(
                rows, [tensors[f"scale.{i}"] for i in range(n_groups)], tensors["labels"]
            )
            self._check(found)
        except (LookupError, ValueError) as error:
            raise ArtifactError(f"{self.path}: is damaged ({error}); keep samples anew") from None
        return found

    def _check(self, found: Latents) -> None:
        """Refuse rows that are not those of this front."""
        for rows, scale, group in zip(found.rows, found.scales, self.front.latents, strict=True):
            spec = self._program.values[group[0]]
            length = int(np.prod(spec.shape_at(1)))
            if self._program.fixed_batch and spec.shape[0] > 0:
                length //= self._program.batch_size
            is_float = np.dtype(spec.dtype).kind == "f"
            kind = np.dtype(np.int8 if is_float else spec.dtype)
            if rows.shape != (len(found), length) or rows.dtype != kind:
                raise ValueError(f"{rows.dtype} {list(rows.shape)}, expected {kind} [n, {length}]")
            if scale.shape != ((len(found),) if is_float else (0,)):
                raise ValueError(f"scales {list(scale.shape)}")


def encoded(rows: Sequence[Array], labels: Array) -> Latents:
    """Latents of what the front gave: (n, numbers) of any dtype; floats become int8 by sample."""
    kept, scales = [], []
    for array in rows:
        if array.dtype.kind != "f":
            kept.append(array)
            scales.append(np.empty(0, np.float32))
            continue
        scale = np.maximum(np.abs(array).max(axis=1), np.finfo(np.float32).tiny) / _INT8
        kept.append(np.rint(array / scale[:, None]).astype(np.int8))
        scales.append(scale.astype(np.float32))
    return Latents(kept, scales, labels)


def balanced(labels: Array, keep: int) -> Array:
    """Indices of so many, of each label alike; the first of each before the others."""
    if labels.ndim > 1 or labels.dtype.kind == "f":  # no classes: the first, and the newest
        return np.unique(
            np.linspace(0, len(labels) - 1, min(keep, len(labels))).round().astype(int)
        )
    places = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    chosen, left = [], keep
    for n_others, own in zip(range(len(places), 0, -1), sorted(places, key=len), strict=True):
        chosen.append(own[: -(-left // n_others)] if left else own[:0])
        left -= len(chosen[-1])
    return np.sort(np.concatenate(chosen))
