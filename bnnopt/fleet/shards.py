"""The samples of one device."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from bnnopt.errors import UsageError
from bnnopt.fleet.options import RunOptions, Scalar
from bnnopt.runtime import TrainingSession
from bnnopt.runtime.data import Dataset, open_data

PARTITION, PARTITIONS = "partition-id", "num-partitions"  # Flower's keys of a node


def open_shard(
    session: TrainingSession, options: RunOptions, node: Mapping[str, Scalar]
) -> Dataset:
    """A device's own samples, or its share of those that all have.

    Raises
    ------
    UsageError
        If the data do not fit the network, or the node has no number.
    """
    spec = next(iter(session.inputs.values()))
    path = options.data
    if "{partition}" in path:
        path = path.replace("{partition}", str(_number(node, PARTITION)))
    found = open_data(path, spec.shape_at(1)[1:], spec.dtype, "train")
    if options.split == "none":
        return found
    if found.y is None:
        raise UsageError(f"{path}: has no targets to split by; expected an array y")
    k, n = _number(node, PARTITION), _number(node, PARTITIONS)
    alpha = options.alpha if options.split == "dirichlet" else None
    own = split(np.asarray(found.y[np.arange(len(found))]), n, options.seed, alpha)[k % n]
    x = {name: samples[own] for name, samples in found.x.items()}
    return Dataset(x, found.y[own], f"{path}, part {k} of {n}")


def split(
    labels: NDArray[np.int64], n: int, seed: int, alpha: float | None
) -> list[NDArray[np.int64]]:
    """Indices of the samples of each of n devices: disjoint, and all of them together.

    Parameters
    ----------
    labels : (samples,) int64
    n, seed : int
    alpha : float, optional
        Shares of each class are drawn from a Dirichlet distribution (Hsu et al.,
        arXiv:1909.06335); equal parts of shuffled samples if not given. Each device has a sample.
    """
    random = np.random.default_rng(seed)
    if alpha is None:
        return [np.sort(part) for part in np.array_split(random.permutation(len(labels)), n)]
    parts: list[list[NDArray[np.int64]]] = [[] for _ in range(n)]
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        bounds = np.cumsum(random.dirichlet(np.full(n, alpha)))[:-1] * len(members)
        for part, own in zip(parts, np.split(members, bounds.astype(int)), strict=True):
            part.append(own)
    found = [np.sort(np.concatenate(own)) for own in parts]
    for i in range(n):
        if not len(found[i]):
            largest = max(range(n), key=lambda j: len(found[j]))
            found[i], found[largest] = found[largest][:1], found[largest][1:]
    return found


def _number(node: Mapping[str, Scalar], key: str) -> int:
    value = node.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UsageError(f'{key} is {value!r}; expected a number: --node-config "{key}=0"')
    return value
