"""``summary`` against what is known of the networks."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cli.helpers import MODELS, Cli
from tests.graphs import write


def summary(bnnopt: Cli, *arguments: str | Path) -> dict[str, Any]:
    found = bnnopt("summary", *arguments, "--json", "-")
    assert found.exit_code == 0, found.stderr
    return json.loads(found.stdout)


def test_the_mlp_of_the_paper(bnnopt: Cli) -> None:
    """784-256-256-256-256-10, all weights binary, the first layer's input real."""
    found = summary(bnnopt, MODELS / "mlp.onnx")
    widths = [784, 256, 256, 256, 256, 10]
    macs = [a * b for a, b in itertools.pairwise(widths)]
    assert [layer["binary"] for layer in found["layers"]] == macs
    assert [layer["input_bits"] for layer in found["layers"]] == [32, 1, 1, 1, 1]
    assert found["total"]["binary_macs"] == sum(macs[1:])
    assert found["total"]["real_macs"] == macs[0]
    biases = 4 * 256 + 10
    others = found["total"]["real"] - biases  # running statistics are no parameters
    assert others == 0
    assert found["total"]["weight_bytes"] == sum(-(-m // 8) for m in macs) + 4 * biases


def test_a_residual_network(bnnopt: Cli) -> None:
    found = summary(bnnopt, MODELS / "resnet-e-mini.onnx")
    by_name = {layer["name"]: layer for layer in found["layers"]}
    stem, block, dense = by_name["stem.conv"], by_name["block1.conv"], by_name["fc"]
    assert (stem["real_macs"], stem["input_bits"]) == (16 * 32 * 32 * 27, 32)
    assert (block["binary_macs"], block["binary"]) == (16 * 32 * 32 * 144, 16 * 144)
    assert (dense["real_macs"], dense["real"]) == (320, 330)
    assert block["output"] == [16, 32, 32]


def test_what_is_trained(bnnopt: Cli) -> None:
    whole = summary(bnnopt, MODELS / "resnet-e-mini.onnx")["total"]
    assert whole["trained"] == whole["binary"] + whole["real"]
    last = summary(bnnopt, MODELS / "resnet-e-mini.onnx", "--last", "1")
    assert last["total"]["trained"] == 330
    assert "in part" not in bnnopt("summary", MODELS / "relu-mini.onnx").stdout


def test_transposed_and_grouped_convolutions(bnnopt: Cli, workspace: Path) -> None:
    text = """g (float[batch,4,6,6] x) => (float[batch,8,6,6] y) {
        y = Conv <group = 2, pads = [1,1,1,1]> (x, w) }"""
    found = summary(bnnopt, write(text, {"w": [8, 2, 3, 3]}, workspace))
    assert found["total"]["real_macs"] == 8 * 36 * 18


def test_the_table_fits_a_terminal(bnnopt: Cli) -> None:
    text = bnnopt("summary", MODELS / "resnet-e-mini.onnx").stdout
    assert max(map(len, text.splitlines())) <= 80
    assert "block4.conv" in text
    assert "% binary" in text


def test_mistakes(mistake: Callable[..., str]) -> None:
    assert "no such file" in mistake("summary", "no.onnx")
    assert "--last 9: expected" in mistake("summary", MODELS / "mlp.onnx", "--last", "9")
