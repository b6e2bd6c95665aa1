"""The static sum of Wang et al., table 2: no schedule, every class at its full size.

Printed beside the planned peak, so that figures can be compared with the paper's. Masks of the
straight-through estimator are counted by no table of the paper, and not here.
"""

from __future__ import annotations

import math

from bnnopt.analysis.values import PRODUCTS
from bnnopt.ops import dims
from bnnopt.training_step import PERSISTENT, Role, TrainingStep, phase, role

FLOAT_BYTES = 4
STATISTIC_VECTORS = 4  # mean, deviation, beta and its gradient, one entry a channel


def paper_rule_bytes(step: TrainingStep, binary: bool) -> int:
    """The paper's total for an unrewritten step.

    Parameters
    ----------
    step : TrainingStep
        As built, before any pass.
    binary : bool
        Count retained activations and pooling masks at one bit, as the lossless level keeps them;
        else at 32.

    Returns
    -------
    int
        Bytes: retained activations (the input of every layer, and the logits), two transient
        buffers of the largest layer input, pooling masks, statistics, weights, their gradients and
        the optimiser's state.
    """
    forward = [node for node in step.graph if phase(node) == "forward"]
    layers = [node for node in forward if node.op_type in PRODUCTS]
    inputs = [math.prod(dims(node.inputs[0])) for node in layers]
    logits = math.prod(dims(layers[-1].outputs[0])) if layers else 0
    masks = sum(math.prod(dims(n.inputs[0])) for n in forward if n.op_type == "MaxPool")
    channels = sum(
        dims(n.inputs[2])[0] for n in forward if n.op_type == "BatchNormalizationTraining"
    )
    kept_bits = 1 if binary else 8 * FLOAT_BYTES
    kept = math.ceil((sum(inputs) + logits + masks) * kept_bits / 8)
    elements = 2 * max(inputs, default=0) + STATISTIC_VECTORS * channels + _weights(step)
    return kept + FLOAT_BYTES * elements


def _weights(step: TrainingStep) -> int:
    """Elements of the layers' weights, their gradients and their optimiser state."""
    total = 0
    for value in step.graph.inputs:
        if role(value) in PERSISTENT and len(dims(value)) > 1:
            total += math.prod(dims(value)) * (2 if role(value) is Role.PARAMETER else 1)
    return total
