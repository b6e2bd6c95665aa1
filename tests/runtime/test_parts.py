"""Numpy kernels that run part by part: the same results, in little memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from bnnopt.passes import PASSES
from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled import calls
from bnnopt.runtime.kernels.reference import parts, run
from bnnopt.runtime.kernels.reference.parts import Axes, Part
from bnnopt.runtime.kernels.reference.run import run_numpy
from bnnopt.runtime.kernels.reference.table import KERNELS
from bnnopt.runtime.kernels.reference.updates import FUSED
from tests.graphs import assert_bit_equal, run_native
from tests.ops.cases import CASES
from tests.ops.harness import rounded
from tests.passes.networks import small
from tests.runtime.test_standard_kernels import CASES as STANDARD_CASES

Call = tuple[Sequence[Array | None], Mapping[str, Any]]
OF_REALS = {name for name in FUSED if name.startswith("Conv")}  # their case has two groups
IN_PARTS = sorted(
    {name for name, row in KERNELS.items() if not isinstance(row.how, str)} - OF_REALS
)
SUMS = 1e-5  # relative: a matrix product of other sizes adds in another order


def calls_of(operator: str) -> list[Call]:
    ours = [(c.inputs, rounded(c.attributes)) for c in CASES if c.operator == operator]
    standard = [(c.inputs, c.attributes) for c in STANDARD_CASES if c.op == operator]
    return [*ours, *standard]


def axes_of(operator: str) -> Axes:
    how = KERNELS[operator].how
    return how if isinstance(how, Axes) else Axes("", "")


def whole(operator: str, call: Call) -> list[Array]:
    inputs, attributes = call
    with np.errstate(all="ignore"):
        results = KERNELS[operator](*inputs, **attributes)
    return list(results) if isinstance(results, tuple) else [results]


def assert_the_same(operator: str, call: Call) -> None:
    expected = whole(operator, call)
    outputs: list[Array | None] = [np.zeros_like(array) for array in expected]
    run_numpy(operator, call[0], outputs, call[1])
    for found, array in zip(outputs, expected, strict=True):
        assert found is not None
        if array.dtype.kind == "f" and (operator in FUSED or "1" in axes_of(operator).inputs):
            scale = float(np.abs(array).max(initial=0))
            np.testing.assert_allclose(found, array, rtol=SUMS, atol=SUMS * scale)
        else:
            np.testing.assert_array_equal(found, array)


@pytest.fixture
def n_runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Parts as small as they get; the operators whose kernels ran, once for each part."""
    monkeypatch.setattr(parts, "PART_ELEMENTS", 1)
    names: list[str] = []

    def counted(operator: str) -> Any:
        kernel = KERNELS[operator]
        return kernel._replace(
            function=lambda *a, **k: (names.append(operator), kernel(*a, **k))[1]
        )

    monkeypatch.setattr(run, "KERNELS", {name: counted(name) for name in KERNELS})
    return names


@pytest.mark.parametrize("operator", IN_PARTS)
def test_part_by_part_is_the_same(operator: str, n_runs: list[str]) -> None:
    cases = calls_of(operator)
    for call in cases:
        assert_the_same(operator, call)
    assert len(n_runs) > len(cases)


def test_another_axis_or_stream_is_noticed(
    n_runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = KERNELS["PoolIndexUnpack"]._replace(how=Axes("0", "0"))
    monkeypatch.setitem(run.KERNELS, "PoolIndexUnpack", row)  # its indices count all samples
    with pytest.raises(AssertionError):
        [assert_the_same("PoolIndexUnpack", call) for call in calls_of("PoolIndexUnpack")]
    monkeypatch.setattr(Part, "attributes", lambda part, attributes, outputs: attributes)
    for operator in ("Dropout", "HalfAdamStep", "BatchNormalizationSigns"):
        with pytest.raises((AssertionError, ValueError)):
            [assert_the_same(operator, call) for call in calls_of(operator)]


def test_a_gradient_may_lie_over_the_smaller_one_that_it_reads(n_runs: list[str]) -> None:
    random = np.random.default_rng(0)
    dy = random.standard_normal((5, 3, 4, 4)).astype(np.float32)
    w = random.integers(0, 256, (3, 5), np.uint8)  # 4 channels of 3 x 3, in 36 bits
    window = {"strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1], "output_padding": [0, 0]}
    options = {"input_shape": [6, 6], "w_shape": [4, 3, 3], "group": 1, **window}
    (expected,) = whole("BinaryConvInputGrad", ([dy, w], options))
    dx = np.empty_like(expected)
    shared = dx.reshape(-1)[: dy.size].reshape(dy.shape)
    shared[...] = dy
    run_numpy("BinaryConvInputGrad", [shared, w], [dx], options)
    np.testing.assert_array_equal(dx, expected)
    assert len(n_runs) == len(dy)


@pytest.mark.parametrize("name", ["binary", "residual", "float"])
def test_lossless_passes_are_so_on_numpy_alone(
    name: str, n_runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "library", lambda: None)
    net, lossless = small(name), [p for p in PASSES if p.lossless]
    kernels = net.with_passes(*(p.name for p in lossless if p.maps_kernels))
    rewritten = net.with_passes(*(p.name for p in lossless))
    assert_bit_equal(run_native(net, rewritten), run_native(net, kernels))
    assert "BinaryConv" in n_runs or name == "float"


def test_sums_do_not_depend_on_the_type_of_the_map() -> None:
    """Batch norm of int16 and of the same in float32: the same bits, as the levels promise."""
    random = np.random.default_rng(0)
    x = random.integers(-300, 300, (8, 24, 40, 40)).astype(np.int16)
    channels = [random.standard_normal(24).astype(np.float32) for _ in range(4)]
    found = []
    for given in (x, x.astype(np.float32)):
        outputs = [np.empty(x.shape, np.float32), *(np.empty(24, np.float32) for _ in range(4))]
        options = {"epsilon": 1e-5, "momentum": 0.9}
        run_numpy("BatchNormalizationTraining", [given, *channels], outputs, options)
        found.append([array.tobytes() for array in outputs])
    assert found[0] == found[1]


def peak_bytes(operator: str, call: Call, outputs: list[Array | None]) -> int:
    tracemalloc.start()
    try:
        run_numpy(operator, *call[:1], outputs, call[1])
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def large(operator: str) -> tuple[Call, list[Array | None]]:
    """A step whose result has 16 MiB."""
    w, x = np.ones((1024, 4096), np.float32), np.ones((64, 64, 32, 32), np.float32)
    per_channel = [np.ones(64, np.float32) for _ in range(4)]
    number = np.array(1)
    return {
        "AdamStep": (
            ([w, w, w, w, np.float32(0.1), number], {"beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8}),
            [np.empty_like(w) for _ in range(3)],
        ),
        "BatchNormalizationTraining": (
            ([x, *per_channel], {"epsilon": 1e-5, "momentum": 0.9}),
            [np.empty_like(x), *(np.empty(64, np.float32) for _ in range(4))],
        ),
        "BinaryGemmWeightGrad": (
            ([np.zeros((8, 512), np.uint8), np.ones((8, 1024), np.float32)], {"x_shape": [4096]}),
            [np.empty_like(w)],
        ),
        "MaskedGrad": (
            ([x, np.ones((64, 8192), np.uint8)], {"shape": [64, 32, 32]}),
            [np.empty_like(x)],
        ),
    }[operator]


@pytest.mark.parametrize(
    "operator", ["AdamStep", "BatchNormalizationTraining", "BinaryGemmWeightGrad", "MaskedGrad"]
)
def test_a_step_allocates_little(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    in_parts = peak_bytes(operator, *large(operator))
    monkeypatch.setattr(parts, "PART_ELEMENTS", 1 << 30)
    at_once = peak_bytes(operator, *large(operator))
    assert in_parts < 8 << 20
    assert at_once >= 16 << 20  # the control
