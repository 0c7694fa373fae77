"""What an aggregator has of its clients: whose upload counts, why others have no part, and what becomes of uploads.

Uploads are kept until all are made one predictor; where the algorithm streams, each is added up when its turn comes,
and let go.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

from node import Context, OneShot, ProtocolError, Ref, Sent
from protocols.turns import Turns


class Missing(IntEnum):
    """Why a client has no part in the result."""

    UNHEARD = 1
    """It was there, and had not uploaded when the aggregator closed."""
    GONE = 2
    LATE = 3
    """It uploaded when the aggregator had closed."""
    MALFORMED = 4
    """Its upload is not what the algorithm asks for."""
    UNSOUND = 5
    """Its upload has a NaN, an infinity or a number beyond 1e15 (``node.oneshot.LARGEST``)."""


class Intake:
    """Takes uploads in, one for each client: the first that is what the algorithm asks for.

    Args:
        clients: those who may upload.
        most_samples: what a client may claim at most; 0: anything.
        window: uploads that may wait for those of lower numbers, where the algorithm streams.
    """

    def __init__(self, ctx: Context, oneshot: OneShot, clients: Iterable[int], most_samples: int, window: int) -> None:
        self.missing = dict.fromkeys(clients, Missing.UNHEARD)
        """Clients whose upload does not count, as far as is known."""
        self.counted: dict[int, tuple[int, ...]] = {}
        """Clients whose upload counts, with the samples of each class that they have told of."""
        self._ctx = ctx
        self._oneshot = oneshot
        self._most_samples = most_samples
        self._is_closed = False
        self._unproven: dict[int, Ref] = {}
        self._kept: _Kept | _Added = _Kept()
        if oneshot.streams:
            self._kept = _Added(ctx, oneshot, self.missing, window)

    @property
    def held_bytes(self) -> int:
        """Bytes of uploads and sums that were held at a time, at most."""
        return self._kept.most_bytes

    def take(self, sent: Sent) -> bool:
        """Take an upload in; whether something has changed."""
        client = sent.client
        if client not in self.missing:
            return False
        if self._is_closed:
            if self.missing[client] is Missing.UNHEARD:
                self.missing[client] = Missing.LATE
            return False
        if reason := self._oneshot.refusal(sent):
            if self.missing[client] is Missing.UNHEARD:
                self.missing[client] = Missing.MALFORMED
                self._ctx.log.warning("an upload that does not count", client=client, reason=reason)
            return True
        del self.missing[client]
        if self._most_samples:
            sent = sent.claiming(self._most_samples)
        self.counted[client] = sent.counts
        with self._ctx.aside():  # the order in which uploads come must not move the aggregator's own randomness
            opened = self._oneshot.opened(sent)
            self._unproven[client] = self._oneshot.sound(opened)
            self._kept.put(opened)
        return True

    def awaited(self) -> tuple[int, ...]:
        """Clients that are there and have not uploaded anything."""
        return self._ctx.alive([client for client, why in self.missing.items() if why is Missing.UNHEARD])

    async def prove(self) -> None:
        """Turn those away whose upload is not sound."""
        while self._unproven:  # more may come meanwhile
            unproven, self._unproven = self._unproven, {}
            found = await self._ctx.values(list(unproven.values()))
            for client, verdict in zip(unproven, found, strict=True):
                if not verdict["sound"]:
                    del self.counted[client]
                    self.missing[client] = Missing.UNSOUND
                    self._kept.drop(client)

    def covers(self) -> int:
        """How many clients have samples of the class that fewest have."""
        columns = zip(*self.counted.values(), strict=True)
        return min((sum(count > 0 for count in column) for column in columns), default=0)

    def close(self) -> None:
        """Whatever comes from now on is late."""
        self._is_closed = True

    async def predictor(self) -> tuple[Ref, int]:
        """One predictor of all that counts, and how many that are; takes time.

        Raises:
            ProtocolError: nothing does.
        """
        await self.prove()
        if not self.counted:
            self.settle()
            raise ProtocolError(f"oneshot: no upload counts, nothing is left to aggregate; missing: {self.reasons()}")
        uploads = len(self.counted)
        return await self._kept.predictor(self._oneshot, uploads), uploads

    def settle(self) -> None:
        """Tell those that are gone from those that were not heard, and log who is missing."""
        there = set(self.awaited())
        for client, why in sorted(self.missing.items()):
            if why is Missing.UNHEARD and client not in there:
                self.missing[client] = Missing.GONE
            self._ctx.log.warning(
                "a client has no part in the result", client=client, reason=self.missing[client].name.lower()
            )

    def reasons(self) -> str:
        """Who is missing and why, in words."""
        return ", ".join(f"{client} {why.name.lower()}" for client, why in sorted(self.missing.items()))


class _Kept:
    """All uploads, until the end."""

    def __init__(self) -> None:
        self.most_bytes = 0
        self._bytes = 0
        self._uploads: dict[int, Sent] = {}

    def put(self, sent: Sent) -> None:
        self._uploads[sent.client] = sent
        self._bytes += sent.size_bytes
        self.most_bytes = max(self.most_bytes, self._bytes)

    def drop(self, client: int) -> None:
        self._bytes -= self._uploads.pop(client).size_bytes

    async def predictor(self, oneshot: OneShot, uploads: int) -> Ref:
        return await oneshot.aggregated(list(self._uploads.values()))


class _Added:
    """The sum of what has come in its turn; what has not waits, and so does what is added but not computed yet."""

    def __init__(self, ctx: Context, oneshot: OneShot, clients: Iterable[int], window: int) -> None:
        self.most_bytes = 0
        self._ctx = ctx
        self._oneshot = oneshot
        self._window = window
        self._turns = Turns[Sent](clients, window, self._add)
        self._sum: Ref | None = None
        self._pending = 0

    def put(self, sent: Sent) -> None:
        self._turns.put(sent.client, sent)
        held = (len(self._turns) + self._pending) * sent.size_bytes
        self.most_bytes = max(self.most_bytes, held + (0 if self._sum is None else self._sum.spec.size_bytes))

    def drop(self, client: int) -> None:
        """Nothing: an unsound upload adds nothing."""

    async def predictor(self, oneshot: OneShot, uploads: int) -> Ref:
        with self._ctx.aside():
            self._turns.finish()
        assert self._sum is not None
        return await oneshot.finished(self._sum, uploads)

    def _add(self, client: int, sent: Sent) -> None:
        self._sum = self._oneshot.added(self._sum, sent)
        self._pending += 1
        if self._pending == self._window:
            self._pending = 0
            self._ctx.spawn(self._settle(self._sum))

    async def _settle(self, partial: Ref) -> None:
        """Let go of the uploads that are in the sum."""
        await self._ctx.value(partial)
