"""The text of ``bnn_model.c`` and of its header."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from bnnopt.emit.calls import Writer, comment, number, string
from bnnopt.emit.memory import Memory
from bnnopt.emit.model import COUNTER_BYTES, Model
from bnnopt.emit.text import array_definition, filled, type_of
from bnnopt.runtime.format import Program, ValueSpec

INITIAL_FILE = "bnn_state.bin"


class Source(NamedTuple):
    """A source, and what it needs and has.

    Attributes
    ----------
    text : str
    functions : set of str
        The kernels that it calls.
    const_bytes : int
        Of arrays that nothing changes.
    """

    text: str
    functions: set[str]
    const_bytes: int


def model_source(model: Model, seed: int) -> Source:
    """``bnn_model.c``; `seed` of what the memory holds while calls are noted.

    Raises
    ------
    UsageError
        If a step cannot be emitted.
    """
    memory = Memory(model.arena_bytes, model.state, model.fixed, seed)
    writer = Writer(memory)
    steps = {
        "training": writer.statements(model.training),
        "evaluation": writer.statements(model.evaluation),
    }
    bodies = {name: "\n".join(f"    {line}" for line in s.lines) for name, s in steps.items()}
    results = {
        "loss": writer.place(model.training.values[model.training.outputs[0]]),
        "finite": "\n".join(f"    {line}" for line in _finite(model, writer)),
        "prediction": writer.place(model.evaluation.values[model.evaluation.outputs[0]]),
        "output_places": "".join(
            f"{declared} = {writer.place(spec)};\n" for declared, spec in _further(model)
        ),
    }
    arrays = [
        array_definition(name, buffer.array, comment(buffer.name))
        for name, buffer in memory.used.items()
    ]
    n_bytes = sum(buffer.array.nbytes for buffer in memory.used.values())
    if not model.in_file:
        n_bytes += sum(buffer.array.nbytes for buffer in model.filled)
    text = filled(
        "bnn_model.c",
        {
            **_words(model),
            **bodies,
            **results,
            "constants": "\n".join(arrays),
            "spill": filled("spill.c", {}) if model.spill_bytes else "",
            "objects": "\n".join(writer.objects),
            "initial": "\n".join(_initial_arrays(model)),
            "reset": "\n".join(_reset(model)),
            "feed_training": "\n".join(_feeds(model, writer, model.training)),
            "feed_evaluation": "\n".join(_feeds(model, writer, model.evaluation)),
        },
    )
    return Source(text, set().union(*(s.functions for s in steps.values())), n_bytes)


def header(model: Model) -> str:
    """``bnn_model.h``."""
    arena = [
        f"#define BNN_{kind}_{parameter.name.upper()} "
        f"((void *)(bnn_arena + {parameter.spec.offset}))"
        for kind, program in (("TRAIN", model.training), ("PREDICT", model.evaluation))
        for parameter in model.parameters(program)
    ]
    sizes = {
        "BNN_ARENA_BYTES": model.arena_bytes,
        "BNN_STATE_BYTES": model.state_bytes,
        "BNN_BATCH_SIZE": model.training.batch_size,
        "BNN_PREDICT_SIZE": model.evaluation.batch_size,
        "BNN_CLASSES": model.artifact.classes,
        "BNN_OUTPUT_SIZE": _size(model.evaluation),
    }
    if model.in_file:
        arena.append(f'#define BNN_INITIAL_STATE "{INITIAL_FILE}"')
    return filled(
        "bnn_model.h",
        {
            **_words(model),
            "further_outputs": _further_outputs(model),
            "spill": filled("spill.h", {"bytes": model.spill_bytes}) if model.spill_bytes else "",
            "sizes": ",\n".join(f"    {name} = {value}" for name, value in sizes.items()),
            "places": "\n".join(arena),
            "layout": "\n".join(_layout(model)),
            "learning_rate": number(model.artifact.learning_rate),
        },
    )


def _further_outputs(model: Model) -> str:
    lines = [f"extern {declared}; /* {comment(spec.name)} */" for declared, spec in _further(model)]
    return "\n".join(["/* The others, as it leaves them. */", *lines, ""]) if lines else ""


def _size(program: Program) -> int:
    """Elements of the first output."""
    return math.prod(program.values[program.outputs[0]].shape_at(program.batch_size))


def _words(model: Model) -> Mapping[str, object]:
    about = model.artifact
    return {
        "model": comment(about.model),
        "level": about.level,
        "batch": about.batch_size,
        "optimizer": about.optimizer,
        "loss_name": about.loss,
        "train_parameters": "".join(f"{p}, " for p in _declared(model, model.training)),
        "predict_parameters": ", ".join(_declared(model, model.evaluation)),
        "output_type": type_of(model.evaluation.values[model.evaluation.outputs[0]].dtype),
        "inputs": "\n".join(f"     {line}" for line in _described(model)),
    }


def _declared(model: Model, program: Program) -> Iterator[str]:
    for parameter in model.parameters(program):
        yield f"const {type_of(parameter.spec.dtype)} *{parameter.name}"


def _described(model: Model) -> Iterator[str]:
    """Inputs and outputs with their shapes."""
    for parameter in model.parameters(model.training):
        spec = parameter.spec
        shape = list(spec.shape_at(model.training.batch_size))
        yield f"{parameter.name}: {comment(spec.name)}, {spec.dtype} {shape}"
    for i, index in enumerate(model.evaluation.outputs):
        spec = model.evaluation.values[index]
        shape = list(spec.shape_at(model.evaluation.batch_size))
        yield f"output{f' {i}' if i else ''}: {comment(spec.name)}, {spec.dtype} {shape}"


def _layout(model: Model) -> Iterator[str]:
    yield f"     {0:>10}  int64 []: steps done"
    for name, array, offset in model.state:
        yield f"     {offset:>10}  {array.dtype} {list(array.shape)}: {comment(name)}"


def _finite(model: Model, writer: Writer) -> Iterator[str]:
    """What a session looks at as well: the loss, and the running statistics."""
    program = model.training
    loss = program.values[program.outputs[0]]
    yield f'if (!are_finite({writer.place(loss)}, 1)) return failed("loss");'
    for buffer in model.state:
        if buffer.name in model.statistics:
            at, n = f"STATE({buffer.offset})", buffer.array.size
            yield f"if (!are_finite({at}, {n})) return failed({string(buffer.name)});"


def _further(model: Model) -> Iterator[tuple[str, ValueSpec]]:
    """Outputs behind the first as pointers that are declared, and their values."""
    for i, index in enumerate(model.evaluation.outputs[1:], 1):
        spec = model.evaluation.values[index]
        yield f"const {type_of(spec.dtype)} *const bnn_output_{i}", spec


def _feeds(model: Model, writer: Writer, program: Program) -> Iterator[str]:
    """Copies of what a function is given to where its program reads it."""
    for parameter in model.parameters(program):
        n_bytes = parameter.spec.n_bytes(program.batch_size)
        yield f"    feed({writer.place(parameter.spec)}, {parameter.name}, {n_bytes});"
    for role, name in (("rate", "lr"), ("step", "step")):
        for index in program.roles.get(role, ()):
            spec = program.values[index]
            yield f"    feed({writer.place(spec)}, &{name}, {spec.n_bytes(1)});"


def _initial_arrays(model: Model) -> Iterator[str]:
    for i, buffer in enumerate(() if model.in_file else model.filled):
        yield array_definition(f"initial_{i}", buffer.array, comment(buffer.name))


def _reset(model: Model) -> Iterator[str]:
    if model.steps_done and not model.in_file:
        yield f"    const int64_t done = {number(model.steps_done)};"
        yield "    memcpy(bnn_state, &done, sizeof done);"
    for i, buffer in enumerate(() if model.in_file else model.filled):
        yield f"    memcpy(STATE({buffer.offset}), initial_{i}, {buffer.array.nbytes});"


def initial_state(model: Model) -> bytes:
    """The state before the first step."""
    state = bytearray(model.state_bytes)
    state[:COUNTER_BYTES] = model.steps_done.to_bytes(COUNTER_BYTES, "little")
    for _, array, offset in model.state:
        state[offset : offset + array.nbytes] = array.tobytes()
    return bytes(state)
