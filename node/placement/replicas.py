"""How many nodes keep what: more of what is wanted more, without going back and forth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from node.errors import ConfigError
from node.placement.rendezvous import Key


class Popularity:
    """Demand for each key as an exponential moving average, in what is counted (bytes, requests) per second."""

    def __init__(self, time_constant_s: float) -> None:
        if not time_constant_s > 0:
            raise ConfigError(f"time_constant_s of a popularity is {time_constant_s}; allowed: more than 0")
        self._time_constant_s = time_constant_s
        self._rates: dict[Key, tuple[float, float]] = {}

    def demand(self, key: Key, amount: float, now_s: float) -> None:
        """So much was asked for now."""
        self._rates[key] = (self.rate(key, now_s) + amount / self._time_constant_s, now_s)

    def rate(self, key: Key, now_s: float) -> float:
        """What is asked for per second; that of what nobody asks for any more decays."""
        rate, at_s = self._rates.get(key, (0.0, now_s))
        return rate * math.exp((at_s - now_s) / self._time_constant_s)

    def shares(self, now_s: float) -> dict[Key, float]:
        """Of the whole demand, for all keys that were ever asked for."""
        rates = {key: self.rate(key, now_s) for key in self._rates}
        total = math.fsum(rates.values())
        return {key: rate / total if total else 0.0 for key, rate in rates.items()}

    def forget(self, key: Key) -> None:
        """The key is no more."""
        self._rates.pop(key, None)


@dataclass(frozen=True)
class ReplicaRule:
    """How many replicas follow from a share of the demand.

    The target is ``nodes * budget * share``: what all keys would get together if they shared ``budget`` places of every
    node. One replica is added where the target is above 1.3 times as many as there are, and one dropped where it is
    below 0.6 times, so that a demand which stays what it is moves nothing.
    """

    least: int = 2
    most: int = 8
    budget: float = 1.0
    add_above: float = 1.3
    drop_below: float = 0.6

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ConfigError(f"replicas are {self.least} to {self.most}; allowed: 1 <= least <= most")
        if not self.budget > 0:
            raise ConfigError(f"budget of replicas is {self.budget}; allowed: more than 0")

    def first(self, share: float, nodes: int) -> int:
        """Replicas of a key that has none yet."""
        return self._clamp(math.ceil(nodes * self.budget * share), nodes)

    def next(self, present: int, share: float, nodes: int) -> int:
        """Replicas of a key that has ``present``: as many, one more or one fewer."""
        target = nodes * self.budget * share
        if target > self.add_above * present:
            present += 1
        elif target < self.drop_below * present:
            present -= 1
        return self._clamp(present, nodes)

    def _clamp(self, count: int, nodes: int) -> int:
        return min(max(count, self.least), self.most, nodes)


def adjust(
    present: Mapping[Key, int], keys: list[Key], popularity: Popularity, rule: ReplicaRule, nodes: int, now_s: float
) -> dict[Key, int]:
    """Replicas of all keys from now on, from those of before."""
    shares = popularity.shares(now_s)
    counts = {}
    for key in keys:
        share = shares.get(key, 0.0)
        counts[key] = rule.next(present[key], share, nodes) if key in present else rule.first(share, nodes)
    return counts
