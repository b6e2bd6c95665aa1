"""Which kernel a step gets, and the scratch memory that it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bnnopt.runtime.format import Attribute
from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled import Arrays, Attributes, CompiledKernel
from bnnopt.runtime.kernels.compiled_elementwise import COMPILED_ELEMENTWISE
from bnnopt.runtime.kernels.compiled_products import COMPILED_PRODUCTS
from bnnopt.runtime.kernels.compiled_products import scratch_bytes as product_scratch_bytes
from bnnopt.runtime.kernels.convolution import (
    conv_weight_grad_workspace_bytes,
    conv_workspace_bytes,
)
from bnnopt.runtime.kernels.table import KERNELS
from bnnopt.runtime.library import MAX_THREADS

Shape = Sequence[int]
FLOAT_BYTES = 4


def _writing(operator: str) -> CompiledKernel:
    """The numpy kernel of an operator that can write its result where it belongs."""
    kernel = KERNELS[operator]

    def run(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
        kernel(*inputs, **attributes, out=outputs[0])
        return True

    return run


# Kernels that write into the caller's memory; all others return new arrays, which are copied.
WRITING: dict[str, CompiledKernel] = {
    **COMPILED_ELEMENTWISE,
    **COMPILED_PRODUCTS,
    "Conv": _writing("Conv"),
    "ConvInputGrad": _writing("ConvInputGrad"),
    "ConvWeightGrad": _writing("ConvWeightGrad"),
}


def scratch_bytes(
    operator: str,
    inputs: Sequence[Shape],
    outputs: Sequence[Shape],
    attributes: Mapping[str, Attribute],
) -> int:
    """Bytes that the kernel of a step needs beside its inputs and outputs.

    Parameters
    ----------
    operator : str
        Name of the operator.
    inputs, outputs : sequence of shapes
        An empty shape for what is left out.
    attributes : mapping
        The step's attributes.
    """
    if operator in COMPILED_PRODUCTS:
        return product_scratch_bytes(operator, inputs, outputs, attributes, MAX_THREADS)
    group = attributes.get("group", 1)
    assert isinstance(group, int)
    if operator == "Conv":
        return conv_workspace_bytes(inputs[0], inputs[1], outputs[0], FLOAT_BYTES, group)
    if operator == "ConvInputGrad":
        return conv_workspace_bytes(outputs[0], inputs[1], inputs[0], FLOAT_BYTES, group)
    if operator == "ConvWeightGrad":
        return conv_weight_grad_workspace_bytes(
            inputs[0], outputs[0], inputs[1], FLOAT_BYTES, group
        )
    return 0
