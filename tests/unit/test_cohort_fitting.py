"""What a registrar tells nodes that come late, and what it does not."""

import pytest

from protocols.fitting import Late, Registry, ordered
from protocols.forming import Revealed

COHORTS = ((0, 1), (2, 3), (4,))
KNOWN = {
    0: Revealed(counts=(8.0, 0.0), step_s=1.0),
    1: Revealed(counts=(6.0, 2.0), step_s=1.2),
    2: Revealed(counts=(0.0, 8.0), step_s=5.0),
    3: Revealed(counts=(2.0, 6.0), step_s=7.0),
    4: Revealed(counts=(5.0, 5.0), step_s=2.5),
}


class Place:
    """What a registry asks of a context."""

    def __init__(self, gone=()):
        self.gone = gone

    def alive(self, nodes):
        return tuple([node for node in nodes if node not in self.gone])


def registry():
    found = Registry()
    found.known.update(KNOWN)
    return found


@pytest.mark.parametrize(
    ("rule", "late", "expected"),
    [
        ("label-similar", Late(counts=(9.0, 1.0)), (0, 2, 1)),
        ("label-similar", Late(counts=(1.0, 9.0)), (1, 2, 0)),
        ("stratified", Late(counts=(3.0, 0.0)), (1, 2, 0)),
        ("stratified", Late(counts=(0.0, 3.0)), (0, 2, 1)),
        ("speed", Late(step_s=1.3), (0, 2, 1)),
        ("speed", Late(step_s=5.5), (1, 2, 0)),
        ("latency", Late(peers=(4, 2, 0), round_trips_s=(0.3, 0.2, 0.5)), (1, 2, 0)),
        ("latency", Late(peers=(3, 9), round_trips_s=(0.3, 0.1)), (1, 0, 2)),
        ("latency", Late(), (0, 1, 2)),
    ],
)
def test_cohorts_suit_a_late_node_by_the_rule_that_formed_them(rule, late, expected):
    """What lacks most of a node's labels suits it best where all are to be alike; of equals, the first."""
    assert ordered(rule, KNOWN, COHORTS, late) == expected


def test_who_is_asked_again_tells_the_same():
    """Many questions would otherwise tell what others have revealed."""
    asked = registry()
    first = asked.answer(Place(), "label-similar", COHORTS, 9, Late(counts=(9.0, 1.0)))
    again = asked.answer(Place(), "label-similar", COHORTS, 9, Late(counts=(1.0, 9.0)))
    assert first.cohorts == again.cohorts == (0, 2, 1)


def test_members_that_are_gone_do_not_count():
    asked = registry()
    assert asked.answer(Place(gone=(0, 1)), "label-similar", COHORTS, 9, Late(counts=(9.0, 1.0))).cohorts == (2, 1, 0)


@pytest.mark.parametrize(
    ("rule", "sender", "late", "place"),
    [
        ("label-similar", 3, Late(counts=(1.0, 1.0)), Place()),
        ("label-similar", 9, Late(counts=(1.0, 1.0, 1.0)), Place()),
        ("label-similar", 9, Late(), Place()),
        ("loss", 9, Late(counts=(1.0, 1.0)), Place()),
        ("random", 9, Late(counts=(1.0, 1.0)), Place()),
        ("label-similar", 9, Late(counts=(1.0, 1.0)), Place(gone=range(5))),
    ],
    ids=["a member", "other classes", "no labels", "models", "nothing revealed", "all gone"],
)
def test_what_cannot_be_told_is_not_told(rule, sender, late, place):
    assert registry().answer(place, rule, COHORTS, sender, late).cohorts == ()


def test_who_has_not_been_the_registrar_knows_nothing():
    assert Registry().answer(Place(), "label-similar", COHORTS, 9, Late(counts=(1.0, 1.0))).cohorts == ()
