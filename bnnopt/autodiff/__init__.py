"""Gradient rules, losses and optimiser updates: builds the training-step graph."""

from bnnopt.autodiff.build import (
    TrainingOptions,
    build_evaluation,
    build_imported_step,
    build_training_step,
)
from bnnopt.autodiff.gradients import GRADIENTS
from bnnopt.autodiff.losses import LOSSES, LossOptions
from bnnopt.autodiff.optimizers import (
    OPTIMIZERS,
    Bop,
    Optimizer,
    make_optimizer,
    numbers_of,
    read_optimizer,
)
from bnnopt.autodiff.selection import Selection

__all__ = [
    "GRADIENTS",
    "LOSSES",
    "OPTIMIZERS",
    "Bop",
    "LossOptions",
    "Optimizer",
    "Selection",
    "TrainingOptions",
    "build_evaluation",
    "build_imported_step",
    "build_training_step",
    "make_optimizer",
    "numbers_of",
    "read_optimizer",
]
