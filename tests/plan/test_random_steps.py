"""Plans, orders and passes on random training steps."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from bnnopt.artifact import make_program
from bnnopt.passes import PASSES, run_passes
from bnnopt.plan import (
    check_program,
    dependencies,
    live_bytes,
    make_plan,
    memory_order,
    reorder,
)
from tests.graphs import SAME_KERNELS, Network, assert_bit_equal, run_native
from tests.plan.random_steps import networks

slow = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.slow
@given(networks())
@slow
def test_every_pass_keeps_the_bits_and_the_plan_is_sound(net: Network) -> None:
    step = net.step()
    expected = run_native(net, step)  # checks its program
    for p in (p for p in PASSES if p.name in SAME_KERNELS):
        run_passes(step, [p])
        check_program(make_program(step, make_plan(step), net.batch))
        assert make_plan(step).arena_bytes >= max(live_bytes(step))
    assert_bit_equal(run_native(net, step), expected)
    assert_bit_equal(run_native(net, step, batch=1), run_native(net, net.step(), batch=1))


@pytest.mark.slow
@given(networks())
@slow
def test_the_order_honours_dependencies(net: Network) -> None:
    names = [name for name in SAME_KERNELS if name != "schedule"]
    step = net.with_passes(*names)
    before = make_plan(step).peak_bytes
    order = memory_order(step)
    assert sorted(map(id, order)) == sorted(map(id, step.graph))
    done: set[object] = set()
    needed = dependencies(step)
    for node in order:
        assert needed[node] <= done
        done.add(node)
    reorder(step, order)
    check_program(make_program(step, make_plan(step), net.batch))
    assert make_plan(net.with_passes(*names, "schedule")).peak_bytes <= before
