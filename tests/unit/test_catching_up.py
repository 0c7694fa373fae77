"""Nodes that come back, or fall behind, under the virtual clock: they go on where the others are."""

import numpy as np
import pytest

from node import Context, Observer
from node.config import ChurnSection, DevicesSection, InjectedFaultSection, NetworkSection, TopologySection
from node.testing import Quadratic, run_protocol
from protocols.adpsgd import ADPSGD
from protocols.catching_up import Answer, CatchingUp, Question, Rejoined, Request, State, _reached
from protocols.dpsgd import DPSGD, Model
from protocols.epidemic import Epidemic
from protocols.pushsum import PushSum

NODES = 5
ROUNDS = 40
TRAIN_S = 1.0
DETECT_S = 2.0
DEADLINE_S = 30.0
BACK = InjectedFaultSection(kind="restart", nodes=(4,), at_s=5.5, for_s=20.0)
"""Node 4 goes in its sixth round, and comes back when the others are 18 rounds further."""

MADE = {
    "dpsgd": lambda: DPSGD(DPSGD.Config(rounds=ROUNDS, deadline_s=DEADLINE_S)),
    "oracle": lambda: Epidemic(Epidemic.Config(rounds=ROUNDS, variant="oracle", deadline_s=DEADLINE_S)),
    "pushsum": lambda: PushSum(PushSum.Config(rounds=ROUNDS, deadline_s=DEADLINE_S)),
    "adpsgd": lambda: ADPSGD(ADPSGD.Config(rounds=ROUNDS, deadline_s=DEADLINE_S)),
}


class Heard(Observer):
    """What comes, to whom, from whom, when."""

    def __init__(self):
        super().__init__()
        self.all = []

    def received(self, ctx, sender, message):
        self.all.append((ctx.now, ctx.me, sender, message))

    def of(self, kind):
        return [(to, sender, message) for _, to, sender, message in self.all if type(message) is kind]


def run(protocol, *faults, topology="full", nodes=NODES, mods=(), workload=None, **network):
    return run_protocol(
        protocol,
        nodes,
        workload=workload,
        topology=TopologySection(kind=topology),
        devices=DevicesSection(seconds_per_sample=TRAIN_S),
        network=NetworkSection(**{"latency_s": 0.01, "up_bps": 1e12, "down_bps": 1e12, **network}),
        churn=ChurnSection(detect_s=DETECT_S),
        faults=faults,
        mods=mods,
    )


def rounds_of(outcome, node):
    return list(dict.fromkeys(row.round for row in outcome.recorder.rows() if row.node == node))


def skipped(outcome, node):
    return sorted(set(range(ROUNDS)) - set(rounds_of(outcome, node)))


# Back after many rounds


@pytest.mark.parametrize("name", sorted(MADE))
def test_one_that_comes_back_is_where_the_others_are_and_costs_nobody_a_deadline(name):
    undisturbed = run(MADE[name]())
    outcome = run(MADE[name](), BACK)
    assert outcome.lost == {}
    assert len(skipped(outcome, 4)) >= 16
    # The others wait until they know that it has gone, and a round's training at most when it comes back.
    assert outcome.time_s < undisturbed.time_s + DETECT_S + 1.5 * TRAIN_S
    assert all(rounds_of(outcome, node) == list(range(ROUNDS)) for node in range(4))
    assert rounds_of(outcome, 4)[-1] == ROUNDS - 1


@pytest.mark.parametrize("topology", ["ring", "exponential", "one-peer", "random-regular"])
@pytest.mark.parametrize("away_s", [0.4, 1.9, 7.3])
def test_so_it_is_on_every_topology_and_for_every_absence(topology, away_s):
    """A random-regular one gives it other neighbours in the round that it comes back in."""
    back = InjectedFaultSection(kind="restart", nodes=(4,), at_s=5.5, for_s=away_s)
    undisturbed = run(MADE["dpsgd"](), topology=topology, nodes=7)
    outcome = run(MADE["dpsgd"](), back, topology=topology, nodes=7)
    assert outcome.time_s < undisturbed.time_s + DETECT_S + 1.5 * TRAIN_S


def test_without_a_deadline_a_short_absence_is_no_end():
    """What it was told while it was away, it is told again; before, all would have waited for ever."""
    back = InjectedFaultSection(kind="restart", nodes=(4,), at_s=5.5, for_s=1.0)
    outcome = run(DPSGD(DPSGD.Config(rounds=ROUNDS)), back)
    assert [rounds_of(outcome, node) for node in range(NODES)] == [list(range(ROUNDS))] * NODES


def test_one_that_comes_back_after_the_end_has_what_the_others_have():
    late = InjectedFaultSection(kind="restart", nodes=(4,), at_s=5.5, for_s=60.0)
    outcome = run(MADE["dpsgd"](), late)
    assert rounds_of(outcome, 4)[-1] == ROUNDS - 1
    assert outcome.models[4] == pytest.approx(outcome.models[0], abs=1e-12)
    assert outcome.time_s < 66.0


def test_where_nobody_is_further_it_goes_on_with_what_it_has_saved():
    """All come back at once, with the same round."""
    all_at_once = [InjectedFaultSection(kind="restart", nodes=(n,), at_s=5.5, for_s=1.0) for n in range(NODES)]
    heard = Heard()
    outcome = run(MADE["dpsgd"](), *all_at_once, mods=[heard])
    assert not heard.of(State)
    assert [rounds_of(outcome, node) for node in range(NODES)] == [list(range(ROUNDS))] * NODES


def test_epidemic_local_asks_some_and_goes_on():
    outcome = run(Epidemic(Epidemic.Config(rounds=ROUNDS, degree=3)), BACK)
    assert len(skipped(outcome, 4)) >= 16
    assert rounds_of(outcome, 4)[-1] == ROUNDS - 1


def test_adpsgd_keeps_what_it_has_exchanged_while_it_asked():
    """Or an exchange would move one of its ends alone."""
    outcome = run(MADE["adpsgd"](), BACK, workload=Quadratic(NODES, lr=0.0), latency_s=0.3)
    assert outcome.spread() == pytest.approx(0.0, abs=1e-12)


def test_pushsum_takes_over_an_estimate_and_keeps_its_own_weight():
    workload = Quadratic(NODES, lr=0.3)
    disturbed, calm = [
        run(MADE["pushsum"](), *faults, topology="exponential", workload=workload) for faults in ((BACK,), ())
    ]
    bias = max(np.linalg.norm(target - workload.optimum) for target in workload.targets)
    for node in range(NODES):
        assert np.linalg.norm(disturbed.models[node] - calm.models[node]) < 0.01 * bias


def test_the_same_happens_every_time():
    hashes = {run(MADE["dpsgd"](), BACK).event_hash for _ in range(2)}
    assert len(hashes) == 1


def test_an_undisturbed_run_asks_nothing():
    heard = Heard()
    run(MADE["dpsgd"](), mods=[heard])
    assert {type(message) for *_, message in heard.all} == {Model}


# Behind without a restart


def test_one_that_comes_late_without_a_checkpoint_catches_up_after_a_round():
    """It is absent at first, so it has nothing to restore; it sees that the others are past its round."""
    outcome = run_protocol(
        MADE["dpsgd"](),
        NODES,
        topology=TopologySection(kind="full"),
        devices=DevicesSection(seconds_per_sample=TRAIN_S),
        churn=ChurnSection(schedule=[{"node": 4, "time_s": 20.5, "what": "return"}]),
    )
    assert rounds_of(outcome, 4)[0] == 0
    assert len(skipped(outcome, 4)) > 10
    assert rounds_of(outcome, 4)[-1] == ROUNDS - 1
    assert outcome.time_s < ROUNDS * TRAIN_S + 3.5 * TRAIN_S


def test_a_slow_node_is_not_behind_it_has_what_it_needs():
    """What it is told waits for it, so it does each round."""
    slow = InjectedFaultSection(kind="slow", nodes=(4,), rate=0.4)
    heard = Heard()
    outcome = run(DPSGD(DPSGD.Config(rounds=ROUNDS, deadline_s=0.5)), slow, mods=[heard])
    assert not heard.of(Question)
    assert rounds_of(outcome, 4) == list(range(ROUNDS))


def test_both_sides_of_a_partition_that_has_healed_hear_each_other_again():
    cut = InjectedFaultSection(kind="partition", groups=((3, 4),), at_s=5.5, for_s=9.0)
    heard = Heard()
    outcome = run(DPSGD(DPSGD.Config(rounds=ROUNDS, deadline_s=0.5)), cut, mods=[heard])
    across = [now for now, to, sender, _ in heard.all if (to > 2) != (sender > 2)]
    assert max(across) > 20.0
    assert outcome.spread() < 1e-9, "in one round again, at last"


# What it takes over


class Peer(CatchingUp):
    """Node 0 comes to catch up; the others say what they are told to say."""

    class Config(CatchingUp.Config):
        rounds: int = 50
        at: tuple[int, ...] = (0, 7, 8, 9)
        """The round that each node says to be in."""
        given: tuple[int, ...] = ()
        """The round that each node gives with its model; absent: the same."""
        silent: tuple[int, ...] = ()

    config: Config

    async def run(self, ctx: Context):
        model = ctx.initial_model()
        for _ in range(ctx.me):  # node n's model is n times trained
            model = await ctx.train(model)
        if ctx.me:
            if ctx.me not in self.config.silent:
                self.begin(self.config.at[ctx.me], model)
            await ctx.sleep(100.0)
            return model
        await ctx.sleep(10.0)
        round, model = await self.caught_up(ctx, self.config.at[0], model, 5.0)
        ctx.record(round=round, now=ctx.now, trains=float(ctx._trains))
        return model

    def give(self, ctx, sender, request):
        state = super().give(ctx, sender, request)
        given = self.config.given
        if state is None or not given:
            return state
        return State(number=state.number, round=given[ctx.me], model=state.model)


def caught_up(nodes=4, **config):
    """The round that node 0 goes on with, the nodes that gave it their models, and what it recorded last."""
    heard = Heard()
    outcome = run(Peer(Peer.Config(**config)), nodes=nodes, mods=[heard])
    rows = {row.metric: row for row in outcome.recorder.rows() if row.node == 0}
    return (
        rows["now"].round,
        [sender for _, sender, _ in heard.of(State)],
        {name: row.value for name, row in rows.items()},
    )


def test_it_goes_on_where_half_of_those_are_who_answer_with_the_model_of_the_nearest():
    assert caught_up(at=(0, 7, 8, 9))[:2] == (8, [2])
    assert caught_up(at=(0, 9, 8, 7))[:2] == (8, [2])


def test_one_that_claims_to_be_far_ahead_or_is_behind_moves_nobody():
    assert caught_up(at=(0, 49, 8, 8))[:2] == (8, [2])
    assert caught_up(at=(0, 0, 8, 8))[:2] == (8, [2])


def test_of_two_the_one_that_is_further_counts():
    assert caught_up(nodes=3, at=(0, 3, 8))[:2] == (8, [2])


def test_nobody_goes_back():
    assert caught_up(at=(8, 8, 7, 8))[:2] == (8, [])
    assert caught_up(at=(8, 9, 9, 9), given=(0, 3, 3, 3))[:2] == (8, [1])


def test_no_more_rounds_are_taken_over_than_there_are():
    assert caught_up(at=(0, 9, 9, 9), given=(0, 10**6, 10**6, 10**6))[0] == 50


def test_who_does_not_answer_costs_one_wait():
    round, _, last = caught_up(at=(0, 7, 8, 9), silent=(1,))
    assert (round, last["now"]) == (9, pytest.approx(15.04, abs=0.02))
    round, givers, last = caught_up(at=(0, 7, 8, 9), silent=(1, 2, 3))
    assert (round, givers, last["now"]) == (0, [], pytest.approx(15.0, abs=0.1))


def test_the_learning_rate_goes_on_as_if_nothing_had_been_missed():
    assert caught_up(at=(0, 8, 8, 8))[2]["trains"] == 8
    assert caught_up(at=(5, 8, 8, 8))[2]["trains"] == 3


def test_half_of_some():
    assert [_reached(rounds) for rounds in ([], [3], [3, 4], [9, 3, 4], [1, 2, 3, 4])] == [-1, 3, 4, 4, 3]


def test_questions_before_a_node_has_begun_are_not_answered():
    peer = Peer(Peer.Config())
    assert peer.say_how_far(None, 1, Question(number=1)) is None
    assert CatchingUp.give(peer, None, 1, Request(number=1)) is None
    assert peer.excuse(None, 1, Rejoined(round=1)) is None
    peer._at = 3, None
    assert peer.say_how_far(None, 1, Question(number=6)).round == 3
    assert isinstance(peer.say_how_far(None, 1, Question(number=6)), Answer)
