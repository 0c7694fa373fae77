"""Device traces as tables and as FedScale's pickle: what they mean, and one line for whatever is wrong with them."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import ConfigError
from node.sim.traces import fedscale
from node.sim.traces.device_table import SUFFIXES, read_devices, write_table

PHONES = {1: {"computation": 60.0, "communication": 12_000.0}, 2: {"computation": 20, "communication": 500}}


@pytest.fixture
def table(tmp_path):
    """Writes text or columns to a file and gives its path."""

    def write(content, name="devices.csv"):
        path = tmp_path / name
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        else:
            write_table(path, content)
        return str(path)

    return write


def refusal(path, read=read_devices) -> str:
    with pytest.raises(ConfigError) as refused:
        read(path)
    message = str(refused.value)
    assert message.startswith(f"devices.trace: {path}: ")
    assert "\n" not in message
    return message.removeprefix(f"devices.trace: {path}: ")


# Tables


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_holds_every_column(table, suffix):
    columns = {
        "node": [1, 0],
        "seconds_per_sample": [0.5, 0.1],
        "overhead_s": [0.0, 1e-3],
        "memory_bytes": [2**31, 2**33],
        "up_bps": [1e6, 2e6],
        "down_bps": [3e6, 4e6],
        "flops_per_sample": [34_048.0, 1e9],
    }
    trace = read_devices(table(columns, f"devices{suffix}"))
    assert trace.numbered
    assert len(trace) == 2
    for name, values in columns.items():
        if name != "node":
            assert getattr(trace, name).tolist() == [values[1], values[0]], name


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(seconds=st.lists(st.floats(1e-300, 1e300), min_size=1, max_size=5))
def test_numbers_come_back_as_they_were_written(tmp_path_factory, suffix, seconds):
    path = tmp_path_factory.mktemp("written") / f"devices{suffix}"
    write_table(path, {"seconds_per_sample": seconds})
    trace = read_devices(str(path))
    assert trace.seconds_per_sample.tolist() == seconds
    assert not trace.numbered
    assert trace.overhead_s is trace.memory_bytes is trace.up_bps is trace.down_bps is trace.flops_per_sample is None


def test_speeds_may_be_given_instead(table):
    assert read_devices(table("samples_per_s\n4\n0.5\n")).seconds_per_sample.tolist() == [0.25, 2.0]


def test_json_is_a_list_of_devices_or_an_object_of_columns(table):
    for content in ([{"samples_per_s": 4}, {"samples_per_s": 0.5}], {"samples_per_s": [4, 0.5]}):
        trace = read_devices(table(json.dumps(content), "devices.json"))
        assert trace.seconds_per_sample.tolist() == [0.25, 2.0]


def test_an_overhead_of_nothing_is_allowed(table):
    trace = read_devices(table("seconds_per_sample,overhead_s\n1,0\n"))
    assert trace.overhead_s is not None
    assert trace.overhead_s.tolist() == [0.0]


WRONG = {
    "a negative speed": ("seconds_per_sample\n1\n-2\n", ["row 2: seconds_per_sample is -2", "finite numbers above 0"]),
    "a speed of zero": ("samples_per_s\n1\n1\n0\n", ["row 3: samples_per_s is 0"]),
    "an infinite speed": ("seconds_per_sample\ninf\n", ["row 1: seconds_per_sample is inf"]),
    "a speed that is no number": ("seconds_per_sample\n1\nnan\n", ["row 2: seconds_per_sample is missing"]),
    "an empty cell": ("node,seconds_per_sample\n0,1\n1,\n", ["row 2: seconds_per_sample is missing"]),
    "a word": ("seconds_per_sample\n1\nfast\n", ["row 2: seconds_per_sample is 'fast', not a number"]),
    "a truth": ("seconds_per_sample\ntrue\n", ["row 1: seconds_per_sample is True, not a number"]),
    "no memory": ("seconds_per_sample,memory_bytes\n1,0\n", ["row 1: memory_bytes is 0"]),
    "a negative overhead": ("seconds_per_sample,overhead_s\n1,-1\n", ["row 1: overhead_s is -1", "from 0 on"]),
    "no link": ("seconds_per_sample,up_bps\n1,0\n", ["row 1: up_bps is 0"]),
    "both speeds": ("seconds_per_sample,samples_per_s\n1,1\n", ["both seconds_per_sample and samples_per_s"]),
    "neither speed": ("node,up_bps\n0,1\n", ["no column 'seconds_per_sample'", "node, up_bps"]),
    "a misspelt column": ("second_per_sample\n1\n", ["'second_per_sample' (did you mean 'seconds_per_sample'?)"]),
    "a unit that is missing": ("seconds_per_sample,up\n1,1\n", ["column 'up'", "allowed: node, seconds_per_sample"]),
    "a column twice": ("up_bps,up_bps,seconds_per_sample\n1,1,1\n", ["'up_bps' is there twice"]),
    "a gap": ("node,seconds_per_sample\n0,1\n2,1\n", ["row for node 2 (row 2) but none for node 1"]),
    "nodes from 1": ("node,seconds_per_sample\n1,1\n2,1\n", ["row for node 1 (row 1) but none for node 0"]),
    "a node twice": ("node,seconds_per_sample\n1,1\n0,1\n1,1\n", ["rows 1 and 3 are both for node 1"]),
    "a negative node": ("node,seconds_per_sample\n0,1\n-1,1\n", ["row 2: node is -1", "whole numbers from 0 on"]),
    "half a node": ("node,seconds_per_sample\n0,1\n0.5,1\n", ["row 2: node is 0.5"]),
    "a node with a name": ("node,seconds_per_sample\nfirst,1\n", ["row 1: node is 'first', not a number"]),
    "a node that is too large": ("node,seconds_per_sample\n1e300,1\n", ["row 1: node is 1e+300"]),
    "a node that is infinite": ("node,seconds_per_sample\ninf,1\n", ["row 1: node is inf"]),
    "no rows": ("node,seconds_per_sample\n", ["has no rows"]),
    "an empty file": ("", ["not a readable .csv file"]),
    "a ragged table": ("node,seconds_per_sample\n0,1\n1\n", ["not a readable .csv file"]),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_table_is_one_clear_line(table, what):
    content, parts = WRONG[what]
    message = refusal(table(content))
    for part in parts:
        assert part in message


WRONG_JSON = {
    "no JSON": ("{", "Expecting"),
    "no table": ("3", "neither a list of objects nor an object of lists"),
    "a list of numbers": ("[1, 2]", "neither a list of objects"),
    "columns that are none": ('{"seconds_per_sample": 3}', "neither a list of objects"),
    "columns of two lengths": ('{"seconds_per_sample": [3], "up_bps": [1, 2]}', "not a readable .json table"),
    "a word": ('[{"seconds_per_sample": 1}, {"seconds_per_sample": "2"}]', "row 2: seconds_per_sample is '2', not a"),
    "a nested value": ('[{"seconds_per_sample": [1]}]', "row 1: seconds_per_sample is [1], not a number"),
    "a cell that is missing": (
        '[{"seconds_per_sample": 1, "up_bps": 1}, {"seconds_per_sample": 1}]',
        "row 2: up_bps is missing",
    ),
    "no number": ('[{"seconds_per_sample": NaN}]', "row 1: seconds_per_sample"),
    "an infinite number": ('[{"seconds_per_sample": Infinity}]', "row 1: seconds_per_sample is inf"),
    "a number beyond all bounds": (f'[{{"seconds_per_sample": 1{"0" * 400}}}]', "not a readable .json table"),
    "no rows": ("[]", "has no rows"),
    "no bottom": ("[" * 100_000, "not a readable .json table"),
}


@pytest.mark.parametrize("what", WRONG_JSON)
def test_wrong_json_is_one_clear_line(table, what):
    content, part = WRONG_JSON[what]
    assert part in refusal(table(content, "devices.json"))


def test_parquet_that_is_none_or_holds_no_numbers(table, tmp_path):
    assert "not a readable .parquet file" in refusal(table("PAR1", "devices.parquet"))
    path = tmp_path / "lists.parquet"
    pyarrow.parquet.write_table(pa.table({"seconds_per_sample": [[1.0]]}), path)
    assert "row 1: seconds_per_sample is [1.0], not a number" in refusal(str(path))


def test_a_file_that_is_not_there(tmp_path):
    for name in ("none.csv", "none.json", "none.parquet"):
        assert refusal(str(tmp_path / name)) == "there is no such file"


# FedScale's devices


@pytest.fixture
def phones(tmp_path):
    """Writes a pickle and gives its path."""

    def write(value):
        path = tmp_path / "client_device_capacity"
        path.write_bytes(pickle.dumps(value))
        return str(path)

    return write


def test_milliseconds_are_of_inference_for_a_sample_or_a_step(phones):
    path = phones(PHONES)
    by_sample = fedscale.read_devices(path, "sample", 8)
    by_step = fedscale.read_devices(path, "step", 8)
    assert by_sample.seconds_per_sample.tolist() == pytest.approx([0.18, 0.06])
    assert by_step.seconds_per_sample.tolist() == pytest.approx([0.18 / 8, 0.06 / 8])


def test_one_rate_serves_both_directions_in_decimal_kilobits(phones):
    trace = fedscale.read_devices(phones(PHONES), "sample", 8)
    assert trace.up_bps.tolist() == trace.down_bps.tolist() == [12e6, 0.5e6]
    assert not trace.numbered
    assert trace.memory_bytes is trace.flops_per_sample is None


def test_clients_come_in_the_order_of_their_ids(phones):
    shuffled = {7: PHONES[1], 3: PHONES[2]}
    assert fedscale.read_devices(phones(shuffled), "sample", 8).up_bps.tolist() == [0.5e6, 12e6]


def phone(**keys):
    return {1: PHONES[1], 2: {**PHONES[2], **keys}}


WRONG_PHONES = {
    "a negative speed": (phone(computation=-3), "client 2: computation is -3; allowed: a finite number above 0"),
    "no speed": (phone(computation=0.0), "client 2: computation is 0.0"),
    "a speed that is no number": (phone(computation=math.nan), "client 2: computation is nan"),
    "an infinite rate": (phone(communication=math.inf), "client 2: communication is inf"),
    "a rate in words": (phone(communication="fast"), "client 2: communication is 'fast'"),
    "a truth": (phone(communication=True), "client 2: communication is True"),
    "a list": (phone(communication=[1] * 10**5), "client 2: communication is a list"),
    "a column that is missing": ({5: {"computation": 1}}, "client 5: has no 'communication'; it has: 'computation'"),
    "a client without anything": ({5: {}}, "client 5: has no 'computation'; it has: nothing"),
    "a client that is no dict": ({5: 60}, "client 5: holds 60; allowed: a dict"),
    "a name for an id": ({"a": PHONES[1]}, "client 'a': allowed: ids that are whole numbers"),
    "a truth for an id": ({True: PHONES[1]}, "client True: allowed: ids"),
    "a list of clients": ([PHONES[1]], "holds a list; allowed: a dict of clients by id"),
    "no clients": ({}, "holds a dict; allowed: a dict of clients by id"),
    "something that calls": ({1: np.float64(3)}, "is not plain data"),
}


@pytest.mark.parametrize("what", WRONG_PHONES)
def test_a_wrong_pickle_is_one_clear_line(phones, what):
    value, part = WRONG_PHONES[what]
    assert part in refusal(phones(value), lambda path: fedscale.read_devices(path, "sample", 8))


def test_a_truncated_pickle_is_one_clear_line(phones):
    path = phones(PHONES)
    Path(path).write_bytes(Path(path).read_bytes()[:-5])
    assert "not a readable pickle" in refusal(path, lambda path: fedscale.read_devices(path, "sample", 8))


# Drawn phones


def test_drawn_phones_are_shaped_like_phones_on_wi_fi():
    drawn = fedscale.phones(20_000, 5)
    inference_ms = drawn.seconds_per_sample / 3 * 1000
    assert np.quantile(inference_ms, [0.05, 0.5, 0.95]) == pytest.approx([16, 60, 224], rel=0.05)
    assert inference_ms.mean() == pytest.approx(82.6, rel=0.05)
    assert np.median(drawn.down_bps) == pytest.approx(12e6, rel=0.05)
    assert np.log(drawn.down_bps).std() == pytest.approx(0.9, rel=0.05)
    fast = -np.log(drawn.seconds_per_sample)
    assert np.corrcoef(fast, np.log(drawn.down_bps))[0, 1] == pytest.approx(0.3, abs=0.03)
    assert sorted(set((drawn.memory_bytes / 2**30).tolist())) == [2, 3, 4, 6, 8, 12]
    assert drawn.numbered


@given(st.integers(1, 300), st.integers(0, 2**63 - 1))
def test_drawn_phones_keep_within_bounds(nodes, seed):
    drawn = fedscale.phones(nodes, seed)
    assert len(drawn) == nodes
    assert drawn.seconds_per_sample.min() >= 3 * 0.005
    assert drawn.seconds_per_sample.max() <= 3 * 5
    assert drawn.down_bps.min() >= 500e3
    assert drawn.down_bps.max() <= 300e6
    share = drawn.up_bps / drawn.down_bps
    assert share.min() >= 0.3 - 1e-12
    assert share.max() <= 0.5 + 1e-12


def test_more_phones_do_not_change_the_first_ones():
    few, many = fedscale.phones(5, 9), fedscale.phones(500, 9)
    for name in ("seconds_per_sample", "memory_bytes", "up_bps", "down_bps"):
        assert getattr(few, name).tolist() == getattr(many, name)[:5].tolist()
    assert few.up_bps.tolist() != fedscale.phones(5, 10).up_bps.tolist()
