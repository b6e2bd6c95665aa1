"""The zoo's one table, and how to build from it.

``mlp.onnx``, ``relu-mini.onnx`` and ``resnet-e-mini.onnx`` beside this file are ``build(name)``
saved with ``onnx_ir.save``; a test holds them to that.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

from bnnopt.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import onnx_ir as ir

# Module and function of each builder; a list of the names then loads none of them.
ZOO: dict[str, str] = {
    "mlp": "wang2023:mlp",
    "binarynet": "wang2023:binarynet",
    "cnv": "wang2023:cnv",
    "resnet-e-18": "residual:resnet_e_18",
    "bi-real-18": "residual:bi_real_18",
    "resnet-e-mini": "minis:resnet_e_mini",
    "relu-mini": "minis:relu_mini",
    "reactnet": "blocks:react_net",
    "ir-net": "blocks:ir_net",
    "meliusnet": "blocks:melius_net",
    "boolnet": "blocks:bool_net",
    "lab": "blocks:lab",
    "mobinet": "blocks:mobi_net",
    "pokebnn": "blocks:poke_bnn",
    "quicknet": "blocks:quick_net",
    "twn": "low_bit:twn",
    "bitnet-mlp": "low_bit:bitnet_mlp",
    "pact-dorefa": "low_bit:pact_dorefa",
    "har": "tasks:activity",
    "unet": "tasks:u_net",
    "transformer": "tasks:transformer",
    "keyword-gru": "tasks:keyword_gru",
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
        What the network leaves open, of input `size`, number of `classes` and first `width`: those
        that its builder takes.

    Returns
    -------
    onnx_ir.Model
        Input ``x`` (batch, ...), float32 but for words, output ``logits`` float32 (batch,
        classes, ...).

    Raises
    ------
    UsageError
        The zoo has no network of that name, or the network has no such size.
    """
    if name not in ZOO:
        hint = did_you_mean(name, ZOO)
        raise UsageError(
            f"no network {name!r} in the zoo: choose one of {', '.join(sorted(ZOO))}{hint}"
        )
    if seed < 0:
        raise UsageError(f"seed {seed} is negative: choose 0 or more")
    builder = _builder(name)
    for option, number in sizes.items():
        if option not in inspect.signature(builder).parameters:
            raise UsageError(f"{name} has no {option} to choose: it has one size")
        if number < 1:
            raise UsageError(f"{option} {number}: expected 1 or more")
    return builder(seed, **sizes)


def _builder(name: str) -> Callable[..., ir.Model]:
    module, _, function = ZOO[name].partition(":")
    found: Callable[..., ir.Model] = getattr(
        importlib.import_module(f"bnnopt.models.{module}"), function
    )
    return found
