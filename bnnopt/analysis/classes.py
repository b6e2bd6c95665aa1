"""Variable classes, as in Wang et al., table 2: what a buffer is to the training step."""

from __future__ import annotations

from enum import StrEnum

import onnx_ir as ir

from bnnopt.analysis.storage import Buffer, kept_values, late_readers, roots
from bnnopt.ops import family, traits
from bnnopt.training_step import Role, TrainingStep, is_constant, role


class VariableClass(StrEnum):
    """The classes, in the order in which they are reported."""

    RETAINED = "retained_activations"
    MASKS = "masks_and_indices"
    TRANSIENT = "transient_activations_and_gradients"
    WEIGHTS = "weights"
    WEIGHT_GRADIENTS = "weight_gradients"
    OPTIMIZER_STATE = "optimizer_state"
    STATISTICS = "batch_norm_statistics"
    WORKSPACE = "workspace"


_BY_ROLE = {
    Role.PARAMETER: VariableClass.WEIGHTS,
    Role.FROZEN: VariableClass.WEIGHTS,
    Role.NORMALIZATION: VariableClass.WEIGHTS,
    Role.STATE: VariableClass.OPTIMIZER_STATE,
    Role.STATISTIC: VariableClass.STATISTICS,
}
_NORM = "BatchNormalizationTraining"
_SIGNS_OF_NORM = "BatchNormalizationSigns"


def classify(step: TrainingStep, all_buffers: list[Buffer]) -> dict[Buffer, VariableClass]:
    """The class of every buffer."""
    root_of = roots(step)
    kept = kept_values(step)
    gradients = {root_of[value] for value in step.gradients().values()}
    return {buffer: _classify(buffer, kept, gradients) for buffer in all_buffers}


def _classify(
    buffer: Buffer, kept: dict[ir.Value, list[ir.Value]], gradients: set[ir.Value]
) -> VariableClass:
    for value in buffer.values:
        kind = role(value)
        if kind in _BY_ROLE:
            return _BY_ROLE[kind]
        if is_constant(value):
            return VariableClass.WEIGHTS
    found = [value for value in buffer.values if value in kept]
    if found:
        return _classify_kept(found[0], kept[found[0]])
    if any(value in gradients for value in buffer.values):
        return VariableClass.WEIGHT_GRADIENTS
    return VariableClass.TRANSIENT


def _classify_kept(root: ir.Value, views: list[ir.Value]) -> VariableClass:
    producer = root.producer()
    if producer is None:
        return VariableClass.RETAINED
    is_result = root is producer.outputs[0] or root.dtype == ir.DataType.UINT8
    gives_bits = family(producer).endswith(_SIGNS_OF_NORM)  # also behind a convolution
    if (gives_bits or family(producer) == _NORM) and not is_result:
        return VariableClass.STATISTICS
    only_masks = all(node.op_type == "MaskedGrad" for node in late_readers(views))
    is_mask = root.dtype in (ir.DataType.BOOL, ir.DataType.INT64)
    is_mask |= root.dtype == ir.DataType.UINT8 and traits(producer).makes_mask
    is_mask |= gives_bits and root in producer.outputs[1:]
    packs_signs = producer.op_type == "SignPack" or gives_bits
    if is_mask or (packs_signs and only_masks):
        return VariableClass.MASKS
    return VariableClass.RETAINED
