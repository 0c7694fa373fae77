"""Which of several models suits a node's data best: by that, nodes of one kind find each other.

IFCA: Ghosh, Chung, Yin, Ramchandran: An Efficient Framework for Clustered Federated Learning, NeurIPS 2020. One node
keeps the models; in every round all are told to everybody, and each node trains the one that has the lowest loss on its
data. Only who picked what is kept: cohorts begin with the experiment's model, as averages of their models need it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from node import Context, Message, Ref
from node.cohorts import Cohorts, best_start, by_loss, favourite


class Candidates(Message, name="cpfl/candidates/1", key=("start", "round")):
    """Train the one that suits you best."""

    start: int
    round: int
    models: dict[str, Ref]
    is_last: bool
    """Only say how they suit you."""


class Favoured(Message, name="cpfl/favoured/1", key=("start", "round")):
    """How the models suit me, and what I made of the best one."""

    start: int
    round: int
    losses: tuple[float, ...]
    samples: int
    model: Ref | None = None


async def favoured(ctx: Context, candidates: Candidates) -> Favoured:
    """This node's answer; judging is aside, training takes the time that it takes."""
    models = [candidates.models[name] for name in sorted(candidates.models, key=int)]
    with ctx.aside():
        judged = [ctx.evaluate(model, on="train") for model in models]
    losses = tuple([float(each["loss"]) for each in await ctx.values(judged)])
    model = None
    if not candidates.is_last:
        model = await ctx.train(models[favourite(losses)], lr=ctx.lr)
    return Favoured(
        start=candidates.start, round=candidates.round, losses=losses, samples=ctx.data.samples, model=model
    )


async def clustered(
    ctx: Context, peers: Sequence[int], cohorts: int, rounds: int, starts: int, timeout_s: float
) -> Cohorts:
    """The cohorts by which of as many models nodes pick after some rounds, from the best of several starts.

    Only nodes that have answered at the end of every start are in one; a cohort that nobody has picked is empty.
    ``timeout_s`` is the longest wait for the answers of a round.
    """
    picks = [await _one_start(ctx, peers, cohorts, rounds, start, timeout_s) for start in range(starts)]
    everywhere = sorted(set[int].intersection(*[set(losses) for losses in picks]))
    losses = [{node: start[node] for node in everywhere} for start in picks]
    return by_loss(losses[best_start(losses)])


async def _one_start(
    ctx: Context, peers: Sequence[int], cohorts: int, rounds: int, start: int, timeout_s: float
) -> Mapping[int, Sequence[float]]:
    models = [ctx.initial_model(1 + start * cohorts + number) for number in range(cohorts)]
    for round in range(rounds + 1):
        named = {str(number): model for number, model in enumerate(models)}
        candidates = Candidates(start=start, round=round, models=named, is_last=round == rounds)
        await ctx.send(peers, candidates)
        own = await favoured(ctx, candidates)
        heard = await ctx.collect(Favoured, frm=peers, timeout_s=timeout_s, start=start, round=round)
        answers = {**heard, ctx.me: own}
        models = [_mean(ctx, number, model, answers) for number, model in enumerate(models)]
    return {node: answers[node].losses for node in sorted(answers)}


def _mean(ctx: Context, number: int, model: Ref, answers: Mapping[int, Favoured]) -> Ref:
    """The mean of what those have made of a model who picked it, by their samples; itself where nobody did."""
    chosen = [answers[node] for node in sorted(answers) if favourite(answers[node].losses) == number]
    trained = [(answer.model, answer.samples) for answer in chosen if answer.model is not None and answer.samples > 0]
    if not trained:
        return model
    total = sum(samples for _, samples in trained)
    with ctx.aside():
        return ctx.mix([each for each, _ in trained], [samples / total for _, samples in trained])
