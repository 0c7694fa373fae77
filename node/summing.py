"""One masked sum at its receiver: what has come of it, what those who are there need to open it, and what comes out."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING, NamedTuple
from typing import Protocol as Interface

from node.op import Ref, Spec

if TYPE_CHECKING:
    from node.context import Context
    from node.private import Keys, Mechanisms


class Total(Interface):
    """One masked sum."""

    @property
    def round(self) -> int:
        """Of which round."""
        ...

    @property
    def senders(self) -> tuple[int, ...]:
        """Whose models it is of, or of some of them: sorted."""
        ...

    @property
    def weights(self) -> tuple[float, ...]:
        """How much each of them counts, where that has to be told."""
        ...

    @property
    def digest(self) -> bytes:
        """Names the sum."""
        ...

    @property
    def threshold(self) -> int:
        """How many senders it takes to open the sum where others are missing."""
        ...

    @property
    def share_bytes(self) -> int:
        """Size of what a sender gives another one to open the sum with."""
        ...


class Part(NamedTuple):
    """A sender's part of a masked sum."""

    value: Ref
    """Its weighted model, masked, int32."""
    total: bytes
    """Names the sum: run, round, receiver and senders."""
    shares: tuple[bytes, ...] = ()
    """What each sender needs to open the sum, sealed for it; none: the sum needs all parts, and is not opened."""


class Gathered:
    """A sum at its receiver, as far as parts of it have come."""

    __slots__ = (
        "_ctx",
        "_held",
        "_is_recoverable",
        "_keys",
        "_mechanisms",
        "_shares",
        "_total",
        "_weights",
        "_window",
    )

    def __init__(
        self,
        ctx: Context,
        keys: Keys,
        mechanisms: Mechanisms,
        total: Total,
        weights: Mapping[int, float],
        recoverable: bool,
        window: int | None = None,
    ) -> None:
        """``weights``: of each sender's model in the sum; ``window``: parts that are held at most, None: all."""
        self._ctx = ctx
        self._keys = keys
        self._mechanisms = mechanisms
        self._total = total
        self._weights = weights
        self._is_recoverable = recoverable
        self._window = window
        self._held: list[Ref] = []
        self._shares: dict[int, tuple[bytes, ...]] = {}

    def add(self, sender: int, part: Part) -> bool:
        """Take in what a sender has sent; False where it is no part of this sum, or not the first."""
        if sender in self._shares or not self._fits(sender, part):
            return False
        self._shares[sender] = part.shares
        self._held.append(part.value)
        if self._window is not None and len(self._held) > self._window:
            with self._ctx.aside():
                self._held = [self._ctx.apply(self._mechanisms.summed, *self._held)]
            self._ctx.spawn(self._settle(self._held[0]))
        return True

    @property
    def alive(self) -> tuple[int, ...]:
        """Whose models the sum is of, sorted; empty where there are too few for one."""
        enough = self.threshold if self._is_recoverable else len(self._total.senders)
        return tuple(sorted(self._shares)) if len(self._shares) >= enough else ()

    @property
    def round(self) -> int:
        """What the receiver has numbered it."""
        return self._total.round

    @property
    def digest(self) -> bytes:
        """Names the sum."""
        return self._total.digest

    @property
    def threshold(self) -> int:
        """How many of those who are there it takes to open the sum."""
        return self._total.threshold

    def shares_for(self, sender: int) -> tuple[bytes, ...]:
        """What one of those who are there needs from each of them to open the sum, in their order."""
        place = self._total.senders.index(sender)
        return tuple(self._shares[peer][place] for peer in self.alive)

    def total(self, own: Ref, openings: Mapping[int, bytes]) -> Awaitable[Ref | None]:
        """The weighted sum of the models of those who are there; reads whether it is plausible beside ``own``.

        ``openings``: what some of them have made of :meth:`shares_for`. None where there is no sum, or too few have
        opened it, and where an element is too large, or too far from this node's ``own`` model, to come from honest
        senders: one of them lies, and nobody can tell who. What it takes is recorded at once.
        """
        alive = self.alive
        hidden = self._keys.masks(self._total, alive, openings) if alive and self._is_recoverable else ((), ())
        if not alive or hidden is None:
            return self._dropped("too few have opened it" if alive else "")
        ctx = self._ctx
        static = {"added": hidden[0], "removed": hidden[1], "dtype": own.spec.dtype}
        total = ctx.apply(self._mechanisms.unmasked, *self._held, **static)
        weight = sum(self._weights[sender] for sender in alive)
        verdict = ctx.apply(self._mechanisms.plausible, total, own, weight=weight, senders=len(alive))
        return self._judged(total, verdict)

    async def _judged(self, total: Ref, verdict: Ref) -> Ref | None:
        if (await self._ctx.value(verdict))["plausible"]:
            return total
        return await self._dropped("it is not what honest senders make")

    async def _dropped(self, reason: str) -> Ref | None:
        if reason:
            self._ctx.log.warning("sum dropped", round=self.round, senders=len(self.alive), reason=reason)
        return None

    async def _settle(self, partial: Ref) -> None:
        """Let go of the parts that are in it."""
        await self._ctx.value(partial)

    def _fits(self, sender: int, part: Part) -> bool:
        total = self._total
        like = Spec(self._ctx.initial_model().spec.shape, "int32")
        if sender not in total.senders or (part.total, part.value.spec) != (total.digest, like):
            return False
        sizes = [0 if peer == sender else total.share_bytes for peer in total.senders]
        return [len(share) for share in part.shares] == (sizes if self._is_recoverable else [])
