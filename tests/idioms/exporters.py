"""Idiom x exporter x opset: what comes of each file. `python -m tests.idioms.exporters` prints it.

Every cell is written by the exporter itself, compiled at -O0, and its step compared with PyTorch's:

right      loss and every gradient are PyTorch's
noted      a gradient is not, as no file holds a ``detach()`` or an estimator; a note names the node
refused    one line says what to do instead
no file    the exporter does not write it
wrong      none of these
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import bnnopt.torch
from bnnopt.errors import BnnoptError
from tests.idioms.networks import Case, Dense, Idiom, Step, differences, function, silent
from tests.idioms.table import ROWS, Row, sign

Writer = Callable[[torch.nn.Module, Tensor, Path], Any]

OTHERS = {
    # What a plain file cannot say.
    "gate, detached": Row(lambda x: x * torch.sigmoid(x).detach()),
    "plain sign": Row(lambda x: x + torch.sign(x)),
    "tanh in a function": Row(function(torch.sign, lambda x: 1 - torch.tanh(x) ** 2)),
}
NAMES = (
    *("sign", "where >=", "where int", "float 2 - 1", "assignment to zeros", "sign of a sign"),
    *("zero to one", "x / |x|", "round of a clamp", "s + (b - s)", "b - s + s", "tanh"),
    *("polynomial", "mirrored", "ReActNet weight", "scale outside", "trained scale", "IR-Net"),
    *("0 and 1", "ternary", "DoReFa", "PACT", "LSQ, trained step", "BitNet b1.58"),
    *OTHERS,
)
IDIOMS = {name: (ROWS | OTHERS)[name] for name in NAMES}


def _torchscript(opset: int) -> Writer:
    def write(module: torch.nn.Module, x: Tensor, path: Path) -> None:
        torch.onnx.export(
            copy.deepcopy(module).train(), (x,), str(path),
            dynamo=False, opset_version=opset, training=torch.onnx.TrainingMode.TRAINING,
            do_constant_folding=False, input_names=["x"], dynamic_axes={"x": {0: "batch"}},
        )  # fmt: skip

    return write


def _dynamo(module: torch.nn.Module, x: Tensor, path: Path) -> None:
    torch.onnx.export(copy.deepcopy(module).train(), (x,), str(path), dynamo=True, verbose=False)


def _ours(exporter: str) -> Writer:
    return lambda module, x, path: bnnopt.torch.export(module, x, path, exporter=exporter)


COLUMNS: dict[str, Writer] = {
    **{f"TorchScript, {opset}": _torchscript(opset) for opset in (9, 11, 13, 15, 17, 20)},
    "dynamo": _dynamo,
    "`bnnopt.torch`, TorchScript": _ours("torchscript"),
    "`bnnopt.torch`, torch.export": _ours("torch.export"),
}


def outcome(name: str, column: str, folder: Path) -> str:
    """What comes of one cell."""
    idiom, place = IDIOMS[name].idiom, IDIOMS[name].on[0]
    pair: tuple[Idiom, Idiom] = (idiom, sign) if place == "activation" else (sign, idiom)
    case = Case.made(lambda: Dense(*pair), folder)
    try:
        with silent():
            COLUMNS[column](case.module, case.x, case.path)
    except Exception:  # whatever an exporter raises
        return "no file"
    try:
        step = case.compiled("O0")
    except BnnoptError:
        return "refused"
    return _judged(step, case.in_pytorch())


def _judged(step: Step, right: Step) -> str:
    if not differences(step, right):
        return "right"
    assert step.optimized is not None
    told = ("estimator", "detach()")
    notes = [note for note in step.optimized.report.notes if any(word in note for word in told)]
    return "noted" if notes and abs(step.loss - right.loss) < 1e-4 * right.loss else "wrong"


def line(first: str, cells: Iterable[str]) -> str:
    """A line of a Markdown table."""
    return f"| {first.replace('|', '&#124;')} | " + " | ".join(cells) + " |"


def main() -> None:
    """Print the table."""
    print(line("written as", COLUMNS))
    print("|---" * (len(COLUMNS) + 1) + "|")
    for name in IDIOMS:
        cells = []
        for column in COLUMNS:
            with tempfile.TemporaryDirectory() as scratch:
                cells.append(outcome(name, column, Path(scratch)))
        print(line(name, cells), flush=True)


if __name__ == "__main__":
    main()
