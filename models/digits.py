"""Real digits of 8 x 8 pixels, and a small binary network for them: what ``bnnopt demo`` trains.

The images are the test set of "Optical Recognition of Handwritten Digits" by E. Alpaydin and C.
Kaynak (1998), UCI Machine Learning Repository, doi:10.24432/C50P49, licence CC BY 4.0; kept here as
``digits.npz``, x (1797, 1, 8, 8) uint8 from 0 to 16, y (1797,) uint8.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnnopt.models.wang2023 import from_listing

LISTING = "C32,BN,S | C32,MP2,BN,S | C64,BN,S | C64,MP2,BN,S | FC128,BN,S | FC10,BN"
N_TRAIN = 1400
Samples = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def digits(seed: int) -> ir.Model:
    """Binary network for digits: x (N, 1, 8, 8) in [-1, 1] -> logits (N, 10); 98,880 weights."""
    return from_listing("digits", LISTING, (1, 8, 8), seed, pad=1)


def digits_data() -> tuple[Samples, Samples]:
    """Images and labels to train on, 1,400 of 30 people's and others', and 397 to measure on."""
    with np.load(Path(__file__).with_name("digits.npz")) as file:
        x: Any = file["x"]
        y: Any = file["y"]
    return (x[:N_TRAIN], y[:N_TRAIN]), (x[N_TRAIN:], y[N_TRAIN:])
