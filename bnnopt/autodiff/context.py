"""What a gradient rule sees of its node, and the shape work that the rules share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnnopt.ops import Emitter, dims, dtype
from bnnopt.ops.emit import Attribute
from bnnopt.training_step import is_constant


@dataclass
class Context:
    """One node in the backward pass.

    Attributes
    ----------
    node : onnx_ir.Node
        The forward node, typed.
    output_grads : sequence of Value or None
        The gradient of the loss with respect to each output; None where it is zero.
    wanted : set of int
        Indices of the inputs whose gradient is needed.
    backward, forward : Emitter
        Where the rule emits: into the backward pass, or right behind the node itself (for what is
        cheap to keep, such as a shape).
    """

    node: ir.Node
    output_grads: Sequence[ir.Value | None]
    wanted: set[int]
    backward: Emitter
    forward: Emitter

    @property
    def dy(self) -> ir.Value:
        """The gradient of the first output.

        Raises
        ------
        UnknownInput
            If the loss depends on another output alone, such as a running statistic.
        """
        grad = self.output_grads[0]
        if grad is None:
            raise UnknownInput("the loss depends on its other outputs, not on the first")
        return grad

    def x(self, index: int = 0) -> ir.Value:
        """Input `index`."""
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        if value is None:
            raise UnknownInput(f"input {index} is left out, expected a value")
        return value

    def y(self, index: int = 0) -> ir.Value:
        """Output `index`."""
        return self.node.outputs[index]

    def emit(self, op_type: str, *inputs: ir.Value | None, **attributes: Attribute) -> ir.Value:
        """Emit a backward node, named after the first input of the forward node."""
        name = f"{self.x().name}.grad"
        return self.backward(op_type, *inputs, name=name, n_outputs=1, **attributes)

    def grad_of(
        self, index: int, op_type: str, *inputs: ir.Value, **attributes: Attribute
    ) -> ir.Value:
        """Emit a backward node named as the gradient of input `index`."""
        name = f"{self.x(index).name}.grad"
        return self.backward(op_type, *inputs, name=name, n_outputs=1, **attributes)

    def gradients(
        self,
        op_type: str,
        *inputs: ir.Value,
        n_outputs: int,
        name: str = "",
        **attributes: Attribute,
    ) -> dict[int, ir.Value]:
        """Emit a backward node whose outputs are the gradients of the first inputs."""
        name = name or f"{self.x().name}.grad"
        first = self.backward(op_type, *inputs, name=name, n_outputs=n_outputs, **attributes)
        node = first.producer()
        assert node is not None
        return {i: node.outputs[i] for i in self.wanted if i < n_outputs}

    def attribute(self, name: str, default: float) -> float:
        """A number attribute, or its default."""
        found = self.node.attributes.get(name)
        return default if found is None else found.value

    def int_attribute(self, name: str, default: int) -> int:
        """An integer attribute, or its default."""
        return int(self.attribute(name, default))

    def scalar(self, value: float) -> ir.Value:
        """A scalar constant of the gradient's dtype."""
        return self.backward.constant(value, dtype(self.dy).numpy(), "scalar")

    def integers(self, values: Sequence[int]) -> ir.Value:
        """An int64 vector constant."""
        return self.backward.constant(np.array(values, np.int64), np.int64, "integers")

    def known(self, index: int) -> NDArray[np.generic] | None:
        """The elements of a constant input; None where it is left out."""
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        if value is None:
            return None
        if not is_constant(value) or value.const_value is None:
            raise UnknownInput(f"input {index} ({value.name!r}) must be a constant")
        return value.const_value.numpy()

    def reshape_like(self, value: ir.Value, like: ir.Value) -> ir.Value:
        """`value` in the shape of `like`, for any batch size."""
        target = list(dims(like))
        if dims(value) == tuple(target):
            return value
        if target and dims(value):
            target[0] = 0 if dims(value)[0] == target[0] else -1
        return self.emit("Reshape", value, self.integers(target))

    def unbroadcast(self, grad: ir.Value, like: ir.Value) -> ir.Value:
        """Sum `grad` over the axes along which `like` was broadcast."""
        axes = self.stretched_axes(dims(grad), like)
        if not axes:
            return grad
        summed = self.emit("ReduceSum", grad, self.integers(axes), keepdims=0)
        return self.reshape_like(summed, like)

    @staticmethod
    def stretched_axes(shape: Sequence[int], value: ir.Value) -> list[int]:
        """The axes of a shape along which `value` is broadcast to it."""
        lead = len(shape) - len(dims(value))
        padded = (1,) * lead + dims(value)
        axes = [i for i, (s, t) in enumerate(zip(shape, padded, strict=True)) if s != t]
        return sorted({*range(lead), *axes})

    def expand_like(self, value: ir.Value, like: ir.Value) -> ir.Value:
        """Broadcast `value` (same rank) to the shape of `like`, for any batch size."""
        shape, target = dims(value), dims(like)
        if shape == target:
            return value
        if shape[0] == target[0] != 1:  # the batch is in front and stays as it is
            return self.emit("Expand", value, self.integers([1, *target[1:]]))
        return self.emit("Expand", value, self.forward("Shape", like, name=f"{like.name}.shape"))

    def zeros_like(self, like: ir.Value) -> ir.Value:
        """Zeros in the shape of `like`."""
        shape = self.forward("Shape", like, name=f"{like.name}.shape")
        return self.emit("Expand", self.backward.constant(0.0, dtype(like).numpy(), "nil"), shape)

    def count(self, axes: Sequence[int]) -> ir.Value:
        """Elements of the first input along `axes`, as a scalar, for any batch size."""
        n_fixed = math.prod(dims(self.x())[axis] for axis in axes if axis != 0)
        if 0 not in axes:
            return self.scalar(n_fixed)
        batch = self.forward("Shape", self.x(), name=f"{self.x().name}.batch", start=0, end=1)
        real = self.emit("Cast", batch, to=int(dtype(self.dy)))
        scalar = self.emit("Squeeze", real)
        return scalar if n_fixed == 1 else self.emit("Mul", scalar, self.scalar(n_fixed))


class UnknownInput(Exception):
    """A rule needs a value or a gradient that is not there."""
