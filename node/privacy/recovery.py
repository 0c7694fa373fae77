"""Masked sums that survive senders who drop out: what is shared beforehand, and what is opened afterwards.

Double masking of Bonawitz et al.: Practical Secure Aggregation for Privacy-Preserving Machine Learning, CCS 2017,
without a server. A part hides under the masks shared with the other senders and under one of the sender's own. With it
go Shamir shares of the seeds of all of these, sealed for each other sender. At its deadline the receiver names those
whose parts it has; they open, for each of them, shares of its own seed and of the seeds that it has in common with the
missing, and nothing else. Seeds, not keys: what is opened serves one sum, named by run, round, receiver and senders.
The shares of a part of ``n`` senders' sum take ``20 * n**2`` bytes, which travel twice.

Why it takes two masks: if parts alone gave the sum of whoever is there, one more part, coming late, would give the sum
with its sender too, and the difference is that sender's value. A sender that is not named is never opened: its own
mask stays, however late its part comes.

Why nobody asks whether all were told the same. A sender answers once in a sum, for a set that it is in itself and that
has :attr:`~node.privacy.masking.MaskedSum.threshold` members or more; of ``n`` senders that is more than ``2n/3``. A
seed of a sender's own needs as many votes for its being there as the ones it shares with the missing need against
theirs, and with ``c`` senders in league with the receiver no sender can have both while ``2 * threshold > n + c``: a
third of them may be. Then whatever sets a lying receiver has named, it can open one sum at most, and never that of a
single honest sender.

What is left open: friends of the receiver that are as many as the threshold open whatever they like, where without
shares it takes all senders but one to expose the last; up to six senders that is the same. And it is the receiver who
says which of its neighbours, :data:`~node.private.LEAST_SENDERS` at least, are the senders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from node.errors import ProtocolError
from node.privacy.keys import PairSecrets, Rounds
from node.privacy.masking import SEED_WORDS, MaskedSum, own_stream, pair_seed
from node.privacy.noise import Keystream
from node.privacy.sharing import Words, field_words, join, split


class Masks(NamedTuple):
    """What hides the sum of those who are there: keys of streams, as hexadecimal digits."""

    added: tuple[str, ...]
    removed: tuple[str, ...]


class Contributions:
    """A sender's own book: which sums it takes part in, and which of them may still be opened."""

    def __init__(self, me: int, rounds: Rounds) -> None:
        self._me = me
        self._rounds = rounds
        self._open: dict[int, tuple[MaskedSum, PairSecrets, Words]] = {}
        """The last sum of each receiver, the secrets that it was masked with, and this node's own shares of its own."""

    def begin(self, total: MaskedSum) -> None:
        """Take part in a sum: call it before masking, once. Raises ProtocolError for a second time."""
        if self._me not in total.senders:
            raise ProtocolError(f"node {self._me} is not among the senders {total.senders} of the sum")
        self._rounds.take(total.round, total.receiver)
        self._open.pop(total.receiver, None)

    def share(self, total: MaskedSum, secrets: PairSecrets) -> tuple[bytes, ...]:
        """Begin, and be ready to open the sum; gives what goes to each of its senders, in their order, sealed.

        Raises ProtocolError as :meth:`begin`.
        """
        self.begin(total)
        rows = _rows(total, secrets)
        self._open[total.receiver] = total, secrets, rows[total.senders.index(self._me)].copy()
        return tuple(
            b"" if peer == self._me else _sealed(row, total, peer, secrets, outgoing=True).astype("<u4").tobytes()
            for peer, row in zip(total.senders, rows, strict=True)
        )

    def open(self, receiver: int, digest: bytes, alive: Sequence[int], sealed: Sequence[bytes]) -> bytes:
        """The shares that open a sum of those who are there, once; ``sealed``: what each of them has for this node.

        Raises ProtocolError for a sum that this node took no part in, has opened, or has followed by another one, and
        for a set that is too small, or not made of its senders, or without this node.
        """
        if receiver not in self._open or self._open[receiver][0].digest != digest:
            raise ProtocolError(f"no sum of node {receiver} to open: each is opened once, and before the next one")
        total, secrets, own = self._open[receiver]
        _check_alive(total, alive)
        if self._me not in alive:
            raise ProtocolError(f"node {self._me} is said to be missing from the sum that it is to open")
        others = [len(row) for peer, row in zip(alive, sealed, strict=False) if peer != self._me]
        if len(sealed) != len(alive) or set(others) != {total.share_bytes}:
            raise ProtocolError(
                f"shares for {len(alive)} senders; allowed are as many, of {total.share_bytes} bytes each"
            )
        del self._open[receiver]
        dead = [total.senders.index(peer) for peer in missing(total, alive)]
        opened = []
        for peer, row in zip(alive, sealed, strict=True):
            is_own = peer == self._me
            shares = own if is_own else _sealed(np.frombuffer(row, "<u4"), total, peer, secrets, outgoing=False)
            opened.append(shares.reshape(-1, SEED_WORDS)[[total.senders.index(peer), *dead]])
        return np.stack(opened).astype("<u4").tobytes()


def missing(total: MaskedSum, alive: Sequence[int]) -> tuple[int, ...]:
    """The senders that are not there, sorted."""
    return tuple(sender for sender in total.senders if sender not in alive)


def masks(total: MaskedSum, alive: Sequence[int], openings: Mapping[int, bytes]) -> Masks | None:
    """What hides the sum of those who are there, from what some of them have opened; None where these are too few.

    Whoever opens something else than it should makes the sum a wrong one, which is for others to notice.
    """
    dead = missing(total, alive)
    shape = len(alive), 1 + len(dead), SEED_WORDS
    size_bytes = 4 * int(np.prod(shape))
    fitting = [peer for peer in alive if len(openings.get(peer, b"")) == size_bytes][: total.threshold]
    if len(fitting) < total.threshold:
        return None
    shares = np.stack([np.frombuffer(openings[peer], "<u4") for peer in fitting])
    seeds = join([total.senders.index(peer) + 1 for peer in fitting], shares).reshape(shape)
    added: list[str] = []
    removed: list[str] = []
    for peer, (own, *common) in zip(alive, seeds, strict=True):
        removed.append(total.key(own).hex())
        for other, seed in zip(dead, common, strict=True):
            (removed if peer < other else added).append(total.key(seed).hex())
    return Masks(tuple(added), tuple(removed))


def _check_alive(total: MaskedSum, alive: Sequence[int]) -> None:
    if len(alive) < total.threshold or list(alive) != [sender for sender in total.senders if sender in alive]:
        raise ProtocolError(
            f"a sum of {tuple(alive)} of the senders {total.senders}; allowed are {total.threshold} of them or more, "
            "sorted"
        )


def _rows(total: MaskedSum, secrets: PairSecrets) -> Words:
    """A sender's shares for each sender, of its own seed and of those that it has in common with the others."""
    coins = own_stream(total, secrets)
    own = field_words(coins, SEED_WORDS)
    seeds = [own if peer == secrets.me else pair_seed(total, peer, secrets) for peer in total.senders]
    return split(np.concatenate(seeds), len(total.senders), total.threshold, coins)


def _sealed(row: Words, total: MaskedSum, peer: int, secrets: PairSecrets, *, outgoing: bool) -> Words:
    """Shares on their way to a peer, or from it, to be sealed or to be read: the same thing.

    Changing what is sealed changes what comes out, in the same place: an opening then says no more than it should.
    """
    key = total.key(secrets.stream("share", peer, total.round, total.receiver).words(SEED_WORDS))
    first, second = Keystream(key).words(2 * len(row)).reshape(2, -1)
    pad = first if (secrets.me < peer) == outgoing else second
    return row ^ pad
