"""What is around the model: an example, the build, a page, and a pool of one thread."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from bnnopt.emit.model import Model, Parameter
from bnnopt.emit.program import Source
from bnnopt.emit.text import filled, type_of

# Of a Cortex-M; change cortex-m/memory.ld for another.
FLASH_KIB, RAM_KIB, STACK_KIB = 1024, 256, 12


def project_files(model: Model, source: Source, prototypes: str) -> dict[str, str]:
    """The files beside the model and the kernels, by name."""
    words = {
        **_sizes(model, source),
        **_example(model),
        "prototypes": prototypes,
        "flash_kib": FLASH_KIB,
        "ram_kib": RAM_KIB,
        "stack_kib": STACK_KIB,
    }
    names = {
        "bnn_kernels.h": "bnn_kernels.h",
        "main.c": "main.c",
        "Makefile": "Makefile",
        "CMakeLists.txt": "CMakeLists.in",  # under its own name a wheel has none
        "README.md": "README.md",
        "kernels/bnn_serial.c": "bnn_serial.c",
        "cortex-m/start.c": "cortex-m/start.c",
        "cortex-m/memory.ld": "cortex-m/memory.ld",
    }
    return {name: filled(template, words) for name, template in names.items()}


def _sizes(model: Model, source: Source) -> Mapping[str, object]:
    return {
        "model": model.artifact.model,
        "level": model.artifact.level,
        "batch": model.artifact.batch_size,
        "arena_bytes": f"{model.arena_bytes:,}",
        "state_bytes": f"{model.state_bytes:,}",
        "const_bytes": f"{source.const_bytes:,}",
        "spill_bytes": f"{model.spill_bytes:,}",
        "sample": "\n".join(
            f"- `{parameter.name}`: {model.sample_bytes(parameter)} bytes, {parameter.spec.dtype}"
            for parameter in model.parameters(model.training)
        ),
    }


def _example(model: Model) -> Mapping[str, object]:
    """The lines of ``main.c`` that name inputs."""
    training, evaluation = (
        model.parameters(program) for program in (model.training, model.evaluation)
    )
    spec = model.evaluation.values[model.evaluation.outputs[0]]
    scored = model.artifact.classes > 0 and len(spec.shape) == 2 and spec.dtype == "float32"
    return {
        "read_training": "\n".join(_reads(model, "TRAIN", training)),
        "read_evaluation": "\n".join(_reads(model, "PREDICT", training, evaluation)),
        "train_arguments": "".join(f"BNN_TRAIN_{p.name.upper()}, " for p in training),
        "predict_arguments": ", ".join(f"BNN_PREDICT_{p.name.upper()}" for p in evaluation),
        "labels": _labels(training),
        "scored": int(scored),
    }


def _labels(parameters: list[Parameter]) -> str:
    """The type of a label; of a model that has its own loss, any."""
    return next((type_of(p.spec.dtype) for p in parameters if p.is_label), "int64_t")


def _reads(
    model: Model, kind: str, record: list[Parameter], taken: list[Parameter] | None = None
) -> Iterator[str]:
    """A statement for each part of a sample: to its place in the arena, or to the labels."""
    names = {p.name for p in (record if taken is None else taken)}
    for parameter in record:
        n_bytes = model.sample_bytes(parameter)
        place = f"BNN_{kind}_{parameter.name.upper()}" if parameter.name in names else "labels"
        yield f"        if (fread((char *){place} + i * {n_bytes}, {n_bytes}, 1, file) != 1) break;"
