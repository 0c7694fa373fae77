"""The metrics of a run: kept, solved, summed up and written."""

import gc
import math
import weakref

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import ProtocolError
from node.graph import Graph
from node.op import Spec
from node.record import Recorder, spread
from node.row import Row

NUMBER = Spec((), "float64")
METRICS = Spec((2,), "float64", ("accuracy", "loss"))


def constants(*pairs):
    graph = Graph(0)
    return graph, [graph.constant(value, spec) for value, spec in pairs]


def settle(recorder, graph):
    recorder.settle(graph.values)


# Rows


def test_numbers_are_kept_in_order():
    recorder = Recorder()
    recorder.add(0.5, 1, 0, {"accuracy": 0.25, "loss": 2})
    recorder.add(0.7, 0, 0, {"accuracy": np.float32(0.5)})
    assert list(recorder.rows()) == [
        Row(0.5, 1, 0, "accuracy", 0.25),
        Row(0.5, 1, 0, "loss", 2.0),
        Row(0.7, 0, 0, "accuracy", 0.5),
    ]
    assert list(recorder.rows(2)) == [Row(0.7, 0, 0, "accuracy", 0.5)]
    assert len(recorder) == 3


def test_a_value_that_is_not_computed_yet_waits():
    graph, (number,) = constants((0.75, NUMBER))
    recorder = Recorder()
    recorder.add(1.0, 0, 0, {"accuracy": number, "cost": 3})
    assert math.isnan(next(recorder.rows()).value)
    assert recorder.latest("accuracy") == {}
    assert recorder.wanted() == [number]
    settle(recorder, graph)
    assert recorder.wanted() == []
    assert [row.value for row in recorder.rows()] == [0.75, 3.0]


def test_metrics_give_the_part_of_that_name_or_all_parts():
    graph, (metrics,) = constants(({"accuracy": 0.5, "loss": 1.5}, METRICS))
    recorder = Recorder()
    recorder.add(0, 0, 0, {"accuracy": metrics, "test": metrics})
    settle(recorder, graph)
    assert [(row.metric, row.value) for row in recorder.rows()] == [
        ("accuracy", 0.5),
        ("test.accuracy", 0.5),
        ("test.loss", 1.5),
    ]


@pytest.mark.parametrize("shape", [(3,), (2, 2), (1,), (2,), (0,)])
def test_a_tensor_is_no_metric(shape):
    """Nor is one that would fit into a number's bytes."""
    _, (tensor,) = constants((np.zeros(shape), Spec(shape)))
    with pytest.raises(ProtocolError, match=r"record\(model=…\) takes a number or metrics; this Ref is a tensor"):
        Recorder().add(0, 0, 0, {"model": tensor})


def test_settled_values_are_let_go():
    graph, refs = constants((0.75, NUMBER))
    recorder = Recorder()
    recorder.add(0, 0, 0, {"accuracy": refs.pop()})
    graph.drain()
    assert len(graph.values) == 1
    settle(recorder, graph)
    graph.drain()
    assert graph.values == {}


def test_what_is_not_solved_yet_goes_on_waiting():
    graph, (first, second) = constants((1.0, NUMBER), (2.0, NUMBER))
    recorder = Recorder()
    for round, ref in enumerate((second, first)):
        recorder.add(0, 0, round, {"loss": ref, "cost": 5.0})
    recorder.settle({first.id: graph.values[first.id]})
    assert recorder.wanted() == [second]
    assert recorder.settled == 0
    assert recorder.latest("loss") == {0: 1.0}
    settle(recorder, graph)
    assert recorder.settled == len(recorder) == 4
    assert [row.value for row in recorder.rows(0, 3)] == [2.0, 5.0, 1.0]


def test_what_was_never_solved_can_be_dropped():
    _, (number,) = constants((1.0, NUMBER))
    recorder = Recorder(every=2)
    for round, fields in enumerate(({"loss": 3.0, "cost": number}, {"loss": 4.0}, {"cost": number, "loss": 5.0})):
        recorder.add(float(round), 0, round, fields)
    recorder.add(3.0, 0, 3, {"loss": 6.0})
    assert recorder.rounds() == 3
    recorder.drop_pending()
    recorder.keep_last()
    assert list(recorder.rows()) == [Row(0.0, 0, 0, "loss", 3.0), Row(2.0, 0, 2, "loss", 5.0)]
    assert recorder.wanted() == []


# Every n-th round


def test_every_nth_round_and_the_last_one_are_kept():
    recorder = Recorder(every=3)
    for round in range(8):
        for node in (1, 0):
            if round < 8 - node:
                recorder.add(float(round), node, round, {"loss": 10 * round + node})
    recorder.keep_last()
    kept = {node: [row.round for row in recorder.rows() if row.node == node] for node in (0, 1)}
    assert kept == {0: [0, 3, 6, 7], 1: [0, 3, 6]}
    assert recorder.latest("loss") == {0: 70.0, 1: 61.0}
    recorder.keep_last()
    assert len(recorder) == 7


def test_what_is_skipped_is_let_go():
    graph, refs = constants((0.75, NUMBER))
    skipped = weakref.ref(refs[0]) if hasattr(refs[0], "__weakref__") else None
    recorder = Recorder(every=2)
    recorder.add(0, 0, 1, {"accuracy": refs.pop()})
    recorder.add(0, 0, 3, {"accuracy": 0.5})
    gc.collect()
    graph.drain()
    assert graph.values == {}
    assert skipped is None or skipped() is None


# Summaries


def test_the_latest_value_of_each_node_counts():
    recorder = Recorder()
    for node, round, value in ((1, 0, 9.0), (0, 0, 4.0), (1, 1, 8.0), (0, 1, 2.0)):  # the losses fall
        recorder.add(0, node, round, {"loss": value})
    recorder.add(0, 1, 2, {"other": 1.0})
    assert recorder.latest("loss") == {0: 2.0, 1: 8.0}
    assert recorder.latest("nothing") == {}
    assert recorder.summary() == {
        "loss": {"mean": 5.0, "std": 3.0, "min": 2.0, "max": 8.0},
        "other": {"mean": 1.0, "std": 0.0, "min": 1.0, "max": 1.0},
    }


def test_a_loss_that_has_diverged_is_not_hidden_behind_an_earlier_one():
    graph, (nothing, waiting) = constants((math.nan, NUMBER), (1.0, NUMBER))
    recorder = Recorder()
    recorder.add(0, 0, 0, {"loss": 2.0})
    recorder.add(0, 0, 1, {"loss": nothing})
    settle(recorder, graph)
    recorder.add(0, 0, 2, {"loss": waiting})
    assert math.isnan(recorder.latest("loss")[0])
    assert math.isnan(recorder.summary()["loss"]["mean"])


def test_nothing_recorded_is_an_empty_summary_and_table():
    recorder = Recorder()
    assert recorder.summary() == {}
    assert recorder.table().num_rows == 0
    assert list(recorder.rows()) == []


@given(st.lists(st.floats(-1e6, 1e6), min_size=1))
def test_spread_is_that_of_numpy(values):
    numbers = np.array(values)
    assert spread(values) == {
        "mean": numbers.mean(),
        "std": numbers.std(),
        "min": min(values),
        "max": max(values),
    }


# Tables


def test_the_table_holds_every_row(tmp_path):
    recorder = Recorder()
    for node in range(3):
        recorder.add(node / 2, node, 0, {"accuracy": node / 4, "loss": 1.0})
    recorder.write(tmp_path / "metrics.parquet")
    table = pq.read_table(tmp_path / "metrics.parquet")
    assert table.column_names == ["time_s", "node", "round", "metric", "value"]
    assert [str(kind) for kind in table.schema.types] == ["double", "int64", "int64", "string", "double"]
    assert [Row(*row.values()) for row in table.to_pylist()] == list(recorder.rows())


def test_recording_goes_on_while_a_table_is_in_use():
    recorder = Recorder()
    recorder.add(0, 0, 0, {"loss": 1.0})
    table = recorder.table()
    for round in range(1000):
        recorder.add(0, 0, round, {"loss": 2.0})
    assert table.num_rows == 1
    assert table.column("value").to_pylist() == [1.0]
    assert len(recorder) == 1001


# Bytes


def sent(recorder):
    return [column.tolist() for column in recorder.sent()]


def test_without_skipped_rounds_what_was_sent_is_what_the_rows_say():
    recorder = Recorder()
    for node, time_s in ((0, 1.0), (1, 1.0), (0, 2.0)):
        recorder.add(time_s, node, int(time_s), {"bytes_sent": 10 * time_s})
    assert sent(recorder) == [[1.0, 1.0, 2.0], [0, 1, 0], [10.0, 10.0, 20.0]]


def test_what_was_sent_in_skipped_rounds_counts_at_every_time_that_is_kept():
    recorder = Recorder(every=4)
    recorder.add(1.0, 5, 1, {"bytes_sent": 100})
    recorder.add(2.0, 6, 2, {"bytes_sent": 50})
    recorder.add(3.0, 5, 3, {"bytes_sent": 170})
    recorder.add(4.0, 0, 4, {"bytes_sent": 7, "accuracy": 0.5})
    recorder.add(4.0, 6, 5, {"bytes_sent": 60})  # after the one that is kept, at the same time
    recorder.add(5.0, 5, 6, {"bytes_sent": 180})
    recorder.add(6.0, 5, 7, {"bytes_sent": 190})
    recorder.add(6.0, 6, 8, {"bytes_sent": 70})
    recorder.keep_last()
    assert sent(recorder) == [[4.0, 6.0], [-1, -1], [170 + 60 + 7, 190 + 70 + 7]]


def test_a_last_round_that_was_skipped_is_kept_with_what_had_been_sent_by_its_own_time():
    recorder = Recorder(every=10)
    recorder.add(1.0, 0, 1, {"bytes_sent": 5})
    recorder.add(1.0, 1, 1, {"bytes_sent": 6})
    recorder.add(2.0, 1, 2, {"bytes_sent": 9})
    recorder.keep_last()
    assert sorted(zip(*sent(recorder), strict=True)) == [(1.0, -1, 11.0), (2.0, -1, 14.0)]


def test_where_nobody_tells_bytes_none_were_recorded():
    recorder = Recorder(every=2)
    recorder.add(1.0, 0, 0, {"accuracy": 0.5})
    assert sent(recorder) == [[], [], []]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 9)), max_size=40), st.integers(2, 5))
def test_totals_are_those_of_every_round_wherever_one_is_kept(steps, every):
    """Steps: time since the last one, node, bytes more."""
    thinned, whole = Recorder(every), Recorder()
    time_s, totals, rounds = 0.0, {}, {}
    for wait_s, node, more in steps:
        time_s += wait_s
        totals[node] = totals.get(node, 0) + more
        rounds[node] = rounds.get(node, 0) + 1
        for recorder in (thinned, whole):
            recorder.add(time_s, node, rounds[node], {"bytes_sent": totals[node]})
    thinned.keep_last()
    times, nodes, values = whole.sent()
    for at_s, _, total in zip(*thinned.sent(), strict=True):
        latest = dict(zip(nodes[times <= at_s].tolist(), values[times <= at_s].tolist(), strict=True))
        assert total == sum(latest.values())
    assert {row.time_s for row in thinned.rows()} == set(thinned.sent()[0].tolist())
