"""Performance-based neighbour selection: find those whose models do well on one's own data, then gossip with them.

Onoszko, Karlsson, Mogren, Listo Zec: Decentralized Federated Learning of Deep Neural Networks on Non-IID Data,
International Workshop on Federated Learning (ICML), 2021.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from pydantic import Field

from node import ConfigError, Context, Message, Ref
from protocols import pulling


class Candidate(Message, name="pens/model/1", key=("round",)):
    """A node's model after its local training of a round, and how many samples that was trained on."""

    round: int
    model: Ref
    samples: int


class PENS(pulling.Pulling):
    """First random peers, of whom the best are averaged with and counted; then those who were chosen often."""

    judges_on_data = True

    class Config(pulling.Pulling.Config):
        """Options of ``[protocol]``."""

        candidates: int = Field(8, ge=1)
        """Peers that a node hears in a round: random ones in the first phase, random neighbours in the second."""
        selected: int = Field(2, ge=1)
        """Candidates that it averages with in the first phase: those with the lowest loss on its own training data."""
        first_phase: float = Field(1 / 3, ge=0, le=1)
        """Share of the rounds that the first phase takes."""

    config: Config

    @classmethod
    def check(cls, config: Config, nodes: int) -> None:
        """There must be candidates enough."""
        if not config.selected <= config.candidates < nodes:
            raise ConfigError(
                f"protocol.candidates: {config.candidates} of {nodes - 1} others, of whom {config.selected} are "
                f"selected; allowed: {config.selected} to {nodes - 1}, and not fewer than protocol.selected"
            )

    async def run(self, ctx: Context) -> Ref:
        """Take part in both phases; the final model is the last average."""
        model, first = ctx.initial_model(), 0
        best: tuple[int, ...] = ()
        times: Counter[int] = Counter()
        if saved := ctx.restore():
            model, first = saved["model"], saved["round"]
            best, times = _read(saved["best"]), Counter(_read(saved["times"]))
        searching = self.searching_rounds
        for round in range(first, self.config.rounds):
            model = await ctx.train(model)
            mine = Candidate(round=round, model=model, samples=ctx.data.samples)
            if round < searching:
                heard = await self.exchange(ctx, round, ctx.sample(self.config.candidates), mine)
                best = await self.best(ctx, heard)
                times.update(best)
                heard = {peer: heard[peer] for peer in best}
            else:
                neighbours = chosen_often(times, self.config.selected, len(ctx.peers()) + 1, searching) or best
                peers = pulling.draw(ctx, neighbours, self.config.candidates)
                heard = await self.exchange(ctx, round, peers, mine)
            model = pulling.average(ctx, model, heard.values())
            ctx.record(round=round, **ctx.judge(model, is_personal=True))
            written = {"best": _written(best), "times": _written(times.elements())}
            await ctx.checkpoint(round=round + 1, model=model, **written)
        return model

    @property
    def searching_rounds(self) -> int:
        """Rounds of the first phase."""
        return int(self.config.rounds * self.config.first_phase + 0.5)

    async def best(self, ctx: Context, heard: dict[int, Candidate]) -> tuple[int, ...]:
        """Whose models have the lowest loss on this node's training data, sorted."""
        loss = await pulling.losses(ctx, heard)
        return tuple(sorted(sorted(loss, key=loss.__getitem__)[: self.config.selected]))


def chosen_often(times: Counter[int], selected: int, nodes: int, rounds: int) -> tuple[int, ...]:
    """Who was among the best more often than by chance, which is ``selected / nodes`` of the rounds; sorted."""
    return tuple(sorted(peer for peer, count in times.items() if count > selected / nodes * rounds))


def _written(peers: Iterable[int]) -> str:
    return " ".join(map(str, peers))


def _read(written: str) -> tuple[int, ...]:
    return tuple(map(int, written.split()))
