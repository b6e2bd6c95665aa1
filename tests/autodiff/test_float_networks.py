"""The ReLU networks of BitTrain's tables, exported by PyTorch: gradients against its autograd."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bnnopt.autodiff import TrainingOptions, build_training_step, make_optimizer
from bnnopt.frontend import load_forward
from tests.autodiff.interpreter import run

torch = pytest.importorskip("torch")

from tests.exports.float_networks import (  # noqa: E402
    FLOAT_NETWORKS,
    make_float_network,
    small_size,
    without_dropout,
)
from tests.exports.torch_models import write  # noqa: E402

pytestmark = pytest.mark.oracle

BATCH = 3
# resnet34 has resnet18's blocks, and vgg11 fewer layers than vgg16
NAMES = [name for name in FLOAT_NETWORKS if name not in ("resnet34", "vgg11")]
OPTIONS = {"vgg16": {"hidden": 64}, "alexnet": {"hidden": 64}}
BOUND = 1e-7
Array = NDArray[np.float64]


def batch(size: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    x = np.random.default_rng(0).standard_normal((BATCH, 3, size, size), np.float32)
    return x, np.array([1, 7, 3])


def step_gradients(path: Path, size: int) -> tuple[float, dict[str, Array]]:
    """The loss and the gradients of our step, in float64."""
    forward = load_forward(path, BATCH)
    options = TrainingOptions("cross-entropy", make_optimizer("sgd", momentum=0))
    step = build_training_step(forward, options, path)
    x, labels = batch(size)
    feeds = {"x": x, "labels": labels, "learning_rate": np.float64(0), **forward.weights}
    values = run(step.graph, feeds)
    gradients = {name: values[str(value.name)] for name, value in step.gradients().items()}
    return float(values[str(step.loss.name)]), gradients


def assert_agree(ours: dict[str, Array], theirs: dict[str, Array]) -> None:
    assert ours.keys() == theirs.keys()
    largest = max(float(np.linalg.norm(grad)) for grad in theirs.values())
    for name, grad in theirs.items():
        difference = float(np.linalg.norm(ours[name] - grad))
        # in front of a batch norm a bias has no effect, and its gradient is rounding
        assert difference <= max(BOUND * float(np.linalg.norm(grad)), 1e-10 * largest), name


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_gradients_agree_in_float64(name: str, tmp_path: Path) -> None:
    size, path = small_size(name), tmp_path / "net.onnx"
    module = without_dropout(make_float_network(name, size, **OPTIONS.get(name, {})))
    write(module, path, (3, size, size))
    module.double()
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.eps = float(np.float32(part.eps))  # as in the file: over three values it matters
    x, labels = batch(size)
    logits = module(torch.from_numpy(x).double())
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
    loss.backward()
    theirs = {key: p.grad.numpy() for key, p in module.named_parameters()}
    our_loss, ours = step_gradients(path, size)
    assert our_loss == pytest.approx(loss.item(), rel=1e-9)
    assert_agree(ours, theirs)
    key = next(iter(ours))  # the bound is narrow enough to notice a thousandth of a per cent
    with pytest.raises(AssertionError):
        assert_agree({**ours, key: ours[key] * (1 + 1e-5)}, theirs)
