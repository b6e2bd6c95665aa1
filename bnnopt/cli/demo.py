"""``bnnopt demo``: the whole way, from a model file to a trained network, on packaged digits."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from bnnopt.cli.terminal import say_line
from bnnopt.errors import ArtifactError

STEPS = (
    (
        "compile the training step; what each pass saves",
        "optimize {f}/digits.onnx -b 50 -O2 -o {f}/out",
    ),
    ("hold it against the step before any pass", "verify {f}/out"),
    (
        "train it",
        "train {f}/out --data {f}/train.npz --valid {f}/test.npz --epochs 15 --lr 0.005 --scale 16 "
        "--mean 0.5 --std 0.5",
    ),
    ("measure it", "eval {f}/out --data {f}/test.npz"),
    ("take the trained network away, for any tool", "export {f}/out -o {f}/trained.onnx"),
    ("look at the memory over time", "inspect {f}/out --html {f}/memory.html"),
)


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("bnnopt-demo"),
    show_default=True,
    help="Folder to write; it must not be there yet.",
)
@click.pass_context
def demo(context: click.Context, output: Path) -> None:
    """Compile, verify, train, measure and export a small binary network on real digits.

    Takes some seconds, and prints each command before it runs it.

    \b
    Example:
      bnnopt demo -o digits
    """
    _prepare(output)
    group = context.parent.command if context.parent is not None else None
    assert isinstance(group, click.Group), "demo is a command of the command line"
    folder = shlex.quote(str(output))
    for what, line in STEPS:
        arguments = line.format(f=folder)
        say_line(f"\n# {what}\n$ bnnopt {arguments}\n")
        group.main(shlex.split(arguments), prog_name="bnnopt", standalone_mode=False)
    say_line(f"\nwritten: {output}; memory.html shows it in a browser, trained.onnx runs anywhere")


def _prepare(folder: Path) -> None:
    """Write the model file and the data of the demo into a new folder."""
    import numpy as np
    import onnx_ir as ir

    from bnnopt.models.digits import digits, digits_data

    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise ArtifactError(f"{folder}: is there already; -o FOLDER names another one") from None
    except OSError as error:
        raise ArtifactError(f"{folder}: cannot be written: {error.strerror}") from None
    ir.save(digits(seed=0), folder / "digits.onnx")
    for name, (x, y) in zip(("train", "test"), digits_data(), strict=True):
        np.savez(folder / f"{name}.npz", x=x, y=y)
