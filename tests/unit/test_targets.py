"""Time and bytes to accuracy: the first time at which it holds, never interpolated, never the run's end."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.experiment.targets import Course, reached, summarised
from node.record import Recorder
from node.row import Row

NEVER = (None, None)


def course(*rows):
    """From (time_s, node, value), in the order given."""
    time_s, node, value = zip(*rows, strict=True) if rows else ((), (), ())
    return Course(np.array(time_s, float), np.array(node, np.int64), np.array(value, float))


NOBODY = course()


def mean_reached(target, *rows):
    return reached(course(*rows), NOBODY, target)[0].time_s


def worst_reached(target, *rows):
    return reached(course(*rows), NOBODY, target)[1].time_s


# Time


def test_the_first_time_at_which_the_mean_holds():
    rows = [(1.0, 0, 0.2), (2.0, 0, 0.8), (3.0, 0, 0.3), (4.0, 0, 0.9)]
    assert mean_reached(0.8, *rows) == 2.0
    assert mean_reached(0.85, *rows) == 4.0


def test_never_is_none_and_not_the_end():
    assert reached(course((1.0, 0, 0.2), (2.0, 0, 0.8)), NOBODY, 0.81) == (NEVER, NEVER)


def test_nobody_recorded():
    assert reached(NOBODY, NOBODY, 0.5) == (NEVER, NEVER)


def test_the_target_counts_only_once_all_nodes_have_recorded():
    # Node 0 alone is above the target at 1 s; with node 1 the mean reaches it at 3 s.
    assert mean_reached(0.8, (1.0, 0, 0.9), (2.0, 1, 0.1), (3.0, 1, 0.8)) == 3.0


def test_each_node_counts_with_its_latest_value():
    rows = [(1.0, 0, 0.4), (1.0, 1, 0.4), (2.0, 0, 0.6), (3.0, 0, 0.9), (4.0, 1, 0.7)]
    assert mean_reached(0.65, *rows) == 3.0
    assert mean_reached(0.7, *rows) == 4.0


def test_all_that_is_recorded_at_one_time_counts_before_it_is_looked_at():
    # Half-way through what happens at 2 s the mean is above the target, afterwards it is not.
    rows = [(1.0, 0, 0.5), (1.0, 1, 0.5), (2.0, 0, 0.9), (2.0, 1, 0.1), (3.0, 1, 0.9)]
    assert mean_reached(0.7, *rows) == 3.0


def test_rows_may_come_in_any_order_of_time():
    rows = [(3.0, 0, 0.9), (1.0, 0, 0.1), (2.0, 0, 0.8)]
    assert mean_reached(0.8, *rows) == 2.0


def test_of_equal_times_the_later_row_holds():
    assert mean_reached(0.8, (1.0, 0, 0.9), (1.0, 0, 0.1), (2.0, 0, 0.8)) == 2.0


def test_what_is_no_number_is_left_out():
    rows = [(1.0, 0, math.nan), (2.0, 0, 0.5), (3.0, 0, math.inf), (4.0, 0, 0.9)]
    assert mean_reached(0.5, *rows) == 2.0
    assert mean_reached(0.6, *rows) == 4.0
    assert mean_reached(0.1, (1.0, 0, math.nan)) is None


@pytest.mark.parametrize("nodes", [1, 3, 7, 10, 1000])
def test_a_mean_that_equals_the_target_reaches_it_whatever_the_rounding(nodes):
    rows = [(1.0, node, 0.3) for node in range(nodes)] + [(2.0, node, 0.9) for node in range(nodes)]
    assert mean_reached(0.9, *rows) == worst_reached(0.9, *rows) == 2.0


def test_the_worst_tenth_of_nodes_reaches_a_target_later():
    rows = [(1.0, n, 0.9 if n else 0.0) for n in range(5)] + [(2.0, 0, 0.9)]
    assert mean_reached(0.7, *rows) == 1.0
    assert worst_reached(0.7, *rows) == 2.0


def test_one_node_of_ten_may_stay_behind_and_two_may_not():
    rows = [(1.0, n, 0.9 if n > 1 else 0.0) for n in range(10)] + [(2.0, 1, 0.9)]
    assert worst_reached(0.9, *rows) == 2.0


RECORDS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), st.integers(0, 10)), min_size=1, max_size=40)


@given(RECORDS, st.integers(0, 10))
def test_both_are_what_the_definition_says(rows, tenths):
    rows = [(float(time), node, value / 10) for time, node, value in rows]
    target, nodes = tenths / 10, {node for _, node, _ in rows}
    expected = [None, None]
    for now in sorted({time for time, _, _ in rows}):
        latest = {}
        for time, node, value in sorted(rows, key=lambda row: row[0]):
            if time <= now:
                latest[node] = value
        if len(latest) == len(nodes):
            good = sum(value >= target for value in latest.values()) >= 0.9 * len(nodes)
            for i, holds in enumerate((sum(latest.values()) / len(nodes) >= target - 1e-9, good)):
                expected[i] = now if holds and expected[i] is None else expected[i]
    assert [found.time_s for found in reached(course(*rows), NOBODY, target)] == expected


# Bytes

ACCURACY = course((1.0, 0, 0.5), (2.0, 1, 0.9), (3.0, 0, 0.9))


def test_bytes_are_the_latest_totals_of_all_nodes_at_that_time():
    sent = course((1.0, 0, 10.0), (1.5, 2, 5.0), (2.0, 1, 20.0), (2.5, 0, 30.0), (3.5, 1, 99.0))
    mean, worst = reached(ACCURACY, sent, 0.7)
    assert mean == (2.0, 10.0 + 5.0 + 20.0)
    assert worst == (3.0, 30.0 + 5.0 + 20.0)


def test_bytes_recorded_at_that_very_time_count():
    assert reached(ACCURACY, course((2.0, 1, 20.0)), 0.7)[0].sent_bytes == 20.0


def test_bytes_that_nobody_recorded_are_unknown():
    assert reached(ACCURACY, NOBODY, 0.7)[0] == (2.0, None)


def test_bytes_that_were_recorded_later_only_are_none_yet():
    assert reached(ACCURACY, course((9.0, 1, 20.0)), 0.7)[0] == (2.0, 0.0)


# The summary


def test_a_summary_names_every_target():
    found = summarised(ACCURACY, course((1.0, 0, 8.0)), (0.5, 0.9, 1.0))
    assert found == {
        "time_to_accuracy_s": {"0.5": 2.0, "0.9": 3.0, "1": None},
        "bytes_to_accuracy": {"0.5": 8.0, "0.9": 8.0, "1": None},
        "time_to_accuracy_worst_decile_s": {"0.5": 2.0, "0.9": 3.0, "1": None},
        "bytes_to_accuracy_worst_decile": {"0.5": 8.0, "0.9": 8.0, "1": None},
    }


def test_no_target_no_figure():
    assert set(map(len, summarised(ACCURACY, NOBODY, ()).values())) == {0}


def test_a_recorder_gives_the_course_of_a_metric():
    recorder = Recorder()
    recorder.append(Row(2.0, 1, 0, "accuracy", 0.5))
    recorder.append(Row(2.0, 1, 0, "loss", 0.7))
    recorder.append(Row(1.0, 0, 0, "accuracy", 0.4))
    accuracy = Course(*recorder.samples("accuracy"))
    assert [column.tolist() for column in accuracy] == [[2.0, 1.0], [1, 0], [0.5, 0.4]]
    assert [column.tolist() for column in accuracy.ordered()] == [[1.0, 2.0], [0, 1], [0.4, 0.5]]
    assert [column.size for column in recorder.samples("drift")] == [0, 0, 0]


@pytest.mark.parametrize("every", [1, 2, 3, 7])
def test_bytes_to_an_accuracy_are_the_same_whichever_rounds_are_kept(every):
    recorder = Recorder(every)
    for round in range(22):
        recorder.add(float(round), 0, round, {"accuracy": round / 21, "bytes_sent": 0.0})
        # Each round asks one client, which records that round alone until it is asked again.
        client = 1 + round % 5
        recorder.add(round + 0.5, client, round, {"bytes_sent": 100.0 * (1 + round // 5)})
    recorder.keep_last()
    found, _ = reached(Course(*recorder.samples("accuracy")), Course(*recorder.sent()), 1.0)
    assert found == (21.0, 2100.0)


def test_a_hundred_thousand_nodes_are_no_trouble():
    nodes, rounds = 100_000, 3
    time_s = np.repeat(np.arange(1.0, rounds + 1), nodes)
    value = np.repeat([0.1, 0.5, 0.9], nodes)
    accuracy = Course(time_s, np.tile(np.arange(nodes), rounds), value)
    sent = accuracy._replace(value=np.repeat([1.0, 2.0, 3.0], nodes))
    assert reached(accuracy, sent, 0.9) == ((3.0, 300_000.0), (3.0, 300_000.0))
