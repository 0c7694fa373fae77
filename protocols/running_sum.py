"""A weighted sum of models that come one by one: whoever adds them up need not hold them all."""

from __future__ import annotations

from collections.abc import Iterable

from node import Context, Ref
from protocols.turns import Turns


class RunningSum:
    """Models added as they come, in the order of their senders' numbers.

    At most ``window`` models wait for those of lower numbers: one more, and the lowest that has come is added before
    its turn. Up to there the result has the bits of ``ctx.mix`` over all; beyond, two runs agree to rounding. So memory
    depends on the window, not on the number of senders.
    """

    def __init__(self, ctx: Context, senders: Iterable[int], window: int) -> None:
        self._ctx = ctx
        self._window = window
        self._turns = Turns[tuple[Ref, float]](senders, window, self._add)
        self._sum: Ref | None = None
        self._added = 0

    def add(self, sender: int, model: Ref, weight: float) -> None:
        """Take in the one model of a sender."""
        self._turns.put(sender, (model, weight))

    def total(self) -> Ref | None:
        """The sum of what has come; None where nothing has."""
        self._turns.finish()
        return self._sum

    def _add(self, sender: int, weighted: tuple[Ref, float]) -> None:
        model, weight = weighted
        with self._ctx.aside():
            if self._sum is None:
                self._sum = self._ctx.mix([model], [weight])
            else:
                self._sum = self._ctx.mix([self._sum, model], [1.0, weight])
        self._added += 1
        if self._added % self._window == 0:
            self._ctx.spawn(self._settle(self._sum))

    async def _settle(self, partial: Ref) -> None:
        """Let go of the models that are in the sum."""
        await self._ctx.value(partial)
