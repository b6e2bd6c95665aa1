"""The static sum of Wang et al., table 2: no schedule, every class at its full size.

A pure function of the unrewritten step, printed beside the planned peak, so that figures can be
compared with the paper's. A `Scheme` says how many bits an element of each class takes.

What a class counts, read from the published figures:

- X: the input of every layer and the logits, each once; for real-valued networks also what a ReLU
  or an average pool reads. `PROPOSED` keeps batch norm's outputs as well where no sign reads them
  alone (a residual network has two tensors a block). Where the layer's weights are binary it is one
  bit an element, the real input of a first layer included; else the bits of a real activation.
- dX and Y share a buffer as large as the largest layer input; dY is as large as the largest input
  or output of a layer.
- Masks are those of max pooling. Masks of the straight-through estimator are in no table of the
  paper, unless `ste_masks` asks for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

import onnx_ir as ir

from bnnopt.analysis.values import is_binary
from bnnopt.ops import dims, is_view, traits
from bnnopt.training_step import Role, TrainingStep, phase, readers

STATISTIC_VECTORS = 4  # mean, deviation, beta and its gradient, one entry a channel


class PaperClass(StrEnum):
    """The rows of the table, in their order."""

    ACTIVATIONS = "activations"  # X
    OUTPUTS = "outputs_and_input_gradients"  # Y and dX, one shared buffer
    GRADIENTS = "output_gradients"  # dY
    WEIGHTS = "weights"
    WEIGHT_GRADIENTS = "weight_gradients"
    MOMENTA = "momenta"
    MASKS = "pooling_masks"
    STATISTICS = "statistics"  # mu, psi, omega, beta and its gradient


@dataclass(frozen=True)
class Scheme:
    """Bits an element of each class takes.

    Attributes
    ----------
    binary_x, real_x : int
        Retained activations of layers with binary weights, and of others.
    outputs, dy : int
        The buffer of Y and dX, and that of dY.
    weights, weight_gradients, momenta, statistics, masks : int
        0 leaves a class out.
    n_momenta : int or None
        Momenta an optimiser keeps; None for as many as the step has.
    normalized : bool
        Whether batch norm's outputs are retained beside the layers' inputs.
    published_masks : bool
        Count a pooling mask at the size of the preceding convolution's input where that is larger:
        the published figure of CNV.
    ste_masks : bool
        Count one bit for each element that is binarised.
    """

    binary_x: int = 32
    real_x: int = 32
    outputs: int = 32
    dy: int = 32
    weights: int = 32
    weight_gradients: int = 32
    momenta: int = 32
    statistics: int = 32
    masks: int = 32
    n_momenta: int | None = None
    normalized: bool = False
    published_masks: bool = False
    ste_masks: bool = False


STANDARD = Scheme()
HALF = Scheme(16, 16, 16, 16, 16, 16, 16, 16, 16)
PROPOSED = replace(HALF, binary_x=1, weight_gradients=1, masks=1, normalized=True)


def paper_rule(step: TrainingStep, scheme: Scheme = STANDARD) -> dict[PaperClass, int]:
    """Bytes by class of an unrewritten step."""
    layers = [node for node in _forward(step) if traits(node).product]
    inputs = [math.prod(dims(node.inputs[0])) for node in layers]
    outputs = [math.prod(dims(node.outputs[0])) for node in layers]
    n_weights, n_momenta = _weights(step)
    if scheme.n_momenta is not None:
        n_momenta = scheme.n_momenta * n_weights
    bits = {
        PaperClass.ACTIVATIONS: _activation_bits(step, layers, scheme),
        PaperClass.OUTPUTS: max(inputs, default=0) * scheme.outputs,
        PaperClass.GRADIENTS: max([*inputs, *outputs], default=0) * scheme.dy,
        PaperClass.WEIGHTS: n_weights * scheme.weights,
        PaperClass.WEIGHT_GRADIENTS: n_weights * scheme.weight_gradients,
        PaperClass.MOMENTA: n_momenta * scheme.momenta,
        PaperClass.MASKS: _mask_bits(step, scheme),
        PaperClass.STATISTICS: STATISTIC_VECTORS * _channels(step) * scheme.statistics,
    }
    return {kind: math.ceil(n / 8) for kind, n in bits.items()}


def paper_rule_bytes(step: TrainingStep, scheme: Scheme = STANDARD) -> int:
    """The paper's total for an unrewritten step, in bytes."""
    return sum(paper_rule(step, scheme).values())


def _forward(step: TrainingStep) -> Iterable[ir.Node]:
    return (node for node in step.graph if phase(node) == "forward")


def _activation_bits(step: TrainingStep, layers: list[ir.Node], scheme: Scheme) -> int:
    """Every retained value once, and the logits."""
    bits: dict[ir.Value, int] = {}
    if not scheme.normalized:
        for node in _forward(step):
            if traits(node).retains_input:
                bits[_source(node.inputs[0])] = scheme.real_x
    for node in _normalizations(step, layers) if scheme.normalized else ():
        bits[_source(node.outputs[0])] = _bits_of(_layer_before(node.inputs[0]), scheme)
    for node in reversed(layers):
        bits[_source(node.inputs[0])] = _bits_of(node, scheme)
    kept = sum(math.prod(dims(value)) * n for value, n in bits.items())
    logits = math.prod(dims(layers[-1].outputs[0])) if layers else 0
    return kept + (logits * _bits_of(layers[-1], scheme) if layers else 0)


def _normalizations(step: TrainingStep, layers: list[ir.Node]) -> Iterable[ir.Node]:
    """The batch norms before the last layer that something else than a sign reads."""
    for node in _forward(step):
        if layers and node is layers[-1]:
            return
        if node.op_type == "BatchNormalizationTraining":
            later = [n for n in readers(node.outputs[0]) if phase(n) == "forward"]
            if any(reader.op_type != "Binarize" for reader in later):
                yield node


def _source(value: ir.Value | None) -> ir.Value:
    """The value of which this one is a view or the sign."""
    assert value is not None
    producer = value.producer()
    while producer is not None and (is_view(producer) or producer.op_type == "Binarize"):
        assert producer.inputs[0] is not None
        value = producer.inputs[0]
        producer = value.producer()
    return value


def _layer_before(value: ir.Value | None) -> ir.Node | None:
    """The layer whose output this value is, scaled or pooled perhaps."""
    producer = value.producer() if value is not None else None
    while producer is not None and not traits(producer).product:
        first = producer.inputs[0]
        producer = first.producer() if first is not None else None
    return producer


def _bits_of(layer: ir.Node | None, scheme: Scheme) -> int:
    is_binary_layer = layer is not None and is_binary(layer.inputs[1])
    return scheme.binary_x if is_binary_layer else scheme.real_x


def _mask_bits(step: TrainingStep, scheme: Scheme) -> int:
    total = 0
    for node in _forward(step):
        if node.op_type == "MaxPool":
            sizes = [math.prod(dims(node.inputs[0]))]
            layer = _layer_before(node.inputs[0])
            if scheme.published_masks and layer is not None:
                sizes.append(math.prod(dims(layer.inputs[0])))
            total += max(sizes) * scheme.masks
        elif node.op_type == "Binarize" and scheme.ste_masks and _is_activation(node):
            total += math.prod(dims(node.inputs[0]))
    return total


def _is_activation(node: ir.Node) -> bool:
    """Whether a Binarize reads something computed, not a weight."""
    return _source(node.inputs[0]).producer() is not None


def _channels(step: TrainingStep) -> int:
    norms = (n for n in _forward(step) if n.op_type == "BatchNormalizationTraining")
    return sum(dims(node.inputs[2])[0] for node in norms)


def _weights(step: TrainingStep) -> tuple[int, int]:
    """Elements of the layers' trained weights, and of their optimiser state."""
    sizes = {
        kind: sum(math.prod(dims(v)) for v in step.inputs(kind) if len(dims(v)) > 1)
        for kind in (Role.PARAMETER, Role.STATE)
    }
    return sizes[Role.PARAMETER], sizes[Role.STATE]
