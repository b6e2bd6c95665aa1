"""Train neural networks, binary ones above all, on devices with little memory.

``optimize`` compiles an ONNX model into a training step that fits; ``TrainingSession`` runs it.
Names are loaded when they are first used: a device needs numpy and safetensors only.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bnnopt.compiler import Optimized as Optimized
    from bnnopt.compiler import optimize as optimize
    from bnnopt.runtime import Predictor as Predictor
    from bnnopt.runtime import TrainingSession as TrainingSession
    from bnnopt.runtime import schedules as schedules

__version__ = "0.1.0"

_HOMES = {
    "Optimized": "bnnopt.compiler",
    "Predictor": "bnnopt.runtime",
    "TrainingSession": "bnnopt.runtime",
    "optimize": "bnnopt.compiler",
}
__all__ = [
    "Optimized",
    "Predictor",
    "TrainingSession",
    "__version__",
    "optimize",
    "schedules",
]


def __getattr__(name: str) -> object:
    if name == "schedules":
        return importlib.import_module("bnnopt.runtime.schedules")
    if name not in _HOMES:
        raise AttributeError(f"module 'bnnopt' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        from bnnopt.errors import no_compiler

        raise no_compiler(error, name) from None
