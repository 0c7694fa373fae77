"""A division of a data set that somebody else has made: whose samples are whose, which are tests, which are public.

Published figures are of divisions that a few lines of their authors' code have drawn. Named by ``data.division``, such
a callable takes the place of ``test_fraction``, ``partition`` and the choice of public samples; whatever it draws must
follow from its arguments alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np

from node.config import DataSection
from node.errors import ConfigError


class Division(NamedTuple):
    """Whose each sample is; no sample has two places."""

    tests: np.ndarray
    """int64: samples of the global test set, by number."""
    public: np.ndarray
    """int64: samples that everybody has, by number."""
    nodes: tuple[np.ndarray, ...]
    """int64: the samples of each node, by number; at least one for each."""


Divide: TypeAlias = Callable[[DataSection, np.ndarray, int, int], Division]
"""Of ``[data]``, labels as whole numbers from 0 on [samples], the number of nodes, and the experiment's seed."""


def given(section: DataSection, labels: np.ndarray, nodes: int, seed: int) -> Division:
    """What the callable that ``data.division`` names makes of a data set.

    Raises:
        ConfigError: there is no such callable, or what it makes is no division among so many nodes.
    """
    name = section.division
    module, _, attribute = name.partition(":")
    try:
        divide: Divide = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"data.division: cannot import {name!r}, which must be module:callable: {error}") from error
    division = divide(section, labels, nodes, seed)
    if len(division.nodes) != nodes or not all(map(len, division.nodes)):
        sizes = [len(rows) for rows in division.nodes]
        raise ConfigError(f"data.division: {name!r} gives samples {sizes} for {nodes} nodes; each needs at least one")
    rows = np.concatenate([division.tests, division.public, *division.nodes])
    if not len(division.tests) or len(np.unique(rows)) != len(rows) or rows.min() < 0 or rows.max() >= len(labels):
        raise ConfigError(
            f"data.division: {name!r} must give test samples, and each of the {len(labels)} samples one place at most"
        )
    return division
