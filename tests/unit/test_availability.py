"""When nodes are there, by record: half-open intervals, what follows their end, and answers in any order."""

from __future__ import annotations

import json
import math
import pickle
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.config import ChurnSection
from node.errors import ConfigError
from node.sim.traces.availability import Availability, availability
from node.sim.traces.device_table import SUFFIXES, write_table

PHONE = {"duration": 7, "active": [100, 400], "inactive": [200, 500], "finish_time": 600, "model": "CPH1801"}


@pytest.fixture
def file(tmp_path):
    """Writes text, or pickles a value; gives its path."""

    def write(content, name=None):
        path = tmp_path / (name or ("intervals.csv" if isinstance(content, str) else "client_behave_trace"))
        path.write_bytes(content.encode() if isinstance(content, str) else pickle.dumps(content))
        return str(path)

    return write


def present(path, nodes=1, seed=0, **keys):
    return availability(ChurnSection(trace=path, **keys), nodes, seed)


def one(path, **keys) -> Availability:
    return present(path, **keys)[0]


def refusal(path, **keys) -> str:
    with pytest.raises(ConfigError) as refused:
        present(path, **keys)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def online_at(node: Availability, *times: float) -> list[bool]:
    return [node.online(t) for t in times]


def first_changes(node: Availability, count: int, start_s: float = 0.0) -> list[tuple[float, bool]]:
    return list(islice(node.changes(start_s), count))


# FedScale


def test_the_worked_example(file):
    phone = one(file({1: PHONE}))
    assert online_at(phone, 150, 699, 700, 800) == [True, False, True, False]
    assert online_at(phone, 0, 99.999, 100, 199.999, 200, 400, 499.999, 500) == [
        *(False, False, True, True),
        *(False, True, True, False),
    ]


def test_it_repeats_for_ever(file):
    phone = one(file({1: PHONE}))
    assert first_changes(phone, 6) == [
        *((100, True), (200, False), (400, True)),
        *((500, False), (700, True), (800, False)),
    ]
    assert first_changes(phone, 2, 6_000_000_000 + 100) == [(6_000_000_200, False), (6_000_000_400, True)]


WRAPS = {
    "goes before it comes": ([300], [100], [(0, True), (100, False), (300, True), (700, False), (900, True)]),
    "comes at 0": ([0], [100], [(0, True), (100, False), (600, True), (700, False), (1200, True)]),
    "comes at 0 and stays": ([0, 300], [100], [(0, True), (100, False), (300, True), (700, False), (900, True)]),
    "comes at 0 and leaves at the end": ([0], [600], [(0, True)]),
    "stays to the end": ([500], [], [(0, False), (500, True), (600, False), (1100, True), (1200, False)]),
    "leaves at the end": ([500], [600], [(0, False), (500, True), (600, False), (1100, True), (1200, False)]),
    "only goes": ([], [100], [(0, True), (100, False), (600, True), (700, False), (1200, True)]),
    "goes before it comes and at the end": (
        *([300], [100, 600]),
        [(0, True), (100, False), (300, True), (600, True), (700, False)],
    ),
    "never comes": ([], [], [(0, False)]),
    "comes and goes at once": ([100, 200], [100, 300], [(0, False), (200, True), (300, False), (800, True)]),
    "goes and comes at once": ([100, 200], [200, 300], [(0, False), (100, True), (300, False), (700, True)]),
}


@pytest.mark.parametrize("what", WRAPS)
def test_intervals_around_the_end_of_a_period(file, what):
    comes, goes, expected = WRAPS[what]
    phone = one(file({1: {**PHONE, "active": comes, "inactive": goes}}))
    (_, at_0), *changes = expected
    changes = [change for before, change in pairwise(expected) if before[1] != change[1]]
    assert phone.online(0) == at_0
    assert first_changes(phone, len(changes)) == changes
    if len(expected) == 1:
        assert first_changes(phone, 1) == []


def phones_of(count):
    """Clients that come at a time of their own."""
    return {n: {**PHONE, "active": [n], "inactive": [500]} for n in range(1, count + 1)}


def comes_at(node: Availability) -> float:
    return first_changes(node, 1)[0][0]


def test_clients_are_drawn_by_the_seed_and_once_where_there_are_enough(file):
    path = file(phones_of(40))
    drawn = [comes_at(node) for node in present(path, 40)]
    assert sorted(drawn) == list(range(1, 41)) != drawn
    assert [comes_at(node) for node in present(path, 10)] == drawn[:10]
    assert [comes_at(node) for node in present(path, 40, seed=1)] != drawn
    assert {comes_at(node) for node in present(file(phones_of(3)), 50)} == {1, 2, 3}


def client(**keys):
    return {3: PHONE, 9: {**PHONE, **keys}}


WRONG_CLIENTS = {
    "unsorted": (client(active=[400, 100]), "client 9: active[1] is 100, before the time in front of it"),
    "overlapping": (client(inactive=[450, 500]), "client 9: active and inactive do not take turns around 400 s"),
    "beyond the end": (client(inactive=[200, 601]), "client 9: inactive[1] is 601; allowed: 0 to finish_time, 600"),
    "before the beginning": (client(active=[-1, 400]), "client 9: active[0] is -1; allowed: 0 to finish_time"),
    "no number": (client(active=[100, "b"]), "client 9: active[1] is 'b'"),
    "not a number": (client(active=[100, math.nan]), "client 9: active[1] is nan"),
    "a list in the list": (client(active=[100, [400]]), "client 9: active[1] is a list"),
    "times too many": (client(active=[50, 60, 100, 400]), "active has 4 times and inactive 2; they take turns"),
    "another time too many": (client(inactive=[200, 500, 550]), "active has 2 times and inactive 3"),
    "a period of nothing": (client(finish_time=0), "client 9: finish_time is 0; allowed: a finite number above 0"),
    "a negative period": (client(finish_time=-600), "client 9: finish_time is -600"),
    "a period without end": (client(finish_time=math.inf), "client 9: finish_time is inf"),
    "no list": (client(active=100), "client 9: active is 100; allowed: a list of seconds"),
    "nothing to read": ({3: {}}, "client 3: has no 'finish_time'; it has: nothing"),
    "no times": ({3: {"finish_time": 6}}, "client 3: has no 'active'; it has: 'finish_time'"),
    "a file of devices": ({3: {"computation": 3.0}}, "client 3: has no 'finish_time'; it has: 'computation'"),
    "no clients": ({}, "holds a dict; allowed: a dict of clients by id"),
    "a set": (client(active={100, 400}), "is not plain data"),
}


@pytest.mark.parametrize("what", WRONG_CLIENTS)
def test_a_wrong_client_is_one_clear_line(file, what):
    value, part = WRONG_CLIENTS[what]
    path = file(value)
    message = refusal(path)
    assert message.startswith(f"churn.trace: {path}: ")
    assert part in message


def test_a_fedscale_file_has_no_end(file):
    path = file({1: PHONE})
    assert "churn.after: a FedScale file repeats" in refusal(path, after="hold")
    assert one(path, after="repeat").online(700)


# Tables of intervals

TABLE = "node,online_s,offline_s\n1,30,40\n1,10,20\n2,0,40\n4,5,10\n"


def test_intervals_hold_their_beginning_but_not_their_end(file):
    node = present(file(TABLE), 3, after="offline")[1]
    assert online_at(node, 0, 9.999, 10, 19.999, 20, 30, 39.999, 40, 1e9) == [
        *(False, False, True, True),
        *(False, True, True, False, False),
    ]
    assert list(node.changes(0)) == [(10, True), (20, False), (30, True), (40, False)]
    assert list(node.changes(10)) == [(20, False), (30, True), (40, False)]
    assert list(node.changes(9.5)) == [(10, True), (20, False), (30, True), (40, False)]


def test_nodes_without_rows_are_always_there(file):
    for after in ("repeat", "hold", "offline"):
        nodes = present(file(TABLE), 6, after=after)
        for node in (0, 3, 5):
            assert online_at(nodes[node], 0, 40, 1e12) == [True] * 3
            assert list(nodes[node].changes(0)) == []


def test_repeating_begins_anew_at_the_end_of_the_whole_file(file):
    _, node, always, _, early = present(file(TABLE), 5, after="repeat")
    assert first_changes(node, 6) == [(10, True), (20, False), (30, True), (40, False), (50, True), (60, False)]
    assert online_at(always, 0, 39, 40, 1e6) == [True] * 4
    assert list(always.changes(0)) == []
    assert first_changes(early, 4) == [(5, True), (10, False), (45, True), (50, False)]


def test_holding_keeps_what_was_at_the_end_of_the_whole_file(file):
    _, node, always, _, early = present(file(TABLE), 5, after="hold")
    assert list(node.changes(0)) == [(10, True), (20, False), (30, True)]
    assert online_at(always, 40, 1e9) == [True, True]
    assert online_at(early, 9, 10, 40, 1e9) == [True, False, False, False]


def test_offline_is_offline(file):
    _, node, always, _, early = present(file(TABLE), 5, after="offline")
    assert [n.online(40) for n in (node, always, early)] == [False] * 3
    assert list(always.changes(0)) == [(40, False)]


def test_intervals_that_touch_are_one(file):
    node = one(file("node,online_s,offline_s\n0,1,2\n0,2,3\n"), after="offline")
    assert list(node.changes(0)) == [(1, True), (3, False)]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format(tmp_path, suffix):
    path = tmp_path / f"intervals{suffix}"
    write_table(path, {"node": [0, 0], "online_s": [5.5, 0], "offline_s": [7, 2.25]})
    assert list(one(str(path), after="hold").changes(0)) == [(2.25, False), (5.5, True)]


WRONG_ROWS = {
    "backwards": ("0,5,4\n", "row 1: offline_s is 4; allowed: later than online_s, 5"),
    "empty": ("0,1,2\n0,5,5\n", "row 2: offline_s is 5; allowed: later than online_s, 5"),
    "overlapping": ("0,5,9\n1,0,1\n0,1,6\n", "rows 3 and 1 overlap: node 0 is there until 6 s and comes at 5 s"),
    "twice": ("0,5,9\n0,5,9\n", "rows 1 and 2 overlap"),
    "negative": ("0,-1,9\n", "row 1: online_s is -1; allowed: finite numbers from 0 on"),
    "endless": ("0,1,inf\n", "row 1: offline_s is inf; allowed: finite numbers above 0"),
    "half a node": ("0.5,1,2\n", "row 1: node is 0.5"),
    "a word": ("0,1,2\n0,noon,2\n", "row 2: online_s is 'noon', not a number"),
    "no rows": ("", "has no rows"),
}


@pytest.mark.parametrize("what", WRONG_ROWS)
def test_a_wrong_row_is_one_clear_line(file, what):
    rows, part = WRONG_ROWS[what]
    path = file("node,online_s,offline_s\n" + rows)
    message = refusal(path, after="hold")
    assert message.startswith(f"churn.trace: {path}: ")
    assert part in message


def test_wrong_columns_and_files(file, tmp_path):
    assert "has no column 'offline_s'" in refusal(file("node,online_s\n0,1\n"), after="hold")
    assert "(did you mean 'online_s'?)" in refusal(file("node,online,offline_s\n0,1,2\n"), after="hold")
    assert "there is no such file" in refusal(str(tmp_path / "none.csv"), after="hold")
    assert "there is no such file" in refusal(str(tmp_path / "none"))
    assert "not a number" in refusal(file(json.dumps([{"node": "a"}]), "intervals.json"), after="hold")


def test_what_follows_the_end_has_to_be_said(file):
    message = refusal(file(TABLE))
    assert message.startswith("churn.after: ")
    for allowed in ("'repeat'", "'hold'", "'offline'"):
        assert allowed in message


def test_without_a_trace_there_is_none():
    assert availability(ChurnSection(), 3, 0) is None
    with pytest.raises(ConfigError, match=r"^churn\.after: "):
        availability(ChurnSection(after="hold"), 3, 0)


# Availability itself

FLIPS = st.lists(st.integers(0, 5_000), max_size=12).map(lambda times: [t / 1000 for t in sorted(times)])
PERIODS = st.none() | st.integers(1, 6_000).map(lambda ms: ms / 1000)
ANY = st.builds(Availability, st.booleans(), FLIPS, PERIODS)


@given(ANY, st.integers(0, 10**6).map(lambda ms: ms / 1000))
def test_changes_take_turns_rise_and_agree_with_asking(node, start_s):
    changes = first_changes(node, 30, start_s)
    state, before = node.online(start_s), start_s
    for t, online in changes:
        assert t > before
        assert online != state
        assert node.online(t) == online
        assert node.online((before + t) / 2) == state or (before + t) / 2 in (before, t)
        state, before = online, t
    if len(changes) < 30:
        assert node.online(before + 1e6) == state


@given(ANY, st.floats(0, 100), st.floats(0, 100))
def test_changes_from_later_on_are_the_rest_of_them(node, one_s, other_s):
    start_s, later_s = sorted((one_s, other_s))
    rest = [change for change in first_changes(node, 200, start_s) if change[0] > later_s][:5]
    assert first_changes(node, len(rest), later_s) == rest


@given(st.booleans(), FLIPS, st.integers(6, 50), st.integers(0, 10**6), st.integers(0, 5_999))
def test_a_repeating_record_is_what_it_was_a_period_ago(at_0, flips, period_s, cycle, ms):
    node = Availability(at_0, flips, float(period_s))
    moved = cycle * period_s
    near = any(abs(flip - ms / 1000) < 1e-6 for flip in flips)
    assert node.online(ms / 1000) == node.online(moved + ms / 1000) or near


@given(st.booleans(), FLIPS, st.floats(0, 6))
def test_without_a_period_it_is_a_matter_of_counting(at_0, flips, t):
    assert Availability(at_0, flips).online(t) == (at_0 ^ (sum(flip <= t for flip in flips) % 2 == 1))


def test_asking_changes_nothing():
    node = Availability(False, [1.0, 2.0, 3.0, 4.0], 5.0)
    forwards = [node.online(t / 2) for t in range(40)]
    assert [node.online(t / 2) for t in reversed(range(40))] == forwards[::-1]
    changes = node.changes(0.0)
    assert next(changes) == (1.0, True)
    assert next(node.changes(0.0)) == (1.0, True)
    assert next(changes) == (2.0, False)


def test_a_far_start_is_found_at_once():
    node = Availability(False, [0.25, 0.5], 1.0)
    assert first_changes(node, 2, 1e12) == [(1e12 + 0.25, True), (1e12 + 0.5, False)]
