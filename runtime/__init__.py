"""The device side: numpy and safetensors, nothing heavier."""

if __name__ != "bnnopt.runtime":
    raise ImportError("import this package as bnnopt.runtime, not as runtime")

from bnnopt.runtime.backends import BACKENDS
from bnnopt.runtime.predictor import Predictor
from bnnopt.runtime.session import TrainingSession

__all__ = ["BACKENDS", "Predictor", "TrainingSession"]
