"""Optimiser updates, appended behind the backward pass."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import ClassVar

import onnx_ir as ir

from bnnopt.errors import ModelError
from bnnopt.frontend import OptimizerModel
from bnnopt.metadata import Key
from bnnopt.ops import Emitter, dims, dtype
from bnnopt.training_step import Role, mark_update, set_role, step_input


@dataclass(frozen=True)
class Optimizer:
    """What an optimiser keeps per parameter, and the operator that steps it."""

    name: ClassVar[str]
    operator: ClassVar[str]
    states: ClassVar[tuple[str, ...]] = ()
    counts_steps: ClassVar[bool] = False
    learning_rate: float

    def attributes(self) -> dict[str, float]:
        """The operator's attributes."""
        return {}


@dataclass(frozen=True)
class Sgd(Optimizer):
    """Stochastic gradient descent; with momentum where that is not 0."""

    name: ClassVar[str] = "sgd"
    operator: ClassVar[str] = "SgdStep"
    learning_rate: float = 0.01


@dataclass(frozen=True)
class Momentum(Optimizer):
    """Stochastic gradient descent with momentum."""

    name: ClassVar[str] = "sgd"
    operator: ClassVar[str] = "MomentumStep"
    states: ClassVar[tuple[str, ...]] = ("momentum",)
    learning_rate: float = 0.01
    momentum: float = 0.9

    def attributes(self) -> dict[str, float]:
        """The operator's attributes."""
        return {"momentum": self.momentum}


@dataclass(frozen=True)
class RmsProp(Optimizer):
    """RMSprop, with one state where Adam has two."""

    name: ClassVar[str] = "rmsprop"
    operator: ClassVar[str] = "RmsPropStep"
    states: ClassVar[tuple[str, ...]] = ("rmsprop_v",)
    learning_rate: float = 1e-3
    alpha: float = 0.99
    epsilon: float = 1e-8

    def attributes(self) -> dict[str, float]:
        """The operator's attributes."""
        return {"alpha": self.alpha, "epsilon": self.epsilon}


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam, arXiv:1412.6980."""

    name: ClassVar[str] = "adam"
    operator: ClassVar[str] = "AdamStep"
    states: ClassVar[tuple[str, ...]] = ("adam_m", "adam_v")
    counts_steps: ClassVar[bool] = True
    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def attributes(self) -> dict[str, float]:
        """The operator's attributes."""
        return {"beta1": self.beta1, "beta2": self.beta2, "epsilon": self.epsilon}


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay, as onnxruntime-training computes it."""

    name: ClassVar[str] = "adamw"
    operator: ClassVar[str] = "AdamWStep"
    epsilon: float = 1e-6
    decay: float = 0.0

    def attributes(self) -> dict[str, float]:
        """The operator's attributes."""
        return {**super().attributes(), "decay": self.decay}


@dataclass(frozen=True)
class Bop(Adam):
    """Bop for binary weights, which are kept as bits; Adam for all other parameters.

    Source: Helwegen et al., arXiv:1906.02107; `gamma` and `tau` are theirs for CIFAR-10.
    """

    name: ClassVar[str] = "bop"
    gamma: float = 1e-4
    tau: float = 1e-8


@dataclass(frozen=True)
class FixedSign(Adam):
    """Adam where the signs of binary weights stay as they are; see `fix_signs`."""

    name: ClassVar[str] = "fixed-sign"


_BY_NAME: dict[str, type[Optimizer]] = {
    rule.name: rule for rule in (Adam, Momentum, Bop, FixedSign, RmsProp)
}
OPTIMIZERS = tuple(_BY_NAME)


def make_optimizer(name: str, **numbers: float | None) -> Optimizer:
    """The optimiser called `name`, one of `OPTIMIZERS`, with those of the numbers that it has.

    A number that is None is left to it. Without momentum, sgd is `Sgd`.
    """
    rule = _BY_NAME[name]
    if rule is Momentum and numbers.get("momentum") == 0:
        rule = Sgd
    own = {entry.name for entry in fields(rule)}
    return rule(**{n: v for n, v in numbers.items() if n in own and v is not None})


def numbers_of(name: str | None = None) -> set[str]:
    """The numbers that an optimiser goes by; those of all of them without a name."""
    rules = _BY_NAME.values() if name is None else [_BY_NAME[name]]
    return {entry.name for rule in rules for entry in fields(rule)}


def read_optimizer(model: OptimizerModel) -> Optimizer:
    """The optimiser of training artifacts, with its own numbers.

    Raises
    ------
    ModelError
        If it is not known, or one of its numbers is.
    """
    numbers = model.attributes
    if model.operator == "SGDOptimizerV2":
        return Sgd(learning_rate=1e-3)
    if model.operator != "AdamWOptimizer":
        found = f"optimiser {model.operator}, expected AdamWOptimizer or SGDOptimizerV2"
    elif numbers.get("adam_mode", 0) != 1:
        found = "adam_mode 0, expected 1, which generate_artifacts writes"
    elif numbers.get("correct_bias", 1) != 1:
        found = "no bias correction, expected correct_bias 1"
    else:
        return AdamW(
            beta1=numbers.get("alpha", 0.9),
            beta2=numbers.get("beta", 0.999),
            epsilon=numbers.get("epsilon", 1e-6),
            decay=numbers.get("weight_decay", 0.0),
        )
    raise ModelError(f"{model.path}: {found}; pass --optimizer to train with another")


@dataclass
class Updater:
    """Appends optimiser steps to a graph."""

    graph: ir.Graph
    optimizer: Optimizer
    emit: Emitter = field(init=False)

    def __post_init__(self) -> None:
        self.emit = Emitter(self.graph, "update")
        self._rate = self._input("learning_rate", Role.RATE, ir.DataType.FLOAT, ())
        self._step = (
            step_input(self.graph, self.emit.unique) if self.optimizer.counts_steps else None
        )

    def summed(self, gradients: Mapping[ir.Value, ir.Value]) -> dict[ir.Value, ir.Value]:
        """The gradients, each added to a sum over the parts of a step: sum + share * gradient.

        The share is fed with a minus, so that this is a step of plain gradient descent.
        """
        share = self._input("share", Role.SHARE, ir.DataType.FLOAT, ())
        found = {}
        for parameter, gradient in gradients.items():
            name = f"{parameter.name}.sum"
            total = self._input(name, Role.STATE, dtype(gradient), dims(gradient))
            added = self.emit(Sgd.operator, total, gradient, share, name=f"{name}.next")
            self.graph.outputs.append(mark_update(added, total))
            found[parameter] = added
        return found

    def clipped(
        self, gradients: Mapping[ir.Value, ir.Value], most: float
    ) -> dict[ir.Value, ir.Value]:
        """The gradients, scaled together so that the norm of all is at most `most`.

        Times min(1, most / (norm + 1e-6)), as PyTorch's ``clip_grad_norm_``.
        """
        emit = self.emit
        squares = [
            emit("ReduceSumSquare", gradient, name=f"{parameter.name}.grad.square", keepdims=0)
            for parameter, gradient in gradients.items()
        ]
        total = functools.reduce(lambda a, b: emit("Add", a, b, name="gradients.square"), squares)
        norm = emit("Sqrt", total, name="gradients.norm")
        above = emit("Add", norm, emit.constant(1e-6, "float32", "least_norm"), name="norm.above")
        ratio = emit("Div", emit.constant(most, "float32", "most"), above, name="norm.ratio")
        scale = emit("Min", ratio, emit.constant(1, "float32", "whole"), name="norm.scale")
        return {
            parameter: emit("Mul", gradient, scale, name=f"{parameter.name}.grad.clipped")
            for parameter, gradient in gradients.items()
        }

    def update(self, parameter: ir.Value, gradient: ir.Value) -> None:
        """Append the step of one parameter, its state and its outputs."""
        if parameter.dtype == ir.DataType.UINT8:
            self._turn(parameter, gradient)
            return
        states = [
            self._input(f"{parameter.name}.{state}", Role.STATE, dtype(parameter), dims(parameter))
            for state in self.optimizer.states
        ]
        tail = [self._rate] if self._step is None else [self._rate, self._step]
        targets = [parameter, *states]
        first = self.emit(
            self.optimizer.operator,
            *(parameter, gradient, *states, *tail),
            name=f"{parameter.name}.next",
            n_outputs=len(targets),
            **self.optimizer.attributes(),
        )
        self._take_over(first, targets)

    def _turn(self, parameter: ir.Value, gradient: ir.Value) -> None:
        """Append the step of binary weights that are kept as bits."""
        assert isinstance(self.optimizer, Bop)
        name = f"{parameter.name}.bop_m"
        momentum = self._input(name, Role.STATE, dtype(gradient), dims(gradient))
        first = self.emit(
            "BopStep",
            *(parameter, gradient, momentum),
            name=f"{parameter.name}.next",
            n_outputs=2,
            shape=list(dims(gradient)[1:]),
            gamma=self.optimizer.gamma,
            tau=self.optimizer.tau,
        )
        self._take_over(first, [parameter, momentum])

    def _take_over(self, first: ir.Value, targets: list[ir.Value]) -> None:
        """Let the outputs of an optimiser step replace `targets`, a parameter and its state."""
        node = first.producer()
        assert node is not None
        node.metadata_props[Key.PARAMETER] = str(targets[0].name)
        for output, target in zip(node.outputs, targets, strict=True):
            self.graph.outputs.append(mark_update(output, target))

    def finish(self) -> None:
        """Put the collected steps at the end of the graph."""
        self.graph.extend(self.emit.nodes)

    def _input(
        self, name: str, kind: Role, element: ir.DataType, shape: tuple[int, ...]
    ) -> ir.Value:
        value = ir.val(self.emit.unique(name), dtype=element, shape=shape)
        self.graph.inputs.append(set_role(value, kind))
        return value
