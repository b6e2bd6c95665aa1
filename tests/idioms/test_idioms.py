"""Every row of the table against PyTorch's autograd, on activations and on weights."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tests.idioms.networks import Case, Conv, Dense, assert_agrees, differences  # noqa: E402
from tests.idioms.table import ROWS, clip, sign, value_of  # noqa: E402

pytestmark = pytest.mark.oracle
PLACES = [(name, place) for name, row in ROWS.items() for place in row.on]
QUICK = {  # one of each way through the frontend
    *("sign", "where int", "sign of a sign", "sign + (x == 0)", "x / |x|", "round of a clamp"),
    *("b + s - s", "b + (s - s)", "tanh", "polynomial", "mirrored", "ReActNet weight"),
    *("scale outside", "0 and 1", "ternary", "DoReFa", "LSQ"),
}
NAMES = [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in ROWS]
NETS = {"dense": Dense, "conv": Conv}


def case_of(name: str, place: str, net: str, folder: Path) -> Case:
    idiom = ROWS[name].idiom
    pair = (idiom, sign) if place == "activation" else (sign, idiom)
    return Case.of(lambda: NETS[net](*pair), folder)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_pytorchs(name: str, tmp_path: Path) -> None:
    case = case_of(name, ROWS[name].on[0], "dense", tmp_path)
    step = case.compiled("O1")
    assert not differences(step, case.in_pytorch())
    assert step.optimized is not None
    products = {node.op_type for node in step.optimized.training.graph}
    assert ("BinaryGemm" in products) == ROWS[name].packed


IN_NETS = [
    (*pair, net)
    for net in NETS
    for pair in PLACES
    if net == "conv" or pair[1] != ROWS[pair[0]].on[0]  # which `test_gradients_are_pytorchs` takes
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "place", "net"), IN_NETS, ids=str)
def test_every_place(name: str, place: str, net: str, tmp_path: Path) -> None:
    """Also what -O1 does is what -O0 does, bit for bit."""
    optimized = assert_agrees(case_of(name, place, net, tmp_path))
    products = {node.op_type for node in optimized.training.graph}
    assert products.isdisjoint({"BinaryConv", "BinaryGemm"}) != ROWS[name].packed


# A second mask is kept of the first; of the others, weights that are not rebuilt.
LARGER = {"either sign", "BitNet b1.58", "power of two", "one hot"}
SAMPLES = {
    *(("where int", "activation"), ("constant scale", "activation"), ("DoReFa", "activation")),
    *(("tanh", "activation"), ("ReActNet weight", "weight"), ("ternary", "weight")),
}


@pytest.fixture(scope="module")
def of_signs(tmp_path_factory: pytest.TempPathFactory) -> int:
    case = case_of("sign", "activation", "conv", tmp_path_factory.mktemp("signs"))
    return case.optimize("O1").report.optimized.saved_bytes


@pytest.mark.parametrize(
    ("name", "place"),
    [
        pytest.param(*pair, marks=() if pair in SAMPLES else pytest.mark.slow)
        for pair in PLACES
        if pair[0] not in LARGER
    ],
)
def test_no_more_is_kept_than_of_signs(
    name: str, place: str, of_signs: int, tmp_path: Path
) -> None:
    """Signs are kept as bits, levels rebuilt from what the batch norm before them keeps."""
    optimized = case_of(name, place, "conv", tmp_path).optimize("O1")
    mask = 8 * 16 * 10 * 10 / 8  # bytes of one bit an element
    assert optimized.report.optimized.saved_bytes <= of_signs + mask
    assert optimized.report.baseline.saved_bytes > 2.5 * of_signs


def test_another_gradient_is_told_apart(tmp_path: Path) -> None:
    """The negative control: the value is right, the estimator is not."""
    (tmp_path / "other").mkdir()
    case = Case.of(lambda: Dense(lambda x: value_of(x.sign(), clip(x)), sign), tmp_path)
    make = lambda: Dense(lambda x: value_of(x.sign(), torch.tanh(x)), sign)  # noqa: E731
    other = Case.of(make, tmp_path / "other")
    got = case.compiled("O1")
    assert not differences(got, case.in_pytorch())
    found = differences(got, other.in_pytorch())
    assert found
    assert not any("loss" in line for line in found)
