"""What is fuzzed: how an input of each kind is made, and what is done with it.

`make` writes an input to a folder from a random generator alone, and `use` runs what lies there.
`use` returns whether it was accepted and ran; it raises what bnnopt raises.
"""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx

import bnnopt
from bnnopt import TrainingSession
from bnnopt.runtime.data import open_data
from bnnopt.runtime.format import fields_checksum, file_checksum
from bnnopt.runtime.tensors import tensors_checksum
from tests.fuzz import seeds
from tests.fuzz.commands import make_command, use_command
from tests.fuzz.memory import allow
from tests.fuzz.models import change_model
from tests.fuzz.mutations import change_bytes, change_json, change_tensors, integer, number, text

OPTIONS = "options.json"
LARGE_BATCH = 1000  # samples: such a step may take its time
CHECKPOINT = "k.safetensors"
NOTES = "note.training"
LEVELS = ("O0", "O1", "O2")


class Target(NamedTuple):
    """A kind of input; `seeds` is the folder that `seeds.make_seeds` wrote."""

    make: Callable[[random.Random, Path, Path], None]
    use: Callable[[Path, Path], bool]
    share: int  # of 100 inputs


# Models and training artifacts --------------------------------------------------------------------


def make_model(rng: random.Random, folder: Path, _: Path) -> None:
    """A model file and options of `bnnopt.optimize`."""
    names = seeds.SMALL if rng.random() < 0.8 else tuple(seeds.NETWORKS)
    model = seeds.read(rng.choice(names))
    change_model(model, rng)
    try:
        data = model.SerializeToString()
    except (ValueError, UnicodeError):  # a text that protobuf does not take
        data = model.SerializePartialToString()
    (folder / "m.onnx").write_bytes(change_bytes(data, rng) if rng.random() < 0.1 else data)
    options: dict[str, Any] = {"level": rng.choice(LEVELS), "batch_size": rng.choice((1, 4, 4, 5))}
    if rng.random() < 0.3:
        options["optimizer"] = rng.choice(("sgd", "adam", "bop", "fixed-sign"))
    if rng.random() < 0.3:
        options["loss"] = rng.choice(("none", "mse", "bce", "squared-hinge", "soft-cross-entropy"))
    (folder / OPTIONS).write_text(json.dumps(options))


def make_artifacts(rng: random.Random, folder: Path, _: Path) -> None:
    """A folder of onnxruntime-training artifacts, one file of it changed."""
    source = seeds.ARTIFACTS / rng.choice(("small", "binary"))
    target = folder / "artifacts"
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.npz", "forward*", "eval*"))
    name = rng.choice(("training_model.onnx",) * 2 + ("checkpoint", "optimizer_model.onnx"))
    data = (target / name).read_bytes()
    if name == "checkpoint" or rng.random() < 0.2:
        data = change_bytes(data, rng)
    else:
        model = onnx.ModelProto.FromString(data)
        change_model(model, rng)
        data = model.SerializePartialToString()
    (target / name).write_bytes(data)
    (folder / OPTIONS).write_text(json.dumps({"level": rng.choice(LEVELS), "batch_size": 4}))


def use_model(folder: Path, _: Path) -> bool:
    """Compile it, and run a step where the plan is a small one."""
    path = folder / "m.onnx"
    options = json.loads((folder / OPTIONS).read_text())
    compiled = bnnopt.optimize(path if path.exists() else folder / "artifacts", **options)
    planned = compiled.report.optimized.peak_bytes
    if planned > seeds.PLANNED:
        return True
    with seeds.without_portable_graphs():
        compiled.save(folder / "out")
    allow(planned)
    return use_session(TrainingSession(folder / "out", threads=1))


def use_session(session: TrainingSession) -> bool:
    """A step on a full batch, one on a smaller one, the predictions."""
    if session.batch_size > LARGE_BATCH:
        return True
    x, y = seeds.batch(session)
    session.step(x, y)
    if session.least_batch == 1:
        session.step(*seeds.batch(session, 1))
    session.predict(x)
    return True


# Folders and checkpoints --------------------------------------------------------------------------


def make_folder(rng: random.Random, folder: Path, made: Path) -> None:
    """A compiled folder, one file of it changed; most with the checksums that belong to it."""
    target = folder / "out"
    ignored = shutil.ignore_patterns("*.onnx", "README*", "report*")
    shutil.copytree(made / rng.choice(list(seeds.FOLDERS)), target, ignore=ignored)
    kind = rng.random()
    if kind < 0.05:
        _replace(target / rng.choice(sorted(p.name for p in target.iterdir())), rng)
        return
    if kind < 0.75:
        path = target / f"{rng.choice(('training', 'training', 'evaluation'))}.plan.json"
        _rewrite(path, functools.partial(change_program, rng=rng))
    elif kind < 0.85:
        path = target / "artifact.json"
        _rewrite(path, functools.partial(change_json, rng=rng))
    else:
        path = target / rng.choice(("weights.safetensors", "constants.safetensors"))
        path.write_bytes(change_tensors(path.read_bytes(), rng))
    if rng.random() < 0.05:
        path.write_bytes(change_bytes(path.read_bytes(), rng))
    if rng.random() < 0.95:
        _sign(target)


def change_program(program: dict[str, Any], rng: random.Random) -> Any:
    """Another shape, type, place, operator, operand or number; sometimes whatever there is."""
    kind = rng.random()
    if kind < 0.15:
        return change_json(program, rng)
    value, step = rng.choice(program["values"]), rng.choice(program["steps"])
    if kind < 0.45 and value["shape"]:
        place = rng.randrange(len(value["shape"]))
        near = value["shape"][place]
        value["shape"][place] = rng.choice((near + 1, near - 1, 2 * near, 1, integer(rng, near)))
    elif kind < 0.55:
        other = rng.choice(program["values"])
        value[key] = other[key := rng.choice(("shape", "dtype", "offset"))]
    elif kind < 0.75 and step["attributes"]:
        name = rng.choice(list(step["attributes"]))
        step["attributes"] = change_json({name: step["attributes"][name]}, rng) | {
            key: number for key, number in step["attributes"].items() if key != name
        }
    elif kind < 0.9:
        ends = step[rng.choice(("inputs", "outputs"))]
        if ends:
            ends[rng.randrange(len(ends))] = rng.randrange(-1, len(program["values"]))
    else:
        step["operator"] = rng.choice(program["steps"])["operator"]
    return program


def use_folder(folder: Path, _: Path) -> bool:
    """Open it and run steps."""
    session = TrainingSession(folder / "out", threads=1)
    if session.memory.planned_bytes > seeds.PLANNED:
        return True
    return use_session(session)


def make_checkpoint(rng: random.Random, folder: Path, made: Path) -> None:
    """A checkpoint, changed; some with the checksum of what is in it."""
    name = rng.choice(list(seeds.FOLDERS))
    (folder / "name.txt").write_text(name)
    path = folder / CHECKPOINT
    data = (made / rng.choice((f"{name}.safetensors", f"{name}.fit.safetensors"))).read_bytes()
    data = (_with_other_elements if rng.random() < 0.3 else change_tensors)(data, rng)
    path.write_bytes(data)
    if rng.random() < 0.03:
        _replace(path, rng)


def _with_other_elements(data: bytes, rng: random.Random) -> bytes:
    """Elements that no training gives, under the right checksum."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    body = bytearray(data[8 + length :])
    about = header.pop("__metadata__")
    start, stop = header[rng.choice(list(header))]["data_offsets"]
    kinds = {"F32": "<f4", "F16": "<f2", "U8": "u1", "I64": "<i8"}
    with np.errstate(all="ignore"):
        body[start : stop - stop % 4 + start % 4] = np.full(
            (stop - start) // 4, number(rng), "<f4"
        ).tobytes()[: stop - start]
    tensors = {
        name: np.frombuffer(bytes(body[slice(*e["data_offsets"])]), kinds[e["dtype"]])
        for name, e in header.items()
        if e["dtype"] in kinds
    }
    about["steps_done"] = rng.choice((about["steps_done"], str(integer(rng)), text(rng)))
    if NOTES in about:
        about[NOTES] = json.dumps(change_json(json.loads(about[NOTES]), rng))
    about["checksum"] = str(tensors_checksum(tensors, about))
    changed = json.dumps({"__metadata__": about, **header}).encode()
    changed += b" " * (-len(changed) % 8)
    return struct.pack("<Q", len(changed)) + changed + bytes(body)


@functools.cache
def _opened(folder: Path) -> TrainingSession:
    return TrainingSession(folder, threads=1)


def use_checkpoint(folder: Path, made: Path) -> bool:
    """Resume from it; a refusal leaves the session as it was."""
    path, name = folder / CHECKPOINT, (folder / "name.txt").read_text()
    session = _opened(made / name)
    session.resume(made / f"{name}.safetensors")
    before = {name: array.copy() for name, array in session._persistent.items()}
    try:
        session.resume(path)
    except bnnopt.errors.ArtifactError:
        for name, array in session._persistent.items():
            assert np.array_equal(array, before[name], equal_nan=True), f"{name} has changed"
        raise
    session.fit(seeds.training_data(session), epochs=2)
    return use_session(session)


# Data ---------------------------------------------------------------------------------------------

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 2, 6, 6), np.uint8)
ROWS = np.random.default_rng(0).standard_normal((6, 6)).astype(np.float32)
CLASSES = np.array([0, 1, 2, 0, 1, 2])


def make_data(rng: random.Random, folder: Path, _: Path) -> None:
    """A file of samples and labels of a kind that `bnnopt train` takes, changed."""
    kind, x = rng.randrange(6), rng.choice((IMAGES, ROWS))
    if kind < 2:
        path = folder / "d.npz"
        save = np.savez if kind else np.savez_compressed
        save(path, x=_other_array(x, rng), y=_other_array(CLASSES, rng))
    elif kind == 2:
        path = folder / "x.npy"
        np.save(path, _other_array(x, rng))
        np.save(folder / "y.npy", _other_array(CLASSES, rng))
    elif kind == 3:
        path = folder / "train-images-idx3-ubyte"
        shape = IMAGES.shape
        path.write_bytes(struct.pack(">BBBB4i", 0, 0, 8, 4, *shape) + IMAGES.tobytes())
        labels = struct.pack(">BBBBi", 0, 0, 8, 1, 6) + CLASSES.astype("u1").tobytes()
        (folder / "train-labels-idx1-ubyte").write_bytes(labels)
    elif kind == 4:
        path = folder / rng.choice(("d.csv", "d.tsv", "d.txt"))
        lines = [[*map(str, row), str(label)] for row, label in zip(ROWS, CLASSES, strict=True)]
        cells = rng.choice(lines)
        cells[rng.randrange(7)] = rng.choice((text(rng), "1e999", "nan", "9" * 5000, '"', "0x1"))
        delimiter = {"csv": ",", "tsv": "\t", "txt": " "}[path.name[2:]]
        path.write_text("\n".join(delimiter.join(row) for row in lines), errors="replace")
    else:
        path = folder / "data_batch_1.bin"
        path.write_bytes(bytes(rng.randrange(256) for _ in range(rng.choice((3073, 6146, 3074)))))
    if rng.random() < 0.6:
        path.write_bytes(change_bytes(path.read_bytes(), rng))


def _other_array(array: np.ndarray, rng: random.Random) -> np.ndarray:
    """Sometimes of another type, length or shape, or with other numbers in it."""
    kind = rng.randrange(10)
    with np.errstate(all="ignore"):
        if kind == 0:
            return array.astype(rng.choice(("f2", "f8", "i1", "u8", "c8", "?", "U3", ">i4", "S2")))
        if kind == 1:
            return array[: rng.randrange(len(array) + 1)]
        if kind == 2:
            return array.reshape(rng.choice(((-1,), (1, -1), (-1, 1, 2), (2, -1))))
        if kind == 3:
            changed = array.astype(np.float64)
            changed.flat[rng.randrange(array.size)] = number(rng)
            return changed.astype(array.dtype)
        if kind == 4:
            changed = array.astype(np.int64)
            changed.flat[rng.randrange(array.size)] = integer(rng)
            return changed
    return array


def use_data(folder: Path, made: Path) -> bool:
    """Train an epoch on it."""
    files = sorted(folder.iterdir())
    whole = len(files) > 1 or files[0].suffix == ".bin"
    ran = False
    for name in ("binary-o1", "dense-o2"):
        session = _opened(made / name)
        session.resume(made / f"{name}.safetensors")
        shape = next(iter(session.inputs.values())).shape_at(1)[1:]
        try:
            session.fit(open_data(folder if whole else files[0], shape), epochs=1)
            ran = True
        except bnnopt.errors.BnnoptError:
            if name == "dense-o2" and not ran:
                raise
    return ran


def make_batch(rng: random.Random, folder: Path, _: Path) -> None:
    """What is handed to `step`, as numbers of `use_batch`."""
    (folder / "seed.txt").write_text(str(rng.getrandbits(48)))


def use_batch(folder: Path, made: Path) -> bool:
    """Steps, with arrays that are not as they should be; a refusal changes nothing."""
    rng = random.Random((folder / "seed.txt").read_text())
    name = rng.choice(list(seeds.FOLDERS))
    session = _opened(made / name)
    session.resume(made / f"{name}.safetensors")
    x, y = seeds.batch(session)
    for key in x:
        x[key] = _other_batch(x[key], rng)
    if rng.random() < 0.5:
        y = _other_batch(y, rng)
    if rng.random() < 0.1:
        x = rng.choice((None, {}, {"nothing": 1}, [], "x", next(iter(x.values())), {1: 2}))
    rate = rng.choice((None, None, 0.01, number(rng), integer(rng), text(rng), 10**400, [1], True))
    before = {name: array.copy() for name, array in session._persistent.items()}
    try:
        session.step(x, y, lr=rate)
    except bnnopt.errors.UsageError:
        for name, array in session._persistent.items():
            assert np.array_equal(array, before[name]), f"{name} has changed"
        raise
    return use_session(session)


def _other_batch(array: Any, rng: random.Random) -> Any:
    kind = rng.randrange(9)
    if not isinstance(array, np.ndarray) or kind == 0:
        return rng.choice((None, 1.5, "text", [[1], [1, 2]], object(), np.array(None), b"", {}))
    if kind == 1:
        return array[tuple(slice(rng.choice((None, 1, 0))) for _ in array.shape)]
    if kind == 2:
        return np.concatenate([array, array])
    if kind == 3:
        return array.tolist()
    if kind == 4:
        return np.asfortranarray(array)[..., ::-1]
    if kind == 5:
        return np.ma.masked_array(array, array > 0)
    return _other_array(array, rng)


# Files --------------------------------------------------------------------------------------------


def _rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    fields = change(json.loads(path.read_text()))
    path.write_text(json.dumps(fields), errors="surrogatepass")


def _replace(path: Path, rng: random.Random) -> None:
    """No file any more, but something else under its name, or nothing."""
    path.unlink()
    kind = rng.randrange(5)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        path.symlink_to(rng.choice(("/dev/zero", "/dev/stdin", "/nowhere", path.name)))
    elif kind == 3:
        path.write_bytes(b"")


def _sign(folder: Path) -> None:
    """Put the checksums into ``artifact.json`` that belong to the files as they are now."""
    path = folder / "artifact.json"
    try:
        about = json.loads(path.read_bytes())
        version = about.pop("format")
        about.pop("checksum", None)
        for name in about["files"]:
            if (folder / name).is_file():
                about["files"][name] = file_checksum(folder / name)
        about |= {"checksum": fields_checksum(about), "format": version}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return
    path.write_text(json.dumps(about))


TARGETS: Mapping[str, Target] = {
    "model": Target(make_model, use_model, 8),
    "artifacts": Target(make_artifacts, use_model, 3),
    "folder": Target(make_folder, use_folder, 40),
    "checkpoint": Target(make_checkpoint, use_checkpoint, 16),
    "data": Target(make_data, use_data, 15),
    "batch": Target(make_batch, use_batch, 14),
    "command": Target(make_command, use_command, 4),
}
