"""A level plans no more memory than the one below it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bnnopt.models import names
from bnnopt.passes import LEVELS, run_passes, select
from bnnopt.passes.infra.manager import in_order, kernel_passes
from bnnopt.plan import make_plan
from tests.graphs import Network, network_from_file, zoo

BATCH = 8
LARGEST = ("binarynet", "bi-real-18", "cnv", "keyword-gru")  # take as long as all of the others
QUICK = ("relu-mini",)
FLOAT = ("lenet", "float-mlp", "transformer", "vgg11")


def peaks(net: Network) -> list[int]:
    """Planned bytes at each level."""
    found = []
    for level in LEVELS:
        step = net.step()
        run_passes(step, in_order({*kernel_passes(), *select(level)}))
        found.append(make_plan(step).peak_bytes)
    return found


def assert_falling(found: list[int]) -> None:
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in names()
        if name not in LARGEST
    ],
)
def test_networks_of_the_zoo(name: str) -> None:
    assert_falling(peaks(zoo(name, BATCH, "adam")))


def exported(name: str, folder: Path) -> Path:
    """A float network of PyTorch; its dense layers are as wide as those of the papers."""
    networks = pytest.importorskip("tests.exports.float_networks")
    from tests.exports.small_networks import SMALL_NETWORKS
    from tests.exports.torch_models import write

    size = 0 if name in SMALL_NETWORKS else networks.small_size(name)
    path = folder / f"{name}.onnx"
    write(networks.make_float_network(name, size), path, networks.sample_shape(name, size))
    return path


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("name", FLOAT)
def test_float_networks(name: str, tmp_path: Path) -> None:
    """Of plain SGD, which has no state that a level could narrow."""
    assert_falling(peaks(network_from_file(exported(name, tmp_path), BATCH, optimizer="sgd")))


def test_a_level_that_plans_more_is_noticed() -> None:
    with pytest.raises(AssertionError):
        assert_falling([4, 2, 3, 1])
