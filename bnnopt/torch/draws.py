"""PyTorch's random numbers, those that the compiled step draws at its first step in their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bnnopt.errors import UsageError
from bnnopt.ops import dims
from bnnopt.runtime.kernels.reference.table import KERNELS
from bnnopt.torch.chance import WRITTEN_OUT

_UNIFORM = {torch.rand, torch.rand_like}
_DROPOUTS = {F.dropout, torch.dropout}
_STEP = np.array(1)


class OurDraws(TorchFunctionMode):
    """Every random number is the one of the folder's own nodes, taken in their order.

    Parameters
    ----------
    nodes : sequence of Node
        Those of the reference step that draw.
    """

    def __init__(self, nodes: Sequence[ir.Node]) -> None:
        super().__init__()
        self._nodes = iter(nodes)

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Called for every function of torch."""
        kwargs = kwargs or {}
        if func in _DROPOUTS:
            return self._dropped(*args, **kwargs)
        if func in _UNIFORM:
            return self._uniform(func(*args, **kwargs))
        if func in WRITTEN_OUT:
            return WRITTEN_OUT[func](self._uniform, *args, **kwargs)
        return func(*args, **kwargs)

    def _dropped(
        self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or not p:
            return input
        kept, _ = self._drawn("Dropout", input, np.ones(tuple(input.shape), np.float32))
        return input * torch.from_numpy(np.array(kept)).to(input.dtype)

    def _uniform(self, like: Tensor) -> Tensor:
        drawn = self._drawn("DrawUniform", like, np.empty(tuple(like.shape), np.bool_))
        return torch.from_numpy(np.array(drawn)).to(like.dtype)

    def _drawn(self, operator: str, like: Tensor, x: Any) -> Any:
        node = next(self._nodes, None)
        if node is None or node.op_type != operator or dims(node.inputs[0]) != tuple(like.shape):
            raise UsageError("its random numbers are not those of the folder; export it again")
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        return KERNELS[node.op_type](x, _STEP, **attributes)
