"""One-way latency between nodes: one number, a draw for each pair, a matrix from a file, or geography."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from node.config import Distribution, Geography, LatencyMatrix
from node.errors import ConfigError
from node.sim.draws import draw_rows, per_pair
from node.sim.network import geography

_KEY = "network.latency_s.matrix"


def build(
    section: float | Distribution | LatencyMatrix | Geography, nodes: int, seed: int
) -> Callable[[int, int], float]:
    """Seconds from one node to another; computed when asked, so that no table of all pairs of nodes is needed.

    Raises:
        ConfigError: a matrix file that cannot be read, or is none; names the file and the line.
    """
    if isinstance(section, LatencyMatrix):
        return _from_matrix(section, nodes, seed)
    if isinstance(section, Geography):
        return geography.build(section, nodes, seed)
    return lambda a, b: per_pair(section, a, b, seed)


def _from_matrix(section: LatencyMatrix, nodes: int, seed: int) -> Callable[[int, int], float]:
    """Node i is at place i where there are as many places; else places are drawn, twice only if there are too few."""
    to_one_way_s = 0.001 if section.trip == "one-way" else 0.0005
    matrix_s = read(section.matrix) * to_one_way_s
    rows = len(matrix_s)
    places = list(range(rows)) if nodes == rows else draw_rows(rows, nodes, seed, "places").tolist()
    item = matrix_s.item
    return lambda a, b: item(places[a], places[b])


def read(path: str) -> np.ndarray:
    """The n rows of n milliseconds of a text file, split by spaces or commas; ``#`` starts a comment.

    What stands on the diagonal does not matter, and becomes 0: two nodes at one place are as near as can be.

    Raises:
        ConfigError: the file cannot be read, or is no such matrix; names the file and the line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{_KEY}: cannot read {path}: {error.strerror}; give n rows of n milliseconds") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{_KEY}: {path} is not text; give n rows of n milliseconds") from error
    lines = [(number, line.partition("#")[0].strip()) for number, line in enumerate(text.splitlines(), 1)]
    rows = [(f"{_KEY}: {path}:{number}", _cells(line)) for number, line in lines if line]
    if not rows:
        raise ConfigError(f"{_KEY}: {path} is empty; give n rows of n milliseconds")
    return np.array([_row(where, cells, row, len(rows)) for row, (where, cells) in enumerate(rows)])


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split(",")] if "," in line else line.split()


def _row(where: str, cells: list[str], row: int, rows: int) -> list[float]:
    if len(cells) != rows:
        raise ConfigError(f"{where}: {len(cells)} numbers, but there are {rows} rows; give n rows of n milliseconds")
    return [0.0 if column == row else _milliseconds(where, cell, column) for column, cell in enumerate(cells)]


def _milliseconds(where: str, cell: str, column: int) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ConfigError(f"{where}: {cell!r} in column {column + 1} is no latency; give milliseconds, 0 or more")
    return value
