"""A row of the table of numpy kernels."""

from __future__ import annotations

from typing import Any, NamedTuple

from bnnopt.runtime.kernels import Kernel
from bnnopt.runtime.kernels.reference.parts import WHOLE, How


class NumpyKernel(NamedTuple):
    """A row of the table.

    Attributes
    ----------
    function : Kernel
        Inputs to the output, or to a tuple of them.
    how : How
        How it may run, so that it allocates little.
    indexes : bool
        It takes indices, which may be out of range.
    updates : bool
        It gives weights and states, which have to be finite.
    """

    function: Kernel
    how: How = WHOLE
    indexes: bool = False
    updates: bool = False

    def __call__(self, *inputs: Any, **attributes: Any) -> Any:
        """Run it whole."""
        return self.function(*inputs, **attributes)
