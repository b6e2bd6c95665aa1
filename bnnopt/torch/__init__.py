"""PyTorch modules: what no ONNX file says of their gradients, checked, and trained weights back.

An extra: nothing else in bnnopt imports torch.
"""

from bnnopt.torch.checking import check
from bnnopt.torch.exporting import export
from bnnopt.torch.loading import load

__all__ = ["check", "export", "load"]
