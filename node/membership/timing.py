"""How often members probe, how long they wait, and how widely they tell: presets for three kinds of network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from node.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds on each node's own clock, and multiples.

    Raises:
        ConfigError: a value is out of its range.
    """

    probe_interval_s: float
    """A member probes one other per interval."""
    probe_timeout_s: float
    """Without an answer for so long, others are asked to probe; below the interval."""
    indirect_probes: int
    """How many others are asked."""
    suspicion_mult: int
    """alpha: a suspect has at least alpha log10(n) probe intervals to object; alpha - 2 confirmations shorten it to
    that."""
    suspicion_max_mult: int
    """beta: at most beta times as long; 1: always the least."""
    retransmit_mult: int
    """A rumour is passed on this many times ceil(log10(n + 1))."""
    gossip_interval_s: float
    """Between rounds of gossip, while there are rumours."""
    gossip_fanout: int
    """Peers told in a round."""
    push_pull_interval_s: float
    """Between comparisons of the whole view with one other member."""
    dead_gossip_s: float
    """The dead still get gossip for so long, so that who is wrongly called dead hears of it."""
    health_ceiling: int = 8
    """Timeouts grow with bad local health up to this many times; 1: never."""
    forget_s: float = 86_400.0
    """Who is dead, or has left, is remembered for so long, and the dead are looked for."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "indirect_probes" else 1 if field.type == "int" else 0.0
            if not least <= value < math.inf or (field.type == "float" and value == 0):
                raise ConfigError(f"{field.name}: {value} is out of range; allowed: {least} or more, finite, no time 0")
        if self.probe_timeout_s >= self.probe_interval_s:
            raise ConfigError(
                f"probe_timeout_s: {self.probe_timeout_s} leaves no time for indirect probes; allowed: below the "
                f"interval of {self.probe_interval_s} s"
            )

    def retransmits(self, members: int) -> int:
        """How often a rumour is passed on in a network of some size."""
        return self.retransmit_mult * max(1, math.ceil(math.log10(members + 1)))

    def suspicion_s(self, members: int) -> tuple[float, float]:
        """The least and the most time that a suspect has to object."""
        least_s = self.suspicion_mult * max(1.0, math.log10(max(1, members))) * self.probe_interval_s
        return least_s, self.suspicion_max_mult * least_s

    def confirmations(self, members: int) -> int:
        """K: how many other accusers are expected of a peer that is really gone; 0 where there are too few members."""
        wanted = self.suspicion_mult - 2
        return wanted if 0 < wanted <= members - 2 else 0


PRESETS: Mapping[str, Timing] = {
    # Switched networks: round trips of a millisecond, so half a second of silence means something.
    "lan": Timing(
        probe_interval_s=1.0,
        probe_timeout_s=0.5,
        indirect_probes=3,
        suspicion_mult=4,
        suspicion_max_mult=6,
        retransmit_mult=4,
        gossip_interval_s=0.2,
        gossip_fanout=3,
        push_pull_interval_s=30.0,
        dead_gossip_s=30.0,
    ),
    # The Internet: slow and unsteady round trips, and traffic that somebody pays for.
    "wan": Timing(
        probe_interval_s=5.0,
        probe_timeout_s=3.0,
        indirect_probes=3,
        suspicion_mult=6,
        suspicion_max_mult=6,
        retransmit_mult=4,
        gossip_interval_s=0.5,
        gossip_fanout=4,
        push_pull_interval_s=60.0,
        dead_gossip_s=60.0,
    ),
    # Many processes of one machine: nothing is lost, whoever is silent is starved or gone.
    "host": Timing(
        probe_interval_s=1.0,
        probe_timeout_s=0.2,
        indirect_probes=1,
        suspicion_mult=3,
        suspicion_max_mult=6,
        retransmit_mult=2,
        gossip_interval_s=0.1,
        gossip_fanout=3,
        push_pull_interval_s=15.0,
        dead_gossip_s=15.0,
    ),
}
"""After the defaults of memberlist 0.6 (HashiCorp)."""
