"""Any subset of the passes keeps the promises: lossless ones the bits, all of them a sound plan."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bnnopt.artifact import make_program
from bnnopt.passes import PASSES, Pass, in_order, map_kernels, run_passes
from bnnopt.plan import check_program, live_bytes, make_plan
from bnnopt.training_step import TrainingStep
from tests.graphs import Network, assert_bit_equal, run_native
from tests.passes.networks import NETWORKS, small

LOSSLESS = [p for p in PASSES if p.lossless]
OPTIMIZERS = ("sgd", "adam")
some = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
nets = st.builds(
    lambda name, optimizer: small(name, optimizer=optimizer),
    st.sampled_from(list(NETWORKS)),
    st.sampled_from(OPTIMIZERS),
)


def subsets(passes: list[Pass]) -> st.SearchStrategy[list[Pass]]:
    return st.lists(st.sampled_from(passes), unique=True).map(in_order)


def rewritten(net: Network, passes: list[Pass]) -> TrainingStep:
    step = net.step()
    run_passes(step, passes)
    plan = make_plan(step)
    check_program(make_program(step, plan, net.batch))
    assert plan.arena_bytes >= max(live_bytes(step))
    return step


@pytest.mark.slow
@given(nets, subsets(LOSSLESS))
@some
def test_lossless_passes_keep_the_bits(net: Network, passes: list[Pass]) -> None:
    expected = run_native(net, map_kernels(net.step(), passes))
    assert_bit_equal(run_native(net, rewritten(net, passes)), expected)


@pytest.mark.slow
@given(nets, subsets(list(PASSES)))
@some
def test_any_passes_give_a_sound_plan_that_runs(net: Network, passes: list[Pass]) -> None:
    found = run_native(net, rewritten(net, passes), 1)
    assert np.isfinite(found.losses).all()


def test_a_lossy_pass_is_seen() -> None:
    net = small("float")
    (prune,) = [p for p in PASSES if p.name == "prune-stored"]
    expected = run_native(net, map_kernels(net.step(), [prune]))
    with pytest.raises(AssertionError):
        assert_bit_equal(run_native(net, rewritten(net, [prune])), expected)
