"""float16-state: keep weights and optimiser state in half precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from bnnopt.metadata import Key
from bnnopt.ops import Emitter, Form, dims, family, form, in_form, traits
from bnnopt.passes.infra.base import Pass, Trace
from bnnopt.passes.shared.on_read import read_wide
from bnnopt.passes.shared.rewriting import replace_node
from bnnopt.training_step import TrainingStep, readers, step_input, store_as

SEED_STRIDE = 0x85EBCA77  # between the random streams of two weights


@dataclass(frozen=True)
class Float16State(Pass):
    """Keep weights of more than one dimension, and their optimiser state, in float16.

    Forward:   sign bits are packed from the float16 weight itself, and products whose kernels can
               widen it piece by piece as they read it; other readers get it cast right before they
               run, so that no float32 copy outlives a layer.
    Update:    in float32, element by element; m is kept times 1024, Adam's second moment as its
               root times 1024 and rounded stochastically.
    Saves:     16 bits a weight and 16 a state. Vectors (biases, batch norms) stay float32.
    Numbers:   lossy: weights to 11 digits (5e-4 near 1, at most 65504), gradients' moments to 11
               digits from 6e-8 to 64 and to 3e-11 below: the naive form, v in float16, is 0 for
               gradients of +-1 / sqrt(N) from N = 33,000 on.
    Skips:     a weight whose optimiser step has no float16 form.
    Source:    Wang et al., arXiv:2102.04270, algorithm 2; Gupta et al., arXiv:1502.02551
               (stochastic rounding).

    Attributes
    ----------
    stochastic : bool
        Round new weights stochastically (their mean is exact), not to nearest.
    """

    name: ClassVar[str] = "float16-state"
    level: ClassVar[int] = 2
    after: ClassVar[Mapping[str, str]] = {
        "binary-weight-gradients": "narrows the step that reads signs",
        "drop-adam-second-moment": "narrows the states that are left",
    }
    lossless: ClassVar[bool] = False
    min_cosine: ClassVar[float] = 0.999
    changes_storage: ClassVar[bool] = True
    stochastic: bool = True

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        count = 0
        for node in [node for node in step.graph if Key.PARAMETER in node.metadata_props]:
            w = node.inputs[0]
            assert w is not None
            if node.op_type == "BopStep":
                _narrow_bop(step, node, seed=count * SEED_STRIDE % 2**32)
                count += 1
                continue
            if len(dims(w)) < 2 or w.dtype != ir.DataType.FLOAT:
                continue
            if in_form(family(node), form(node) | Form.HALF) is None:
                trace.skip(w, f"{node.op_type} has no float16 form")
                continue
            self._narrow(step, node, seed=count * SEED_STRIDE % 2**32)
            count += 1
        return count

    def _narrow(self, step: TrainingStep, node: ir.Node, seed: int) -> None:
        n_kept = len(node.outputs)
        w, gradient, *states = node.inputs[: n_kept + 1]
        assert w is not None
        for value in (w, *states):
            assert value is not None
            store_as(value, ir.DataType.FLOAT16)
        for user in readers(w):
            if user is not node and not traits(user).packs_halves:
                read_wide(step, user, w)
        emit = Emitter(step.graph, "update")
        count = step_input(step.graph, emit.unique)
        rest = [value for value in node.inputs[n_kept + 1 :] if value is not count]
        half = in_form(family(node), form(node) | Form.HALF)
        assert half is not None
        emit(
            half,
            *(w, gradient, *states, *rest, count),
            name=str(node.name),
            n_outputs=n_kept,
            stochastic=int(self.stochastic),
            seed=seed,
            w_unit=0.0,
            **{name: attribute.value for name, attribute in node.attributes.items()},
        )
        replace_node(step, node, emit)


def _narrow_bop(step: TrainingStep, node: ir.Node, seed: int) -> None:
    """Keep the momentum of binary weights in float16."""
    w, gradient, momentum = node.inputs
    assert momentum is not None
    store_as(momentum, ir.DataType.FLOAT16)
    emit = Emitter(step.graph, "update")
    emit(
        "HalfBopStep",
        *(w, gradient, momentum, step_input(step.graph, emit.unique)),
        name=str(node.name),
        n_outputs=2,
        seed=seed,
        **{name: attribute.value for name, attribute in node.attributes.items()},
    )
    replace_node(step, node, emit)
