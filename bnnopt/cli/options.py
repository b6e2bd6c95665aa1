"""Options that commands share, and the types of their values."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from typing import Any, TypeVar

import click

from bnnopt.errors import UsageError, did_you_mean

# Only named in the help; what checks them is heavy to import. A test holds the two together.
OPTIMIZERS = ("adam", "sgd", "bop", "fixed-sign")
LOSSES = (
    *("cross-entropy", "soft-cross-entropy", "bce", "mse", "l1", "huber", "squared-hinge"),
    "none",
)
ESTIMATORS = ("clipped", "identity", "approx-sign", "swish-sign")
BACKENDS = ("native", "onnxruntime")

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}
Command = TypeVar("Command", bound=Callable[..., None])


class Names(click.ParamType[Any]):
    """Names, separated by commas; those in braces belong to a name, as options of a pass."""

    name = "NAMES"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return a tuple of str."""
        if isinstance(value, tuple):
            return value
        return tuple(n.strip() for n in re.split(r",(?![^{}]*\})", value) if n.strip())


class Size(click.ParamType[Any]):
    """A number of bytes with its unit."""

    name = "SIZE"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the bytes as int."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?)(B?)", str(value).strip().upper())
        if match is None or match[2] not in UNITS:
            self.fail(f"{value!r}: expected a size such as 64MiB or 500kB", param, ctx)
        if not match[2] and not match[3]:
            self.fail(f"{value!r}: expected a unit, such as {value}MiB or {value}B", param, ctx)
        return int(float(match[1]) * UNITS[match[2]])


class Numbers(click.ParamType[Any]):
    """Numbers, separated by commas."""

    name = "NUMBERS"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return a tuple of float."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r}: expected numbers such as 0.5 or 0.49,0.48,0.45", param, ctx)


def together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, listed in this order."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _configure(context: click.Context, parameter: click.Parameter, path: str | None) -> None:
    """Take the defaults of a command's options from a TOML file; what is typed goes before it."""
    if path is None:
        return
    try:
        with open(path, "rb") as file:
            found = tomllib.load(file)
    except (OSError, ValueError) as error:
        raise UsageError(f"--config {path}: cannot be read as TOML ({error})") from None
    known = {option.removeprefix("--"): p for p in context.command.params for option in p.opts}
    for name, value in found.items():
        if name not in known or name == "config":
            hint = did_you_mean(name, known)
            raise UsageError(f"--config {path}: there is no option {name!r}{hint}")
        text = ",".join(map(str, value)) if isinstance(value, list) else value
        context.default_map = {**(context.default_map or {}), str(known[name].name): text}


config_option = click.option(
    "--config",
    metavar="FILE",
    is_eager=True,
    expose_value=False,
    callback=_configure,
    help="A TOML file with some of these options, such as epochs = 20.",
)

_MODEL_OPTIONS = (
    click.option(
        "--batch-size", "-b", type=int, help="Samples a step; not needed where the file fixes it."
    ),
    click.option(
        "--loss",
        metavar="NAME",
        help=f"{LOSSES[0]} (the default), {', '.join(LOSSES[1:-1])}, or none where the graph ends "
        "in a scalar; training artifacts have their own.",
    ),
    click.option(
        "--label-smoothing",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="Of cross-entropy: this share of each label goes to all classes alike.",
    ),
    click.option(
        "--class-weights",
        type=Numbers(),
        default=(),
        help="Of cross-entropy: one factor a class, separated by commas.",
    ),
    click.option(
        "--ignore-index",
        type=int,
        metavar="LABEL",
        help="Of cross-entropy: labels of this value count for nothing.",
    ),
    click.option(
        "--optimizer",
        metavar="NAME",
        help=f"{', '.join(OPTIMIZERS)}; if not given, that of the training artifacts, or "
        f"{OPTIMIZERS[0]}.",
    ),
    click.option(
        "--momentum", type=float, default=0.9, show_default=True, help="Of sgd; 0 for none."
    ),
    click.option(
        "--gamma", type=float, default=1e-4, show_default=True, help="Of bop: its adaptivity rate."
    ),
    click.option(
        "--tau",
        type=float,
        default=1e-8,
        show_default=True,
        help="Of bop: its threshold.",
    ),
    click.option(
        "--lr",
        "learning_rate",
        type=float,
        help="Default learning rate; if not given, 0.001 for adam and 0.01 for sgd.",
    ),
    click.option(
        "--freeze",
        multiple=True,
        metavar="PATTERN",
        help="Do not train the parameters that match, as in a shell; may be repeated.",
    ),
    click.option(
        "--train",
        multiple=True,
        metavar="PATTERN",
        help="Train only the parameters that match, such as '*.bias'; may be repeated.",
    ),
    click.option(
        "--last", type=int, metavar="K", help="Train only the last K convolutions or dense layers."
    ),
    click.option(
        "--ste",
        multiple=True,
        metavar="[PATTERN=]NAME",
        help=f"Straight-through estimator: {ESTIMATORS[0]} (the default), "
        f"{', '.join(ESTIMATORS[1:-1])} or {ESTIMATORS[-1]}; with a pattern for the nodes that "
        "match; may be repeated.",
    ),
    click.option(
        "--sign-zero",
        metavar="+1|keep",
        help="What sign(0) is; keep leaves ONNX's 0, and packs no such tensor. If not given: keep "
        "for the sign of the input or of a ReLU, where zeros are no accident, +1 elsewhere.",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Of dropout."),
)


def model_options(command: Command) -> Command:
    """Options about how a training step is built."""
    for option in reversed(_MODEL_OPTIONS):
        command = option(command)
    return command


json_option = click.option(
    "--json", "json_file", metavar="FILE", help="Write the report as JSON; - for standard output."
)
