"""What the tests of the command line share."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from bnnopt.analysis import PaperClass

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models"
FILES = ("mlp.onnx", "relu-mini.onnx", "resnet-e-mini.onnx")
CLASSES = {
    "retained_activations": int,
    "masks_and_indices": int,
    "transient_activations_and_gradients": int,
    "weights": int,
    "weight_gradients": int,
    "optimizer_state": int,
    "batch_norm_statistics": int,
    "workspace": int,
}
TYPES = dict.fromkeys(CLASSES, str)
POINT = {
    "peak_bytes": int,
    "process_bytes": int,
    "title": str,
    "lossless": bool,
    "loss": float,
    "cost": float,
    "kept_values": int,
    "passes": [str],
}


@dataclass(frozen=True)
class Maybe:
    """What is there, or null."""

    content: Any


REPORT = {
    "schema": int,
    "model": str,
    "batch_size": int,
    "level": str,
    "optimizer": str,
    "baseline": {"peak_bytes": int, "saved_bytes": int, "classes": CLASSES, "types": TYPES},
    "passes": [
        {
            "name": str,
            "spec": str,
            "lossless": bool,
            "min_cosine": float,
            "numbers": str,
            "rewrites": int,
            "peak_bytes": int,
            "saved_bytes": int,
            "skipped": [{"node": str, "reason": str}],
            "chosen": [{"node": str, "reason": str}],
        }
    ],
    "optimized": {
        "peak_bytes": int,
        "saved_bytes": int,
        "arena_bytes": int,
        "persistent_bytes": int,
        "worst_case_bytes": int,
        "classes": CLASSES,
        "types": TYPES,
        "process_bytes": int,
    },
    "paper_rule": {
        "standard_bytes": int,
        "optimized_bytes": int,
        "masks_before_alone": {"standard_bytes": int, "optimized_bytes": int},
        "classes": {
            kind.value: {"standard_bytes": int, "optimized_bytes": int} for kind in PaperClass
        },
    },
    "ratio": float,
    "binarized": [{"name": str, "ste": str, "zero": str}],
    "trained": [str],
    "frozen": [str],
    "budget": Maybe(
        {"solver": str, "asked": str, "chosen": POINT, "frontier": [POINT], "seconds": float}
    ),
}


@dataclass(frozen=True)
class Outcome:
    exit_code: int
    stdout: str
    stderr: str


Cli = Callable[..., Outcome]


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything below a folder, by name, time and content."""
    return {
        str(path): (path.lstat().st_mode, path.lstat().st_mtime_ns, _content(path))
        for path in folder.rglob("*")
    }


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def assert_contract(found: Any, expected: Any, where: str = "report") -> None:
    """The same keys in the same order and the same types, all the way down."""
    if isinstance(expected, Maybe):
        if found is not None:
            assert_contract(found, expected.content, where)
    elif isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key, entry in expected.items():
            assert_contract(found[key], entry, f"{where}.{key}")
    elif isinstance(expected, list):
        assert type(found) is list, where
        for i, entry in enumerate(found):
            assert_contract(entry, expected[0], f"{where}[{i}]")
    else:
        assert type(found) is expected, f"{where}: {found!r}"


def read_report(text: str) -> dict[str, Any]:
    """A report that holds to its contract, in keys, types and sums."""
    report: dict[str, Any] = json.loads(text)
    assert_contract(report, REPORT)
    assert report["schema"] == 1
    before, after = report["baseline"], report["optimized"]
    for footprint in (before, after):
        assert sum(footprint["classes"].values()) == footprint["peak_bytes"]
    assert after["arena_bytes"] + after["persistent_bytes"] == after["peak_bytes"]
    assert report["ratio"] == before["peak_bytes"] / after["peak_bytes"]
    paper = report["paper_rule"]
    for total in ("standard_bytes", "optimized_bytes"):
        assert sum(entry[total] for entry in paper["classes"].values()) == paper[total]
    if report["passes"]:
        assert report["passes"][-1]["peak_bytes"] == after["peak_bytes"]
        assert report["passes"][-1]["saved_bytes"] == after["saved_bytes"]
    return report


def save_model(
    path: Path, body: str, weight: str = "w", domains: str = "", result: str = "float[batch,4]"
) -> Path:
    """A model of x (batch, 3), a weight (3, 4) and `body`, which makes y of them."""
    head = f'<ir_version: 8, opset_import: ["": 17{domains}]>'
    text = f"{head} g (float[batch,3] x) => ({result} y) {{ {body} }}"
    model = onnx.parser.parse_model(text)
    values = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(values, weight))
    onnx.save(model, path)
    return path
