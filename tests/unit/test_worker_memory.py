"""What a run's processes have taken: this one's peak, and what its workers have to themselves."""

import subprocess
import sys

import psutil
import pytest

from node.config import ExperimentConfig
from node.experiment import virtual
from node.experiment.setup import prepare
from node.experiment.sweep import Point, at_once
from node.experiment.virtual import WorkerMemory, peak_rss_bytes, run_virtual

MB = 2**20
HOLDER = "import sys\nheld = bytearray(b'x') * int(sys.argv[1])\nprint('ready', flush=True)\nsys.stdin.read()"


class Holder:
    """A process that holds so many bytes until it is left."""

    def __init__(self, size_bytes):
        command = [sys.executable, "-c", HOLDER, str(size_bytes)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self):
        assert self.process.stdout.readline().strip() == b"ready"

    def __exit__(self, *_):
        self.process.communicate()


def config(kind):
    return ExperimentConfig.model_validate(
        {
            "name": "memory",
            "nodes": 4,
            "topology": {"kind": "full"},
            "model": {"name": "softmax"},
            "executor": {"kind": kind, **({"workers": 2} if kind == "processes" else {})},
            "protocol": {"use": "dpsgd", "rounds": 2},
        }
    )


def test_the_peak_is_the_most_that_all_workers_had_at_one_time():
    memory = WorkerMemory(has_workers=True)
    with Holder(40 * MB), Holder(20 * MB):
        memory.look()
    together_bytes = memory.peak_bytes
    assert 60 * MB < together_bytes < 120 * MB
    with Holder(10 * MB):
        memory.look()
    memory.look()
    assert memory.peak_bytes == together_bytes


def test_a_run_without_workers_looks_at_none(monkeypatch):
    monkeypatch.setattr(psutil, "Process", lambda: pytest.fail("looked"))
    memory = WorkerMemory(has_workers=False)
    memory.look()
    assert memory.peak_bytes == 0


def test_a_worker_that_has_just_ended_counts_nothing(monkeypatch):
    class Gone:
        def memory_full_info(self):
            raise psutil.NoSuchProcess(1)

    class Here:
        def children(self, recursive):
            return [Gone()]

    monkeypatch.setattr(psutil, "Process", Here)
    memory = WorkerMemory(has_workers=True)
    memory.look()
    assert memory.peak_bytes == 0


@pytest.mark.parametrize(("kind", "has_workers"), [("inline", False), ("batched", False), ("processes", True)])
def test_a_run_counts_the_workers_of_its_executor(monkeypatch, kind, has_workers):
    seen = []

    class Watched(WorkerMemory):
        def look(self):
            super().look()
            seen.append(self.peak_bytes)

    monkeypatch.setattr(virtual, "WorkerMemory", Watched)
    result = run_virtual(prepare(config(kind)), lambda *_: None)
    result.close()
    assert result.status == "finished", result.error
    assert (seen[-1] > 0) is has_workers
    assert seen[-1] <= result.peak_rss_bytes <= peak_rss_bytes() + seen[-1]
    assert result.peak_rss_bytes > psutil.Process().memory_info().rss // 2


def test_a_sweep_runs_fewer_side_by_side_the_more_its_workers_take(monkeypatch):
    monkeypatch.setattr(psutil, "cpu_count", lambda: 64)
    point = Point("one", {}, config("processes"))
    free_bytes = psutil.virtual_memory().available
    assert at_once([point], free_bytes // 4) < at_once([point], free_bytes // 16)
