"""How long the members of a cohort wait for each other."""

from __future__ import annotations

from dataclasses import dataclass

from node.errors import ConfigError


@dataclass(frozen=True)
class Timing:
    """Seconds on each node's own clock, all from the election timeout T and the clocks' worst drift.

    Raises:
        ConfigError: a value is out of its range.
    """

    timeout_s: float
    """T: without a leader for T to 2 T, a node stands for election. At least 10 times the 95th percentile of the round
    trip."""
    drift: float = 0.01
    """Share by which a clock may run fast or slow."""
    heartbeats: int = 8
    """Heartbeats of a leader in T."""

    def __post_init__(self) -> None:
        if not 0 < self.timeout_s < float("inf"):
            raise ConfigError(f"timeout_s: {self.timeout_s} is no election timeout; allowed: above 0")
        if not 0 <= self.drift < 0.25:
            raise ConfigError(f"drift: {self.drift} is no drift rate of a clock; allowed: 0 to below 0.25")
        if not 5 <= self.heartbeats <= 10:
            raise ConfigError(f"heartbeats: {self.heartbeats} in an election timeout; allowed: 5 to 10")

    @property
    def heartbeat_s(self) -> float:
        """Between two heartbeats of a leader."""
        return self.timeout_s / self.heartbeats

    @property
    def lease_s(self) -> float:
        """How long nobody else can lead after a majority has followed.

        Followers turn others away for T on clocks that may be fast, T / (1 + drift) of true time; the leader counts on
        a clock that may be slow. ``(1 - drift) / (1 + drift) >= 1 - 2 drift``, so that the lease ends first.
        """
        return self.timeout_s * (1 - 2 * self.drift)
