"""What is known of operators: complete, of operators that exist, and of one meaning."""

from __future__ import annotations

import dataclasses

import onnx
import pytest

from bnnopt.ops import OPERATORS, Form, Traits, in_form
from bnnopt.ops.traits import having
from bnnopt.plan import check
from bnnopt.runtime.kernels.compiled.table import COMPILED
from bnnopt.runtime.kernels.reference.table import KERNELS

TRAITS = [field.name for field in dataclasses.fields(Traits)]


@pytest.mark.parametrize("trait", TRAITS)
def test_every_trait_is_of_operators_that_exist(trait: str) -> None:
    known = {*OPERATORS, *(schema.name for schema in onnx.defs.get_all_schemas())}
    assert having(trait), "a trait that no operator has says nothing"
    assert having(trait) <= known


def test_the_plan_and_the_device_agree_on_what_grows() -> None:
    assert having("grows") == {name for name, kernel in COMPILED.items() if kernel.grows}


def test_what_may_be_overwritten_is_what_the_checker_allows() -> None:
    assert having("in_place") <= check._MAY_OVERWRITE


def test_what_is_computed_twice_has_a_kernel() -> None:
    assert having("cheap") & set(OPERATORS) <= set(KERNELS)


def test_a_form_is_found_by_its_family_and_nothing_else() -> None:
    for name, operator in OPERATORS.items():
        assert in_form(operator.base, operator.form) == name
    assert in_form("AdamStep", Form.SIGNS | Form.HALF) == "SignHalfAdamStep"
    assert in_form("BinaryConvAdamStep", Form.FUSED | Form.POW2) == "BinaryConvPow2AdamStep"
    assert in_form("BinaryGemmBopStep", Form.FUSED | Form.INT8) == "BinaryGemmInt8BopStep"
    assert in_form("BopStep", Form.SIGNS) is None
    assert in_form("ConvWeightGrad", Form.POW2) is None
