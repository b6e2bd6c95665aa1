"""pool-index: keep where in its window each maximum was, in a few bits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnnopt.analysis import saved
from bnnopt.ops import Emitter, Window, dims, n_index_bits, window
from bnnopt.passes.base import Pass, Trace
from bnnopt.passes.rewriting import insert_after_definition, late, redirect
from bnnopt.training_step import TrainingStep

MAX_WINDOW = 256  # elements: an index in the window is one byte before it is packed


@dataclass(frozen=True)
class PoolIndex(Pass):
    """Keep the place of each maximum in its window, not its place in the whole input.

    Forward:   y, i = max_pool(x)                         i: (N, C, Ho, Wo) int64
    Backward:  dx = dy scattered to i; i is rebuilt from the place in the window.
    Saves:     64 bits an output become ceil(log2(window)): 2 for 2x2, 4 for 3x3.  Bit-exact.
    Skips:     other than 2-D pooling; a window of more than 256 elements; a dilated kernel wider
               than the input.
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
        if len(kernel) != 2:
            return trace.skip(pool, f"{len(kernel)}-D pooling")
        if math.prod(kernel) > MAX_WINDOW:
            return trace.skip(pool, f"its window has more than {MAX_WINDOW} elements")
        if (kernel[-1] - 1) * shape.dilations[-1] >= shape.input_shape[-1]:
            return trace.skip(pool, "its dilated kernel is wider than the input")
        emit = Emitter(step.graph, "forward")
        origin = emit.constant(_origin(shape), np.int32, "window_origin")
        bits, geometry = _bits(shape), _geometry(shape)
        name = str(indices.name)
        packed = emit(
            "PoolIndexPack", indices, origin, name=f"{name}.packed", bit_values=bits, **geometry
        )
        insert_after_definition(step, indices, emit.nodes)
        bit_shape = [*dims(indices)[1:], len(bits)]
        for node in late(indices):
            emit = Emitter(step.graph, "rebuild")
            unpacked = emit(
                "PoolIndexUnpack",
                packed,
                origin,
                name=f"{name}.unpacked",
                bit_shape=bit_shape,
                bit_values=bits,
                **geometry,
            )
            redirect(node, indices, unpacked)
            step.graph.insert_before(node, emit.nodes)
        return 1


def _origin(shape: Window) -> NDArray[np.int64]:
    """Index in the plane of every window's first element; negative in the padding."""
    rows, columns = (
        np.arange(n) * stride - begin
        for n, stride, begin in zip(shape.output_shape, shape.strides, shape.begins, strict=True)
    )
    return rows[:, None] * shape.input_shape[1] + columns


def _bits(shape: Window) -> list[int]:
    return [1 << i for i in range(n_index_bits(math.prod(shape.kernel_shape)))]


def _geometry(shape: Window) -> dict[str, int]:
    return {
        "plane": math.prod(shape.input_shape),
        "width": shape.input_shape[1],
        "kernel_width": shape.kernel_shape[1],
        "row_dilation": shape.dilations[0],
        "column_dilation": shape.dilations[1],
    }
