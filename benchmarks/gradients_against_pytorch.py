"""Gradients of the unrewritten step against PyTorch autograd, full size, on the same exported file.

    python -m benchmarks.gradients_against_pytorch --model binarynet --batch-size 100

After one step of SGD with momentum the momentum is the gradient. Needs the oracle extra; the models
are those of ``tests/exports/torch_models.py``.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

import bnnopt
from tests.exports.torch_models import MODELS, export, make_batch, randomize_biases


def main() -> None:
    """Print the loss difference and the worst parameter."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="binarynet", choices=sorted(MODELS))
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--fresh", action="store_true", help="leave all biases at zero")
    parser.add_argument("--level", default="O0")
    parser.add_argument("--backend", default="native")
    options = parser.parse_args()
    x, labels = make_batch(options.model, options.batch_size, seed=0)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        module = export(options.model, path)
        if not options.fresh:
            randomize_biases(module, path)
        settings = {"batch_size": options.batch_size, "optimizer": "sgd"}
        bnnopt.optimize(path, level=options.level, **settings).save(Path(scratch) / "out")
        session = bnnopt.TrainingSession(Path(scratch) / "out", backend=options.backend)
        loss = session.step(x, labels)
        session.save(Path(scratch) / "checkpoint")
        ours = load_file(Path(scratch) / "checkpoint")
    reference = torch.nn.functional.cross_entropy(
        module(torch.from_numpy(x)), torch.from_numpy(labels)
    )
    reference.backward()
    print(f"loss {loss:.7f}, PyTorch {reference.item():.7f}")
    cosines = {
        name: _cosine(ours[f"{name}.momentum"], parameter.grad.numpy())
        for name, parameter in module.named_parameters()
    }
    for name, cosine in sorted(cosines.items(), key=lambda pair: pair[1])[:5]:
        print(f"cosine {cosine:.7f}  {name}")


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


if __name__ == "__main__":
    main()
