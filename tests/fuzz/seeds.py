"""What the mutants are made of: small networks, and what bnnopt makes of them."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import onnx
from onnx import numpy_helper, parser

import bnnopt
from bnnopt import TrainingSession
from bnnopt.runtime.training import Checkpoints
from tests.passes import networks

BATCH = 4
PLANNED = 64 << 20  # bytes: what needs more is compiled, but not opened
ARTIFACTS = Path(__file__).parent.parent / "exports" / "artifacts"

PLAIN = """g (float[batch,6] x) => (float[batch,3] y) {
    h = MatMul (x, w)
    r = Relu (h)
    y = MatMul (r, v)
}"""
TOKENS = """g (int64[batch,4] x) => (float[batch,3] y) {
    e = Gather (table, x)
    f = Flatten (e)
    y = Gemm <transB = 1> (f, w, b)
}"""
WITH_LOSS = """g (float[batch,6] x) => (float loss) {
    h = MatMul (x, w)
    s = Mul (h, h)
    loss = ReduceMean <keepdims = 0> (s)
}"""
NETWORKS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    **networks.NETWORKS,
    **networks.OTHERS,
    "plain": (PLAIN, {"w": [6, 5], "v": [5, 3]}),
    "tokens": (TOKENS, {"table": [7, 3], "w": [3, 12], "b": [3]}),
    "with-loss": (WITH_LOSS, {"w": [6, 5]}),
}
SMALL = ("plain", "dense", "tokens", "with-loss", "dropout")  # that compile in some 100 ms


@functools.cache
def model_bytes(name: str) -> bytes:
    """A network of the table as a file, with weights from a seed."""
    graph, weights = NETWORKS[name]
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{graph}')
    rng = np.random.default_rng(0)
    for weight, shape in weights.items():
        array = 0.3 * rng.standard_normal(shape) + (weight[0] == "v")  # variances are positive
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), weight))
    return model.SerializeToString()


class Compiled(NamedTuple):
    """How a folder is made: the network, and the options of `bnnopt.optimize`."""

    network: str
    options: Mapping[str, Any]


FOLDERS: Mapping[str, Compiled] = {
    "binary-o1": Compiled("binary", {"level": "O1"}),
    "binary-o2": Compiled("binary", {"level": "O2"}),
    "binary-bop": Compiled("binary", {"level": "O2", "optimizer": "bop"}),
    "binary-int4": Compiled("binary", {"level": "O2", "enable": ["int4-gradients"]}),
    "binary-int8": Compiled("binary", {"level": "O2", "enable": ["int8-gradients"]}),
    "binary-pow2": Compiled("binary", {"level": "O2", "enable": ["pow2-gradients"]}),
    "residual-o0": Compiled("residual", {"level": "O0", "optimizer": "sgd"}),
    "residual-o2": Compiled("residual", {"level": "O2", "optimizer": "sgd"}),
    "float-o1": Compiled("float", {"level": "O1"}),
    "relu-pruned": Compiled("relu", {"level": "O1", "prune_stored": 0.5}),
    "relu-o0": Compiled("relu", {"level": "O0"}),
    "joined-o1": Compiled("joined", {"level": "O1", "optimizer": "sgd"}),
    "stem-o2": Compiled("stem", {"level": "O2"}),
    "dense-o2": Compiled("dense", {"level": "O2", "optimizer": "fixed-sign"}),
    "dropout-o1": Compiled("dropout", {"level": "O1"}),
    "tokens-o1": Compiled("tokens", {"level": "O1"}),
}


def make_seeds(folder: Path) -> None:
    """Write a folder and a checkpoint for each row of the table."""
    for name, (network, options) in FOLDERS.items():
        path = folder / f"{network}.onnx"
        path.write_bytes(model_bytes(network))
        with without_portable_graphs():
            bnnopt.optimize(path, batch_size=BATCH, **options).save(folder / name)
        session = TrainingSession(folder / name, threads=1)
        session.step(*batch(session))
        session.save(folder / f"{name}.safetensors", {"place": "seed"})
        x, y = training_data(session)
        np.savez(folder / f"{name}.npz", x=x, y=y)
        kept = Checkpoints(folder / f"{name}.kept")
        session.fit((x, y), 1, checkpoints=kept.folder)
        shutil.copy(kept.found()[0], folder / f"{name}.fit.safetensors")


def training_data(session: TrainingSession) -> tuple[Any, Any]:
    """Samples and labels of two epochs of three steps."""
    x, y = batch(session, 3 * BATCH - 1)
    return next(iter(x.values())), y


def without_portable_graphs() -> AbstractContextManager[object]:
    """Save folders without those for onnxruntime: they take most of the time, and no step."""
    return mock.patch("bnnopt.artifact.write.portable_model", lambda step, _: step.model)


def batch(session: TrainingSession, n: int | None = None, seed: int = 0) -> tuple[Any, Any]:
    """Samples and labels that a session takes, in the right ranges if the shapes are right."""
    rng, n = np.random.default_rng(seed), session.batch_size if n is None else n
    given: dict[str, Any] = {}
    for name, spec in session.inputs.items():
        shape = spec.shape_at(n)
        kind = np.dtype(spec.dtype).kind
        drawn = rng.standard_normal(shape) if kind == "f" else rng.integers(0, 2, shape)
        given[name] = drawn.astype(spec.dtype)
    labels = session._labels
    if labels is None:
        return given, None
    shape = labels.shape_at(n)
    if labels.dtype != "int64":
        return given, rng.uniform(0, 1, shape).astype(labels.dtype)
    return given, rng.integers(0, max(1, session.about.classes), shape)


def read(name: str) -> onnx.ModelProto:
    """A network of the table, to be changed."""
    return onnx.ModelProto.FromString(model_bytes(name))
