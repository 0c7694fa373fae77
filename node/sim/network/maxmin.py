"""Max-min fair rates of flows over links of limited capacity, kept up to date change by change.

Rates are max-min fair if no flow can have more without one that has no more having less. That holds if and only if no
link carries more than it can, and each flow has a *bottleneck*: a link that is full and on which no flow is faster
(Bertsekas and Gallager, Data Networks, 2nd ed., 1992, section 6.5). The condition is local, so a change is solved for
the flows near it, and more are drawn in only where the condition fails.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Mapping, Sequence

_UNBOUNDED = float("inf")


class MaxMin:
    """Flows, each over a path of links, and their rates. Without time: see :class:`~node.sim.network.links.FairLinks`.

    Capacities and rates are numbers of one unit: floats, or :class:`fractions.Fraction` for exact results.

    Args:
        capacities: of each link; links are numbered from 0.
        tolerance: relative difference below which two sums of rates count as equal; 0 with fractions.
    """

    def __init__(self, capacities: Iterable[float], tolerance: float = 1e-9) -> None:
        self.capacities = list(capacities)
        self.rates: dict[int, float] = {}
        """By flow, in the order of starting; of a flow that has just started 0, until :meth:`solve`."""
        self.bottlenecks: dict[int, int] = {}
        """The link that limits a flow, by flow."""
        self._above, self._below = 1 + tolerance, 1 - tolerance
        self._paths: dict[int, tuple[int, ...]] = {}
        self._on: list[dict[int, None]] = [{} for _ in self.capacities]
        self._changed: dict[int, None] = {}
        self._started = 0

    def start(self, path: Sequence[int]) -> int:
        """Let a flow begin over some links, at least one and each once; gives its number, which ascends."""
        flow = self._started
        self._started += 1
        self._paths[flow] = tuple(path)
        self.rates[flow] = 0
        for link in path:
            self._on[link][flow] = None
            self._changed[link] = None
        return flow

    def end(self, flow: int) -> None:
        """Take a flow away."""
        for link in self._paths.pop(flow):
            del self._on[link][flow]
            self._changed[link] = None
        del self.rates[flow]
        self.bottlenecks.pop(flow, None)

    def set_capacity(self, link: int, capacity: float) -> None:
        """Change what a link carries; 0 stalls its flows."""
        self.capacities[link] = capacity
        self._changed[link] = None

    def flows(self, link: int) -> Collection[int]:
        """The flows over a link, in the order of starting."""
        return self._on[link].keys()

    def solve(self) -> dict[int, float]:
        """Make the rates max-min fair again after any number of changes; gives the former rates of what it solved."""
        changed, self._changed = self._changed, {}
        solved = {flow: self.rates[flow] for link in changed for flow in self._on[link]}
        while True:
            counts = self._counted(solved)
            shared = [link for link, count in counts.items() if count < len(self._on[link])]
            levels = self._fill(solved, counts, shared)
            drawn_in = self._unfair(solved, shared, levels)
            if not drawn_in:
                return solved
            if 2 * (len(solved) + len(drawn_in)) > len(self.rates):
                drawn_in = self._connected(solved)
            solved.update((flow, self.rates[flow]) for flow in drawn_in if flow not in solved)

    def _counted(self, flows: Iterable[int]) -> dict[int, int]:
        """How many of some flows go over each link that any of them goes over."""
        paths = self._paths
        counts: dict[int, int] = {}
        for flow in flows:
            for link in paths[flow]:
                counts[link] = counts.get(link, 0) + 1
        return counts

    def _fill(self, flows: Mapping[int, float], counts: Mapping[int, int], shared: Iterable[int]) -> dict[int, float]:
        """Raise the rates of some flows together from 0, each until a link of its path is full; the others keep theirs.

        Gives the level at which each link stopped flows. A link's level only ever rises while others are fixed, so
        that looking at it again when it comes up is enough.

        Args:
            counts: of these flows, on each link that any goes over.
            shared: those of the links that other flows go over as well.
        """
        rates, paths, on = self.rates, self._paths, self._on
        waiting = dict(counts)
        left = {link: self.capacities[link] for link in counts}
        for link in shared:
            left[link] = self._left(link, flows)
        heap = [(left[link] / count, link) for link, count in counts.items()]
        heapq.heapify(heap)
        fixed: set[int] = set()
        levels: dict[int, float] = {}
        while len(fixed) < len(flows):
            level, link = heapq.heappop(heap)
            count = waiting[link]
            if not count:
                continue
            now = max(left[link], 0) / count
            if now > level:
                heapq.heappush(heap, (now, link))
                continue
            levels[link] = now
            for flow in on[link]:
                if flow in flows and flow not in fixed:
                    fixed.add(flow)
                    rates[flow] = now
                    self.bottlenecks[flow] = link
                    for other in paths[flow]:
                        waiting[other] -= 1
                        left[other] -= now
        return levels

    def _left(self, link: int, flows: Mapping[int, float]) -> float:
        """What other flows, which keep their rates, leave of a link for some."""
        return max(self.capacities[link] - sum([self.rates[flow] for flow in self._on[link] if flow not in flows]), 0)

    def _unfair(
        self, solved: Mapping[int, float], shared: Iterable[int], levels: Mapping[int, float]
    ) -> dict[int, None]:
        """Flows that were left out and must not be: too fast beside a solved one, or without a bottleneck by now."""
        rates, bottlenecks = self.rates, self.bottlenecks
        fastest: dict[int, float | None] = {}
        unfair: dict[int, None] = {}
        for link in shared:
            most = levels[link] * self._above if link in levels else _UNBOUNDED
            for flow in self._on[link]:
                if flow not in solved and (
                    rates[flow] > most or (bottlenecks[flow] == link and not self._has_bottleneck(flow, fastest))
                ):
                    unfair[flow] = None
        return unfair

    def _has_bottleneck(self, flow: int, fastest: dict[int, float | None]) -> bool:
        """Look for a bottleneck, and note it; ``fastest`` keeps what is found out of links."""
        rate = self.rates[flow]
        for link in self._paths[flow]:
            if link not in fastest:
                rates = [self.rates[other] for other in self._on[link]]
                fastest[link] = max(rates) if sum(rates) >= self.capacities[link] * self._below else None
            most = fastest[link]
            if most is not None and rate >= most * self._below:
                self.bottlenecks[flow] = link
                return True
        return False

    def _connected(self, flows: Iterable[int]) -> dict[int, None]:
        """All flows that share links with some, or with ones that do, and so on."""
        found = dict.fromkeys(flows)
        links: dict[int, None] = {}
        reached = list(found)
        while reached:
            for link in self._paths[reached.pop()]:
                if link not in links:
                    links[link] = None
                    reached.extend(flow for flow in self._on[link] if flow not in found)
                    found.update(self._on[link])
        return found
