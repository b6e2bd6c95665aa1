"""A small network, samples of some devices, and what a run on them left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import bnnopt
from bnnopt import TrainingSession
from tests.graphs import write
from tests.passes.networks import batch_norm, batch_norm_weights

DEVICES, SAMPLES = 5, 64
NETWORK = f"""g (float[batch,12] x) => (float[batch,3] y) {{
    w1b = Sign (w1)
    h = Gemm <transB = 1> (x, w1b)
    {batch_norm("h", "n", 1)}
    s = Sign (n)
    w2b = Sign (w2)
    y = Gemm <transB = 1> (s, w2b)
}}"""
WEIGHTS = {"w1": [30, 12], **batch_norm_weights(1, 30), "w2": [3, 30]}


def samples(seed: int, n: int = SAMPLES) -> dict[str, Any]:
    """Three classes that a direction tells apart."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(99).standard_normal((3, 12))
    y = rng.integers(0, 3, n)
    return {"x": (directions[y] + 0.5 * rng.standard_normal((n, 12))).astype("f4"), "y": y}


def write_base(path: Path, fed: str = "float32", as_bytes: bool = False) -> Path:
    """A compiled network, samples for each device, and some to measure on."""
    network = write(NETWORK, WEIGHTS, path)
    made = bnnopt.optimize(network, batch_size=16, optimizer="sgd", level="O2", input=fed)
    made.save(path / "out")
    for k in range(DEVICES):
        np.savez(path / f"{k}.npz", **(in_bytes(samples(k)) if as_bytes else samples(k)))
    valid = samples(100, 300)
    np.savez(path / "valid.npz", **(in_bytes(valid) if as_bytes else valid))
    return path


def in_bytes(data: dict[str, Any]) -> dict[str, Any]:
    """Samples as images are stored."""
    return data | {"x": np.clip(data["x"] * 40 + 128, 0, 255).astype(np.uint8)}


def options(base: Path, scratch: Path, **changed: Any) -> dict[str, Any]:
    """An app's configuration."""
    return {
        "folder": str(base / "out"),
        "data": str(base / "{partition}.npz"),
        "valid": str(base / "valid.npz"),
        "checkpoints": str(scratch / "fleet"),
        "log": str(scratch / "log.jsonl"),
        "lr": 0.05,
        "rate": 0.1,
        "rounds": 4,
        "feedback": False,
        "devices": DEVICES,
    } | changed


def parameters(config: dict[str, Any]) -> dict[str, bytes]:
    """Of the network that the server wrote last."""
    session = TrainingSession(config["folder"])
    session.resume(Path(config["checkpoints"], "network.safetensors"))
    return {name: array.tobytes() for name, array in session.parameters().items()}


def log_of(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The server's lines."""
    return [json.loads(line) for line in Path(config["log"]).read_text().splitlines()]
