"""Epidemic Learning: every round each node sends its model to a few random others, and averages what it receives.

De Vos, Farhadkhani, Guerraoui, Kermarrec, Pires, Sharma: Epidemic Learning: Boosting Decentralized Learning with
Randomized Communication, NeurIPS 2023.

``local`` (EL-Local): each node draws its receivers by itself, so nobody knows how many models will come. A round closes
as soon as ``degree`` models are there, and at the deadline otherwise.
``oracle`` (EL-Oracle): all nodes agree on a fresh random regular graph each round.

Absent neighbours: ``local`` draws its receivers among those that are not known to be gone, and averages what has come
by the deadline, nothing but its own model if need be. ``oracle`` does not draw around them: without ``deadline_s`` all
are needed, and one that is gone ends the run; with it, the average is over those that have sent. A node that comes
back (in ``oracle``, also one that finds most past its round) goes on in the round of ``degree`` others with the model
of one (``protocols/catching_up.py``); where they are no further, in the round after the one that it has saved.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from node import ConfigError, Context, Message, Protocol, Ref, TopologySection
from protocols.catching_up import SPREAD, CatchingUp


class Model(Message, name="epidemic/model/1", key=("round",)):
    """A node's model after its local training of a round."""

    round: int
    model: Ref


class Epidemic(CatchingUp):
    """Randomized gossip; uniform average over a node and those it heard."""

    uses_topology = False
    aggregates = True
    awaited = Model

    class Config(Protocol.Config):
        """Options of ``[protocol]``."""

        rounds: int = Field(100, ge=1)
        """Rounds of training and mixing."""
        variant: Literal["local", "oracle"] = "local"
        """Who draws the receivers: each node, or a graph common to all."""
        degree: int = Field(4, ge=1)
        """Receivers of each node in a round."""
        deadline_s: float | None = Field(None, gt=0)
        """Longest wait for the models of a round. Absent: 0.5 s for ``local``, without end for ``oracle``."""

    config: Config

    @classmethod
    def check(cls, config: Config, nodes: int) -> None:
        """There must be others enough to send to."""
        if config.degree >= nodes:
            raise ConfigError(
                f"protocol.degree: {config.degree} receivers where each node has {nodes - 1} others; "
                f"allowed: 1 to {nodes - 1}"
            )

    @classmethod
    def aggregated(cls, config: Config, nodes: int) -> int:
        """A node's own model and ``degree`` others."""
        return config.degree + 1

    @classmethod
    def topologies(cls, config: Config) -> tuple[TopologySection, ...]:
        """The oracle's graphs."""
        return (_graph(config.degree),) if config.variant == "oracle" else ()

    async def run(self, ctx: Context) -> Ref:
        """Take part in every round; the final model is the last average."""
        round, model = 0, ctx.initial_model()
        if saved := ctx.restore():
            round, model = saved["round"], saved["model"]
            least = SPREAD if self.config.variant == "local" else 1  # its own model is worth more than a few rounds
            round, model = await self.caught_up(ctx, round, model, self.deadline_s, least)
        while round < self.config.rounds:
            self.begin(round, model)
            model = await ctx.train(model)
            heard = await self.exchange(ctx, Model(round=round, model=model))
            others = {peer: message.model for peer, message in heard.items()}
            model = ctx.aggregate(model, others, progress=round / self.config.rounds)
            ctx.record(round=round, **ctx.judge(model))
            await ctx.checkpoint(round=round + 1, model=model)
            if self.config.variant == "local":
                round += 1  # nobody is waited for, so that nobody who is past a round is missed in it
            else:
                frm = self.partners(ctx, round)
                round, model = await self.after(ctx, round, model, heard, frm, self.deadline_s)
        self.begin(round, model)
        return model

    @property
    def deadline_s(self) -> float | None:
        """Longest wait for the models of a round; None: without end."""
        return self.config.deadline_s or (0.5 if self.config.variant == "local" else None)

    def partners(self, ctx: Context, round: int) -> Sequence[int]:
        """Whom this node sends to in a round; drawn anew at each call where it is the node that draws."""
        degree = self.config.degree
        return ctx.sample(degree) if self.config.variant == "local" else ctx.neighbours(round, within=_graph(degree))

    async def exchange(self, ctx: Context, message: Model) -> dict[int, Model]:
        """Send to this round's receivers, and hear this round's senders."""
        round = message.round
        partners = self.partners(ctx, round)
        await self.tell(ctx, partners, message, message.model)
        if self.config.variant == "local":
            return await ctx.collect(Model, quorum=self.config.degree, timeout_s=self.deadline_s, round=round)
        return await ctx.collect(Model, frm=partners, timeout_s=self.deadline_s, round=round)


def _graph(degree: int) -> TopologySection:
    return TopologySection(kind="random-regular", degree=degree)
