"""Secure aggregation without a server: a node learns the weighted sum of its neighbours' models, and no single one.

Every two senders share a mask that one adds and the other subtracts, so that the masks cancel in the receiver's sum
(Bonawitz et al., CCS 2017, with single masks). Values are fixed-point numbers modulo 2**32: on the wire an int32 tensor
whose bits are those of the unsigned words.

Nobody can look into a part, so a sum may be anything up to the range of the words, and one that is far from the own
model is dropped (:func:`plausible`): no lie moves a model beyond what it can send itself, or by more than a factor in
a round. Many rounds of smaller lies do.

What is left open: a receiver that colludes with all other senders of a sum learns the last one's value, as from any
sum. And whoever is declared dead although its value has arrived is exposed once the others reveal their masks: they
have the receiver's signature on who was dead, no more. The safe way with a missing sender is to drop the round.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import msgspec
import numpy as np
import torch
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from numpy.typing import NDArray
from torch import Tensor

from node.errors import BadSignature, ComputeError, ProtocolError
from node.op import Op, Spec, Static, Task, Value, op
from node.privacy.keys import PairSecrets, Rounds
from node.private import LEAST_SENDERS

SCALE = 1 << 20
"""Steps of a fixed-point number between 0 and 1."""
LIMIT = 1 << 11
"""Sums are below this, in absolute value."""
FARTHEST = 8.0
"""No element of the senders' mean is farther from the own model's than this many times the largest one of the own
model, or than this where that is below 1."""

_SURVIVORS = b"starling/survivors/1\0"


@dataclass(frozen=True)
class MaskedSum:
    """One sum: whose values a receiver adds up in a round. All of them must mean the same one."""

    run: bytes
    round: int
    receiver: int
    senders: tuple[int, ...]

    def __post_init__(self) -> None:
        """Raises ProtocolError for too few senders, or for ones that are not sorted and distinct."""
        if len(self.senders) < LEAST_SENDERS:
            raise ProtocolError(
                f"a masked sum of {len(self.senders)} senders for node {self.receiver}; at least {LEAST_SENDERS} are "
                "needed, so that no two of those involved can expose a third"
            )
        if list(self.senders) != sorted(set(self.senders)) or self.receiver in self.senders:
            raise ProtocolError(f"senders {self.senders}: allowed are sorted, distinct nodes other than the receiver")

    @property
    def digest(self) -> bytes:
        """What names the sum on the wire, 16 bytes."""
        fields = (self.run, self.round, self.receiver, self.senders)
        return hashlib.blake2b(msgspec.msgpack.encode(fields), digest_size=16).digest()


@dataclass(frozen=True)
class Survivors:
    """Who sent a value for a sum, as its receiver has signed it."""

    senders: tuple[int, ...]
    signature: bytes
    """Ed25519, 64 bytes."""

    @classmethod
    def signed(cls, total: MaskedSum, senders: Sequence[int], sign: Callable[[bytes], bytes]) -> Self:
        """Sign with the receiver's Ed25519 key."""
        alive = tuple(sorted(senders))
        return cls(alive, sign(_statement(total, alive)))

    def dead(self, total: MaskedSum, signing_key: bytes) -> tuple[int, ...]:
        """The senders that are missing; ``signing_key``: the receiver's Ed25519 public key, 32 bytes.

        Raises BadSignature for a statement that is not the receiver's on this sum, ProtocolError for one that makes no
        sense or leaves too few.
        """
        try:
            Ed25519PublicKey.from_public_bytes(signing_key).verify(self.signature, _statement(total, self.senders))
        except (InvalidSignature, ValueError):
            raise BadSignature(
                f"who sent to node {total.receiver} in round {total.round} is not signed by it"
            ) from None
        dead = tuple(sender for sender in total.senders if sender not in self.senders)
        if len(self.senders) < LEAST_SENDERS or len(self.senders) + len(dead) != len(total.senders) or not dead:
            raise ProtocolError(
                f"survivors {self.senders} of senders {total.senders}; allowed are at least {LEAST_SENDERS} of them, "
                "and not all: drop the round"
            )
        return dead


class Contributions:
    """A sender's own book: which sums it takes part in, and for which it has revealed masks."""

    def __init__(self, me: int, rounds: Rounds) -> None:
        self._me = me
        self._rounds = rounds
        self._open: dict[int, MaskedSum] = {}

    def begin(self, total: MaskedSum) -> None:
        """Take part in a sum: call it before :func:`mask`, once. Raises ProtocolError for a second time."""
        if self._me not in total.senders:
            raise ProtocolError(f"node {self._me} is not among the senders {total.senders} of the sum")
        self._rounds.take(total.round, total.receiver)
        self._open[total.receiver] = total

    def reveal(self, total: MaskedSum, survivors: Survivors, signing_key: bytes) -> tuple[int, ...]:
        """Agree to reveal the masks shared with the dead, once; gives the dead, for :func:`correction`.

        Raises BadSignature and ProtocolError as :meth:`Survivors.dead`, ProtocolError also for a sum that this node
        took no part in, has revealed masks of, or has followed by another one.
        """
        if self._open.get(total.receiver) != total:
            raise ProtocolError(
                f"nothing to reveal for node {total.receiver} in round {total.round}: once, and in time"
            )
        dead = survivors.dead(total, signing_key)
        if self._me in dead:
            raise ProtocolError(f"node {self._me} is declared dead to itself in round {total.round}")
        del self._open[total.receiver]
        return dead


class Gathering:
    """A receiver's view of one sum: who has been heard. Once closed it takes nothing more."""

    def __init__(self, total: MaskedSum) -> None:
        self.total = total
        self._heard: set[int] = set()
        self._is_closed = False

    def heard(self, sender: int, digest: bytes) -> bool:
        """Whether a value counts: the first one of an expected sender, for this very sum, in time."""
        counts = (
            not self._is_closed
            and digest == self.total.digest
            and sender in self.total.senders
            and sender not in self._heard
        )
        if counts:
            self._heard.add(sender)
        return counts

    @property
    def missing(self) -> tuple[int, ...]:
        """The senders that have not been heard, sorted."""
        return tuple(sender for sender in self.total.senders if sender not in self._heard)

    def close(self) -> tuple[int, ...]:
        """Take nothing more; gives the senders heard, sorted. The sum is theirs only if none is missing."""
        self._is_closed = True
        return tuple(sender for sender in self.total.senders if sender in self._heard)


def quantise(weighted: Tensor, senders: int) -> NDArray[np.uint32]:
    """A vector as fixed-point words modulo 2**32, negative numbers in two's complement; off by half a step at most.

    Raises ComputeError for numbers whose sum over so many senders could overflow, or that are not finite.
    """
    values = weighted.detach().cpu().numpy().astype(np.float64).reshape(-1)
    largest = float(np.abs(values).max(initial=0.0))
    if not (largest * SCALE + 0.5) * senders < LIMIT * SCALE:
        raise ComputeError(
            f"secure aggregation: a value of {largest:g}, for a sum of {senders} senders; allowed are finite values "
            f"below {LIMIT / senders:g}: scale the model down, or clip it"
        )
    return np.rint(values * SCALE).astype(np.int64).astype(np.uint32)


def mask(weighted: Tensor, total: MaskedSum, secrets: PairSecrets) -> Tensor:
    """A sender's value for a sum, int32 [dimension]: its weighted model, quantised and masked.

    The sender applies the weight itself. Raises ComputeError as :func:`quantise`.
    """
    words = quantise(weighted, len(total.senders))
    for peer in total.senders:
        if peer != secrets.me:
            _add_mask(words, total, peer, secrets)
    return torch.from_numpy(words.view(np.int32))


def correction(total: MaskedSum, dead: Sequence[int], secrets: PairSecrets, dimension: int) -> Tensor:
    """The masks that a surviving sender has in common with the dead ones, as one sum, int32 [dimension]."""
    words = np.zeros(dimension, np.uint32)
    for peer in dead:
        _add_mask(words, total, peer, secrets)
    return torch.from_numpy(words.view(np.int32))


def unmask(values: Sequence[Tensor], corrections: Sequence[Tensor] = ()) -> Tensor:
    """The sum of all senders' values, float32 [dimension]; ``corrections``: one of each survivor, if some are dead.

    Off by at most half a step of ``1 / SCALE`` for each sender, and by float32's own rounding.
    """
    words = np.zeros(values[0].numel(), np.uint32)
    for value in values:
        words += value.numpy().view(np.uint32)
    for value in corrections:
        words -= value.numpy().view(np.uint32)
    return torch.from_numpy((words.view(np.int32) / SCALE).astype(np.float32))


def masked(secrets: PairSecrets) -> Op[...]:
    """The op that masks a model: static ``weight``, and ``round``, ``receiver``, ``senders`` of the sum."""

    def solve(task: Task) -> Tensor:
        static = task.static
        total = MaskedSum(secrets.run, static["round"], static["receiver"], static["senders"])
        return mask(task.inputs[0] * static["weight"], total, secrets)

    def spec(inputs: Sequence[Spec], static: Static) -> Spec:
        return Spec(inputs[0].shape, "int32")

    return Op(f"{__name__}:masked", solve, spec=spec, basis=secrets.basis)


@op(spec=lambda inputs, static: Spec(inputs[0].shape))
def unmasked(*values: Value) -> Value:
    """The sum of all senders' masked values, float32."""
    return unmask(values)


@op(spec=lambda inputs, static: Spec((1,), "float64", ("plausible",)))
def plausible(total: Value, own: Value, *, weight: float, senders: int) -> Value:
    """Whether, 1 or 0, a sum of so many senders, whose weights sum up to ``weight``, may be what honest ones made.

    Every element must be below ``LIMIT / senders``, which is what one sender may send, and no mean of the senders'
    models may be farther from the own model than :data:`FARTHEST` allows.
    """
    reach = FARTHEST * max(1.0, float(own.abs().max()))
    is_small = float(total.abs().max()) < LIMIT / senders
    return {"plausible": float(is_small and float((total / weight - own).abs().max()) <= reach)}


def _add_mask(words: NDArray[np.uint32], total: MaskedSum, peer: int, secrets: PairSecrets) -> None:
    """Add the mask shared with a peer, or subtract it where the peer adds it."""
    shared = secrets.stream("secagg", peer, total.round, total.receiver).words(len(words))
    if secrets.me < peer:
        words += shared
    else:
        words -= shared


def _statement(total: MaskedSum, senders: tuple[int, ...]) -> bytes:
    return _SURVIVORS + total.digest + msgspec.msgpack.encode(senders)
