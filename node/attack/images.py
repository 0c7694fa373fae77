"""How much of an image an attacker got back: error, PSNR, structural similarity, and which image is which.

Images are [..., height, width] with values in [0, 1] (the data range is 1); reconstructions are clamped to it first.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter  # type: ignore[import-untyped]
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

from node.errors import ConfigError

RECOGNISABLE_DB = 25.0
"""A reconstruction above this PSNR counts as a recovered image."""
_C1 = 0.01**2
_C2 = 0.03**2
_WINDOW_SIGMAS = 3.5


class Fidelity(NamedTuple):
    """Reconstructions against the images that they are of, each [images]."""

    order: np.ndarray
    """int64: which reconstruction was taken for which image."""
    mse: np.ndarray
    psnr_db: np.ndarray
    """Infinite for an exact reconstruction."""
    ssim: np.ndarray

    @property
    def recovered(self) -> float:
        """Share of images whose PSNR is above 25 dB."""
        return float(np.mean(self.psnr_db > RECOGNISABLE_DB))


def compare(images: np.ndarray, reconstructions: np.ndarray, *, sigma: float = 1.0) -> Fidelity:
    """Match reconstructions [images, ..., height, width] to images, and say how good each is.

    Args:
        images: the originals.
        reconstructions: as many, in any order: an update does not say which sample of a batch is which.
        sigma: of the structural similarity's window; 1 for images of 8x8, 1.5 for large ones.
    """
    _check(images, reconstructions)
    order = assignment(images, reconstructions)
    matched = np.clip(reconstructions[order], 0, 1)
    inner = tuple(range(1, images.ndim))
    similarity = ssim_map(images, matched, sigma).mean(inner)
    error = np.mean((_float64(images) - matched) ** 2, axis=inner)
    return Fidelity(order, error, _decibels(error), similarity)


def assignment(images: np.ndarray, reconstructions: np.ndarray) -> np.ndarray:
    """For each image the reconstruction that is it, int64 [images]: the permutation of least total squared error.

    The Hungarian method (Kuhn, Naval Research Logistics 1955).
    """
    flat = _float64(images).reshape(len(images), -1)
    others = np.clip(_float64(reconstructions), 0, 1).reshape(len(reconstructions), -1)
    cost = np.stack([np.sum((others - image) ** 2, axis=1) for image in flat])
    return np.asarray(linear_sum_assignment(cost)[1])


def mse(image: np.ndarray, other: np.ndarray) -> float:
    """Mean squared error over all pixels."""
    _check(image, other)
    return float(np.mean((_float64(image) - _float64(other)) ** 2))


def psnr(image: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, ``10 log10(1/MSE)``; infinite for equal images."""
    return float(_decibels(np.asarray(mse(image, other))))


def ssim(image: np.ndarray, other: np.ndarray, sigma: float = 1.0) -> float:
    """Mean structural similarity (Wang, Bovik, Sheikh and Simoncelli, IEEE TIP 2004), under a Gaussian window."""
    _check(image, other)
    return float(ssim_map(image, other, sigma).mean())


def ssim_map(image: np.ndarray, other: np.ndarray, sigma: float) -> np.ndarray:
    """Structural similarity at every pixel, over the last two axes.

    The window has ``2*int(3.5 sigma + 0.5) + 1`` taps; borders are reflected without repeating the edge.
    """
    a, b = _float64(image), _float64(other)

    def blur(values: np.ndarray) -> np.ndarray:
        return np.asarray(gaussian_filter(values, sigma, mode="mirror", truncate=_WINDOW_SIGMAS, axes=(-2, -1)))

    mean_a, mean_b = blur(a), blur(b)
    variance_a = np.maximum(blur(a * a) - mean_a**2, 0)
    variance_b = np.maximum(blur(b * b) - mean_b**2, 0)
    covariance = blur(a * b) - mean_a * mean_b
    alike = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
    return np.asarray(alike / ((mean_a**2 + mean_b**2 + _C1) * (variance_a + variance_b + _C2)))


def _decibels(error: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.asarray(-10 * np.log10(error))


def _float64(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)


def _check(images: np.ndarray, others: np.ndarray) -> None:
    if images.shape != others.shape or images.ndim < 2:
        raise ConfigError(
            f"images: {list(images.shape)} against {list(others.shape)}; need one shape [..., height, width] for both"
        )
