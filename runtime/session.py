"""Training on the device: one step at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bnnopt.errors import ArtifactError, UsageError
from bnnopt.runtime.artifact import read_artifact, read_tensors, write_tensors
from bnnopt.runtime.format import WEIGHTS_FILE, Artifact, ValueSpec
from bnnopt.runtime.native import NativeBackend

if TYPE_CHECKING:
    from bnnopt.runtime.onnxruntime_backend import OnnxruntimeBackend

Array = NDArray[np.generic]
BACKENDS = ("native", "onnxruntime")


class TrainingSession:
    """A compiled training step with its weights and optimiser state.

    Parameters
    ----------
    folder : path
        Written by ``bnnopt optimize``.
    backend : str
        ``native`` (numpy kernels over the planned arena) or ``onnxruntime``.
    threads : int, optional
        For onnxruntime. The native backend's matrix products run on as many threads as numpy's BLAS
        takes from the environment (``OMP_NUM_THREADS``).

    Raises
    ------
    ArtifactError
        If the folder is not one of bnnopt's, or is damaged.
    UsageError
        If the backend is not known, not installed, or takes no thread count.

    Examples
    --------
    >>> session = TrainingSession("out")
    >>> loss = session.step(x, y)
    """

    def __init__(
        self, folder: str | Path, backend: str = "native", threads: int | None = None
    ) -> None:
        self._folder = Path(folder)
        self._artifact = read_artifact(self._folder)
        self._persistent = _initial_buffers(self._folder, self._artifact)
        self._step = 0
        self._backend = _open_backend(self._folder, backend, self._persistent, threads)

    @property
    def batch_size(self) -> int:
        """Samples in a full batch."""
        return self._artifact.batch_size

    @property
    def steps_done(self) -> int:
        """Steps that the weights have seen."""
        return self._step

    def step(self, x: ArrayLike, y: ArrayLike | None = None, lr: float | None = None) -> float:
        """One training step; weights, statistics and optimiser state change in place.

        Parameters
        ----------
        x : (n, ...) float32
            As the model's input; n is at most the batch size of the folder.
        y : (n,) int64
            Class labels; (n, ...) float32 targets for ``mse``; not given where the graph has its
            own loss.
        lr : float, optional
            Learning rate; the folder's default if not given.

        Returns
        -------
        float
            The loss before the update.

        Raises
        ------
        UsageError
            If a shape, a label or the batch does not fit; nothing has changed then.
        """
        data = _fitted(x, self._backend.input_specs[0], "x")
        batch = self._checked_batch(data)
        feeds: dict[str, tuple[Array, ...]] = {"data": (data,)}
        if self._backend.label_specs:
            if y is None:
                raise UsageError("step: y is missing; expected one label a sample")
            feeds["labels"] = (self._checked_labels(y, batch),)
        rate = self._artifact.learning_rate if lr is None else lr
        feeds["rate"] = (np.array(rate, np.float32),)
        feeds["step"] = (np.array(self._step + 1, np.int64),)
        loss = self._backend.train(feeds, batch)
        self._step += 1
        return loss

    def predict(self, x: ArrayLike) -> Array:
        """The network's output for any number of samples, with running statistics.

        Parameters
        ----------
        x : (n, ...) float32

        Returns
        -------
        ndarray
            (n, ...), as the model's output.
        """
        data = _fitted(x, self._backend.input_specs[0], "x")
        parts = [self._predict_batch(batch) for batch in self._batches(data)]
        return np.concatenate(parts) if parts else np.empty((0,), np.float32)

    def evaluate(self, x: ArrayLike, y: ArrayLike) -> float:
        """Accuracy: the share of samples whose largest output is at their label.

        Parameters
        ----------
        x : (n, ...) float32
        y : (n,) int64
        """
        labels = np.asarray(y)
        predictions = self.predict(x)
        if len(labels) != len(predictions) or not len(labels):
            raise UsageError(
                f"evaluate: {len(labels)} labels for {len(predictions)} samples; expected as many"
            )
        return float(np.mean(np.argmax(predictions, axis=1) == labels))

    def parameters(self) -> dict[str, Array]:
        """Copies of weights and running statistics, under the model file's own names."""
        return {name: self._persistent[name].copy() for name in self._artifact.weights}

    def save(self, path: str | Path) -> None:
        """Write a checkpoint: weights, statistics, optimiser state and the number of steps.

        The file is complete or absent whatever happens meanwhile.
        """
        write_tensors(Path(path), self._persistent, {"steps_done": str(self._step)})

    def resume(self, path: str | Path) -> None:
        """Go on from a checkpoint, bit-exactly.

        Raises
        ------
        ArtifactError
            If the file is missing, damaged, or from another model or optimiser; nothing has
            changed then.
        """
        tensors, metadata = read_tensors(Path(path))
        for name, array in self._persistent.items():
            found = tensors.get(name)
            if found is None or found.shape != array.shape or found.dtype != array.dtype:
                state = "missing" if found is None else f"{found.dtype} {list(found.shape)}"
                raise ArtifactError(
                    f"{path}: {name!r} is {state}, expected {array.dtype} {list(array.shape)}; "
                    "the checkpoint is of another model or optimiser"
                )
        if "steps_done" not in metadata:
            raise ArtifactError(f"{path}: not a checkpoint: it does not say how many steps it saw")
        for name, array in self._persistent.items():
            np.copyto(array, tensors[name])
        self._step = int(metadata["steps_done"])

    def _batches(self, data: Array) -> Iterator[Array]:
        for start in range(0, len(data), self.batch_size):
            yield data[start : start + self.batch_size]

    def _predict_batch(self, data: Array) -> Array:
        """A fixed batch is filled up: with running statistics, samples do not see one another."""
        n = len(data)
        if self._backend.fixed_batch and n < self.batch_size:
            filler = np.zeros((self.batch_size - n, *data.shape[1:]), data.dtype)
            return self._backend.predict((np.concatenate([data, filler]),), self.batch_size)[:n]
        return self._backend.predict((data,), n)

    def _checked_batch(self, data: Array) -> int:
        n, full = len(data), self.batch_size
        if not 1 <= n <= full or (self._backend.fixed_batch and n != full):
            expected = f"{full}" if self._backend.fixed_batch else f"1 to {full}"
            raise UsageError(
                f"step: x has {n} samples, expected {expected}; optimize with another --batch-size"
            )
        return n

    def _checked_labels(self, y: ArrayLike, batch: int) -> Array:
        spec = self._backend.label_specs[0]
        labels = np.asarray(y)
        shape = spec.shape_at(batch)
        if labels.shape != shape:
            raise UsageError(f"step: y has shape {list(labels.shape)}, expected {list(shape)}")
        if spec.dtype != "int64":
            return labels.astype(spec.dtype, copy=False)
        if labels.dtype.kind not in "iu":
            raise UsageError(f"step: y is {labels.dtype}, expected integer class labels")
        classes = self._artifact.classes
        if labels.size and (labels.min() < 0 or labels.max() >= classes):
            raise UsageError(
                f"step: y has labels from {labels.min()} to {labels.max()}, expected 0 to "
                f"{classes - 1}"
            )
        return labels.astype(np.int64, copy=False)


def _fitted(x: ArrayLike, spec: ValueSpec, what: str) -> Array:
    array = np.asarray(x)
    expected = spec.shape_at(1)[1:]
    if array.ndim == 0 or array.shape[1:] != expected:
        raise UsageError(
            f"{what} has shape {list(array.shape)}, expected [n, {', '.join(map(str, expected))}]"
        )
    if array.dtype.kind not in "fiub":
        raise UsageError(f"{what} is {array.dtype}, expected {spec.dtype}")
    return array.astype(spec.dtype, copy=False)


def _initial_buffers(folder: Path, artifact: Artifact) -> dict[str, Array]:
    weights, _ = read_tensors(folder / WEIGHTS_FILE)
    buffers: dict[str, Array] = {}
    for name, shape in artifact.persistent.items():
        initial = weights.get(name)
        buffers[name] = np.zeros(shape, np.float32)
        if initial is not None:
            np.copyto(buffers[name], initial)
    return buffers


def _open_backend(
    folder: Path, name: str, persistent: dict[str, Array], threads: int | None
) -> NativeBackend | OnnxruntimeBackend:
    if name not in BACKENDS:
        raise UsageError(f"backend {name!r} is not known; expected {' or '.join(BACKENDS)}")
    if name == "native":
        if threads is not None:
            raise UsageError("backend 'native' takes no thread count; set OMP_NUM_THREADS")
        return NativeBackend(folder, persistent)
    try:
        from bnnopt.runtime.onnxruntime_backend import OnnxruntimeBackend
    except ImportError:
        raise UsageError(
            "backend 'onnxruntime' is not installed; pip install 'bnnopt[onnxruntime]'"
        ) from None
    return OnnxruntimeBackend(folder, persistent, threads)
