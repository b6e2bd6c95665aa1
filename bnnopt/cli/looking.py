"""``bnnopt inspect`` and ``summary``: where the memory goes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from bnnopt.cli.comparing import read_report, refuse_options_of_a_step
from bnnopt.cli.options import html_option, json_option, model_options
from bnnopt.cli.terminal import answer, check_json_target, check_targets, progress


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
            refuse_options_of_a_step(source)
            report = read_report(source)
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
