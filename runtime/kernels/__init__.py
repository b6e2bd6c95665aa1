"""Numpy kernels of the operators that the device-side executor runs.

One function per operator: the ONNX inputs are positional (None for an omitted optional one), the
ONNX attributes keyword-only under their ONNX names, the result one array or a tuple of arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Kernel = Callable[..., Array | tuple[Array, ...]]


def at_least_float32(x: Array) -> Array:
    """Return x itself if it is float32 or float64, else its elements as float32."""
    return x if x.dtype.kind == "f" and x.dtype.itemsize >= 4 else x.astype(np.float32)
