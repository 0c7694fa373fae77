"""Whom a node of cohort-parallel learning believes, and whom a cohort lets go."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_cohorts import PLACE, ROUNDS

from node import Message
from node.testing import Quadratic, run_protocol
from protocols.belonging import Dissolved
from protocols.cohort_round import Assignment
from protocols.cpfl import CPFL
from protocols.elected import lapsed
from protocols.handing import Noted, Stopped
from protocols.testimony import MOST_ASKED, Statement, agrees
from protocols.unification import Result

ASSIGNMENT = Assignment(epoch=0, term=3, round=7, digest="a")


@pytest.mark.parametrize(
    ("round", "digest", "expected"),
    [(6, "a", True), (6, "b", False), (5, "a", False), (7, "b", True), (9, "c", True), (-1, "", False)],
)
def test_an_assignment_follows_from_the_model_of_the_round_before(round, digest, expected):
    """Who has gone on since cannot say anything against it."""
    assert agrees(Statement(round=round, digest=digest), ASSIGNMENT) == expected


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_letting_go_never_makes_a_cohort_more_fragile(there):
    members = range(len(there))
    alive = [member for member in members if there[member]]
    if 2 * len(alive) <= len(there):
        return
    gone = lapsed(members, alive)
    assert not set(gone) & set(alive)
    rest = len(there) - len(gone)

    def spare(size):
        """Of those that are there, how many more may be lost."""
        return len(alive) - (size // 2 + 1)

    assert spare(rest) >= spare(len(there))
    assert spare(rest) == max(spare(size) for size in range(len(alive), len(there) + 1))


def test_of_three_none_is_let_go_and_of_four_one():
    assert lapsed((1, 2, 3), (1, 3)) == []
    assert lapsed((1, 2, 3, 4), (1, 3, 4)) == [2]
    assert lapsed((1, 2, 3, 4, 5), (1, 3, 4)) == [2, 5]
    assert lapsed((1, 2), (1, 2)) == []


class Forging(CPFL):
    """Node 0 says at once what only others may say."""

    forged: Message

    async def run(self, ctx):
        if ctx.me == self.forger:
            await ctx.send(ctx.peers(), self.forged)
        return await super().run(ctx)


def forged(message, forger=0, nodes=6, **config):
    protocol = Forging(Forging.Config(**{"cohorts": 2, **ROUNDS, **config}))
    protocol.forged, protocol.forger = message, forger
    return run_protocol(protocol, nodes, workload=Quadratic(nodes, noise=0.1), **PLACE)


def models(outcome):
    return {node: model.tobytes() for node, model in outcome.models.items()}


def no_unifier(nodes=6):
    """A node that does not unify, as the last in the succession."""
    from node.election import score

    return min(range(nodes), key=lambda node: score("cpfl-0", "unifier", node))


@pytest.mark.parametrize(
    "message",
    [
        Result(model=None, round=1, accuracy=1.0, loss=0.0),
        Noted(),
        Stopped(cohort=7, digest="x", rounds=1, samples=10**9, counts=()),
        Dissolved(cohort=0),
        Dissolved(cohort=1),
        ASSIGNMENT,
    ],
    ids=lambda message: type(message).__name__,
)
@pytest.mark.parametrize("leader", ["elected", "fixed"])
def test_what_a_node_may_not_say_changes_nothing(message, leader):
    honest = run_protocol(
        CPFL(CPFL.Config(cohorts=2, leader=leader, **ROUNDS)), 6, workload=Quadratic(6, noise=0.1), **PLACE
    )
    liar = no_unifier()
    outcome = forged(message, forger=liar, leader=leader)
    assert {node: model for node, model in models(outcome).items() if node != liar} == {
        node: model for node, model in models(honest).items() if node != liar
    }


def test_few_enough_are_asked_for_a_majority_to_be_one():
    assert MOST_ASKED % 2 == 0, "with the one that asks, an odd number"
