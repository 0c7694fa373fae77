"""Which compute node should serve a request: its adapter may be there, or it may have less to do.

Affinity (a request goes where its adapter is) and balance pull in different directions; each rule is one answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from node.errors import ConfigError, Missing
from node.placement.balance import SLACK, bounded, two_choices
from node.placement.rendezvous import Node, equally, preference

Strategy = Literal["random", "least-loaded", "rendezvous", "bounded", "two-choices", "cost"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)


@dataclass(frozen=True)
class Server:
    """A compute node as a router sees it; what it does not know yet is 0."""

    load: float = 0.0
    """Requests that it has."""
    slot_wait_s: float = 0.0
    """How long a request waits there for its place in a batch."""
    resident: frozenset[str] = frozenset()
    """The adapters that it has."""
    link_free_in_s: float = 0.0
    """When the transfers that are on their way to it are done."""
    rtt_s: float = 0.0
    bandwidth_bytes_per_s: float = float("inf")

    def first_token_s(self, adapters: Mapping[str, int]) -> float:
        """When a request could begin there: adapters are fetched while it waits for its place.

        Args:
            adapters: what it needs, with sizes in bytes.
        """
        missing = [size for adapter, size in adapters.items() if adapter not in self.resident]
        if not missing:
            return self.slot_wait_s
        fetch_s = self.link_free_in_s + self.rtt_s + sum(missing) / self.bandwidth_bytes_per_s
        return max(self.slot_wait_s, fetch_s)


@dataclass(frozen=True)
class Option:
    """One way to answer a request: adapters with their sizes in bytes, and what is lost in quality, in seconds."""

    adapters: Mapping[str, int]
    penalty_s: float = 0.0


class Router:
    """Chooses a node for each request.

    Args:
        strategy: ``random``; ``least-loaded``; ``rendezvous``: always the same node for an adapter; ``bounded``: the
            same, unless it has a quarter more than its share; ``two-choices``: the less loaded of an adapter's first
            two; ``cost``: the one where the first token would come first.

    Raises:
        ConfigError: there is no such strategy.
    """

    def __init__(self, strategy: str, rng: np.random.Generator, slack: float = SLACK) -> None:
        if strategy not in STRATEGIES:
            raise ConfigError(f"routing: {strategy!r} is not known; allowed: {', '.join(STRATEGIES)}")
        self._strategy = strategy
        self._rng = rng
        self._slack = slack

    def choose(self, options: Sequence[Option], servers: Mapping[Node, Server]) -> tuple[Node, Option]:
        """A node, and which of several ways to answer it should take; only ``cost`` looks beyond the first way.

        Raises:
            Missing: there is no node.
        """
        if not servers:
            raise Missing("no compute node is there to serve the request")
        ranked = preference(",".join(sorted(options[0].adapters)), equally(sorted(servers)))
        if self._strategy == "cost":
            return self._cheapest(options, servers, ranked)
        return self._node(ranked, {node: server.load for node, server in servers.items()}), options[0]

    def _node(self, ranked: list[Node], loads: Mapping[Node, float]) -> Node:
        match self._strategy:
            case "random":
                return sorted(ranked)[int(self._rng.integers(len(ranked)))]
            case "least-loaded":
                return min(ranked, key=lambda node: loads[node])
            case "bounded":
                return bounded(ranked, loads, self._slack)
            case "two-choices":
                return two_choices(ranked, loads)
            case _:
                return ranked[0]

    def _cheapest(
        self, options: Sequence[Option], servers: Mapping[Node, Server], ranked: list[Node]
    ) -> tuple[Node, Option]:
        pairs = [(node, option) for option in options for node in ranked]
        return min(pairs, key=lambda pair: servers[pair[0]].first_token_s(pair[1].adapters) + pair[1].penalty_s)
