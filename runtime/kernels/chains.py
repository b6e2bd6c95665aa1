"""The operators that follow each other on the same channels, by the name of what does them at once.

Apart from the numpy kernels, which a session loads only where it needs them.
"""

from __future__ import annotations

from typing import NamedTuple

OF_WINDOW = ("kernel_shape", "strides", "pads", "dilations")  # a pooling has them as `pool_...`


class Chain(NamedTuple):
    """The operators that follow each other, a PackedMaxPool between them if it pools."""

    product: str
    pools: bool
    norm: str


CHAINS: dict[str, Chain] = {
    product + "Pool" * pools + norm: Chain(product, pools, norm)
    for product in ("BinaryConv", "RealConv")
    for pools in (False, True)
    for norm in ("BatchNormalizationSigns", "L1BatchNormalizationSigns")
}
GRADIENTS: dict[str, str] = {
    f"{product}NormConvWeightGrad": product
    for product in ("BinaryConvInputGrad", "BinaryConvInputGradInt8")
}
