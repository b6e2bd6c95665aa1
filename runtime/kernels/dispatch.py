"""Which kernel a step gets, and the scratch memory that it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bnnopt.runtime.format import Attribute
from bnnopt.runtime.kernels.compiled import CompiledKernel
from bnnopt.runtime.kernels.compiled_elementwise import COMPILED_ELEMENTWISE
from bnnopt.runtime.kernels.compiled_products import COMPILED_PRODUCTS
from bnnopt.runtime.kernels.compiled_products import scratch_bytes as product_scratch_bytes
from bnnopt.runtime.kernels.convolution import (
    conv_weight_grad_workspace_bytes,
    conv_workspace_bytes,
)

COMPILED: dict[str, CompiledKernel] = {**COMPILED_ELEMENTWISE, **COMPILED_PRODUCTS}

PLANNED_THREADS = 4  # a plan has scratch memory for so many; a Raspberry Pi has four cores

Shape = Sequence[int]
FLOAT_BYTES = 4


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
        return product_scratch_bytes(operator, inputs, outputs, attributes, PLANNED_THREADS)
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
