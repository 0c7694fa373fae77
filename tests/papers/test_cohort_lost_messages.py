"""What a cohort makes of messages that are lost, of members that are late, and of models that are no numbers."""

import asyncio
import dataclasses
import math

import pytest
from test_cohort_life import leaders
from test_cohorts import Seen, Shards, result, trained

from node import Mod
from node.cohorts import Stopping, StoppingSection
from node.election import Entry
from node.testing import Quadratic
from protocols import cohort_leader
from protocols.cohort_round import Answer, Assignment, Partial, Update, mean_loss
from protocols.elected import Elected
from protocols.leadership import Control
from protocols.testimony import MOST_ASKED, Doubt, Statement, contradicted, suspected
from protocols.versions import Absent, Shelf, Version, Wanted

FIXED = {"nodes": 4, "cohorts": 1, "leader": "fixed", "transfer_s": 5.0}


class Lossy(Mod):
    """The first message of a kind, in some round, never comes. Each node has a copy of it."""

    lost = 0

    def __init__(self, kind, round):
        super().__init__()
        Lossy.lost = 0
        self.kind, self.round = kind, round

    def outgoing(self, ctx, to, message):
        is_it = isinstance(message, self.kind) and getattr(message, "round", self.round) == self.round
        if is_it and ctx.me != to and not Lossy.lost:
            Lossy.lost += 1
            return None
        return message


@pytest.mark.parametrize("leader", ["fixed", "elected"])
@pytest.mark.parametrize("kind", [Assignment, Update])
def test_one_message_that_is_lost_does_not_stop_a_cohort(kind, leader):
    """Not even with deadline_s = 0, which waits for all that are there."""
    lossy, seen = Lossy(kind, 2), Seen()
    outcome = trained(mods=[lossy, seen], **{**FIXED, "leader": leader})
    result(outcome)
    assert Lossy.lost == 1
    assert any(message.again for *_, message in seen.of(Assignment))
    members = [row.value for row in outcome.recorder.rows() if row.metric == "members"]
    assert set(members) == {4}


def test_a_sum_that_is_lost_is_sent_again():
    lossy, seen = Lossy(Partial, 2), Seen()
    result(trained(mods=[lossy, seen], branching=2, **FIXED))
    assert Lossy.lost == 1
    assert len({message.round for *_, message in seen.of(Partial)}) == 6


def test_a_model_that_could_not_be_fetched_is_fetched_again():
    """Within half a transfer's limit: who has failed tries again at the next reminder."""
    lossy, seen = Lossy(Wanted, 0), Seen()
    result(trained(mods=[lossy, seen], **FIXED))
    assert Lossy.lost == 1
    assert {message.round for *_, message in seen.of(Update)} == set(range(6))


def test_who_is_training_does_not_begin_again():
    """A training of 30 s is reminded of several times; each member answers once."""

    class Slow(Shards):
        def samples(self, node, steps):
            return 30 * steps

    seen = Seen()
    trained(mods=[seen], workload=Slow(4), **{**FIXED, "transfer_s": 60.0})
    assert any(message.again for *_, message in seen.of(Assignment))
    answers = [(sender, message.round) for _, sender, _, message in seen.of(Update)]
    assert len(answers) == len(set(answers)) == 4 * 6


def test_a_leader_is_not_reminded_of_what_is_over():
    """An undisturbed run of short rounds has no reminders at all."""
    seen = Seen()
    trained(mods=[seen])
    assert not any(message.again for *_, message in seen.of(Assignment))


# Losses that are no numbers, and budgets


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([Answer(1.0, 1), Answer(3.0, 3)], 2.5),
        ([Answer(1.0, 1), Answer(math.nan, 3)], math.inf),
        ([Answer(math.inf, 1), Answer(-math.inf, 1)], math.inf),
        ([Answer(1.0, 1), Answer(math.nan, 0)], 1.0),
    ],
)
def test_a_loss_that_is_no_number_is_as_bad_as_can_be(answers, expected):
    assert mean_loss(answers).loss == expected


def test_nobody_has_a_loss_where_nobody_answers():
    assert math.isnan(mean_loss([Answer(math.nan, 0)]).loss)


def test_patience_ends_a_cohort_that_has_diverged():
    """Its losses are no numbers from the first round on, and no budget would end it."""

    class Diverged(Quadratic):
        def _evaluate(self, task):
            return {**super()._evaluate(task), "loss": math.nan}

    outcome = trained(
        workload=Diverged(9, noise=0.1), nodes=9, checkpoint="best", stopping={"rule": "patience", "patience": 4}
    )
    result(outcome)
    assert max(row.round for row in outcome.recorder.rows() if row.metric == "validation_loss") == 3


def test_a_budget_of_time_is_not_given_anew_to_each_leader():
    """Leaders that change every second round share 12 s: rounds of about 1 s each, and what handing over takes."""
    options = {"nodes": 5, "cohorts": 1, "stopping": {"rule": "budget", "most_time_s": 12.0}}
    seen = Seen()
    trained(mods=[seen], preference="rotation", rotate_every=2, **options)
    assert len({leader for _, leader in leaders(seen)}) > 2
    times_s = [time_s for time_s, *_ in seen.of(Assignment)]
    assert times_s[-1] - times_s[0] < 12.0 + 5 * 2 * 0.5
    assert max(message.round for *_, message in seen.of(Assignment)) < 12


def test_a_budget_of_bytes_is_not_given_anew_to_each_leader():
    options = {"nodes": 5, "cohorts": 1, "stopping": {"rule": "budget", "most_bytes": 20_000, "most_rounds": 200}}
    alone, turning = Seen(), Seen()
    trained(mods=[alone], **options)
    trained(mods=[turning], preference="rotation", rotate_every=2, **options)
    most = [max(message.round for *_, message in seen.of(Assignment)) for seen in (alone, turning)]
    assert 4 < most[0] < 199
    assert most[1] <= 1.5 * most[0]


# What a node holds


@pytest.fixture
def shelf():
    class Place:
        def initial_model(self):
            return None

    return Shelf(Place(), 5.0)


def test_a_version_that_nobody_else_has_yet_is_not_let_go(shelf):
    for digest in ("a", "b", "c"):
        shelf.add(Version(digest=digest, model=None))
    shelf.pinned = "b"
    shelf.keep(["c"])
    assert [digest in shelf for digest in ("a", "b", "c")] == [False, True, True]
    shelf.pinned = ""
    shelf.keep(["c"])
    assert "b" not in shelf
    assert isinstance(shelf.answer("b"), Absent)


def test_what_is_spent_survives_a_restart(shelf):
    version = Version(digest="a", model="m", losses=(1.5, math.inf), best="b", time_s=0.1 + 0.2, size_bytes=2**40)
    shelf.add(version)
    again = type(shelf).__new__(type(shelf))
    again._held, again._about = {}, {}
    again.restore(shelf.state())
    kept = again["a"]
    assert (kept.model, kept.losses, kept.best) == (version.model, version.losses, version.best)
    assert (kept.time_s, kept.size_bytes) == (version.time_s, version.size_bytes)


def test_a_successor_that_is_told_of_divergence_stops_as_its_predecessor_would():
    stopping = Stopping(StoppingSection(patience=3))
    for loss in (math.inf, math.nan, math.inf, math.inf):
        stopping.step(cohort_leader._seen(loss))
    assert stopping.is_stopped


# Members that are late


class Deaf(Mod):
    """Some nodes never get the models that are to be committed."""

    deaf = (1, 4)

    def incoming(self, ctx, sender, message):
        return None if ctx.me in self.deaf and isinstance(message, Control) and message.kind == "Proposal" else message


def test_members_that_are_late_do_not_make_their_leader_a_liar(capsys):
    """Two of five have accepted nothing since the start: they ask, and a majority speaks for the leader."""
    seen = Seen()
    result(trained(nodes=5, cohorts=1, mods=[Deaf(), seen]))
    assert {sender for _, sender, _, _ in seen.of(Doubt)} == {1, 4}
    assert "lies" not in capsys.readouterr().out


MEMBERS = tuple(range(41))
NEXT = Assignment(epoch=0, term=1, round=5, digest="e")


class Asked:
    """What a doubtful member sees of the others, who are there at once."""

    def __init__(self, late):
        self.me, self.seed, self.late, self.asked = 0, 0, late, []

    def future(self):
        return asyncio.get_running_loop().create_future()

    def spawn(self, job):
        self.jobs = [*getattr(self, "jobs", []), asyncio.ensure_future(job)]

    async def request(self, member, message, timeout_s):
        self.asked.append(member)
        if member in self.late:
            return Statement(round=3, digest="d")
        return Statement(round=4, digest="e")


@pytest.mark.parametrize(("late", "expected"), [(19, False), (20, True)])
async def test_only_a_majority_of_all_members_speaks_against_a_leader(late, expected):
    """Of 41 members 20 may be late, the doubtful one included."""
    ctx = Asked(MEMBERS[1 : 1 + late])
    assert await contradicted(ctx, MEMBERS, NEXT, 2.0) == expected
    assert sorted(ctx.asked) == list(MEMBERS[1:])


@pytest.mark.parametrize(("late", "expected"), [(0, False), (40, True)])
async def test_a_few_can_clear_a_leader(late, expected):
    ctx = Asked(MEMBERS[1 : 1 + late])
    assert await suspected(ctx, MEMBERS, NEXT, 2.0) == expected
    assert len(ctx.asked) == MOST_ASKED


def test_a_leader_that_turns_out_to_be_right_is_heard_again():
    class Host:
        def __init__(self):
            self.shelf = self
            self.liars = {7: None, 8: None, 9: None}

    elected = Elected.__new__(Elected)
    elected._host = host = Host()
    elected._accused = {7: NEXT, 8: dataclasses.replace(NEXT, digest="f")}
    elected._acquit(Entry(term=2, round=4, epoch=0, digest="e", members=MEMBERS, beacon=""))
    assert list(host.liars) == [8, 9]
    assert list(elected._accused) == [8]
