"""What hides a node's models from others: noise, shares whose noise cancels, masks, chunks, and keys that two agree on.

``ctx.privacy`` records all of it as ops. Where noise and secrets come from is not a protocol's affair: in a real run
from the operating system, in a simulation from the experiment's seed, so that every run has the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple
from typing import Protocol as Interface

from node.errors import BadSignature, ProtocolError
from node.op import Op, Ref, Spec
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


class Keys(Interface):
    """One node's key, made for one life of it, and what it shares with nodes that have shown it theirs."""

    shown: ShownKey

    @property
    def decorrelate(self) -> Op[...]:
        """Adds the noise that is shared with ``peers``: static ``peers``, ``round``, ``deviation``."""
        ...

    @property
    def masked(self) -> Op[...]:
        """A part of a masked sum: static ``weight``, ``round``, ``receiver``, ``senders``."""
        ...

    def meet(self, peer: int, shown: ShownKey) -> None:
        """Take a peer's key for what is recorded from now on. BadSignature for one that is not the peer's."""
        ...

    def begin(self, round: int, receiver: int, senders: tuple[int, ...]) -> bytes:
        """Take part in a sum; gives its digest. ProtocolError for one that makes no sense, or a second time."""
        ...

    def total(self, round: int, senders: tuple[int, ...]) -> bytes:
        """The digest of the sum that this node receives. ProtocolError for one that makes no sense."""
        ...


class Hop(NamedTuple):
    """The way of one chunk in a round, from a virtual node of this node to one of another's."""

    to: int
    lane: int
    """Counts the chunks that go from the one node to the other in the round."""
    chunk: int


class VirtualNodes(Interface):
    """Who carries which chunk to whom, round by round, as everybody can tell from a public beacon."""

    def outgoing(self, node: int, round: int) -> Sequence[Hop]:
        """What a node sends."""
        ...

    def incoming(self, node: int, round: int) -> Mapping[int, int]:
        """How many chunks come to a node, by sender, sorted."""
        ...

    def chunk_size(self, chunk: int, round: int) -> int:
        """Coordinates of a chunk."""
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
    unmasked: Op[...]
    """The sum of all parts of a masked sum."""
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

    def gamma(self, topology: Topology, round: int) -> float:
        """The factor of accelerated gossip. ConfigError where mixing is not symmetric, or the graph falls apart."""
        ...

    def cancelling_variance(self, weights: Sequence[float]) -> Sequence[float]:
        """Variance of each member's noise in shares, as a multiple of ``deviation**2``."""
        ...

    def cancelling_residual(self, weights: Sequence[float], absent: Collection[int]) -> float:
        """What is left of all members' noise without some, by their places, as a multiple of ``deviation**2``."""
        ...

    def virtual_nodes(self, nodes: int, chunks: int, degree: int, beacon: str) -> VirtualNodes:
        """Virtual nodes, ``chunks`` a node, that each have ``degree`` neighbours in a graph drawn anew every round."""
        ...


class Privacy:
    """What a node can do to keep its models to itself; ``ctx.privacy`` gives it."""

    __slots__ = ("_ctx", "_keys", "_mechanisms", "_topology")

    def __init__(self, ctx: Context, mechanisms: Mechanisms, topology: Topology) -> None:
        self._ctx = ctx
        self._mechanisms = mechanisms
        self._topology = topology
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
        self, model: Ref, receiver: int, round: int, senders: Mapping[int, ShownKey]
    ) -> tuple[Ref, bytes] | None:
        """This node's part of a neighbour's sum, which is noise by itself, and the digest that names the sum.

        The model counts with its public weight in the receiver's mix. ``senders``: whose models the receiver says it
        adds up, under which keys. None where this node must not take part: they are fewer than three, or not all of
        them neighbours of the receiver, a key is not its owner's, or it has done so in this round before.
        """
        if self._ctx.me not in senders:
            return None
        try:
            digest = self._begin(receiver, round, senders)
        except (BadSignature, ProtocolError) as error:
            self._ctx.log.warning("sum refused", receiver=receiver, round=round, reason=str(error))
            return None
        static = {"weight": self._weight_at(receiver, round), "round": round, "receiver": receiver}
        masked = self._own_keys().masked
        return self._ctx.apply(masked, model, **static, senders=tuple(sorted(senders))), digest

    async def unmasked(
        self, own: Ref, parts: Mapping[int, tuple[Ref, bytes]], senders: Collection[int], round: int
    ) -> Ref | None:
        """The weighted sum of the senders' models, from their parts; reads whether it is plausible beside ``own``.

        None unless all parts are there and of this very sum, and no element is too large, or too far from this node's
        ``own`` model, to come from honest senders: one of them lies, and nobody can tell who.
        """
        if not senders:
            return None
        ctx, digest = self._ctx, self._own_keys().total(round, tuple(sorted(senders)))
        like = Spec(ctx.initial_model().spec.shape, "int32")
        found = {sender: part for sender, (part, named) in parts.items() if sender in senders and named == digest}
        if len(found) < len(senders) or any(part.spec != like for part in found.values()):
            return None
        total = ctx.apply(self._mechanisms.unmasked, *[found[sender] for sender in sorted(found)])
        weight = sum(weight_at(self._topology, sender, ctx.me, round) for sender in sorted(found))
        verdict = ctx.apply(self._mechanisms.plausible, total, own, weight=weight, senders=len(found))
        if (await ctx.value(verdict))["plausible"]:
            return total
        ctx.log.warning("sum dropped", round=round, senders=len(found), reason="it is not what honest senders make")
        return None

    def _begin(self, receiver: int, round: int, senders: Mapping[int, ShownKey]) -> bytes:
        me, keys = self._ctx.me, self._own_keys()
        if senders[me] != keys.shown:
            raise ProtocolError(f"node {receiver} counts on node {me} under a key that it has not shown")
        if strangers := set(senders) - set(self._topology.sources(receiver, round)):
            raise ProtocolError(f"node {min(strangers)} is none of the neighbours that node {receiver} adds up")
        for peer, shown in sorted(senders.items()):
            if peer != me:
                keys.meet(peer, shown)
        return keys.begin(round, receiver, tuple(sorted(senders)))

    def _weight_at(self, receiver: int, round: int) -> float:
        return weight_at(self._topology, self._ctx.me, receiver, round)

    def _own_keys(self) -> Keys:
        if self._keys is None:
            self._keys = self._mechanisms.keys(self._ctx.me)
        return self._keys

    # Chunks

    def chunks(self, chunks: int, degree: int, beacon: str) -> Chunks:
        """Models cut into chunks that travel under names of their own (Shatter)."""
        return Chunks(self._ctx, self._mechanisms, self._topology.nodes, chunks, degree, beacon)


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


class Chunks:
    """A node's part in sending chunks of models under the names of virtual nodes."""

    __slots__ = ("_beacon", "_chunks", "_ctx", "_mechanisms", "_virtual")

    def __init__(self, ctx: Context, mechanisms: Mechanisms, nodes: int, chunks: int, degree: int, beacon: str) -> None:
        self._ctx = ctx
        self._mechanisms = mechanisms
        self._chunks = chunks
        self._beacon = beacon
        self._virtual = mechanisms.virtual_nodes(nodes, chunks, degree, beacon)

    def outgoing(self, model: Ref, round: int) -> list[tuple[Hop, Ref]]:
        """What to send in a round."""
        apply, cut, static = self._ctx.apply, self._mechanisms.cut, self._static(round)
        hops = self._virtual.outgoing(self._ctx.me, round)
        parts = {chunk: apply(cut, model, chunk=chunk, **static) for chunk in sorted({hop.chunk for hop in hops})}
        return [(hop, parts[hop.chunk]) for hop in hops]

    def lanes(self, round: int) -> list[tuple[int, ...]]:
        """Who sends here in a round: the senders of a first chunk, those of a second one, and so on."""
        incoming = self._virtual.incoming(self._ctx.me, round)
        most = max(incoming.values(), default=0)
        return [tuple(sender for sender, count in incoming.items() if count > lane) for lane in range(most)]

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
        return part.spec == Spec((self._virtual.chunk_size(number, round),), model.spec.dtype)

    def _static(self, round: int) -> dict[str, object]:
        sizes = self._mechanisms.sizes
        return {"sizes": sizes, "chunks": self._chunks, "beacon": self._beacon, "round": round}


def weight_at(topology: Topology, node: int, receiver: int, round: int) -> float:
    """What a node's model weighs in a receiver's mix."""
    return topology.weights(receiver, round)[1 + topology.sources(receiver, round).index(node)]
