"""What a cohort agrees on, and what a node must not forget."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from typing import Annotated, NamedTuple, Self

import msgspec

from node.errors import ProtocolError

Count = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
Round = Annotated[int, msgspec.Meta(ge=-1, lt=2**62)]
Text = Annotated[str, msgspec.Meta(max_length=256)]


class Stamp(NamedTuple):
    """Names an entry: a term has one leader, which proposes one entry after the other; so a larger one is newer."""

    term: Count
    round: Round
    epoch: Count


class Entry(NamedTuple):
    """The state of a cohort after a round: its model, and who belongs to it. Ordered by its first three fields."""

    term: Count
    """Of the leader that had it accepted; a later leader has it accepted again, under its own."""
    round: Round
    """That made the model; -1: none yet."""
    epoch: Count
    """Changes of membership, and planned changes of the leader, so far."""
    digest: Text
    """Of the model; empty where there is none yet."""
    members: Annotated[tuple[Count, ...], msgspec.Meta(max_length=4096)]
    """Sorted."""
    beacon: Text
    """Unknown before the last epoch ended, the same for all."""

    @property
    def stamp(self) -> Stamp:
        """Which entry it is."""
        return Stamp(self.term, self.round, self.epoch)

    @property
    def version(self) -> tuple[int, int]:
        """Which state of the cohort it is, whoever had it accepted."""
        return self.round, self.epoch

    def next_round(self, round: int, digest: str) -> Self:
        """The entry after this one that holds the next round's model."""
        return self._replace(round=round, digest=digest)

    def next_epoch(self, members: Iterable[int]) -> Self:
        """The entry after this one with which another epoch begins.

        ``beacon' = SHA-256(beacon | digest of the model at the end of the epoch)``.
        """
        beacon = hashlib.sha256(f"{self.beacon}|{self.digest}".encode()).hexdigest()
        return self._replace(epoch=self.epoch + 1, members=tuple(sorted(members)), beacon=beacon)


class Durable(NamedTuple):
    """What a node keeps before it says anything that follows from it."""

    term: Count
    voted_for: Count | None
    """In this term."""
    accepted: Entry
    committed: Entry
    """The newest that this node knows to be committed."""

    @classmethod
    def first(cls, members: Iterable[int], beacon: str = "") -> Durable:
        """A node at its cohort's beginning, which is the same for all members; without members: one that joins later.

        Who joins is a member once a leader has said so.
        """
        entry = Entry(0, -1, 0, "", tuple(sorted(set(members))), beacon)
        return cls(0, None, entry, entry)

    @property
    def digests(self) -> tuple[str, ...]:
        """The models that have to be kept along with this: of what was accepted, and of what was committed last."""
        return tuple(digest for digest in dict.fromkeys((self.accepted.digest, self.committed.digest)) if digest)

    def to_text(self) -> str:
        """One line of JSON, for a checkpoint."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_text(cls, text: str) -> Durable:
        """What :meth:`to_text` wrote. ProtocolError where it did not."""
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.MsgspecError as error:
            raise ProtocolError(f"election: this is not the state that a node has kept: {error}") from error


def is_majority(nodes: Collection[int], members: Sequence[int]) -> bool:
    """Whether more than half of the members are among some nodes: of all members, not of those alive."""
    return 2 * sum([member in nodes for member in members]) > len(members)
