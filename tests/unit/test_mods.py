"""Mods and observers: what wraps a node's traffic and training, and in which order."""

import dataclasses

import numpy as np
import pytest

from node import Context, DeadlineExceeded, Message, Mod, Observer, Protocol, Ref, on, scale
from node.config import NetworkSection
from node.errors import Deadlock
from node.testing import Quadratic, run_protocol


class Note(Message, name="test.mods/note/1", key=("round",)):
    round: int = 0
    text: str = ""


class Model(Message, name="test.mods/model/1"):
    model: Ref


class Ask(Message, name="test.mods/ask/1"):
    text: str = ""


class Chat(Protocol):
    """Node 0 says something to both others; node 1 asks node 2."""

    async def run(self, ctx: Context):
        self.heard = None
        if ctx.me == 0:
            await ctx.send((1, 2), Note(text="hello"))
            return
        heard = await ctx.collect(Note, frm=(0,), timeout_s=5, round=0)
        texts.append((ctx.me, *[message.text for message in heard.values()]))
        if ctx.me == 1:
            answer = await ctx.request(2, Ask(text="q"), timeout_s=5)
            texts.append((ctx.me, answer.text))

    @on(Ask)
    def answer(self, ctx, sender, message):
        return Note(text=f"answer to {message.text}")


texts: list[tuple] = []


@pytest.fixture(autouse=True)
def _silence():
    texts.clear()


class Tag(Mod):
    """Writes its letter on whatever passes, and notes what it did."""

    def __init__(self, letter, calls=None):
        super().__init__()
        self.letter = letter
        self.calls = [] if calls is None else calls

    def outgoing(self, ctx, to, message):
        self.calls.append((f"{self.letter} out", ctx.me, to))
        return dataclasses.replace(message, text=f"{message.text}>{self.letter}")

    def incoming(self, ctx, sender, message):
        self.calls.append((f"{self.letter} in", ctx.me, sender))
        return dataclasses.replace(message, text=f"{message.text}<{self.letter}")


class Watch(Observer):
    def __init__(self):
        super().__init__()
        self.seen = []

    def sent(self, ctx, to, message):
        self.seen.append(("sent", ctx.me, to, message.text))

    def received(self, ctx, sender, message):
        self.seen.append(("received", ctx.me, sender, message.text))


# Order


def test_mods_apply_in_order_outwards_and_backwards_inwards():
    run_protocol(Chat(), 3, mods=[Tag("a"), Tag("b")])
    assert texts[0] == (1, "hello>a>b<b<a")
    assert texts[1] == (2, "hello>a>b<b<a")


def test_requests_and_answers_pass_through_mods_like_any_message():
    run_protocol(Chat(), 3, mods=[Tag("a"), Tag("b")])
    assert texts[2] == (1, "answer to q>a>b<b<a>a>b<b<a")


def test_observers_see_what_is_on_the_wire():
    watch = Watch()
    run_protocol(Chat(), 3, mods=[watch, Tag("a")])
    assert watch.seen[:4] == [
        ("sent", 0, 1, "hello>a"),
        ("sent", 0, 2, "hello>a"),
        ("received", 1, 0, "hello>a"),
        ("received", 2, 0, "hello>a"),
    ]
    assert ("sent", 2, 1, "answer to q>a<a>a") in watch.seen


def test_every_receiver_may_get_something_else():
    class Targeted(Mod):
        def outgoing(self, ctx, to, message):
            return dataclasses.replace(message, text=f"for {to}")

    run_protocol(Chat(), 3, mods=[Targeted()])
    assert texts[:2] == [(1, "for 1"), (2, "for 2")]


# Dropping


class Drop(Mod):
    def __init__(self, *, way, node, kind=Note):
        super().__init__()
        self.way, self.node, self.kind = way, node, kind

    def outgoing(self, ctx, to, message):
        return None if (self.way, self.node) == ("out", ctx.me) and type(message) is self.kind else message

    def incoming(self, ctx, sender, message):
        return None if (self.way, self.node) == ("in", ctx.me) and type(message) is self.kind else message


def test_what_a_mod_drops_on_its_way_out_never_leaves():
    watch = Watch()
    outcome = run_protocol(Chat(), 3, mods=[Drop(way="out", node=0), Tag("late"), watch])
    assert texts[:2] == [(1,), (2,)]
    assert not [seen for seen in watch.seen if seen[:2] == ("sent", 0)]
    assert outcome.messages == 2


def test_what_a_mod_drops_on_its_way_in_was_seen_by_the_observers_and_no_other_mod():
    watch, calls = Watch(), []
    run_protocol(Chat(), 3, mods=[Tag("first", calls), Drop(way="in", node=2), watch])
    assert (2,) in texts
    assert ("received", 2, 0, "hello>first") in watch.seen
    assert ("first in", 2, 0) not in calls
    assert ("first in", 1, 0) in calls


def test_a_dropped_request_or_answer_runs_into_its_deadline():
    for drop in (Drop(way="out", node=1, kind=Ask), Drop(way="in", node=2, kind=Ask), Drop(way="out", node=2)):
        with pytest.raises(DeadlineExceeded, match=r"node 2 has not answered node 1's test.mods/ask/1"):
            run_protocol(Chat(), 3, mods=[drop])


def test_a_drop_that_somebody_waits_for_is_a_deadlock():
    class Patient(Chat):
        async def run(self, ctx):
            await ctx.send(1 - ctx.me, Note())
            await ctx.collect(Note, frm=(1 - ctx.me,), round=0)

    with pytest.raises(Deadlock, match=r"node 1 waits for test.mods/note/1 round=0 from \[0\]"):
        run_protocol(Patient(), 2, mods=[Drop(way="out", node=0)])


# Models


class Send(Protocol):
    async def run(self, ctx: Context):
        model = await ctx.train(ctx.initial_model())
        await ctx.send(1 - ctx.me, Model(model=model))
        heard = await ctx.collect(Model, frm=(1 - ctx.me,))
        return ctx.mix([model, heard[1 - ctx.me].model], [1.0, 100.0])


class Halve(Mod):
    """Sends half of every model, and trains to ten times what it should."""

    def outgoing(self, ctx, to, message):
        return Model(model=ctx.apply(scale, message.model, by=0.5))

    def trained(self, ctx, before, after):
        return ctx.apply(scale, after, by=10.0)


def test_mods_change_models_through_recorded_ops():
    outcome = run_protocol(Send(), 2, workload=Quadratic(2, [[1.0], [2.0]], lr=1.0), mods=[Halve()])
    assert outcome.models == {0: np.array([10.0 + 100 * 10]), 1: np.array([20.0 + 100 * 5])}
    assert outcome.forced_solves == 0


def test_observers_see_training_after_every_mod():
    pairs = []

    class Pairs(Observer):
        def trained(self, ctx, before, after):
            pairs.append((ctx.me, before is ctx.initial_model(), after))

    class Keep(Send):
        async def run(self, ctx):
            model = await ctx.train(ctx.initial_model())
            assert pairs[ctx.me] == (ctx.me, True, model)
            return model

    outcome = run_protocol(Keep(), 2, workload=Quadratic(2, [[1.0], [2.0]], lr=1.0), mods=[Pairs(), Halve()])
    assert [node for node, _, _ in pairs] == [0, 1]
    assert outcome.models == {0: np.array([10.0]), 1: np.array([20.0])}


def test_a_wrapped_run_that_changes_nothing_is_the_same_run():
    """Time, messages, bytes and models: wrapping itself costs nothing that a protocol could see."""
    plain = run_protocol(Send(), 2, network=NetworkSection(latency_s=0.3))
    wrapped = run_protocol(Send(), 2, network=NetworkSection(latency_s=0.3), mods=[Mod(), Observer()])
    assert wrapped.event_hash == plain.event_hash
    assert wrapped.bytes_sent == plain.bytes_sent
    assert all(np.array_equal(wrapped.models[node], plain.models[node]) for node in (0, 1))


def test_what_is_alike_is_sent_together_and_what_is_not_apart():
    told = []

    class Tell(Mod):
        """Tells node 2 something else, and node 3 nothing."""

        def outgoing(self, ctx, to, message):
            return {2: Note(round=1), 3: None}.get(to, message)

    class Fan(Protocol):
        async def run(self, ctx):
            if ctx.me == 0:
                await ctx.send((1, 2, 3, 4), Note(round=0))
            elif ctx.me != 3:
                heard = await ctx.collect(Note, frm=(0,), round=int(ctx.me == 2))
                told.append((ctx.me, heard[0].round))

    outcome = run_protocol(Fan(), 5, mods=[Tell()])
    assert sorted(told) == [(1, 0), (2, 1), (4, 0)]
    assert outcome.messages == 3


def test_options_of_a_mod():
    class Noisy(Mod):
        class Config(Mod.Config):
            sigma: float = 1.0

    assert Noisy().config.sigma == 1.0
    assert Noisy(Noisy.Config(sigma=3)).config.sigma == 3
    with pytest.raises(ValueError, match="sigma"):
        Noisy.Config(sigma="much")
