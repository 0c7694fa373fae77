"""How good a reconstruction is."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from node.attack import images
from node.errors import ConfigError

A = (np.arange(64) / 63).reshape(8, 8)
B = np.clip(A + 0.1, 0, 1)
IMAGE = arrays.arrays(np.float64, (8, 8), elements=st.floats(0, 1))


def by_the_book(a, b, sigma):
    """Structural similarity as it is written down: every window by itself."""
    radius = int(3.5 * sigma + 0.5)
    taps = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    window = np.outer(taps, taps) / taps.sum() ** 2
    a, b = (np.pad(image, radius, mode="reflect") for image in (a, b))
    values = []
    for i in range(a.shape[0] - 2 * radius):
        for j in range(a.shape[1] - 2 * radius):
            x, y = (image[i : i + len(taps), j : j + len(taps)] for image in (a, b))
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy = max((window * x * x).sum() - mx**2, 0), max((window * y * y).sum() - my**2, 0)
            covariance = (window * x * y).sum() - mx * my
            above = (2 * mx * my + 1e-4) * (2 * covariance + 9e-4)
            values.append(above / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    return np.mean(values)


def test_golden_values():
    assert images.mse(A, B) == pytest.approx(0.0092644971, abs=1e-5)
    assert images.psnr(A, B) == pytest.approx(20.3317814, abs=1e-5)
    assert images.ssim(A, B, 1.0) == pytest.approx(0.950204, abs=1e-5)
    assert images.ssim(A, B, 1.5) == pytest.approx(0.965678, abs=1e-5)


@pytest.mark.parametrize("sigma", [1.0, 1.5])
@given(a=IMAGE, b=IMAGE)
def test_similarity_is_as_it_is_written_down(sigma, a, b):
    assert images.ssim(a, b, sigma) == pytest.approx(by_the_book(a, b, sigma), abs=1e-9)


@given(IMAGE, IMAGE)
def test_similarity_is_symmetric_and_at_most_one(a, b):
    assert images.ssim(a, b) == pytest.approx(images.ssim(b, a))
    assert -1 <= images.ssim(a, b) <= 1 + 1e-12
    assert images.ssim(a, a) == pytest.approx(1)


@given(IMAGE, IMAGE)
def test_psnr_is_minus_ten_log_mse(a, b):
    error = images.mse(a, b)
    assert images.psnr(a, b) == (math.inf if error == 0 else pytest.approx(-10 * math.log10(error)))


def test_equal_images_have_no_error():
    assert images.mse(A, A) == 0
    assert images.psnr(A, A) == math.inf


def test_float32_is_compared_in_float64():
    assert images.ssim(A.astype(np.float32), B.astype(np.float32)) == pytest.approx(0.950204, abs=1e-5)


# Batches


def batch(count, channels=(), seed=0):
    return np.random.default_rng(seed).random((count, *channels, 8, 8))


@given(st.permutations(range(5)))
def test_every_reconstruction_finds_its_image(order):
    originals = batch(5)
    noisy = originals[order] + np.random.default_rng(1).normal(size=originals.shape) * 0.05
    found = images.compare(originals, noisy)
    assert [order[taken] for taken in found.order] == list(range(5))
    assert (found.psnr_db > 22).all()


def test_the_total_error_is_least_even_where_two_want_the_same():
    originals = np.stack([np.full((2, 2), 0.0), np.full((2, 2), 0.3)])
    both_near_the_second = np.stack([np.full((2, 2), 0.35), np.full((2, 2), 0.2)])
    assert images.assignment(originals, both_near_the_second).tolist() == [1, 0]


def test_values_are_clamped_first():
    originals = np.stack([np.zeros((8, 8)), np.ones((8, 8))])
    found = images.compare(originals, np.stack([np.full((8, 8), 7.0), np.full((8, 8), -3.0)]))
    assert found.order.tolist() == [1, 0]
    assert found.mse.tolist() == [0, 0]
    assert found.recovered == 1


def test_images_with_channels_are_compared_as_a_whole():
    originals = batch(3, (2,))
    other = batch(3, (2,), seed=1)
    found = images.compare(originals, np.concatenate([originals[:1], other[1:]]))
    assert found.order[0] == 0
    assert found.psnr_db[0] == math.inf
    assert found.ssim.shape == found.mse.shape == (3,)
    parts = [images.ssim(originals[0, channel], originals[0, channel]) for channel in range(2)]
    assert found.ssim[0] == pytest.approx(np.mean(parts))
    assert found.recovered == pytest.approx(1 / 3)


def test_a_batch_agrees_with_single_images():
    originals, noisy = batch(2), np.clip(batch(2) + 0.05, 0, 1)
    found = images.compare(originals, noisy)
    for i in range(2):
        assert found.mse[i] == pytest.approx(images.mse(originals[i], noisy[i]))
        assert found.psnr_db[i] == pytest.approx(images.psnr(originals[i], noisy[i]))
        assert found.ssim[i] == pytest.approx(images.ssim(originals[i], noisy[i]))


def test_random_images_are_not_recovered():
    found = images.compare(batch(20), batch(20, seed=9))
    assert found.recovered == 0
    assert found.psnr_db.mean() == pytest.approx(8, abs=1)


@pytest.mark.parametrize("compare", [images.compare, images.mse, images.psnr, images.ssim])
def test_images_of_two_shapes_are_refused(compare):
    with pytest.raises(ConfigError, match=r"images: \[2, 8, 8\] against \[2, 8, 7\]"):
        compare(np.zeros((2, 8, 8)), np.zeros((2, 8, 7)))


def test_rows_are_no_images():
    with pytest.raises(ConfigError, match=r"images: \[5\]"):
        images.mse(np.zeros(5), np.zeros(5))
