"""Data sets as files: read a batch at a time, kept in their own dtype, larger than memory."""

from bnnopt.runtime.data.dataset import Batch, Dataset
from bnnopt.runtime.data.normalization import Normalization
from bnnopt.runtime.data.opening import KINDS, open_data

__all__ = ["KINDS", "Batch", "Dataset", "Normalization", "open_data"]
