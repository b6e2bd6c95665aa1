"""Makes onnxruntime-training artifacts, and records what that package computes with them.

Runs in an environment of its own, because the package takes the place of onnxruntime and ended with
CPython 3.12: ``pip install onnxruntime-training-cpu==1.19.2 torch onnx 'numpy<2'``. Then, in the
root of the repository::

    python -m tests.exports.training_artifacts small FOLDER [--loss MSELoss] [--optimizer SGD] ..

Beside the artifacts it writes ``recorded.npz``: the batches x, y, the loss and the gradients of the
first, losses and parameters after a few steps on all of them, and what the package reads from
the checkpoint (``before``).
"""

from __future__ import annotations

import argparse
import fnmatch
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.capi import _pybind_state
from onnxruntime.training import artifacts, onnxblock
from onnxruntime.training.api import CheckpointState, Module, Optimizer
from torch import Tensor, nn

from tests.exports.float_networks import FLOAT_NETWORKS, make_float_network, without_dropout
from tests.exports.torch_models import (
    MODELS,
    BinarizeConv2d,
    BinarizeLinear,
    input_shape,
    make_model,
    write,
)

STATISTICS = ("running_mean", "running_var")


class Small(nn.Module):
    """Convolution, batch norm, ReLU, max pooling and a dense layer, for (N, 3, 8, 8)."""

    def __init__(self, ratio: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.pool = nn.MaxPool2d(2)
        self.drop = nn.Dropout(ratio)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.bn(self.conv(x))))
        return self.fc(self.drop(torch.flatten(x, 1)))  # type: ignore[no-any-return]


class Binary(nn.Module):
    """BinaryNet's layers, small: real input, binary weights, then binary all through."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = BinarizeConv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = BinarizeConv2d(8, 8, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.bn2 = nn.BatchNorm2d(8)
        self.fc = BinarizeLinear(128, 10, bias=False)
        self.bn3 = nn.BatchNorm1d(10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn2(self.pool(self.conv2(self.bn1(self.conv1(x)))))
        return self.bn3(self.fc(torch.flatten(x, 1)))  # type: ignore[no-any-return]


class Mixed(nn.Module):
    """Operators whose gradients the package has names of its own for, (N, 3, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        a, b = torch.sigmoid(x[:, 1:3]), torch.tanh(nn.functional.relu6(x[:, [0, 3]]))
        x = torch.cat([a, b * a.mean((2, 3), keepdim=True)], 1)
        x = nn.functional.leaky_relu(nn.functional.pad(x, (1, 1, 1, 1)) - 0.2)
        x = torch.softmax(nn.functional.max_pool2d(x, 3, 2, 1), 1)
        return self.fc(torch.flatten(x, 1))  # type: ignore[no-any-return]


class Sequence(nn.Module):
    """What the package fuses, or has one gradient operator of, (N, 3, 8, 8) as eight steps."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(24, 6)
        self.scale, self.shift = nn.Parameter(torch.rand(6) + 0.5), nn.Parameter(torch.zeros(6))
        self.lstm, self.gru = nn.LSTM(6, 4, batch_first=True), nn.GRU(4, 4, batch_first=True)
        self.fc = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.reshape(-1, 8, 24))
        x = x - x.mean(-1, keepdim=True)
        x = x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.scale + self.shift
        x = nn.functional.silu(nn.functional.gelu(x))
        return self.fc(self.gru(self.lstm(x)[0])[0][:, -1])  # type: ignore[no-any-return]


SMALL = {
    "sequence": Sequence,
    "small": Small,
    "mixed": Mixed,
    "dropout": lambda: Small(0.25),
    "binary": Binary,
}


def make(name: str, size: int) -> tuple[nn.Module, tuple[int, ...]]:
    """A network with random biases, and the shape of a sample."""
    torch.manual_seed(0)
    if name in SMALL:
        module, shape = SMALL[name]().train(), (3, 8, 8)
    elif name in FLOAT_NETWORKS:
        module, shape = without_dropout(make_float_network(name, size)), (3, size, size)
    else:
        module, shape = make_model(name), input_shape(name)
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            if key.endswith("bias"):  # with zeros, batch norm meets exact zeros, and sign(0)
                parameter.normal_(0, 0.3)
    return module, shape


def register_estimator() -> None:
    """Teach onnxruntime-training the gradient of Sign: dx = dy where |x| <= 1."""
    one = _attribute("value", 1.0, "float", is_tensor=True)
    to_float = _attribute("to", 1, "int")
    definition = [
        _node("Constant", [], ["one"], [one]),
        _node("Abs", ["I(0)"], ["magnitude"]),
        _node("LessOrEqual", ["magnitude", "one"], ["inside"]),
        _node("Cast", ["inside"], ["factor"], [to_float]),
        _node("Mul", ["GO(0)", "factor"], ["GI(0)"]),
    ]
    _pybind_state.register_gradient_definition("::Sign", definition)


def _node(op_type: str, inputs: list[str], outputs: list[str], attributes: Any = ()) -> Any:
    node = _pybind_state.GradientNodeDefinition()
    node.op_type, node.domain = op_type, ""
    node.inputs, node.outputs, node.attributes = inputs, outputs, list(attributes)
    return node


def _attribute(name: str, value: Any, kind: str, is_tensor: bool = False) -> Any:
    attribute = _pybind_state.GradientNodeAttributeDefinition()
    attribute.name, attribute.value_json = name, json.dumps(value)
    attribute.dtype, attribute.is_tensor = kind, is_tensor
    return attribute


def generate(folder: Path, options: argparse.Namespace) -> None:
    """Write the artifacts of a network."""
    module, shape = make(options.name, options.size)
    folder.mkdir(parents=True, exist_ok=True)
    forward = folder / "forward.onnx"
    write(module, forward, shape)
    register_estimator()
    model = onnx.load(forward)
    names = [tensor.name for tensor in model.graph.initializer]
    patterns = [f"*{name}" for name in STATISTICS] + options.freeze
    frozen = [n for n in names if any(fnmatch.fnmatchcase(n, p) for p in patterns)]
    artifacts.generate_artifacts(
        model,
        requires_grad=[name for name in names if name not in frozen],
        frozen_params=frozen,
        loss=artifacts.LossType[options.loss],
        optimizer=_optimizer(options),
        artifact_directory=str(folder),
    )
    if not options.keep_forward:
        forward.unlink()


def _optimizer(options: argparse.Namespace) -> Any:
    if options.weight_decay:
        return onnxblock.optim.AdamW(weight_decay=options.weight_decay)
    return artifacts.OptimType[options.optimizer]


def record(folder: Path, options: argparse.Namespace) -> None:
    """Write what onnxruntime-training computes with the artifacts."""
    x, y = make_batches(folder / "training_model.onnx", options)
    loss, gradients = first_gradients(folder, x[0], y[0])
    losses, parameters = train(folder, x, y) if options.steps else (np.array([]), {})
    state = CheckpointState.load_checkpoint(str(folder / "checkpoint"))
    before = {f"before:{name}": np.array(p.data) for name, p in state.parameters}
    np.savez_compressed(
        folder / "recorded.npz",
        x=x,
        y=y,
        loss=loss,
        losses=losses,
        **{f"gradient:{name}": array for name, array in gradients.items()},
        **{f"after:{name}": array for name, array in parameters.items()},
        **before,
    )


def make_batches(path: Path, options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Random data and labels, (batches, samples, ...) each."""
    random = np.random.default_rng(5)
    x, y = onnx.load(path).graph.input[:2]
    batches = (max(options.steps, 1), options.batch)
    shape, label_shape = (
        (*batches, *(d.dim_value for d in value.type.tensor_type.shape.dim[1:])) for value in (x, y)
    )
    data = random.uniform(-1, 1, shape).astype(np.float32)
    if y.type.tensor_type.elem_type == onnx.TensorProto.INT64:
        return data, random.integers(0, 10, label_shape)
    return data, random.uniform(-1, 1, label_shape).astype(np.float32)


def first_gradients(
    folder: Path, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Loss and gradients of one batch, read where they enter their accumulators."""
    model = onnx.load(folder / "training_model.onnx")
    sums = [n for n in model.graph.node if n.op_type == "InPlaceAccumulatorV2"]
    names = [node.input[0].removesuffix("_grad.accumulation.buffer") for node in sums]
    model.graph.output.extend(onnx.ValueInfoProto(name=node.input[1]) for node in sums)
    state = CheckpointState.load_checkpoint(str(folder / "checkpoint"))
    known = {name: np.array(parameter.data) for name, parameter in state.parameters}
    data = [value.name for value in model.graph.input[:2]]
    feeds = {**known, data[0]: x, data[1]: y, "lazy_reset_grad": np.array([True])}
    feeds |= {f"{n}_grad.accumulation.buffer": np.zeros_like(known[n]) for n in names}
    read = {value.name for value in model.graph.input}
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    outputs = [model.graph.output[0].name, *(node.input[1] for node in sums)]
    loss, *gradients = session.run(outputs, {k: v for k, v in feeds.items() if k in read})
    return loss, dict(zip(names, gradients, strict=True))


def train(folder: Path, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Losses of some steps with the folder's own optimiser, and the parameters after them."""
    state = CheckpointState.load_checkpoint(str(folder / "checkpoint"))
    module = Module(str(folder / "training_model.onnx"), state)
    optimizer = Optimizer(str(folder / "optimizer_model.onnx"), module)
    losses = []
    for data, labels in zip(x, y, strict=True):
        module.train()
        losses.append(module(data, labels))
        optimizer.step()
        module.lazy_reset_grad()
    return np.array(losses), {name: np.array(p.data) for name, p in state.parameters}


def main() -> None:
    """Generate and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[*SMALL, *MODELS, *FLOAT_NETWORKS])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--loss", default="CrossEntropyLoss")
    parser.add_argument("--optimizer", default="AdamW")
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--freeze", action="append", default=[])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--keep-forward", action="store_true")
    options = parser.parse_args()
    generate(options.folder, options)
    record(options.folder, options)


if __name__ == "__main__":
    main()
