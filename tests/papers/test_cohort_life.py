"""Cohorts that form by what nodes measure, and live on while nodes come, go, lead by turns and lie."""

import dataclasses

import networkx
import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score
from test_cohorts import PLACE, Seen, Shards, result, trained

from node.config import DataSection, DevicesSection, ModelSection, NetworkSection, RuleSection, TrainingSection
from node.learn.data import federate
from node.learn.models import build
from node.learn.workload import Workload, prepare_torch
from node.testing import Quadratic, run_protocol
from protocols import cohort_leader, fitting
from protocols.belonging import Dissolved, Join
from protocols.cohort_round import Assignment, Update
from protocols.cpfl import CPFL
from protocols.forming import Formed
from protocols.round_trips import MOST_PEERS, Ping


def labels(cohorts):
    of = {node: number for number, members in enumerate(cohorts) for node in members}
    return [of[node] for node in sorted(of)]


def counted(outcome, metric, of=sum):
    """What nodes have recorded of the whole run, added up."""
    return of([row.value for row in outcome.recorder.rows() if row.metric == f"cpfl/{metric}"])


# Forming


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_nodes_of_one_rotation_find_each_other_by_loss(seed):
    """IFCA on digits turned by 0, 90, 180 and 270 degrees, five nodes each."""
    prepare_torch()
    federation = federate(DataSection(name="digits", partition="iid", groups=(5, 5, 5, 5)), 20, seed)
    model = build(ModelSection(name="mlp", hidden=(32,)), (1, 8, 8), 10)
    workload = Workload(federation, model, TrainingSection(lr=0.1, local_steps=10, batch_size=32), seed)
    seen = Seen()
    config = CPFL.Config(
        cohorts=4, forming="loss", leader="fixed", stopping={"rule": "budget", "most_rounds": 1}, checkpoint="last"
    )
    run_protocol(CPFL(config), 20, workload=workload, seed=seed, mods=[seen])
    cohorts = seen.of(Formed)[0][3].cohorts
    assert adjusted_rand_score([node // 5 for node in range(20)], labels(cohorts)) == 1.0


def near(node):
    """Where it is: nodes 0, 2, 4 … are in one place, the others in another."""
    return node % 2


FAR = RuleSection(kind="delay", value=0.2, frm=tuple(range(0, 24, 2)), to=tuple(range(1, 24, 2)), both_ways=True)


@pytest.mark.parametrize("nodes", [8, 24])
def test_nodes_of_one_place_find_each_other_by_their_round_trips(nodes):
    """With 24 nodes nobody measures all others: what is unknown follows from ways over third nodes."""
    rule = FAR.model_copy(update={"frm": tuple(range(0, nodes, 2)), "to": tuple(range(1, nodes, 2))})
    place = {**PLACE, "network": NetworkSection(latency_s=0.02, rules=(rule,))}
    seen = Seen()
    trained(nodes=nodes, cohorts=2, forming="latency", leader="fixed", mods=[seen], place=place)
    assert {tuple(map(near, members)) for members in seen.of(Formed)[0][3].cohorts} == {
        (0,) * (nodes // 2),
        (1,) * (nodes // 2),
    }
    asked = networkx.DiGraph((sender, to) for _, sender, to, _ in seen.of(Ping))
    assert {degree for _, degree in asked.out_degree()} == {min(nodes - 1, MOST_PEERS)}


def test_the_next_registrar_takes_the_place_of_one_that_is_lost():
    seen = Seen()
    trained(forming="speed", leader="fixed", mods=[seen])
    registrar = seen.of(Formed)[0][1]
    again = Seen()
    outcome = trained([(0.5, registrar, "crash")], forming="speed", mods=[again], muster_s=5.0, detect_s=1.0)
    assert {sender for _, sender, to, _ in again.of(Formed)} != {registrar}
    assert len(outcome.models) == 8
    result(outcome)


def test_what_is_shown_follows_from_the_configuration():
    shown = {
        rule: CPFL.shows(CPFL.Config(forming=rule, unify="average")) for rule in ("random", "speed", "latency", "loss")
    }
    assert shown["random"] == ["number of samples", "validation loss", "cohort"]
    assert "speed" in shown["speed"]
    assert "round trips" in shown["latency"]
    assert "favourite model" in shown["loss"]
    assert "label histogram (without noise)" in CPFL.shows(CPFL.Config(forming="stratified", unify="average"))
    noised = CPFL.shows(CPFL.Config(forming="label-similar", histogram_epsilon=0.5))
    assert "label histogram (epsilon 0.5, once)" in noised


# Coming and going


def test_who_comes_late_joins_a_cohort_that_has_room():
    """The registrar did not wait for it; members of every cohort tell who is there, and a leader lets it in."""
    seen = Seen()
    outcome = trained(
        [(9.0, 8, "return")], forming="speed", mods=[seen], muster_s=4.0, stopping={"rule": "budget", "most_rounds": 20}
    )
    (formed, *_) = {message.cohorts for *_, message in seen.of(Formed) if 8 not in sum(message.cohorts, ())}
    assert sorted(map(len, formed)) == [2, 3, 3]
    joined = {message.cohort for *_, message in seen.of(Join)}
    assert joined == {min(range(3), key=lambda number: len(formed[number]))}
    updates = [message.round for _, sender, _, message in seen.of(Update) if sender == 8]
    assert updates
    assert max(updates) == 19
    assert len(outcome.models) == 9
    result(outcome)


class TwoKinds(Shards):
    """Nodes that have ones, those of even numbers, and nodes that have zeros; node 8 has what a test says."""

    latest = 0

    def label_histogram(self, node):
        ones = node % 2 == 0 if node < 8 else self.latest
        return np.array([0, 12] if ones else [12, 0])


def joined_by_the_late_one(kind, latest, **config):
    """The cohorts that are formed without node 8, and the one that it then asks to be let in."""
    seen, workload = Seen(), kind(9)
    workload.latest = latest
    long = {"stopping": {"rule": "budget", "most_rounds": 20}}
    place = {"mods": [seen], "muster_s": 4.0, "workload": workload, "cohorts": 2, "unify": "average"}
    outcome = trained([(9.0, 8, "return")], **place, **long, **config)
    assert len(outcome.models) == 9
    result(outcome)
    (formed, *_) = {message.cohorts for *_, message in seen.of(Formed) if 8 not in sum(message.cohorts, ())}
    assert sorted(map(len, formed)) == [4, 4], "there is room in both"
    (joined,) = {message.cohort for *_, message in seen.of(Join)}
    return formed[joined], formed[1 - joined]


@pytest.mark.parametrize("latest", [0, 1])
def test_who_comes_late_joins_those_that_are_like_it(latest):
    ours, _ = joined_by_the_late_one(TwoKinds, latest, forming="label-similar")
    assert {node % 2 == 0 for node in ours} == {bool(latest)}


@pytest.mark.parametrize("latest", [0, 1])
def test_who_comes_late_joins_those_that_lack_its_labels(latest):
    """One of the nodes has five times as much as others, so that not both cohorts can be like all nodes."""

    class Uneven(TwoKinds):
        def label_histogram(self, node):
            return super().label_histogram(node) * (5 if node == 1 - latest else 1)

    ours, theirs = joined_by_the_late_one(Uneven, latest, forming="stratified")

    def held(cohort):
        return sum(Uneven(9).label_histogram(node)[latest] for node in cohort)

    assert held(ours) < held(theirs)


@pytest.mark.parametrize("latest", [0, 1])
def test_who_comes_late_joins_those_that_are_as_fast(latest):
    class Paced(TwoKinds):
        def samples(self, node, steps):
            return steps * (1 if self.label_histogram(node)[0] else 4)

    ours, _ = joined_by_the_late_one(Paced, latest, forming="speed")
    assert {node % 2 == 0 for node in ours} == {bool(latest)}


@pytest.mark.parametrize("latest", [0, 1])
def test_who_comes_late_joins_those_that_are_near(latest):
    far = tuple(node for node in range(8) if (node % 2 == 0) != latest)
    rule = FAR.model_copy(update={"frm": far, "to": (*(n for n in range(8) if n not in far), 8)})
    place = {**PLACE, "network": NetworkSection(latency_s=0.02, rules=(rule,))}
    ours, _ = joined_by_the_late_one(TwoKinds, latest, forming="latency", place=place)
    assert {node % 2 == 0 for node in ours} == {bool(latest)}


def test_who_comes_late_where_nobody_remembers_goes_by_rendezvous(monkeypatch):
    """As when the registrar was away meanwhile."""
    monkeypatch.setattr(fitting, "ordered", lambda *_: ())
    places = {joined_by_the_late_one(TwoKinds, latest, forming="label-similar") for latest in (0, 1)}
    assert len(places) == 1, "whatever its labels are"


def test_who_is_left_out_meanwhile_joins_again():
    """Of four members the one that is gone is let go, so that three can lose another; it comes back as the fourth."""
    seen = Seen()
    events = [(3.0, 1, "crash"), (20.0, 1, "return")]
    outcome = trained(
        events,
        nodes=4,
        cohorts=1,
        mods=[seen],
        detect_s=1.0,
        stopping={"rule": "budget", "most_rounds": 40},
    )
    assert [message for _, sender, _, message in seen.of(Join) if sender == 1]
    assert max(message.round for _, sender, _, message in seen.of(Update) if sender == 1) == 39
    assert len(outcome.models) == 4
    result(outcome)


def test_a_cohort_that_loses_members_one_after_the_other_goes_on(tmp_path):
    """Seven, then three: no longer a majority of those that there were at first."""
    events = [(4.0 + 4 * turn, node, "crash") for turn, node in enumerate((0, 1, 2, 3))]
    outcome = trained(
        events, nodes=7, cohorts=1, detect_s=0.5, stopping={"rule": "budget", "most_rounds": 40}, muster_s=2.0
    )
    assert len(outcome.models) == 3
    assert max(row.round for row in outcome.recorder.rows() if row.metric == "validation_loss") == 39


def test_a_cohort_below_the_least_size_dissolves(tmp_path, capsys):
    path = tmp_path / "cohorts.txt"
    path.write_text("".join(f"{node} {node // 3}\n" for node in range(9)))
    seen = Seen()
    outcome = trained(
        [(4.0, 0, "crash"), (4.0, 1, "crash")],
        forming="file",
        path=str(path),
        mods=[seen],
        min_size=2,
        detect_s=1.0,
        stopping={"rule": "budget", "most_rounds": 40},
    )
    assert {message.cohort for *_, message in seen.of(Dissolved)} == {0}
    assert {sender for _, sender, _, _ in seen.of(Join)} == {2}
    assert max(message.round for _, sender, _, message in seen.of(Update) if sender == 2) == 39
    assert len(outcome.models) == 7
    result(outcome)
    assert "a cohort that is too small dissolves" in capsys.readouterr().out
    assert (counted(outcome, "lost.cohort", list), counted(outcome, "lost.is_dissolved", list)) == ([0], [1])


def test_a_cohort_of_two_says_that_it_cannot_lose_one(capsys):
    trained(nodes=4, cohorts=2)
    assert "a cohort of two" in capsys.readouterr().out


def test_the_start_does_not_wait_for_who_is_known_to_be_gone():
    """One that is due, but never comes, is waited for until the others know; not as long as for one that is slow."""
    seen = Seen()
    absent = [(0.0, 8, "crash")]
    trained(absent, nodes=9, cohorts=1, mods=[seen], detect_s=3.0, muster_s=60.0)
    assert seen.of(Assignment)[0][0] < 3.0 + 3 * CPFL.Config().election_timeout_s


# Leaders by turns


def leaders(seen):
    return list(dict.fromkeys((message.round, sender) for _, sender, _, message in seen.of(Assignment)))


def test_leaders_hand_over_by_turns_and_nothing_is_done_twice():
    seen = Seen()
    turning = trained(nodes=5, cohorts=1, preference="rotation", rotate_every=2, mods=[seen])
    assert result(turning) == result(trained(nodes=5, cohorts=1))
    led = leaders(seen)
    assert [round for round, _ in led] == list(range(6))
    assert [led[0][1] == led[1][1], led[1][1] == led[2][1], led[3][1] == led[4][1]] == [True, False, False]
    assert len({leader for _, leader in led}) == 3
    assert counted(turning, "election.cohort", len) == 3
    assert counted(turning, "election.failover") == 0
    assert counted(turning, "election.repeated_rounds") == 0


def test_a_leader_that_is_lost_counts_as_failover():
    seen = Seen()
    trained(nodes=5, cohorts=1, mods=[seen])
    leader = leaders(seen)[0][1]
    outcome = trained([(3.5, leader, "crash")], nodes=5, cohorts=1)
    assert counted(outcome, "election.cohort", len) == 2
    assert counted(outcome, "election.failover") == 1
    assert counted(outcome, "election.repeated_rounds") <= 1


def test_the_fastest_member_leads_where_capability_counts():
    class OneFast(Quadratic):
        def samples(self, node, steps):
            return steps * (1 if node == 3 else 9)

    seen = Seen()
    place = {**PLACE, "devices": DevicesSection(seconds_per_sample=0.01)}
    trained(nodes=5, cohorts=1, preference="capable", workload=OneFast(5), mods=[seen], place=place)
    assert {leader for _, leader in leaders(seen)} == {3}


# Liars


@pytest.mark.parametrize("lie", [{"round": 9}, {"digest": "0" * 32}])
def test_a_leader_that_lies_is_named_and_replaced(lie, capsys, monkeypatch):
    """Members ask each other what they have committed: as most know nothing of it, they hear the liar no longer."""
    honest = cohort_leader.branches
    liars = []

    def branches(assignment, shares, branching):
        told = honest(assignment, shares, branching)
        if assignment.round != 3 or (liars and liars[0] != assignment.term):
            return told
        liars[:] = [assignment.term]
        return {member: dataclasses.replace(each, **lie) for member, each in told.items()}

    monkeypatch.setattr(cohort_leader, "branches", branches)
    seen = Seen()
    outcome = trained(nodes=5, cohorts=1, mods=[seen])
    said = capsys.readouterr().out
    assert "a leader lies about the round or the model that its cohort has committed" in said
    led = {message.term: sender for _, sender, _, message in seen.of(Assignment)}
    assert f"peer={led[liars[0]]}" in said
    assert len(led) == 2
    assert {row.round for row in outcome.recorder.rows() if row.metric == "validation_loss"} == set(range(6))


# Leaders that are lost: only their data is missed


PHASES = ("before it asks", "while it collects", "before it commits", "after it has committed")


def moment(seen, leader, phase, round=3):
    """When, in an undisturbed run, that phase of a round is."""
    asked = min(time_s for time_s, _, _, message in seen.of(Assignment) if message.round == round)
    heard = [time_s for time_s, _, to, message in seen.of(Update) if message.round == round and to == leader]
    later = min(time_s for time_s, _, _, message in seen.of(Assignment) if message.round == round + 1)
    return {
        "before it asks": asked - 0.021,
        "while it collects": min(heard) - 0.5,
        "before it commits": max(heard) + 0.001,
        "after it has committed": later - 0.021,
    }[phase]


@pytest.mark.parametrize("phase", PHASES)
def test_a_cohort_goes_on_bit_for_bit_from_what_its_lost_leader_had_committed(phase):
    """The same members, sampled alike, train the same models: as though the lost one had been any other member.

    The leader does not train here, so that nothing but leading is lost with it.
    """

    class NoData(Shards):
        def shard_size(self, node):
            return 0 if node == leader else super().shard_size(node)

    seen = Seen()
    trained(nodes=5, cohorts=1, mods=[seen])
    leader = leaders(seen)[0][1]
    seen = Seen()
    undisturbed = trained(nodes=5, cohorts=1, mods=[seen], workload=NoData(5))
    assert {each for _, each in leaders(seen)} == {leader}
    time_s = moment(seen, leader, phase)
    again = Seen()
    outcome = trained([(time_s, leader, "crash")], nodes=5, cohorts=1, mods=[again], workload=NoData(5), detect_s=1.0)
    led = leaders(again)
    assert len({each for _, each in led}) == 2
    rounds = [round for round, _ in led]
    assert sorted(set(rounds)) == list(range(6))
    assert len(rounds) <= 7
    if phase in PHASES[::3]:  # no training was under way
        assert result(outcome) == result(undisturbed)
    else:
        assert result(outcome) == pytest.approx(result(undisturbed), abs=0.3)
