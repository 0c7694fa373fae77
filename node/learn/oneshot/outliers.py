"""Samples destroyed, so that a model learns what it does not know: the outliers of FedOV (Diao, Li, He, ICLR 2023)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

_CROPPED = (0.1, 0.33)
"""Shares of an image's area, least and largest, that are cut out and blown up."""
_ERASED = (0.33, 0.5)
"""Shares of a sample that noise replaces."""


def destroyed(features: Tensor, rng: np.random.Generator) -> Tensor:
    """Each sample of features [samples, *shape] damaged in one of several ways, drawn for it; a new tensor.

    Images [channels, height, width] are cropped, blurred, erased in part, or one half of them moved or turned; of other
    samples, values are replaced by noise or moved elsewhere.
    """
    ways = _OF_IMAGES if features.dim() == 4 else _OF_VECTORS
    way = rng.integers(len(ways), size=len(features))
    damaged = features.clone()
    for number, damage in enumerate(ways):
        rows = torch.from_numpy(np.flatnonzero(way == number))
        if len(rows):
            damaged[rows] = damage(features[rows], rng)
    return damaged


def _cropped(images: Tensor, rng: np.random.Generator) -> Tensor:
    """A small piece, as large as the whole."""
    size = images.shape[2:]
    side = math.sqrt(rng.uniform(*_CROPPED))
    height, width = (max(1, round(side * length)) for length in size)
    top, left = (int(rng.integers(length - cut + 1)) for length, cut in zip(size, (height, width), strict=True))
    piece = images[:, :, top : top + height, left : left + width]
    return interpolate(piece, size=tuple(size), mode="bilinear", align_corners=False)


def _blurred(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Each value the mean of its neighbourhood, twice."""
    for _ in range(2):
        images = avg_pool2d(pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return images


def _erased(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Noise in a rectangle."""
    size = images.shape[2:]
    side = math.sqrt(rng.uniform(*_ERASED))
    height, width = (max(1, round(side * length)) for length in size)
    top, left = (int(rng.integers(length - cut + 1)) for length, cut in zip(size, (height, width), strict=True))
    erased = images.clone()
    hole = erased[:, :, top : top + height, left : left + width]
    hole.copy_(torch.from_numpy(rng.random(tuple(hole.shape), dtype=np.float32)))
    return erased


def _moved(images: Tensor, rng: np.random.Generator) -> Tensor:
    """One half pasted over the other."""
    axis = int(rng.integers(2, 4))
    half = images.shape[axis] // 2
    moved = images.clone()
    moved.narrow(axis, images.shape[axis] - half, half).copy_(images.narrow(axis, 0, half))
    return moved


def _turned(images: Tensor, rng: np.random.Generator) -> Tensor:
    """One half turned by 90, 180 or 270 degrees, and stretched to where it was."""
    axis = int(rng.integers(2, 4))
    turned = images.clone()
    half = turned.narrow(axis, 0, max(1, images.shape[axis] // 2))
    spun = torch.rot90(half, int(rng.integers(1, 4)), (2, 3))
    half.copy_(interpolate(spun, size=tuple(half.shape[2:]), mode="nearest"))
    return turned


def _noisy(vectors: Tensor, rng: np.random.Generator) -> Tensor:
    """Standard normal noise in place of some values."""
    shape = vectors.shape[1:]
    hole = torch.from_numpy(rng.random(tuple(shape)) < rng.uniform(*_ERASED))
    noise = torch.from_numpy(rng.standard_normal(tuple(vectors.shape), dtype=np.float32))
    return torch.where(hole, noise, vectors)


def _shuffled(vectors: Tensor, rng: np.random.Generator) -> Tensor:
    """Values of half of the columns in another order."""
    flat = vectors.flatten(1).clone()
    columns = rng.permutation(flat.shape[1])[: max(2, flat.shape[1] // 2)]
    flat[:, columns] = flat[:, np.roll(columns, 1)]
    return flat.view_as(vectors)


_Damage = Callable[[Tensor, np.random.Generator], Tensor]
_OF_IMAGES: tuple[_Damage, ...] = (_cropped, _blurred, _erased, _moved, _turned)
_OF_VECTORS: tuple[_Damage, ...] = (_noisy, _shuffled)
