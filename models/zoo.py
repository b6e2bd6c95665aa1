"""The zoo's one table, and how to build from it.

``mlp.onnx``, ``relu-mini.onnx`` and ``resnet-e-mini.onnx`` beside this file are ``build(name)``
saved with ``onnx_ir.save``; a test holds them to that.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import onnx_ir as ir

from bnnopt.errors import UsageError, did_you_mean
from bnnopt.models import minis, residual, wang2023

ZOO: dict[str, Callable[..., ir.Model]] = {
    "mlp": wang2023.mlp,
    "binarynet": wang2023.binarynet,
    "cnv": wang2023.cnv,
    "resnet-e-18": residual.resnet_e_18,
    "bi-real-18": residual.bi_real_18,
    "resnet-e-mini": minis.resnet_e_mini,
    "relu-mini": minis.relu_mini,
}


def names() -> tuple[str, ...]:
    """Return the names of the zoo's networks, in the order of the table."""
    return tuple(ZOO)


def build(name: str, seed: int = 0, **sizes: int) -> ir.Model:
    """Build one network of the zoo, with freshly drawn weights.

    Parameters
    ----------
    name : str
        One of :func:`names`.
    seed : int
        Seed of the weights, 0 or more; the same seed gives the same bytes.
    **sizes : int
        What the network leaves open: of ``resnet-e-18`` and ``bi-real-18`` the input `size`, the
        number of `classes` and the first `width`.

    Returns
    -------
    onnx_ir.Model
        Input ``x`` float32 (batch, ...), output ``logits`` float32 (batch, classes).

    Raises
    ------
    UsageError
        The zoo has no network of that name, or the network has no such size.
    """
    if name not in ZOO:
        hint = did_you_mean(name, ZOO)
        raise UsageError(f"no network {name!r} in the zoo: choose one of {', '.join(ZOO)}{hint}")
    if seed < 0:
        raise UsageError(f"seed {seed} is negative: choose 0 or more")
    for option, number in sizes.items():
        if option not in inspect.signature(ZOO[name]).parameters:
            raise UsageError(f"{name} has no {option} to choose: it has one size")
        if number < 1:
            raise UsageError(f"{option} {number}: expected 1 or more")
    return ZOO[name](seed, **sizes)
