"""The zoo at sizes for tests: the 18-layer networks with few channels and small images."""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.models import build

EIGHTEEN = ("resnet-e-18", "bi-real-18")
FIRST = ("mlp", "binarynet", "cnv", *EIGHTEEN, "resnet-e-mini", "relu-mini")
"""Those that most tests run; the blocks of papers are held to PyTorch in test_papers.py."""
LARGE = ("binarynet", *EIGHTEEN)
SIZES = {"size": 32, "classes": 10, "width": 4}


def build_small(name: str, seed: int = 0) -> ir.Model:
    """A network of the zoo, small where it has a size to choose."""
    return build(name, seed, **(SIZES if name in EIGHTEEN else {}))
