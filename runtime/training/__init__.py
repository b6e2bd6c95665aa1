"""Training over data sets: `fit` and what it needs; numpy only."""

from bnnopt.runtime.training.callbacks import Callback, EarlyStop, JsonLines
from bnnopt.runtime.training.checkpoints import (
    Checkpoints,
    default_folder,
    load_newest,
    newest,
    where_from,
)
from bnnopt.runtime.training.evaluation import evaluate, predictions
from bnnopt.runtime.training.history import Epoch, History
from bnnopt.runtime.training.loop import Progress, Recipe, as_dataset, fit
from bnnopt.runtime.training.replaying import remember

__all__ = [
    "Callback",
    "Checkpoints",
    "EarlyStop",
    "Epoch",
    "History",
    "JsonLines",
    "Progress",
    "Recipe",
    "as_dataset",
    "default_folder",
    "evaluate",
    "fit",
    "load_newest",
    "newest",
    "predictions",
    "remember",
    "where_from",
]
