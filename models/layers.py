"""Appends layers to an ONNX graph and draws their weights: all that the zoo's files are made of.

The graphs look like a good TorchScript training export: opset 17, a symbolic batch dimension,
latent weights as initialisers under state_dict names, ``Sign`` on activations and on weights, and
``BatchNormalization`` with ``training_mode=1`` and three outputs.  Activations are (N, C, H, W) or
(N, F) float32; every value carries its shape, so the files need no shape inference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

OPSET = 17
IR_VERSION = 8
BATCH = "batch"
BN_MOMENTUM = 0.9
BN_EPSILON = 1e-5

Dims = tuple[int | str, ...]
FloatArray = npt.NDArray[np.float32]


class LayerBuilder:
    """A graph under construction, with one seeded generator for its weights.

    Parameters
    ----------
    input_shape : sequence of int
        Shape of one sample; the batch dimension is added in front as the symbol ``batch``.
    seed : int
        Seed of ``numpy.random.default_rng``.  Weights are drawn in the order of the layers.
    dtype : DataType
        Of the samples.
    """

    def __init__(
        self, input_shape: Sequence[int], seed: int, dtype: ir.DataType = ir.DataType.FLOAT
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._nodes: list[ir.Node] = []
        self._parameters: list[ir.Value] = []
        self.x = typed_value("x", (BATCH, *input_shape), dtype)

    def model(self, logits: ir.Value, name: str, doc: str) -> ir.Model:
        """Close the graph: ``logits`` becomes its only output, under that name."""
        logits.name = "logits"
        graph = ir.Graph(
            [self.x],
            [logits],
            nodes=self._nodes,
            initializers=self._parameters,
            opset_imports={"": OPSET},
            name=name,
        )
        return ir.Model(graph, ir_version=IR_VERSION, producer_name="bnnopt", doc_string=doc)

    # Layers ------------------------------------------------------------------------------------

    def conv(
        self,
        x: ir.Value,
        channels: int,
        name: str,
        *,
        kernel: int = 3,
        stride: int = 1,
        pad: int = 1,
        group: int = 1,
        binary: bool = False,
        scaled: bool = False,
        bias: bool = False,
    ) -> ir.Value:
        """Square convolution; x: (N, C, H, W), ``<name>.weight``: (channels, C/group, k, k).

        With ``scaled`` the output is multiplied by the mean magnitude of each filter's weights.
        """
        c = int(dims_of(x)[1]) // group
        weight = self._weight(f"{name}.weight", (channels, c, kernel, kernel), binary)
        latent = self._parameters[-1]
        of = self._bias(name, channels, bias)
        y = self.convolved(x, weight, name, *of, stride=stride, pad=pad, group=group)
        return self._scaled(y, latent, name) if scaled else y

    def convolved(
        self,
        x: ir.Value,
        weight: ir.Value,
        name: str,
        *bias: ir.Value,
        stride: int = 1,
        pad: int = 0,
        group: int = 1,
    ) -> ir.Value:
        """X with a weight (M, C/group, k, ...), over one axis or two of equal settings."""
        n, _, *sides = dims_of(x)
        channels, _, *kernel = (int(d) for d in dims_of(weight))
        attributes = {
            "dilations": [1] * len(kernel),
            "group": group,
            "kernel_shape": kernel,
            "pads": [pad] * 2 * len(kernel),
            "strides": [stride] * len(kernel),
        }
        size = [(int(side) + 2 * pad - kernel[0]) // stride + 1 for side in sides]
        return self._op("Conv", [x, weight, *bias], (n, channels, *size), name, attributes)

    def dense(
        self, x: ir.Value, features: int, name: str, *, binary: bool = False, bias: bool = False
    ) -> ir.Value:
        """Dense layer ``x @ weight.T``; x: (N, F), ``<name>.weight``: (features, F)."""
        n, fan_in = dims_of(x)
        weight = self._weight(f"{name}.weight", (features, int(fan_in)), binary)
        inputs = [x, weight, *self._bias(name, features, bias)]
        attributes = {"alpha": 1.0, "beta": 1.0, "transB": 1}
        return self._op("Gemm", inputs, (n, features), name, attributes)

    def batch_norm(self, x: ir.Value, name: str, *, gamma: bool = False) -> ir.Value:
        """Batch norm over all axes but 1, with a trainable beta (``<name>.bias``).

        ONNX asks for a scale.  With ``gamma`` it is the trainable ``<name>.weight``; without, as in
        Wang et al. (2023), it is a ``Constant`` node of ones, which no optimiser can mistake for
        a parameter.
        """
        c = int(dims_of(x)[1])
        ones, zeros = np.ones(c, np.float32), np.zeros(c, np.float32)
        scale = (
            self._parameter(f"{name}.weight", ones)
            if gamma
            else self.constant(f"{name}_scale", ones)
        )
        outputs = [typed_value(f"{name}_out", dims_of(x))] + [
            typed_value(f"{name}_{stat}_out", (c,)) for stat in ("running_mean", "running_var")
        ]
        inputs = [
            x,
            scale,
            self._parameter(f"{name}.bias", zeros),
            self._parameter(f"{name}.running_mean", zeros),
            self._parameter(f"{name}.running_var", ones),
        ]
        attributes = {"epsilon": BN_EPSILON, "momentum": BN_MOMENTUM, "training_mode": 1}
        return self._node("BatchNormalization", inputs, outputs, name, attributes)

    def sign(self, x: ir.Value, name: str) -> ir.Value:
        """Elementwise sign, as ONNX has it: sign(0) = 0."""
        return self._op("Sign", [x], dims_of(x), name)

    def relu(self, x: ir.Value, name: str) -> ir.Value:
        """Elementwise max(x, 0)."""
        return self._op("Relu", [x], dims_of(x), name)

    def relu6(self, x: ir.Value, name: str) -> ir.Value:
        """Elementwise min(max(x, 0), 6), as the ``Clip`` that torch exports for ReLU6."""
        low = self.constant(f"{name}_min", np.float32(0))
        high = self.constant(f"{name}_max", np.float32(6))
        return self._op("Clip", [x, low, high], dims_of(x), name)

    def add(self, a: ir.Value, b: ir.Value, name: str) -> ir.Value:
        """Elementwise sum of two values of one shape."""
        return self._op("Add", [a, b], dims_of(a), name)

    def max_pool(self, x: ir.Value, name: str, *, kernel: int = 2, pad: int = 0) -> ir.Value:
        """Max pool, stride 2; what is left of a last window is dropped."""
        return self._pool("MaxPool", x, name, kernel, pad)

    def average_pool(self, x: ir.Value, name: str) -> ir.Value:
        """2x2 average pool, stride 2; a last odd row or column is dropped."""
        return self._pool("AveragePool", x, name, 2, 0)

    def global_average_pool(self, x: ir.Value, name: str) -> ir.Value:
        """Mean over H and W: (N, C, H, W) -> (N, C, 1, 1)."""
        return self._op("GlobalAveragePool", [x], (*dims_of(x)[:2], 1, 1), name)

    def flatten(self, x: ir.Value, name: str) -> ir.Value:
        """(N, C, H, W) -> (N, C*H*W)."""
        n, c, h, w = dims_of(x)
        return self._op("Flatten", [x], (n, int(c) * int(h) * int(w)), name, {"axis": 1})

    # Pieces ------------------------------------------------------------------------------------

    def _pool(self, op_type: str, x: ir.Value, name: str, kernel: int, pad: int) -> ir.Value:
        n, c, h, w = dims_of(x)
        attributes = {"kernel_shape": [kernel, kernel], "strides": [2, 2]}
        attributes |= {"pads": [pad] * 4} if pad else {}
        size = [(int(side) + 2 * pad - kernel) // 2 + 1 for side in (h, w)]
        return self._op(op_type, [x], (n, c, *size), name, attributes)

    def _scaled(self, y: ir.Value, weight: ir.Value, name: str) -> ir.Value:
        """y times mean|weight| of each filter; y: (N, C, H, W), weight: (C, ...)."""
        magnitude = self._op("Abs", [weight], dims_of(weight), f"{name}_magnitude")
        mean = {"axes": [1, 2, 3], "keepdims": 1}
        channels = int(dims_of(y)[1])
        scale = self._op("ReduceMean", [magnitude], (channels, 1, 1, 1), f"{name}_mean", mean)
        by_channel = {"perm": [1, 0, 2, 3]}
        scale = self._op("Transpose", [scale], (1, channels, 1, 1), f"{name}_scale", by_channel)
        return self._op("Mul", [y, scale], dims_of(y), f"{name}_scaled")

    def _weight(self, name: str, shape: tuple[int, ...], binary: bool) -> ir.Value:
        """Latent weight ~ N(0, 1/fan-in), output channels first, behind a ``Sign`` if binary."""
        fan_in = int(np.prod(shape[1:]))
        latent = self._rng.standard_normal(shape, np.float32) * np.float32(fan_in**-0.5)
        weight = self._parameter(name, latent)
        return self.sign(weight, f"{name.replace('.', '_')}_sign") if binary else weight

    def _bias(self, name: str, size: int, present: bool) -> list[ir.Value]:
        return [self._parameter(f"{name}.bias", np.zeros(size, np.float32))] if present else []

    def _parameter(self, name: str, array: FloatArray) -> ir.Value:
        value = typed_value(name, array.shape)
        value.const_value = ir.tensor(array, name=name)
        self._parameters.append(value)
        return value

    def constant(self, name: str, array: npt.NDArray[Any] | np.generic) -> ir.Value:
        """A ``Constant`` node, which nobody takes for a parameter."""
        tensor = ir.tensor(np.asarray(array))
        value = typed_value(f"{name}_out", np.shape(array), tensor.dtype)
        return self._node("Constant", [], [value], name, {"value": tensor})

    def _op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        shape: Dims,
        name: str,
        attributes: Mapping[str, Any] | None = None,
    ) -> ir.Value:
        return self._node(op_type, inputs, [typed_value(f"{name}_out", shape)], name, attributes)

    def _node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        outputs: Sequence[ir.Value],
        name: str,
        attributes: Mapping[str, Any] | None,
    ) -> ir.Value:
        """Append one node; its first output goes on to the next layer."""
        attrs = ir.convenience.convert_attributes(attributes or {})
        self._nodes.append(ir.Node("", op_type, inputs, attrs, outputs=outputs, name=name))
        return outputs[0]


def typed_value(name: str, shape: Dims, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    """A value that no node makes yet."""
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def dims_of(x: ir.Value) -> Dims:
    """The shape of a value; symbols as text."""
    assert x.shape is not None  # every value here is made by typed_value
    return tuple(d if isinstance(d, int) else str(d.value) for d in x.shape)
