"""``--head``: a file with another number of classes, against the module that has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import bnnopt
from bnnopt.errors import UsageError
from bnnopt.runtime import exporting
from tests.graphs import write

torch = pytest.importorskip("torch")

import bnnopt.torch  # noqa: E402
from tests.torch.modules import function, window  # noqa: E402

pytestmark = pytest.mark.oracle
nn = torch.nn
sign = function(lambda x: torch.where(x >= 0, 1.0, -1.0), window)


class BinaryHead(nn.Module):
    """Scaled signs of a weight, and a batch norm behind the product."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.weight = nn.Parameter(torch.randn(classes, 16))
        self.norm = nn.BatchNorm1d(classes)

    def forward(self, x: Any) -> Any:
        h = sign(nn.functional.avg_pool2d(self.first(x), 3).flatten(1))
        scale = self.weight.abs().mean(1, keepdim=True)
        return self.norm(nn.functional.linear(h, sign(self.weight) * scale.detach()))


MODULES: dict[str, Callable[[int], Any]] = {
    "dense": lambda n: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, n)
    ),
    "square": lambda n: nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.ReLU(), nn.Linear(5, n)),
    "pixels": lambda n: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, n, 1)),
    "pooled": lambda n: nn.Sequential(
        nn.Conv2d(3, n, 3), nn.BatchNorm2d(n), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ),
    "binary": BinaryHead,
}
OLD, NEW = 5, 7


@pytest.mark.parametrize("name", MODULES)
def test_it_is_the_module_with_so_many_classes(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, x = MODULES[name], torch.randn(4, 3, 8, 8)
    module, wanted = make(OLD), make(NEW)
    path = bnnopt.torch.export(module.train(), x, tmp_path / "net.onnx")
    net = bnnopt.optimize(path, batch_size=4, head=NEW)
    shapes = {k: list(v.shape) for k, v in wanted.state_dict().items() if v.dim()}
    assert {k: list(v.shape) for k, v in net.weights.items()} == shapes
    before = module.state_dict()
    renewed = {k for k, shape in shapes.items() if shape != list(before[k].shape)}
    (note,) = [note for note in net.report.notes if note.startswith("--head")]
    assert all(k in note for k in renewed)
    for k in shapes.keys() - renewed:
        np.testing.assert_array_equal(net.weights[k], before[k].numpy())
    net.save(tmp_path / "out")
    session = bnnopt.TrainingSession(tmp_path / "out")
    labels = np.full(session._labels.shape_at(4), NEW - 1)  # type: ignore[union-attr]
    losses = [session.step(x.numpy(), labels, 0.01) for _ in range(5)]
    assert losses[-1] < losses[0]
    wanted.load_state_dict(
        {k: torch.from_numpy(v) for k, v in session.parameters().items()}, strict=False
    )
    with torch.no_grad():
        expected = wanted.eval()(x).numpy()
    np.testing.assert_allclose(session.predict(x.numpy()), expected, atol=1e-4)
    (tmp_path / "trained.onnx").write_bytes(exporting.trained_model(tmp_path / "out", session))
    network = ort.InferenceSession(tmp_path / "trained.onnx", providers=["CPUExecutionProvider"])
    (found,) = network.run(None, {network.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_rest_starts_from_trained_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    path = bnnopt.torch.export(MODULES["dense"](OLD).train(), x, tmp_path / "net.onnx")
    bnnopt.optimize(path, batch_size=4).save(tmp_path / "a")
    session = bnnopt.TrainingSession(tmp_path / "a")
    session.step(x.numpy(), np.zeros(4, np.int64), 0.1)
    session.save(tmp_path / "trained.safetensors")
    init = str(tmp_path / "trained.safetensors")
    net = bnnopt.optimize(path, batch_size=4, head=NEW, init=init, last=1)
    np.testing.assert_array_equal(net.weights["0.weight"], session.parameters()["0.weight"])
    assert set(net.report.trained) == {"3.weight", "3.bias"}


def test_a_square_weight_grows_along_its_outputs(tmp_path: Path) -> None:
    text = "g (float[batch,5] x) => (float[batch,5] y) { y = MatMul (x, w) }"
    net = bnnopt.optimize(write(text, {"w": [5, 5]}, tmp_path), batch_size=4, head=7)
    assert net.weights["w"].shape == (5, 7)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("g (float[batch,6] x) => (float[batch,6] y) { y = Relu (x) }", "no dense layer"),
        ("g (float[batch,6] x) => (float y) { y = ReduceMean <keepdims = 0> (x) }", "axis 1"),
    ],
)
def test_what_has_no_head(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        bnnopt.optimize(write(text, {}, tmp_path), batch_size=4, head=3)
