"""int8-gradients: the gradient of a binary layer's output in int8, summed as integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from bnnopt.analysis import size_bytes
from bnnopt.ops import Emitter, Form, dims, family, form, ints
from bnnopt.passes.float16_state import SEED_STRIDE
from bnnopt.passes.in_place import homes, is_free, merge, write_over
from bnnopt.passes.infra.base import Pass, Trace
from bnnopt.passes.shared.narrow_gradients import read_by_products_alone, read_narrow
from bnnopt.passes.shared.rewriting import insert_after_definition
from bnnopt.runtime.kernels.compiled.pooling import side_by_side
from bnnopt.training_step import TrainingStep, readers, step_input

FIRST_SEED = 0x5851F42D  # apart from those of the weights


@dataclass(frozen=True)
class Int8Gradients(Pass):
    """Keep the gradient of a binary layer's output in int8 with one unit, and sum its integers.

    Backward:  q = round(dy / unit) by chance, unit = max |dy| / 127, written over dy; dw and dx are
               sums of q, in int16 and without an error, then times unit. Where a max pooling of
               2 x 2 makes dy, its own dy is rounded, and the integers are scattered.
    Saves:     half of a float16 dy while dw is made, and behind a pooling at all times; and time:
               twice as many lanes to a vector, and to a table of signed sums.
    Numbers:   lossy: rounding is stochastic, so dw and dx are right in the mean. Infinity and NaN
               make unit NaN, so all of dw and dx, and the step refuses to go on. Measured over all
               layers of MLP, CNV, BinaryNet and a small ResNetE: cosines of 0.997 and more.
    Skips:     a dy that something else reads, which is kept as it is anyway.
    Source:    Gupta et al., arXiv:1502.02551 (stochastic rounding).
    """

    name: ClassVar[str] = "int8-gradients"
    level: ClassVar[int] = 3
    after: ClassVar[Mapping[str, str]] = {
        "packed-products": "narrows the dy of kernels that read bits",
        "float16-gradients": "dx has the type that dy had",
    }
    lossless: ClassVar[bool] = False
    min_cosine: ClassVar[float] = 0.98
    changes_storage: ClassVar[bool] = True  # the step's number, for the random bits

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        packs = list[ir.Node]()
        for dy, nodes in read_by_products_alone(step, Form.INT8, trace):
            trace.choose(dy, f"{size_bytes(dy)} B are packed")
            seed = (FIRST_SEED + len(packs) * SEED_STRIDE) % 2**32
            packs.append(_narrow(step, dy, nodes, seed))
        _write_over_dy(step, packs)
        return len(packs)


def _write_over_dy(step: TrainingStep, packs: list[ir.Node]) -> None:
    home, position = homes(step), {node: i for i, node in enumerate(step.graph)}
    for pack in packs:
        if is_free(pack, (0, 0), home, position[pack]):
            write_over(pack, (0, 0))
            merge(home, pack.outputs[0], pack.inputs[0])


def _narrow(step: TrainingStep, dy: ir.Value, nodes: list[ir.Node], seed: int) -> ir.Node:
    """Let `nodes` read the integers of dy; the result is the node that rounds to them."""
    pool = _pooling(dy)
    rounded = pool.inputs[0] if pool is not None else dy
    assert rounded is not None
    emit = Emitter(step.graph, "backward")
    count, name = step_input(step.graph, emit.unique), f"{rounded.name}.int8"
    q = emit("Int8Pack", rounded, count, name=name, n_outputs=2, seed=seed)
    (pack,) = emit.nodes
    if pool is not None:
        own = {name: attribute.value for name, attribute in pool.attributes.items()}
        q = emit(pool.op_type, q, *pool.inputs[1:], name=f"{dy.name}.int8", **own)
    for node in nodes:
        read_narrow(step, node, (q, pack.outputs[1]), Form.INT8)
    insert_after_definition(step, dy, emit.nodes)
    if pool is not None:
        step.graph.remove(pool, safe=True)
    return pack


def _pooling(dy: ir.Value) -> ir.Node | None:
    """The gradient of a max pooling that makes dy, if it only moves what nobody else reads."""
    node = dy.producer()
    if node is None or family(node) != "MaxPoolGrad" or Form.PACKED not in form(node):
        return None
    pooled, _, origin = node.inputs
    assert pooled is not None
    assert origin is not None
    names = ("kernel_width", "row_dilation", "column_dilation")
    geometry = [node.attributes[name].as_int() for name in names]
    if len(ints(node, "bit_values")) != 2 or geometry != [2, 1, 1] or readers(pooled) != [node]:
        return None
    known = origin.const_value
    return node if known is not None and side_by_side(known.numpy(), *dims(dy)[2:]) else None
