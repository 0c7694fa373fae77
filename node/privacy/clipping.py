"""Node-level local differential privacy: what a node has learned in a round, clipped as a whole and noised.

By the Gaussian mechanism a round is ``1 / noise_multiplier`` GDP where a node takes part or not, and twice that where
its update is exchanged for another (Dong, Roth and Su, JRSS-B 2022).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from node.errors import ConfigError
from node.op import Op, Task
from node.privacy.noise import NoiseSource, NoiseStream


def check_clipping(clip: float, noise_multiplier: float) -> None:
    """Raise ConfigError for a norm to clip to, or noise in proportion to it, that has no meaning."""
    if not clip > 0:
        raise ConfigError(f"clip: {clip}; allowed are numbers above 0 (infinity: no clipping)")
    if not 0 <= noise_multiplier < math.inf:
        raise ConfigError(f"noise_multiplier: {noise_multiplier}; allowed are finite numbers from 0")
    if noise_multiplier and math.isinf(clip):
        raise ConfigError("clip: infinity with noise, which is in proportion to it; allowed are finite numbers above 0")


def clipped(update: Tensor, clip: float) -> Tensor:
    """An update [dimension], shortened to the norm ``clip`` where it is longer; zeros where it is not finite.

    No factor bounds what is not finite, and noise would not hide that it is not.
    """
    norm = float(torch.linalg.vector_norm(update, dtype=torch.float64))
    if not math.isfinite(norm):
        return torch.zeros_like(update)
    return update.clone() if norm <= clip else update * (clip / norm)


def noised(before: Tensor, after: Tensor, clip: float, noise_multiplier: float, noise: NoiseStream) -> Tensor:
    """What a node may send: its model ``before`` training, its clipped update, and noise, [dimension].

    The noise's standard deviation is ``noise_multiplier * clip``. Raises ConfigError as :func:`check_clipping`.
    """
    check_clipping(clip, noise_multiplier)
    sent = before + clipped(after - before, clip)
    if noise_multiplier:
        sent += torch.from_numpy(noise.normals(sent.numel())).mul_(noise_multiplier * clip).to(sent)
    return sent


def noised_update(source: NoiseSource) -> Op[...]:
    """The op from the models before and after training to what may be sent; static ``clip``, ``noise_multiplier``."""

    def solve(task: Task) -> Tensor:
        before, after = task.inputs
        return noised(before, after, task.static["clip"], task.static["noise_multiplier"], source(task.key))

    return Op(f"{__name__}:noised_update", solve, seeded=True)
