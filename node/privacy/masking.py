"""Secure aggregation without a server: a node learns the weighted sum of its neighbours' models, and no single one.

Every two senders share a mask that one adds and the other subtracts, so that the masks cancel in the receiver's sum
(Bonawitz et al., CCS 2017). With these alone, a sum that is not complete is lost: no mask may ever be revealed. With a
mask of each sender's own besides, what :mod:`~node.privacy.recovery` opens gives the sum of those who are there.
Values are fixed-point numbers modulo 2**32: on the wire an int32 tensor whose bits are those of the unsigned words.

Nobody can look into a part, so a sum may be anything up to the range of the words, and one that is far from the own
model is dropped (:func:`plausible`): no lie moves a model beyond what it can send itself, or by more than a factor in
a round. Many rounds of smaller lies do.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from torch import Tensor

from node.errors import ComputeError, ProtocolError
from node.op import Op, Spec, Static, Task, Value, op
from node.privacy.keys import PairSecrets
from node.privacy.noise import KEY_BYTES, Keystream
from node.privacy.sharing import Words, field_words
from node.private import LEAST_SENDERS

SCALE = 1 << 20
"""Steps of a fixed-point number between 0 and 1."""
LIMIT = 1 << 11
"""Sums are below this, in absolute value."""
FARTHEST = 8.0
"""No element of the senders' mean is farther from the own model's than this many times the largest one of the own
model, or than this where that is below 1."""

SEED_WORDS = 5
"""Of what a mask is made from: 155 bits."""


@dataclass(frozen=True)
class MaskedSum:
    """One sum: whose values a receiver adds up in a round. All of them must mean the same one."""

    run: bytes
    round: int
    receiver: int
    senders: tuple[int, ...]
    weights: tuple[float, ...] = ()
    """How much each sender counts, where the receiver says so; none: all know. Part of what the sum is, as a receiver
    that gave all but one no weight would have that one's value."""

    def __post_init__(self) -> None:
        """Raises ProtocolError for too few senders, for ones that are not sorted and distinct, and for odd weights."""
        if len(self.senders) < LEAST_SENDERS:
            raise ProtocolError(
                f"a masked sum of {len(self.senders)} senders for node {self.receiver}; at least {LEAST_SENDERS} are "
                "needed, so that no two of those involved can expose a third"
            )
        if list(self.senders) != sorted(set(self.senders)) or self.receiver in self.senders:
            raise ProtocolError(f"senders {self.senders}: allowed are sorted, distinct nodes other than the receiver")
        fits = len(self.weights) == len(self.senders) and all(0 < weight < math.inf for weight in self.weights)
        if self.weights and not fits:
            raise ProtocolError(f"weights {self.weights} of {len(self.senders)} senders: each has one, finite, above 0")

    @property
    def digest(self) -> bytes:
        """What names the sum on the wire, 16 bytes."""
        fields = (self.run, self.round, self.receiver, self.senders, *([self.weights] if self.weights else []))
        return hashlib.blake2b(msgspec.msgpack.encode(fields), digest_size=16).digest()

    @property
    def threshold(self) -> int:
        """How many senders it takes to open the sum without the others: more than two thirds, and three at least."""
        return 2 * len(self.senders) // 3 + 1

    @property
    def share_bytes(self) -> int:
        """Size of what a sender gives another one to open the sum with."""
        return 4 * SEED_WORDS * len(self.senders)

    def key(self, seed: Words) -> bytes:
        """The key of the stream that a seed makes for this sum, and for no other, 32 bytes."""
        return hashlib.blake2b(seed.astype("<u4").tobytes(), key=self.digest, digest_size=KEY_BYTES).digest()


def quantise(weighted: Tensor, senders: int) -> Words:
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


def pair_seed(total: MaskedSum, peer: int, secrets: PairSecrets) -> Words:
    """What the mask is made from that two senders of a sum share."""
    return field_words(secrets.stream("secagg", peer, total.round, total.receiver), SEED_WORDS)


def own_stream(total: MaskedSum, secrets: PairSecrets) -> Keystream:
    """A sender's own random words for a sum: first the seed of its own mask."""
    return secrets.stream("self", secrets.me, total.round, total.receiver)


def mask(weighted: Tensor, total: MaskedSum, secrets: PairSecrets, recoverable: bool = False) -> Tensor:
    """A sender's value for a sum, int32 [dimension]: its weighted model, quantised and masked.

    The sender applies the weight itself. ``recoverable``: with a mask of its own too. Raises ComputeError as
    :func:`quantise`.
    """
    words = quantise(weighted, len(total.senders))
    for peer in total.senders:
        if peer != secrets.me:
            shared = _stream(total.key(pair_seed(total, peer, secrets)), len(words))
            words = words + shared if secrets.me < peer else words - shared
    if recoverable:
        words = words + _stream(total.key(field_words(own_stream(total, secrets), SEED_WORDS)), len(words))
    return torch.from_numpy(words.view(np.int32))


def unmask(
    values: Sequence[Tensor],
    added: Iterable[bytes] = (),
    removed: Iterable[bytes] = (),
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The sum of all senders' values, [dimension]; keys of streams to add, and of some to take away.

    Off by at most half a step of ``1 / SCALE`` for each sender, and by the rounding of ``dtype``.
    """
    words = _added(values)
    for key in added:
        words += _stream(key, len(words))
    for key in removed:
        words -= _stream(key, len(words))
    return torch.from_numpy(words.view(np.int32) / SCALE).to(dtype)


def masked(secrets: PairSecrets) -> Op[...]:
    """The op that masks a model: static ``weight``, ``recoverable``, and ``round``, ``receiver``, ``senders``,
    and ``weights``, if any.
    """

    def solve(task: Task) -> Tensor:
        static = task.static
        weights = static.get("weights", ())
        total = MaskedSum(secrets.run, static["round"], static["receiver"], static["senders"], weights)
        return mask(task.inputs[0] * static["weight"], total, secrets, static["recoverable"])

    def spec(inputs: Sequence[Spec], static: Static) -> Spec:
        return Spec(inputs[0].shape, "int32")

    return Op(f"{__name__}:masked", solve, spec=spec, basis=secrets.basis)


@op
def summed(*values: Value) -> Value:
    """Masked values added up modulo 2**32, int32: the same in whatever order."""
    return torch.from_numpy(_added(values).view(np.int32))


@op(spec=lambda inputs, static: Spec(inputs[0].shape, static.get("dtype", "float32")))
def unmasked(
    *values: Value, added: tuple[str, ...] = (), removed: tuple[str, ...] = (), dtype: str = "float32"
) -> Value:
    """The sum of masked values less what hides it: keys of streams, as hexadecimal digits."""
    return unmask(values, map(bytes.fromhex, added), map(bytes.fromhex, removed), getattr(torch, dtype))


@op(spec=lambda inputs, static: Spec((1,), "float64", ("plausible",)))
def plausible(total: Value, own: Value, *, weight: float, senders: int) -> Value:
    """Whether, 1 or 0, a sum of so many senders, whose weights sum up to ``weight``, may be what honest ones made.

    Every element must be below ``LIMIT / senders``, which is what one sender may send, and no mean of the senders'
    models may be farther from the own model than :data:`FARTHEST` allows.
    """
    reach = FARTHEST * max(1.0, float(own.abs().max()))
    is_small = float(total.abs().max()) < LIMIT / senders
    return {"plausible": float(is_small and float((total / weight - own).abs().max()) <= reach)}


def _added(values: Sequence[Tensor]) -> Words:
    words = np.zeros(values[0].numel(), np.uint32)
    for value in values:
        words += value.numpy().view(np.uint32)
    return words


def _stream(key: bytes, count: int) -> Words:
    return Keystream(key).words(count)
