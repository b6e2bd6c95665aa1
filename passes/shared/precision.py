"""Operators that take a map, or a weight, in more than one type."""

from __future__ import annotations

import onnx_ir as ir

# What reads x, the input of this index, in float32, float16 or int16 and computes in float32.
READS_X = {
    **dict.fromkeys(("BatchNormalizationTraining", "L1BatchNormalizationTraining"), 0),
    "BatchNormalizationApply": 0,
    **dict.fromkeys(("BatchNormalizationSigns", "L1BatchNormalizationSigns"), 0),
    **dict.fromkeys(("BatchNormalizationGrad", "L1BatchNormalizationGrad"), 1),
}

# What only compares x, the input of this index, with bounds.
COMPARES_X = {"ClipGrad": 1, "ReluGrad": 1}

# What takes dy in float32 or float16, sums in float32, and gives dx in dy's type.
READS_DY = {
    **dict.fromkeys(("MaskedGrad", "ClipGrad", "ReluGrad"), 0),
    **dict.fromkeys(("BatchNormalizationGrad", "L1BatchNormalizationGrad"), 0),
    **dict.fromkeys(("BatchNormalizationSignsGrad", "L1BatchNormalizationPoolGrad"), 0),
    **dict.fromkeys(("MaxPoolGrad", "PackedMaxPoolGrad"), 0),
    **dict.fromkeys(("ConvInputGrad", "BinaryConvInputGrad", "BinaryGemmInputGrad"), 0),
    "ConvTapSums": 0,
    **dict.fromkeys(("ConvWeightGrad", "BinaryConvWeightGrad", "BinaryGemmWeightGrad"), 1),
    "BitmapConvWeightGrad": 2,
    **dict.fromkeys(("BinaryConvWeightGradSigns", "BinaryGemmWeightGradSigns"), 1),
}

# What packs the bits of a weight in float32 or float16.
READS_HALVES = frozenset({"BinarizePack", "SignPack", "RangePack"})


def is_half(value: ir.Value | None) -> bool:
    """Whether the value is float16."""
    return value is not None and value.dtype == ir.DataType.FLOAT16
