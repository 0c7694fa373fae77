"""What surrounds simulated nodes: the devices they run on, the links between them, and who is there when."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from node.clock import Clock
from node.config import ChurnSection, DevicesSection, NetworkSection
from node.drifting import Drift, DriftingClock
from node.errors import ConfigError
from node.sim.churn import Churn, churn
from node.sim.devices import Devices, build


class Spell(NamedTuple):
    """Something befalls some devices for a while."""

    nodes: frozenset[int]
    start_s: float
    end_s: float
    rate: float = 1.0
    """How much of it."""

    def strikes(self, node: int, now_s: float) -> bool:
        """Whether it befalls a device now."""
        return node in self.nodes and self.start_s <= now_s < self.end_s


@dataclass(frozen=True)
class Surroundings:
    """Everything about a simulated world that is not its protocol, data or executor."""

    devices: Devices
    network: NetworkSection
    churn: Churn | None = None
    cores: float = 0.0
    """Cores that all nodes share; 0: each has its own machine."""
    evaluate_time: bool = False
    detect_s: float = 0.0
    """How long after a crash the others know of it."""
    slowdowns: Sequence[Spell] = ()
    """Devices compute at a share of their speed."""
    garbage: Sequence[Spell] = ()
    """A share of what devices send comes as random bytes."""
    drifts: Sequence[Spell] = ()
    """Devices' clocks gain so many seconds in each."""
    full_disks: Sequence[Spell] = ()
    """Devices can keep nothing new."""

    def speed(self, node: int, now_s: float) -> float:
        """The share of its speed at which a device does what it begins now."""
        return math.prod(slow.rate for slow in self.slowdowns if slow.strikes(node, now_s))

    def is_disk_full(self, node: int, now_s: float) -> bool:
        """Whether a device can keep nothing new now."""
        return any(full.strikes(node, now_s) for full in self.full_disks)

    def clock(self, node: int, clock: Clock) -> Clock:
        """A device's own clock, where the true one is ``clock``."""
        drifts = [Drift(each.start_s, each.end_s, each.rate) for each in self.drifts if node in each.nodes]
        return DriftingClock(clock, drifts) if drifts else clock


def surround(
    nodes: int,
    seed: int,
    devices: DevicesSection,
    network: NetworkSection,
    churned: ChurnSection,
    *,
    learners: Sequence[int],
    flops: float = 1.0,
    reference_flops: float | None = 1.0,
    batch_size: int = 1,
) -> Surroundings:
    """Build the surroundings that a configuration describes.

    Args:
        learners: who comes and goes, where the configuration does not say.
        flops: of training one sample of the experiment's model.
        reference_flops: of the model that the devices' seconds are for; None: the configuration does not say.

    Raises:
        ConfigError: a key, or a file that it names, is wrong.
    """
    pauses = churned.going == "pause" or any(fault.what == "pause" for fault in churned.schedule)
    if devices.cores and pauses:
        raise ConfigError("devices.cores: nodes that share a machine cannot pause; use crash or leave, or cores = 0")
    return Surroundings(
        build(devices, nodes, seed, flops, reference_flops, batch_size),
        network,
        churn(churned, nodes, seed, learners),
        devices.cores,
        devices.evaluate_time,
        churned.detect_s,
    )
