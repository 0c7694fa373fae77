"""A simulated world whose nodes go and come: what is lost, what is kept, and who is told."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node import DeadlineExceeded, Message, Protocol, Unreachable, on, op
from node.config import (
    ChurnSection,
    DevicesSection,
    Distribution,
    FaultSection,
    NetworkSection,
    RuleSection,
    TopologySection,
)
from node.errors import Deadlock
from node.tape import EventKind, events_of
from node.testing import Quadratic, run_protocol
from protocols.adpsgd import ADPSGD
from protocols.dpsgd import DPSGD
from protocols.epidemic import Epidemic
from protocols.fedavg import FedAvg
from protocols.local import Local
from protocols.pushsum import PushSum

TRAIN_S, LATENCY_S = 1.0, 0.25
PLACE = {
    "devices": DevicesSection(seconds_per_sample=TRAIN_S),
    "network": NetworkSection(latency_s=LATENCY_S, up_bps=1e30, down_bps=1e30),
    "topology": TopologySection(kind="full"),
}


class Note(Message, name="test.churn/note/1", key=("number",)):
    number: int


class Question(Message, name="test.churn/question/1"):
    pass


@op(seeded=True)
def drawn(model, *, rng):
    return model + rng.standard_normal()


def faults(*events, **keys):
    """A schedule of (time_s, node, what)."""
    schedule = tuple(FaultSection(time_s=time_s, node=node, what=what) for time_s, node, what in events)
    return ChurnSection(schedule=schedule, **keys)


def told(behave, churn, nodes=2):
    """Run ``behave(ctx, said)`` on every node; what each incarnation has said, with its time, by node."""
    said = {node: [] for node in range(nodes)}

    class Told(Protocol):
        async def run(self, ctx):
            await behave(ctx, lambda what: said[ctx.me].append((ctx.now, what)))

    outcome = run_protocol(Told(), nodes, churn=churn, **PLACE)
    return said, outcome


def test_a_node_that_comes_back_runs_again_from_its_checkpoint():
    async def behave(ctx, say):
        saved = ctx.restore()
        say(saved and saved["round"])
        for round in range(saved["round"] if saved else 0, 4):
            await ctx.train(ctx.initial_model())
            await ctx.checkpoint(round=round + 1)

    said, outcome = told(behave, faults((2.5, 0, "crash"), (7.0, 0, "return")))
    assert said[0] == [(0.0, None), (7.0, 2)]
    assert outcome.time_s == 9.0, "rounds 2 and 3 remained; the half of round 2 that had been trained was lost"
    assert outcome.usage.summary()["device_hours"]["lost"] == pytest.approx(0.5 / 3600)


def test_a_node_without_a_checkpoint_starts_anew():
    async def behave(ctx, say):
        say(ctx.restore())
        await ctx.sleep(3)
        say("done")

    said, _ = told(behave, faults((1.0, 1, "crash"), (5.0, 1, "return")))
    assert said[1] == [(0.0, None), (5.0, None), (8.0, "done")]


def test_randomness_of_a_life_without_a_checkpoint_is_none_of_an_earlier_one():
    """Noise that came again with other numbers under it would cancel in their difference."""

    async def behave(ctx, say):
        for _ in range(2):
            model = ctx.apply(drawn, ctx.initial_model())
            say((ctx.counter, float((await ctx.value(model))[0])))
            await ctx.sleep(1.0)
        await ctx.sleep(2.0)

    lives = (2.5, 0, "crash"), (4.0, 0, "return"), (6.5, 0, "crash"), (8.0, 0, "return")
    said, _ = told(behave, faults(*lives))
    counters, values = zip(*(what for _, what in said[0]), strict=True)
    assert counters == (1, 2, 3, 4, 5, 6)
    assert len(set(values)) == 6
    still, _ = told(behave, faults())
    assert [what for _, what in still[0]] == [what for _, what in said[0][:2]]
    assert said[1] == still[1]


def test_randomness_after_a_restore_goes_on_from_the_checkpoint():
    async def behave(ctx, say):
        saved = ctx.restore()
        for _ in range(3 - (saved["drawn"] if saved else 0)):
            ctx.apply(drawn, ctx.initial_model())
            say(ctx.counter)
            await ctx.sleep(1.0)
            if ctx.counter < 2:
                await ctx.checkpoint(drawn=1)

    said, _ = told(behave, faults((1.5, 0, "crash"), (4.0, 0, "return")))
    assert [counter for _, counter in said[0]] == [1, 2, 2, 3]


def test_what_is_sent_to_a_node_that_is_away_is_lost_even_if_it_is_back_in_time():
    async def behave(ctx, say):
        if ctx.me == 0:
            for number in range(6):
                await ctx.send(1, Note(number=number))
                await ctx.sleep(1)
            return
        for number in range(6):
            heard = await ctx.collect(Note, frm=(0,), timeout_s=0.5, number=number)
            say((number, bool(heard)))
            await ctx.sleep(0.5)

    said, outcome = told(behave, faults((1.9, 1, "crash"), (2.1, 1, "return")))
    lost = [event for event in events_of(outcome.events) if event.kind is EventKind.LOST]
    assert [(event.node, event.peer) for event in lost] == [(1, 0)], "sent at 2.0 while it was away, arriving at 2.25"
    assert lost[0].time_s == 2.25
    assert said[1][0][1] == (0, True)


def test_what_a_crashed_node_had_in_the_air_never_arrives_but_a_farewell_does():
    async def behave(ctx, say):
        if ctx.me == 0:
            await ctx.send(1, Note(number=0))
            await ctx.sleep(100)
        else:
            say(bool(await ctx.collect(Note, frm=(0,), timeout_s=1, number=0)))

    for what, arrives in (("crash", False), ("leave", True)):
        said, outcome = told(behave, faults((0.1, 0, what)))
        assert said[1][0][1] is arrives, what
        assert outcome.lost == {0: "away since 0.1 s"}


def test_others_learn_of_a_crash_after_a_while_and_of_a_farewell_when_it_arrives():
    async def behave(ctx, say):
        if ctx.me == 0:
            await ctx.sleep(100)
            return
        with pytest.raises(Unreachable):
            await ctx.collect(Note, frm=(0,), number=0)
        say(ctx.peers())
        with pytest.raises(Unreachable):
            await ctx.request(0, Question())

    for what, known_s in (("crash", 5.0), ("leave", 2.25)):
        said, _ = told(behave, faults((2.0, 0, what), detect_s=3.0))
        assert said[1] == [(known_s, ())], what


def test_a_request_to_a_crashed_node_ends_when_the_crash_is_known():
    async def behave(ctx, say):
        if ctx.me == 0:
            await ctx.sleep(100)
            return
        await ctx.sleep(2.5)
        with pytest.raises(DeadlineExceeded):
            await ctx.request(0, Question(), timeout_s=1)
        say("no answer")
        with pytest.raises(Unreachable):
            await ctx.request(0, Question(), timeout_s=10)
        say("gone")

    said, _ = told(behave, faults((2.0, 0, "crash"), detect_s=3.0))
    assert said[1] == [(3.5, "no answer"), (5.0, "gone")]


def test_a_short_absence_is_never_noticed_and_a_node_that_is_back_is_counted_again():
    async def behave(ctx, say):
        if ctx.me == 0:
            await ctx.sleep(30 - ctx.now)
            return
        for _ in range(4):
            await ctx.sleep(3)
            say(ctx.peers())

    short, _ = told(behave, faults((2.0, 0, "crash"), (4.0, 0, "return"), detect_s=3.0))
    assert [peers for _, peers in short[1]] == [(0,)] * 4
    longer, _ = told(behave, faults((2.0, 0, "crash"), (8.0, 0, "return"), detect_s=3.0))
    assert [peers for _, peers in longer[1]] == [(0,), (), (0,), (0,)]


def test_a_pause_keeps_everything_and_makes_timers_messages_and_training_late():
    async def behave(ctx, say):
        if ctx.me == 0:
            await ctx.sleep(1.5)
            await ctx.send(1, Note(number=0))
            return
        await ctx.train(ctx.initial_model())
        say("trained")
        await ctx.collect(Note, frm=(0,), number=0)
        say("heard")
        await ctx.sleep(1)
        say("slept")

    said, outcome = told(behave, faults((0.25, 1, "pause"), (4.0, 1, "return")))
    assert said[1] == [(4.75, "trained"), (4.75, "heard"), (5.75, "slept")], "0.75 s of training remained"
    assert not outcome.lost


def test_a_pause_inside_of_a_training_only_puts_it_off():
    async def behave(ctx, say):
        await ctx.train(ctx.initial_model())
        say("trained")

    said, _ = told(behave, faults((0.2, 0, "pause"), (0.3, 0, "return"), (0.5, 0, "pause"), (0.9, 0, "return")))
    assert said[0] == [(pytest.approx(1.5), "trained")]
    assert said[1] == [(1.0, "trained")]


def test_a_node_that_joins_late_starts_late():
    async def behave(ctx, say):
        say(ctx.peers())

    said, _ = told(behave, faults((3.0, 1, "return")))
    assert said == {0: [(0.0, ())], 1: [(3.0, (0,))]}


def test_handlers_of_a_node_that_is_away_do_not_run():
    asked = []

    class Asks(Protocol):
        async def run(self, ctx):
            if ctx.me == 0:
                for _ in range(6):
                    await ctx.send(1, Question())
                    await ctx.sleep(1)
            else:
                await ctx.sleep(6.5 - ctx.now)

        @on(Question)
        def noted(self, ctx, sender, message):
            asked.append(ctx.now)

    run_protocol(Asks(), 2, churn=faults((1.5, 1, "crash"), (3.5, 1, "return")), **PLACE)
    assert asked == [0.25, 1.25, 4.25, 5.25]


def test_work_beside_run_ends_with_its_node():
    ticks = []

    async def behave(ctx, say):
        async def tick():
            while True:
                ticks.append((ctx.me, ctx.now))
                await ctx.sleep(1)

        if ctx.me == 0:
            ctx.spawn(tick())
        await ctx.sleep(5)

    told(behave, faults((2.5, 0, "crash")))
    assert ticks == [(0, 0.0), (0, 1.0), (0, 2.0)]


def test_only_work_of_the_node_that_goes_ends_and_none_of_it_is_kept():
    ticks, worlds = [], []

    async def behave(ctx, say):
        worlds[:] = [ctx._world]

        async def tick(name):
            while ctx.now < 4:
                ticks.append((ctx.me, name, ctx.now))
                await ctx.sleep(1)

        for name in "ab":
            ctx.spawn(tick(name))
        await ctx.sleep(6)
        say({node: len(tasks) for node, tasks in ctx._world._spawned.items()})

    said, _ = told(behave, faults((1.5, 0, "crash"), (9.0, 0, "return")))
    assert [tick for tick in ticks if tick[0] == 0] == [(0, name, time_s) for time_s in (0.0, 1.0) for name in "ab"]
    assert len([tick for tick in ticks if tick[0] == 1]) == 8
    assert said[1] == [(6.0, {})]
    assert said[0] == [(15.0, {})]
    assert not worlds[0]._spawned


def test_a_node_cannot_act_while_it_is_being_cut_off():
    async def behave(ctx, say):
        if ctx.me == 1:
            say(bool(await ctx.collect(Note, frm=(0,), timeout_s=10, number=0)))
            return
        try:
            await ctx.sleep(100)
        finally:
            await ctx.send(1, Note(number=0))
            ctx.record(round=0, last=1.0)

    said, outcome = told(behave, faults((1.0, 0, "crash")))
    assert said[1][0][1] is False
    assert not list(outcome.recorder.rows())


def test_nobody_there_is_no_deadlock_while_somebody_will_return():
    async def behave(ctx, say):
        await ctx.sleep(1)
        say("done")

    said, _ = told(behave, faults((0.5, 0, "crash"), (0.5, 1, "crash"), (50, 0, "return"), (60, 1, "return")))
    assert said == {0: [(51.0, "done")], 1: [(61.0, "done")]}


def test_nobody_there_for_good_is_a_deadlock():
    async def behave(ctx, say):
        await ctx.sleep(10)

    with pytest.raises(Deadlock, match=r"at 0\.7 s every node is away for good, and none has ended"):
        told(behave, faults((0.5, 0, "crash"), (0.7, 1, "leave")))


def test_who_has_ended_needs_nobody_who_is_away_for_good():
    async def behave(ctx, say):
        await ctx.sleep(10 if ctx.me else 1)

    _, outcome = told(behave, faults((2.0, 1, "crash")))
    assert outcome.lost == {1: "away since 2 s"}
    assert outcome.time_s == 2.0


@pytest.mark.parametrize("going", ["crash", "pause"])
def test_who_is_away_at_first_is_silent_like_anybody_else(going):
    """Nobody is told that a session has not begun yet; a paused node only begins later."""
    heard = []

    class Waits(Protocol):
        async def run(self, ctx):
            heard.append((ctx.me, ctx.now, ctx.peers()))

    sessions = Distribution(distribution="uniform", low=1.0, high=2.0)
    churn = ChurnSection(online_s=sessions, offline_s=sessions, nodes=(0, 1, 2, 3), going=going, detect_s=50)
    run_protocol(Waits(), 4, churn=churn, seed=1, **PLACE)
    assert any(now > 0 for _, now, _ in heard) or going == "pause"
    assert all(len(peers) == 3 for _, _, peers in heard)


def test_endless_sessions_do_not_hide_a_deadlock():
    async def behave(ctx, say):
        await ctx.collect(Note, quorum=1, number=0)

    sessions = Distribution(distribution="exponential", mean=10.0)
    with pytest.raises(Deadlock, match=r"come and go.*\n.*waits for test.churn/note/1 number=0"):
        told(behave, ChurnSection(online_s=sessions, offline_s=sessions, detect_s=1e9))


def test_a_protocol_that_needs_everybody_says_who_is_gone():
    with pytest.raises(Unreachable, match=r"node \d needs dpsgd/model/1 round=1 from node 2, which is gone"):
        run_protocol(DPSGD(DPSGD.Config(rounds=5)), 4, churn=faults((1.6, 2, "crash")), **PLACE)


SESSIONS = ChurnSection(
    online_s=Distribution(distribution="weibull", mean=8.0),
    offline_s=Distribution(distribution="exponential", mean=3.0),
    detect_s=1.0,
)


@pytest.mark.parametrize(
    "protocol",
    [
        Local(Local.Config(rounds=6)),
        DPSGD(DPSGD.Config(rounds=6, deadline_s=3.0)),
        Epidemic(Epidemic.Config(rounds=6, degree=2, deadline_s=3.0)),
        ADPSGD(ADPSGD.Config(rounds=6)),
        PushSum(PushSum.Config(rounds=6, deadline_s=3.0)),
        FedAvg(FedAvg.Config(rounds=6, sample=3, deadline_s=3.0)),
    ],
    ids=lambda protocol: type(protocol).__name__,
)
def test_bundled_protocols_end_under_churn_and_twice_the_same(protocol):
    def run():
        return run_protocol(protocol, 8, churn=SESSIONS, seed=4, **PLACE)

    one, other = run(), run()
    assert one.event_hash == other.event_hash
    assert sorted(one.models) == list(range(8))
    assert any(event.kind is EventKind.LOST for event in events_of(one.events)) or isinstance(protocol, Local)


@settings(max_examples=60)
@given(
    node=st.integers(0, 3),
    crash_s=st.floats(0.01, 6),
    away_s=st.floats(0.01, 6),
    what=st.sampled_from(["crash", "leave", "pause"]),
)
def test_a_node_may_go_at_any_phase_of_a_round(node, crash_s, away_s, what):
    churn = faults((crash_s, node, what), (crash_s + away_s, node, "return"), detect_s=0.5)
    protocol = DPSGD(DPSGD.Config(rounds=4, deadline_s=1.5))
    outcome = run_protocol(protocol, 4, workload=Quadratic(4), churn=churn, **PLACE)
    assert sorted(outcome.models) == [0, 1, 2, 3]
    events = list(events_of(outcome.events))
    if what != "pause":
        away = [e for e in events if e.node == node and crash_s < e.time_s < crash_s + away_s]
        assert all(event.kind is EventKind.LOST for event in away), away
    shares = outcome.usage.summary()["shares"]
    assert sum(shares.values()) == pytest.approx(1)


def test_a_farewell_reaches_who_begins_to_wait_while_it_is_in_the_air():
    async def behave(ctx, say):
        if ctx.me == 1:
            await ctx.sleep(100)
            return
        await ctx.sleep(0.5 if ctx.me == 2 else 1.1)
        with pytest.raises(Unreachable):
            await ctx.collect(Note, frm=(1,), number=ctx.me)
        say("gone")

    said, _ = told(behave, faults((1.0, 1, "leave"), detect_s=50), 3)
    assert said[0] == [(1.25, "gone")]
    assert said[2] == [(1.25, "gone")]


def test_a_farewell_that_a_partition_swallows_is_noticed_all_the_same():
    class Waits(Protocol):
        async def run(self, ctx):
            if ctx.me == 1:
                await ctx.sleep(100)
                return
            with pytest.raises(Unreachable):
                await ctx.collect(Note, frm=(1,), number=0)
            assert ctx.now == 4.0

    cut = RuleSection(kind="partition", frm=(0,), both_ways=True)
    place = {**PLACE, "network": PLACE["network"].model_copy(update={"rules": (cut,)})}
    outcome = run_protocol(Waits(), 2, churn=faults((1.0, 1, "leave"), detect_s=3.0), **place)
    assert outcome.lost == {1: "away since 1 s"}


def test_an_answer_to_a_question_of_an_earlier_life_is_not_taken_for_one_of_this():
    class Numbers(Protocol):
        async def run(self, ctx):
            if ctx.me == 1:
                await ctx.sleep(20)
                return
            life = 1 if ctx.restore() is None else 2
            await ctx.checkpoint()
            answer = await ctx.request(1, Note(number=life))
            assert answer.number == life

        @on(Note)
        def same(self, ctx, sender, message):
            return Note(number=message.number)

    churn = faults((1.0, 1, "pause"), (5.0, 1, "return"), (2.0, 0, "crash"), (3.0, 0, "return"), detect_s=50)
    slow = {**PLACE, "network": NetworkSection(latency_s=1.5, up_bps=1e30, down_bps=1e30)}
    run_protocol(Numbers(), 2, churn=churn, **slow)


def test_nodes_that_only_ever_repeat_a_round_are_deadlocked():
    """They train and send after every return, and yet nobody comes any further."""

    async def behave(ctx, say):
        saved = ctx.restore()
        for round in range(saved["round"] if saved else 0, 3):
            await ctx.train(ctx.initial_model())
            await ctx.send(1 - ctx.me, Note(number=round))
            await ctx.collect(Note, quorum=2, number=round)
            ctx.record(round=round)
            await ctx.checkpoint(round=round + 1)

    sessions = Distribution(distribution="uniform", low=3.0, high=5.0)
    with pytest.raises(Deadlock, match="none has come further"):
        told(behave, ChurnSection(online_s=sessions, offline_s=sessions))


def test_nobody_draws_who_is_away_and_everybody_who_is_back():
    """Of 12 others, 3 are drawn from the roster; node 1 is away, and known to be, from 4 s to 9 s."""
    drawn = {True: set(), False: set()}

    class Draws(Protocol):
        async def run(self, ctx):
            while ctx.now < 14:
                await ctx.sleep(0.5)
                if ctx.me:
                    continue
                drawn[4 < ctx.now < 9].update(*[ctx.sample(3) for _ in range(20)])

    churn = faults((2.0, 1, "crash"), (9.0, 1, "return"), detect_s=2.0)
    run_protocol(Draws(), 13, churn=churn, **PLACE)
    assert drawn == {True: set(range(2, 13)), False: set(range(1, 13))}


def test_the_readmes_schedule_takes_the_server_away_and_federated_averaging_goes_on():
    churn = faults((30.0, 0, "crash"), (60.0, 0, "return"))
    outcome = run_protocol(FedAvg(FedAvg.Config(rounds=40, sample=3)), 8, churn=churn, **PLACE)
    assert sorted(outcome.models) == list(range(8))
    assert outcome.lost == {}
    rounds = [row.round for row in outcome.recorder.rows() if (row.node, row.metric) == (0, "clients")]
    assert rounds == list(range(40))
