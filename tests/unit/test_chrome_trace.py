"""The trace file: valid whatever happens, in the format that viewers read."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import ConfigError
from node.sim.chrome_trace import ChromeTrace
from node.usage import Usage


def strict(text):
    """JSON without NaN and Infinity, which Python reads and viewers do not."""

    def refuse(constant):
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def written(tmp_path):
    """Writes a trace of intervals (node, kind, start, end), and reads it back."""

    def write(*intervals, nodes=4, **limits):
        with ChromeTrace(tmp_path / "trace.json", nodes, **limits) as trace:
            for interval in intervals:
                trace(*interval)
        return strict((tmp_path / "trace.json").read_text())

    return write


def events(trace, *phases):
    return [event for event in trace["traceEvents"] if event["ph"] in phases]


def test_a_training_is_a_slice_in_microseconds(written):
    trace = written((2, "train", 1.5, 2.25))
    (slice,) = events(trace, "X")
    assert slice == {
        "ph": "X", "pid": 0, "tid": 2, "ts": 1_500_000.0, "dur": 750_000.0, "name": "train", "cat": "train",
    }  # fmt: skip
    assert trace["displayTimeUnit"] == "ms"


def test_a_process_and_each_node_seen_have_a_name_and_a_place(written):
    trace = written((3, "train", 0.0, 1.0), (1, "send", 0.0, 1.0), (3, "train", 1.0, 2.0))
    named = [(event["name"], event["tid"], event["args"]) for event in events(trace, "M")]
    assert named == [
        ("process_name", 0, {"name": "simulated nodes"}),
        ("thread_name", 3, {"name": "node 3"}),
        ("thread_sort_index", 3, {"sort_index": 3}),
        ("thread_name", 1, {"name": "node 1"}),
        ("thread_sort_index", 1, {"sort_index": 1}),
    ]


@pytest.mark.parametrize(
    ("kind", "name"), [("train", "train"), ("lost", "train (lost)"), ("offline", "offline"), ("send", "send")]
)
def test_every_kind_has_a_name_and_is_its_own_category(written, kind, name):
    (event,) = events(written((0, kind, 0.0, 1.0)), "X", "b")
    assert (event["name"], event["cat"]) == (name, kind)


def test_overlapping_transfers_are_async_events_with_ids_of_their_own(written):
    trace = written((0, "send", 0.0, 2.0), (0, "send", 1.0, 3.0), (1, "send", 1.0, 3.0))
    assert not events(trace, "X")
    begins, ends = events(trace, "b"), events(trace, "e")
    assert len({event["id"] for event in begins}) == 3
    assert [(event["id"], event["tid"], event["cat"], event["name"]) for event in begins] == [
        (event["id"], event["tid"], event["cat"], event["name"]) for event in ends
    ]
    assert [event["ts"] for event in begins] == [0.0, 1e6, 1e6]
    assert [event["ts"] for event in ends] == [2e6, 3e6, 3e6]


def test_what_would_not_nest_is_async_too(written):
    trace = written((0, "train", 0.0, 2.0), (0, "train", 1.0, 3.0), (0, "offline", 3.0, 4.0), (1, "train", 1.0, 3.0))
    assert [(event["tid"], event["ts"]) for event in events(trace, "X")] == [(0, 0.0), (0, 3e6), (1, 1e6)]
    assert [event["cat"] for event in events(trace, "b", "e")] == ["train", "train"]


INTERVALS = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.sampled_from(["train", "lost", "send", "offline"]),
        st.floats(0, 1e6),
        st.floats(-1e-9, 1e4),
    ),
    max_size=30,
)


@given(INTERVALS)
def test_any_trace_is_valid_and_its_slices_do_not_cross(tmp_path_factory, intervals):
    path = tmp_path_factory.mktemp("any") / "trace.json"
    with ChromeTrace(path, 4, most_nodes=4) as trace:
        for node, kind, start, length in intervals:
            trace(node, kind, start, start + length)
    found = strict(path.read_text())
    assert all(event["dur"] >= 0 for event in events(found, "X"))
    assert all(event["tid"] < 4 for event in found["traceEvents"])
    for node in range(4):
        slices = sorted((event["ts"], event["dur"]) for event in events(found, "X") if event["tid"] == node)
        assert all(ts + dur <= after + 1e-3 for (ts, dur), (after, _) in pairwise(slices))
    shown = sum(1 for node, *_ in intervals if node < 4)
    assert len(events(found, "X", "b")) == len(events(found, "X", "e")) == shown


def test_neighbouring_slices_touch_to_the_nanosecond(written):
    edges = [0.1 * i for i in range(200)]
    trace = written(*((0, "train", start, end) for start, end in pairwise(edges)))
    assert len(events(trace, "X")) == 199
    for one, next in pairwise(events(trace, "X")):
        assert round((one["ts"] + one["dur"]) * 1000) == round(next["ts"] * 1000)


# What is left out


def test_a_whole_trace_leaves_nothing_out(written):
    assert written((0, "train", 0.0, 1.0))["otherData"] == {"clock": "virtual", "nodes": 4, "nodes_shown": 4}


def test_nodes_beyond_the_limit_are_left_out_and_that_is_said(written):
    trace = written(*((node, "train", 0.0, 1.0) for node in range(4)), most_nodes=2)
    assert {event["tid"] for event in trace["traceEvents"]} == {0, 1}
    assert trace["otherData"]["nodes_shown"] == 2
    assert trace["otherData"]["intervals_left_out"] == 2
    assert "at most the first 2 nodes" in trace["otherData"]["note"]


def test_intervals_beyond_the_limit_are_left_out_and_that_is_said(written):
    trace = written(*((0, "train", float(i), i + 0.5) for i in range(9)), most_intervals=5)
    assert len(events(trace, "X")) == 5
    assert trace["otherData"]["intervals_left_out"] == 4
    assert "5 intervals are kept; 4 intervals were left out" in trace["otherData"]["note"]


@pytest.mark.parametrize("end", [math.inf, math.nan])
def test_times_that_are_no_numbers_are_left_out(written, end):
    trace = written((0, "offline", 0.0, end), (0, "offline", end, 1.0))
    assert not events(trace, "X")
    assert trace["otherData"]["intervals_left_out"] == 2


# However a run ends


def test_an_empty_trace_is_valid(written):
    assert [event["name"] for event in written()["traceEvents"]] == ["process_name"]


def test_a_run_that_fails_leaves_a_valid_trace(tmp_path):
    path = tmp_path / "trace.json"

    def failing():
        with ChromeTrace(path, 2) as trace:
            Usage(2, trace).trained(0, 0.0, 1.0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert len(events(strict(path.read_text()), "X")) == 1


def test_closing_twice_ends_the_file_once(tmp_path):
    trace = ChromeTrace(tmp_path / "trace.json", 2)
    trace.close()
    trace.close()
    assert strict((tmp_path / "trace.json").read_text())["traceEvents"]


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"none/trace\.json: the trace cannot be written: No such file or directory$"):
        ChromeTrace(tmp_path / "none" / "trace.json", 2)


def test_all_that_a_usage_is_told_is_in_its_trace(tmp_path):
    path = tmp_path / "trace.json"
    with ChromeTrace(path, 2) as trace:
        usage = Usage(2, trace)
        usage.trained(0, 0.0, 1.0)
        usage.lost(1, 0.0, 0.5, 0.5)
        usage.sent(0, 1.0, 2.0)
        usage.offline(1, 0.5, 2.0)
        usage.close(2.0)
    found = strict(path.read_text())
    assert [(event["tid"], event["name"], event["dur"]) for event in events(found, "X")] == [
        (0, "train", 1e6),
        (1, "train (lost)", 0.5e6),
        (1, "offline", 1.5e6),
    ]
    assert [event["ts"] for event in events(found, "b", "e")] == [1e6, 2e6]
