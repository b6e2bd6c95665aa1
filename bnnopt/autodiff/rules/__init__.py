"""The gradient rules by family, forward and backward side by side.

A rule takes a `Context` and returns the gradient of each wanted input, by index. ``dy`` is the
gradient of the loss with respect to output ``y``; sums over broadcast axes are implied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from bnnopt.autodiff.context import Context

Grads = Mapping[int, ir.Value]
Rule = Callable[[Context], Grads]
