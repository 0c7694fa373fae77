"""How long simulated devices compute: the formula, whose seconds they are, and which row a node gets."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.config import DevicesSection, Distribution, NetworkSection
from node.errors import ConfigError
from node.sim.devices import Devices, build, check_memory
from node.sim.draws import per_node
from node.sim.traces.device_table import write_table

MLP_FLOPS = 34_048.0


def make(nodes=4, flops=MLP_FLOPS, reference_flops=MLP_FLOPS, batch_size=8, seed=3, **keys) -> Devices:
    return build(DevicesSection(**keys), nodes, seed, flops, reference_flops, batch_size)


def seconds(devices: Devices, nodes: int) -> list[float]:
    """Of one sample, by node."""
    return [devices.train_s(node, 1, 0, 0) for node in range(nodes)]


def refusal(**arguments) -> str:
    with pytest.raises(ConfigError) as refused:
        make(**arguments)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.fixture
def trace(tmp_path):
    """Writes a table and gives its path."""

    def write(name="devices.csv", **columns):
        write_table(tmp_path / name, columns)
        return str(tmp_path / name)

    return write


@pytest.fixture
def phones(tmp_path):
    """A FedScale file of so many clients; the n-th one takes n seconds to train on a sample."""

    def write(count, kbps=12_000):
        clients = {n: {"computation": n * 1000 / 3, "communication": kbps} for n in range(1, count + 1)}
        path = tmp_path / "capacity.pkl"
        path.write_bytes(pickle.dumps(clients))
        return str(path)

    return write


# The formula


def test_training_takes_its_samples_and_its_steps():
    devices = make(seconds_per_sample=0.5, overhead_s=2.0)
    assert devices.train_s(1, 10, 3, 0) == 10 * 0.5 + 3 * 2.0
    assert devices.train_s(1, 0, 0, 0) == 0.0


def test_a_costlier_model_takes_longer_by_its_flops_but_its_overhead_stays():
    devices = make(seconds_per_sample=0.5, overhead_s=2.0, flops=3 * MLP_FLOPS)
    assert devices.train_s(1, 10, 3, 0) == pytest.approx(3 * 10 * 0.5 + 3 * 2.0, rel=1e-12)


def test_a_distribution_gives_each_node_its_own_speed():
    quantity = Distribution(distribution="lognormal", median=0.01, sigma=0.7)
    devices = make(nodes=50, seconds_per_sample=quantity, flops=2 * MLP_FLOPS)
    drawn = per_node(quantity, 50, 3, "seconds_per_sample")
    assert seconds(devices, 50) == pytest.approx([2 * speed for speed in drawn], rel=1e-12)
    assert len(set(drawn)) == 50


def test_numbers_say_nothing_about_links_or_memory():
    devices = make()
    assert devices.up_bps is devices.down_bps is devices.memory_bytes is None


def test_evaluation_takes_a_third_where_it_takes_time():
    assert make(seconds_per_sample=0.5).evaluate_s(0, 12) == 0.0
    assert make(seconds_per_sample=0.5, evaluate_time=True, overhead_s=9).evaluate_s(0, 12) == pytest.approx(2.0)


# Jitter


@given(st.integers(0, 2**63 - 1), st.floats(0.01, 100), st.integers(0, 3), st.integers(0, 10**6))
def test_jitter_is_the_same_again_and_leaves_time_positive(seed, sigma, node, counter):
    devices = make(jitter=sigma, seed=seed)
    taken = devices.train_s(node, 10, 1, counter)
    assert 0 <= taken < math.inf
    assert taken == make(jitter=sigma, seed=seed).train_s(node, 10, 1, counter)


def test_jitter_is_lognormal_with_mean_1_and_differs_by_training_node_and_seed():
    devices = make(nodes=100, jitter=0.4, seconds_per_sample=0.1)
    factors = np.array([[devices.train_s(node, 10, 0, counter) for counter in range(100)] for node in range(100)])
    assert factors.mean() == pytest.approx(1.0, rel=0.02)
    assert np.log(factors).std() == pytest.approx(0.4, rel=0.03)
    assert len(np.unique(factors)) == factors.size
    assert make(jitter=0.4, seed=4).train_s(0, 10, 0, 0) != make(jitter=0.4, seed=5).train_s(0, 10, 0, 0)


def test_no_jitter_is_no_factor():
    assert make(jitter=0.0, seconds_per_sample=0.3).train_s(0, 7, 0, 5) == 7 * 0.3


# Whose seconds they are


def test_a_named_number_of_flops_comes_first(trace):
    path = trace(seconds_per_sample=[1.0], flops_per_sample=[10.0])
    section = DevicesSection(trace=path, reference_flops=20.0)
    assert seconds(build(section, 1, 0, 100.0, 50.0, 8), 1) == [5.0]


def test_then_the_named_model_then_the_trace_itself(trace):
    path = trace(seconds_per_sample=[1.0, 2.0], node=[0, 1], flops_per_sample=[10.0, 50.0])
    assert seconds(make(nodes=2, flops=100.0, reference_flops=50.0, trace=path), 2) == [2.0, 4.0]
    assert seconds(make(nodes=2, flops=100.0, reference_flops=None, trace=path), 2) == [10.0, 4.0]


def test_seconds_of_an_unknown_model_are_refused(trace, phones):
    for path in (trace(seconds_per_sample=[1.0]), phones(3), "phones"):
        assert refusal(nodes=1, reference_flops=None, trace=path).startswith("devices.reference_model: devices.trace: ")
    assert refusal(reference_flops=None).startswith("devices.reference_model: ")


# FedScale


def test_the_worked_example(tmp_path):
    """60 ms and 12,000 kbit/s: 8 samples, 5 steps, 346,000 bytes."""
    path = tmp_path / "capacity.pkl"
    path.write_bytes(pickle.dumps({1: {"computation": 60, "communication": 12_000}}))
    by_sample = make(nodes=1, trace=str(path), seconds_unit="sample")
    by_step = make(nodes=1, trace=str(path), seconds_unit="step")
    assert by_sample.train_s(0, 8 * 5, 5, 0) == pytest.approx(7.2)
    assert by_step.train_s(0, 8 * 5, 5, 0) == pytest.approx(0.9)
    assert by_sample.up_bps == by_sample.down_bps == [12e6]
    assert 346_000 * 8 / by_sample.up_bps[0] == pytest.approx(0.230667, abs=1e-6)


def test_clients_are_drawn_without_replacement_where_there_are_enough(phones):
    path = phones(40)
    drawn = seconds(make(nodes=40, trace=path), 40)
    assert sorted(round(s) for s in drawn) == list(range(1, 41))
    assert drawn != sorted(drawn)
    assert drawn == seconds(make(nodes=40, trace=path), 40)
    assert drawn != seconds(make(nodes=40, trace=path, seed=4), 40)
    assert drawn[:10] == seconds(make(nodes=10, trace=path), 10)


def test_fewer_clients_than_nodes_are_drawn_again(phones):
    drawn = seconds(make(nodes=100, trace=phones(3)), 100)
    assert {round(s) for s in drawn} == {1, 2, 3}


def test_clients_are_no_nodes(phones):
    message = refusal(nodes=2, trace=phones(3), assign="node")
    assert message.startswith("devices.assign: ")
    assert 'allowed: "auto", "draw"' in message


# Rows and nodes


def test_numbered_rows_go_to_their_nodes(trace):
    path = trace(node=[2, 0, 1], seconds_per_sample=[3.0, 1.0, 2.0], up_bps=[30.0, 10.0, 20.0])
    for assign in ("auto", "node"):
        devices = make(nodes=2, trace=path, assign=assign)
        assert seconds(devices, 2) == [1.0, 2.0]
        assert devices.up_bps == [10.0, 20.0]
        assert devices.down_bps is None


def test_all_of_a_row_goes_together(trace):
    rows = np.arange(1.0, 51.0)
    path = trace("devices.parquet", seconds_per_sample=rows, overhead_s=rows, memory_bytes=rows, down_bps=rows)
    devices = make(nodes=20, trace=path)
    drawn = seconds(devices, 20)
    assert drawn == list(devices.memory_bytes) == list(devices.down_bps)
    assert drawn == [devices.train_s(node, 0, 1, 0) for node in range(20)]
    assert len(set(drawn)) == 20


def test_numbered_rows_are_drawn_where_asked_for_or_too_few(trace):
    path = trace(node=range(30), seconds_per_sample=np.arange(1.0, 31.0))
    drawn = seconds(make(nodes=30, trace=path, assign="draw"), 30)
    assert sorted(drawn) == list(range(1, 31)) != drawn
    assert set(seconds(make(nodes=90, trace=path), 90)) <= set(range(1, 31))


def test_too_few_rows_for_the_nodes(trace):
    path = trace(node=[0, 1], seconds_per_sample=[1.0, 2.0])
    message = refusal(nodes=3, trace=path, assign="node")
    assert message.startswith("devices.assign: ")
    assert "has 2 rows for 3 nodes" in message


def test_rows_without_numbers_are_not_assigned_by_number(trace):
    assert "does not number its rows" in refusal(nodes=1, trace=trace(seconds_per_sample=[1.0]), assign="node")


def test_drawn_phones_are_one_for_each_node():
    devices = make(nodes=30, trace="phones")
    assert seconds(devices, 5) == seconds(make(nodes=5, trace="phones"), 5)
    assert len(devices.up_bps) == len(devices.down_bps) == len(devices.memory_bytes) == 30
    assert all(up < down for up, down in zip(devices.up_bps, devices.down_bps, strict=True))


# Memory


def test_devices_that_are_too_small_are_counted_and_the_first_is_named(trace):
    path = trace(node=range(4), seconds_per_sample=[1.0] * 4, memory_bytes=[4000, 1000, 4000, 2000])
    devices = make(trace=path)
    check_memory(devices, 1000)
    with pytest.raises(ConfigError, match=r"node 1 has 1000 bytes of memory.*takes 2500.*2 of 4 nodes") as refused:
        check_memory(devices, 2500.0)
    assert "\n" not in str(refused.value)


def test_memory_that_nobody_told_is_enough():
    check_memory(make(), 1e30)


# The keys


@pytest.mark.parametrize(
    "keys", [{"seconds_per_sample": 0}, {"overhead_s": -1}, {"jitter": math.nan}, {"assign": "row"}, {"cores": -1}]
)
def test_impossible_keys(keys):
    with pytest.raises(ValueError):
        DevicesSection(**keys)


def test_a_trace_of_rates_is_as_fast_as_the_same_keys(trace):
    """What a trace tells replaces the network's keys: both are bits per second."""
    section = NetworkSection(up_bps=5e6)
    devices = make(nodes=1, trace=trace(node=[0], seconds_per_sample=[1.0], up_bps=[5e6]))
    assert devices.up_bps == per_node(section.up_bps, 1, 0, "up_bps")
