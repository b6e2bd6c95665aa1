"""``bnnopt inspect``, ``summary`` and ``compare``: where the memory goes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from bnnopt.cli.options import html_option, json_option, model_options
from bnnopt.cli.terminal import answer, check_json_target, check_targets, progress
from bnnopt.errors import ArtifactError, UsageError


@click.command()
@click.argument("source", metavar="MODEL|FOLDER", type=click.Path(path_type=Path))
@model_options
@html_option
@json_option
def inspect(source: Path, html_file: Path | None, json_file: str | None, **options: Any) -> None:
    """Show where the memory goes, in a model or in a folder that optimize wrote.

    Of a model it is the step before any pass; its page shows all levels. The options about the
    training step are for a model; a folder has its own.

    \b
    Example:
      bnnopt inspect models/mlp.onnx --batch-size 100
      bnnopt inspect out --html report.html
    """
    check_targets(html_file, json_file)
    page = None
    with progress() as say:
        from bnnopt.artifact import load_step
        from bnnopt.compiler import optimize as compile_model
        from bnnopt.compiler.pages import page_of_folder, page_of_model
        from bnnopt.frontend import is_artifacts
        from bnnopt.report import inspect_step
        from bnnopt.report.page import render_page
        from bnnopt.report.text import render_profile

        if os.path.isdir(source) and not is_artifacts(source):
            _refuse_options_of_a_step(source)
            report = _read_report(source)
            say(f"reading {source}")
            profile = inspect_step(load_step(source / "training.onnx"), str(source))
            if html_file is not None:
                page = render_page(page_of_folder(source))
        else:
            reference = compile_model(source, level="O0", progress=say, **options)
            report = reference.report.to_dict()
            profile = inspect_step(reference.training, source.name)
            if html_file is not None:
                page = render_page(page_of_model(source, options, say))
    answer(json_file, report, render_profile(profile), html_file, page)


def _refuse_options_of_a_step(folder: Path) -> None:
    """Of a folder the step is built: what would be ignored is refused."""
    context = click.get_current_context()
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        is_given = source is click.core.ParameterSource.COMMANDLINE
        if is_given and parameter.name not in ("source", "html_file", "json_file"):
            raise UsageError(
                f"{parameter.opts[0]}: is for a model; {folder} is a folder, whose step is built; "
                "leave it out, or optimize again with it"
            )


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@model_options
@json_option
def summary(model: Path, json_file: str | None, **options: Any) -> None:
    """Show MODEL layer by layer: parameters, bits, multiplications, memory.

    Figures are those of one sample; binary weights count as bits.

    \b
    Example:
      bnnopt summary models/resnet-e-mini.onnx
    """
    check_json_target(json_file)
    with progress() as say:
        from bnnopt.compiler import summarize

        say("reading the model")
        found = summarize(model, **options)
    answer(json_file, found.to_dict(), found.render())


@click.command()
@click.argument("first", metavar="FOLDER|REPORT", type=click.Path(path_type=Path))
@click.argument("second", metavar="FOLDER|REPORT", type=click.Path(path_type=Path))
@html_option
@json_option
def compare(first: Path, second: Path, html_file: Path | None, json_file: str | None) -> None:
    """Show the memory of two compiled steps side by side.

    Each is a folder that optimize wrote, or a report of its --json; the page needs folders.

    \b
    Example:
      bnnopt compare out out
    """
    check_targets(html_file, json_file)
    reports = [
        _read_report(path) if os.path.isdir(path) else _parsed(path) for path in (first, second)
    ]
    from bnnopt.report.comparison import Comparison

    page = _page_of_pair(first, second) if html_file is not None else None
    found = Comparison(str(first), str(second), *reports)
    answer(json_file, found.to_dict(), found.render(), html_file, page)


def _page_of_pair(first: Path, second: Path) -> str:
    from bnnopt.compiler.pages import check_is_folder, page_of_pair
    from bnnopt.report.page import render_page

    for path in (first, second):
        check_is_folder(path)
    return render_page(page_of_pair(first, second))


def _read_report(folder: Path) -> dict[str, Any]:
    from bnnopt.artifact import REPORT_FILE
    from bnnopt.runtime.artifact import check_files, read_artifact

    check_files(folder, read_artifact(folder), [REPORT_FILE, "training.onnx"])
    return _parsed(folder / REPORT_FILE)


def _parsed(path: Path) -> dict[str, Any]:
    """A report, from its file."""
    try:
        report: dict[str, Any] = json.loads(path.read_text())
        if report["schema"] == 1 and {"optimized", "passes"} <= report.keys():
            return report
        reason = f"schema {report['schema']}, expected 1"
    except OSError as error:
        reason = str(error.strerror)
    except (ValueError, KeyError, TypeError, AttributeError):
        reason = "not a report of optimize --json"
    raise ArtifactError(f"{path}: cannot be read ({reason}); optimize again")
