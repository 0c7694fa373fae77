"""Who goes and comes when: from availability traces, seeded sessions, or a schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import tee
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from node.config import ChurnSection, Distribution
from node.errors import ConfigError
from node.participants import Participants
from node.sim.traces.availability import Availability, availability

_DAY_S = 86_400.0

What: TypeAlias = Literal["crash", "leave", "pause", "return"]


class Change(NamedTuple):
    """A node goes, or comes back."""

    time_s: float
    what: What


class Churn(NamedTuple):
    """What happens to the nodes that do not stay all the time."""

    absent: Mapping[int, What]
    """Nodes that are not there at the beginning, and how: ``leave`` for those that join later, as everybody knows."""
    changes: Mapping[int, Iterator[Change]]
    """Each node's changes from then on, by time; endless for sessions and repeating traces."""

    def of_devices(self, participants: Participants) -> Churn:
        """The same for everybody: an identity goes and comes with the device that it is on."""
        on: dict[int, list[int]] = {}
        for number in range(participants.total):
            on.setdefault(participants.device(number), []).append(number)
        absent = {number: what for device, what in self.absent.items() for number in on[device]}
        changes: dict[int, Iterator[Change]] = {}
        for device, stream in self.changes.items():
            changes.update(zip(on[device], tee(stream, len(on[device])), strict=True))
        return Churn(absent, changes)


def churn(section: ChurnSection, nodes: int, seed: int, learners: Sequence[int]) -> Churn | None:
    """What a configuration means for so many nodes; None: all stay.

    Raises:
        ConfigError: a node that does not exist, or keys that contradict one another.
    """
    _check(section, nodes)
    scheduled = _scheduled(section)
    subject = [node for node in (learners if section.nodes is None else section.nodes) if node not in scheduled]
    traced = availability(section, nodes, seed)
    absent: dict[int, What] = {node: "leave" for node, changes in scheduled.items() if changes[0].what == "return"}
    streams: dict[int, Iterator[Change]] = {node: iter(changes) for node, changes in scheduled.items()}
    if traced is not None:
        absent.update((node, section.going) for node in subject if not traced[node].online(0.0))
        streams.update((node, _of_trace(traced[node], section.going)) for node in subject)
    elif section.online_s is not None and section.offline_s is not None:
        sessions = {
            node: Sessions(section.online_s, section.offline_s, section.diurnal, seed, node) for node in subject
        }
        absent.update((node, section.going) for node, session in sessions.items() if not session.starts_online)
        streams.update((node, _going(session.changes(), section.going)) for node, session in sessions.items())
    return Churn(absent, streams) if streams else None


def _check(section: ChurnSection, nodes: int) -> None:
    for i, fault in enumerate(section.schedule):
        if fault.node >= nodes:
            raise ConfigError(f"churn.schedule[{i}].node: there is no node {fault.node}; allowed: 0 to {nodes - 1}")
    for node in section.nodes or ():
        if node >= nodes:
            raise ConfigError(f"churn.nodes: there is no node {node}; allowed: 0 to {nodes - 1}")
    if (section.online_s is None) != (section.offline_s is None):
        missing = "online_s" if section.online_s is None else "offline_s"
        raise ConfigError(f"churn.{missing}: sessions need both online_s and offline_s")
    if section.diurnal and section.online_s is None:
        raise ConfigError("churn.diurnal: only sessions follow the day; set online_s and offline_s, or leave it out")
    if section.trace and section.online_s is not None:
        raise ConfigError("churn.trace: a trace and sessions (online_s, offline_s) exclude each other; keep one")


def _scheduled(section: ChurnSection) -> dict[int, list[Change]]:
    """Each node's scheduled changes by time, without those that change nothing."""
    by_node: dict[int, list[Change]] = {}
    for fault in sorted(section.schedule, key=lambda fault: fault.time_s):
        changes = by_node.setdefault(fault.node, [])
        if changes and (changes[-1].what == "return") == (fault.what == "return"):
            state = "there" if fault.what == "return" else "away"
            raise ConfigError(
                f"churn.schedule: node {fault.node} is {state} already at {fault.time_s:g} s, so it cannot {fault.what}"
            )
        changes.append(Change(fault.time_s, fault.what))
    return by_node


def _going(changes: Iterator[tuple[float, bool]], going: What) -> Iterator[Change]:
    return (Change(time_s, "return" if online else going) for time_s, online in changes)


def _of_trace(trace: Availability, going: What) -> Iterator[Change]:
    return _going(trace.changes(0.0), going)


class Sessions:
    """Periods on and off, drawn independently, beginning in the stationary state.

    The chance of being there at first, and how long the first period still lasts, are those of a process that has been
    going on for ever: a fresh first period would make short sessions too common (the inspection paradox). ``diurnal``
    makes time offline run faster by day than by night: 1 + diurnal * sin(2 pi (t / day + phase)).
    """

    def __init__(self, online: Distribution, offline: Distribution, diurnal: float, seed: int, node: int) -> None:
        self._online = online
        self._offline = offline
        self._diurnal = diurnal
        self._seed = seed
        self._node = node
        rng = self._rng(0)
        up, down = mean(online), mean(offline)
        self._phase = float(rng.random())
        self.starts_online = bool(rng.random() < up / (up + down))

    def changes(self) -> Iterator[tuple[float, bool]]:
        """Times in seconds, and whether the node is there from then on; endless."""
        now_s, online, number = 0.0, self.starts_online, 1
        draw: Callable[[Distribution, np.random.Generator], float] = residual
        while True:
            length_s = draw(self._online if online else self._offline, self._rng(number))
            now_s += length_s if online or not self._diurnal else self._by_day(now_s, length_s)
            online, number, draw = not online, number + 1, sample
            yield now_s, online

    def _rng(self, number: int) -> np.random.Generator:
        """The generator of one draw: cheaper to make anew than to keep for every node."""
        stream = int.from_bytes(b"sessions", "little")
        return np.random.Generator(np.random.Philox(key=[self._seed, stream], counter=[0, 0, number, self._node]))

    def _by_day(self, start_s: float, length_s: float) -> float:
        """How long it takes for ``length_s`` of time that runs faster by day to pass."""
        amplitude = self._diurnal * _DAY_S / (2 * math.pi)

        def angle(time_s: float) -> float:
            return 2 * math.pi * (time_s / _DAY_S + self._phase)

        def passed(duration_s: float) -> float:
            return duration_s + amplitude * (math.cos(angle(start_s)) - math.cos(angle(start_s + duration_s)))

        low, high = max(0.0, length_s - 2 * amplitude), length_s + 2 * amplitude
        while high - low > 1e-6 * max(1.0, length_s):
            middle = (low + high) / 2
            low, high = (middle, high) if passed(middle) < length_s else (low, middle)
        return high


def mean(quantity: Distribution) -> float:
    """The mean of a distribution."""
    match quantity.distribution:
        case "uniform":
            return (quantity.low + _given(quantity.high)) / 2
        case "lognormal":
            return _given(quantity.median) * math.exp(quantity.sigma**2 / 2)
        case _:
            return _given(quantity.mean)


def sample(quantity: Distribution, rng: np.random.Generator) -> float:
    """A whole period."""
    match quantity.distribution:
        case "uniform":
            return float(rng.uniform(quantity.low, _given(quantity.high)))
        case "lognormal":
            return _given(quantity.median) * math.exp(quantity.sigma * float(rng.standard_normal()))
        case "weibull":
            return _scale(quantity) * float(rng.weibull(quantity.shape))
        case _:
            return float(rng.exponential(_given(quantity.mean)))


def residual(quantity: Distribution, rng: np.random.Generator) -> float:
    """What is left of the period that an outsider finds: a uniform share of one drawn in proportion to its length."""
    match quantity.distribution:
        case "uniform":
            low, high = quantity.low, _given(quantity.high)
            found = math.sqrt(low**2 + float(rng.random()) * (high**2 - low**2))
        case "lognormal":
            found = sample(quantity, rng) * math.exp(quantity.sigma**2)
        case "weibull":
            found = _scale(quantity) * float(rng.gamma(1 + 1 / quantity.shape)) ** (1 / quantity.shape)
        case _:
            found = float(rng.gamma(2.0, _given(quantity.mean)))
    return found * float(rng.random())


def _scale(quantity: Distribution) -> float:
    return _given(quantity.mean) / math.gamma(1 + 1 / quantity.shape)


def _given(value: float | None) -> float:
    assert value is not None  # the section has checked that its distribution is complete
    return value
