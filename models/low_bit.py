"""Networks with ternary weights, or weights and activations of a few bits."""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.models.blocks import classified, stem
from bnnopt.models.layers import dims_of
from bnnopt.models.written import WrittenBuilder


def twn(seed: int, size: int = 32, classes: int = 10, width: int = 32) -> ir.Model:
    """Ternary weights: x (N, 3, size, size) -> logits (N, classes). Li et al., arXiv:1605.04711.

    0 below 0.7 times the mean magnitude of a filter, else the mean magnitude of what is above.
    """
    b, x = stem(seed, size, width)
    w = b.drawn("conv.weight", (width, width, 3, 3))
    x = b.convolved(x, _ternary(b, w), "conv", pad=1)
    x = b.relu(b.batch_norm(x, "norm1", gamma=True), "act")
    return classified(b, x, classes, "twn", "TWN: Li et al., arXiv:1605.04711")


def bitnet_mlp(seed: int, classes: int = 10, width: int = 256) -> ir.Model:
    """BitNet b1.58's feed-forward block: x (N, width) -> logits (N, classes). arXiv:2402.17764.

    RMS norm; weights of -1, 0 and +1 by their mean magnitude, activations of 8 bits by their
    largest; squared ReLU; a skip.
    """
    b = WrittenBuilder((width,), seed)
    h = b.relu(_bit_linear(b, b.x, 2 * width, "block.up"), "block.relu")
    h = _bit_linear(b, b.op("Mul", [h, h], "block.square"), width, "block.down")
    logits = b.dense(b.add(b.x, h, "block.add"), classes, "fc", bias=True)
    return b.model(logits, "bitnet-mlp", "BitNet b1.58: Ma et al., arXiv:2402.17764")


def pact_dorefa(seed: int, size: int = 32, classes: int = 10, width: int = 32) -> ir.Model:
    """Weights of 2 bits, activations of 4: x (N, 3, size, size) -> logits (N, classes).

    DoReFa-Net, Zhou et al. 2016, arXiv:1606.06160, for the weights; PACT with its learned bound,
    Choi et al. 2018, arXiv:1805.06085, for the activations.
    """
    b, x = stem(seed, size, width)
    x = _pact(b, b.relu(x, "relu"), 15)
    w = b.op("Tanh", [b.drawn("conv.weight", (width, width, 3, 3))], "conv.tanh")
    top = b.reduced("ReduceMax", b.op("Abs", [w], "conv.abs"), [0, 1, 2, 3], "conv.max")
    unit = b.op("Div", [w, b.stop(top, "conv.top")], "conv.unit")
    unit = b.plus(b.times(unit, 0.5, "conv.half"), 0.5, "conv.shifted")
    levels = _rounded(b, b.times(unit, 3, "conv.levels"), "conv.rounded")
    w = b.plus(b.times(levels, 2 / 3, "conv.double"), -1, "conv.quantized")
    x = b.batch_norm(b.convolved(x, w, "conv", pad=1), "norm1", gamma=True)
    doc = "DoReFa-Net: arXiv:1606.06160, PACT: arXiv:1805.06085"
    return classified(b, x, classes, "pact-dorefa", doc)


def _ternary(b: WrittenBuilder, w: ir.Value) -> ir.Value:
    axes = list(range(1, len(dims_of(w))))
    magnitude = b.op("Abs", [w], "conv.magnitude")
    bound = b.times(b.reduced("ReduceMean", magnitude, axes, "conv.mean"), 0.7, "conv.bound")
    kept = b.compare("Greater", magnitude, bound, "conv.kept")
    total = b.op("Mul", [magnitude, kept], "conv.above")
    scale = b.op(
        "Div",
        [
            b.reduced("ReduceSum", total, axes, "conv.sum"),
            b.reduced("ReduceSum", kept, axes, "conv.count"),
        ],
        "conv.scale",
    )
    signs = b.op("Mul", [kept, b.signs(w, "conv.sign")], "conv.signs")
    return b.value_of(b.op("Mul", [signs, scale], "conv.ternary"), w, "conv.of")


def _bit_linear(b: WrittenBuilder, x: ir.Value, features: int, name: str) -> ir.Value:
    """A dense layer without bias on what is normalised, both operands quantised."""
    mean = b.reduced("ReduceMean", b.op("Mul", [x, x], f"{name}.square"), [1], f"{name}.mean")
    root = b.op("Sqrt", [b.plus(mean, 1e-5, f"{name}.eps")], f"{name}.rms")
    x = b.op("Div", [x, root], f"{name}.norm")
    largest = b.reduced("ReduceMax", b.op("Abs", [x], f"{name}.abs"), [1], f"{name}.max")
    x = _levels(b, x, largest, 127, (-128, 127), f"{name}.x")
    w = b.drawn(f"{name}.weight", (features, int(dims_of(x)[1])))
    size = b.reduced("ReduceMean", b.op("Abs", [w], f"{name}.wabs"), [0, 1], f"{name}.wmean")
    return b.linear(x, _levels(b, w, size, 1, (-1, 1), f"{name}.w"), name)


def _levels(
    b: WrittenBuilder, x: ir.Value, unit: ir.Value, n: int, bounds: tuple[int, int], name: str
) -> ir.Value:
    """X in steps of unit / n, within bounds, with the gradient of x."""
    unit = b.op("Max", [unit, b.number(1e-5, f"{name}.least")], f"{name}.unit")
    step = b.op("Div", [b.number(n, f"{name}.n"), unit], f"{name}.step", dims_of(unit))
    level = b.op("Round", [b.op("Mul", [x, step], f"{name}.ratio")], f"{name}.round")
    level = b.clamp(level, *bounds, f"{name}.level")
    return b.value_of(b.op("Div", [level, step], f"{name}.value"), x, f"{name}.of")


def _pact(b: WrittenBuilder, x: ir.Value, n: int) -> ir.Value:
    """N steps between 0 and a learned bound; y = (|x| - |x - bound| + bound) / 2."""
    bound = b.parameter("conv.alpha", 3.0)
    above = b.op("Abs", [b.op("Sub", [x, bound], "pact.rest")], "pact.above")
    y = b.op("Sub", [b.op("Abs", [x], "pact.abs"), above], "pact.difference")
    y = b.times(b.op("Add", [y, bound], "pact.sum"), 0.5, "pact.clipped")
    y = b.op("Div", [b.times(y, n, "pact.wide"), bound], "pact.ratio")
    return b.times(
        b.op("Mul", [_rounded(b, y, "pact.round"), bound], "pact.scaled"), 1 / n, "pact.steps"
    )


def _rounded(b: WrittenBuilder, x: ir.Value, name: str) -> ir.Value:
    """Round with the gradient of the identity."""
    return b.value_of(b.op("Round", [x], f"{name}.value"), x, name)
