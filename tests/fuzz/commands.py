"""Command lines: a verb with files and options that may not be as they should be."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
from collections.abc import Mapping
from pathlib import Path

import click

from bnnopt.cli import cli, main
from bnnopt.errors import LONGEST
from tests.fuzz import seeds
from tests.fuzz.memory import allow
from tests.fuzz.models import change_model
from tests.fuzz.mutations import change_bytes, change_json, change_tensors, integer, number, text

ARGUMENTS = "arguments.json"
# Of verbs: how likely; `demo` takes a minute and reads nothing.
VERBS = (
    *("optimize",) * 4,
    *("inspect", "summary", "compare", "verify", "zoo", "passes"),
    *("train",) * 4,
    *("eval", "predict", "export", "export"),
)
# What an option that names a file is given, of the files that are there and those to be written.
FILES: Mapping[str, tuple[str, ...]] = {
    "model": ("m.onnx",),
    "source": ("m.onnx", "out"),
    "folder": ("out",),
    "first": ("out",),
    "second": ("out", "m.onnx"),
    "data": ("d.npz",),
    "valid": ("d.npz",),
    "calibrate": ("d.npz",),
    "checkpoint": ("k.safetensors",),
    "init": ("k.safetensors", "m.onnx"),
    "config": ("c.toml",),
    "output": ("new", "new.onnx", "out"),
    "checkpoints": ("kept", "out"),
    "json_file": ("r.json", "-"),
    "log_json": ("l.json", "-"),
    "html_file": ("p.html",),
    "curves": ("c.html", "c.svg"),
    "state_dict": ("s.safetensors",),
    "packed": ("packed",),
}
WORDS = (
    *("adam", "bop", "sgd", "mse", "none", "bce", "cross-entropy", "native", "onnxruntime", "O2"),
    *("sign-pack", "bitmap{margin=1.2}", "prune-stored{sparsity=2}", "float16-gradients", "keep"),
    *("identity", "*=clipped", "w*", "*", "flip,shift", "1,2,3", "64KiB", "0", "1e9GiB", "mlp"),
)
LOOPS = ("epochs", "steps", "size", "classes")  # twice as many take twice as long, as they should


def make_command(rng: random.Random, folder: Path, made: Path) -> None:
    """Arguments, a model, a compiled folder, a checkpoint, samples and a configuration."""
    name = rng.choice(list(seeds.FOLDERS))
    model = seeds.read(rng.choice(seeds.SMALL))
    if rng.random() < 0.3:
        change_model(model, rng)
    (folder / "m.onnx").write_bytes(model.SerializePartialToString())
    shutil.copytree(made / name, folder / "out")
    checkpoint = (made / f"{name}.safetensors").read_bytes()
    samples = (made / f"{name}.npz").read_bytes()
    if rng.random() < 0.15:
        checkpoint = change_tensors(checkpoint, rng)
    if rng.random() < 0.15:
        samples = change_bytes(samples, rng)
    if rng.random() < 0.15:
        path = rng.choice(sorted((folder / "out").iterdir()))
        path.write_bytes(change_bytes(path.read_bytes(), rng))
    (folder / "k.safetensors").write_bytes(checkpoint)
    (folder / "d.npz").write_bytes(samples)
    settings = change_json({"epochs": 2, "lr": 0.1, "augment": ["flip"]}, rng)
    lines = (f"{key} = {json.dumps(value)}" for key, value in settings.items())
    (folder / "c.toml").write_text("\n".join(lines), errors="replace")
    (folder / ARGUMENTS).write_text(json.dumps(_arguments(rng)))


def _arguments(rng: random.Random) -> list[str]:
    verb = rng.choice(VERBS)
    given = [verb]
    for parameter in cli.commands[verb].params:
        if isinstance(parameter, click.Argument):
            given += [_value(parameter, rng)] if rng.random() < 0.97 else []
        elif parameter.name == "batch_size" or parameter.required or rng.random() < 0.15:
            given.append(rng.choice(parameter.opts))
            given += [] if getattr(parameter, "is_flag", False) else [_value(parameter, rng)]
    return [argument.replace("\0", "") for argument in given]  # no process is given those


def _value(parameter: click.Parameter, rng: random.Random) -> str:
    """What an option or argument takes, or something else."""
    name, kind = parameter.name or "", parameter.type
    if rng.random() < 0.05:
        return text(rng)
    if name in FILES:
        return rng.choice(FILES[name])
    if isinstance(kind, click.Choice):
        return str(rng.choice(kind.choices))
    if name == "batch_size":
        return str(rng.choice((4, 4, 4, integer(rng))))
    if kind.name.startswith("integer"):
        return str(rng.randrange(1, 5) if name in LOOPS or rng.random() < 0.5 else integer(rng))
    if kind.name.startswith("float"):
        return str(rng.choice((0.1, 0.5, number(rng))))
    return rng.choice(WORDS)


def use_command(folder: Path, _: Path) -> bool:
    """Run it; a refusal is its exit code and a line, the last one on standard error."""
    allow(seeds.PLANNED)
    arguments = json.loads((folder / ARGUMENTS).read_text())
    told, code = io.TextIOWrapper(io.BytesIO(), "utf-8"), 0
    with contextlib.chdir(folder), contextlib.redirect_stderr(told):
        try:
            main(arguments)
        except SystemExit as error:
            code = int(error.code or 0)
    told.seek(0)
    said = told.read().splitlines()
    expected = {0, 1, 2} if arguments[0] == "verify" else {0, 2, 3}
    assert code in expected, f"{arguments}: exit code {code}"
    if code > 1:
        last = said[-1] if said else ""
        assert last.startswith("bnnopt: "), f"{arguments}: {said}"
        assert len(last) <= len("bnnopt: ") + LONGEST, f"{arguments}: {len(last)} characters"
    return code <= 1
