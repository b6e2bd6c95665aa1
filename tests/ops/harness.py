"""One case of one operator, the ways to run it, and the comparison that all tests share."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import InlinePass

from bnnopt.ops import DOMAIN, DOMAIN_VERSION, MIN_OPSET, OPERATORS, Emitter, Form, functions_for
from bnnopt.runtime.kernels.reference.table import KERNELS

Array = NDArray[np.generic]
Attribute = int | float | str | list[int]

# Largest difference relative to the largest absolute value of the output. Operators that are not
# named agree to the last bit: they only choose, count, move or take one rounded step at a time.
# (But for the sign of a zero: onnxruntime's Where makes 0 of a chosen -0.)
FILTER_BLOCKS = [name for name in OPERATORS if name.endswith("Signs") and "ConvPool" in name]
FILTER_BLOCKS += [name for name in OPERATORS if name.endswith("NormConvWeightGrad")]
FILTER_BLOCKS += [name.replace("Pool", "") for name in FILTER_BLOCKS]
FILTER_BLOCKS += [name for name in OPERATORS if name.startswith("RealConvNormMaxPool")]
BOUNDS: dict[str, float] = {
    "BatchNormalizationGrad": 1e-5,  # sums in another order, then a difference of them
    "BatchNormalizationTraining": 1e-5,
    "BatchNormalizationSigns": 1e-5,  # of the statistics; the bits are equal
    "BatchNormalizationLevels": 1e-5,
    "BatchNormalizationSignsGrad": 1e-5,
    "L1BatchNormalizationGrad": 1e-5,
    "L1BatchNormalizationPoolGrad": 1e-4,  # a sum of which most may cancel
    "L1BatchNormalizationSigns": 1e-5,
    "L1BatchNormalizationTraining": 1e-5,
    **dict.fromkeys(FILTER_BLOCKS, 1e-5),  # of their batch norms
    "AveragePoolGrad": 1e-6,  # sums of up to nine quotients
    "BitmapConvWeightGrad": 1e-6,  # sums of some ten products in another order
    "BinaryConvInputGrad": 1e-6,  # sums of some ten terms in another order
    "BinaryConvWeightGrad": 1e-6,
    "BinaryGemmInputGrad": 1e-6,
    "BinaryGemmWeightGrad": 1e-6,
    "ConvInputGrad": 1e-6,  # sums of some ten products in another order
    "ConvTapSums": 1e-6,
    "ConvWeightGrad": 1e-6,
    "Gelu": 1e-6,  # onnxruntime's erf is one of float32
    "GeluGrad": 1e-6,
    "LayerNormalizationGrad": 1e-5,  # statistics in float64, of rows that may be far from 0
    "MaxPoolGrad": 1e-6,  # sums of up to nine terms
    "PackedMaxPoolGrad": 1e-6,
    "PReluGrad": 1e-6,  # sums in float64
    "RealConv": 1e-6,
    "SoftmaxCrossEntropy": 1e-6,
    "SoftmaxCrossEntropyGrad": 1e-6,
    "SoftmaxGrad": 1e-6,  # sums in float64
    "TanhGeluGrad": 1e-5,
    "SwishSignGrad": 1e-5,  # onnxruntime's tanh is good to 4e-7, and 1 - tanh^2 to twice that
}

# Cases whose judge is less exact than the kernel. onnxruntime adds these 640,000 terms, which all
# but cancel, one after the other: it is off by 4e-5, the kernel by 3e-6, both against float64.
CASE_BOUNDS = {"BatchNormalizationGrad-many-elements": 1e-4}


@dataclass(frozen=True)
class Case:
    """An operator, what to call it with, and what is special about that."""

    operator: str
    note: str
    inputs: tuple[Array, ...]
    attributes: Mapping[str, Attribute]

    def __str__(self) -> str:
        return f"{self.operator}-{self.note}"

    @property
    def bound(self) -> float:
        return CASE_BOUNDS.get(str(self), BOUNDS.get(self.operator, 0.0))

    @property
    def wide(self) -> Case:
        """The same in float64."""
        wide = (a.astype(np.float64) if a.dtype.kind == "f" else a for a in self.inputs)
        return Case(self.operator, self.note, tuple(wide), self.attributes)

    @functools.cached_property
    def twin(self) -> tuple[Array, ...]:
        """What the numpy kernel gives."""
        return run_twin(self)


def marked(operator: str, value: object) -> object:
    """`value` for pytest's parameters: of the products that step weights few are not slow."""
    is_one_of_many = Form.FUSED in OPERATORS[operator].form and operator.endswith("Step")
    is_slow = is_one_of_many and not operator.endswith(("GemmHalfAdamStep", "ConvSignByteAdamStep"))
    return pytest.param(value, marks=pytest.mark.slow) if is_slow else value


def build(case: Case, opset: int = MIN_OPSET) -> ir.Model:
    """A model of the one operator, with the functions that it needs."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": opset, DOMAIN: DOMAIN_VERSION}, name="g")
    for i, array in enumerate(case.inputs):
        dtype = ir.DataType.from_numpy(array.dtype)
        graph.inputs.append(ir.val(f"input{i}", dtype=dtype, shape=array.shape))
    emit = Emitter(graph, "forward")
    n_outputs = len(OPERATORS[case.operator].function(opset).output)
    emit(case.operator, *graph.inputs, name="y", n_outputs=n_outputs, **case.attributes)
    graph.extend(emit.nodes)
    graph.outputs.extend(emit.nodes[0].outputs)
    return ir.Model(graph, ir_version=10, functions=functions_for(emit.nodes, opset))


def inlined(model: ir.Model) -> ir.Model:
    """The model in standard operators alone."""
    return InlinePass()(model).model


def feeds(case: Case) -> dict[str, Array]:
    return {f"input{i}": array for i, array in enumerate(case.inputs)}


def run_twin(case: Case) -> tuple[Array, ...]:
    result = KERNELS[case.operator](*case.inputs, **rounded(case.attributes))
    return result if isinstance(result, tuple) else (result,)


def run_reference(proto: onnx.ModelProto, case: Case) -> tuple[Array, ...]:
    with np.errstate(all="ignore"):
        results = ReferenceEvaluator(proto).run(None, feeds(case))
    return tuple(np.asarray(result) for result in results)


def run_onnxruntime(proto: onnx.ModelProto, case: Case) -> tuple[Array, ...]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    content = proto.SerializeToString()
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return tuple(session.run(None, feeds(case)))


def rounded(attributes: Mapping[str, Attribute]) -> dict[str, Attribute]:
    """The attributes as a model holds them: floats in float32."""
    return {
        name: float(np.float32(value)) if isinstance(value, float) else value
        for name, value in attributes.items()
    }


def assert_agree(got: Sequence[Array], want: Sequence[Array], bound: float) -> None:
    """Same number of arrays, dtypes, shapes and bits; floats within `bound` of the largest."""
    for g, w in zip(got, want, strict=True):
        assert (g.dtype, g.shape) == (w.dtype, w.shape)
        if bound == 0 or g.dtype.kind != "f":
            np.testing.assert_array_equal(g, w, strict=True)
            continue
        finite = np.abs(w[np.isfinite(w)])
        scale = float(finite.max()) if finite.size else 0.0
        np.testing.assert_allclose(g, w, rtol=0, atol=bound * scale)


def assert_typed(model: ir.Model, results: Sequence[Array]) -> None:
    """The model's outputs are declared with the dtypes and shapes of `results`."""
    declared = [(value.dtype, tuple(value.shape.numpy())) for value in model.graph.outputs]
    assert declared == [(ir.DataType.from_numpy(r.dtype), r.shape) for r in results]


@functools.cache
def newest_opset() -> int:
    """The newest opset that the installed onnxruntime loads."""
    for opset in range(onnx.defs.onnx_opset_version(), MIN_OPSET, -1):
        text = f'<ir_version: 10, opset_import: ["": {opset}]> g (float[2] x) => (float[2] y)'
        model = onnx.parser.parse_model(text + " { y = Relu (x) }")
        try:
            ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        except Exception:  # onnxruntime's own errors have no public common class
            continue
        return opset
    return MIN_OPSET
