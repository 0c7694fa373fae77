"""What the node that unifies believes of cohorts that have stopped, and whom it teaches what all of them say."""

import dataclasses

import pytest

from node import Protocol, on
from node.config import DevicesSection, NetworkSection
from node.testing import Quadratic, run_protocol
from protocols import handing
from protocols.cohort_member import Member
from protocols.cohort_round import tell
from protocols.cpfl import CPFL
from protocols.handing import Extract, Stopped, unifier
from protocols.testimony import Statement
from protocols.unification import Result, Taught
from protocols.unifying import Teacher, shares
from protocols.vouching import Claim, Vote, is_possible, vote, vouched
from test_unified_cohorts import NODES, OneSlow, Seen, cohorts_of, models, trained, workload

LATE = {"quantile": 0.6, "unify": "logit-exchange"}
"""Two of three cohorts are enough."""

SLOW = {
    "devices": DevicesSection(seconds_per_sample=1.0),
    "network": NetworkSection(latency_s=0.02, up_bps=1e30, down_bps=1e30),
}
"""A training takes 1 s."""


@pytest.mark.parametrize("leader", ["fixed", "elected"])
def test_a_late_cohort_is_taught_a_student_too(leader):
    seen = Seen()
    run = trained(workload(kind=OneSlow), mods=[seen], leader=leader, **LATE)
    leaders = cohorts_of(seen)
    assert {to for *_, to, _ in seen.of(Taught)} == set(leaders.values())
    assert {(sender, leaders[to]) for _, sender, to, _ in seen.of(Result)} == {
        (each, each) for each in leaders.values()
    }
    assert len(models(run)) == 3
    assert len(run.models) == NODES


def test_who_takes_the_place_of_a_leader_that_is_lost_teaches_the_student():
    """Its leader is lost just when it is taught; the others of the cohort elect another, who hands in again."""
    place = {"cohorts": 2, "leader": "elected", "unify": "logit-exchange"}
    seen = Seen()
    trained(mods=[seen], **place)
    leaders, unifier = cohorts_of(seen), seen.of(Taught)[0][1]
    time_s, _, leader, _ = next(entry for entry in seen.of(Taught) if leaders[unifier] != entry[2])
    again = Seen()
    run = trained(events=[(time_s + 1e-4, leader, "crash")], mods=[again], **place)
    assert len(run.models) == NODES - 1
    assert len(models(run)) == 2
    taught = {to for *_, to, _ in again.of(Taught)}
    assert [node for node in taught - {leader} if leaders[node] == leader]


# Whom and what it believes


class Usurper(CPFL):
    """A member hands in a model of its own for its cohort, long before that has stopped."""

    usurper: int

    async def run(self, ctx):
        if ctx.me == self.usurper:
            ctx.spawn(self.usurp(ctx))
        return await super().run(ctx)

    async def usurp(self, ctx):
        await ctx.sleep(2.0)
        with ctx.aside():
            training = ctx.train(ctx.initial_model(), steps=1)
        model = await training
        digest = await ctx.digest(model)
        self._handing._extracts[digest] = Extract(digest=digest, model=model)
        stopped = Stopped(cohort=self.cohort, digest=digest, rounds=1, samples=10**9, counts=())
        tell(ctx, unifier(ctx), stopped)


def simple(kind=CPFL, nodes=6, mods=(), usurper=None, leader="elected", **stopping):
    stopping = stopping or {"rule": "budget", "most_rounds": 12}
    config = kind.Config(cohorts=2, leader=leader, checkpoint="last", stopping=stopping)
    protocol = kind(config)
    protocol.usurper = usurper
    return run_protocol(protocol, nodes, workload=Quadratic(nodes, noise=0.1), mods=mods, **SLOW)


def flat(run, without=None):
    return {node: model.tobytes() for node, model in run.models.items() if node != without}


@pytest.mark.parametrize("leader", ["fixed", "elected"])
def test_only_whom_most_members_follow_hands_in_for_a_cohort(leader, capsys):
    seen = Seen()
    honest = simple(leader=leader, mods=[seen])
    (office,) = {to for *_, to, _ in seen.of(Stopped)}
    leaders = {sender for _, sender, _, _ in seen.of(Stopped)}
    for member in sorted(set(range(6)) - leaders - {office}):
        run = simple(Usurper, leader=leader, usurper=member)
        assert flat(run, member) == flat(honest, member)
        assert "most members of a cohort do not confirm what is handed in" in capsys.readouterr().out


def asked(votes, members=(1, 2, 3), rounds=9):
    """What comes of a claim of node 1's, of which nodes 2 and 3 say this."""

    class Asked(Protocol):
        @on(Claim)
        def claimed(self, ctx, sender, message):
            answer = votes[ctx.me - 2]
            return None if answer == "silent" else answer

        async def run(self, ctx):
            if ctx.me == 0:
                claim = Claim(cohort=0, leader=1, rounds=rounds)
                found.append(await vouched(ctx, members, claim, Vote(), 1.0))

    found = []
    run_protocol(Asked(), 4, workload=Quadratic(4))
    return found[0]


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ((True, True), True),
        ((False, True), True),
        ((False, False), False),
        ((None, False), False),
        ((None, None), True),
        (("silent", None), False),
        (("silent", True), True),
    ],
)
def test_more_than_half_of_those_that_have_a_say_must_confirm(votes, expected):
    """The leader has a vote of its own; silence is against it."""
    said = [each if each == "silent" else Vote(holds=each, rounds=9) for each in votes]
    assert asked(said) == (9 if expected else None)


@pytest.mark.parametrize(
    ("votes", "members", "expected"),
    [
        ((Vote(holds=True, rounds=4), Vote(holds=True, rounds=6)), (1, 2, 3), 6),
        ((Vote(holds=True, rounds=4), Vote(holds=False, rounds=8)), (1, 2, 3), 4),
        ((Vote(), Vote()), (1, 2, 3), 9),
        ((Vote(holds=True, rounds=4), Vote()), (2, 3), 4),
        ((), (1,), 9),
    ],
)
def test_as_many_rounds_count_as_another_member_has_been_asked_for(votes, members, expected):
    """Where nobody else is there to say anything, the leader is believed."""
    assert asked(votes, members) == expected


class Led:
    """What a node knows of its cohort."""

    def __init__(self, leader, members, accepted):
        self.leader, self.members, self.accepted = leader, members, accepted

    def testify(self):
        return None if self.accepted is None else Statement(round=self.accepted, digest="")


@pytest.mark.parametrize(
    ("led", "rounds", "expected"),
    [
        (Led(1, (0, 1, 2), 9), 10, True),
        (Led(1, (0, 1, 2), 9), 9, True),
        (Led(1, (0, 1, 2), 9), 10**9, False),
        (Led(1, (0, 1, 2), None), 10, True),
        (Led(1, (0, 1, 2), None), 10**9, True),
        (Led(2, (0, 1, 2), 9), 10, False),
        (Led(None, (0, 1, 2), 9), 10, False),
        (Led(None, (0, 1, 2, 8, 9, 10), 9), 10, None),
        (Led(1, (1, 2), 9), 10, None),
    ],
)
def test_a_member_confirms_its_leader_and_no_round_that_it_knows_nothing_of(led, rounds, expected):
    class Place:
        me = 0

        def alive(self, nodes):
            return [node for node in nodes if node < 3]

    said = vote(Place(), led, Claim(cohort=0, leader=1, rounds=rounds), 7)
    assert said.holds == expected
    if expected:
        assert said.rounds == (7 if led.accepted is None else rounds), "a fixed leader's member knows what it was asked"


@pytest.mark.parametrize(
    ("rounds", "samples", "most", "expected"),
    [(10, 5, 10, True), (11, 5, 10, False), (11, 5, 0, True), (-1, 5, 0, False), (1, -5, 0, False), (1, 0, 0, True)],
)
def test_numbers_that_cannot_be_are_refused(rounds, samples, most, expected):
    stopped = Stopped(cohort=0, digest="a", rounds=rounds, samples=samples, counts=())
    assert is_possible(stopped, most) == expected


UNBOUNDED = {"rule": "patience", "window": 1, "patience": 3, "min_delta": 0.01}
"""So that a cohort may train for any number of rounds."""


@pytest.mark.parametrize("rounds", [10**9, -1])
@pytest.mark.parametrize("leader", ["fixed", "elected"])
@pytest.mark.parametrize("stopping", [{}, UNBOUNDED], ids=["budget", "patience"])
def test_a_lie_about_the_rounds_leaves_no_trace_in_the_record(rounds, leader, stopping, monkeypatch):
    """Cohort 0 counts for what its members know, or is not heard before its leader tells the truth."""
    honest, lies = simple(leader=leader, **stopping), []

    def lying(ctx, node, message):
        if isinstance(message, Stopped) and message.cohort == 0 and not lies:
            lies.append(rounds)
            message = dataclasses.replace(message, rounds=rounds)
        tell(ctx, node, message)

    monkeypatch.setattr(handing, "tell", lying)
    run = simple(leader=leader, **stopping)
    assert lies == [rounds]
    assert max(row.round for row in run.recorder.rows()) == max(row.round for row in honest.recorder.rows())
    assert flat(run) == flat(honest)


def test_a_member_remembers_over_a_restart_what_it_was_asked_for():
    member = Member(None, CPFL.Config())
    assert member.rounds == 0
    member.restore({"rounds": 4.0})
    assert (member.rounds, member.state()["rounds"]) == (4, 4)


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ((30, 40, 50), (30, 40, 50)),
        ((30, 40, 10**9), (30, 40, 400)),
        ((30, 10**9), (30, 300)),
        ((0, 0, 7), (0, 0, 7)),
        ((7,), (7,)),
        ((0, 0), (0, 0)),
    ],
)
def test_no_claim_of_samples_counts_for_more_than_ten_times_the_median(claims, expected):
    extract = Extract(digest="")
    teachers = [
        Teacher(Stopped(cohort=cohort, digest="", rounds=1, samples=claim, counts=()), 0, 1, extract, None)
        for cohort, claim in enumerate(claims)
    ]
    assert tuple(shares(teachers)) == expected
