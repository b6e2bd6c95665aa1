"""What products that read their dy in a narrow form have in common: what they look like."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TypeAlias

from bnnopt.runtime.kernels import Array

Product: TypeAlias = Callable[..., Array]


def place_of_dy(plain: Product) -> int:
    """Which input of a product is dy."""
    return [*inspect.signature(plain).parameters].index("dy")


def dressed(product: Product, plain: Product, dy: Sequence[str], options: Sequence[str]) -> Product:
    """Give `product` the inputs and options of `plain`, with the names `dy` where that has its dy.

    Parameters
    ----------
    product : Product
        It may take anything.
    plain : Product
        Whose work it does.
    options : sequence of str
        Those that it has beside.
    """
    parameters = [*inspect.signature(plain).parameters.values()]
    place = place_of_dy(plain)
    parameters[place : place + 1] = [parameters[place].replace(name=name) for name in dy]
    parameters += [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in options]
    product.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    product.__name__ = plain.__name__
    product.__doc__ = f"`{plain.__name__}` of {', '.join(dy)} in the place of dy."
    return product
