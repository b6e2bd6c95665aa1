"""A batch of example inputs, however the user gives it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from bnnopt.errors import UsageError


@dataclass(frozen=True)
class Example:
    """The arguments of a forward: `leaves` in the structure `spec`, tensors at `places`.

    `names` are those of the tensors, as the file's inputs.
    """

    leaves: list[Any]
    spec: Any
    places: list[int]
    names: list[str]

    @classmethod
    def of(cls, module: nn.Module, example: Any) -> Example:
        """From a tensor, a tuple of arguments or a dict of keyword arguments.

        Raises
        ------
        UsageError
            If there is no tensor with a batch in it.
        """
        args, kwargs = _arguments(example)
        leaves, spec = tree_flatten((args, kwargs))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        if not places or not leaves[places[0]].dim():
            raise UsageError(
                f"example: {type(example).__name__} found, expected a tensor with the batch in "
                "front, a tuple of arguments or a dict of keyword arguments"
            )
        return cls(leaves, spec, places, _names(module, args, kwargs))

    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors; fresh ones, so that no run changes the user's."""
        return tuple(self.leaves[i].detach().clone() for i in self.places)

    def filled(self, tensors: Sequence[Tensor]) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Arguments and keyword arguments with these tensors."""
        leaves = list(self.leaves)
        for i, tensor in zip(self.places, tensors, strict=True):
            leaves[i] = tensor
        args, kwargs = tree_unflatten(leaves, self.spec)
        return args, kwargs

    @property
    def batch_size(self) -> int:
        """Samples in the first tensor."""
        return int(self.leaves[self.places[0]].shape[0])

    @property
    def batched(self) -> list[str]:
        """The names of the tensors that have the batch in front."""
        pairs = zip(self.names, self.places, strict=True)
        return [n for n, i in pairs if self.leaves[i].shape[:1] == (self.batch_size,)]


def _arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Mapping):
        return (), dict(example)
    if not isinstance(example, tuple | list):
        return (example,), {}
    values = tuple(example)
    if values and isinstance(values[-1], dict):
        return values[:-1], values[-1]
    return values, {}


def _names(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """``x`` for a single tensor, else after the parameters of ``forward``."""
    try:
        own = list(inspect.signature(module.forward).parameters)
    except (TypeError, ValueError):
        own = []
    keys = [own[i] if i < len(own) else f"input{i}" for i in range(len(args))]
    found: list[str] = []
    for key, value in [*zip(keys, args, strict=True), *kwargs.items()]:
        n = sum(isinstance(leaf, Tensor) for leaf in tree_flatten(value)[0])
        found += [key] if n == 1 else [f"{key}.{i}" for i in range(n)]
    return ["x"] if len(found) == 1 else found
