"""One contestant of `benchmarks.steps`, in a process of its own.

It sets up a training step, says ``ready``, runs one step for every line of standard input and
answers with its seconds and loss, and at the end of the input says by how much its resident memory
grew at most since its libraries were imported and the batch was read. The file stands alone, so
that an interpreter without bnnopt can run it.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

Step = Callable[[], "float | None"]
LEARNING_RATE = 1e-3


def main() -> None:
    """Set up the contestant that the arguments name, and step on request."""
    name, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    batch = np.load(folder / "batch.npz")
    memory = Memory()
    step = CONTESTANTS[name](folder, threads, batch["x"], batch["labels"], memory)
    _say({"ready": True})
    for _ in sys.stdin:
        wall, processor = time.perf_counter(), time.process_time()
        loss = step()
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        _say({"wall": wall, "processor": processor, "loss": loss})
    _say({"growth_bytes": memory.growth_bytes()})


def _say(message: dict[str, object]) -> None:
    print(json.dumps(message), flush=True)


class Memory:
    """Peak resident memory since `start`, as Linux counts it."""

    def start(self) -> None:
        """Forget the peak so far, and give back what is free: growth would not show in it."""
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self._before = self._read("VmRSS")

    def growth_bytes(self) -> int:
        """Growth up to the peak."""
        return self._read("VmHWM") - self._before

    @staticmethod
    def _read(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def native(folder: Path, threads: int, x: Any, labels: Any, memory: Memory) -> Step:
    """A compiled folder on the native backend."""
    from bnnopt.runtime import TrainingSession

    memory.start()
    session = TrainingSession(folder / "out", threads=threads)
    return lambda: session.step(x, labels)


def onnxruntime(folder: Path, threads: int, x: Any, labels: Any, memory: Memory) -> Step:
    """The same folder on stock onnxruntime."""
    import onnxruntime  # noqa: F401

    from bnnopt.runtime import TrainingSession

    memory.start()
    session = TrainingSession(folder / "out", backend="onnxruntime", threads=threads)
    return lambda: session.step(x, labels)


def pytorch(
    folder: Path,
    threads: int,
    x: Any,
    labels: Any,
    memory: Memory,
    *,
    compiled: bool = False,
    fused: bool = False,
) -> Step:
    """The network that the file was exported from, or a twin of a zoo network, in eager mode.

    Adam runs operator by operator for lists of tensors, or `fused`.
    """
    import torch

    torch.set_num_threads(threads)
    model = json.loads((folder / "model.json").read_text())
    data, target = torch.from_numpy(x), torch.from_numpy(labels)
    memory.start()
    parameters, loss = _network(folder, **model)
    optimizer = torch.optim.Adam(parameters, LEARNING_RATE, fused=fused or None)
    forward = torch.compile(loss) if compiled else loss

    def step() -> None:
        optimizer.zero_grad()
        forward(data, target).backward()
        optimizer.step()

    if compiled:
        step()
    return step


def _network(
    folder: Path, name: str, is_zoo: bool = False, size: int | None = None
) -> tuple[list[Any], Callable[..., Any]]:
    """Parameters, and the loss of a batch and its labels; `size` is that of a float network."""
    import torch

    if not is_zoo:
        from tests.exports.float_networks import make_float_network
        from tests.exports.torch_models import make_model

        module = make_float_network(name, size) if size is not None else make_model(name)
        cross_entropy = torch.nn.functional.cross_entropy
        return [*module.parameters()], lambda x, labels: cross_entropy(module(x), labels)
    import onnx

    from tests.models.test_torch_twins import Twin

    tensors = onnx.load(folder / "model.onnx").graph.initializer
    parameters = {
        t.name: torch.tensor(onnx.numpy_helper.to_array(t), requires_grad=True)
        for t in tensors
        if "running" not in t.name
    }
    return [*parameters.values()], Twin(parameters, name == "bi-real-18").loss


def compiled_pytorch(folder: Path, threads: int, x: Any, labels: Any, memory: Memory) -> Step:
    """The same after torch.compile."""
    return pytorch(folder, threads, x, labels, memory, compiled=True)


def onnxruntime_training(folder: Path, threads: int, x: Any, labels: Any, memory: Memory) -> Step:
    """onnxruntime-training's own step from its artifacts; float networks only."""
    import onnxruntime as ort
    from onnxruntime.training import api

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    artifacts = folder / "artifacts"
    memory.start()
    state = api.CheckpointState.load_checkpoint(str(artifacts / "checkpoint"))
    module = api.Module(
        str(artifacts / "training_model.onnx"), state, None, "cpu", session_options=options
    )
    optimizer = api.Optimizer(str(artifacts / "optimizer_model.onnx"), module)
    module.train()

    def step() -> None:
        module(x, labels)
        optimizer.step()
        module.lazy_reset_grad()

    return step


def jax_jit(folder: Path, threads: int, x: Any, labels: Any, memory: Memory) -> Step:
    """The binary MLP under jax's jit; its threads are those that the process may run on."""
    from jax_mlp import contestant  # type: ignore[import-not-found]

    step: Step = contestant(folder, x, labels, memory)
    return step


def make_artifacts(folder: Path) -> None:
    """Write the artifacts of onnxruntime-training, which take more memory to make than to run."""
    import onnx
    from onnxruntime.training import artifacts

    model = onnx.load(folder / "model.onnx")
    names = [tensor.name for tensor in model.graph.initializer]
    fixed = [name for name in names if "running" in name]
    (folder / "artifacts").mkdir()
    artifacts.generate_artifacts(
        model,
        requires_grad=[name for name in names if name not in fixed],
        frozen_params=fixed,
        loss=artifacts.LossType.CrossEntropyLoss,
        optimizer=artifacts.OptimType.AdamW,
        artifact_directory=str(folder / "artifacts"),
    )


CONTESTANTS: dict[str, Callable[..., Step]] = {
    "bnnopt": native,
    "bnnopt on onnxruntime": onnxruntime,
    "PyTorch eager": pytorch,
    "PyTorch fused Adam": partial(pytorch, fused=True),
    "torch.compile": compiled_pytorch,
    "onnxruntime-training": onnxruntime_training,
    "jax.jit": jax_jit,
}

if __name__ == "__main__":
    if sys.argv[1] == "make-artifacts":
        make_artifacts(Path(sys.argv[2]))
    else:
        main()
