"""Liveness, sizes, aliasing and classes of values: pure functions of a training step."""

from bnnopt.analysis.batch import one_a_sample
from bnnopt.analysis.classes import VariableClass, classify
from bnnopt.analysis.density import expected_density, measured_density
from bnnopt.analysis.paper_rule import (
    HALF,
    PROPOSED,
    STANDARD,
    PaperClass,
    Scheme,
    paper_rule,
    paper_rule_bytes,
)
from bnnopt.analysis.storage import (
    Buffer,
    buffers,
    in_place_pairs,
    is_from_forward,
    is_persistent,
    kept_values,
    late_readers,
    roots,
    saved_bytes,
    shown_by,
    size_bytes,
    stored_dtype,
)
from bnnopt.analysis.values import (
    ScaledSigns,
    fan_in,
    integer_bound,
    is_binary,
    is_binary_product,
    real_weights,
    scaled_signs,
)

__all__ = [
    "HALF",
    "PROPOSED",
    "STANDARD",
    "Buffer",
    "PaperClass",
    "ScaledSigns",
    "Scheme",
    "VariableClass",
    "buffers",
    "classify",
    "expected_density",
    "fan_in",
    "in_place_pairs",
    "integer_bound",
    "is_binary",
    "is_binary_product",
    "is_from_forward",
    "is_persistent",
    "kept_values",
    "late_readers",
    "measured_density",
    "one_a_sample",
    "paper_rule",
    "paper_rule_bytes",
    "real_weights",
    "roots",
    "saved_bytes",
    "scaled_signs",
    "shown_by",
    "size_bytes",
    "stored_dtype",
]
