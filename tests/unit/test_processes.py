"""Forked workers: the same bits as solving here, whatever they can be told, and nothing left behind."""

import os
import signal

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from node.config import ExperimentConfig
from node.errors import ComputeError, ConfigError, ProtocolError
from node.experiment.setup import prepare
from node.graph import Graph
from node.learn import processes, workers
from node.learn.processes import ProcessExecutor
from node.op import Key, Op, Spec, Task, op
from node.solver import InlineExecutor, Solver
from node.testing import run_protocol

PARENT = os.getpid()
METRICS = Spec((1,), "float64", ("pid",))


@op(spec=lambda inputs, static: METRICS)
def where(*inputs):
    return {"pid": os.getpid()}


@op(seeded=True)
def noisy(a, *, rng, by=1.0):
    return a + by * torch.from_numpy(rng.normal(size=a.shape)).to(a.dtype)


@op
def product(a, b):
    return a.view(8, 8) @ b.view(8, 8)


@op
def second_half(a):
    return a[len(a) // 2 :]


@op
def transposed(a):
    return a.view(8, 8).t()


@op
def as_array(a):
    return a.numpy() + 1


@op(spec=lambda inputs, static: Spec((3,), "float64", ("shift", "total", "words")))
def look(a, *, words, nested=()):
    assert isinstance(nested, tuple)
    assert all(isinstance(part, tuple) for part in nested)
    return {"shift": a.data_ptr() % 64, "total": float(a.sum()), "words": len(words) + len(nested)}


@op
def fragile(a, *, bad):
    if a[0] >= bad:
        raise ValueError(f"{int(a[0])} is too much")
    return a + 1


@op
def refused(a):
    raise ProtocolError("never")


@op(spec=lambda inputs, static: inputs[0])
def deadly(a, *, bad):
    if int(a[0]) in bad and os.getpid() != PARENT:
        os.kill(os.getpid(), signal.SIGKILL)
    return a * 2


@op
def larger_than_said(a):
    return torch.cat([a] * 100)


def tasks(count, *, size=64, seed=3, **static):
    generator = torch.Generator().manual_seed(seed)
    return [Task((torch.randn(size, generator=generator),), static, Key(seed, i, 0)) for i in range(count)]


def counting(count, **static):
    return [Task((torch.full((64,), float(i)),), static, Key(3, i, 0)) for i in range(count)]


def same(left, right):
    return all(
        type(a) is type(b) and torch.equal(torch.as_tensor(a), torch.as_tensor(b))
        for a, b in zip(left, right, strict=True)
    )


@pytest.fixture(scope="module")
def shared():
    executor = ProcessExecutor(2)
    yield executor
    executor.close()


@pytest.fixture
def executor():
    executor = ProcessExecutor(2)
    yield executor
    executor.close()


def pids(executor):
    return {value["pid"] for value in executor.solve(where, [Task((), {}, Key(0, i, 0)) for i in range(64)])}


# Equal to solving here


def config(**tables):
    small = {
        "nodes": 6,
        "seed": 5,
        "protocol": {"use": "dpsgd", "rounds": 3},
        "topology": {"kind": "ring"},
        "data": {"name": "digits", "partition": "dirichlet", "alpha": 0.5},
        "model": {"name": "mlp", "hidden": [12]},
        "training": {"momentum": 0.9, "local_steps": 3, "lr": 0.1, "batch_size": 8},
    }
    return ExperimentConfig.model_validate(small | tables)


def run(setup, executor, window_tasks=24):
    config = setup.config
    return run_protocol(
        setup.make_protocol(),
        config.nodes,
        workload=setup.workload,
        topology=config.topology,
        seed=config.seed,
        executor=executor,
        window_tasks=window_tasks,
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_run_is_bitwise_the_same_with_any_number_of_workers(optimizer):
    """Momentum and local steps: no state of a model may live in a worker."""
    setup = prepare(config(training={"optimizer": optimizer, "momentum": 0.9 * (optimizer == "sgd"), "local_steps": 3}))
    work = setup.workload
    expected = run(setup, InlineExecutor())
    for count in (1, 2, 3):
        executor = ProcessExecutor(count, (work.init, work.train, work.evaluate, work.mix))
        try:
            outcome = run(setup, executor, window_tasks=11 * count)
            assert executor._pool is not None
        finally:
            executor.close()
        assert outcome.event_hash == expected.event_hash
        assert list(outcome.recorder.rows()) == list(expected.recorder.rows())
        assert all(torch.equal(outcome.models[node], expected.models[node]) for node in range(6))


@settings(max_examples=25)
@given(st.integers(0, 40), st.integers(0, 2**32), st.floats(-2, 2), st.sampled_from([1, 63, 64, 500]))
def test_any_batch_gives_the_same_bits(shared, count, seed, by, size):
    batch = tasks(count, size=size, seed=seed, by=by)
    assert same(shared.solve(noisy, batch), InlineExecutor().solve(noisy, batch))


def test_the_grouping_does_not_matter(shared):
    batch = tasks(30)
    whole = shared.solve(noisy, batch)
    for most in (4, 7, 29):
        parts = [shared.solve(noisy, batch[i : i + most]) for i in range(0, 30, most)]
        assert same([value for part in parts for value in part], whole)


def test_values_are_inputs_and_views_of_values_are_too(shared):
    first = shared.solve(noisy, tasks(8))
    halves = shared.solve(second_half, [Task((value,), {}, Key(0, 0, 0)) for value in first])
    assert same(halves, [value[32:] for value in first])
    quarters = [value[16:] for value in halves]
    batch = [Task((value,), {"words": "x"}, Key(0, 0, 0)) for value in quarters]
    assert shared.solve(look, batch) == InlineExecutor().solve(look, batch)


def test_metrics_and_numbers_come_as_they_are(shared):
    batch = [Task((1.5, {"a": 2, "b": 0.1}), {}, Key(0, i, 0)) for i in range(9)]
    told = shared.solve(where, batch)
    assert all(type(value) is dict and type(value["pid"]) is int for value in told)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "int64", "bool", "complex64"])
def test_every_dtype_is_shared(shared, dtype):
    made = [torch.arange(16).to(getattr(torch, dtype)) for _ in range(5)]
    batch = [Task((tensor,), {}, Key(0, 0, 0)) for tensor in made]
    assert same(shared.solve(second_half, batch), [tensor[8:] for tensor in made])


def test_tensors_without_elements_and_without_dimensions(shared):
    for tensor in (torch.empty(0), torch.empty(3, 0), torch.tensor(2.5)):
        batch = [Task((tensor,), {"by": 0.0}, Key(0, i, 0)) for i in range(5)]
        values = shared.solve(noisy, batch)
        assert same(values, [tensor] * 5)
        assert values[0].shape == tensor.shape


@pytest.mark.parametrize("shift", [0, 1, 5, 15])
def test_inputs_keep_their_alignment(shared, shift):
    """Matrix products round by it."""
    batch = [Task((torch.ones(200)[shift:150],), {"words": "ab"}, Key(0, i, 0)) for i in range(6)]
    assert shared.solve(look, batch) == InlineExecutor().solve(look, batch)
    assert shared.solve(look, batch)[0]["shift"] == shift * 4


def test_static_arguments_come_as_they_are(shared):
    batch = tasks(6, words="αβ", nested=((1, (2.0, None)), ("x", True)))
    assert shared.solve(look, batch) == InlineExecutor().solve(look, batch)


# Where what is solved


def test_a_batch_is_spread_over_the_workers(executor):
    solved_by = pids(executor)
    assert PARENT not in solved_by
    assert solved_by <= {child.pid for child in psutil.Process().children()}


def test_the_workers_start_with_the_first_batch_that_is_worth_it():
    before = psutil.Process().children()
    executor = ProcessExecutor(2)
    assert {value["pid"] for value in executor.solve(where, [Task((), {}, Key(0, 0, 0))] * 3)} == {PARENT}
    assert psutil.Process().children() == before
    assert pids(executor) != {PARENT}
    executor.close()
    assert psutil.Process().children() == before


def test_an_op_that_only_this_process_knows_is_solved_here(executor):
    hidden = Op("learn:hidden", lambda task: {"pid": os.getpid()}, spec=lambda inputs, static: METRICS)
    batch = [Task((), {}, Key(0, i, 0)) for i in range(8)]
    assert {value["pid"] for value in executor.solve(hidden, batch)} == {PARENT}
    named = Op("test_processes:where", hidden.solve, spec=hidden.spec)
    assert {value["pid"] for value in executor.solve(named, batch)} == {PARENT}, "another op has that name"


def test_ops_that_are_given_need_no_name():
    hidden = Op("learn:hidden", lambda task: {"pid": os.getpid()}, spec=lambda inputs, static: METRICS)
    executor = ProcessExecutor(1, [hidden])
    [solved_by] = {value["pid"] for value in executor.solve(hidden, [Task((), {}, Key(0, i, 0)) for i in range(8)])}
    executor.close()
    assert solved_by != PARENT


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (transposed, lambda a: a.view(8, 8).t()),
        (as_array, lambda a: a.numpy() + 1),
        (larger_than_said, lambda a: torch.cat([a] * 100)),
    ],
)
def test_values_that_cannot_be_shared_are_made_here(executor, kind, expected):
    batch = tasks(6)
    values = executor.solve(kind, batch)
    wanted = [expected(task.inputs[0]) for task in batch]
    assert same(values, wanted)
    assert not isinstance(values[0], torch.Tensor) or values[0].stride() == wanted[0].stride()
    assert not executor._can_tell(kind)


@pytest.mark.parametrize(
    "value",
    [np.float64(1.5), np.ones(3), 1 << 70, torch.ones(4).requires_grad_(), torch.eye(4).t()[1:, 1:], {"a": "b"}],
)
def test_inputs_that_cannot_be_told_of_are_used_here(executor, value):
    batch = [Task((), {}, Key(0, i, 0)) if i % 2 else Task((value,), {}, Key(0, i, 0)) for i in range(16)]
    solved_by = [solved["pid"] for solved in executor.solve(where, batch)]
    assert set(solved_by[::2]) == {PARENT}
    assert PARENT not in solved_by[1::2]


@pytest.mark.parametrize("static", [1 << 64, np.float64(0.5), frozenset("a"), (1, (np.int64(2),))])
def test_static_arguments_that_cannot_be_told_of_are_used_here(executor, static):
    function = Op("learn:f", lambda task: {"pid": os.getpid()}, spec=lambda inputs, static: METRICS)
    executor = ProcessExecutor(1, [function])
    solved = executor.solve(function, [Task((), {"by": static}, Key(0, i, 0)) for i in range(8)])
    executor.close()
    assert {value["pid"] for value in solved} == {PARENT}


# Errors


def test_an_error_is_the_one_that_solving_here_raises(executor):
    batch = counting(40, bad=13)
    with pytest.raises(ValueError, match=r"^13 is too much$"):
        executor.solve(fragile, batch)
    assert same(executor.solve(fragile, batch[:13]), [task.inputs[0] + 1 for task in batch[:13]])
    with pytest.raises(ProtocolError, match=r"^never$"):
        executor.solve(refused, counting(40))


def test_a_solver_names_the_op_and_the_node(executor):
    graph = Graph(0)
    call = None
    wanted = []
    for node in range(5):
        ref = graph.constant(torch.full((4,), float(node)), Spec((4,)))
        call = graph.call(fragile, [ref], {"bad": 3})
        wanted.append(graph.record(call, [ref], node, 1))
    with pytest.raises(ComputeError, match="test_processes:fragile failed for node 0, 1, 2, 3, 4: ValueError: 3 is"):
        Solver(graph, executor).solve(wanted)
    solver = Solver(graph, executor)
    solver.solve(wanted[:3])
    assert torch.equal(solver.value(wanted[2]), torch.full((4,), 3.0))


# Losses and endings


@pytest.mark.parametrize("bad", [(5,), (0, 39), tuple(range(40))])
def test_a_worker_that_dies_costs_nothing_but_itself(bad):
    """Whoever takes over a deadly task dies of it too, until the parent solves it."""
    executor = ProcessExecutor(2)
    batch = counting(40, bad=bad)
    with capture_logs() as logs:
        values = executor.solve(deadly, batch)
        assert same(values, [task.inputs[0] * 2 for task in batch])
        assert executor.lost_workers == 2
        assert [log["event"] for log in logs] == ["worker lost"] * executor.lost_workers
        assert logs[0]["how"] == "killed by SIGKILL"
    batch = tasks(20)
    assert same(executor.solve(noisy, batch), InlineExecutor().solve(noisy, batch))
    executor.close()


def test_a_worker_that_was_killed_while_it_waited_is_noticed(executor):
    pids(executor)
    victim, other = [worker.pid for worker in executor._pool._living]
    psutil.Process(victim).kill()
    batch = tasks(30)
    with capture_logs() as logs:
        assert same(executor.solve(noisy, batch), InlineExecutor().solve(noisy, batch))
    assert [log["pid"] for log in logs] == [victim]
    assert executor.lost_workers == 1
    assert pids(executor) == {other}


def test_ctrl_c_is_the_parents_business(executor):
    pids(executor)
    for worker in executor._pool._living:
        os.kill(worker.pid, signal.SIGINT)
    batch = tasks(12)
    assert same(executor.solve(noisy, batch), InlineExecutor().solve(noisy, batch))
    assert executor.lost_workers == 0


def test_an_interrupt_ends_the_workers(executor, monkeypatch):
    def interrupted(connections):
        raise KeyboardInterrupt

    pids(executor)
    before = [psutil.Process(worker.pid) for worker in executor._pool._living]
    with monkeypatch.context() as patch:
        patch.setattr(processes, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            executor.solve(noisy, tasks(12))
    assert not any(process.is_running() for process in before)
    batch = tasks(12)
    assert same(executor.solve(noisy, batch), InlineExecutor().solve(noisy, batch))


def test_values_outlive_the_workers():
    executor = ProcessExecutor(2)
    batch = tasks(12)
    values = executor.solve(noisy, batch)
    executor.close()
    executor.close()
    assert same(executor.fetch(values), InlineExecutor().solve(noisy, batch))


def test_no_worker_outlives_a_parent_that_is_killed():
    reader, writer = os.pipe()
    parent = os.fork()
    if not parent:
        executor = ProcessExecutor(3)
        pids(executor)
        os.write(writer, " ".join(str(worker.pid) for worker in executor._pool._living).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    orphans = [int(pid) for pid in os.read(reader, 1000).split()]
    os.close(reader)
    os.close(writer)
    assert len(orphans) == 3
    alive = [psutil.Process(pid) for pid in orphans if psutil.pid_exists(pid)]
    assert not [process for process in psutil.wait_procs(alive, timeout=10)[1] if process.status() != "zombie"]


def test_a_system_without_memory_files_uses_one_without_a_name(executor, monkeypatch):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    batch = tasks(20)
    assert same(executor.solve(noisy, batch), InlineExecutor().solve(noisy, batch))
    assert os.fstat(executor._pool._arenas.file).st_nlink == 0


def test_nothing_is_left_in_shared_memory():
    before = sorted(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else []
    executor = ProcessExecutor(2)
    executor.solve(noisy, tasks(8))
    during = sorted(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else []
    executor.close()
    assert during == before


def test_slots_are_used_again(executor):
    batch = tasks(50)
    for _ in range(5):
        values = executor.solve(noisy, batch)
    assert executor._pool._arenas.used_slots == 100, "the last values, and a copy of each input"
    del values
    assert executor._pool._arenas.used_slots == 50
    del batch
    assert executor._pool._arenas.used_slots == 0


def test_an_input_is_copied_once(executor):
    model = torch.ones(64)
    batch = [Task((model, model), {}, Key(0, i, 0)) for i in range(20)]
    for _ in range(3):
        executor.solve(product, batch)
    assert len(executor._pool._copies) == 1


# What there is to start


def test_none_means_one_for_each_core(monkeypatch):
    assert workers.count(5) == 5
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 4, 6}, raising=False)
    assert workers.count(0) == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert workers.count(0) == 1


def test_a_machine_that_starts_no_more_processes_is_told_of_in_a_line(monkeypatch):
    forks = iter([os.fork])

    def fork():
        allowed = next(forks, None)
        if allowed is None:
            raise OSError(11, "Resource temporarily unavailable")
        return allowed()

    before = psutil.Process().children()
    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(
        ConfigError, match=r"^executor.workers: .* no more processes \(Resource.*\); take fewer workers$"
    ):
        ProcessExecutor(3).solve(noisy, tasks(8))
    assert psutil.Process().children() == before


@pytest.mark.parametrize(
    "name", ["nowhere:f", "learn:train", "os:path.join", "os:no", "test_processes:", ":", "", "os"]
)
def test_names_that_lead_to_no_op(name):
    assert workers.find(name) is None


def test_an_op_is_found_by_its_name():
    assert workers.find("test_processes:noisy") is noisy
    assert workers.is_importable(noisy)
    assert not workers.is_importable(Op("__main__:noisy", noisy.solve))
    assert not workers.is_importable(Op("test_processes:noisy", noisy.solve))
