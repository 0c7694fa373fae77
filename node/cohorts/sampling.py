"""Whom a leader asks in a round, from what it knows of its members' speed at most; :mod:`node.cohorts.oort` uses more.

Sampling is without replacement. Where fewer members are alive than are wanted, all of them are asked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from node.errors import ConfigError, ProtocolError

_DOMAIN = int.from_bytes(b"sampling")
"""Keeps this randomness apart from all other that derives from the experiment's seed."""


def generator(seed: int, cohort: int, round: int) -> np.random.Generator:
    """The randomness of one cohort's round: the same for whoever leads it."""
    return np.random.default_rng([_DOMAIN, seed, cohort, round])


def uniform(members: Sequence[int], count: int, rng: np.random.Generator) -> tuple[int, ...]:
    """``count`` of some members, all equally likely, sorted."""
    ordered = sorted(members)
    if count >= len(ordered):
        return tuple(ordered)
    return tuple(sorted(rng.choice(ordered, count, replace=False).tolist()))


def by_capacity(
    times_s: Mapping[int, float], count: int, rng: np.random.Generator, floor: float = 0.2
) -> tuple[int, ...]:
    """``count`` members, sorted: the shorter the time of a round, the likelier, but the slow appear too.

    ``times_s`` are positive estimates by member. The first draw has the probabilities of :func:`capacity_shares`, each
    further one the same among those that are left.
    """
    members = sorted(times_s)
    if count >= len(members):
        return tuple(members)
    shares = capacity_shares([times_s[member] for member in members], floor)
    return tuple(sorted(rng.choice(members, count, replace=False, p=shares).tolist()))


class Speeds:
    """How long each member took when it answered last, for :func:`by_capacity`; who never has is as fast as most."""

    def __init__(self) -> None:
        self._times_s: dict[int, float] = {}

    def select(self, members: Sequence[int], count: int, rng: np.random.Generator) -> tuple[int, ...]:
        """``count`` members, sorted, the faster the likelier."""
        known = sorted(self._times_s.values())
        usual_s = known[len(known) // 2] if known else 1.0
        return by_capacity({member: self._times_s.get(member, usual_s) for member in members}, count, rng)

    def observe(self, times_s: Mapping[int, float]) -> None:
        """Take in a round's times. One that is not positive and finite is no speed, and left out."""
        self._times_s |= {node: time_s for node, time_s in times_s.items() if 0 < time_s < math.inf}

    def state(self) -> bytes:
        """All of it, for a successor."""
        return np.array(sorted(self._times_s.items()), dtype="<f8").tobytes()

    def restore(self, state: bytes) -> None:
        """Go on from another one's :meth:`state`.

        Raises ProtocolError for what none of them has written.
        """
        if len(state) % 16:
            raise ProtocolError("not the state of a sampler: numbers are missing")
        pairs = np.frombuffer(state, dtype="<f8").reshape(-1, 2)
        if not (np.isfinite(pairs).all() and (pairs[:, 1] > 0).all()):
            raise ProtocolError("not the state of a sampler: its numbers have no meaning")
        self._times_s = {int(node): time_s for node, time_s in pairs.tolist()}


def capacity_shares(times_s: Sequence[float], floor: float = 0.2) -> NDArray[np.float64]:
    """Probabilities in proportion to ``1 / time``, but none below ``floor / len(times_s)``; they sum to 1.

    Raises ConfigError for a time that is not positive and finite, or a floor outside 0 to 1.
    """
    times = np.asarray(times_s, dtype=np.float64)
    if not (np.isfinite(times) & (times > 0)).all():
        raise ConfigError(f"times_s: {times[~(np.isfinite(times) & (times > 0))][0]}; allowed: above 0, and finite")
    if not 0 <= floor <= 1:
        raise ConfigError(f"protocol.capacity_floor: {floor}; allowed: 0 to 1")
    least = floor / len(times)
    speeds = 1 / times
    is_raised = np.zeros(len(times), dtype=bool)
    while not is_raised.all():
        scale = (1 - least * is_raised.sum()) / speeds[~is_raised].sum()
        below = ~is_raised & (speeds * scale < least)
        if not below.any():
            shares: NDArray[np.float64] = np.where(is_raised, least, speeds * scale)
            return shares / float(shares.sum())
        is_raised |= below
    return np.full(len(times), 1 / len(times))


def number_to_ask(wanted: int, factor: float = 1.3) -> int:
    """Members to ask for ``wanted`` answers, where not all may come in time (Bonawitz et al., MLSys 2019)."""
    if not factor >= 1:
        raise ConfigError(f"protocol.over_select: {factor}; allowed: 1 or more")
    return math.ceil(wanted * factor - 1e-9)  # 100 * 1.1 is a little over 110
