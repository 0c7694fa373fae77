"""The data of a setting of the one-shot benchmark: how many samples there are, and what of them each client holds."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.config import DataSection, PublicSection
from node.errors import ConfigError
from node.learn.data import federate
from node.learn.sources import read

TEST_FRACTION, PUBLIC_FRACTION = 0.2225, 0.1432
"""Of digits, 400 test samples, and of what is left, 200 public ones."""


@lru_cache(maxsize=64)
def held(data: DataSection, public: PublicSection, clients: int, seed: int) -> NDArray[np.int64]:
    """Samples of each class that each client has, [clients, classes].

    Raises:
        ConfigError: there is no such data, or it cannot be divided so.
    """
    federation = federate(data, clients, seed, public)
    labels, classes = federation.train.labels.numpy(), federation.train.classes
    rows = [np.bincount(labels[federation.shards.of(client)], minlength=classes) for client in range(clients)]
    return np.array(rows, dtype=np.int64)


def scaled(name: str, samples: int, seed: int) -> dict[str, dict[str, Any]]:
    """The keys of ``[data]`` and ``[public]`` that leave so many samples for all clients together.

    There are as many public samples as without; all others are test samples, of which there are at least as many.

    Raises:
        ConfigError: there are not so many, or the data come with test samples of their own.
    """
    there, is_split = _there(name, seed)
    tests = math.ceil(TEST_FRACTION * there)
    public = round(PUBLIC_FRACTION * (there - tests))
    most = there - tests - public
    if is_split or samples > most:
        reason = "it has test samples of its own" if is_split else f"there are {most} to divide"
        raise ConfigError(f"data {name}: {samples} samples for all clients together: {reason}; allowed: each = 0")
    # In between two numbers of test samples, because the share is rounded up.
    fraction = (there - public - samples - 0.5) / there
    return {"data": {"test_fraction": fraction}, "public": {"samples": public}}


@lru_cache(maxsize=16)
def _there(name: str, seed: int) -> tuple[int, bool]:
    train, test = read(DataSection(name=name), seed)
    return len(train.labels), test is not None
