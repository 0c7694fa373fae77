"""Models cut into chunks that travel under the names of virtual nodes; ``ctx.privacy.chunks`` gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from node.op import Ref, Spec
from node.participants import Participants

if TYPE_CHECKING:
    from node.context import Context
    from node.private import Mechanisms


class Chunks:
    """A participant's part in sending chunks of models under the names of virtual nodes."""

    __slots__ = ("_beacon", "_chunks", "_ctx", "_degree", "_mechanisms", "_participants")

    def __init__(
        self, ctx: Context, mechanisms: Mechanisms, participants: Participants, chunks: int, degree: int, beacon: str
    ) -> None:
        self._ctx = ctx
        self._mechanisms = mechanisms
        self._participants = participants
        self._chunks = chunks
        self._beacon = beacon
        self._degree = degree

    @property
    def owner(self) -> int | None:
        """Whose virtual node this is: no other participant can ask; None for one that is none."""
        return self._participants.owner(self._ctx.me)

    @property
    def virtual(self) -> tuple[int, ...]:
        """This node's own virtual nodes, by the number of the chunk that each carries: no other can ask for them."""
        return self._participants.virtual_of(self._ctx.me)

    def neighbours(self, round: int) -> tuple[int, ...]:
        """The virtual nodes that this one passes its chunk to in a round, and hears from, sorted."""
        first, count = self._participants.peers, len(self._participants.virtual)
        graph = self._mechanisms.virtual_graph(first, count, self._degree, self._beacon)
        return graph.neighbours(self._ctx.me, round)

    def cut(self, model: Ref, round: int) -> list[Ref]:
        """All chunks of a model, by number."""
        apply, static = self._ctx.apply, self._static(round)
        return [apply(self._mechanisms.cut, model, chunk=chunk, **static) for chunk in range(self._chunks)]

    def merged(self, model: Ref, received: Sequence[tuple[int, Ref]], round: int) -> Ref:
        """The mean, coordinate by coordinate, of a model and numbered chunks; what is no chunk is left out."""
        fitting = [(number, part) for number, part in received if self._fits(model, number, part, round)]
        if len(fitting) < len(received):
            self._ctx.log.warning("chunks refused", round=round, count=len(received) - len(fitting))
        if not fitting:
            return model
        numbers = tuple(number for number, _ in fitting)
        parts = [part for _, part in fitting]
        return self._ctx.apply(self._mechanisms.merged, model, *parts, numbers=numbers, **self._static(round))

    def _fits(self, model: Ref, number: int, part: Ref, round: int) -> bool:
        if not 0 <= number < self._chunks:
            return False
        size = self._mechanisms.chunk_size(self._chunks, number, self._beacon, round)
        return part.spec == Spec((size,), model.spec.dtype)

    def _static(self, round: int) -> dict[str, object]:
        sizes = self._mechanisms.sizes
        return {"sizes": sizes, "chunks": self._chunks, "beacon": self._beacon, "round": round}
