"""A node that was away, or has fallen behind, goes on where its neighbours are.

It asks them how far they have come, and one of those who have come as far as half of them has for its model (under a
robust rule: all who have, and it goes on with what the rule makes of their models). The trainings in between do not
take place, so nothing is charged for them. Then it says where it goes on: nobody waits for it in earlier rounds, and
who is no less far tells it once more what it may have missed of the round that it is in itself, and which that is.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import ClassVar

from node import Context, Message, Protocol, Ref, on

PATIENCE_S = 30.0
"""How long a node waits for answers where its protocol has no deadline."""
SPREAD = 3
"""Rounds that others may be behind this node, or ahead of it; who has to do with it may differ in each of them."""


class Question(Message, name="catching-up/question/1"):
    """How far have you come?"""

    number: int


class Answer(Message, name="catching-up/answer/1", key=("number",)):
    """So far."""

    number: int
    round: int


class Request(Message, name="catching-up/request/1"):
    """Give me your model."""

    number: int


class State(Message, name="catching-up/state/1", key=("number",), whole=True):
    """The round that a node is in, and its model."""

    number: int
    round: int
    model: Ref


class Rejoined(Message, name="catching-up/rejoined/1"):
    """The round that a node is in: it says nothing more in earlier ones."""

    round: int


class CatchingUp(Protocol):
    """A protocol of rounds whose nodes catch up with one another.

    It says :meth:`begin` at the beginning of every round, and with the final model; sends by :meth:`tell` what others
    wait for in a round; and goes on with what :meth:`caught_up` gives after a restore, :meth:`after` after a round.
    """

    awaited: ClassVar[type[Message] | None] = None
    """The kind of message that others wait for in a round, which is its key."""
    _at: tuple[int, Ref] | None = None
    _told: tuple[Collection[int], Message] | None = None
    _warned: frozenset[int] = frozenset()
    """Whom it has told in this round that it is past theirs: once, or whoever asks on and on would fill queues."""
    _questions: int = 0

    def begin(self, round: int, model: Ref) -> None:
        """A round begins with this model."""
        self._at, self._told, self._warned = (round, model), None, frozenset()

    async def tell(self, ctx: Context, peers: Sequence[int], message: Message, model: Ref) -> None:
        """Send what others wait for in this round; ``model`` is what this node has now."""
        self.hold(model)
        self._told = (peers, message)
        await ctx.send(peers, message)

    def hold(self, model: Ref) -> None:
        """This is what the node has now: what others are given who catch up."""
        assert self._at is not None, "begin() goes before tell() and hold()"
        self._at = (self._at[0], model)

    async def after(
        self,
        ctx: Context,
        round: int,
        model: Ref,
        heard: Mapping[int, Message],
        frm: Collection[int],
        deadline_s: float | None,
    ) -> tuple[int, Ref]:
        """The round after one that has led to this model, and what to begin it with.

        Where more of those it waited for, ``frm``, are past the round than were ``heard`` in it, both are as
        :meth:`caught_up` says.
        """
        if self.awaited is None or len(set(frm).intersection(ctx.passed(self.awaited, round=round))) <= len(heard):
            return round + 1, model
        return await self.caught_up(ctx, round + 1, model, deadline_s)

    def partners(self, ctx: Context, round: int) -> Sequence[int]:
        """Whom this node hears or tells something in a round."""
        return sorted({*ctx.sources(round), *ctx.neighbours(round)})

    async def caught_up(
        self, ctx: Context, round: int, model: Ref, deadline_s: float | None, least: int = 1
    ) -> tuple[int, Ref]:
        """The round to go on with, and the model to begin it with: these, or those of partners that are further.

        Args:
            deadline_s: longest wait for what they answer, and again for their models; None or 0: PATIENCE_S.
            least: rounds that they must be ahead: where nobody is waited for, a node may well go on a little behind.
        """
        self.begin(round, model)
        self._questions += 1
        number, patience_s, there = self._questions, deadline_s or PATIENCE_S, ctx.alive(self.partners(ctx, round))
        await ctx.send(there, Question(number=number))
        answers = await ctx.collect(Answer, frm=there, timeout_s=patience_s, number=number)
        reached = _reached(answer.round for answer in answers.values())
        if reached >= round + least:
            round, model = await self._given(ctx, round, model, answers, reached, patience_s)
        near = range(max(0, round - SPREAD), round + SPREAD + 1)
        concerned = sorted({*there, *(peer for at in near for peer in self.partners(ctx, at))})
        await ctx.send(ctx.alive(concerned), Rejoined(round=round))
        return round, model

    async def _given(
        self,
        ctx: Context,
        round: int,
        model: Ref,
        answers: Mapping[int, Answer],
        reached: int,
        patience_s: float,
    ) -> tuple[int, Ref]:
        # Nearest first: who claims to be far ahead of all others is asked last.
        ahead = [peer for at, peer in sorted((a.round, peer) for peer, a in answers.items()) if at >= reached]
        givers = ahead if ctx.is_robust else ahead[:1]
        await ctx.send(givers, Request(number=self._questions))
        states = await ctx.collect(State, frm=givers, timeout_s=patience_s, number=self._questions)
        given = {peer: state for peer, state in states.items() if state.round > round}
        return self._taken_over(ctx, round, model, given) if given else (round, model)

    def _taken_over(self, ctx: Context, round: int, model: Ref, states: Mapping[int, State]) -> tuple[int, Ref]:
        rounds = self.config.rounds
        reached = min(_reached(state.round for state in states.values()), rounds)
        others = {peer: state.model for peer, state in states.items()}
        weights = [0.0, *[1.0 / len(states)] * len(states)]
        model = ctx.aggregate(model, others, weights, progress=reached / rounds)
        ctx.missed(reached - round)
        if self.awaited is not None:
            ctx.forgo(self.awaited, round=reached - 1)
        ctx.log.info("caught up", round=reached, missed=reached - round, peers=sorted(states))
        ctx.record(round=reached - 1, **ctx.judge(model))
        self.begin(reached, model)
        return reached, model

    @on(Question)
    def say_how_far(self, ctx: Context, sender: int, question: Question) -> Answer | None:
        """Answer."""
        return None if self._at is None else Answer(number=question.number, round=self._at[0])

    @on(Rejoined)
    def excuse(self, ctx: Context, sender: int, rejoined: Rejoined) -> Message | None:
        """Wait for nothing that the sender has left out, and tell it what it may have missed of this round."""
        if self.awaited is None or self._at is None:
            return None
        ctx.excuse(sender, self.awaited, round=rejoined.round)
        if self._at[0] < rejoined.round:
            return None
        if self._at[0] > rejoined.round and sender not in self._warned:
            self._warned = self._warned | {sender}
            ctx.spawn(ctx.send(sender, Rejoined(round=self._at[0])))
        return self._told[1] if self._told is not None and sender in self._told[0] else None

    @on(Request)
    def give(self, ctx: Context, sender: int, request: Request) -> State | None:
        """This node's round and model."""
        return None if self._at is None else State(number=request.number, round=self._at[0], model=self._at[1])


def _reached(rounds: Iterable[int]) -> int:
    """The furthest round that at least half of some nodes have reached; -1 where there is none."""
    ordered = sorted(rounds)
    return ordered[len(ordered) // 2] if ordered else -1
