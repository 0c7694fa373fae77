"""Calibration: the line through two batch sizes, the trace that is written, and what a simulation makes of it."""

from __future__ import annotations

import errno
import os
import signal
import sys
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.cli.main import main
from node.config import DevicesSection, ExperimentConfig
from node.errors import ComputeError, ConfigError
from node.experiment import calibrate as calibration
from node.experiment.calibrate import Calibration, batch_sizes, calibrate, fit, measure_and_write, write_trace
from node.experiment.setup import Setup, prepare
from node.learn.cost import training_flops
from node.op import Op
from node.sim.devices import build
from node.sim.draws import per_node
from node.sim.traces.device_table import SUFFIXES, read_devices

SMALL = {
    "name": "small",
    "nodes": 3,
    "topology": {"kind": "full"},
    "model": {"name": "softmax"},
    "training": {"batch_size": 6, "local_steps": 2},
    "network": {"up_bps": {"distribution": "lognormal", "median": 1e6, "sigma": 0.5}, "down_bps": 2e6},
}
FOUND = Calibration(seconds_per_sample=3e-5, overhead_s=2e-4, flops_per_sample=2560.0, spread=0.1)


@pytest.fixture(scope="module")
def setup() -> Setup:
    return prepare(ExperimentConfig.model_validate(SMALL))


def refusal(setup, out, processes=1) -> str:
    with pytest.raises(ConfigError) as refused:
        measure_and_write(setup, out, processes)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# The line


@given(st.integers(1, 512), st.floats(1e-7, 1.0), st.floats(0, 1.0))
def test_a_line_is_found_again(batch_size, seconds_per_sample, overhead_s):
    step_s = {size: overhead_s + size * seconds_per_sample for size in batch_sizes(batch_size)}
    slope, intercept = fit(batch_size, step_s)
    if seconds_per_sample * batch_size > 0.02 * step_s[batch_size]:
        assert slope == pytest.approx(seconds_per_sample, rel=1e-6)
        assert intercept == pytest.approx(overhead_s, rel=1e-6, abs=1e-9 * step_s[batch_size])
    assert slope * batch_size + intercept == pytest.approx(step_s[batch_size], rel=1e-12)


@given(st.integers(1, 512), st.floats(1e-6, 1.0), st.floats(1e-6, 1.0))
def test_whatever_was_measured_the_experiments_own_step_is_kept(batch_size, small_s, large_s):
    sizes = batch_sizes(batch_size)
    step_s = dict(zip(sizes, (small_s, large_s), strict=True))
    slope, intercept = fit(batch_size, step_s)
    assert slope > 0
    assert intercept >= -1e-12 * step_s[batch_size]
    assert slope * batch_size + intercept == pytest.approx(step_s[batch_size], rel=1e-9)


@given(st.integers(1, 10_000))
def test_two_sizes_of_which_one_is_the_experiments(batch_size):
    small, large = batch_sizes(batch_size)
    assert 1 <= small < large
    assert batch_size in (small, large)


# The trace


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_simulation_of_the_trace_takes_what_was_measured(setup, tmp_path, suffix):
    out = tmp_path / f"devices{suffix}"
    write_trace(FOUND, setup, out)
    devices = build(DevicesSection(trace=str(out)), 3, 0, FOUND.flops_per_sample, None, 6)
    for node in range(3):
        assert devices.train_s(node, 10 * 6, 10, 0) == pytest.approx(10 * (6 * 3e-5 + 2e-4), rel=1e-12)
    assert devices.up_bps == per_node(setup.config.network.up_bps, 3, setup.config.seed, "up_bps")
    assert devices.down_bps == [2e6] * 3


def test_a_model_of_twice_the_flops_takes_twice_as_long_but_for_the_overhead(setup, tmp_path):
    write_trace(FOUND, setup, tmp_path / "devices.csv")
    devices = build(DevicesSection(trace=str(tmp_path / "devices.csv")), 3, 0, 2 * FOUND.flops_per_sample, None, 6)
    assert devices.train_s(0, 6, 1, 0) == pytest.approx(2 * 6 * 3e-5 + 2e-4, rel=1e-12)


# Measuring


@pytest.mark.parametrize(("processes", "kind"), [(1, "inline"), (2, "batched"), (1, "dask")])
def test_measuring_on_this_machine(processes, kind):
    """A kernel is named, so that none has to be chosen by a trial."""
    setup = prepare(ExperimentConfig.model_validate({**SMALL, "executor": {"kind": kind, "kernel": "loop"}}))
    found = calibrate(setup, processes, block_s=0.001)
    assert found.seconds_per_sample > 0
    assert found.overhead_s >= 0
    assert found.flops_per_sample == training_flops(setup.model, (1, 8, 8))
    assert found.spread >= 0


def test_what_a_step_takes_is_what_its_blocks_say(setup, monkeypatch):
    """By a clock that a step on b samples moves on by 5 + b seconds."""
    now = [0.0]

    def stub(setup, train, batch_size):
        def solve(task):
            now[0] += task.static["steps"] * (5.0 + batch_size)
            return task.inputs[0]

        return SimpleNamespace(train=Op("stub:train", solve))

    monkeypatch.setattr(calibration, "_workload", stub)
    monkeypatch.setattr(calibration.time, "perf_counter", lambda: now[0])
    found = calibrate(setup, 1, block_s=50.0)
    assert found.seconds_per_sample == pytest.approx(1.0)
    assert found.overhead_s == pytest.approx(5.0)
    assert found.spread == pytest.approx(0.0)


def test_a_process_that_is_killed_ends_the_measurement(setup, monkeypatch):
    monkeypatch.setattr(calibration, "_measure", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(ComputeError, match="a process was killed"):
        calibrate(setup, 2)


def test_more_processes_than_the_machine_starts(setup, monkeypatch):
    monkeypatch.setattr(calibration, "_measure", lambda *_: pytest.fail("measured"))
    before = set(active_children())
    fork, forks = os.fork, iter(range(3))

    def limited():
        if next(forks) == 2:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return fork()

    monkeypatch.setattr(os, "fork", limited)
    with pytest.raises(ConfigError, match="--processes 5: this machine starts fewer: Resource temporarily"):
        calibrate(setup, 5)
    for child in set(active_children()) - before:
        child.join(10)
    assert set(active_children()) == before


def test_an_error_of_the_training_comes_through(setup, monkeypatch):
    def broken(*_):
        raise ComputeError("no such thing")

    monkeypatch.setattr(calibration, "_measure", broken)
    with pytest.raises(ComputeError, match="no such thing"):
        calibrate(setup, 2)


# The command


def test_files_that_cannot_be_written_are_refused_before_measuring(setup, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "calibrate", lambda *_: pytest.fail("measured"))
    assert "allowed: .csv, .parquet, .json" in refusal(setup, tmp_path / "devices.txt")
    assert "there is no folder" in refusal(setup, tmp_path / "none" / "devices.csv")


@pytest.fixture
def starling(tmp_path, monkeypatch, capfd):
    """Runs a command in an empty folder, with what was found in place of a measurement."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(calibration, "calibrate", lambda setup, processes: FOUND)

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(["calibrate", *arguments])
        out, err = capfd.readouterr()
        return ended.value.code or 0, out, err

    return run


def test_the_command_writes_a_trace_and_says_so_in_a_line(starling):
    code, out, err = starling("digits-gossip", "--set", "nodes=5", "--out", "mine.csv", "--processes", "3")
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    for part in ("digits-gossip: 30 us a sample", "200 us a step", "3 at once", "--set devices.trace=mine.csv"):
        assert part in out
    trace = read_devices("mine.csv")
    assert len(trace) == 5
    assert trace.numbered


def test_the_command_has_a_file_by_default(starling):
    assert starling("digits-gossip", "--set", "nodes=5")[0] == 0
    assert Path("devices.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["nothing.toml"], "nothing.toml: cannot be read"),
        (["digits-gossip", "--set", "nodes=none"], "nodes"),
        (["digits-gossip", "--processes", "0"], "processes"),
        (["digits-gossip", "--out", "devices"], "the name tells the format"),
    ],
)
def test_wrong_input_is_one_line(starling, arguments, part):
    code, out, err = starling(*arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert part in err
