"""pool-index: keep where in its window each maximum was, in a few bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from bnnopt.analysis import saved
from bnnopt.ops import Emitter, Window, dims, n_index_bits, window
from bnnopt.passes.base import Pass, Trace
from bnnopt.passes.rewriting import insert_after_definition, late, redirect
from bnnopt.training_step import TrainingStep


@dataclass(frozen=True)
class PoolIndex(Pass):
    """Keep the place of each maximum in its window, not its place in the whole input.

    Forward:   y, i = max_pool(x)                         i: (N, C, Ho, Wo) int64
    Backward:  dx = dy scattered to i; i is rebuilt from the place in the window.
    Saves:     64 bits an output become ceil(log2(window)): 2 for 2x2, 4 for 3x3.  Bit-exact.
    Skips:     3-D pooling; a dilated kernel wider than the input.
    Source:    Gist (Jain et al., ISCA 2018), pool encoding.
    """

    name: ClassVar[str] = "pool-index"

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        return sum(self._pack(step, trace, root) for root in list(saved(step)))

    def _pack(self, step: TrainingStep, trace: Trace, indices: ir.Value) -> int:
        pool = indices.producer()
        if pool is None or pool.op_type != "MaxPool" or indices is pool.outputs[0]:
            return 0
        kernel = tuple(pool.attributes["kernel_shape"].as_ints())
        shape = window(pool, kernel)
        if len(kernel) > 2:
            return trace.skip(pool, f"{len(kernel)}-D pooling")
        if (kernel[-1] - 1) * shape.dilations[-1] >= shape.input_shape[-1]:
            return trace.skip(pool, "its dilated kernel is wider than the input")
        emit = Emitter(step.graph, "forward")
        origin = emit.constant(_origin(shape), np.int32, "window_origin")
        attributes = _attributes(shape)
        packed = emit(
            "PoolIndexPack", indices, origin, name=f"{indices.name}.packed", **attributes
        )
        insert_after_definition(step, indices, emit.nodes)
        bit_shape = [*dims(indices)[1:], len(attributes["bit_values"])]
        for node in late(indices):
            emit = Emitter(step.graph, "rebuild")
            name = f"{indices.name}.unpacked"
            unpacked = emit(
                *("PoolIndexUnpack", packed, origin), name=name, bit_shape=bit_shape, **attributes
            )
            redirect(node, indices, unpacked)
            step.graph.insert_before(node, emit.nodes)
        return 1


def _origin(shape: Window) -> np.ndarray:
    """Index in the plane of every window's first element; negative in the padding."""
    rows_of_one = len(shape.kernel_shape) == 1
    width = shape.input_shape[-1]
    starts = [
        np.arange(n) * stride - begin
        for n, stride, begin in zip(shape.output_shape, shape.strides, shape.begins, strict=True)
    ]
    return starts[0] if rows_of_one else starts[0][:, None] * width + starts[1][None, :]


def _attributes(shape: Window) -> dict[str, int | list[int]]:
    kernel = shape.kernel_shape
    n_bits = n_index_bits(int(np.prod(kernel)))
    return {
        "plane": int(np.prod(shape.input_shape)),
        "width": shape.input_shape[-1],
        "kernel_width": kernel[-1],
        "row_dilation": shape.dilations[0] if len(kernel) == 2 else 1,
        "column_dilation": shape.dilations[-1],
        "bit_values": [1 << i for i in range(n_bits)],
    }
