"""The command line: thin over the library, one line for every mistake."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from bnnopt import __version__
from bnnopt.errors import ArtifactError, BnnoptError, UsageError

OPTIMIZERS = ("adam", "sgd")
LOSSES = ("cross-entropy", "mse", "squared-hinge", "none")
BACKENDS = ("native", "onnxruntime")
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}

out = Console()
err = Console(stderr=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="bnnopt")
def cli() -> None:
    """Train neural networks, binary ones above all, on devices with little memory."""


class _Names(click.ParamType):
    """Names, separated by commas."""

    name = "NAMES"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        return tuple(n.strip() for n in value.split(",") if n.strip())


class _Size(click.ParamType):
    """A number of bytes with an optional unit."""

    name = "SIZE"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?)B?", str(value).strip().upper())
        if match is None or match[2] not in UNITS:
            self.fail(f"{value!r}: expected a size such as 64MiB or 500kB", param, ctx)
        return int(float(match[1]) * UNITS[match[2]])


def _model_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options about how a training step is built."""
    options = [
        click.option(
            "--batch-size",
            "-b",
            type=int,
            help="Samples a step; where the file fixes it, not needed.",
        ),
        click.option(
            "--loss",
            default="cross-entropy",
            metavar="NAME",
            show_default=True,
            help=f"{', '.join(LOSSES)}: none where the graph ends in a scalar.",
        ),
        click.option(
            "--optimizer",
            default="adam",
            metavar="NAME",
            show_default=True,
            help=f"{', '.join(OPTIMIZERS)}.",
        ),
        click.option("--momentum", type=float, default=0.9, show_default=True, help="Of sgd."),
        click.option(
            "--lr",
            "learning_rate",
            type=float,
            help="Default learning rate; 0.001 for adam, 0.01 for sgd.",
        ),
        click.option(
            "--freeze",
            multiple=True,
            metavar="PATTERN",
            help="Do not train the parameters that match, as in a shell; may be repeated.",
        ),
        click.option(
            "--ste",
            multiple=True,
            metavar="[PATTERN=]NAME",
            help="Straight-through estimator: clipped (the default), identity, approx-sign "
            "or swish-sign; with a pattern for the nodes that match; may be repeated.",
        ),
        click.option(
            "--sign-zero",
            default="+1",
            metavar="+1|keep",
            show_default=True,
            help="What sign(0) is; keep leaves ONNX's 0, and packs no such tensor.",
        ),
        click.option("--seed", type=int, default=0, show_default=True, help="Of dropout."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


_json_option = click.option(
    "--json", "json_file", metavar="FILE", help="Write the report as JSON; - for standard output."
)


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to write.")
@_model_options
@click.option(
    "-O",
    "level",
    default="1",
    metavar="LEVEL",
    show_default=True,
    help="-O0: the reference; -O1: lossless.",
)
@click.option("--passes", type=_Names(), default="", help="Only these passes, by comma.")
@click.option("--disable", type=_Names(), default="", help="All but these passes, by comma.")
@click.option(
    "--budget",
    "budget_bytes",
    type=_Size(),
    help="Take the lowest level whose planned peak fits, such as 64MiB.",
)
@click.option("--explain", is_flag=True, help="Say what each pass left alone, and why.")
@_json_option
def optimize(
    model: Path,
    output: Path | None,
    level: str,
    explain: bool,
    json_file: str | None,
    **options: Any,
) -> None:
    """Compile MODEL into a training step that fits, and say what each pass saves.

    \b
    Example:
      bnnopt optimize models/mlp.onnx -o out --batch-size 100 -O1
    """
    from bnnopt.artifact import check_folder
    from bnnopt.compiler import optimize as compile_model
    from bnnopt.report import render

    if output is not None:
        check_folder(output)
    with _progress() as say:
        optimized = compile_model(model, level=f"O{level}", progress=say, **options)
        if output is not None:
            say(f"writing {output}")
            optimized.save(output)
    if json_file != "-":
        out.print(render(optimized.report, explain))
        if output is not None:
            out.print(f"written to {output}", soft_wrap=True, highlight=False)
    _write_json(json_file, optimized.report.to_dict())


@cli.command()
@click.argument("source", type=click.Path(path_type=Path))
@_model_options
@click.option(
    "--html",
    "html_file",
    type=click.Path(path_type=Path),
    help="Write a page with the memory over time.",
)
@_json_option
def inspect(source: Path, html_file: Path | None, json_file: str | None, **options: Any) -> None:
    """Show where the memory goes: of a model before any pass, or of a folder that optimize wrote.

    The options about the training step are for a model; a folder has its own.

    \b
    Example:
      bnnopt inspect models/mlp.onnx --batch-size 100
      bnnopt inspect out --html report.html
    """
    from bnnopt.compiler import optimize as compile_model
    from bnnopt.inspection import inspect_step, render_profile, to_html
    from bnnopt.verification import load_step

    if source.is_dir():
        report = _read_report(source)
        profile = inspect_step(load_step(source / "training.onnx"), str(source))
    else:
        with _progress() as say:
            reference = compile_model(source, level="O0", progress=say, **options)
        report = reference.report.to_dict()
        profile = inspect_step(reference.training, source.name)
    if json_file != "-":
        out.print(render_profile(profile))
    if html_file is not None:
        _write_text(html_file, to_html(profile))
    _write_json(json_file, report)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--backend",
    default="native",
    metavar="NAME",
    show_default=True,
    help=f"{' or '.join(BACKENDS)}: both steps run on it.",
)
@click.option("--steps", type=click.IntRange(1, 1000), default=2, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random batches.")
@_json_option
def verify(folder: Path, backend: str, steps: int, seed: int, json_file: str | None) -> None:
    """Compare the rewritten step of FOLDER with the reference, on random batches.

    \b
    Example:
      bnnopt verify out
    """
    from bnnopt.verification import verify_folder

    if backend not in BACKENDS:
        raise UsageError(f"--backend {backend}: expected {' or '.join(BACKENDS)}")
    with _progress() as say:
        found = verify_folder(folder, backend, steps, seed, say)
    if json_file != "-":
        table = Table(
            title=f"{folder}: gradients against the reference, {steps} steps on {backend}"
        )
        table.add_column("parameter", overflow="fold")
        table.add_column("max difference", justify="right")
        table.add_column("cosine", justify="right")
        for name, difference in found.parameters.items():
            table.add_row(name, f"{difference.max_abs:.3g}", f"{difference.cosine:.6f}")
        out.print(table)
        out.print("bit-equal: yes" if found.bit_equal else "bit-equal: no")
    _write_json(json_file, found.to_dict())


@cli.command()
def passes() -> None:
    """List the passes in the order in which they run.

    \b
    Example:
      bnnopt passes
    """
    from bnnopt.passes import PASSES

    table = Table()
    for column in ("pass", "level", "numbers", "what it does"):
        table.add_column(column, no_wrap=column != "what it does")
    for entry in PASSES:
        numbers = "bit-equal" if entry.lossless else "lossy"
        table.add_row(entry.name, f"-O{entry.level}", numbers, entry.summary)
    out.print(table)


@cli.command()
@click.argument("name", required=False)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="File; NAME.onnx if not given."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the weights.")
def zoo(name: str | None, output: Path | None, seed: int) -> None:
    """Write a model of the zoo; without NAME list them.

    \b
    Example:
      bnnopt zoo binarynet -o binarynet.onnx
    """
    from bnnopt.models import build, names

    if name is None:
        for known in names():
            click.echo(known)
        return
    import onnx_ir as ir

    path = output or Path(f"{name}.onnx")
    model = ir.to_proto(build(name, seed))
    _write_bytes(path, model.SerializeToString())
    click.echo(f"written to {path}")


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A line on standard error that says what is going on, where that is a terminal."""
    with err.status("starting") as status:
        yield status.update


def _read_report(folder: Path) -> dict[str, Any]:
    from bnnopt.artifact import REPORT_FILE
    from bnnopt.runtime.artifact import read_artifact

    read_artifact(folder)
    path = folder / REPORT_FILE
    try:
        report: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); optimize again") from None
    return report


def _write_json(target: str | None, content: dict[str, Any]) -> None:
    if target == "-":
        click.echo(json.dumps(content, indent=1))
    elif target is not None:
        _write_text(Path(target), json.dumps(content, indent=1) + "\n")


def _write_text(path: Path, text: str) -> None:
    _write_bytes(path, text.encode())


def _write_bytes(path: Path, content: bytes) -> None:
    """Complete or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        if temporary.exists():
            temporary.unlink()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a mistake of the user is one line and an exit code."""
    try:
        cli.main(args=arguments, prog_name="bnnopt", standalone_mode=False)
    except click.ClickException as error:
        _fail(" ".join(error.format_message().split()), 2)
    except click.Abort:
        _fail("interrupted", 130)
    except BnnoptError as error:
        _fail(str(error), error.exit_code)
    except BrokenPipeError:
        sys.exit(1)


def _fail(message: str, exit_code: int) -> None:
    click.echo(f"bnnopt: {message}", err=True)
    sys.exit(exit_code)
