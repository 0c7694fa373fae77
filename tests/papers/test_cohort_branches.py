"""Big cohorts: members add up what others have trained, and their leader hears a few sums."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node import Mod, Observer
from node.config import ChurnSection, DevicesSection, FaultSection, NetworkSection
from node.testing import Quadratic, check_protocol, run_protocol
from protocols.branching import branches
from protocols.cohort_round import Assignment, Partial, Update, shares_of
from protocols.cpfl import CPFL

# A training takes 1 s, a message 0.02 s.
PLACE = {
    "devices": DevicesSection(seconds_per_sample=1.0),
    "network": NetworkSection(latency_s=0.02, up_bps=1e30, down_bps=1e30),
}
ASKED = Assignment(epoch=0, term=1, round=5, digest="d")


class Shards(Quadratic):
    """Nodes of different sizes, with noise, as batches have."""

    def __init__(self, nodes, **options):
        super().__init__(nodes, **{"noise": 0.1, **options})

    def shard_size(self, node):
        return 3 + node


class Seen(Observer):
    """All messages, as they come: time, sender, receiver, message."""

    def __init__(self):
        super().__init__()
        self.messages = []

    def received(self, ctx, sender, message):
        self.messages.append((ctx.now, sender, ctx.me, message))

    def of(self, kind):
        return [entry for entry in self.messages if isinstance(entry[3], kind)]


def trained(nodes=12, rounds=4, events=(), workload=None, mods=(), **config):
    schedule = tuple(FaultSection(time_s=time_s, node=node, what=what) for time_s, node, what in events)
    stopping = {"rule": "budget", "most_rounds": rounds}
    settings = CPFL.Config(**{"cohorts": 1, "leader": "fixed", "stopping": stopping, "checkpoint": "last", **config})
    churn = ChurnSection(schedule=schedule, detect_s=5.0)
    workload = workload or Shards(nodes)
    return run_protocol(CPFL(settings), nodes, workload=workload, churn=churn, mods=mods, **PLACE)


def model(outcome):
    """The one that everybody has ended with."""
    models = {tuple(model.tolist()) for model in outcome.models.values()}
    assert len(models) == 1
    return models.pop()


def metric(outcome, name):
    return [row.value for row in outcome.recorder.rows() if row.metric == name and row.value == row.value]


# Who is told what


@given(st.sets(st.integers(0, 60), min_size=1), st.integers(2, 9), st.integers(0, 30))
def test_every_member_is_in_one_branch_and_one_of_it_adds_up(members, size, round):
    told = branches(Assignment(epoch=0, term=1, round=round, digest="d"), shares_of(dict.fromkeys(members, 2)), size)
    assert set(told) == members
    heads = {member for member, each in told.items() if each.shares}
    assert {each.to for each in told.values()} == heads
    for head in heads:
        branch = [member for member, each in told.items() if each.to == head]
        assert [member for member, _ in told[head].shares] == branch
        assert len(branch) <= size
    assert sum(share for head in heads for _, share in told[head].shares) == pytest.approx(1)
    assert len(heads) == -(-len(members) // size)


def test_without_branches_all_answer_to_the_leader():
    told = branches(ASKED, {3: 0.25, 4: 0.75}, 0)
    assert told == {3: ASKED, 4: ASKED}
    assert (ASKED.to, ASKED.shares) == (None, ())


def test_another_one_adds_up_each_round():
    def head(round):
        return branches(Assignment(epoch=0, term=1, round=round, digest="d"), dict.fromkeys((2, 4, 7), 1 / 3), 3)[2].to

    assert [head(round) for round in range(6)] == [2, 4, 7, 2, 4, 7]


# Sums


@pytest.mark.parametrize("branching", [2, 4, 5, 12, 50])
@pytest.mark.parametrize("options", [{}, {"weights": "uniform", "server": "adam"}, {"correction": "scaffold"}])
def test_sums_of_sums_are_the_sum_to_rounding(branching, options):
    """The stated tolerance is 1e-6 relative."""
    flat = trained(**options)
    found = trained(branching=branching, **options)
    assert model(found) == pytest.approx(model(flat), rel=1e-6)
    assert metric(found, "validation_loss") == pytest.approx(metric(flat, "validation_loss"), rel=1e-6)
    assert set(metric(found, "members")) == {12}


def test_nova_counts_the_steps_of_all_that_are_in_the_sums():
    class Unequal(Shards):
        def steps(self, node):
            return 1 + node % 3

    flat, found = [trained(workload=Unequal(12), weights="nova", branching=size) for size in (0, 5)]
    assert model(found) == pytest.approx(model(flat), rel=1e-6)


def test_the_leader_hears_one_sum_of_each_branch():
    seen = Seen()
    trained(branching=4, mods=[seen])
    for round in range(4):
        sums = [(sender, to, message) for _, sender, to, message in seen.of(Partial) if message.round == round]
        assert len(sums) == 3
        assert {to for _, to, _ in sums} == {0}
        assert sorted(member for *_, message in sums for member in message.members) == list(range(12))
        updates = [to for _, _, to, message in seen.of(Update) if message.round == round]
        assert sorted(set(updates)) == sorted(sender for sender, *_ in sums)


def test_members_may_be_sampled():
    seen = Seen()
    outcome = trained(branching=3, sample=7, mods=[seen])
    assert set(metric(outcome, "members")) == {7}
    assert model(outcome) == pytest.approx(model(trained(sample=7)), rel=1e-6)


@pytest.mark.parametrize("leader", ["fixed", "elected"])
def test_a_run_follows_from_its_seed(leader):
    config = CPFL.Config(cohorts=2, leader=leader, branching=2, stopping={"rule": "budget", "most_rounds": 2})
    check_protocol(CPFL(config), nodes=8)


# Those who add up may go


def adding_up(round):
    """When, in an undisturbed run, who adds up for members 4 to 7 has been asked, and who it is."""
    seen = Seen()
    trained(branching=4, mods=[seen])
    return next(
        (time_s, to)
        for time_s, _, to, message in seen.of(Assignment)
        if message.round == round and message.to == to > 3
    )


@pytest.mark.parametrize("after_s", [0.001, 0.5, 1.001])
@pytest.mark.parametrize("deadline_s", [0.0, 3.0])
def test_the_loss_of_one_costs_its_branch_for_a_round_and_another_one_takes_its_place(after_s, deadline_s):
    time_s, head = adding_up(1)
    seen = Seen()
    events = [(time_s + after_s, head, "crash")]
    outcome = trained(branching=4, events=events, rounds=6, deadline_s=deadline_s, mods=[seen])
    assert metric(outcome, "members") == [12, 8, 11, 11, 11, 11]
    others = {message.to for *_, message in seen.of(Assignment) if message.round > 2} - {head}
    assert len(others) >= 3
    assert np.isfinite(model(outcome)).all()


def test_one_that_is_back_soon_adds_up_again():
    time_s, head = adding_up(1)
    events = [(time_s + 0.5, head, "crash"), (time_s + 0.7, head, "return")]
    outcome = trained(branching=4, events=events)
    assert metric(outcome, "members") == [12] * 4


def test_a_member_that_is_back_soon_is_waited_for():
    time_s, head = adding_up(1)
    member = next(member for member in (5, 6, 7) if member != head)
    events = [(time_s + 0.5, member, "crash"), (time_s + 0.7, member, "return")]
    outcome = trained(branching=4, events=events)
    assert metric(outcome, "members") == [12] * 4


def test_a_slow_member_is_left_out_of_its_branch_alone():
    """It has half the deadline: the other half is for the sum to get to the leader."""

    class OneSlow(Shards):
        def samples(self, node, steps):
            return 4 if node == 5 else 1

    outcome = trained(branching=4, workload=OneSlow(12), deadline_s=6.0)
    assert metric(outcome, "members") == [11] * 4


@pytest.mark.parametrize("time_s", [1.5, 3.3, 4.7])
def test_leaders_may_change(time_s):
    """Sums of an old term count nowhere."""
    seen = Seen()
    trained(branching=4, leader="elected", mods=[seen])
    leader = seen.of(Assignment)[0][1]
    start_s = seen.of(Assignment)[0][0]
    outcome = trained(branching=4, leader="elected", events=[(start_s + time_s, leader, "crash")], rounds=6)
    assert len(outcome.models) == 11
    assert set(metric(outcome, "members")) <= {8, 11, 12}


class Claiming(Mod):
    """Node 1 says that other models are in its sums than are."""

    def __init__(self, claim):
        super().__init__()
        self.claim = claim

    def outgoing(self, ctx, to, message):
        if ctx.me != 1 or not isinstance(message, Partial):
            return message
        return replace(message, members=self.claim)


@pytest.mark.parametrize("claim", [(0, 1, 2), (1, 1), (7,)])
def test_a_sum_of_members_that_are_not_its_branch_is_left_out(claim, capsys):
    """Nodes 0 and 1, and 2 and 3; node 1 adds up in odd rounds."""
    outcome = trained(4, 4, branching=2, mods=[Claiming(claim)])
    assert metric(outcome, "members") == [4, 2, 4, 2]
    assert "a sum of models that are not all of its branch" in capsys.readouterr().out
    assert np.isfinite(model(outcome)).all()
