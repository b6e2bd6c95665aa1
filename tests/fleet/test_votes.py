"""What travels and how it counts: exact for drawn numbers, whatever one device sends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnnopt.errors import UsageError
from bnnopt.fleet.layout import Layout, State, pack_counts, pack_signs, unpack_counts, unpack_signs
from bnnopt.fleet.options import RunOptions
from bnnopt.fleet.shards import split
from bnnopt.fleet.votes import (
    LARGEST,
    Update,
    by_samples,
    check,
    majority,
    mean_sign,
    moved,
    positives,
    trimmed_mean,
)

LAYOUT = Layout({"w": (3, 5)}, {"b": (3,), "mean": (3,)})


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def update(**changed: Any) -> Update:
    signs = pack_signs(rng().standard_normal(15).astype("f4"), rng())
    return Update(signs, np.ones(6, np.float32), 10)._replace(**changed)


@given(st.integers(1, 70), st.integers(0, 99))
def test_signs_survive_packing(n: int, seed: int) -> None:
    values = rng(seed).standard_normal(n).astype(np.float32)
    bits = pack_signs(values, rng())
    assert bits.shape == (-(-n // 8),)
    np.testing.assert_array_equal(unpack_signs(bits, n), np.sign(values))


def test_zeros_go_either_way() -> None:
    signs = unpack_signs(pack_signs(np.zeros(1000, np.float32), rng()), 1000)
    assert abs(signs.mean()) < 0.1


@given(st.integers(1, 40), st.integers(1, 7), st.integers(0, 99))
def test_the_majority_is_that_of_a_count(n: int, devices: int, seed: int) -> None:
    votes = np.sign(rng(seed).standard_normal((devices, n))).astype(np.float32)
    packed = [pack_signs(vote, rng()) for vote in votes]
    found = unpack_signs(majority(packed, n, rng()), n)
    total = votes.sum(axis=0)
    np.testing.assert_array_equal(found[total != 0], np.sign(total)[total != 0])
    planes = pack_counts(positives(packed, n), devices)
    assert planes.shape == (devices.bit_length(), -(-n // 8))
    mean = mean_sign(unpack_counts(planes, n), devices)
    np.testing.assert_allclose(mean, votes.mean(axis=0), rtol=1e-6)


@given(st.integers(1, 40), st.integers(1, 7), st.integers(0, 99))
def test_votes_count_by_samples(n: int, devices: int, seed: int) -> None:
    votes = np.sign(rng(seed).standard_normal((devices, n))).astype(np.float32)
    weights = rng(seed).integers(1, 1 << 40, devices)
    packed = [pack_signs(vote, rng()) for vote in votes]
    found = unpack_signs(majority(packed, n, rng(), weights), n)
    total = (weights[:, None] * votes.astype(np.int64)).sum(axis=0)
    np.testing.assert_array_equal(found[total != 0], np.sign(total)[total != 0])


def test_who_overstates_its_samples_has_two_votes() -> None:
    honest = [update(n_samples=n) for n in (90, 100, 110)]
    weights = by_samples([*honest, update(n_samples=1 << 40)])
    np.testing.assert_array_equal(weights, [90, 100, 110, 210])


def test_ties_go_by_chance_and_alike_for_a_seed() -> None:
    ones, none = np.full(125, 255, np.uint8), np.zeros(125, np.uint8)
    first, again, other = (majority([ones, none], 1000, rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert 400 < np.unpackbits(first).sum() < 600


def test_one_that_lies_changes_only_what_is_nearly_a_tie() -> None:
    """Of nine honest devices that agree on most weights, and one that sends random bits."""
    truth = np.sign(rng().standard_normal(4000)).astype(np.float32)
    noise = rng(1).standard_normal((9, 4000)).astype(np.float32)
    honest = [pack_signs(truth + noise_k, rng()) for noise_k in noise]
    liar = pack_signs(rng(2).standard_normal(4000).astype(np.float32), rng())
    before = unpack_signs(majority(honest, 4000, rng()), 4000)
    after = unpack_signs(majority([*honest, liar], 4000, rng()), 4000)
    counts = np.abs(sum(unpack_signs(bits, 4000) for bits in honest))
    assert (counts[before != after] <= 1).all()


def test_a_vote_moves_each_weight_by_the_rate() -> None:
    state = State(np.zeros(15, np.float32), np.zeros(6, np.float32))
    signs = np.sign(rng().standard_normal(15)).astype(np.float32)
    after = moved(state, pack_signs(signs, rng()), 0.25, np.ones(6, np.float32))
    np.testing.assert_array_equal(after.signed, signs / 4)
    np.testing.assert_array_equal(after.averaged, 1)


@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_the_mean_leaves_out_what_lies_far_off(n: int) -> None:
    values = [np.full(6, k, np.float32) for k in range(n)]
    found = trimmed_mean([update(averaged=v) for v in values])
    np.testing.assert_allclose(found, (n - 1) / 2, rtol=1e-6)
    if n > 2:
        values[-1][:] = LARGEST
        assert trimmed_mean([update(averaged=v) for v in values]).max() <= n - 1


LIES: dict[str, tuple[Callable[[], Update], str]] = {
    "short": (lambda: update(signs=np.zeros(1, np.uint8)), r"signs is uint8 \[1\], expected"),
    "wide": (lambda: update(signs=np.zeros(2, np.int64)), "signs is int64"),
    "spare bits": (lambda: update(signs=np.full(2, 255, np.uint8)), "spare bits"),
    "shape": (lambda: update(averaged=np.ones((2, 3), np.float32)), r"averaged is .*\[2, 3\]"),
    "nan": (lambda: update(averaged=np.full(6, np.nan, np.float32)), "not within"),
    "huge": (lambda: update(averaged=np.full(6, 1e30, np.float32)), "not within"),
    "no samples": (lambda: update(n_samples=0), "0 samples"),
    "too many": (lambda: update(n_samples=1 << 50), "samples, expected 1 to"),
}


@pytest.mark.parametrize("name", LIES)
def test_what_no_honest_device_sends(name: str) -> None:
    make, expected = LIES[name]
    with pytest.raises(UsageError, match=expected):
        check(make(), LAYOUT)


def test_an_honest_update_counts() -> None:
    check(update(), LAYOUT)


def test_a_state_is_flat_and_back() -> None:
    parameters = {
        name: rng().standard_normal(shape) for part in LAYOUT for name, shape in part.items()
    }
    state = LAYOUT.flat(parameters)
    assert (state.signed.shape, state.averaged.shape) == ((15,), (6,))
    for name, array in LAYOUT.named(state).items():
        np.testing.assert_array_equal(array, parameters[name].astype(np.float32))


@pytest.mark.parametrize("alpha", [None, 0.1, 100.0])
def test_shards_are_disjoint_and_everything(alpha: float | None) -> None:
    labels = rng().integers(0, 10, 997)
    parts = split(labels, 13, 5, alpha)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(997))
    assert min(map(len, parts)) > 0


def test_a_small_alpha_gives_other_classes_to_each() -> None:
    labels = rng().integers(0, 10, 5000)

    def spread(alpha: float | None) -> float:
        shares = [
            np.bincount(labels[p], minlength=10) / len(p) for p in split(labels, 10, 5, alpha)
        ]
        return float(np.std(shares, axis=0).mean())

    assert spread(0.1) > 3 * spread(100.0)


MISTAKES = {
    "strategy": ({"strategy": "sign-majorty"}, "did you mean 'sign-majority'"),
    "type": ({"rounds": "3"}, "rounds is '3', expected int"),
    "bool": ({"rounds": True}, "rounds is True"),
    "zero": ({"epochs": 0}, "expected more than 0"),
    "share": ({"fraction": 1.5}, "at most 1"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_options_that_cannot_be(name: str) -> None:
    given, expected = MISTAKES[name]
    with pytest.raises(UsageError, match=expected):
        RunOptions.of(given)


def test_a_device_s_options_go_before_those_of_all() -> None:
    found = RunOptions.of({"lr": 1, "data": "a.npz", "colour": "red"}, {"data": "b.npz"})
    assert (found.lr, found.data, found.rounds) == (1.0, "b.npz", 10)
