"""A builder whose files say where each gradient goes, as those of ``bnnopt.torch.export`` do.

An estimator is a value b with the gradient of another tensor s; a scale may be detached. Both are
standard operators with metadata, so that other tools read the same network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from bnnopt.models.layers import Dims, LayerBuilder, dims_of, typed_value

OPSET = 18  # the compiler's own: a converter would lose the metadata
IR_VERSION = 10  # the first with metadata of nodes and tensors

Estimator = Callable[["WrittenBuilder", ir.Value, str], ir.Value]
"""From a tensor, with a name for the new nodes, to one that has the estimator's gradient."""


class WrittenBuilder(LayerBuilder):
    """Layers with estimators, for the blocks of papers; names are those of PyTorch modules."""

    def model(self, logits: ir.Value, name: str, doc: str) -> ir.Model:
        """See `LayerBuilder.model`; statistics are marked as not trained."""
        model = super().model(logits, name, doc)
        model.ir_version = IR_VERSION
        model.graph.opset_imports[""] = OPSET
        model.metadata_props["bnnopt.gradients"] = "as-written"
        for key, value in model.graph.initializers.items():
            if key.endswith(("running_mean", "running_var")):
                value.metadata_props["bnnopt.trained"] = "no"
        return model

    # Any operator -------------------------------------------------------------------------------

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        name: str,
        shape: Dims | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """One node; without `shape` its output has that of the first input."""
        made = dims_of(inputs[0]) if shape is None else shape
        return self._op(op_type, inputs, made, name, attributes)

    def parameter(self, name: str, number: float, shape: tuple[int, ...] = ()) -> ir.Value:
        """A trained tensor that starts as one number everywhere."""
        return self._parameter(name, np.full(shape, number, np.float32))

    def drawn(self, name: str, shape: tuple[int, ...], scale: float | None = None) -> ir.Value:
        """A trained tensor ~ N(0, scale^2), or N(0, 1/fan-in)."""
        scale = float(np.prod(shape[1:])) ** -0.5 if scale is None else scale
        array = self._rng.standard_normal(shape, np.float32) * np.float32(scale)
        return self._parameter(name, array)

    def number(self, value: float, name: str) -> ir.Value:
        """A constant."""
        return self.constant(name, np.float32(value))

    def integers(self, values: Sequence[int], name: str) -> ir.Value:
        """A constant list, as axes and shapes are given."""
        return self.constant(name, np.asarray(values, np.int64))

    def times(self, x: ir.Value, factor: float, name: str) -> ir.Value:
        """X by a number."""
        return self.op("Mul", [x, self.number(factor, f"{name}_by")], name)

    def plus(self, x: ir.Value, term: float, name: str) -> ir.Value:
        """X and a number."""
        return self.op("Add", [x, self.number(term, f"{name}_by")], name)

    def clamp(self, x: ir.Value, low: float, high: float, name: str) -> ir.Value:
        """X between two numbers."""
        bounds = [self.number(low, f"{name}_min"), self.number(high, f"{name}_max")]
        return self.op("Clip", [x, *bounds], name)

    def reduced(
        self, op_type: str, x: ir.Value, axes: Sequence[int], name: str, *, keep: bool = True
    ) -> ir.Value:
        """Over axes, which stay with one element each, or go."""
        rank = len(dims_of(x))
        gone = {axis % rank for axis in axes}
        kept = tuple(
            1 if i in gone else d for i, d in enumerate(dims_of(x)) if keep or i not in gone
        )
        given = [x, self.integers(axes, f"{name}_axes")]
        return self.op(op_type, given, name, kept, keepdims=int(keep))

    def compare(self, op_type: str, a: ir.Value, b: ir.Value, name: str) -> ir.Value:
        """1.0 where a comparison of a and b is true, else 0."""
        made = [typed_value(f"{name}_true", dims_of(a), ir.DataType.BOOL)]
        found = self._node(op_type, [a, b], made, f"{name}_compare", None)
        return self.op("Cast", [found], name, to=int(ir.DataType.FLOAT))

    def concat(self, parts: Sequence[ir.Value], axis: int, name: str) -> ir.Value:
        """Side by side along an axis."""
        shape = list(dims_of(parts[0]))
        shape[axis] = sum(int(dims_of(part)[axis]) for part in parts)
        return self.op("Concat", parts, name, tuple(shape), axis=axis)

    def split(self, x: ir.Value, sizes: Sequence[int], axis: int, name: str) -> list[ir.Value]:
        """Parts of these sizes along an axis."""
        shapes = [(*dims_of(x)[:axis], n, *dims_of(x)[axis + 1 :]) for n in sizes]
        outputs = [typed_value(f"{name}_{i}", shape) for i, shape in enumerate(shapes)]
        inputs = [x, self.integers(sizes, f"{name}_sizes")]
        self._node("Split", inputs, outputs, name, {"axis": axis})
        return outputs

    def reshape(self, x: ir.Value, shape: Dims, name: str) -> ir.Value:
        """Any sizes behind the batch."""
        sizes = [0 if isinstance(d, str) else d for d in shape]
        return self.op("Reshape", [x, self.integers(sizes, f"{name}_shape")], name, shape)

    # Gradients ----------------------------------------------------------------------------------

    def stop(self, x: ir.Value, name: str) -> ir.Value:
        """X, through which no gradient passes."""
        return self._marked(self.op("Identity", [x], name), "none")

    def value_of(self, b: ir.Value, s: ir.Value, name: str) -> ir.Value:
        """The value of b with the gradient of s: ``s + (b - s).detach()``."""
        true = self.constant(f"{name}_true", np.bool_(True))
        return self._marked(self.op("Where", [true, b, s], name, dims_of(s)), "of-third")

    def signs(self, x: ir.Value, name: str) -> ir.Value:
        """+1 from 0 on, -1 below."""
        inputs = [x, self.number(0, f"{name}_zero")]
        made = [typed_value(f"{name}_is_up", dims_of(x), ir.DataType.BOOL)]
        is_up = self._node("GreaterOrEqual", inputs, made, f"{name}_compare", None)
        choices = [self.number(1, f"{name}_up"), self.number(-1, f"{name}_down")]
        return self.op("Where", [is_up, *choices], name, dims_of(x))

    def binarized(self, x: ir.Value, name: str, estimator: Estimator | None = None) -> ir.Value:
        """The signs of x with the gradient of an estimator, clipped if none is named."""
        estimator = clipped if estimator is None else estimator
        return self.value_of(self.signs(x, name), estimator(self, x, f"{name}_s"), f"{name}_of")

    def scale_of(self, w: ir.Value, name: str) -> ir.Value:
        """The mean magnitude of each filter, detached; w: (M, ...) -> (M, 1, ...)."""
        magnitude = self.op("Abs", [w], f"{name}_abs")
        axes = range(1, len(dims_of(w)))
        return self.stop(self.reduced("ReduceMean", magnitude, list(axes), f"{name}_mean"), name)

    def _marked(self, value: ir.Value, mark: str) -> ir.Value:
        node = value.producer()
        assert node is not None
        node.metadata_props["bnnopt.gradient"] = mark
        return value

    # Layers -------------------------------------------------------------------------------------

    def binary_conv(
        self,
        x: ir.Value,
        channels: int,
        name: str,
        *,
        kernel: int = 3,
        scaled: bool = True,
        **options: int,
    ) -> ir.Value:
        """Convolution with the signs of ``<name>.weight``, perhaps times `scale_of` it."""
        c = int(dims_of(x)[1]) // options.get("group", 1)
        w = self.drawn(f"{name}.weight", (channels, c, kernel, kernel))
        signs = self.binarized(w, f"{name}.sign")
        if scaled:
            signs = self.op("Mul", [signs, self.scale_of(w, f"{name}.scale")], f"{name}.scaled")
        options.setdefault("pad", kernel // 2)
        return self.convolved(x, signs, name, **options)

    def binary_dense(self, x: ir.Value, features: int, name: str) -> ir.Value:
        """Dense layer of the last axis with the signs of ``<name>.weight``: (features, F)."""
        w = self.drawn(f"{name}.weight", (features, int(dims_of(x)[-1])))
        return self.linear(x, self.binarized(w, f"{name}.sign"), name)

    def linear(self, x: ir.Value, w: ir.Value, name: str, bias: ir.Value | None = None) -> ir.Value:
        """``x @ w.T`` over the last axis, with a bias."""
        features, fan_in = dims_of(w)
        turned = self.op("Transpose", [w], f"{name}_turned", (fan_in, features), perm=[1, 0])
        y = self.op("MatMul", [x, turned], f"{name}_product", (*dims_of(x)[:-1], features))
        return y if bias is None else self.op("Add", [y, bias], name)

    def real_linear(self, x: ir.Value, features: int, name: str) -> ir.Value:
        """A dense layer of any rank, ``<name>.weight`` and ``<name>.bias``."""
        w = self.drawn(f"{name}.weight", (features, int(dims_of(x)[-1])))
        return self.linear(x, w, name, self.parameter(f"{name}.bias", 0.0, (features,)))

    def prelu(self, x: ir.Value, name: str) -> ir.Value:
        """A slope a channel, ``<name>.weight``: (C,), which starts at 1/4."""
        c = int(dims_of(x)[1])
        slope = self.parameter(f"{name}.weight", 0.25, (c,))
        axes = self.integers([1, 2], f"{name}_axes")
        wide = self.op("Unsqueeze", [slope, axes], f"{name}_slope", (c, 1, 1))
        return self.op("PRelu", [x, wide], name)

    def shift(self, x: ir.Value, name: str) -> ir.Value:
        """A learned number for each channel, ``<name>.bias``: (1, C, 1, 1)."""
        b = self.parameter(f"{name}.bias", 0.0, (1, int(dims_of(x)[1]), 1, 1))
        return self.op("Add", [x, b], name)

    def layer_norm(self, x: ir.Value, name: str) -> ir.Value:
        """Over the last axis, ``<name>.weight`` and ``<name>.bias``."""
        size = (int(dims_of(x)[-1]),)
        w, b = (
            self.parameter(f"{name}.weight", 1.0, size),
            self.parameter(f"{name}.bias", 0.0, size),
        )
        return self.op("LayerNormalization", [x, w, b], name, axis=-1, epsilon=1e-5)


def clipped(b: WrittenBuilder, x: ir.Value, name: str) -> ir.Value:
    """Hardtanh: dx = dy where |x| <= 1."""
    return b.clamp(x, -1, 1, name)


def approx_sign(b: WrittenBuilder, x: ir.Value, name: str) -> ir.Value:
    """Bi-Real Net's polynomial, arXiv:1808.00278: dx = dy max(2 - 2|x|, 0)."""
    inner = b.clamp(x, -1, 1, f"{name}_inner")
    magnitude = b.op("Abs", [inner], f"{name}_abs")
    rest = b.op("Sub", [b.number(2, f"{name}_two"), magnitude], f"{name}_rest", dims_of(x))
    return b.op("Mul", [inner, rest], name)


def error_decay(b: WrittenBuilder, x: ir.Value, name: str, k: float = 1, t: float = 2) -> ir.Value:
    """IR-Net's k tanh(t x), arXiv:1909.10788; k and t of an early epoch."""
    return b.times(b.op("Tanh", [b.times(x, t, f"{name}_t")], f"{name}_tanh"), k, name)
