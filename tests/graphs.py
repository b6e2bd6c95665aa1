"""Training steps for tests: from ONNX text, the zoo or a file, and the ways to run one."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from bnnopt.artifact import make_program, portable_model
from bnnopt.autodiff import (
    TrainingOptions,
    build_evaluation,
    build_training_step,
    make_optimizer,
)
from bnnopt.autodiff.optimizers import AdamW
from bnnopt.frontend import load_forward
from bnnopt.frontend.binary_weights import fix_signs, pack_binary_weights
from bnnopt.frontend.byte_inputs import feed_bytes
from bnnopt.ops import dims, dtype, functions_for
from bnnopt.passes import PASSES, Pass, run_passes
from bnnopt.passes.infra.base import Trace
from bnnopt.passes.infra.graph_check import check_graph, interface
from bnnopt.plan import check_program, make_plan
from bnnopt.runtime.executor import Executor
from bnnopt.runtime.kernels.latents import nearest
from bnnopt.runtime.onnxruntime_backend import open_session
from bnnopt.training_step import (
    PERSISTENT,
    Role,
    TrainingStep,
    is_constant,
    latent_units,
    name_gradients,
    phase,
)
from tests.zoo import build_small

Array = NDArray[Any]
Arrays = dict[str, Array]
BATCH = 4
# The passes after which the same kernels run: all but those that map products to other ones.
SAME_KERNELS = [p.name for p in PASSES if p.lossless and not p.maps_kernels]


@dataclass(frozen=True)
class Network:
    """A built network: what a test rewrites (a fresh copy each time) and the initial weights."""

    training: ir.Model
    evaluation: ir.Model
    weights: Arrays
    batch: int

    def step(self) -> TrainingStep:
        return TrainingStep(self.training.clone())

    def evaluation_step(self) -> TrainingStep:
        return TrainingStep(self.evaluation.clone())

    def with_passes(self, *names: str) -> TrainingStep:
        """The step after the passes of these names, in their order."""
        step = self.step()
        run_passes(step, [p for p in PASSES if p.name in names])
        return step


def network_from_file(
    path: Path,
    batch: int = BATCH,
    loss: str = "cross-entropy",
    optimizer: str = "sgd",
    momentum: float = 0.0,
    keep_zero: bool = False,
    ste: Sequence[str] = (),
    fed_bytes: bool = False,
) -> Network:
    forward = load_forward(path, batch, ste, keep_zero)
    scales = feed_bytes(forward, path) if fed_bytes else ()
    rng = np.random.default_rng(2)
    scales_of = {str(v.name): rng.uniform(0.004, 0.008, dims(v)).astype(np.float32) for v in scales}
    if optimizer == "bop":
        pack_binary_weights(forward)
    if optimizer == "fixed-sign":
        fix_signs(forward)
    rule = (
        AdamW(decay=0.2) if optimizer == "adamw" else make_optimizer(optimizer, momentum=momentum)
    )
    options = TrainingOptions(loss, rule)
    training = build_training_step(forward, options, path)
    evaluation = build_evaluation(forward)
    return Network(training.model, evaluation.model, forward.weights | scales_of, batch)


def network(text: str, weights: Mapping[str, Sequence[int]] = {}, **options: Any) -> Network:
    """From ONNX text; `weights` are the shapes of the initialisers, drawn from a fixed seed."""
    with tempfile.TemporaryDirectory() as folder:
        path = write(text, weights, Path(folder))
        return network_from_file(path, **options)


def evaluation(text: str, weights: Mapping[str, Sequence[int]] = {}) -> TrainingStep:
    """The evaluation graph of ONNX text, which need not be trainable."""
    with tempfile.TemporaryDirectory() as folder:
        return build_evaluation(load_forward(write(text, weights, Path(folder)), BATCH, (), False))


def write(text: str, weights: Mapping[str, Sequence[int]], folder: Path) -> Path:
    """An ONNX file of the text, with initialisers of these shapes."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]> {text}')
    rng = np.random.default_rng(1)
    for name, shape in weights.items():
        positive = name.startswith("var")
        array = rng.uniform(0.5, 1.5, shape) if positive else rng.standard_normal(shape)
        tensor = onnx.numpy_helper.from_array(np.asarray(array, np.float32), name)
        model.graph.initializer.append(tensor)
    path = folder / "net.onnx"
    onnx.save(model, path)
    return path


def network_of(model: ir.Model, batch: int = BATCH, **options: Any) -> Network:
    """From a model in memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        ir.save(model, path)
        return network_from_file(path, batch, **options)


@functools.cache
def zoo(name: str, batch: int = BATCH, optimizer: str = "sgd") -> Network:
    return network_of(build_small(name), batch, optimizer=optimizer)


def apply(pass_: Pass, step: TrainingStep) -> tuple[int, list[tuple[str, str]]]:
    """Run a pass; the number of rewrites and what it skipped. The graph is verified, and it has
    changed if and only if there were rewrites."""
    storage = not pass_.changes_storage
    before, expected, trace = fingerprint(step), interface(step, storage), Trace()
    count = pass_.run(step, trace)
    check_graph(step, expected, storage)
    assert (fingerprint(step) != before) == (count > 0)
    return count, [(skip.node, skip.reason) for skip in trace.skipped]


def fingerprint(step: TrainingStep) -> str:
    return str(ir.to_proto(step.model.graph))


def text_of(step: TrainingStep) -> str:
    """A readable graph: one node a line, its phase, what it gives, and what it reads."""
    lines = [f"in   {v.name}: {_type(v)} {v.metadata_props['role']}" for v in step.graph.inputs]
    for node in step.graph:
        inputs = ", ".join("-" if v is None else str(v.name) for v in node.inputs)
        outputs = ", ".join(f"{v.name}: {_type(v)}" if v.name else "-" for v in node.outputs)
        extra = f"  in_place={p}" if (p := node.metadata_props.get("in_place")) else ""
        lines.append(f"{phase(node):8} {outputs} = {node.op_type}({inputs}){extra}")
    for v in step.graph.outputs:
        lines.append(f"out  {v.name} -> {v.metadata_props.get('updates', 'loss')}")
    return "\n".join(lines) + "\n"


def _type(value: ir.Value) -> str:
    return f"{dtype(value).numpy()}{list(dims(value))}"


def ops(step: TrainingStep, kind: str | None = None) -> list[str]:
    """The operators in order, of one phase or of all."""
    return [n.op_type for n in step.graph if kind is None or phase(n) == kind]


def value(step: TrainingStep, name: str) -> ir.Value:
    """The value of a name."""
    every = [*step.graph.inputs, *(o for node in step.graph for o in node.outputs)]
    return next(v for v in every if v.name == name)


def node(step: TrainingStep, op_type: str, index: int = 0) -> ir.Node:
    """The n-th node of an operator."""
    return [n for n in step.graph if n.op_type == op_type][index]


# Running ----------------------------------------------------------------------------------------


@dataclass
class Trajectory:
    """What a few steps gave: losses, gradients of each step, and the buffers at the end."""

    losses: list[Array] = field(default_factory=list)
    gradients: list[Arrays] = field(default_factory=list)
    persistent: Arrays = field(default_factory=dict)

    def flat(self) -> Arrays:
        found = {f"loss {i}": loss for i, loss in enumerate(self.losses)}
        for i, gradients in enumerate(self.gradients):
            found |= {f"gradient {i} {name}": array for name, array in gradients.items()}
        return found | {f"buffer {name}": array for name, array in self.persistent.items()}


def cosine(a: Array, b: Array) -> float:
    """In float64."""
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


def assert_bit_equal(found: Trajectory, expected: Trajectory) -> None:
    a, b = found.flat(), expected.flat()
    assert a.keys() == b.keys()
    different = [name for name in a if a[name].tobytes() != b[name].tobytes()]
    assert not different


def feeds_of(
    step: TrainingStep, number: int, batch: int | None = None, repeat: bool = False
) -> Arrays:
    """Data and labels of a batch, by input name; the rate and the number of the step."""
    rng = np.random.default_rng(5 if repeat else (5, number))
    found: Arrays = {}
    for v in step.inputs(Role.DATA, Role.LABELS):
        shape = (batch or dims(v)[0], *dims(v)[1:]) if dims(v) else ()
        if v.dtype == ir.DataType.INT64:
            found[str(v.name)] = rng.integers(0, 3, shape)
        elif v.dtype == ir.DataType.UINT8:
            found[str(v.name)] = rng.integers(0, 256, shape, np.uint8)
        else:
            found[str(v.name)] = rng.uniform(-1, 1, shape).astype(np.float32)
    for v in step.inputs(Role.RATE):
        found[str(v.name)] = np.array(0.02, np.float32)
    for v in step.inputs(Role.STEP):
        found[str(v.name)] = np.array(number, np.int64)
    return found


def initial(step: TrainingStep, weights: Mapping[str, Array]) -> Arrays:
    units = latent_units(step)
    return {
        str(v.name): nearest(weights[str(v.name)], units[str(v.name)])
        if v.name in units
        else np.array(weights[str(v.name)], dtype(v).numpy())
        if v.name in weights
        else np.zeros(dims(v), dtype(v).numpy())
        for v in step.inputs(*PERSISTENT)
    }


def constants_of(step: TrainingStep) -> Arrays:
    return {
        name: v.const_value.numpy()
        for name, v in step.graph.initializers.items()
        if is_constant(v) and v.const_value is not None
    }


def run_native(
    net: Network,
    step: TrainingStep,
    n_steps: int = 2,
    batch: int | None = None,
    repeat: bool = False,
    with_gradients: bool = True,
) -> Trajectory:
    """Some steps, on one batch if `repeat`, on the native executor; its plan is checked first."""
    step = TrainingStep(step.model.clone())
    if with_gradients:
        name_gradients(step)
    program = make_program(step, make_plan(step), net.batch)
    check_program(program)
    found = Trajectory(persistent=initial(step, net.weights))
    executor = Executor(program, found.persistent, constants_of(step))
    parameter_of = {index: name for name, index in program.gradients.items()}
    for number in range(1, n_steps + 1):
        feeds = feeds_of(step, number, batch, repeat)
        by_role = {
            role: tuple(feeds[program.values[i].name] for i in indices)
            for role, indices in program.roles.items()
        }
        seen: Arrays = {}

        def observe(spec: Any, outputs: tuple[Array, ...], seen: Arrays = seen) -> None:
            made = [i for i in spec.outputs if i >= 0]
            for index, array in zip(made, outputs, strict=True):
                if index in parameter_of:
                    seen[parameter_of[index]] = array.copy()

        results = executor.run(by_role, batch or net.batch, observe)
        found.losses.append(np.array(results[0]))
        found.gradients.append(seen)
    return found


def run_stock(
    net: Network, step: TrainingStep, n_steps: int = 2, batch: int | None = None
) -> Trajectory:
    """Some steps of the portable graph on stock onnxruntime."""
    step = name_gradients(TrainingStep(step.model.clone()))
    gradients = {name: str(v.name) for name, v in step.gradients().items()}
    for function in functions_for(step.graph, step.opset):
        step.model.functions[function.identifier()] = function
    targets = {str(output.name): str(target.name) for target, output in step.updates()}
    for v in dict.fromkeys(step.gradients().values()):
        if v not in step.graph.outputs:
            step.graph.outputs.append(v)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step.onnx"
        ir.save(portable_model(step, net.batch), path)
        session = open_session(path, threads=1)
    found = Trajectory(persistent=initial(step, net.weights))
    reads = {v.name for v in session.get_inputs()}
    names = [v.name for v in session.get_outputs()]
    for number in range(1, n_steps + 1):
        given = {**found.persistent, **feeds_of(step, number, batch)}
        results = session.run(names, {k: v for k, v in given.items() if k in reads})
        by_name = dict(zip(names, results, strict=True))
        found.losses.append(by_name[names[0]])
        found.gradients.append({p: by_name[v] for p, v in gradients.items()})
        found.persistent |= {t: by_name[o] for o, t in targets.items()}
    return found
