"""The packed network beside the float one: bytes, and the time of one image on one thread.

    python -m benchmarks.packed [mlp cnv binarynet]

``export --packed`` run by `bnnopt.Predictor`, and ``export -o`` by stock onnxruntime, in turn; the
least processor time of many runs, which a busy machine disturbs little.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

import bnnopt
from bnnopt.compiler.prediction import export_network
from bnnopt.models import build
from bnnopt.runtime import exporting

ROUNDS = 30


def least_ms(runs: list[Callable[[], Any]]) -> list[float]:
    """The least processor time of each, in turn, in milliseconds."""
    found = [float("inf")] * len(runs)
    for _ in range(ROUNDS):
        for place, run in enumerate(runs):
            start = time.process_time()
            run()
            found[place] = min(found[place], 1000 * (time.process_time() - start))
    return found


def row(name: str, folder: Path) -> str:
    """One network as a row of the table."""
    path = folder / "net.onnx"
    ir.save(build(name, 0), path)
    bnnopt.optimize(path, batch_size=2).save(folder / "out")
    session = bnnopt.TrainingSession(folder / "out", threads=1)
    random = np.random.default_rng(0)
    (spec,) = session.inputs.values()
    x = random.standard_normal(spec.shape_at(2)).astype(np.float32)
    for _ in range(3):  # untrained, many sums are 0, whose sign onnxruntime's fusions round away
        session.step(x, random.integers(0, 10, 2))
    (folder / "float.onnx").write_bytes(exporting.trained_model(folder / "out", session))
    export_network(folder / "out", session, folder / "packed", 1)
    predictor = bnnopt.Predictor(folder / "packed", threads=1)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    other = ort.InferenceSession(folder / "float.onnx", options, ["CPUExecutionProvider"])
    x = x[:1]
    feeds = {other.get_inputs()[0].name: x}
    np.testing.assert_allclose(predictor.predict(x), other.run(None, feeds)[0], atol=1e-3)
    packed, plain = least_ms([lambda: predictor.predict(x), lambda: other.run(None, feeds)])
    sizes = [(folder / "float.onnx").stat().st_size]
    sizes += [(folder / "packed" / "constants.safetensors").stat().st_size]
    large, small = (f"{size / 1e6:.3g} MB" for size in sizes)
    return (
        f"| {name} | {large} | {small} | {sizes[0] / sizes[1]:.0f} | {plain:.2f} | {packed:.2f} | "
        f"{plain / packed:.1f} |"
    )


def main() -> None:
    """Print a row for each network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=["mlp", "cnv", "binarynet"])
    print("| network | float | packed | smaller | float, ms | packed, ms | faster |")
    print("|---|---|---|---|---|---|---|")
    for name in parser.parse_args().names:
        with tempfile.TemporaryDirectory() as folder:
            print(row(name, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
