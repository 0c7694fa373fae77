"""The ops behind ``ctx.privacy``, and the keys of nodes: made from the operating system's randomness, or from a seed.

A node's key is made for one life of it. A restarted node shows a new one, so that no mask of an earlier life can come
again whatever it has forgotten; within a life, it masks for each receiver and round once.
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from hashlib import blake2b
from typing import Protocol as Interface

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from torch import Tensor

from node.errors import BadSignature
from node.identity import Identity, Roster
from node.op import Op, Task
from node.privacy import chunks, correlated, gossip, masking, recovery
from node.privacy.chunks import chunk_size
from node.privacy.clipping import noised_update
from node.privacy.keys import PairSecrets, Rounds
from node.privacy.noise import KEY_BYTES, NoiseSource, secret, secret_coins, seeded
from node.privacy.virtual import VirtualGraph
from node.private import Coins, Keys, ShownKey
from node.summing import Total
from node.topology import Topology

SIGNATURE_BYTES = 64

_KEY_DOMAIN = b"starling/key/1\0"


class Voucher(Interface):
    """Signs for a node, and says whether others have signed what they are said to have."""

    run: bytes
    """Names the run: the same at all its nodes."""

    def sign(self, node: int, statement: bytes) -> bytes:
        """This node's signature, 64 bytes."""
        ...

    def check(self, node: int, statement: bytes, signature: bytes) -> None:
        """Raise BadSignature unless a node has signed a statement."""
        ...


class RosterVoucher:
    """Signatures of the identities that a roster vouches for."""

    def __init__(self, identity: Identity, roster: Roster) -> None:
        self.run = roster.network.encode()
        self._identity = identity
        self._roster = roster

    def sign(self, node: int, statement: bytes) -> bytes:
        """This node's signature."""
        return self._identity.sign(statement)

    def check(self, node: int, statement: bytes, signature: bytes) -> None:
        """Raise BadSignature unless a node has signed a statement, NotAMember for one that is not in the roster."""
        self._roster.card(node).check(statement, signature)


class SeededVoucher:
    """What stands for signatures where all nodes' secrets follow from one seed: whoever knows it can make them."""

    def __init__(self, seed: int, run: bytes) -> None:
        """``seed``: up to 128 bits."""
        self.run = run
        self._seed = seed

    def sign(self, node: int, statement: bytes) -> bytes:
        """What stands for a node's signature."""
        key = struct.pack("<Q", node) + self._seed.to_bytes(16, "little")
        return blake2b(statement, key=key, digest_size=SIGNATURE_BYTES).digest()

    def check(self, node: int, statement: bytes, signature: bytes) -> None:
        """Raise BadSignature unless it is that of the node and the statement."""
        if signature != self.sign(node, statement):
            raise BadSignature(f"node {node} has not signed what it is said to have said")


class NodeKeys:
    """One node's keys; a :class:`~node.private.Keys`."""

    def __init__(self, node: int, voucher: Voucher, secret_key: bytes, pairs: PairSecrets | None = None) -> None:
        """``secret_key``: X25519, 32 bytes; ``pairs``: secrets to use in place of those that keys agree on."""
        public = X25519PrivateKey.from_private_bytes(secret_key).public_key().public_bytes_raw()
        self.shown = ShownKey(public, voucher.sign(node, _statement(voucher.run, node, public)))
        self._node = node
        self._voucher = voucher
        self._secret_key = secret_key
        self._met: dict[int, bytes] = {}
        self._fixed = pairs
        self._contributions = recovery.Contributions(node, Rounds())
        self._agree()

    @property
    def decorrelate(self) -> Op[...]:
        """The op that adds noise shared with peers."""
        return self._decorrelate

    @property
    def masked(self) -> Op[...]:
        """The op that makes a part of a masked sum."""
        return self._masked

    def meet(self, peer: int, shown: ShownKey) -> None:
        """Take a peer's key. BadSignature for one that the peer has not signed for this run, or that is of no use."""
        known = self._met.get(peer)
        if known == shown.public:
            return
        self._voucher.check(peer, _statement(self._voucher.run, peer, shown.public), shown.signature)
        if known is not None:  # ops that were recorded with the old key must go on with it
            self._met = {**self._met}
            del self._met[peer]
            self._agree()
        self._met[peer] = shown.public
        try:
            self._pairs.stream("secagg", peer, 0)
        except BadSignature:
            del self._met[peer]
            raise

    def begin(
        self, round: int, receiver: int, senders: tuple[int, ...], recoverable: bool, weights: tuple[float, ...] = ()
    ) -> tuple[bytes, tuple[bytes, ...]]:
        """Take part in a sum, once; gives its digest, and sealed shares for each of its senders, if recoverable.

        ProtocolError for a second time, too few senders, or weights that are none.
        """
        total = masking.MaskedSum(self._voucher.run, round, receiver, senders, weights)
        if recoverable:
            return total.digest, self._contributions.share(total, self._pairs)
        self._contributions.begin(total)
        return total.digest, ()

    def open(self, receiver: int, digest: bytes, alive: Sequence[int], shares: Sequence[bytes]) -> bytes:
        """Shares that open the sum of those who are there. ProtocolError for a second time, or where it is unsafe."""
        return self._contributions.open(receiver, digest, alive, shares)

    def total(self, round: int, senders: tuple[int, ...], weights: tuple[float, ...] = ()) -> masking.MaskedSum:
        """The sum that this node receives."""
        return masking.MaskedSum(self._voucher.run, round, self._node, senders, weights)

    def masks(self, total: Total, alive: Sequence[int], openings: Mapping[int, bytes]) -> recovery.Masks | None:
        """What hides the sum of those who are there, from what enough of them have opened."""
        return recovery.masks(self.total(total.round, total.senders, total.weights), alive, openings)

    def _agree(self) -> None:
        """Make the ops anew, over the keys of those that were met."""
        run = self._voucher.run
        self._pairs = self._fixed or PairSecrets.exchanged(self._node, self._secret_key, self._met, run)
        self._decorrelate = correlated.decorrelate(self._pairs)
        self._masked = masking.masked(self._pairs)


class NetworkMechanisms:
    """The ops of one world; a :class:`~node.private.Mechanisms`."""

    def __init__(
        self,
        source: NoiseSource,
        sizes: Sequence[int],
        keys: Callable[[int], Keys],
        coins: Callable[[int], Coins] = lambda node: secret_coins(),
    ) -> None:
        """``sizes``: parameters of each tensor of the model; ``keys``: makes those of a new life of a node."""
        self.noised = _noised(source)
        self.noised_update = noised_update(source)
        self.zip_shares = correlated.zip_shares(source)
        self.share = correlated.share
        self.summed = masking.summed
        self.unmasked = masking.unmasked
        self.plausible = masking.plausible
        self.cut = chunks.cut
        self.merged = chunks.merged
        self.sizes = tuple(sizes)
        self.keys = keys
        self.coins = coins
        self.virtual_graph = functools.cache(VirtualGraph)
        """The same object for all nodes of a simulation."""
        self._gammas: dict[tuple[Topology, int], float] = {}

    def gamma(self, topology: Topology, round: int) -> float:
        """The factor of accelerated gossip on a round's graph."""
        key = topology, round if topology.fresh else 0
        if key not in self._gammas:
            gap = gossip.spectral_gap(topology.matrix(round))
            self._gammas = {key: gossip.chebyshev_gamma(gap)}  # a graph drawn anew does not come back
        return self._gammas[key]

    def cancelling_variance(self, weights: Sequence[float]) -> Sequence[float]:
        """Variance of each member's noise in shares, as a multiple of ``deviation**2``."""
        variance: list[float] = correlated.cancelling_variance(weights).tolist()
        return variance

    def cancelling_residual(self, weights: Sequence[float], absent: Collection[int]) -> float:
        """What is left of all members' noise without some, as a multiple of ``deviation**2``."""
        return correlated.cancelling_residual(weights, absent)

    def chunk_size(self, chunks: int, chunk: int, beacon: str, round: int) -> int:
        """Coordinates of a chunk."""
        return chunk_size(sum(self.sizes), chunks, chunk, beacon, round)


def insecure(seed: int, run: str, sizes: Sequence[int]) -> NetworkMechanisms:
    """All noise and secrets follow from the experiment's seed, in every life of a node: for simulations, and real runs
    to compare with them.
    """
    keys = _seeded_keys(seed, run.encode())
    return NetworkMechanisms(seeded, sizes, keys, lambda node: np.random.default_rng([seed, node, *b"coins"]))


def unrepeatable(sizes: Sequence[int]) -> NetworkMechanisms:
    """For a simulation that no other equals: every life of a node has a key of its own from the operating system, and
    only this process can make what stands for signatures.
    """
    voucher = SeededVoucher(int.from_bytes(os.urandom(16)), os.urandom(16))
    return NetworkMechanisms(secret, sizes, _fresh_keys(voucher))


def secured(identity: Identity, roster: Roster, sizes: Sequence[int]) -> NetworkMechanisms:
    """Noise and keys from the operating system, keys signed by the node's identity: for real runs."""
    return NetworkMechanisms(secret, sizes, _fresh_keys(RosterVoucher(identity, roster)))


def _fresh_keys(voucher: Voucher) -> Callable[[int], Keys]:
    return lambda node: NodeKeys(node, voucher, os.urandom(KEY_BYTES))


def _seeded_keys(seed: int, run: bytes) -> Callable[[int], Keys]:
    voucher = SeededVoucher(seed, run)

    def keys(node: int) -> NodeKeys:
        secret_key = voucher.sign(node, b"starling/insecure-key/1")[:KEY_BYTES]
        return NodeKeys(node, voucher, secret_key, PairSecrets.seeded(node, seed, run))

    return keys


def _noised(source: NoiseSource) -> Op[...]:
    """The op that adds noise to a model as it is; static ``deviation``."""

    def solve(task: Task) -> Tensor:
        (model,) = task.inputs
        noise = torch.from_numpy(source(task.key).normals(model.numel())).mul_(task.static["deviation"])
        noised: Tensor = model + noise.to(model)
        return noised

    return Op(f"{__name__}:noised", solve, seeded=True)


def _statement(run: bytes, node: int, public: bytes) -> bytes:
    """What a node signs of its key."""
    return _KEY_DOMAIN + struct.pack("<QI", node, len(run)) + run + public
