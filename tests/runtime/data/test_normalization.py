"""Normalisation and random changes of a batch."""

from __future__ import annotations

import numpy as np
import pytest

from bnnopt.errors import UsageError
from bnnopt.runtime.data import Dataset, Normalization
from bnnopt.runtime.data.augmentation import CHANGES, parse
from bnnopt.runtime.data.normalization import HALVES, choose

PIXELS = np.random.default_rng(0).integers(0, 256, (300, 3, 4, 4), np.uint8)


def dataset(x: np.ndarray) -> Dataset:
    return Dataset({"x": x}, None, "here")


def test_it_is_x_over_scale_minus_mean_over_std() -> None:
    normal = Normalization(255.0, (0.1, 0.2, 0.3), (0.5, 1.0, 2.0))
    mean, std = (np.array(v)[:, None, None] for v in (normal.mean, normal.std))
    np.testing.assert_allclose(normal(PIXELS), (PIXELS / 255 - mean) / std, atol=1e-6)
    assert normal(PIXELS).dtype == np.float32


def test_images_of_eight_bits_become_minus_one_to_one() -> None:
    chosen, line = choose(dataset(PIXELS))
    assert chosen == HALVES
    assert "uint8" in line
    assert HALVES(np.array([[0, 255]], np.uint8)).tolist() == [[-1.0, 1.0]]


def test_from_the_data_each_channel_has_mean_0_and_deviation_1() -> None:
    x = PIXELS * np.array([1, 0.5, 0.1], np.float32)[:, None, None]
    chosen, _ = choose(dataset(x), from_data=True)
    y = chosen(x)
    np.testing.assert_allclose(y.mean((0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(y.std((0, 2, 3)), 1, atol=1e-5)


def test_numbers_that_nobody_scaled_are_noticed() -> None:
    assert "reaches 255" in choose(dataset(PIXELS.astype(np.float32)))[1]
    assert choose(dataset(PIXELS / np.float32(255)))[1] == ""


@pytest.mark.parametrize("options", [{"mean": [0.0, 0.0]}, {"std": [0.0]}, {"scale": float("nan")}])
def test_numbers_that_do_not_fit_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="expected"):
        choose(dataset(PIXELS), **options)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_keeps_shape_dtype_and_follows_its_randomness(name: str) -> None:
    (change,) = parse([name], (3, 4, 4))
    a, b, other = (change(PIXELS, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert a.shape == PIXELS.shape
    assert a.dtype == PIXELS.dtype
    np.testing.assert_array_equal(a, b)
    assert (a != other).any()


def test_flip_mirrors_half_of_the_images() -> None:
    flipped = CHANGES["flip"](PIXELS, np.random.default_rng(0))
    same = (flipped == PIXELS).all((1, 2, 3))
    mirrored = (flipped == PIXELS[..., ::-1]).all((1, 2, 3))
    assert (same | mirrored).all()
    assert 0.4 < mirrored.mean() < 0.6


def test_crop_moves_by_at_most_an_eighth() -> None:
    x = np.arange(16 * 16).reshape(1, 1, 16, 16).repeat(50, 0)
    moved = CHANGES["crop"](x, np.random.default_rng(0))
    down = moved[:, 0, 8, 8] // 16 - 8
    assert set(down.tolist()) == {-2, -1, 0, 1, 2}


def test_changes_are_for_images() -> None:
    with pytest.raises(UsageError, match="images"):
        parse(["flip"], (20,))
    with pytest.raises(UsageError, match="expected some of flip, shift, crop"):
        parse(["rotate"], (3, 4, 4))
