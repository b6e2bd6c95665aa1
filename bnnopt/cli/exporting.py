"""``bnnopt export``: trained weights leave, in the user's own graph or for PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bnnopt.cli.terminal import check_writable, say_line, say_note, write_file
from bnnopt.errors import UsageError
from bnnopt.units import size


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The user's own graph as an .onnx file."
)
@click.option(
    "--torch",
    "state_dict",
    type=click.Path(path_type=Path),
    help="A PyTorch state_dict as a .safetensors file, for load_state_dict.",
)
@click.option(
    "--larq-style",
    type=click.Path(path_type=Path),
    help="The graph with bare -1 and +1 as binary weights, their scales folded; an .onnx file.",
)
@click.option(
    "--packed",
    type=click.Path(path_type=Path),
    help="A folder with the network alone, for devices that predict: binary weights as bits.",
)
@click.option(
    "--batch-size",
    "-b",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Of --packed: samples that it predicts at once.",
)
@click.option(
    "--checkpoint", metavar="FILE", help="Take its weights; if not given, the newest one's."
)
def export(
    folder: Path,
    output: Path | None,
    state_dict: Path | None,
    larq_style: Path | None,
    packed: Path | None,
    batch_size: int,
    checkpoint: str | None,
) -> None:
    """Write the trained weights of FOLDER into the user's own graph.

    Batch norm reads its running statistics and dropout passes on; names and opset are those of the
    file that optimize read. Sign is written as it was trained, with sign(0) = +1, unless optimize
    was told --sign-zero keep.

    \b
    Example:
      bnnopt export out -o trained.onnx
      bnnopt export out --torch trained.safetensors
      bnnopt export out --packed network
    """
    from bnnopt.runtime import TrainingSession, exporting
    from bnnopt.runtime.training import load_newest

    if output is None and state_dict is None and packed is None and larq_style is None:
        raise UsageError(
            "export: where to? expected -o FILE.onnx, --torch FILE.safetensors, --packed FOLDER or "
            "--larq-style FILE.onnx"
        )
    if packed is not None:
        from bnnopt.artifact import check_predictor_folder  # of the compiler

        check_predictor_folder(packed)
    for path in (output, state_dict, larq_style):
        if path is not None:
            check_writable(path)
    session = TrainingSession(folder)
    source = load_newest(session, folder, checkpoint)
    say_note(f"weights: {source}")
    written: list[tuple[Path, Any]] = []
    if output is not None:
        written.append((output, exporting.trained_model(folder, session)))
    if state_dict is not None:
        written.append((state_dict, exporting.state_dict(session)))
    if larq_style is not None:
        from bnnopt.artifact.bare_signs import bare_signs

        written.append((larq_style, bare_signs(exporting.trained_model(folder, session))))
    for path, content in written:
        write_file(path, content)
        say_line(f"written: {path}")
    if packed is not None:
        from bnnopt.compiler.prediction import export_network

        n_bytes, arena_bytes = export_network(folder, session, packed, batch_size)
        say_line(
            f"written: {packed}, {size(n_bytes)} of weights, predicts {batch_size} at once in "
            f"{size(arena_bytes)}"
        )
