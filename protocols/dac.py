"""Decentralized adaptive clustering: hear those whose models do well on one's own data the more often.

Listo Zec, Ekblom, Willbo, Mogren, Girdzijauskas: Decentralized Adaptive Clustering of Deep Nets is Beneficial for
Client Collaboration, International Workshop on Trustworthy Federated Learning (IJCAI), 2022, arXiv 2206.08839.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from pydantic import Field

from node import ConfigError, Context, Message, Ref
from protocols import pulling

_LEAST_LOSS = 1e-12


class Shared(Message, name="dac/model/1", key=("round",)):
    """A node's model after its local training of a round, and what it knows of its similarity to others."""

    round: int
    model: Ref
    samples: int
    similarity: tuple[float, ...]
    """By node; 0 where it is not known, and for all nodes beyond the last."""


class DAC(pulling.Pulling):
    """Each node draws its peers by its similarity to them, which it measures, or takes from a similar peer."""

    side_channels = (*pulling.Pulling.side_channels, "similarity row")
    judges_on_data = True

    class Config(pulling.Pulling.Config):
        """Options of ``[protocol]``."""

        sample: int = Field(5, ge=1)
        """Peers that a node hears in a round."""
        sharpness: float = Field(30.0, gt=0)
        """How much the factor on similarities grows beyond 1, where it starts (``a``)."""
        pace: float = Field(0.2, gt=0)
        """How fast it grows with the rounds (``b``)."""

    config: Config

    @classmethod
    def check(cls, config: Config, nodes: int) -> None:
        """There must be peers enough to hear."""
        if config.sample >= nodes:
            raise ConfigError(
                f"protocol.sample: {config.sample} where each node has {nodes - 1} others; allowed: 1 to {nodes - 1}"
            )

    async def run(self, ctx: Context) -> Ref:
        """Take part in every round; the final model is the last average."""
        model, first = ctx.initial_model(), 0
        similarity: dict[int, float] = {}
        met: set[int] = set()
        if saved := ctx.restore():
            model, first = saved["model"], saved["round"]
            own = tuple(map(float, saved["similarity"].split()))
            similarity = known(own, range(len(own)))
            met = set(map(int, saved["met"].split()))
        for round in range(first, self.config.rounds):
            model = await ctx.train(model)
            peers = self.draw(ctx, similarity, round)
            mine = Shared(round=round, model=model, samples=ctx.data.samples, similarity=row(similarity))
            heard = await self.exchange(ctx, round, peers, mine)
            loss = await pulling.losses(ctx, heard)
            similarity |= {peer: 1 / max(loss[peer], _LEAST_LOSS) for peer in loss}
            met.update(loss)
            rows = {peer: known(heard[peer].similarity, ctx.peers()) for peer in loss}
            similarity |= two_hop(similarity, met, rows, ctx.me)
            model = pulling.average(ctx, model, [heard[peer] for peer in loss])
            ctx.record(round=round, **ctx.judge(model, is_personal=True))
            written = {"similarity": " ".join(map(repr, row(similarity))), "met": " ".join(map(str, sorted(met)))}
            await ctx.checkpoint(round=round + 1, model=model, **written)
        return model

    def draw(self, ctx: Context, similarity: Mapping[int, float], round: int) -> tuple[int, ...]:
        """Peers for a round, sorted: without replacement from ``p_j = softmax(tau_t * s_j)``.

        They are the largest of ``tau_t * s_j`` plus Gumbel noise (Kool, van Hoof, Welling: Stochastic Beams and Where
        to Find Them, ICML 2019): no probability has to be computed, and none becomes 0 by rounding.
        """
        peers = ctx.peers()
        tau = temperature(round, self.config.sharpness, self.config.pace)
        noise = ctx.rng.gumbel(size=len(peers)).tolist()
        logits = {peer: tau * similarity.get(peer, 0.0) + drawn for peer, drawn in zip(peers, noise, strict=True)}
        return tuple(sorted(sorted(peers, key=logits.__getitem__, reverse=True)[: self.config.sample]))


def temperature(round: int, sharpness: float, pace: float) -> float:
    """``tau_t = 2a / (1 + exp(-b t)) - a + 1``: it grows from 1 towards ``a + 1``."""
    return 2 * sharpness / (1 + math.exp(-pace * round)) - sharpness + 1


def two_hop(
    similarity: Mapping[int, float], met: Collection[int], rows: Mapping[int, Mapping[int, float]], me: int
) -> dict[int, float]:
    """The similarity to each node that was never met, from the row of the most similar peer who knows it.

    Args:
        similarity: to those who were met, by node.
        rows: what the peers of this round know of others, by peer.
        me: whose similarities they are.
    """
    guessed: dict[int, float] = {}
    for peer in sorted(rows, key=lambda peer: (similarity[peer], -peer)):  # the most similar one has the last word
        guessed |= {node: s for node, s in rows[peer].items() if node not in met and node != me}
    return guessed


def row(similarity: Mapping[int, float]) -> tuple[float, ...]:
    """Similarities by node, 0 where one is not known."""
    return tuple([similarity.get(node, 0.0) for node in range(max(similarity, default=-1) + 1)])


def known(row: Sequence[float], nodes: Iterable[int]) -> dict[int, float]:
    """What a row knows of some nodes; what no loss could give is left out, however long the row is."""
    return {node: row[node] for node in nodes if node < len(row) and 0 < row[node] <= 1 / _LEAST_LOSS}
