"""Cohorts whose leaders learn sums alone: as accurate as without masks, whoever drops out, and however leaders lie."""

from dataclasses import replace

import numpy as np
import pytest
from structlog.testing import capture_logs

from node import Mod, Observer
from node.config import ChurnSection, DevicesSection, FaultSection, NetworkSection
from node.privacy.mechanisms import unrepeatable
from node.testing import run_protocol
from protocols.cohort_round import Assignment, Hello, Update
from protocols.cohort_sums import Masked, numbered
from protocols.cpfl import CPFL
from protocols.opening import Opened, Survivors
from tensorial import Tensorial, mechanisms

# A training takes 1 s, a message 0.02 s.
PLACE = {
    "devices": DevicesSection(seconds_per_sample=1.0),
    "network": NetworkSection(latency_s=0.02, up_bps=1e30, down_bps=1e30),
}
NODES, ROUNDS = 7, 5
STEP = 2.0**-20
"""Of the fixed-point numbers that are added up."""


class Shards(Tensorial):
    """Nodes of different sizes, with noise, as batches have."""

    def __init__(self, nodes=NODES, **options):
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

    def of(self, kind, round=None):
        said = [entry for entry in self.messages if isinstance(entry[3], kind)]
        return said if round is None else [entry for entry in said if entry[3].round == round]


def trained(nodes=NODES, rounds=ROUNDS, events=(), workload=None, mods=(), hiding=None, detect_s=5.0, **config):
    """One cohort after some rounds, with faults (time_s, node, what)."""
    schedule = tuple(FaultSection(time_s=time_s, node=node, what=what) for time_s, node, what in events)
    stopping = {"rule": "budget", "most_rounds": rounds}
    options = {"cohorts": 1, "stopping": stopping, "checkpoint": "last", "secure": True, **config}
    return run_protocol(
        CPFL(CPFL.Config(**options)),
        nodes,
        workload=workload or Shards(nodes),
        churn=ChurnSection(schedule=schedule, detect_s=detect_s),
        mods=mods,
        mechanisms=hiding or mechanisms(),
        **PLACE,
    )


def model(outcome):
    """The one that everybody who is there has ended with."""
    models = {tuple(model.tolist()) for model in outcome.models.values()}
    assert len(models) == 1
    return models.pop()


def members(outcome):
    """How many have been in each round's mean; of a repeated round, in the last one."""
    return {row.round: row.value for row in outcome.recorder.rows() if row.metric == "members"}


def metric(outcome, name):
    return [row.value for row in outcome.recorder.rows() if row.metric == name and row.value == row.value]


def leader_of(seen):
    return seen.of(Assignment)[0][1]


def began_s(seen, round):
    """When the round was assigned."""
    return min(time_s for time_s, *_ in seen.of(Assignment, round))


def undisturbed(**config):
    seen = Seen()
    return trained(mods=[seen], **config), seen


# As accurate as without masks


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"weights": "uniform"},
        {"weights": "nova"},
        {"server": "adam"},
        {"proximal": 0.3},
        {"leader": "fixed"},
        {"leader": "fixed", "leader_trains": False},
        {"sample": 4},
        {"sample": 5, "sampling": "oort"},
        {"window": 1},
        {"rotate_every": 2, "preference": "rotation"},
    ],
    ids=str,
)
def test_the_model_is_that_of_plain_rounds_to_a_few_steps(config):
    """Each of n numbers is rounded to half a step of 2**-20; with Adam, whose steps these decide, to more."""
    masked, plain = trained(**config), trained(secure=False, **config)
    assert model(masked) == pytest.approx(model(plain), abs=1e-3 if "server" in config else ROUNDS * NODES * STEP)
    assert metric(masked, "validation_loss") == pytest.approx(metric(plain, "validation_loss"), rel=1e-3)
    assert members(masked) == members(plain)


def test_several_cohorts_are_unified_as_without():
    masked, plain = [trained(12, cohorts=3, secure=secure, workload=Shards(12)) for secure in (True, False)]
    assert model(masked) == pytest.approx(model(plain), abs=1e-4)


def test_two_runs_are_the_same_to_the_last_bit():
    assert model(trained()) == model(trained()) == model(trained(window=2))


# What is told


def test_no_model_but_the_cohort_s_leaves_a_member():
    """What a member sends is a part that is nowhere near its model; nobody sends an update."""
    _, seen = undisturbed()
    assert not seen.of(Update)
    leader = leader_of(seen)
    parts = [entry for entry in seen.of(Masked) if entry[1] != entry[2]]
    assert len(parts) == ROUNDS * (NODES - 1)
    assert {to for _, _, to, _ in parts} == {leader}
    assert {message.part.spec.dtype for *_, message in parts} == {"int32"}
    assert len({message.total for *_, message in parts}) == ROUNDS
    assert all(len(message.shares) == NODES - 1 for *_, message in parts)


def test_the_leader_adds_its_own_model_to_the_sum_of_the_others():
    _, seen = undisturbed()
    leader = leader_of(seen)
    for _, sender, _, assignment in seen.of(Assignment):
        assert sender == leader
        assert [member for member, *_ in assignment.senders] == [node for node in range(NODES) if node != leader]
        assert [weight for _, weight, *_ in assignment.senders] == [3 + n for n in range(NODES) if n != leader]


def test_sums_are_numbered_in_rising_order_whoever_leads():
    rounds = [(1, 0), (1, 7), (2, 0), (2, 1), (3, 2**32 - 1), (4, 0)]
    numbers = [numbered(*round) for round in rounds]
    assert numbers == sorted(set(numbers))


# Who drops out


@pytest.mark.parametrize("hiding", ["seeded", "secret"])
@pytest.mark.parametrize("after_s", [0.5, 1.05])
def test_a_member_that_is_killed_in_a_round_is_left_out_of_its_sum(after_s, hiding):
    """While it trains, or when its part is on its way and it should help to open the sum: the rounds go on."""
    _, seen = undisturbed()
    lost = next(node for node in range(NODES) if node != leader_of(seen))
    events = [(began_s(seen, 2) + after_s, lost, "crash")]
    outcome = trained(events=events, hiding=mechanisms() if hiding == "seeded" else unrepeatable((4,)))
    assert members(outcome) == {0: 7, 1: 7, 2: 7 if after_s > 1 else 6, 3: 6, 4: 6}
    assert np.isfinite(model(outcome)).all()


def test_the_sum_is_of_exactly_those_who_are_there():
    """One round that jumps to the targets: the mean of those of the six that stay, by samples."""
    workload = Shards(lr=1.0, noise=0.0)
    _, seen = undisturbed()
    lost = max(node for node in range(NODES) if node != leader_of(seen))
    events = [(began_s(seen, 0) + 0.5, lost, "crash")]
    found = model(trained(rounds=1, events=events, workload=workload))
    there = [node for node in range(NODES) if node != lost]
    sizes = np.array([3 + node for node in there])
    assert found == pytest.approx(sizes @ workload.targets[there] / sizes.sum(), abs=NODES * STEP)


def test_who_comes_back_with_another_key_takes_no_part_in_the_round_that_it_was_lost_in():
    """It says so, and nobody waits for it; it is in the next one."""
    _, seen = undisturbed()
    lost = next(node for node in range(NODES) if node != leader_of(seen))
    time_s = began_s(seen, 2) + 0.5
    events = [(time_s, lost, "crash"), (time_s + 0.1, lost, "return")]
    again = Seen()
    outcome = trained(events=events, hiding=unrepeatable((4,)), mods=[again])
    assert members(outcome) == {0: 7, 1: 7, 2: 6, 3: 7, 4: 7}
    absent = [(sender, message.round) for _, sender, _, message in again.of(Masked) if message.part is None]
    assert absent == [(lost, 2)]


def test_a_slow_member_is_left_out_at_the_deadline():
    class Slow(Shards):
        def steps(self, node):
            return 9 if node == 3 else 1

    outcome = trained(workload=Slow(), deadline_s=4.0, leader="fixed")
    assert set(members(outcome).values()) == {6}


@pytest.mark.parametrize("after_s", [0.5, 1.05, 1.07])
@pytest.mark.parametrize("hiding", ["seeded", "secret"])
def test_a_round_without_its_leader_is_repeated_under_other_masks(after_s, hiding):
    """While members train, with the parts there, and with the openings on their way."""
    _, seen = undisturbed()
    lost, again = leader_of(seen), Seen()
    events = [(began_s(seen, 2) + after_s, lost, "crash")]
    outcome = trained(events=events, mods=[again], hiding=mechanisms() if hiding == "seeded" else unrepeatable((4,)))
    assert sorted(members(outcome)) == list(range(ROUNDS))
    assert [members(outcome)[round] for round in (3, 4)] == [6, 6]
    asked = {(assignment.term, sender) for _, sender, _, assignment in again.of(Assignment, 2)}
    assert len(asked) == 2
    named = {message.total for _, sender, to, message in again.of(Masked) if sender != to}
    assert len(named) >= ROUNDS
    assert np.isfinite(model(outcome)).all()


def test_a_cohort_that_is_too_small_for_sums_dissolves():
    """Three are left of four: a leader could have a sum of two only. They join the other cohort."""
    seen = Seen()
    trained(8, 30, cohorts=2, workload=Shards(8), mods=[seen])
    lost = next(to for _, sender, to, _ in seen.of(Assignment, 3) if sender != to)
    outcome = trained(8, 30, [(began_s(seen, 3) + 0.5, lost, "leave")], Shards(8), cohorts=2, detect_s=2.0)
    assert max(members(outcome).values()) == 7
    assert np.isfinite(model(outcome)).all()


# What lies come to


class Lying(Mod):
    """Changes what one node tells others."""

    liar, kind = 0, Assignment

    def outgoing(self, ctx, to, message):
        is_lie = ctx.me == self.liar and isinstance(message, self.kind) and getattr(message, "round", 0) == 1
        return self.lie(to, message) if is_lie else message


class OneCounts(Lying):
    """All but one of the members are to count for next to nothing: the sum would be that one's model."""

    def lie(self, to, message):
        return replace(message, senders=tuple((m, w if m == 2 else 1e-9, *key) for m, w, *key in message.senders))


class TwoStories(Lying):
    """Each member is told that the others count for next to nothing."""

    def lie(self, to, message):
        return replace(message, senders=tuple((m, w if m == to else 1e-9, *key) for m, w, *key in message.senders))


class FewNamed(Lying):
    """The leader names fewer survivors than it takes."""

    kind = Survivors

    def outgoing(self, ctx, to, message):
        return self.lie(to, message) if isinstance(message, Survivors) and message.round == 1 else message

    def lie(self, to, message):
        return replace(message, alive=message.alive[:3], shares=message.shares[:3])


class OtherKeys(Lying):
    """The leader tells of keys that are not their owners'."""

    def lie(self, to, message):
        (first, weight, _, signature), *rest = message.senders
        return replace(message, senders=((first, weight, rest[0][2], signature), *rest))


@pytest.mark.parametrize("lie", [OneCounts, TwoStories, FewNamed, OtherKeys])
def test_a_leader_that_lies_has_no_sum(lie):
    """The round comes to nothing, and the ones after it to what they should."""
    with capture_logs() as logs:
        outcome = trained(leader="fixed", mods=[lie()])
    assert members(outcome)[1] == 0
    assert [members(outcome)[round] for round in (0, 2, 3, 4)] == [7] * 4
    assert {line["event"] for line in logs} & {"sum refused", "opening refused", "a member without a part in the sum"}


def test_members_trust_what_one_says_of_itself_only_under_its_own_key():
    """A member whose key is not its own is left out; nobody else suffers."""

    class Forged(Lying):
        liar, kind = 3, Hello

        def outgoing(self, ctx, to, message):
            is_lie = ctx.me == self.liar and isinstance(message, Hello)
            return replace(message, key=(message.key[0], bytes(64))) if is_lie else message

    with capture_logs() as logs:
        outcome = trained(leader="fixed", mods=[Forged()])
    assert set(members(outcome).values()) == {6}
    assert "key refused" in {line["event"] for line in logs}


def test_strangers_open_nothing():
    """Whom a member does not follow it gives no shares, and the leader's sum stays as it is."""

    class Curious(Observer):
        def received(self, ctx, sender, message):
            if ctx.me == 1 and isinstance(message, Survivors):
                ctx.spawn(ctx.send(2, message))

    seen = Seen()
    outcome = trained(leader="fixed", mods=[Curious(), seen])
    answers = [message.shares for _, sender, to, message in seen.of(Opened) if (sender, to) == (2, 1)]
    assert answers == [b""] * ROUNDS
    assert set(members(outcome).values()) == {7}


# The leader's memory


class Held(Observer):
    """How many parts the leader, node 0, has heard and not let go of: the most there ever were."""

    most = 0

    def __init__(self):
        super().__init__()
        self.alive = []

    def received(self, ctx, sender, message):
        if ctx.me == 0 and isinstance(message, Masked):
            graph = ctx._world.graph
            graph.drain()
            self.alive = [id for id in [*self.alive, message.part.id] if graph.uses(id)]
            Held.most = max(Held.most, len(self.alive))


class Spread(Tensorial):
    """Members answer one after another, but by no means in the order of their numbers."""

    def samples(self, node, steps):
        return 1 + node * 617 % 1009 / 1009


def test_a_leader_holds_no_more_parts_of_many_than_of_few():
    most = []
    for nodes in (14, 42):
        Held.most = 0
        trained(nodes, 1, workload=Spread(nodes), leader="fixed", window=4, mods=[Held()])
        most.append(Held.most)
    assert most[0] == most[1] <= 4 + 3, "the window, the one that fills it, what is being added, and the leader's own"
