"""The options of ``bnnopt optimize``: the one place that says what they are.

A field of `Settings` has the default, the help and the values that make sense; the command line,
the parameters of `bnnopt.optimize` and its docstring are made of the fields. To add an option, add
a field here, use it, and test it. Nothing heavy is imported, so that ``--help`` answers at once.
"""

from __future__ import annotations

import inspect
import math
import os
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec, TypeAlias, TypeVar

from bnnopt.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

Model: TypeAlias = "str | os.PathLike[str] | nn.Module"
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# Named here, as what works by these names is heavy to import. A test holds the two together.
OPTIMIZERS = ("adam", "sgd", "bop", "fixed-sign", "rmsprop")
LOSSES = (
    *("cross-entropy", "soft-cross-entropy", "bce", "mse", "l1", "huber", "squared-hinge"),
    "none",
)
ESTIMATORS = ("clipped", "identity", "approx-sign", "swish-sign")
SIGN_ZEROS = ("+1", "keep")
INPUTS = ("float32", "uint8")
N_SEEDS = 1 << 32  # of the hash behind dropout


class Bound(NamedTuple):
    """Numbers that make sense, in words."""

    words: str
    holds: Callable[[float], bool]


SHARE = Bound("a number from 0 to below 1", lambda x: 0 <= x < 1)
INSIDE = Bound("a number between 0 and 1", lambda x: 0 < x < 1)
ABOVE_0 = Bound("a number above 0", lambda x: 0 < x < math.inf)
FACTORS = Bound("numbers of 0 or more", lambda x: 0 <= x < math.inf)
N_STEPS = Bound("a number of steps", lambda x: x >= 1)
SEEDS = Bound(f"a number from 0 to {N_SEEDS - 1}", lambda x: 0 <= x < N_SEEDS)


@dataclass(frozen=True)
class About:
    """What is known of an option besides its type and default.

    Attributes
    ----------
    help : str
        For the command line and the docstring.
    flags : tuple of str
        On the command line; by default the field's name.
    metavar : str, optional
        What stands for the value there.
    choices : tuple of str
        The names that it takes, if it takes names.
    bound : Bound, optional
        The numbers that it takes.
    is_listed : bool
        Of a sequence: given at once with commas, not one by one.
    is_of_step : bool
        It is about how a training step is built, which other commands do as well.
    """

    help: str
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    bound: Bound | None = None
    is_listed: bool = False
    is_of_step: bool = False


def _option(default: Any, text: str, *flags: str, **about: Any) -> Any:
    return field(default=default, metadata={"about": About(text, flags, **about)})


def _of_step(default: Any, text: str, *flags: str, **about: Any) -> Any:
    return _option(default, text, *flags, **about, is_of_step=True)


def _listed(names: Sequence[str]) -> str:
    return f"{names[0]} (the default), {', '.join(names[1:-1])} or {names[-1]}"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of `bnnopt.optimize`, which describes them."""

    batch_size: int | None = _of_step(
        None, "Samples a step; not needed where the file fixes it.", "--batch-size", "-b"
    )
    input: str = _of_step(
        INPUTS[0],
        "What a step takes: float32 as the model does, or uint8, images as they are stored, which "
        "are normalised within the step.",
        metavar="TYPE",
        choices=INPUTS,
    )
    loss: str | None = _of_step(
        None,
        f"{LOSSES[0]} (the default), {', '.join(LOSSES[1:-1])}, or none where the graph ends in a "
        "scalar; training artifacts have their own.",
        metavar="NAME",
        choices=LOSSES,
    )
    label_smoothing: float = _of_step(
        0.0,
        "Of cross-entropy: this share of each label goes to all classes alike.",
        metavar="SHARE",
        bound=SHARE,
    )
    class_weights: Sequence[float] = _of_step(
        (), "Of cross-entropy: one factor a class, separated by commas.", bound=FACTORS
    )
    ignore_index: int | None = _of_step(
        None, "Of cross-entropy: labels of this value count for nothing.", metavar="LABEL"
    )
    optimizer: str | None = _of_step(
        None,
        f"{', '.join(OPTIMIZERS)}; if not given, that of the training artifacts, or "
        f"{OPTIMIZERS[0]}.",
        metavar="NAME",
        choices=OPTIMIZERS,
    )
    momentum: float = _of_step(0.9, "Of sgd; 0 for none.", bound=SHARE)
    beta1: float = _of_step(0.9, "Of adam: the share that its first moment keeps.", bound=SHARE)
    beta2: float = _of_step(0.999, "Of adam: the share that its second moment keeps.", bound=SHARE)
    alpha: float = _of_step(0.99, "Of rmsprop: the share that its mean square keeps.", bound=SHARE)
    gamma: float = _of_step(
        1e-4,
        "Of bop: how fast its momentum follows the gradient.",
        bound=Bound("a number above 0, at most 1", lambda x: 0 < x <= 1),
    )
    tau: float = _of_step(1e-8, "Of bop: the momentum from which on a weight turns.", bound=FACTORS)
    learning_rate: float | None = _of_step(
        None,
        "Default learning rate; if not given, 0.01 for sgd and 0.001 for all others.",
        "--lr",
        bound=ABOVE_0,
    )
    clip_grad_norm: float | None = _of_step(
        None,
        "Scale all gradients together so that their norm is at most this; they are kept until it "
        "is known.",
        metavar="NORM",
        bound=ABOVE_0,
    )
    accumulate: int = _of_step(
        1,
        "Take a batch in so many parts, one after the other, and sum the gradients; a batch norm "
        "takes mean and deviation of each part.",
        metavar="K",
        bound=Bound("a number of parts, 1 or more", lambda x: x >= 1),
    )
    freeze: Sequence[str] = _of_step(
        (),
        "Do not train the parameters that match, as in a shell; may be repeated.",
        metavar="PATTERN",
    )
    train: Sequence[str] = _of_step(
        (),
        "Train only the parameters that match, such as '*.bias'; may be repeated.",
        metavar="PATTERN",
    )
    last: int | None = _of_step(
        None, "Train only the last K convolutions or dense layers.", metavar="K"
    )
    freeze_batch_norm: bool = _of_step(
        False, "Batch norms of which no parameter is trained run on their running statistics."
    )
    init: str | None = _of_step(
        None,
        "Start from the weights of this checkpoint, state_dict or model, those that it has by name "
        "and shape.",
        metavar="FILE",
    )
    head: int | None = _of_step(
        None,
        "Give the last layer so many outputs, which start anew: for other classes than the file's.",
        metavar="CLASSES",
        bound=Bound("a number of classes, 1 or more", lambda x: x >= 1),
    )
    ste: Sequence[str] = _of_step(
        (),
        f"Straight-through estimator: {_listed(ESTIMATORS)}; with a pattern for the nodes that "
        "match; may be repeated.",
        metavar="[PATTERN=]NAME",
    )
    sign_zero: str | None = _of_step(
        None,
        "What sign(0) is; keep leaves ONNX's 0, and packs no such tensor. If not given: keep for "
        "the sign of the input or of a ReLU, where zeros are no accident, +1 elsewhere.",
        metavar="+1|keep",
        choices=SIGN_ZEROS,
    )
    seed: int = _of_step(0, "Of dropout.", bound=SEEDS)
    level: str = _option(
        "O1",
        "-O0: the reference; -O1: lossless; -O2: Algorithm 2 of Wang et al., lossy; -O3: also "
        "state and gradients in 8 bits.",
        "-O",
        metavar="LEVEL",
    )
    passes: Sequence[str] = _option(
        (), "Only these, such as sign-pack,bitmap{margin=1.2}; see bnnopt passes.", is_listed=True
    )
    disable: Sequence[str] = _option((), "Not these passes, by name.", is_listed=True)
    enable: Sequence[str] = _option(
        (),
        "Also these, or these with other options, such as prune-stored{sparsity=0.9}.",
        is_listed=True,
    )
    budget_bytes: int | None = _option(
        None,
        "Choose the least lossy passes whose planned peak fits, with what the process takes beside "
        "it, and for each value whether it is kept or computed again: by a solver with the extra "
        "budget, else none, all lossless ones, then the lossy ones too, that with the tightest "
        "bound first.",
        "--budget",
        metavar="SIZE",
    )
    allow_batch: bool = _option(
        False,
        "With --budget: where nothing fits, take the batch in parts (see --accumulate), as few as "
        "fit, else halve it.",
    )
    time_budget: float | None = _option(
        None,
        "Choose the smallest planned peak of the level's passes with which a step takes at most "
        "this many times as long as one that computes nothing twice, as predicted; needs the extra "
        "budget.",
        metavar="FACTOR",
        bound=Bound("a number of 1 or more", lambda x: 1 <= x < math.inf),
    )
    calibrate: str | None = _option(
        None,
        "Measure on x of this file how sparse activations are, for pass bitmap.",
        metavar="FILE.npz",
    )
    prune_stored: float | None = _option(
        None,
        "Also keep only the largest elements of stored activations: lossy, as to enable "
        "prune-stored{sparsity=...}.",
        metavar="SPARSITY",
        bound=INSIDE,
    )
    prune_weights: float | None = _option(
        None,
        "Prune the weights of real-valued layers while they are trained, up to this share.",
        metavar="SPARSITY",
        bound=INSIDE,
    )
    prune_end: int = _option(1000, "Steps until that is reached.", bound=N_STEPS)


class Option(NamedTuple):
    """A field of `Settings`; `type` as it is written there."""

    name: str
    type: str
    default: Any
    about: About

    @property
    def flags(self) -> tuple[str, ...]:
        """As the command line has them."""
        return self.about.flags or (f"--{self.name.replace('_', '-')}",)


def options() -> Iterator[Option]:
    """The options, in the order of the help."""
    for entry in fields(Settings):
        yield Option(entry.name, str(entry.type), entry.default, entry.metadata["about"])


def taking(
    arguments: Callable[Arguments, object],
) -> Callable[[Callable[..., Result]], Callable[Concatenate[Model, Arguments], Result]]:
    """Let a function of a model and options have the parameters of `arguments` behind the model.

    So that editors and type checkers see each option, with its type and default, and the docstring
    describes it, where it has ``{options}``.
    """
    parameters = inspect.signature(arguments, eval_str=True).parameters.values()

    def declare(
        function: Callable[..., Result],
    ) -> Callable[Concatenate[Model, Arguments], Result]:
        own = inspect.signature(function)
        model = own.parameters["model"]
        function.__signature__ = own.replace(  # type: ignore[attr-defined]
            parameters=[model, *parameters]
        )
        function.__doc__ = inspect.cleandoc(function.__doc__ or "").replace(
            "{options}", described()
        )
        return function

    return declare


def described() -> str:
    """The options as parameters of a docstring."""
    return "\n".join(
        f"{option.name} : {_kind_of(option)}\n{_indented(option.about.help)}"
        for option in options()
    )


def _kind_of(option: Option) -> str:
    kind = option.type.removesuffix(" | None").replace("Sequence[", "sequence of ")
    default = f"default {option.default!r}" if option.default not in (None, ()) else "optional"
    return f"{kind.removesuffix(']')}, {default}"


def _indented(text: str) -> str:
    return textwrap.fill(text, 92, initial_indent="    ", subsequent_indent="    ")


def with_options(settings: Settings, changes: Mapping[str, object]) -> Settings:
    """The settings with `changes` in place, each of the right type.

    Raises
    ------
    UsageError
        If there is no such option, or it takes something else.
    """
    types = {option.name: option.type for option in options()}
    converted: dict[str, Any] = {}
    for name, value in changes.items():
        if name not in types:
            hint = did_you_mean(name, types) or f"; expected one of {', '.join(types)}"
            raise UsageError(f"optimize: there is no option {name!r}{hint}")
        converted[name] = _converted(name, value, types[name])
    return replace(settings, **converted)


def _converted(name: str, value: object, expected: str) -> object:
    """A value of the type that `Settings` declares; a lone text stands for a sequence of one."""
    if value is None and "None" in expected:
        return None
    if expected == "Sequence[str]":
        values = (value,) if isinstance(value, str) else value
        if isinstance(values, Sequence) and all(isinstance(v, str) for v in values):
            return tuple(values)
    elif expected == "Sequence[float]":
        if isinstance(value, Sequence) and all(isinstance(v, Real) for v in value):
            return tuple(map(float, value))
    elif isinstance(value, bool):
        if expected == "bool":  # an int to Python, but no number of anything
            return value
    elif expected.startswith("int") and isinstance(value, Integral):
        return int(value)
    elif expected.startswith("float") and isinstance(value, Real):
        return float(value)
    elif expected.startswith("str") and isinstance(value, str):
        return value
    if name == "level":
        raise UsageError(f"optimize: level is {value!r}, expected a text such as 'O2'")
    raise UsageError(f"optimize: {name} is {value!r}, expected {expected}")


def check(settings: Settings) -> None:
    """Refuse what makes no sense.

    Raises
    ------
    UsageError
        Naming the option, as the command line does.
    """
    for option in options():
        value, about = getattr(settings, option.name), option.about
        if value is None:
            continue
        flag = option.flags[0]
        if about.choices and value not in about.choices:
            hint = did_you_mean(value, about.choices)
            raise UsageError(f"{flag} {value}: expected {', '.join(about.choices)}{hint}")
        values = value if isinstance(value, tuple | list) else (value,)
        if about.bound is not None and not all(map(about.bound.holds, values)):
            shown = ",".join(map(str, values))
            raise UsageError(f"{flag} {shown}: expected {about.bound.words}")
