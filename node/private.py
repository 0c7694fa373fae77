"""What hides a node's models from others: noise, shares whose noise cancels, masks, chunks, and keys that two agree on.

``ctx.privacy`` records all of it as ops. Where noise and secrets come from is not a protocol's affair: in a real run
from the operating system, in a simulation from the experiment's seed, so that every run has the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple
from typing import Protocol as Interface

import numpy as np
from numpy.typing import NDArray

from node.chunking import Chunks
from node.errors import BadSignature, ProtocolError
from node.op import Op, Ref
from node.participants import Participants
from node.summing import Gathered, Part, Total
from node.topology import Topology

if TYPE_CHECKING:
    from node.context import Context


LEAST_SENDERS = 3
"""Of a masked sum: with two, each is exposed as soon as the receiver colludes with the other."""


class ShownKey(NamedTuple):
    """A node's public key as it shows it to others."""

    public: bytes
    """X25519, 32 bytes."""
    signature: bytes
    """The node's own over the key and the run's name, 64 bytes."""


class Coins(Interface):
    """Independent uniform numbers: a numpy Generator, or a keystream."""

    def random(self, count: int, /) -> NDArray[np.float64]:
        """The next numbers from 0 up to 1, shape (count,)."""
        ...


class Keys(Interface):
    """One node's key, made for one life of it, and what it shares with nodes that have shown it theirs."""

    shown: ShownKey

    @property
    def decorrelate(self) -> Op[...]:
        """Adds the noise that is shared with ``peers``: static ``peers``, ``round``, ``deviation``."""
        ...

    @property
    def masked(self) -> Op[...]:
        """A part of a masked sum: static ``weight``, ``recoverable``, and ``round``, ``receiver``, ``senders`` and
        ``weights``, if any, which are those of the sum.
        """
        ...

    def meet(self, peer: int, shown: ShownKey) -> None:
        """Take a peer's key for what is recorded from now on. BadSignature for one that is not the peer's."""
        ...

    def begin(
        self, round: int, receiver: int, senders: tuple[int, ...], recoverable: bool, weights: tuple[float, ...] = ()
    ) -> tuple[bytes, tuple[bytes, ...]]:
        """Take part in a sum; gives its digest, and shares of what hides it for each of its senders, if recoverable.

        ``weights``: of the senders, in their order; none: all know them. ProtocolError for a sum that makes no sense,
        or a second time.
        """
        ...

    def open(self, receiver: int, digest: bytes, alive: Sequence[int], shares: Sequence[bytes]) -> bytes:
        """Shares that open the sum of those who are there, once. ProtocolError where this node must not."""
        ...

    def total(self, round: int, senders: tuple[int, ...], weights: tuple[float, ...] = ()) -> Total:
        """The sum that this node receives. ProtocolError for one that makes no sense."""
        ...

    def masks(
        self, total: Total, alive: Sequence[int], openings: Mapping[int, bytes]
    ) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        """What to add to a sum of those who are there, and what to take away, from what they have opened, if enough."""
        ...


class VirtualGraph(Interface):
    """Who passes chunks to whom among virtual nodes, round by round, as everybody can tell from a public beacon."""

    def neighbours(self, number: int, round: int) -> tuple[int, ...]:
        """Whom a virtual node passes its chunk to, and hears from, sorted."""
        ...


class Mechanisms(Interface):
    """The ops of an experiment's world; :mod:`node.privacy.mechanisms` has the real ones."""

    noised: Op[...]
    """A model and noise: static ``deviation``."""
    noised_update: Op[...]
    """Models before and after training to the first one, the clipped update, and noise: static ``clip``,
    ``noise_multiplier``."""
    zip_shares: Op[...]
    """A model with noise for each of some members: static ``weights``, ``deviation``."""
    share: Op[...]
    """One of them: static ``place``."""
    summed: Op[...]
    """Parts of a masked sum added up, as masked as they are."""
    unmasked: Op[...]
    """The sum of parts of a masked sum: static ``added`` and ``removed``, what hides it, and ``dtype``."""
    plausible: Op[...]
    """Whether such a sum may be what honest senders made, from it and the own model: static ``weight``, ``senders``."""
    cut: Op[...]
    """A chunk of a model: static ``sizes``, ``chunks``, ``chunk``, ``beacon``, ``round``."""
    merged: Op[...]
    """The mean of a model and chunks, coordinate by coordinate: static as ``cut``, with ``numbers`` for ``chunk``."""
    sizes: tuple[int, ...]
    """Parameters of each tensor of the model."""

    def keys(self, node: int) -> Keys:
        """The keys of a new life of a node."""
        ...

    def coins(self, node: int) -> Coins:
        """A node's own randomness; where it follows from the seed, the same at every call."""
        ...

    def gamma(self, topology: Topology, round: int) -> float:
        """The factor of accelerated gossip. ConfigError where mixing is not symmetric, or the graph falls apart."""
        ...

    def cancelling_variance(self, weights: Sequence[float]) -> Sequence[float]:
        """Variance of each member's noise in shares, as a multiple of ``deviation**2``."""
        ...

    def cancelling_residual(self, weights: Sequence[float], absent: Collection[int]) -> float:
        """What is left of all members' noise without some, by their places, as a multiple of ``deviation**2``."""
        ...

    def virtual_graph(self, first: int, count: int, degree: int, beacon: str) -> VirtualGraph:
        """A graph over virtual nodes ``first``, ``first + 1``, ..., of ``degree`` neighbours each, anew every round."""
        ...

    def chunk_size(self, chunks: int, chunk: int, beacon: str, round: int) -> int:
        """Coordinates of a chunk."""
        ...


class Privacy:
    """What a node can do to keep its models to itself; ``ctx.privacy`` gives it."""

    __slots__ = ("_ctx", "_keys", "_mechanisms", "_participants", "_topology")

    def __init__(self, ctx: Context, mechanisms: Mechanisms, topology: Topology, participants: Participants) -> None:
        self._ctx = ctx
        self._mechanisms = mechanisms
        self._topology = topology
        self._participants = participants
        self._keys: Keys | None = None

    # Noise

    def noised_update(self, before: Ref, after: Ref, clip: float, deviation: float) -> Ref:
        """The model before training, what training has changed, cut to the norm ``clip`` (0: as it is), and noise.

        ``deviation``: the noise's standard deviation on every coordinate. Without clipping it guarantees nothing.
        """
        if clip:
            static = {"clip": clip, "noise_multiplier": deviation / clip}
            return self._ctx.apply(self._mechanisms.noised_update, before, after, **static)
        return self._ctx.apply(self._mechanisms.noised, after, deviation=deviation) if deviation else after

    def coins(self) -> Coins:
        """What noise on numbers that are no model is drawn from: ask once, for a simulation gives the same each time.

        ``ctx.rng`` is not for that: it follows from the experiment's seed, which everybody knows, in a real run, too.
        """
        return self._mechanisms.coins(self._ctx.me)

    def gamma(self, round: int = 0) -> float:
        """The factor of accelerated gossip on a round's graph: ``x_{t+1} = gamma W x_t + (1 - gamma) x_{t-1}``."""
        return self._mechanisms.gamma(self._topology, round)

    def shares(self, model: Ref, receivers: Sequence[int], round: int, deviation: float) -> Shares:
        """The model with other noise for each of some neighbours of a round and for this node (Zip-DL).

        ``deviation``: of the noise that the shares are made of, ``eta * s`` in the paper.
        """
        topology, me = self._topology, self._ctx.me
        weights = [weight_at(topology, me, receiver, round) for receiver in receivers]
        own = topology.weights(me, round)[0]
        return Shares(self._ctx, self._mechanisms, model, (me, *receivers), (own, *weights), deviation)

    # Secrets

    @property
    def key(self) -> ShownKey:
        """This node's public key, to be shown to those that it shares secrets with."""
        return self._own_keys().shown

    def trusts(self, peer: int, shown: ShownKey) -> bool:
        """Whether a key is the peer's own and works; from now on it is then shared with."""
        try:
            self._own_keys().meet(peer, shown)
        except BadSignature as error:
            self._ctx.log.warning("key refused", peer=peer, reason=str(error))
            return False
        return True

    def decorrelated(self, model: Ref, peers: Collection[int], round: int, deviation: float) -> Ref:
        """The model and the noise that this node shares with each of some peers, which the other end subtracts (DECOR).

        ``peers`` are trusted, and take part in the round; ``deviation``: of each edge's noise.
        """
        static = {"peers": tuple(sorted(peers)), "round": round, "deviation": deviation}
        return self._ctx.apply(self._own_keys().decorrelate, model, **static) if peers and deviation else model

    def masked(
        self,
        model: Ref,
        receiver: int,
        round: int,
        senders: Mapping[int, ShownKey],
        recoverable: bool = False,
        weights: Mapping[int, float] | None = None,
    ) -> Part | None:
        """This node's part of another one's sum, which is noise by itself.

        None where this node must not take part: the senders are fewer than three, or not all of them neighbours of the
        receiver, a key is not its owner's, or there was a sum of this round or a later one before.

        Args:
            receiver: who adds up.
            round: numbers the receiver's sums.
            senders: whose models it says it adds up, under which keys.
            recoverable: whether the sum can be opened without some of them.
            weights: how much each sender counts, as the receiver says, of any nodes: the caller has checked both. All
                senders must have been told the same, or nothing comes out. None: it adds up neighbours, with the
                public weights of its mix.
        """
        if self._ctx.me not in senders:
            return None
        numbers = tuple(sorted(senders))
        stated = () if weights is None else tuple([weights[sender] for sender in numbers])
        try:
            if weights is None:
                self._check_neighbours(receiver, round, senders)
            digest, shares = self._begin(receiver, round, senders, recoverable, stated)
        except (BadSignature, ProtocolError) as error:
            self._ctx.log.warning("sum refused", receiver=receiver, round=round, reason=str(error))
            return None
        static: dict[str, object] = {"round": round, "receiver": receiver, "senders": numbers}
        static |= {"weights": stated} if stated else {}
        weight = self._weight_at(receiver, round) if weights is None else normalised(weights)[self._ctx.me]
        value = self._ctx.apply(self._own_keys().masked, model, weight=weight, recoverable=recoverable, **static)
        return Part(value, digest, shares)

    def opened(self, receiver: int, digest: bytes, alive: Sequence[int], shares: Sequence[bytes]) -> bytes | None:
        """What lets a receiver open a sum without those who are missing: once, and of nobody whom it does not name.

        ``alive``: whose parts it says it has; ``shares``: what each of them has for this node. None where this node
        must not open it.
        """
        try:
            return self._own_keys().open(receiver, digest, alive, shares)
        except ProtocolError as error:
            self._ctx.log.warning("opening refused", receiver=receiver, reason=str(error))
            return None

    def gathered(
        self, parts: Mapping[int, Part], senders: Collection[int], round: int, recoverable: bool = False
    ) -> Gathered:
        """The sum of the models of some neighbours of a round, three or more, as far as their parts have come."""
        ctx, keys = self._ctx, self._own_keys()
        weights = {sender: weight_at(self._topology, sender, ctx.me, round) for sender in senders}
        total = keys.total(round, tuple(sorted(senders)))
        gathered = Gathered(ctx, keys, self._mechanisms, total, weights, recoverable)
        for sender, part in sorted(parts.items()):
            gathered.add(sender, part)
        return gathered

    def gathering(self, weights: Mapping[int, float], round: int, window: int) -> Gathered:
        """The mean of some nodes' models, three or more, to which parts are yet to be added; some may stay away.

        Args:
            weights: how much each of them counts, as all of them have been told.
            round: numbers this node's sums.
            window: parts that are held at most before they are added up.
        """
        keys, senders = self._own_keys(), tuple(sorted(weights))
        total = keys.total(round, senders, tuple([weights[sender] for sender in senders]))
        return Gathered(self._ctx, keys, self._mechanisms, total, normalised(weights), True, window)

    def _check_neighbours(self, receiver: int, round: int, senders: Collection[int]) -> None:
        if strangers := set(senders) - set(self._topology.sources(receiver, round)):
            raise ProtocolError(f"node {min(strangers)} is none of the neighbours that node {receiver} adds up")

    def _begin(
        self,
        receiver: int,
        round: int,
        senders: Mapping[int, ShownKey],
        recoverable: bool,
        weights: tuple[float, ...],
    ) -> tuple[bytes, tuple[bytes, ...]]:
        me, keys = self._ctx.me, self._own_keys()
        if senders[me] != keys.shown:
            raise ProtocolError(f"node {receiver} counts on node {me} under a key that it has not shown")
        for peer, shown in sorted(senders.items()):
            if peer != me:
                keys.meet(peer, shown)
        return keys.begin(round, receiver, tuple(sorted(senders)), recoverable, weights)

    def _weight_at(self, receiver: int, round: int) -> float:
        return weight_at(self._topology, self._ctx.me, receiver, round)

    def _own_keys(self) -> Keys:
        if self._keys is None:
            self._keys = self._mechanisms.keys(self._ctx.me)
        return self._keys

    # Chunks

    def chunks(self, chunks: int, degree: int, beacon: str) -> Chunks:
        """Models cut into chunks that travel under names of their own (Shatter)."""
        return Chunks(self._ctx, self._mechanisms, self._participants, chunks, degree, beacon)


class Shares:
    """One model with noise for each member of a closed neighbourhood, which cancels when all of it are mixed."""

    __slots__ = ("_ctx", "_deviation", "_mechanisms", "_members", "_model", "_shares", "_weights")

    def __init__(
        self,
        ctx: Context,
        mechanisms: Mechanisms,
        model: Ref,
        members: Sequence[int],
        weights: Sequence[float],
        deviation: float,
    ) -> None:
        """``members``: this node first; ``weights``: of the model in each member's mix."""
        self._ctx = ctx
        self._mechanisms = mechanisms
        self._model = model
        self._members = tuple(members)
        self._weights = tuple(weights)
        self._deviation = deviation
        self._shares: Ref | None = None
        if deviation and len(members) > 1:
            static = {"weights": self._weights, "deviation": deviation}
            self._shares = ctx.apply(mechanisms.zip_shares, model, **static)

    def of(self, member: int) -> Ref:
        """The model as one member gets it."""
        if self._shares is None:
            return self._model
        return self._ctx.apply(self._mechanisms.share, self._shares, place=self._members.index(member))

    @property
    def least_variance(self) -> float:
        """Variance of the noise, on every coordinate, of the neighbour that gets least of it."""
        if self._shares is None:
            return 0.0
        return self._deviation**2 * min(self._mechanisms.cancelling_variance(self._weights)[1:])

    def residual_variance(self, absent: Collection[int]) -> float:
        """Variance of what is left of the noise, on every coordinate of the sum over nodes, where some were away."""
        if self._shares is None or not absent:
            return 0.0
        places = [place for place, member in enumerate(self._members) if member in absent]
        return self._deviation**2 * self._mechanisms.cancelling_residual(self._weights, places)


def normalised(weights: Mapping[int, float]) -> dict[int, float]:
    """What each node is of all of them, by number."""
    total = sum(weights[node] for node in sorted(weights))
    return {node: weights[node] / total for node in sorted(weights)}


def weight_at(topology: Topology, node: int, receiver: int, round: int) -> float:
    """What a node's model weighs in a receiver's mix."""
    return topology.weights(receiver, round)[1 + topology.sources(receiver, round).index(node)]
