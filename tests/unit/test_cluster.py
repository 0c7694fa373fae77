"""A Dask cluster of two worker processes on this machine: the same bits, and what is lost is made again."""

import asyncio
import gc
import logging
import os
import pickle
import signal
import socket
import sys
import threading

import numpy as np
import psutil
import pytest
import torch
from distributed import LocalCluster
from hypothesis import given
from hypothesis import strategies as st

from node.clock import VirtualClock
from node.config import ExperimentConfig
from node.errors import ComputeError, ConfigError, ProtocolError
from node.experiment.setup import prepare
from node.graph import Graph
from node.learn import cluster, pieces
from node.learn.cluster import DaskExecutor, Handle, assign
from node.learn.rows import Rows
from node.op import Key, Op, Spec, Task, op
from node.solver import InlineExecutor, Solver
from node.testing import run_protocol

CONFIG = ExperimentConfig.model_validate(
    {
        "nodes": 6,
        "seed": 5,
        "protocol": {"use": "dpsgd", "rounds": 3},
        "topology": {"kind": "ring"},
        "data": {"name": "digits", "partition": "dirichlet", "alpha": 0.5},
        "model": {"name": "mlp", "hidden": [12]},
        "training": {"momentum": 0.9, "local_steps": 3, "lr": 0.1, "batch_size": 8},
    }
)


def ops_of(workload):
    return workload.init, workload.train, workload.evaluate, workload.mix


def rebuild(config_json):
    """What a worker calls once."""
    return {op.name: op for op in ops_of(prepare(ExperimentConfig.model_validate_json(config_json)).workload)}


def rebuild_nothing(config_json):
    return {}


@op(seeded=True)
def noisy(*inputs, rng, by=1.0):
    return sum(inputs) + by * torch.from_numpy(rng.normal(size=inputs[0].shape)).to(inputs[0].dtype)


@op(spec=lambda inputs, static: Spec((1,), "float64", ("pid",)))
def where(*inputs):
    return {"pid": os.getpid()}


@op(spec=lambda inputs, static: Spec((2,), "float64", ("shift", "total")))
def look(a):
    return {"shift": a.data_ptr() % 64, "total": float(a.sum())}


def dawdle():
    threading.Event().wait(2)


@op
def fragile(a, *, bad):
    if a[0] >= bad:
        raise ValueError(f"{int(a[0])} is too much")
    return a + 1


@op
def refused(a):
    raise ProtocolError("never")


@pytest.fixture(scope="module")
def setup():
    return prepare(CONFIG)


@pytest.fixture(scope="module")
def executor(setup):
    executor = DaskExecutor(CONFIG.model_dump_json(), 2, "", rebuild, ops_of(setup.workload))
    yield executor
    executor.close()


def counting(count, **static):
    return [Task((torch.full((64,), float(i)),), static, Key(3, i, 0)) for i in range(count)]


def after(handles, **static):
    """Tasks that each read a value and the one before it."""
    return [Task((handle, handles[i - 1]), static, Key(4, i, 1)) for i, handle in enumerate(handles)]


def same(left, right):
    return all(type(a) is type(b) and torch.equal(a, b) for a, b in zip(left, right, strict=True))


def settles(executor, count):
    """Whether the scheduler comes to know that many tasks besides the constants': news of a drop travels on its own."""
    gc.collect()
    for _ in range(500):
        known = executor._client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))
        if known - len(executor._constants) == count:
            return True
    return False


# Equal to solving here


def run(setup, executor, window_tasks):
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


@pytest.mark.parametrize("window_tasks", [20, 10_000])
def test_a_run_is_bitwise_the_same(setup, executor, window_tasks):
    expected = run(setup, InlineExecutor(), window_tasks)
    outcome = run(setup, executor, window_tasks)
    assert outcome.event_hash == expected.event_hash
    assert list(outcome.recorder.rows()) == list(expected.recorder.rows())
    assert all(torch.equal(outcome.models[node], expected.models[node]) for node in range(6))


def test_chains_of_batches_are_the_same_bits(executor):
    here, there = InlineExecutor().solve(noisy, counting(150)), executor.solve(noisy, counting(150))
    for _ in range(3):
        here, there = InlineExecutor().solve(noisy, after(here)), executor.solve(noisy, after(there, by=1.0))
    assert all(isinstance(value, Handle) for value in there)
    assert same(executor.fetch(there), here)


def test_every_worker_takes_part(executor):
    values = executor.fetch(executor.solve(where, counting(30)))
    solved_by = {value["pid"] for value in values}
    assert len(solved_by) == 2
    assert os.getpid() not in solved_by


# What travels


def test_fetch_brings_what_is_asked(executor):
    handles = executor.solve(fragile, counting(20, bad=100))
    plain = torch.ones(2)
    fetched = executor.fetch([handles[7], plain, handles[3], {"a": 1.0}, handles[7]])
    assert [float(value[0]) for value in fetched[::2]] == [8.0, 4.0, 8.0]
    assert fetched[0] is fetched[4]
    assert fetched[1] is plain
    assert fetched[3] == {"a": 1.0}
    assert executor.fetch([]) == []


def test_a_constant_is_sent_once_and_forgotten_with_its_last_use(executor):
    assert settles(executor, 0)
    before = len(executor._constants)
    model = torch.ones(64)
    batch = [Task((model, model), {}, Key(0, i, 0)) for i in range(40)]
    handles = [executor.solve(noisy, batch) for _ in range(3)]
    assert len(executor._constants) == before + 1
    assert settles(executor, len({handle.block for values in handles for handle in values}))
    executor.fetch([handles[2][0]])
    del handles, batch, model
    assert len(executor._constants) == before
    assert settles(executor, 0)


def test_the_last_handle_of_a_batch_lets_its_values_go(executor):
    assert settles(executor, 0)
    handles = executor.solve(where, [Task((), {}, Key(0, i, 0)) for i in range(40)])
    executor.fetch(handles)
    blocks = len({handle.block for handle in handles})
    assert settles(executor, blocks)
    kept = handles[0]
    del handles
    assert settles(executor, 1)
    assert executor.fetch([kept])
    del kept
    assert settles(executor, 0)


@pytest.mark.parametrize("shift", [0, 1, 15])
def test_inputs_keep_their_alignment(executor, shift):
    batch = [Task((torch.arange(200.0)[shift:150],), {}, Key(0, i, 0)) for i in range(3)]
    assert executor.fetch(executor.solve(look, batch)) == InlineExecutor().solve(look, batch)


def test_numbers_and_metrics_are_inputs_too(executor):
    batch = [Task((torch.ones(3), 2.5, torch.tensor(i)), {}, Key(0, i, 0)) for i in range(5)]
    assert same(executor.fetch(executor.solve(noisy, batch)), InlineExecutor().solve(noisy, batch))
    told = executor.fetch(executor.solve(where, [Task(({"loss": 1.0},), {}, Key(0, 0, 0))]))
    assert told[0].keys() == {"pid"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64", "bool", "complex64"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 5), (200,)])
def test_rows_are_moved_bit_for_bit(dtype, shape):
    tensor = torch.arange(float(np.prod(shape)), dtype=torch.float64).view(shape).to(getattr(torch, dtype))
    strided = torch.arange(12.0).view(3, 4).t()
    rows = Rows([tensor, {"loss": 0.1}, strided, 7, np.ones(2)])
    buffers = []
    moved = pickle.loads(pickle.dumps(rows, protocol=5, buffer_callback=buffers.append), buffers=buffers)
    assert same([moved.values[0]], [tensor])
    assert moved.values[0].shape == shape
    assert moved.values[1:4:2] == [{"loss": 0.1}, 7]
    assert torch.equal(moved.values[2], strided)
    assert moved.values[2].stride() == strided.stride()
    assert sys.getsizeof(rows) >= tensor.nbytes + strided.nbytes


def test_a_moved_tensor_stands_alone_and_aligned_as_before():
    slab = torch.arange(1000.0)
    rows = [slab[100:110], slab[3:77]]
    data = pickle.dumps(Rows(rows))
    assert len(data) < 1500, "a row does not bring its slab along"
    moved = pickle.loads(data).values
    assert same(moved, rows)
    assert [row.data_ptr() % 64 for row in moved] == [row.data_ptr() % 64 for row in rows]
    moved[0].zero_()
    assert same(rows, [torch.arange(100.0, 110.0), torch.arange(3.0, 77.0)])


# Which ops


def test_an_op_without_a_name_that_leads_to_it_is_sent(executor):
    by = 3.0

    @op
    def local(a):
        return a * by

    batch = counting(5)
    assert same(executor.fetch(executor.solve(local, batch)), [task.inputs[0] * 3.0 for task in batch])
    assert executor._sent[local] is local
    executor.solve(noisy, batch)
    assert executor._sent[noisy] == "test_cluster:noisy"


def test_an_op_that_cannot_be_sent_is_an_error_of_its_batch(executor):
    lock = socket.socketpair()
    held = Op("mine:held", lambda task: lock)
    graph = Graph(0)
    ref = graph.constant(torch.ones(2), Spec((2,)))
    with pytest.raises(ComputeError, match="mine:held failed for node 4: "):
        Solver(graph, executor).solve([graph.record(graph.call(held, [ref], {}), [ref], 4, 0)])
    for end in lock:
        end.close()


def test_an_op_that_a_worker_does_not_find():
    piece = pieces.Piece(rebuild_nothing, "", "nowhere:train", [])
    with pytest.raises(ComputeError, match="nowhere:train is not known on a worker of the cluster"):
        pieces.solve(piece)


def test_the_ops_are_made_once_in_a_worker():
    made = []

    def counted(config_json):
        made.append(config_json)
        return {"mine:train": fragile}

    block = Rows([torch.ones(3), torch.zeros(3)])
    work = [pieces.Work((pieces.Row(0, row),), {"bad": 5}, Key(0, row, 0)) for row in (1, 0)]
    for _ in range(3):
        solved = pieces.solve(pieces.Piece(counted, "{}", "mine:train", work), block)
    assert same(solved.values, [torch.ones(3), torch.full((3,), 2.0)])
    assert made == ["{}"]
    assert same(pieces.pick(solved, [1]).values, [torch.full((3,), 2.0)])
    assert pieces.keep(solved) is solved


# Errors and losses


def test_an_error_shows_at_fetch_and_names_op_and_node(executor):
    handles = executor.solve(fragile, counting(40, bad=13))
    later = executor.solve(noisy, after(handles))
    with pytest.raises(
        ComputeError, match=r"^test_cluster:fragile failed for node (13|20): ValueError: (13|20) is too"
    ):
        executor.fetch(later)
    with pytest.raises(ProtocolError, match=r"^never$"):
        executor.fetch(executor.solve(refused, counting(4)))


def test_a_solver_raises_it_too(executor):
    graph = Graph(0)
    solver = Solver(graph, executor)
    wanted = []
    for node in range(5):
        ref = graph.constant(torch.full((4,), float(node)), Spec((4,)))
        wanted.append(graph.record(graph.call(fragile, [ref], {"bad": 3}), [ref], node, 1))
    solver.solve(wanted[:3])
    assert torch.equal(solver.value(wanted[2]), torch.full((4,), 3.0))
    with pytest.raises(ComputeError, match="test_cluster:fragile failed for node 3: ValueError: 3 is too much"):
        solver.value(wanted[3])


def test_what_a_killed_worker_held_is_made_again(setup, executor):
    """Trained models, mixed ones, and the constant that both came from."""
    work = setup.workload
    start = work.init.solve(Task((), {}, Key(5, 0, 0)))

    def rounds(solving, disturb):
        models = [start] * 6
        for counter in range(3):
            static = {"steps": 3, "lr": 0.1, "proximal": 0.0}
            models = solving.solve(
                work.train, [Task((model,), static, Key(5, i, counter)) for i, model in enumerate(models)]
            )
            neighbours = [(models[i], models[i - 1]) for i in range(6)]
            models = solving.solve(work.mix, [Task(pair, {"weights": (0.5, 0.5)}, Key(5, 0, 0)) for pair in neighbours])
            if counter == 1:
                solving.fetch(models)
                disturb()
        return solving.fetch(models)

    def kill_one():
        psutil.Process(min(executor._client.run(os.getpid).values())).kill()

    assert same(rounds(executor, kill_one), rounds(InlineExecutor(), lambda: None))


def test_a_cluster_that_has_lost_all_its_workers_is_an_error_after_a_while(monkeypatch, executor):
    monkeypatch.setattr(cluster, "_LOOK_S", 0.05)
    monkeypatch.setattr(cluster, "_DESERTED_S", 0.2)
    monkeypatch.setattr(executor._client, "nthreads", dict)
    with pytest.raises(ComputeError, match=r"the cluster has had no workers for 0\.2 s"):
        executor._await([executor._client.submit(dawdle, pure=False)])


def test_ctrl_c_is_left_to_who_started_the_cluster(executor):
    executor._client.wait_for_workers(2, timeout=60)  # one that another test has killed may not be back yet
    before = executor._client.run(os.getpid)
    for pid in before.values():
        os.kill(pid, signal.SIGINT)
    batch = counting(8)
    assert same(executor.fetch(executor.solve(noisy, batch)), InlineExecutor().solve(noisy, batch))
    assert executor._client.run(os.getpid) == before


# Placement


@given(
    st.lists(st.sampled_from(["a", "b", "c", "gone", None]), max_size=60), st.sets(st.sampled_from("abc"), min_size=1)
)
def test_tasks_are_spread_evenly_and_live_at_home_where_there_is_room(homes, names):
    names = sorted(names)
    assigned = assign(homes, names)
    assert sorted(i for members in assigned.values() for i in members) == list(range(len(homes)))
    most = -(-len(homes) // len(names))
    for members in assigned.values():
        assert members == sorted(members)
        assert 1 <= len(members) <= most
    for name in names:
        at_home = [i for i in assigned.get(name, []) if homes[i] == name]
        assert at_home == [i for i, home in enumerate(homes) if home == name][:most]


# Clusters


@pytest.fixture
def running():
    """Somebody else's cluster; starts with as many workers, as threads of this process, as it is told to have."""
    clusters = []

    def start(workers):
        clusters.append(
            LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=False,
                host="127.0.0.1",
                protocol="tcp://",
                dashboard_address=None,
                scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
                silence_logs=logging.CRITICAL,
            )
        )
        return clusters[0].scheduler_address

    yield start
    for each in clusters:
        each.close()


def test_a_running_cluster_is_used_and_left_running(running):
    address = running(1)
    guests = [DaskExecutor("{}", 0, address, rebuild_nothing) for _ in range(2)]
    batch = counting(10)
    expected = InlineExecutor().solve(noisy, batch)
    assert same(guests[0].fetch(guests[0].solve(noisy, batch)), expected)
    handle = guests[0].solve(noisy, batch)[0]
    guests[0].close()
    guests[0].close()
    with pytest.raises(ComputeError, match="the cluster has failed to solve test_cluster:noisy"):
        guests[0].fetch([handle])
    assert same(guests[1].fetch(guests[1].solve(noisy, batch)), expected)
    guests[1].close()


def test_a_cluster_without_workers_is_refused(running):
    with pytest.raises(ConfigError, match=r"^executor\.address: the Dask cluster at tcp.* has no workers"):
        DaskExecutor("{}", 0, running(0), rebuild_nothing)


def test_strangers_on_this_machine_cannot_use_the_cluster_that_was_started(executor):
    with pytest.raises(ConfigError, match=r"^executor\.address: no Dask scheduler at 'tls://127"):
        DaskExecutor("{}", 0, executor._client.scheduler.address, rebuild_nothing)


@pytest.mark.parametrize("address", ["localhost", "tcp://127.0.0.1:port", "http://127.0.0.1:1", "tcp://127.0.0.1:1"])
def test_an_address_where_no_scheduler_is(address, monkeypatch):
    monkeypatch.setattr(cluster, "_CONNECT_S", 0.2)
    with pytest.raises(ConfigError, match=r"^executor\.address: no Dask scheduler at .*; write it as tcp://host:port$"):
        DaskExecutor("{}", 0, address, rebuild_nothing)


def test_something_else_that_listens_is_no_scheduler(monkeypatch):
    monkeypatch.setattr(cluster, "_CONNECT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConfigError, match=r"^executor\.address: no Dask scheduler .*no answer within 0.2 s"):
            DaskExecutor("{}", 0, address, rebuild_nothing)


def test_without_dask_installed_one_line_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match=r"^executor\.kind: .*pip install 'starling-node\[cluster\]'$"):
        DaskExecutor("{}", 0, "", rebuild_nothing)


def test_a_cluster_may_be_started_under_virtual_time_and_nothing_outlives_it():
    async def start():
        return DaskExecutor("{}", 1, "", rebuild_nothing)

    before = psutil.Process().children(recursive=True)
    with asyncio.Runner(loop_factory=VirtualClock) as runner:
        own = runner.run(start())
    started = [child for child in psutil.Process().children(recursive=True) if child not in before]
    working = [child for child in started if "resource_tracker" not in " ".join(child.cmdline())]
    assert working
    own.close()
    own.close()
    assert psutil.wait_procs(working, timeout=10)[1] == []
