"""ONNX's own node tests through the compiler: value, and gradient by finite differences.

Each test is one node with inputs and right outputs. Its first float output, weighted, is the loss;
its float inputs are trained parameters (settings, such as the bounds of a Clip, are constants).
Gradients are compared beside the inputs, which often lie where a function has a kink. Left out are
roundings, whose gradient is an estimator, and dropout, which draws other numbers.

    python benchmarks/onnx_node_tests.py [--markdown] [OPERATOR ...]

Prints a line an operator, and what is refused or wrong. Exit code 1 if any is wrong.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.backend.test.loader import load_model_tests

from bnnopt.autodiff import GRADIENTS, TrainingOptions, build_training_step, make_optimizer
from bnnopt.errors import BnnoptError
from bnnopt.frontend import load_forward
from bnnopt.frontend.composed import BODIES
from bnnopt.ops.traits import having
from bnnopt.runtime.kernels.compiled.table import COMPILED
from bnnopt.runtime.kernels.reference.table import KERNELS

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.autodiff.interpreter import run

Array = NDArray[Any]
VALUE_BOUND, GRADIENT_BOUND, STEP = 1e-4, 1e-5, 1e-6
LOSS, WEIGHTED, COEFFICIENTS = "loss of the test", "weighted outputs", "coefficients"
BESIDE = 1e-3


class Test(NamedTuple):
    """One node, its inputs and its right outputs by name."""

    name: str
    model: onnx.ModelProto
    inputs: dict[str, Array]
    outputs: dict[str, Array]

    @property
    def operator(self) -> str:
        """The operator of its node."""
        return str(self.model.graph.node[0].op_type)


def tests(wanted: set[str]) -> list[Test]:
    """The node tests of these operators that have one node and tensors in and out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = load_model_tests(kind="node")
    found = []
    for case in cases:
        model, ((inputs, outputs), *_) = case.model, case.data_sets
        nodes = model.graph.node
        if len(nodes) != 1 or nodes[0].domain or nodes[0].op_type not in wanted:
            continue
        arrays = [*inputs, *outputs]
        if all(isinstance(array, (np.ndarray, np.generic)) for array in arrays):
            names = [[v.name for v in values] for values in (model.graph.input, model.graph.output)]
            pairs = [dict(zip(n, map(np.asarray, a), strict=True))
                     for n, a in zip(names, (inputs, outputs), strict=True)]  # fmt: skip
            found.append(Test(case.name, model, *pairs))
    return found


def network(test: Test) -> onnx.ModelProto:
    """The node with its inputs as weights and constants, and sum(y c) as the loss."""
    name = next(n for n, a in test.outputs.items() if a.dtype == np.float32)
    y = test.outputs[name]
    opset = next(e.version for e in test.model.opset_import if e.domain in ("", "ai.onnx"))
    nodes = [*test.model.graph.node, onnx.helper.make_node("Mul", [name, COEFFICIENTS], [WEIGHTED])]
    if y.ndim:
        nodes.append(onnx.helper.make_node("ReduceSum", [WEIGHTED], [LOSS], keepdims=0))
    else:
        nodes.append(onnx.helper.make_node("Identity", [WEIGHTED], [LOSS]))
    c = onnx.helper.make_tensor_value_info(COEFFICIENTS, onnx.TensorProto.FLOAT, y.shape or (1,))
    loss = onnx.helper.make_tensor_value_info(LOSS, onnx.TensorProto.FLOAT, [])
    tensors = [onnx.numpy_helper.from_array(a, n) for n, a in test.inputs.items()]
    graph = onnx.helper.make_graph(nodes, "node", [c], [loss], tensors)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])


def verdict(test: Test, folder: Path, n_elements: int) -> str:
    """``right``, ``refused: why`` or ``wrong: what``; empty where there is nothing to train."""
    kinds = [a.dtype for a in test.outputs.values()]
    arrays = [*test.inputs.values(), *test.outputs.values()]
    floats = [a for a in test.inputs.values() if a.dtype == np.float32]
    if np.float32 not in kinds or not floats or not all(a.size for a in arrays):
        return ""
    try:
        path = folder / "node.onnx"
        onnx.save(network(test), path)
        forward = load_forward(path, None)
        if not forward.weights:
            return ""
        options = TrainingOptions("none", make_optimizer("sgd", momentum=0))
        step = build_training_step(forward, options, path)
    except (BnnoptError, onnx.checker.ValidationError) as error:
        return f"refused: {str(error).split(': ', 1)[-1]}"
    y = next(a for a in test.outputs.values() if a.dtype == np.float32)
    c = np.random.default_rng(0).standard_normal(y.shape or (1,)).astype(np.float32)
    feeds: dict[str, Any] = {COEFFICIENTS: c, "learning_rate": np.float32(0), "step": np.int64(1)}
    right = float((y.astype(np.float64) * c).sum())
    with np.errstate(all="ignore"):
        values = run(step.graph, {**feeds, **forward.weights})
        got = float(np.asarray(values[str(step.loss.name)]).reshape(-1)[0])
        if not np.isclose(got, right, rtol=VALUE_BOUND, atol=VALUE_BOUND, equal_nan=True):
            return f"wrong: value {got:.6g}, right {right:.6g}"
        beside = {
            name: np.asarray(a + BESIDE * np.random.default_rng(1).standard_normal(a.shape))
            for name, a in forward.weights.items()
        }
        values = run(step.graph, {**feeds, **beside})
        if not all(np.isfinite(values[str(v.name)]).all() for v in step.gradients().values()):
            return "refused: a gradient is not finite, so a session undoes the step"
        for name, value in step.gradients().items():
            found = _difference(
                forward.graph, feeds, beside, name, values[str(value.name)], n_elements
            )
            if found:
                return f"wrong: gradient of {name}: {found}"
    return "right"


def _difference(
    graph: Any,
    feeds: Mapping[str, Any],
    weights: Mapping[str, Array],
    name: str,
    got: Array,
    n_elements: int,
) -> str:
    """What central differences in float64 say against a gradient, if anything."""
    wide = weights[name].astype(np.float64)
    indices = list(np.ndindex(wide.shape))
    for index in indices[:: -(-len(indices) // n_elements)]:
        sides = []
        for sign in (1, -1):
            moved = wide.copy()
            moved[index] += sign * STEP
            values = run(graph, {**feeds, **weights, name: moved})
            sides.append(float(np.asarray(values[str(graph.outputs[0].name)]).reshape(-1)[0]))
        slope = (sides[0] - sides[1]) / (2 * STEP)
        scale = max(1.0, abs(slope))
        if np.isfinite(slope) and not abs(got[index] - slope) <= GRADIENT_BOUND * scale:
            return f"{got[index]:.6g} at {index}, by differences {slope:.6g}"
    return ""


def defined_by_functions() -> set[str]:
    """The operators of ONNX that are written out by their definition."""
    schemas: list[Any] = [s for s in onnx.defs.get_all_schemas() if s.name not in KERNELS]
    kinds = ("has_function", "has_context_dependent_function")
    return {s.name for s in schemas if not s.domain and any(getattr(s, kind) for kind in kinds)}


def how(operator: str) -> str:
    """How an operator is trained, and what runs it: two cells of the table."""
    is_known = operator in GRADIENTS or operator not in {*BODIES, *defined_by_functions()}
    rule = "rule" if is_known else "written out"
    kernel = "C" if operator in COMPILED else "numpy" if operator in KERNELS else "of its parts"
    return f"{rule} | {'of its parts' if rule == 'written out' else kernel}"


def main() -> int:
    """Run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("operators", nargs="*", help="some operators; all that are trained if none")
    parser.add_argument("--elements", type=int, default=400, help="differentiated, of each input")
    parser.add_argument("--markdown", action="store_true", help="a table for the documentation")
    options = parser.parse_args()
    rows: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    trained = {*GRADIENTS, *BODIES, *defined_by_functions()} - having("rounds") - {"Dropout"}
    with tempfile.TemporaryDirectory() as folder:
        for test in tests(set(options.operators) or trained):
            found = verdict(test, Path(folder), options.elements)
            if found:
                kind, _, why = found.partition(": ")
                rows[test.operator][kind].append(f"{test.name}: {why}")
    print("| operator | gradient | kernel | tests | right | refused | wrong |")
    print("|---|---|---|---|---|---|---|")
    totals = dict.fromkeys(("right", "refused", "wrong"), 0)
    for operator, by_kind in sorted(rows.items()):
        counts = {kind: len(by_kind[kind]) for kind in totals}
        totals = {kind: totals[kind] + n for kind, n in counts.items()}
        print(f"| {operator} | {how(operator)} | {_cells(counts)} |")
        for kind in () if options.markdown else ("refused", "wrong"):
            print(*(f"    {kind} {why}" for why in by_kind[kind]), sep="\n")
    print(f"| all {len(rows)} | | | {_cells(totals)} |")
    return int(totals["wrong"] > 0)


def _cells(counts: Mapping[str, int]) -> str:
    return " | ".join(map(str, (sum(counts.values()), *counts.values())))


if __name__ == "__main__":
    sys.exit(main())
