"""Where nodes belong when their cohort cannot go on, is too small, or has a leader that was away."""

from pathlib import Path

import pytest
from test_cohorts import Seen, result, trained

from node import ConfigError
from node.cohorts import dissolved, smallest
from protocols.belonging import Dissolved, Join
from protocols.cohort_round import Assignment, Update
from protocols.cpfl import CPFL
from protocols.handing import Stopped
from protocols.leadership import Fixed

ROUNDS = {"stopping": {"rule": "budget", "most_rounds": 20}}


@pytest.fixture
def threes(tmp_path):
    """Cohorts (0, 1, 2), (3, 4, 5) and (6, 7, 8)."""
    path = tmp_path / "cohorts.txt"
    path.write_text("".join(f"{node} {node // 3}\n" for node in range(9)))
    return {"forming": "file", "path": str(path)}


def rounds_by(seen, sender):
    return {message.round for _, each, _, message in seen.of(Update) if each == sender}


# Cohorts that cannot go on


def test_who_is_left_without_a_majority_joins_another_cohort(threes, capsys):
    seen = Seen()
    outcome = trained([(8.0, 0, "crash"), (8.0, 1, "crash")], mods=[seen], detect_s=1.0, **threes, **ROUNDS)
    assert {message.cohort for *_, message in seen.of(Dissolved)} == {0}
    assert {sender for _, sender, _, _ in seen.of(Join)} == {2}
    muster_s = CPFL.Config().muster_s
    assert min(time_s for time_s, *_ in seen.of(Join)) >= 8.0 + muster_s
    assert len(outcome.models) == 7
    result(outcome)
    assert "a cohort that cannot go on dissolves" in capsys.readouterr().out


def test_a_majority_that_comes_back_in_time_is_waited_for(threes):
    seen = Seen()
    events = [(8.0, 0, "crash"), (8.0, 1, "crash"), (18.0, 0, "return")]
    outcome = trained(events, mods=[seen], detect_s=1.0, **threes, **ROUNDS)
    assert not seen.of(Dissolved)
    assert len({message.cohort for *_, message in seen.of(Stopped)}) == 3
    result(outcome)


@pytest.mark.parametrize("back_s", [32.5, 33.5, 36.0, 50.0])
def test_who_comes_back_to_a_cohort_that_the_others_have_left_goes_on_elsewhere(threes, back_s):
    """Node 2 leaves after it has waited for 20 s, and says so; node 0 must not keep all others waiting."""
    seen = Seen()
    long = {"stopping": {"rule": "budget", "most_rounds": 80}}
    events = [(8.0, 0, "crash"), (8.0, 1, "crash"), (back_s, 0, "return")]
    outcome = trained(events, mods=[seen], detect_s=1.0, **threes, **long)
    assert {message.cohort for *_, message in seen.of(Dissolved)} == {0}
    assert max(rounds_by(seen, 0)) == max(rounds_by(seen, 2)) == 79
    assert {row.value for row in outcome.recorder.rows() if row.metric == "cpfl/lost.cohort"} == {0}
    assert len(outcome.models) == 8
    result(outcome)


def test_who_has_left_says_so_though_it_was_away(threes):
    """Both that were left of four have gone elsewhere; one is restarted before anybody unifies."""
    four = threes["path"]
    Path(four).write_text("".join(f"{node} {int(node >= 5)}\n" for node in range(10)))
    long = {"stopping": {"rule": "budget", "most_rounds": 60}}
    lost = [(8.0, node, "crash") for node in (0, 1, 2)]
    seen = Seen()
    trained(lost, 10, 1.0, mods=[seen], **{**threes, "cohorts": 2}, **long)
    left_s = min(time_s for time_s, *_ in seen.of(Join))
    again = Seen()
    events = [*lost, (left_s + 6.0, 3, "crash"), (left_s + 8.0, 3, "return")]
    outcome = trained(events, 10, 1.0, mods=[again], **{**threes, "cohorts": 2}, **long)
    assert [time_s for time_s, sender, *_ in again.of(Dissolved) if sender == 3 and time_s > left_s + 8.0]
    assert len(outcome.models) == 7
    result(outcome)


def test_no_cohort_is_joined_that_cannot_go_on_itself(threes):
    """Two of three have lost their majority: both survivors go to the third cohort."""
    seen = Seen()
    events = [(8.0, node, "crash") for node in (0, 1, 3, 4)]
    outcome = trained(events, mods=[seen], detect_s=1.0, **threes, **ROUNDS)
    assert {(sender, message.cohort) for _, sender, _, message in seen.of(Join)} == {(2, 2), (5, 2)}
    assert len(outcome.models) == 5
    result(outcome)


def test_the_only_cohort_waits_for_its_majority_and_says_so(capsys):
    events = [(4.0, 0, "crash"), (4.0, 1, "crash"), (60.0, 0, "return")]
    result(trained(events, nodes=3, cohorts=1, detect_s=1.0))
    assert 1 <= capsys.readouterr().out.count("a cohort cannot go on, and its members find no other one") <= 3


def test_members_of_a_lost_fixed_leader_follow_another_one_though_their_numbers_are_lower(threes):
    seen = Seen()
    long = {"stopping": {"rule": "budget", "most_rounds": 50}}
    outcome = trained([(8.0, 0, "crash")], mods=[seen], detect_s=1.0, leader="fixed", **threes, **long)
    assert {sender for _, sender, to, _ in seen.of(Assignment) if to in (1, 2)} <= {0, 3, 6}
    assert max(rounds_by(seen, 1)) == max(rounds_by(seen, 2)) == 49
    assert len(outcome.models) == 8
    result(outcome)


# Cohorts that are too small


@pytest.mark.parametrize(("min_size", "left"), [(4, {2}), (5, {0, 2})])
def test_cohorts_that_are_too_small_dissolve_one_after_the_other(threes, min_size, left):
    seen = Seen()
    outcome = trained(mods=[seen], min_size=min_size, **threes, **ROUNDS)
    assert {message.cohort for *_, message in seen.of(Dissolved)} == left
    assert {message.cohort for *_, message in seen.of(Stopped)} == {0, 1, 2} - left
    assert len(outcome.models) == 9
    result(outcome)


def test_members_go_where_they_can_stay(threes):
    """Only the cohort that has lost a member is too small, and no other one becomes so."""
    seen = Seen()
    trained([(1.0, 0, "crash")], mods=[seen], min_size=3, detect_s=1.0, **threes, **ROUNDS)
    assert {message.cohort for *_, message in seen.of(Dissolved)} == {0}
    assert {sender for _, sender, _, _ in seen.of(Join)} == {1, 2}
    assert {message.cohort for _, _, _, message in seen.of(Join)} <= {1, 2}


@pytest.mark.parametrize(
    ("cohorts", "first"),
    [(((0, 1), (2,), (3,)), 2), (((0,), (1, 2), ()), 0), (((), ()), None)],
)
def test_the_last_of_the_smallest_goes_first(cohorts, first):
    assert smallest(cohorts) == first
    if first is not None:
        assert dissolved(cohorts, 9, "b")[first] == ()


def test_cohorts_must_begin_big_enough(threes):
    CPFL.check(CPFL.Config(cohorts=3, min_size=3), 9)
    with pytest.raises(ConfigError, match=r"protocol\.min_size: .* fewer than 4 .* begins with 3; allowed: 1 to 3"):
        CPFL.check(CPFL.Config(cohorts=3, min_size=4), 11)
    with pytest.raises(ConfigError, match=r"protocol\.min_size"):
        CPFL.check(CPFL.Config(cohorts=1, min_size=4, **threes), 9)


# A fixed leader that was away


@pytest.mark.parametrize("branching", [0, 3])
def test_a_fixed_leader_that_was_away_goes_on_with_all_members(branching):
    seen = Seen()
    events = [(12.0, 0, "crash"), (14.0, 0, "return")]
    outcome = trained(events, cohorts=1, leader="fixed", branching=branching, mods=[seen], **ROUNDS)
    before = max(message.round for time_s, *_, message in seen.of(Assignment) if time_s < 12.0)
    again = min(message.round for time_s, *_, message in seen.of(Assignment) if time_s > 14.0)
    assert before - 1 <= again <= before + 1
    members = {row.round: row.value for row in outcome.recorder.rows() if row.metric == "members"}
    assert all(members[round] == 9 for round in range(again, 20))
    assert len(outcome.models) == 9
    result(outcome)


def test_a_fixed_leader_may_be_away_before_it_has_begun_and_again():
    outcome = trained(
        [(0.5, 0, "crash"), (3.0, 0, "return"), (12.0, 0, "crash"), (14.0, 0, "return")],
        cohorts=1,
        leader="fixed",
        **ROUNDS,
    )
    members = [row.value for row in outcome.recorder.rows() if row.metric == "members"]
    assert members[-1] == 9
    result(outcome)


def test_what_a_fixed_leader_keeps_is_what_it_begins_with_again():
    first = Fixed(4, (4, 2, 7), None)
    again = Fixed(4, (4, 2), None, first.state())
    assert (again.leader, again.members, again.kept()) == (4, (4, 2, 7), ("",))
    assert (first.state(), again.state()) == ("0 -1 - 4 2 7", "1 -1 - 4 2 7")


# The node that unifies


def test_who_has_moved_and_unifies_hands_in_to_itself():
    """Node 7 unifies; its cohort dissolves, and it leads another one when that stops."""
    seen = Seen()
    outcome = trained(
        [(6.0, 0, "crash"), (6.0, 3, "crash")],
        mods=[seen],
        min_size=2,
        preference="rotation",
        rotate_every=1,
        stopping={"rule": "budget", "most_rounds": 18},
        server="adam",
    )
    assert [entry for entry in seen.of(Stopped) if entry[1] == entry[2] == 7]
    result(outcome)


# Cohorts from a file


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0 0\n1 x\n", ":2: '1 x'; write a node number"),
        ("0 0\n0 1\n1 0\n", "node 0 is on lines 1 and 2"),
        ("0 0\n", "missing: 1"),
        ("0 0\n1 0\n2 0\n", "unknown: 2"),
    ],
)
def test_a_bad_file_is_refused_before_the_run(tmp_path, text, said):
    path = tmp_path / "cohorts.txt"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"protocol\.path") as error:
        CPFL.check(CPFL.Config(cohorts=2, forming="file", path=str(path)), 2)
    assert said in str(error.value)
