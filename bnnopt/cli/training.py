"""``bnnopt train``, ``eval`` and ``predict``: the device's side of the command line.

Nothing of the compiler is imported here: a device has numpy, safetensors and click.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bnnopt.cli.config import config_option
from bnnopt.cli.options import BACKENDS, Names, Numbers, json_option, together
from bnnopt.cli.terminal import (
    STANDARD_OUTPUT,
    answer,
    check_json_target,
    check_writable,
    say_line,
    say_note,
    write_file,
)
from bnnopt.errors import BnnoptError, UsageError

if TYPE_CHECKING:
    from bnnopt.cli.running import Run
    from bnnopt.runtime.training import Callback, History

SCHEDULES = ("cosine", "constant", "step", "plateau")
CHANGES = ("flip", "shift", "crop")

_folder = click.argument("folder", type=click.Path(path_type=Path))
_data = click.option("--data", required=True, metavar="PATH", help="Samples: a file or a folder.")
_checkpoint_file = click.option(
    "--checkpoint", metavar="FILE", help="Take its weights; if not given, the newest one's."
)
_output_name = click.option(
    "--output",
    "output_name",
    metavar="NAME",
    help="One of several outputs; if not given, the first.",
)
_session_options = together(
    click.option(
        "--backend",
        default=BACKENDS[0],
        metavar="NAME",
        show_default=True,
        help=f"{' or '.join(BACKENDS)}.",
    ),
    click.option(
        "--threads", type=int, help="If not given, as many as there are processors, at most 4."
    ),
)
normalization_options = together(
    click.option("--scale", type=float, help="Divide x by this, such as 255 for 8-bit images."),
    click.option("--mean", type=Numbers(), help="Then take this off: a number, or one a channel."),
    click.option("--std", type=Numbers(), help="Then divide by this."),
    click.option("--normalize", is_flag=True, help="Take mean and deviation from the data."),
)


@click.command()
@_folder
@_data
@click.option("--valid", metavar="PATH", help="Samples to measure on after each epoch.")
@click.option("--epochs", type=click.IntRange(1), default=10, show_default=True, help="How many.")
@click.option("--lr", type=float, help="Learning rate; the folder's own if not given.")
@click.option(
    "--schedule",
    type=click.Choice(SCHEDULES),
    default=SCHEDULES[0],
    show_default=True,
    help="How the rate goes on; step divides it by 10 after each third of the epochs.",
)
@click.option(
    "--warmup", type=click.IntRange(0), default=0, help="Steps in which the rate rises to --lr."
)
@click.option(
    "--patience",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Of plateau: epochs without a lower loss until the rate is halved.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the samples' order."
)
@click.option(
    "--augment", type=Names(), default=(), help=f"Random changes of images: {', '.join(CHANGES)}."
)
@click.option(
    "--clip-weights", type=float, metavar="BOUND", help="Keep latent binary weights within +-BOUND."
)
@normalization_options
@click.option(
    "--replay",
    type=click.IntRange(0),
    metavar="N",
    help="Of each batch, so many samples are earlier ones: what the frozen layers gave for them, "
    "as it is kept in FOLDER.replay.safetensors.",
)
@click.option(
    "--replay-keep",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="Samples that --replay keeps at the end, of each label alike, for later trainings.",
)
@click.option("--replay-file", metavar="FILE", help="Where, if not there.")
@click.option(
    "--checkpoint",
    "checkpoints",
    metavar="DIR",
    help="Folder of checkpoints; FOLDER.checkpoints if not given.",
)
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint where there is one.")
@click.option(
    "--checkpoint-every", type=click.IntRange(1), metavar="STEPS", help="Also within an epoch."
)
@click.option(
    "--keep", type=click.IntRange(1), default=2, show_default=True, help="Checkpoints that stay."
)
@click.option(
    "--early-stop",
    type=click.IntRange(1),
    metavar="EPOCHS",
    help="Stop after so many without a lower loss.",
)
@click.option("--log-json", metavar="FILE", help="One JSON object an epoch; - for standard output.")
@click.option(
    "--tensorboard", type=click.Path(path_type=Path), metavar="DIR", help="Write event files there."
)
@click.option("--curves", type=click.Path(path_type=Path), help="Draw them: .png, .svg or .html.")
@click.option(
    "--profile", is_flag=True, help="Time each node; writes FOLDER/profile.json, for inspect."
)
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@_session_options
@config_option
def train(folder: Path, **options: Any) -> None:
    """Train the network of FOLDER, which optimize wrote, on a data set.

    --data is an .npz file with arrays x and y, a folder of x.npy and y.npy, the files of MNIST or
    CIFAR, a table (.csv), or a folder of images by class. Checkpoints go to FOLDER.checkpoints;
    after a power cut --resume goes on to the same bits.

    \b
    Example:
      bnnopt train out --data train.npz --valid valid.npz --epochs 2
    """
    from bnnopt.cli import running
    from bnnopt.runtime.format import PROFILE_FILE

    say: Callable[[str], None] = (lambda line: None) if options["quiet"] else say_note
    if options["curves"] is not None:
        from bnnopt.cli.curves import check

        check(options["curves"].suffix)
        check_writable(options["curves"])
    run = running.prepare(folder, options, say)
    profile = run.session.profile() if options["profile"] else None
    with ExitStack() as stack:
        signals = stack.enter_context(running.Signals())
        history = _fit(run, [signals, *_onlookers(options, stack)], say)
    if options["curves"] is not None:
        from bnnopt.cli.curves import draw

        write_file(options["curves"], draw(history, options["curves"].suffix))
    if profile is not None:
        content = json.dumps(profile.to_dict(run.session.memory.seen_bytes), indent=1)
        write_file(folder / PROFILE_FILE, content.encode())
    if run.replay is not None and not signals.received:
        say(running.remember(run, options["replay_keep"]))
    newest = run.checkpoints.found()[0]
    if signals.received:
        raise running.Stopped(signals.received, f"stopped; --resume goes on from {newest}")
    say(f"written: {newest}")


def _fit(run: Run, look: list[Callback], say: Callable[[str], None]) -> History:
    from bnnopt.runtime.training import fit

    try:
        return fit(run.session, run.data, run.recipe, run.valid, run.checkpoints, look)
    except BnnoptError:
        kept = run.checkpoints.found()
        if kept:
            say(f"the last good checkpoint is {kept[0]}")
        raise


def _onlookers(options: dict[str, Any], stack: ExitStack) -> list[Callback]:
    """What shows and logs how training goes."""
    from bnnopt.cli.bar import Bar, Lines
    from bnnopt.cli.running import log_file
    from bnnopt.runtime.training import EarlyStop, JsonLines

    look: list[Callback] = []
    if options["early_stop"]:
        look.append(EarlyStop(options["early_stop"]))
    if options["tensorboard"] is not None:
        from bnnopt.cli.events import Events

        look.append(stack.enter_context(Events(options["tensorboard"])))
    log = options["log_json"]
    if log is not None:
        look.append(JsonLines(stack.enter_context(log_file(log, options["resume"]))))
    if not options["quiet"] and log != STANDARD_OUTPUT:
        look.append(stack.enter_context(Bar()) if sys.stderr.isatty() else Lines())
    return look


@click.command("eval")
@_folder
@_data
@_output_name
@_checkpoint_file
@normalization_options
@click.option("--metrics", is_flag=True, help="Also top-5, confusion matrix, mean IoU and MAE.")
@_session_options
@json_option
def evaluate(
    folder: Path,
    data: str,
    output_name: str | None,
    metrics: bool,
    json_file: str | None,
    **options: Any,
) -> None:
    """Measure loss and accuracy of a trained FOLDER on a data set.

    x is normalised as it was in training, unless options say otherwise.

    \b
    Example:
      bnnopt eval out --data valid.npz
    """
    from bnnopt.cli import running
    from bnnopt.runtime.training import evaluate as measure

    check_json_target(json_file)
    session, normalization, samples = running.trained(folder, data, options)
    found = measure(session, samples, normalization, output_name).to_dict()
    if not metrics:
        found = {name: found[name] for name in ("loss", "accuracy", "samples")}
    answer(json_file, found, "\n".join(running.described(found, samples.classes)))


@click.command()
@_folder
@_data
@_output_name
@click.option(
    "-o",
    "output",
    required=True,
    type=click.Path(path_type=Path),
    help="An .npz file: y, the network's output, and label, the place of its largest score.",
)
@_checkpoint_file
@normalization_options
@_session_options
def predict(folder: Path, data: str, output: Path, output_name: str | None, **options: Any) -> None:
    """Write what a trained FOLDER predicts for a data set.

    \b
    Example:
      bnnopt predict out --data valid.npz -o y.npz
    """
    import io

    import numpy as np

    from bnnopt.cli import running
    from bnnopt.runtime.training import predictions

    if output.suffix != ".npz":
        raise UsageError(f"-o {output}: expected a name that ends in .npz")
    check_writable(output)
    session, normalization, samples = running.trained(folder, data, options)
    batches = predictions(session, samples, normalization, output_name)
    found = np.concatenate([part for _, part in batches])
    labels = {"label": found.argmax(axis=1)} if session.about.classes else {}
    content = io.BytesIO()
    np.savez(content, y=found, **labels)
    write_file(output, content.getvalue())
    say_line(f"written: {output}, {len(found)} samples")
