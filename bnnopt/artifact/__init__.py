"""Writes what the device reads, and reads the graphs back."""

from bnnopt.analysis.batch import with_batch
from bnnopt.artifact.portable import compute, portable_model
from bnnopt.artifact.program import make_program, scaled_shapes
from bnnopt.artifact.read import load_step
from bnnopt.artifact.source import without_weights
from bnnopt.artifact.write import (
    REFERENCE_FILE,
    REPORT_FILE,
    Contents,
    check_folder,
    check_predictor_folder,
    write_folder,
    write_predictor,
)

__all__ = [
    "REFERENCE_FILE",
    "REPORT_FILE",
    "Contents",
    "check_folder",
    "check_predictor_folder",
    "compute",
    "load_step",
    "make_program",
    "portable_model",
    "scaled_shapes",
    "with_batch",
    "without_weights",
    "write_folder",
    "write_predictor",
]
