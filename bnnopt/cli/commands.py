"""The command line: thin over the library, one line for every mistake.

What is heavy is imported by the command that needs it, so that ``--help`` answers at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

import bnnopt
from bnnopt import __version__
from bnnopt.cli.against_torch import verify_with_torch
from bnnopt.cli.config import group_config_option
from bnnopt.cli.options import BACKENDS, html_option, json_option, optimize_options
from bnnopt.cli.terminal import (
    STANDARD_OUTPUT,
    answer,
    check_json_target,
    check_targets,
    check_writable,
    prepare_streams,
    progress,
    say_line,
    show,
    write_file,
)
from bnnopt.errors import BnnoptError, UsageError, VerificationError, no_compiler
from bnnopt.settings import options

# Made of the passes, as docs/passes.md is: importing them takes ten times as long as the command.
LISTING = Path(bnnopt.__file__).parent / "passes" / "listing.json"
INTERRUPTED = 130  # as a shell reports a process that Ctrl-C ended


class _Group(click.Group):
    """Reports Ctrl-C through `main`: click would print an empty line first."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Interrupted("interrupted") from None


class _Interrupted(BnnoptError):
    """Ctrl-C."""

    exit_code = INTERRUPTED


@click.group(
    cls=_Group,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="bnnopt")
@group_config_option
@click.pass_context
def cli(context: click.Context) -> None:
    """Train neural networks, binary ones above all, on devices with little memory.

    \b
    Exit codes: 0 done; 1 verify found a difference that should not be there;
    2 bad usage or bad input; 3 the budget cannot be met.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
        raise UsageError(f"no command given; expected one of {', '.join(sorted(cli.commands))}")


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to write.")
@optimize_options
@click.option(
    "--explain",
    is_flag=True,
    help="Say what each pass left alone and why, and which kernel each node runs on.",
)
@html_option
@json_option
def optimize(
    model: Path,
    output: Path | None,
    explain: bool,
    html_file: Path | None,
    json_file: str | None,
    **options: Any,
) -> None:
    """Compile MODEL into a training step that fits, and say what each pass saves.

    MODEL is an .onnx file, or a folder of onnxruntime-training artifacts.

    \b
    Example:
      bnnopt optimize models/mlp.onnx -o out --batch-size 100 -O1
    """
    check_targets(html_file, json_file)
    with progress() as say:
        from bnnopt.artifact import check_folder
        from bnnopt.compiler import optimize as compile_model
        from bnnopt.report.text import render

        if output is not None:
            check_folder(output)
        optimized = compile_model(model, progress=say, **options)
        if output is not None:
            say(f"writing {output}")
            optimized.save(output)
        kernels = optimized.kernels() if explain else ()
        page = optimized.to_html() if html_file is not None else None
    tables = render(optimized.report, explain, kernels)
    answer(json_file, optimized.report.to_dict(), tables, html_file, page)
    if json_file != STANDARD_OUTPUT:
        written = "nothing; -o FOLDER writes the training step" if output is None else output
        say_line(f"written: {written}")


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--backend",
    default=BACKENDS[0],
    metavar="NAME",
    show_default=True,
    help=f"{' or '.join(BACKENDS)}: both steps run on it.",
)
@click.option(
    "--steps",
    type=click.IntRange(1, 1000),
    default=2,
    show_default=True,
    help="Training steps, each on a batch of its own.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the random batches."
)
@click.option(
    "--torch",
    "source",
    metavar="FILE:MAKE",
    help="Compare loss and gradients with PyTorch: MAKE() of FILE gives the module, or the module "
    "and an example batch.",
)
@json_option
def verify(
    folder: Path, backend: str, steps: int, seed: int, source: str | None, json_file: str | None
) -> None:
    """Compare the rewritten step of FOLDER with the reference, on random batches.

    Where all passes that ran are lossless, the two have to be equal bit for bit. After lossy ones
    each step starts from the same weights, and no gradient may turn further away than the bounds
    of those passes allow together. The exit code is 1 if that does not hold.

    \b
    Example:
      bnnopt verify out
      bnnopt verify out --torch model.py:make
    """
    check_json_target(json_file)
    if source is not None:
        verify_with_torch(folder, source, seed, json_file)
        return
    with progress() as say:
        from bnnopt.verification import verify_folder
        from bnnopt.verification.text import render_verification

        found = verify_folder(folder, backend, steps, seed, say)
    title = f"{folder}: {steps} steps on {backend}"
    answer(json_file, found.to_dict(), render_verification(found, title))
    if found.defect:
        raise VerificationError(
            f"{folder}: {found.defect}; optimize again, and report it if that does not help"
        )


@cli.command()
def passes() -> None:
    """List the passes in the order in which they run.

    Options are in braces, with their defaults. A pass that no level has runs where --enable or
    --passes names it.

    \b
    Example:
      bnnopt passes
    """
    from bnnopt.tables import Column, Listing, Row

    columns = [
        Column("pass"),
        Column("level", optional=True),
        Column("numbers", optional=True),
        Column("what it does", wraps=True),
    ]
    listed = json.loads(LISTING.read_text("utf-8"))
    show(Listing("", columns, [Row(cells) for cells in listed]))


@cli.command()
@click.argument("name", required=False)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="File; NAME.onnx if not given."
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the weights."
)
@click.option("--size", type=int, help="Width and height of the input, where NAME leaves it open.")
@click.option("--classes", type=int, help="Number of classes, where NAME leaves it open.")
def zoo(name: str | None, output: Path | None, seed: int, **sizes: int | None) -> None:
    """Write a model of the zoo; without NAME list them.

    \b
    Example:
      bnnopt zoo binarynet -o binarynet.onnx
      bnnopt zoo resnet-e-18 --size 32 --classes 10 -o small.onnx
    """
    if name is None:
        if output is not None:
            raise UsageError(f"-o {output}: which model? expected 'bnnopt zoo NAME -o FILE'")
        from bnnopt.models import names

        return say_line("\n".join(names()))
    path = Path(f"{name}.onnx") if output is None else output
    check_writable(path)
    import onnx_ir as ir

    from bnnopt.models import build

    chosen = {option: number for option, number in sizes.items() if number is not None}
    model: Any = ir.to_proto(build(name, seed, **chosen))
    write_file(path, model.SerializeToString())
    return say_line(f"written: {path}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a mistake of the user is one line and an exit code."""
    prepare_streams()
    try:
        cli.main(args=arguments, prog_name="bnnopt", standalone_mode=False)
    except click.NoSuchOption as error:
        _fail(_about_option(error), error.exit_code)
    except click.ClickException as error:
        _fail(str(UsageError(error.format_message())), error.exit_code)
    except BnnoptError as error:
        _fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        _fail(str(no_compiler(error, "this command")), 2)
    except MemoryError:
        _fail("not enough memory on this machine; take a smaller --batch-size", 2)


def _about_option(error: click.NoSuchOption) -> str:
    """The line for an option that a command does not have; most likely it is one of optimize."""
    message = error.format_message()
    if any(error.option_name in option.flags for option in options()):
        message += " It is one of optimize: the step is compiled for it."
    return str(UsageError(message))


def _fail(message: str, exit_code: int) -> None:
    """One line on standard error."""
    click.echo(f"bnnopt: {message}", err=True)
    sys.exit(exit_code)
