"""What nodes spend their time on: sums, shares, and the picture, whatever the order and number of intervals."""

from __future__ import annotations

import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.timeline import ACTIVITIES, Raster, Timeline
from node.usage import Usage

HOUR = 3600.0


def closed(nodes, end_s, *calls, **options):
    """A usage that was told all ``calls`` (method, arguments...) until ``end_s``."""
    usage = Usage(nodes, **options)
    for method, *arguments in calls:
        getattr(usage, method)(*arguments)
    usage.close(end_s)
    return usage


def shares(*calls, nodes=1, end_s=10.0):
    return {name: pytest.approx(share) for name, share in closed(nodes, end_s, *calls).summary()["shares"].items()}


def drawn(usage):
    """The picture's seconds by activity, all groups and bins together."""
    picture = usage.picture()
    seconds = picture.shares * picture.nodes[:, None, None] * np.diff(picture.edges_s)[None, :, None]
    return dict(zip(ACTIVITIES, seconds.sum(axis=(0, 1)).tolist(), strict=True))


# Sums


def test_time_is_divided_into_four_activities():
    found = shares(("trained", 0, 0.0, 3.0), ("sent", 0, 3.0, 5.0), ("offline", 0, 6.0, 10.0))
    assert found == {"training": 0.3, "sending": 0.2, "waiting": 0.1, "offline": 0.4}


def test_training_goes_before_sending():
    found = shares(("sent", 0, 1.0, 4.0), ("trained", 0, 0.0, 3.0))
    assert found == {"training": 0.3, "sending": 0.1, "waiting": 0.6, "offline": 0.0}


def test_offline_goes_before_all_else():
    found = shares(("trained", 0, 0.0, 4.0), ("sent", 0, 0.0, 8.0), ("offline", 0, 2.0, 6.0))
    assert found == {"training": 0.2, "sending": 0.2, "waiting": 0.2, "offline": 0.4}


@pytest.mark.parametrize(
    "sends",
    [
        [(0, 4), (0, 4), (2, 5)],
        [(2, 5), (0, 4), (0, 4)],
        [(0, 1), (4, 5), (0, 5)],
        [(4, 5), (0, 1), (1, 4)],
        [(0, 5), (2, 2), (5, 5)],
    ],
)
def test_overlapping_transfers_count_once_in_any_order(sends):
    assert shares(*(("sent", 0, float(start), float(end)) for start, end in sends))["sending"] == 0.5


def test_nodes_are_told_apart():
    usage = closed(2, 10.0, ("trained", 0, 0.0, 5.0), ("sent", 1, 0.0, 5.0), ("trained", 1, 4.0, 5.0))
    summary = usage.summary()
    assert summary["shares"] == pytest.approx({"training": 0.3, "sending": 0.2, "waiting": 0.5, "offline": 0.0})
    assert summary["utilisation"] == pytest.approx({"mean": 0.3, "min": 0.1, "max": 0.5})


def test_device_hours_hold_what_was_lost_and_discarded():
    calls = [
        ("trained", 0, 0.0, HOUR),
        ("lost", 1, 0.0, HOUR / 2, HOUR / 2),
        ("discarded", 0, HOUR / 4),
        ("discarded", 0, 0.0),
    ]
    summary = closed(2, HOUR, *calls).summary()
    assert summary["device_hours"] == pytest.approx({"total": 1.5, "lost": 0.5, "discarded": 0.25})


def test_of_a_lost_training_only_what_the_device_has_spent_on_it_is_lost():
    calls = [("lost", 0, 0.0, HOUR, HOUR / 2), ("lost", 0, 0.0, HOUR, HOUR / 2)]
    assert closed(1, HOUR, *calls).summary()["device_hours"] == {"total": 1.0, "lost": 1.0, "discarded": 0.0}


def test_what_was_trained_may_turn_out_to_be_discarded_after_the_end():
    usage = closed(1, HOUR, ("trained", 0, 0.0, HOUR))
    usage.discarded(0, HOUR)
    assert usage.summary()["device_hours"]["discarded"] == 1.0


def test_utilisation_is_of_the_time_online():
    usage = closed(3, 10.0, ("offline", 0, 0.0, 8.0), ("trained", 0, 8.0, 9.0), ("offline", 1, 0.0, 10.0))
    summary = usage.summary()
    assert summary["utilisation"] == pytest.approx({"mean": 0.25, "min": 0.0, "max": 0.5})  # node 1 has none
    assert summary["online_hours"] == pytest.approx(12.0 / HOUR)


def test_nodes_that_were_never_online_have_no_utilisation():
    summary = closed(2, 10.0, ("offline", 0, 0.0, 10.0), ("offline", 1, 0.0, 10.0)).summary()
    assert summary["utilisation"] == {"mean": 0.0, "min": 0.0, "max": 0.0}
    assert summary["shares"]["offline"] == 1.0


def test_what_is_after_the_end_does_not_count():
    calls = [("trained", 0, 8.0, 12.0), ("sent", 0, 11.0, 12.0), ("sent", 0, 7.0, 99.0)]
    assert shares(*calls) == {"training": 0.2, "sending": 0.1, "waiting": 0.7, "offline": 0.0}


def test_trainings_of_one_node_at_once_are_one_device_at_work():
    assert closed(1, HOUR, *[("trained", 0, 0.0, HOUR)] * 3).summary()["device_hours"]["total"] == pytest.approx(1.0)


@pytest.mark.parametrize("end_s", [0.0, 10.0])
def test_nothing_happened(end_s):
    summary = closed(3, end_s).summary()
    assert summary["shares"] == {"training": 0.0, "sending": 0.0, "waiting": 1.0, "offline": 0.0}
    assert summary["device_hours"] == {"total": 0.0, "lost": 0.0, "discarded": 0.0}


def test_no_time_no_picture():
    assert closed(3, 0.0, ("trained", 0, 0.0, 0.0)).picture() is None
    assert closed(3, 1.0).picture().shares[..., ACTIVITIES.index("waiting")].min() == 1.0


# Against a reference that looks at every instant

INTERVALS = st.lists(
    st.tuples(
        st.sampled_from(["trained", "lost", "sent", "offline"]),
        st.integers(0, 2),
        st.integers(0, 39),
        st.integers(0, 9),
    ),
    max_size=40,
)


def call_of(method, node, start, length):
    """An interval as it is told; one that was lost with its length."""
    interval = method, node, float(start), float(start + length)
    return (*interval, float(length)) if method == "lost" else interval


def by_instant(calls, nodes, end):
    """Shares, looked up in the middle of every second."""
    counts = dict.fromkeys(("training", "sending", "waiting", "offline"), 0)
    for node in range(nodes):
        for second in range(end):
            doing = {method for method, who, start, length in calls if who == node and start <= second < start + length}
            kind = "training" if doing & {"trained", "lost"} else "sending" if doing else "waiting"
            counts["offline" if "offline" in doing else kind] += 1
    return {name: pytest.approx(count / (nodes * end), abs=1e-12) for name, count in counts.items()}


@given(INTERVALS, st.integers(1, 45))
def test_shares_are_those_of_a_look_at_every_second(calls, end):
    told = [call_of(*call) for call in calls]
    usage = closed(3, float(end), *told)
    assert usage.summary()["shares"] == by_instant(calls, 3, end)


@given(INTERVALS, st.integers(1, 45))
def test_the_picture_holds_what_the_sums_say(calls, end):
    told = [call_of(*call) for call in calls]
    usage = closed(3, float(end), *told)
    expected = {name: 3 * end * share for name, share in usage.summary()["shares"].items()}
    assert drawn(usage) == pytest.approx(expected, abs=1e-9)


# Many intervals


def busy(monkeypatch, buffered, nodes=7, rounds=60):
    """Rounds of training, and of sending while the next training runs, with the buffer as long as told."""
    monkeypatch.setattr("node.usage._BUFFERED", buffered)
    usage = Usage(nodes)
    calls = []
    for round in range(rounds):
        for node in range(nodes):
            start = 4.0 * round + (node + round) % 2
            end = start + 1 + node / 4
            calls.append((end, usage.trained, node, start, end))
            calls += [(end, usage.sent, node, end + peer / 8, end + 2 + peer / 4) for peer in range(3)]
    for _, tell, *interval in sorted(calls, key=lambda call: call[0]):
        tell(*interval)
    usage.close(4.0 * rounds)
    return usage


def test_the_length_of_the_buffer_does_not_show(monkeypatch):
    whole, pieces = busy(monkeypatch, 10**6), busy(monkeypatch, 64)
    for name, value in whole.summary().items():
        assert pieces.summary()[name] == pytest.approx(value)
    assert drawn(pieces) == pytest.approx(drawn(whole))


def test_training_is_exact_even_where_it_comes_very_late(monkeypatch):
    monkeypatch.setattr("node.usage._BUFFERED", 8)
    usage = Usage(2)
    for second in range(100):
        usage.sent(0, second + 0.0, second + 0.25)
    usage.trained(0, 0.0, 100.0)
    usage.close(100.0)
    summary = usage.summary()
    assert summary["device_hours"]["total"] == pytest.approx(100 / HOUR)
    assert summary["shares"] == pytest.approx({"training": 0.5, "sending": 0.0, "waiting": 0.5, "offline": 0.0})
    assert drawn(usage)["training"] == pytest.approx(100.0, rel=0.21)


def test_intervals_of_equal_end_leave_the_buffer(monkeypatch):
    monkeypatch.setattr("node.usage._BUFFERED", 16)
    usage = Usage(4)
    for i in range(200):
        usage.trained(i % 4, 0.0, 5.0)
        assert len(usage._who) < 16


def test_memory_does_not_grow_with_events():
    usage = Usage(100)

    def size():
        columns = (usage._who, usage._start_s, usage._end_s, usage._last_sent)
        return sum(map(sys.getsizeof, columns)) + usage._seconds.nbytes

    for i in range(70_000):
        usage.trained(i % 100, float(i), i + 0.5)
    before = size()
    for i in range(70_000, 140_000):
        usage.trained(i % 100, float(i), i + 0.5)
    assert size() <= 2 * before < 4e6
    usage.close(140_000.0)
    assert usage.summary()["device_hours"]["total"] == pytest.approx(70_000 / HOUR)
    assert usage.picture().shares.shape[1] <= Raster.BINS


# The watcher


def test_a_watcher_gets_every_interval_as_it_comes():
    seen = []
    calls = [
        ("trained", 0, 0.0, 1.0),
        ("lost", 1, 0.0, 0.5, 0.25),
        ("sent", 0, 1.0, 2.0),
        ("sent", 0, 1.0, 3.0),
        ("offline", 1, 0.5, 4.0),
    ]
    closed(2, 4.0, *calls, watcher=lambda *told: seen.append(told))
    kinds = ("train", "lost", "send", "send", "offline")
    assert seen == [(call[1], kind, *call[2:4]) for call, kind in zip(calls, kinds, strict=True)]


# The picture


def test_up_to_500_nodes_have_a_row_each():
    picture = closed(3, 8.0, ("trained", 2, 4.0, 8.0)).picture()
    assert picture.nodes.tolist() == [1, 1, 1]
    assert picture.shares[:2, :, ACTIVITIES.index("waiting")].min() == 1.0
    middle = picture.edges_s[:-1] < 4
    assert picture.shares[2, middle, 0].max() == 0.0
    assert picture.shares[2, ~middle, 0].min() == 1.0


def test_more_nodes_share_rows_with_nodes_of_their_speed():
    nodes, rng = 1500, np.random.default_rng(3)
    seconds = rng.permutation(np.linspace(1.0, 10.0, nodes))
    picture = closed(nodes, 10.0, *(("trained", node, 0.0, s) for node, s in enumerate(seconds.tolist()))).picture()
    assert picture.shares.shape[0] == 500
    assert picture.nodes.tolist() == [3] * 500
    training = (picture.shares[:, :, 0] * np.diff(picture.edges_s)).sum(axis=1)
    assert training == pytest.approx(np.sort(seconds).reshape(500, 3).mean(axis=1))


def test_nodes_that_have_not_trained_yet_come_last():
    picture = closed(1000, 10.0, *(("trained", node, 0.0, 5.0) for node in range(500, 1000))).picture()
    assert picture.nodes.tolist() == [2] * 500
    training = picture.shares[:, :, 0].sum(axis=1)
    assert training[:250].min() > 0
    assert training[250:].max() == 0


def test_shares_of_every_cell_sum_to_one():
    picture = closed(5, 7.3, ("trained", 1, 0.1, 7.0), ("sent", 2, 0.0, 99.0), ("offline", 3, 0.0, 7.3)).picture()
    assert picture.shares.sum(axis=2) == pytest.approx(np.ones(picture.shares.shape[:2]))
    assert picture.edges_s[-1] == 7.3
    assert Raster.BINS // 2 <= picture.shares.shape[1] <= Raster.BINS


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2), st.floats(0, 5000), st.floats(0, 5000)), max_size=30))
def test_bins_that_doubled_hold_what_wide_bins_would(rows):
    """Told interval by interval to a raster that has to widen, and at once to one that need not."""
    narrow, wide = (Raster(np.arange(2), span_s) for span_s in (0.5, 10_000.0))
    columns = [np.array(column) for column in zip(*rows, strict=True)] if rows else [np.zeros(0, np.int64)] * 4
    start, end = np.minimum(columns[2], columns[3]), np.maximum(columns[2], columns[3])
    wide.add(columns[0], columns[1], start, end)
    for i in range(len(rows)):
        narrow.add(*(column[i : i + 1] for column in (columns[0], columns[1], start, end)))
    narrow.add(np.array([0]), np.array([0]), np.array([9999.0]), np.array([10_000.0]))
    wide.add(np.array([0]), np.array([0]), np.array([9999.0]), np.array([10_000.0]))
    assert narrow._bin_s == wide._bin_s
    np.testing.assert_allclose(narrow._seconds(), wide._seconds(), atol=1e-6)


# On disk


def test_a_picture_is_read_back_as_it_was_written(tmp_path):
    picture = closed(3, 8.5, ("trained", 2, 4.0, 8.0), ("sent", 0, 1.0, 2.0)).picture()
    picture.write(tmp_path / "timeline.parquet")
    found = Timeline.read(tmp_path / "timeline.parquet")
    assert found.nodes.tolist() == [1, 1, 1]
    assert found.edges_s.tolist() == picture.edges_s.tolist()
    np.testing.assert_allclose(found.shares, picture.shares, atol=1e-7)
    columns = ["group", "nodes", "start_s", "end_s", "training", "sending", "offline", "waiting"]
    assert pq.read_schema(tmp_path / "timeline.parquet").names == columns


def test_a_picture_of_a_long_run_of_many_nodes_is_small(tmp_path):
    usage = Usage(2000)
    rng = np.random.default_rng(5)
    for i, start in enumerate((rng.random(20_000) * 1000).tolist()):
        usage.trained(i % 2000, start, start + 5.0)
    usage.close(1000.0)
    usage.picture().write(tmp_path / "timeline.parquet")
    assert (tmp_path / "timeline.parquet").stat().st_size < 2e6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop_columns("sending"), "column 'sending' is missing"),
        (lambda table: table.slice(1), "one row for each group and bin"),
        (lambda table: table.slice(0, 0), "one row for each group and bin"),
    ],
)
def test_what_is_no_picture_is_refused(tmp_path, change, message):
    path = tmp_path / "timeline.parquet"
    closed(2, 8.0, ("trained", 1, 4.0, 8.0)).picture().write(path)
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(ValueError, match=message):
        Timeline.read(path)
    path.write_bytes(b"no parquet")
    with pytest.raises(pa.ArrowInvalid):
        Timeline.read(path)
