"""What a protocol sees: time, randomness, peers, messages, requests and handlers."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node import ConfigError, Context, DeadlineExceeded, Message, Protocol, ProtocolError, Unreachable, on
from node.config import NetworkSection, TopologySection
from node.errors import Deadlock
from node.testing import run_protocol

FAST = NetworkSection(latency_s=1, up_bps=1e30, down_bps=1e30)


class Note(Message, name="test.context/note/1", key=("round",)):
    round: int = 0
    text: str = ""


class Two(Message, name="test.context/two/1", key=("round", "part")):
    round: int
    part: int


class Question(Message, name="test.context/question/1"):
    text: str


class Answer(Message, name="test.context/answer/1"):
    text: str


def told(behave, nodes=3, protocol=Protocol, **options):
    """Run ``behave(ctx)`` on every node, and give what each has returned, by node."""
    said = {}

    class Told(protocol):
        async def run(self, ctx: Context):
            said[ctx.me] = await behave(ctx)

    run_protocol(Told(), nodes, **{"network": FAST, **options})
    return said


def only(node, behave, nodes=3, **options):
    """Run ``behave(ctx)`` on one node; the others do nothing."""

    async def choose(ctx):
        return await behave(ctx) if ctx.me == node else None

    return told(choose, nodes, **options)[node]


# Time and randomness


def test_now_and_sleep():
    async def behave(ctx):
        await ctx.sleep(1.5)
        await ctx.sleep(0)
        return ctx.now

    assert told(behave) == {0: 1.5, 1: 1.5, 2: 1.5}


def test_every_node_has_its_own_generator_the_same_in_every_run():
    async def behave(ctx):
        return ctx.rng.random(4).tolist()

    one, again, other = told(behave, seed=1), told(behave, seed=1), told(behave, seed=2)
    assert one == again
    numbers = {tuple(drawn) for said in (one, other) for drawn in said.values()}
    assert len(numbers) == 6


def test_the_log_names_the_node():
    async def behave(ctx):
        return ctx.log._context["node"] if hasattr(ctx.log, "_context") else ctx.log.bind()._context["node"]

    assert told(behave) == {0: 0, 1: 1, 2: 2}


# Peers


class Served(Protocol):
    @classmethod
    def roles(cls, config, nodes):
        return {1: "server"}


def test_peers_are_the_others_of_a_role():
    async def behave(ctx):
        return ctx.peers(), ctx.peers("server"), ctx.peers(None), ctx.peers("storage")

    said = told(behave, 4, Served)
    assert said[0] == ((2, 3), (1,), (1, 2, 3), ())
    assert said[1] == ((0, 2, 3), (), (0, 2, 3), ())


def test_who_is_lost_is_no_peer():
    async def behave(ctx):
        ctx.lose(2)
        return ctx.peers(), ctx.alive((3, 2, 1)), ctx.sample(9)

    assert only(0, behave, 4) == ((1, 3), (3, 1), (1, 3))


def test_who_is_back_is_a_peer_again():
    async def behave(ctx):
        ctx.lose(2)
        ctx.lose(2)
        ctx.regain(2)
        return ctx.peers()

    assert only(0, behave, 4) == (1, 2, 3)


def test_samples_are_sorted_different_others():
    async def behave(ctx):
        return [ctx.sample(3) for _ in range(200)], ctx.sample(0), ctx.sample(99)

    samples, none, everybody = only(2, behave, 8)
    assert all(len(set(sample)) == 3 and tuple(sorted(sample)) == sample and 2 not in sample for sample in samples)
    assert (none, everybody) == ((), (0, 1, 3, 4, 5, 6, 7))
    counts = np.bincount(np.array(samples).ravel(), minlength=8)
    assert counts[2] == 0
    assert all(50 < count < 125 for node, count in enumerate(counts) if node != 2)


class Roster(tuple):
    """Nodes to draw from; who lists them all pays for it."""

    def __iter__(self):
        raise AssertionError("every node was listed")


class Crowd:
    """As much of a world as drawing peers takes."""

    seed, clock = 5, None

    def __init__(self, members, gone=()):
        self.members, self.gone = members, gone

    def peers(self, role):
        return self.members if role == "learner" else ()


def test_a_sample_of_many_lists_nobody():
    ctx = Context(7, Crowd(Roster(range(10_000)), gone={1, 2, 3}), Protocol())
    for k in (0, 1, 8, 1000):
        sample = ctx.sample(k)
        assert len(set(sample)) == k
        assert list(sample) == sorted(sample)
        assert not {1, 2, 3, 7} & set(sample)


@given(data=st.data(), nodes=st.integers(1, 60), k=st.integers(0, 70), me=st.integers(0, 70))
def test_samples_are_others_that_are_there_as_many_as_can_be(data, nodes, k, me):
    members = tuple(range(0, 2 * nodes, 2))
    gone = data.draw(st.sets(st.integers(0, 2 * nodes)))
    lost = data.draw(st.sets(st.integers(0, 2 * nodes)))
    ctx = Context(me, Crowd(members, gone), Protocol())
    for peer in sorted(lost):
        ctx.lose(peer)
    there = set(members) - gone - lost - {me}
    sample = ctx.sample(k)
    assert len(sample) == min(k, len(there))
    assert set(sample) <= there
    assert list(sample) == sorted(set(sample))
    assert ctx.sample(k, role="server") == ()


@pytest.mark.parametrize("k", [3, 30])
def test_every_peer_is_drawn_as_often_as_every_other(k):
    """Whether it is drawn from the roster (3 of 40) or from the list of those who are there (30 of 40)."""
    ctx = Context(0, Crowd(tuple(range(40)), gone={5, 6}), Protocol())
    counts = np.bincount([peer for _ in range(3000) for peer in ctx.sample(k)], minlength=40)
    assert counts[[0, 5, 6]].tolist() == [0, 0, 0]
    drawn = np.delete(counts, [0, 5, 6])
    share = k / 37
    sigma = (3000 * share * (1 - share)) ** 0.5
    assert np.abs(drawn - 3000 * share).max() < 4.5 * sigma


def test_pairs_are_drawn_as_often_as_other_pairs():
    ctx = Context(0, Crowd(tuple(range(9)), gone={8}), Protocol())
    pairs = Counter(ctx.sample(2) for _ in range(4200))
    assert len(pairs) == 21
    assert all(130 < count < 275 for count in pairs.values())


@pytest.mark.parametrize("k", [2, 40])
def test_the_same_seed_draws_the_same_whoever_tells_who_is_gone(k):
    """Simulated nodes share the knowledge of who is gone, live ones have their own."""
    shared = Context(0, Crowd(tuple(range(50)), gone={9: None, 4: None}), Protocol())
    own = Context(0, Crowd(tuple(range(50))), Protocol())
    own.lose(4)
    own.lose(9)
    assert [shared.sample(k) for _ in range(20)] == [own.sample(k) for _ in range(20)]


def test_neighbours_sources_and_another_topology():
    directed = TopologySection(kind="exponential")

    async def behave(ctx):
        return ctx.neighbours(), ctx.neighbours(within=directed), ctx.sources(within=directed)

    assert only(0, behave, 8) == ((1, 7), (1, 2, 4), (4, 6, 7))


def test_weights_sum_to_one_and_give_back_what_was_not_heard():
    async def behave(ctx):
        return ctx.weights((1, 2, 3)), ctx.weights((1, 3)), ctx.weights(())

    whole, part, none = only(0, behave, 4, topology=TopologySection(kind="full"))
    assert whole == (0.25, 0.25, 0.25, 0.25)
    assert part == (0.5, 0.25, 0.25)
    assert none == (1.0,)


def test_what_a_node_may_know_of_its_data():
    async def behave(ctx):
        return ctx.data.samples, ctx.data.label_histogram.tolist()

    assert only(1, behave) == (1, [1])


# Messages


def test_a_message_arrives_after_its_latency():
    async def behave(ctx):
        if ctx.me == 0:
            await ctx.sleep(2)
            await ctx.send((1, 2), Note(text="hello"))
            return ctx.now
        heard = await ctx.collect(Note, frm=(0,), round=0)
        return ctx.now, heard[0].text

    assert told(behave) == {0: 2.0, 1: (3.0, "hello"), 2: (3.0, "hello")}


def test_one_peer_needs_no_sequence_and_a_message_to_oneself_no_link():
    async def behave(ctx):
        await ctx.send(ctx.me, Note(text="me"))
        heard = await ctx.collect(Note, frm=(ctx.me,), round=0)
        return ctx.now, heard[ctx.me].text

    assert only(1, behave) == (0.0, "me")


def test_bytes_sent_are_counted_per_receiver():
    async def behave(ctx):
        await ctx.send((1, 2), Note())
        first = ctx.bytes_sent
        await ctx.send(1, Note())
        return first, ctx.bytes_sent

    first, both = only(0, behave)
    assert first > 0
    assert both == first * 1.5


def test_a_collect_that_can_never_end_is_refused():
    async def behave(ctx):
        with pytest.raises(ProtocolError, match=r"from anyone never ends: give frm, quorum or timeout_s"):
            ctx.collect(Note, round=0)
        return True

    assert only(0, behave)


@pytest.mark.parametrize(
    ("kind", "key", "message"),
    [
        (Note, {}, r"collect\(Note\) takes round=; got none"),
        (Note, {"part": 1}, r"takes round=; got \['part'\]"),
        (Note, {"round": 1, "part": 1}, r"takes round=; got \['part', 'round'\]"),
        (Two, {"round": 1}, r"takes round=, part=; got \['round'\]"),
        (Question, {"round": 1}, r"takes no key; got \['round'\]"),
    ],
)
def test_a_wrong_key_says_which_is_right(kind, key, message):
    async def behave(ctx):
        with pytest.raises(ProtocolError, match=message):
            ctx.collect(kind, frm=(1,), **key)
        return True

    assert only(0, behave)


def test_a_deadlock_says_who_waits_for_whom():
    async def behave(ctx):
        await ctx.collect(Note, frm=(ctx.me - 1,), round=ctx.me)

    with pytest.raises(Deadlock) as error:
        told(behave)
    assert "node 1 waits for test.context/note/1 round=1 from [0] since 0 s, has heard 0" in str(error.value)


# Handlers and requests


class Asked(Protocol):
    @on(Question)
    def answer(self, ctx, sender, message):
        return None if message.text == "silence" else Answer(text=f"{message.text} {sender} {ctx.me}")


def test_a_request_is_answered_by_the_handler():
    async def behave(ctx):
        answer = await ctx.request(2, Question(text="who"))
        return ctx.now, answer.text

    assert only(0, behave, protocol=Asked) == (2.0, "who 0 2")


def test_many_requests_at_once_find_their_own_answers():
    async def behave(ctx):
        texts = {}

        async def ask(peer, text):
            texts[peer, text] = (await ctx.request(peer, Question(text=text))).text

        for text in "abc":
            for peer in (1, 2):
                ctx.spawn(ask(peer, text))
        await ctx.sleep(5)
        return texts

    wanted = {(peer, text): f"{text} 0 {peer}" for text in "abc" for peer in (1, 2)}
    assert only(0, behave, protocol=Asked) == wanted


def test_only_who_was_asked_can_answer():
    async def behave(ctx):
        async def forge():
            ctx.deliver(2, Answer(text="forged"), reply=1)
            ctx.deliver(1, Answer(text="of no request"), reply=9)

        ctx.spawn(forge())
        return (await ctx.request(1, Question(text="who"))).text, ctx.now

    assert only(0, behave, protocol=Asked) == ("who 0 1", 2.0)


def test_an_answer_that_nobody_asked_for_goes_to_the_mailbox():
    async def behave(ctx):
        if ctx.me == 0:
            await ctx.send(1, Question(text="who"))
            return (await ctx.collect(Answer, frm=(1,)))[1].text
        return None

    assert told(behave, protocol=Asked)[0] == "who 0 1"


def test_no_answer_in_time():
    async def behave(ctx):
        with pytest.raises(DeadlineExceeded, match=r"node 1 has not answered node 0's .*/question/1 in 1.5 s"):
            await ctx.request(1, Question(text="slow"), timeout_s=1.5)
        first = ctx.now
        await ctx.sleep(10)
        return first, (await ctx.request(1, Question(text="again"), timeout_s=3)).text

    assert only(0, behave, protocol=Asked) == (1.5, "again 0 1")


def test_an_answer_in_time_is_not_disturbed_by_its_deadline():
    async def behave(ctx):
        texts = [(await ctx.request(1, Question(text=str(i)), timeout_s=2.5)).text for i in range(4)]
        return texts, ctx.now

    assert only(0, behave, protocol=Asked) == (["0 0 1", "1 0 1", "2 0 1", "3 0 1"], 8.0)


def test_a_request_to_nobody_who_answers_is_a_deadlock_with_a_story():
    async def behave(ctx):
        await ctx.request(1, Question(text="silence"))

    with pytest.raises(Deadlock, match="node 0 waits for an answer of node 1"):
        only(0, behave, protocol=Asked)


def test_a_peer_that_is_gone_cannot_be_asked():
    async def behave(ctx):
        ctx.lose(1)
        with pytest.raises(Unreachable, match="node 0 cannot ask node 1, which is gone"):
            await ctx.request(1, Question(text="who"))
        return ctx.now

    assert only(0, behave, protocol=Asked) == 0


def test_a_peer_that_goes_before_it_has_answered_fails_the_request():
    async def behave(ctx):
        async def lose():
            await ctx.sleep(1.5)
            ctx.lose(1)

        ctx.spawn(lose())
        with pytest.raises(Unreachable, match="node 1 went before it answered node 0"):
            await ctx.request(1, Question(text="who"))
        return ctx.now

    assert only(0, behave, protocol=Asked) == 1.5


def test_a_handler_runs_at_delivery_and_may_spawn():
    times = []

    class Spawning(Protocol):
        @on(Note)
        def note(self, ctx, sender, message):
            async def later():
                await ctx.sleep(1)
                times.append((ctx.me, ctx.now))

            times.append((ctx.me, ctx.now))
            ctx.spawn(later())

    async def behave(ctx):
        if ctx.me == 0:
            await ctx.send(2, Note())
        await ctx.sleep(5)

    told(behave, protocol=Spawning)
    assert times == [(2, 1.0), (2, 2.0)]


def test_handlers_are_inherited_and_may_be_replaced():
    class Curt(Asked):
        @on(Question)
        def curt(self, ctx, sender, message):
            return Answer(text="no")

    async def behave(ctx):
        return (await ctx.request(1, Question(text="who"))).text

    assert only(0, behave, protocol=Curt) == "no"
    assert only(0, behave, protocol=Asked) == "who 0 1"


def test_a_protocol_without_run_says_so():
    with pytest.raises(ProtocolError, match=r"Served has no run\(ctx\)"):
        run_protocol(Served(), 2)


def test_a_wrong_option_is_an_error():
    from pydantic import ValidationError

    class Configured(Protocol):
        class Config(Protocol.Config):
            rounds: int = 1

    assert Configured().config.rounds == 1
    with pytest.raises(ValidationError):
        Configured.Config(round=2)
    with pytest.raises(ConfigError, match="degree"):
        run_protocol(Served(), 3, topology=TopologySection(kind="regular", degree=7))
