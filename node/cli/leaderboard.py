"""The leaderboard of one-shot learning: what the benchmark's cells say together, entrant by entrant.

Seeds of one setting are averaged first; a *block* is a setting without its seed. Only blocks in which all is well are
ranked, and only entrants that have finished every one of them. Lines of reference and results of others have no rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from node.experiment.oneshot_cell import Figures, Record
from node.experiment.oneshot_grid import CENTRAL, CLIENTS, Setting
from node.experiment.ranking import Ranking, indistinguishable, ranked

MEAN_CLIENT = "mean client"
DIVISIONS = ("reference", "closed", "open")


@dataclass(frozen=True)
class Spread:
    """A figure over seeds."""

    mean: float
    deviation: float | None
    """Standard deviation of a sample; None for a single seed."""
    seeds: int

    def percent(self) -> str:
        """As a share of a hundred."""
        return f"{100 * self.mean:.1f}" + ("" if self.deviation is None else f"±{100 * self.deviation:.1f}")


@dataclass(frozen=True)
class Entry:
    """A row: an entrant over all blocks in which it has finished."""

    name: str
    assumptions: str
    division: str
    accuracy: Mapping[str, Spread]
    """By block."""
    figures: Figures
    """Means over blocks."""
    rank: float | None
    """Mean over blocks among all that are ranked."""
    is_best: bool
    """Of those that assume the same."""
    is_equal: bool
    """Not significantly worse than the best of them."""


class Board:
    """Cells, by entrant and block.

    Args:
        records: of cells, in the order in which rows and columns are to stand; failed ones only count as such.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        every = list(records)
        self.failed = [record for record in every if record["status"] != "finished"]
        self._cells: dict[tuple[str, str], dict[int, Figures]] = {}
        self._told: dict[str, tuple[str, str]] = {}
        self.settings: dict[str, Setting] = {}
        """One of each block."""
        self.unattacked: dict[str, str] = {}
        """Why what an entrant's clients upload is not attacked anywhere."""
        for record in every:
            if record["status"] == "finished":
                setting = Setting(**record["setting"])
                self.settings.setdefault(setting.block, setting)
                figures = {name: value for name, value in record["figures"].items() if value is not None}
                self._cells.setdefault((record["entrant"], setting.block), {})[setting.seed] = figures
                self._told.setdefault(record["entrant"], (record["assumptions"], record["division"]))
                if why := record.get("unattacked"):
                    self.unattacked.setdefault(record["entrant"], why)
        for (name, _), seeds in self._cells.items():
            if any("leakage_auc" in figures for figures in seeds.values()):
                self.unattacked.pop(name, None)

    @cached_property
    def names(self) -> list[str]:
        """Entrants: lines of reference first, then as they came."""
        return sorted(self._told, key=lambda name: DIVISIONS.index(self._told[name][1]))

    @cached_property
    def main(self) -> list[str]:
        """Blocks that are ranked; where only others have results is none, unless there is nothing else."""
        plain = [block for block, setting in self.settings.items() if setting.clients == CLIENTS and setting.is_plain]
        own = {block for name, block in self._cells if self.division(name) != "open"}
        return [block for block in plain if block in own] or plain

    def division(self, name: str) -> str:
        """Of an entrant."""
        return self._told[name][1]

    def assumptions(self, name: str) -> str:
        """Where an entrant stands in the lattice; empty for lines of reference."""
        return self._told[name][0]

    def seeds(self, name: str, block: str, figure: str = "accuracy") -> dict[int, float]:
        """A figure of one entrant in one block, by seed; nothing where it is not known."""
        cells = self._cells.get((name, block), {})
        return {seed: figures[figure] for seed, figures in sorted(cells.items()) if figure in figures}

    def spread(self, name: str, block: str, figure: str = "accuracy") -> Spread | None:
        """The same over seeds."""
        values = list(self.seeds(name, block, figure).values())
        if not values:
            return None
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return Spread(math.fsum(values) / len(values), deviation, len(values))

    def paired(self, name: str, blocks: Sequence[str], figure: str = "accuracy") -> list[float | None]:
        """Means in several blocks, over the seeds that all of those have in which the figure is known at all."""
        known = [self.seeds(name, block, figure) for block in blocks]
        common = set.intersection(*(set(seeds) for seeds in known if seeds)) if any(known) else set()
        return [
            math.fsum(seeds[s] for s in sorted(common)) / len(common) if seeds and common else None for seeds in known
        ]

    def mean(self, name: str, figure: str = "accuracy") -> float | None:
        """A figure over all main blocks; None where one of them is missing."""
        found = [self.spread(name, block, figure) for block in self.main]
        known = [spread.mean for spread in found if spread is not None]
        return math.fsum(known) / len(known) if known and len(known) == len(found) else None

    def mean_anywhere(self, name: str, figure: str) -> float | None:
        """The same over those main blocks in which it is known."""
        known = [spread.mean for block in self.main if (spread := self.spread(name, block, figure)) is not None]
        return math.fsum(known) / len(known) if known else None

    # Ranks

    @cached_property
    def contenders(self) -> list[str]:
        """Who is ranked: the closed division, as far as every main block is there."""
        return [name for name in self.names if self.division(name) == "closed" and self.mean(name) is not None]

    @cached_property
    def ranking(self) -> Ranking | None:
        """Of the contenders over main blocks; None where they are too few."""
        if len(self.contenders) < 2 or len(self.main) < 2:
            return None
        return ranked(self._scores(self.contenders))

    def _scores(self, names: Sequence[str]) -> list[list[float]]:
        """Accuracy, [blocks, entrants]."""
        spreads = [[self.spread(name, block) for name in names] for block in self.main]
        return [[math.nan if spread is None else spread.mean for spread in row] for row in spreads]

    @cached_property
    def _standing(self) -> dict[str, tuple[bool, bool]]:
        """Whether a contender is the best of its assumption cell, and whether it is not significantly worse."""
        found: dict[str, tuple[bool, bool]] = {}
        for cell in dict.fromkeys(self.assumptions(name) for name in self.contenders):
            alike = [name for name in self.contenders if self.assumptions(name) == cell]
            best = max(range(len(alike)), key=lambda place: (self.mean(alike[place]) or 0.0, -place))
            equal = indistinguishable(self._scores(alike), best)
            found |= {name: (place == best, equal[place]) for place, name in enumerate(alike)}
        return found

    # Rows

    @cached_property
    def entries(self) -> list[Entry]:
        """All rows, references first."""
        ranks: dict[str, float] = {}
        if self.ranking is not None:
            ranks = dict(zip(self.contenders, self.ranking.ranks.tolist(), strict=True))
        return [self._entry(name, ranks.get(name)) for name in self.names]

    def _entry(self, name: str, rank: float | None) -> Entry:
        blocks = {block: spread for block in self.main if (spread := self.spread(name, block)) is not None}
        known = dict.fromkeys(
            figure
            for (entrant, _), seeds in self._cells.items()
            if entrant == name
            for row in seeds.values()
            for figure in row
        )
        figures = {figure: mean for figure in known if (mean := self.mean_anywhere(name, figure)) is not None}
        if (closed := self.gap_closed(name)) is not None:
            figures["gap_closed"] = closed
        is_best, is_equal = self._standing.get(name, (False, False))
        return Entry(name, self.assumptions(name), self.division(name), blocks, figures, rank, is_best, is_equal)

    def gap_closed(self, name: str) -> float | None:
        """How far an entrant comes from the mean client's accuracy to that of all data in one place, over main blocks.

        None where a line of reference is missing; blocks without a gap do not count.
        """
        shares = []
        for block in self.main:
            own, low, high = (self.spread(each, block) for each in (name, MEAN_CLIENT, CENTRAL))
            if own is not None and low is not None and high is not None and high.mean > low.mean:
                shares.append((own.mean - low.mean) / (high.mean - low.mean))
        return math.fsum(shares) / len(shares) if shares else None
