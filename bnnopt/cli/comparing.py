"""``bnnopt compare``: the memory of two steps side by side."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from bnnopt.cli.options import html_option, json_option, model_options
from bnnopt.cli.terminal import answer, check_targets, progress
from bnnopt.errors import ArtifactError, UsageError

if TYPE_CHECKING:
    from bnnopt.report.page import Version

_METAVAR = "FOLDER|REPORT|MODEL@LEVEL"


@click.command()
@click.argument("first", metavar=_METAVAR, type=click.Path(path_type=Path))
@click.argument("second", metavar=_METAVAR, type=click.Path(path_type=Path))
@model_options
@html_option
@json_option
def compare(
    first: Path, second: Path, html_file: Path | None, json_file: str | None, **options: Any
) -> None:
    """Show the memory of two steps side by side.

    Each is a folder that optimize wrote, a report of its --json, or a model at a level, which is
    compiled for it; the options about the training step are for models. The page needs folders or
    models.

    \b
    Example:
      bnnopt compare out out
      bnnopt compare models/mlp.onnx@O1 models/mlp.onnx@O2 --batch-size 100
    """
    check_targets(html_file, json_file)
    if not any(map(_model_and_level, (first, second))):
        refuse_options_of_a_step(first)
    with progress() as say:
        a, b = (_side(path, options, html_file is not None, say) for path in (first, second))
        page = None
        if a.version is not None and b.version is not None and html_file is not None:
            from bnnopt.compiler.pages import page_of_pair
            from bnnopt.report.page import render_page

            page = render_page(page_of_pair([(a.version, a.report), (b.version, b.report)]))
    from bnnopt.report.comparison import Comparison

    found = Comparison(str(first), str(second), a.report, b.report)
    answer(json_file, found.to_dict(), found.render(), html_file, page)


class _Side(NamedTuple):
    """One of the two: its report, and what a page shows of it."""

    report: Mapping[str, Any]
    version: Version | None


def _side(
    path: Path, options: Mapping[str, Any], with_page: bool, say: Callable[[str], None]
) -> _Side:
    asked = _model_and_level(path)
    if asked is not None:
        return _compiled(*asked, options, say)
    if os.path.isdir(path):
        report = read_report(path)
        if not with_page:
            return _Side(report, None)
        from bnnopt.compiler.pages import version_of_folder

        return _Side(report, version_of_folder(path, report))
    if with_page:
        raise UsageError(
            f"--html: {path} is a report; the page needs folders of bnnopt optimize, or models"
        )
    return _Side(_parsed(path), None)


def _compiled(
    model: Path, level: str, options: Mapping[str, Any], say: Callable[[str], None]
) -> _Side:
    from bnnopt.compiler import optimize
    from bnnopt.report.page import Version

    made = optimize(model, level=level, progress=say, **options)
    report = made.report.to_dict()
    return _Side(report, Version(f"{model}@{level}", made.training, report["passes"]))


def _model_and_level(path: Path) -> tuple[Path, str] | None:
    """What ``model.onnx@O1`` or ``artifacts@O1`` asks for; None of a path that is there.

    Raises
    ------
    UsageError
        Of a model without a level.
    """
    text = os.fspath(path)
    if text.removesuffix("@").endswith(".onnx"):
        model = text.removesuffix("@")
        raise UsageError(f"{path}: is a model; at which level? expected {model}@O1, or a folder")
    match = re.fullmatch(r"(.+)@-?(\w+)", text)
    if match is None or os.path.lexists(path):
        return None
    return Path(match[1]), match[2]


def refuse_options_of_a_step(folder: Path) -> None:
    """Of a folder the step is built: what would be ignored is refused.

    Raises
    ------
    UsageError
        If the present command was given an option about the training step.
    """
    context = click.get_current_context()
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        is_given = source is click.core.ParameterSource.COMMANDLINE
        own = isinstance(parameter, click.Argument) or parameter.name in ("html_file", "json_file")
        if is_given and not own:
            raise UsageError(
                f"{parameter.opts[0]}: is for a model; {folder} is a folder, whose step is built; "
                "leave it out, or optimize again with it"
            )


def read_report(folder: Path) -> dict[str, Any]:
    """The report of a folder.

    Raises
    ------
    ArtifactError
        If it is none of bnnopt's, or damaged.
    """
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
