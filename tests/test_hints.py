"""What `optimize` says of passes that change nothing, and of gradients that may overflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnnopt
from bnnopt.errors import DivergedError
from tests.cli.helpers import MODELS

MLP = MODELS / "mlp.onnx"


def notes(**options: Any) -> list[str]:
    return list(bnnopt.optimize(MLP, **options).report.notes)


def test_an_enabled_pass_that_finds_nothing_says_why() -> None:
    with_int8 = {"batch_size": 100, "level": "O3", "enable": ["pow2-gradients"]}
    found = [line for line in notes(**with_int8) if "pow2-gradients" in line]
    assert found == [
        "--enable pow2-gradients changes nothing: 'sign4_out.grad': its dy is packed already"
    ]
    assert not any("--enable" in line for line in notes(**with_int8, disable=["int8-gradients"]))


@pytest.mark.parametrize(
    ("batch_size", "options", "says"),
    [
        (7, {"level": "O2"}, True),
        (8, {"level": "O2"}, False),
        (4, {"level": "O1"}, False),
        (4, {"level": "O2", "disable": ["float16-gradients"]}, False),
    ],
)
def test_float16_gradients_behind_batch_norms_of_few_values(
    batch_size: int, options: dict[str, Any], says: bool
) -> None:
    found = [line for line in notes(batch_size=batch_size, **options) if "'bn1'" in line]
    assert bool(found) is says
    assert all("--disable float16-gradients" in line for line in found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch_size", "disable", "overflows"),
    [(2, [], True), (2, ["float16-gradients"], False), (8, [], False)],
)
def test_what_the_note_warns_of(
    batch_size: int, disable: list[str], overflows: bool, tmp_path: Path
) -> None:
    bnnopt.optimize(MLP, batch_size=batch_size, level="O2", disable=disable).save(tmp_path / "out")
    session = bnnopt.TrainingSession(tmp_path / "out", threads=1)
    random = np.random.default_rng(0)

    def train() -> None:
        for _ in range(40):
            x = random.standard_normal((batch_size, 784)).astype(np.float32)
            session.step(x, random.integers(0, 10, batch_size))

    if overflows:
        with pytest.raises(DivergedError, match="--disable float16-gradients"):
            train()
    else:
        train()


def test_latent_weights_that_int8_cannot_hold_are_told() -> None:
    def found(unit: str) -> list[str]:
        enable = [f"int8-latents{{unit={unit}}}"]
        return [n for n in notes(batch_size=8, level="O2", enable=enable) if "start there" in n]

    (note,) = found("0.0001")
    assert "of the latent weights lie beyond 0.0128" in note
    assert found("0.0078125") == []
