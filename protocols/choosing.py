"""Whom a leader asks in a round.

What a rule has learned of members is its state, which goes with every version of the model: whoever leads next chooses
as the last leader would have, because the randomness of a round is the cohort's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from node import Context, ProtocolError
from node.cohorts import Oort, Seen, Speeds, generator, number_to_ask, uniform
from protocols.cohort_round import Answer
from protocols.cohort_settings import Settings


class Choosing:
    """One leader's choice, by the rule of its settings."""

    def __init__(self, ctx: Context, settings: Settings, cohort: int, state: bytes) -> None:
        """``state``: where the last leader has got to; one that makes no sense counts as nothing."""
        self._settings = settings
        self._place = (ctx.seed, cohort)
        self._rule = _rule(settings)
        try:
            if self._rule is not None and state:
                self._rule.restore(state)
        except ProtocolError as error:
            ctx.log.warning("choosing members anew", reason=str(error))
            self._rule = _rule(settings)

    def draw(self, there: Sequence[int], round: int) -> tuple[int, ...]:
        """Whom of those that are there to ask, sorted; all, where no number is set."""
        settings = self._settings
        if not settings.sample or not there:
            return tuple(there)
        count, rng = number_to_ask(settings.sample, 1 + settings.over_select), generator(*self._place, round)
        if self._rule is None:
            return uniform(there, count, rng)
        if isinstance(self._rule, Oort):
            for member in there:
                self._rule.join(member, settings.oort.preferred_s)
        return self._rule.select(there, count, rng)

    def observe(self, answers: Mapping[int, Answer], times_s: Mapping[int, float]) -> None:
        """Take in who has answered, and after what time."""
        if isinstance(self._rule, Oort):
            self._rule.observe({m: Seen(answer.utility, times_s[m]) for m, answer in answers.items()})
        elif self._rule is not None:
            self._rule.observe(times_s)

    def state(self) -> bytes:
        """What a successor goes on from."""
        return b"" if self._rule is None else self._rule.state()


def _rule(settings: Settings) -> Oort | Speeds | None:
    match settings.sampling:
        case "oort":
            return Oort(settings.oort, {})
        case "capacity":
            return Speeds()
        case _:
            return None
