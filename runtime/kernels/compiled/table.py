"""Which kernel a step gets, and the scratch memory that it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bnnopt.runtime.format import Attribute
from bnnopt.runtime.kernels.compiled.binary_products import COMPILED_PRODUCTS
from bnnopt.runtime.kernels.compiled.binary_products import scratch_bytes as product_scratch_bytes
from bnnopt.runtime.kernels.compiled.bitmap import COMPILED_BITMAP
from bnnopt.runtime.kernels.compiled.bitmap import scratch_bytes as bitmap_scratch_bytes
from bnnopt.runtime.kernels.compiled.calls import CompiledKernel
from bnnopt.runtime.kernels.compiled.convolution import COMPILED_CONVOLUTION
from bnnopt.runtime.kernels.compiled.convolution import scratch_bytes as convolution_scratch_bytes
from bnnopt.runtime.kernels.compiled.elementwise import COMPILED_ELEMENTWISE
from bnnopt.runtime.kernels.compiled.linear import COMPILED_DENSE
from bnnopt.runtime.kernels.compiled.linear import scratch_bytes as dense_scratch_bytes
from bnnopt.runtime.kernels.compiled.normalization import COMPILED_NORMALIZATION
from bnnopt.runtime.kernels.compiled.packing import COMPILED_PACKING
from bnnopt.runtime.kernels.compiled.pooling import COMPILED_PLANES
from bnnopt.runtime.kernels.compiled.updates import COMPILED_UPDATES
from bnnopt.runtime.kernels.compiled.updates import scratch_bytes as update_scratch_bytes
from bnnopt.runtime.library import MAX_THREADS

Shape = Sequence[int]


COMPILED: dict[str, CompiledKernel] = {
    **COMPILED_BITMAP,
    **COMPILED_CONVOLUTION,
    **COMPILED_DENSE,
    **COMPILED_ELEMENTWISE,
    **COMPILED_PRODUCTS,
    **COMPILED_UPDATES,
}

# Kernels whose C calls follow from shapes, attributes and addresses alone, never from values: they
# are prepared once and repeated. Others read a learning rate, a bound or an index first.
REPEATABLE = frozenset(
    {*COMPILED_NORMALIZATION, *COMPILED_PACKING, *COMPILED_PLANES, *COMPILED_PRODUCTS}
    | {"Binarize", "Cast", "ClipGrad", "GlobalAveragePool", "Relu", "ReluGrad"}
) - {"MaxPoolGrad"}


def scratch_bytes(
    operator: str,
    inputs: Sequence[Shape],
    outputs: Sequence[Shape],
    attributes: Mapping[str, Attribute],
    overwritten_bytes: int = 0,
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
    overwritten_bytes : int
        Of the input that the first output is written over; 0 if it has memory of its own.
    """
    if operator in COMPILED_BITMAP:
        return bitmap_scratch_bytes(operator, inputs, outputs, attributes)
    if operator in COMPILED_PRODUCTS:
        return product_scratch_bytes(
            operator, inputs, outputs, attributes, MAX_THREADS, overwritten_bytes
        )
    if operator in COMPILED_UPDATES:
        return update_scratch_bytes(operator, inputs, attributes, MAX_THREADS)
    if operator in COMPILED_DENSE:
        return dense_scratch_bytes(inputs[0])
    if operator in COMPILED_CONVOLUTION:
        return convolution_scratch_bytes(operator, inputs, outputs, attributes, MAX_THREADS) or 0
    return 0
