"""Asking those who learn most in the shortest time.

Lai, Zhu, Madhyastha, Chowdhury: Oort: Efficient Federated Learning via Guided Participant Selection, OSDI 2021. What is
different here: utilities are clipped lower than at the paper's 95th percentile, because a loss is high for wrong labels
too. Of the members that were tried, a share of ``1 - clip_quantile`` is at the clipped value or above; so a minority
that has the highest utilities is drawn by exploitation at most ``1 / (1 - clip_quantile)`` times as often as its number
would have it, which the 95th percentile would make 20 times.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from node.config.section import NotNegative, Positive, Section
from node.errors import ProtocolError


class OortSection(Section):
    """Constants of Oort; published implementations differ in most of them."""

    preferred_s: Positive = 60.0
    """Time of a round (T) beyond which members are penalised, at the start."""
    penalty: NotNegative = 2.0
    """Exponent of the penalty ``(T / time)^penalty``; 0 for none."""
    staleness: NotNegative = 0.1
    """Weight under the root of ``sqrt(staleness * ln(round) / last round)``."""
    is_scaled: bool = True
    """Whether statistical utilities are clipped and scaled to 0 to 1 before staleness is added, as published."""
    clip_quantile: float = Field(0.6, ge=0, le=1)
    """Utilities above this quantile count as much as it; 0.95 in the paper."""
    cut_off: float = Field(0.95, gt=0, le=1)
    """Share of the utility of the last one to be exploited that a candidate must have."""
    explore: float = Field(0.9, ge=0, le=1)
    """Share of a round's members that have not been tried before, at the start."""
    explore_decay: float = Field(0.98, gt=0, le=1)
    """What that share is multiplied by after each round."""
    explore_least: float = Field(0.2, ge=0, le=1)
    """The least that it becomes."""
    pacer_rounds: int = Field(20, ge=1)
    """Rounds whose utility is compared with that of as many rounds before."""
    pacer_step_s: NotNegative = 10.0
    """By how much T grows where it has fallen."""
    most_times: int = Field(10, ge=0)
    """A member that was asked more often waits while there are others; 0: never."""


class Seen(NamedTuple):
    """What a member's answer says."""

    utility: float
    """:func:`statistical_utility` of its last batch."""
    time_s: float
    """How long it took."""


def statistical_utility(samples: int, losses: Sequence[float]) -> float:
    """``samples`` times the root mean square of its losses, of the samples of the last batch."""
    return samples * math.sqrt(np.mean(np.square(np.asarray(losses, dtype=np.float64))))


@dataclass(slots=True)
class _Member:
    time_s: float
    utility: float = 0.0
    last: int = 0
    asked: int = 0

    @property
    def is_tried(self) -> bool:
        return self.last > 0


class Oort:
    """The sampler of one cohort: :meth:`select` at the beginning of a round, :meth:`observe` at its end.

    Rounds count from 1 within; what is left of a member's state is what it answered last.

    Args:
        times_s: an estimate of the time of a round for each member, until it has answered.
    """

    def __init__(self, section: OortSection, times_s: Mapping[int, float]) -> None:
        self.section = section
        self.preferred_s = section.preferred_s
        self._members = {node: _Member(times_s[node]) for node in sorted(times_s)}
        self._round = 0
        self._explore = section.explore
        self._sums: deque[float] = deque(maxlen=2 * section.pacer_rounds)

    def state(self) -> bytes:
        """All that was seen, for a successor: its members are asked as these would have been."""
        head = [self._round, self._explore, self.preferred_s, len(self._sums), *self._sums]
        rows = [(node, m.time_s, m.utility, m.last, m.asked) for node, m in self._members.items() if m.asked]
        return np.array([*head, *itertools.chain(*rows)], dtype="<f8").tobytes()

    def restore(self, state: bytes) -> None:
        """Go on from another one's :meth:`state`.

        Raises ProtocolError for what none of them has written.
        """
        numbers = np.frombuffer(state, dtype="<f8") if len(state) % 8 == 0 else np.empty(0)
        is_sound = len(numbers) >= 4 and np.isfinite(numbers).all() and (numbers >= 0).all()
        sums = int(numbers[3]) if is_sound else 0
        if not is_sound or len(numbers) < 4 + sums or (len(numbers) - 4 - sums) % 5:
            raise ProtocolError("not the state of a sampler: its numbers have no meaning")
        rows = numbers[4 + sums :]
        self._round, self._explore, self.preferred_s = int(numbers[0]), float(numbers[1]), float(numbers[2])
        self._sums.extend(numbers[4 : 4 + sums].tolist())
        for node, time_s, utility, last, asked in rows.reshape(-1, 5).tolist():
            self._members[int(node)] = _Member(time_s, utility, int(last), int(asked))

    def join(self, node: int, time_s: float) -> None:
        """A member has come; one that is known keeps what was seen of it."""
        self._members.setdefault(node, _Member(time_s))

    def select(self, alive: Sequence[int], count: int, rng: np.random.Generator) -> tuple[int, ...]:
        """``count`` of the members that are alive, sorted; begins a round."""
        self._round += 1
        pool = self._allowed(sorted(alive), count)
        new = sorted((n for n in pool if not self._members[n].is_tried), key=lambda n: (self._members[n].time_s, n))
        tried = [node for node in pool if self._members[node].is_tried]
        exploring = max(min(round(self._explore * count), len(new)), min(count - len(tried), len(new)))
        exploited = self._exploit(tried, min(count - exploring, len(tried)), rng)
        chosen = tuple(sorted([*new[:exploring], *exploited]))
        for node in chosen:
            self._members[node].asked += 1
        self._explore = max(self._explore * self.section.explore_decay, self.section.explore_least)
        return chosen

    def observe(self, answers: Mapping[int, Seen]) -> None:
        """Take in a round's answers, and pace. A utility that is not finite and positive counts as 0."""
        total = 0.0
        for node in sorted(answers):
            member, seen = self._members[node], answers[node]
            member.utility = seen.utility if math.isfinite(seen.utility) and seen.utility > 0 else 0.0
            member.time_s, member.last = seen.time_s, self._round
            total += member.utility
        self._sums.append(total)
        rounds = self.section.pacer_rounds
        if self._round % rounds == 0 and len(self._sums) == 2 * rounds:
            sums = list(self._sums)
            if math.fsum(sums[rounds:]) < math.fsum(sums[:rounds]):
                self.preferred_s += self.section.pacer_step_s

    def utilities(self, nodes: Sequence[int]) -> NDArray[np.float64]:
        """The utility of members that were tried: statistical, plus staleness, times the penalty for being slow."""
        section, members = self.section, [self._members[node] for node in nodes]
        statistical = np.array([member.utility for member in members])
        if section.is_scaled and len(statistical):
            # One that claims a huge loss must not make all others look alike.
            low, high = statistical.min(), np.quantile(statistical, section.clip_quantile)
            held = np.minimum(statistical, high) - low
            statistical = held / (high - low) if high > low else np.ones_like(held)
        stale = [staleness(self._round, member.last, section.staleness) for member in members]
        slow = [slowness(member.time_s, self.preferred_s, section.penalty) for member in members]
        utilities: NDArray[np.float64] = (statistical + np.array(stale)) * np.array(slow)
        return utilities

    def _allowed(self, alive: Sequence[int], count: int) -> list[int]:
        """Those that were not asked too often; then the ones that were asked least."""
        most = self.section.most_times or math.inf
        fresh = [node for node in alive if self._members[node].asked <= most]
        tired = sorted((n for n in alive if self._members[n].asked > most), key=lambda n: (self._members[n].asked, n))
        return sorted([*fresh, *tired[: max(count - len(fresh), 0)]])

    def _exploit(self, tried: Sequence[int], count: int, rng: np.random.Generator) -> list[int]:
        """Some of the best, drawn in proportion to their clipped utilities."""
        if not count:
            return []
        utilities = self.utilities(tried)
        clipped = np.minimum(utilities, np.quantile(utilities, self.section.clip_quantile))
        last = np.sort(clipped)[-count]
        kept = np.flatnonzero(clipped >= self.section.cut_off * last)
        # Members without any utility may be needed to make up the number.
        weights = clipped[kept] + np.finfo(float).eps * max(float(clipped.max()), 1.0)
        picked = rng.choice(kept, count, replace=False, p=weights / weights.sum())
        return [tried[i] for i in picked.tolist()]


def staleness(round: int, last: int, weight: float = 0.1) -> float:
    """What is added for a member whose last answer is of an early round; rounds count from 1."""
    return math.sqrt(weight * math.log(round) / last)


def slowness(time_s: float, preferred_s: float, penalty: float = 2.0) -> float:
    """What the utility of a member that is slower than preferred is multiplied by."""
    return (preferred_s / time_s) ** penalty if time_s > preferred_s else 1.0
