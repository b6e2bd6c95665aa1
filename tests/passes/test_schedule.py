"""schedule: another order, where that has a lower peak."""

from __future__ import annotations

import pytest

from bnnopt.passes.schedule import Schedule
from bnnopt.plan import live_bytes, make_plan
from bnnopt.training_step import TrainingStep
from tests.graphs import SAME_KERNELS, apply, assert_bit_equal, evaluation, network, run_native, zoo
from tests.passes.networks import NETWORKS, small

PASS = Schedule()
BEFORE = [name for name in SAME_KERNELS if name != "schedule"]
REASON = "the order found has no lower peak than the present one"


def figures(step: TrainingStep) -> tuple[int, int]:
    return make_plan(step).peak_bytes, max(live_bytes(step))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("earlier", [(), BEFORE], ids=["alone", "last"])
def test_the_peak_never_grows_and_the_numbers_stay(name: str, earlier: list[str]) -> None:
    net = small(name)
    step = net.with_passes(*earlier)
    before = figures(step)
    count, skipped = apply(PASS, step)
    if count:
        assert figures(step) < before
        assert not skipped
    else:
        assert [reason for _, reason in skipped] == [REASON]
    assert_bit_equal(run_native(net, step), run_native(net, net.step()))


@pytest.mark.parametrize("name", ["cnv", "resnet-e-mini"])
def test_running_it_again_never_makes_it_worse(name: str) -> None:
    """It is no fixed point: the new order decides ties, so a second run may find a better one."""
    step = zoo(name).with_passes(*BEFORE, "schedule")
    before = figures(step)
    apply(PASS, step)
    assert figures(step) <= before


def test_a_long_branch_runs_before_a_wide_one() -> None:
    """Two maps that only their sums outlive: one after the other, not both at a time."""
    step = evaluation(
        """g (float[batch,64] x) => (float[batch,1] y) {
            axes = Constant <value_ints = [1]> ()
            a = Neg (x)
            b = Abs (x)
            sa = ReduceSum <keepdims = 1> (a, axes)
            sb = ReduceSum <keepdims = 1> (b, axes)
            y = Add (sa, sb)
        }"""
    )
    assert max(live_bytes(step)) == 3 * 4 * 4 * 64
    count, _ = apply(PASS, step)
    assert count > 0
    assert max(live_bytes(step)) < 2.5 * 4 * 4 * 64


def test_an_order_without_a_better_one_is_left() -> None:
    step = network(
        "g (float[batch,5] x) => (float[batch,3] y) { y = Gemm (x, w) }", {"w": [5, 3]}
    ).step()
    assert apply(PASS, step) == (0, [(next(iter(step.graph)).name, REASON)])
