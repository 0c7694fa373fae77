"""Which adapter a request wants: sequences of keys, from 0 on, in the order of the requests.

Without skew no cache policy can be told from another: keys drawn uniformly are found in a cache in proportion to its
size, whatever it evicts. So the default is Zipf's law, and its popularity may drift.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from node.config.section import Positive, Section

Keys = npt.NDArray[np.int64]
"""Adapters by number, shape [requests]."""

_SCAN_PERIOD, _SCANNED = 1_000, 100
"""With scans, of so many accesses the last so many are to keys that nobody asks for again."""
_PUNICA_RATIO = 1.5
"""How much more often the i-th adapter of a skewed workload is wanted than the next."""


class PopularitySection(Section):
    """How requests are spread over adapters."""

    kind: Literal["zipf", "scan", "power", "uniform", "cyclic", "distinct", "square-root", "skewed", "identical"] = (
        "zipf"
    )
    """``zipf``: the i-th most popular is wanted 1/i^alpha as often as the first; ``scan``: the same, and every 900
    requests come 100 for adapters that are never wanted again; ``power``: as S-LoRA draws; ``uniform``; ``cyclic``:
    one after another; ``distinct``, ``square-root``, ``skewed``, ``identical``: Punica's four (each request its own;
    the square root of their number, equally popular; the same number, each 1.5 times as popular as the next; one)."""
    alpha: Positive = 0.9
    """Exponent of ``zipf``, ``scan`` and ``power``."""
    drifts: int = Field(0, ge=0)
    """How often all adapters of ``zipf`` change places, at equal distances."""


def draw(section: PopularitySection, rng: np.random.Generator, adapters: int, requests: int) -> Keys:
    """The adapters that so many requests want, out of so many that there are (Punica's four count them themselves)."""
    by_kind: dict[str, Callable[[], Keys]] = {
        "zipf": lambda: drifting(rng, adapters, requests, section.alpha, section.drifts),
        "scan": lambda: scanning(rng, adapters, requests, section.alpha),
        "power": lambda: power(rng, adapters, requests, section.alpha),
        "uniform": lambda: rng.integers(adapters, size=requests),
        "cyclic": lambda: np.arange(requests) % adapters,
        "distinct": lambda: np.arange(requests),
        "square-root": lambda: rng.integers(square_root(requests), size=requests),
        "skewed": lambda: skewed(rng, requests),
        "identical": lambda: np.zeros(requests, dtype=np.int64),
    }
    return by_kind[section.kind]()


def zipf(rng: np.random.Generator, adapters: int, requests: int, alpha: float) -> Keys:
    """Independent requests; adapter i, counted from 0, has probability proportional to (i + 1)^-alpha."""
    weights = np.arange(1, adapters + 1) ** -alpha
    return rng.choice(adapters, size=requests, p=weights / weights.sum())


def drifting(rng: np.random.Generator, adapters: int, requests: int, alpha: float, drifts: int) -> Keys:
    """Zipf's law over adapters that take each other's places ``drifts`` times, at equal distances."""
    ranks = zipf(rng, adapters, requests, alpha)
    if not drifts:
        return ranks
    parts = np.array_split(ranks, drifts + 1)
    return np.concatenate([parts[0], *[rng.permutation(adapters)[part] for part in parts[1:]]])


def scanning(rng: np.random.Generator, adapters: int, requests: int, alpha: float) -> Keys:
    """Zipf's law, and of every 1,000 requests the last 100 are for adapters beyond ``adapters``, each wanted once."""
    keys = zipf(rng, adapters, requests, alpha)
    scanned = np.arange(requests) % _SCAN_PERIOD >= _SCAN_PERIOD - _SCANNED
    keys[scanned] = adapters + np.arange(scanned.sum())
    return keys


def power(rng: np.random.Generator, adapters: int, requests: int, alpha: float) -> Keys:
    """As the generator of S-LoRA (Sheng et al., MLSys 2024) draws: the larger alpha, the more the *last* are wanted."""
    return np.minimum((rng.power(alpha, requests) * adapters).astype(np.int64), adapters - 1)


def skewed(rng: np.random.Generator, requests: int) -> Keys:
    """Punica's skewed workload (Chen et al., MLSys 2024): each adapter is wanted 1.5 times as often as the next."""
    weights = _PUNICA_RATIO ** -np.arange(square_root(requests), dtype=float)
    return rng.choice(len(weights), size=requests, p=weights / weights.sum())


def square_root(requests: int) -> int:
    """How many adapters Punica's uniform and skewed workloads have."""
    return int(np.ceil(np.sqrt(requests)))
