"""The node daemon: alone in a process, and several in one; how it comes to its peers, what it keeps, how it ends."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, asynccontextmanager
from functools import cache

import aiohttp
import numpy as np
import pytest
import structlog

from node import Context, Protocol, Ref
from node.cli.main import main
from node.cli.runs import load_run
from node.config import DataSection, ExperimentConfig, ModelSection, ProtocolSection, TopologySection, TrainingSection
from node.daemon import process
from node.daemon.daemon import Daemon
from node.daemon.nodefile import NodeFile
from node.daemon.process import keep_freed_memory
from node.daemon.standing import Phase, Watched
from node.daemon.state import open_state
from node.errors import ConfigError, StoreError
from node.experiment.setup import prepare
from node.experiment.virtual import run_virtual
from node.identity import Identity
from node.learn.tensors import load_model
from node.solver import InlineExecutor

WAIT_S = 20.0
CLEAN_ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("STARLING_")}
TINY = """
name = "tiny"
seed = 3
nodes = 2
[protocol]
use = "dpsgd"
rounds = 3
[topology]
kind = "full"
[model]
hidden = [16]
"""


class Fails(Protocol):
    """Measures once, and fails."""

    async def run(self, ctx: Context) -> Ref | None:
        ctx.record(round=0, accuracy=ctx.evaluate(ctx.initial_model()))
        await ctx.value(ctx.evaluate(ctx.initial_model()))
        raise ValueError("no more")


class FailsLater(Protocol):
    """Ends well, and fails when it is told to."""

    now = asyncio.Event()

    async def run(self, ctx: Context) -> Ref | None:
        ctx.spawn(self._fail())

    async def _fail(self) -> None:
        await self.now.wait()
        raise ValueError("too late")


@cache
def setup(nodes=3, use="dpsgd", **options):
    return prepare(
        ExperimentConfig(
            name="tiny",
            seed=3,
            nodes=nodes,
            clock="real",
            protocol=ProtocolSection(use=use, **options),
            topology=TopologySection(kind="full"),
            data=DataSection(partition="dirichlet"),
            model=ModelSection(hidden=(16,)),
            training=TrainingSection(local_steps=2),
        )
    )


class Party:
    """Daemons of one experiment in this process, started when a test says so."""

    def __init__(self, setup, folder, stack):
        self.setup, self.folder, self._stack = setup, folder, stack
        self.daemons, self.tasks = {}, {}
        self.leaving = []
        self._held = {}

    def release(self, node):
        """Give up the state folder of a node that has ended, so that it can start again."""
        self._held[node].close()

    def state(self, node):
        return self.folder / f"state-{node}"

    def start(self, node, **settings):
        settings = NodeFile(
            **{"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "node": node, **settings},
            state=self.state(node),
            cards=self.folder / "cards",
        )
        self._held[node] = self._stack.enter_context(ExitStack())
        state = self._held[node].enter_context(open_state(settings.state))
        daemon = self.daemons[node] = Daemon(settings, self.setup, state, lambda: self.leaving.append(node))
        self.tasks[node] = asyncio.create_task(daemon.run())
        return daemon

    async def phase(self, phase, *nodes):
        """Wait until these nodes (default: all) are there."""
        chosen = nodes or tuple(self.daemons)
        await until(
            lambda: (
                all(self.daemons[node].standing.phase is phase for node in chosen)
                or any(self.tasks[node].done() for node in chosen)
            )
        )
        assert {node: self.daemons[node].standing.phase for node in chosen} == dict.fromkeys(chosen, phase)

    async def stop(self, *nodes):
        for node in nodes or self.daemons:
            self.daemons[node].stop("test")
        return await asyncio.gather(*(self.tasks[node] for node in nodes or self.daemons))

    def summary(self, node):
        return json.loads((self.state(node) / "summary.json").read_text())

    async def get(self, node, path):
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self.daemons[node].standing.admin}/{path}") as answer,
        ):
            return answer.status, await answer.text()


@asynccontextmanager
async def party(setup, folder):
    with ExitStack() as stack:
        nodes = Party(setup, folder, stack)
        try:
            yield nodes
        finally:
            for node, task in nodes.tasks.items():
                nodes.daemons[node].stop("end of test")
                task.cancel()
            await asyncio.gather(*nodes.tasks.values(), return_exceptions=True)


async def until(condition):
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.01)


def virtual_models(setup):
    result = run_virtual(setup, lambda *_: None)
    assert result.status == "finished"
    return result.models


class TestJoining:
    async def test_nodes_learn_what_the_simulation_does_bit_for_bit(self, tmp_path):
        shared = setup(rounds=3)
        async with party(shared, tmp_path) as nodes:
            for node in range(3):
                nodes.start(node)
            await nodes.phase(Phase.FINISHED)
            assert await nodes.stop() == [0, 0, 0]
        for node, expected in (await asyncio.to_thread(virtual_models, shared)).items():
            mine = load_model(nodes.state(node) / "model.safetensors", shared.model)
            assert np.array_equal(np.asarray(mine), np.asarray(expected))

    async def test_all_wait_for_the_last(self, tmp_path):
        async with party(setup(rounds=1), tmp_path) as nodes:
            nodes.start(0)
            nodes.start(1)
            await until(lambda: nodes.daemons[0].standing.status()["waiting_for"] == [2])
            status = nodes.daemons[0].standing.status()
            assert (status["phase"], status["round"], status["peers"]) == (
                "waiting",
                None,
                {"alive": 0, "awaited": 2, "suspect": 0, "dead": 0, "left": 0},
            )
            assert await nodes.get(0, "readyz") == (503, "the node is waiting\n")
            assert await nodes.get(0, "healthz") == (200, "ok\n")
            nodes.start(2)
            await nodes.phase(Phase.FINISHED)
            assert await nodes.get(0, "readyz") == (200, "ok\n")

    async def test_a_peer_that_starts_again_elsewhere_is_found(self, tmp_path):
        async with party(setup(nodes=2, rounds=2), tmp_path) as nodes:
            for node in range(2):
                nodes.start(node)
            await nodes.phase(Phase.FINISHED)
            before = nodes.daemons[1].standing.address
            await nodes.stop(1)
            await until(lambda: nodes.daemons[0].standing.lost)
            nodes.release(1)
            nodes.start(1)
            await nodes.phase(Phase.FINISHED, 1)
            assert nodes.daemons[1].standing.address != before
            await until(lambda: not nodes.daemons[0].standing.lost)

    async def test_an_old_card_is_no_peer(self, tmp_path):
        """The card of a node that does not run yet, with the address of another time."""
        async with party(setup(rounds=1), tmp_path) as nodes:
            nodes.start(2)
            await until(lambda: (tmp_path / "cards" / "2.card").exists())
            await nodes.stop(2)
            nodes.start(0)
            nodes.start(1)
            await until(lambda: nodes.daemons[0].standing.status()["waiting_for"] == [2])
            await until(lambda: len(nodes.daemons[0].standing.joining.addresses()) == 3)
            assert nodes.daemons[0].standing.phase is Phase.WAITING
            nodes._stack.close()
            nodes.start(2)
            await nodes.phase(Phase.FINISHED)

    async def test_a_forged_card_lets_nobody_in(self, tmp_path):
        async with party(setup(nodes=2, rounds=1), tmp_path) as nodes:
            nodes.start(0)
            await until(lambda: (tmp_path / "cards" / "0.card").exists())
            true = (tmp_path / "cards" / "0.card").read_text()
            stranger = Identity.generate().card(1, "tcp://127.0.0.1:1", "tiny-of-others")
            for text in (true, stranger.to_text(), true[:-20] + "A" * 20):
                (tmp_path / "cards" / "1.card").write_text(text)
                nodes.daemons[0].standing.joining._cards.read()
                assert nodes.daemons[0].standing.status()["waiting_for"] == [1]
            nodes.start(1)
            await nodes.phase(Phase.FINISHED)

    async def test_two_nodes_with_one_key(self, tmp_path):
        async with party(setup(nodes=2, rounds=1), tmp_path) as nodes:
            daemon = nodes.start(0)
            await until(lambda: daemon.standing.joining)
            twin = daemon._state.identity.card(1, "tcp://127.0.0.1:1", daemon.standing.joining._own.network)
            (tmp_path / "cards" / "1.card").write_text(twin.to_text())
            with pytest.raises(ConfigError, match="nodes 0 and 1 have the same signing_key"):
                await nodes.tasks[0]

    async def test_what_is_advertised_is_what_the_card_says(self, tmp_path):
        async with party(setup(nodes=2, rounds=1), tmp_path) as nodes:
            one = nodes.start(0, listen="0.0.0.0:0", advertise="localhost:0")
            other = nodes.start(1, listen="localhost:0")
            await nodes.phase(Phase.FINISHED)
            port = one._transport.address.rpartition(":")[2]
            assert one.standing.address == f"tcp://localhost:{port}"
            assert other.standing.peers() == [
                {"node": 0, "state": "alive", "path": "direct", "address": f"tcp://localhost:{port}"}
            ]


class TestAddresses:
    async def test_a_taken_port_is_one_line(self, tmp_path):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            for key in ("listen", "admin"):
                async with party(setup(nodes=1, rounds=1), tmp_path / key) as nodes:
                    nodes.start(0, **{key: address})
                    with pytest.raises(ConfigError, match=f"^{key}: {address} cannot be bound"):
                        await nodes.tasks[0]

    async def test_a_host_that_is_nowhere_is_one_line(self, tmp_path):
        async with party(setup(nodes=1, rounds=1), tmp_path) as nodes:
            with pytest.raises(ConfigError, match=r"^listen: nowhere.invalid cannot be resolved"):
                nodes.start(0, listen="nowhere.invalid:7600")

    async def test_without_an_admin_address_there_is_no_http(self, tmp_path):
        async with party(setup(nodes=1, rounds=1), tmp_path) as nodes:
            daemon = nodes.start(0, admin="")
            await nodes.phase(Phase.FINISHED)
            assert daemon.standing.status()["admin"] == ""


class TestWhatIsShown:
    async def test_status_peers_and_metrics(self, tmp_path):
        async with party(setup(rounds=3), tmp_path) as nodes:
            for node in range(3):
                nodes.start(node)
            await nodes.phase(Phase.FINISHED)
            status = json.loads((await nodes.get(1, "status"))[1])
            expected = {
                "node": 1,
                "phase": "finished",
                "experiment": "tiny",
                "protocol": "dpsgd",
                "nodes": 3,
                "round": 2,
            }
            assert status.items() >= expected.items()
            assert status["peers"] == {"alive": 2, "awaited": 0, "suspect": 0, "dead": 0, "left": 0}
            assert set(status["versions"]) == {"python", "starling-node", "torch", "pyzmq"}
            assert 0 < status["accuracy"] < 1
            assert status["hash"] == nodes.summary(1)["hash"]
            peers = json.loads((await nodes.get(1, "peers"))[1])
            assert [(peer["node"], peer["state"]) for peer in peers] == [(0, "alive"), (2, "alive")]
            metrics = (await nodes.get(1, "metrics"))[1]
            assert "starling_round 2.0" in metrics
            assert f"starling_accuracy {status['accuracy']}" in metrics
            assert 'starling_peers{path="direct",state="alive"} 2.0' in metrics
            assert 'starling_messages_total{direction="sent",kind="dpsgd/model/1",peer="2"} 3.0' in metrics
            assert 'starling_messages_total{direction="received",kind="dpsgd/model/1",peer="0"} 3.0' in metrics
            assert "starling_train_seconds_count 3.0" in metrics
            assert "starling_rounds_finished_total 3.0" in metrics
            assert "starling_checkpoint_age_seconds " in metrics
            assert 'starling_queue_bytes{queue="send"} 0.0' in metrics

    async def test_no_secret(self, tmp_path):
        async with party(setup(nodes=1, rounds=1), tmp_path) as nodes:
            daemon = nodes.start(0)
            await nodes.phase(Phase.FINISHED)
            shown = "".join([(await nodes.get(0, path))[1] for path in ("status", "peers", "metrics")])
            assert daemon._state.token not in shown
            assert daemon._state.identity.curve_secret.hex() not in shown

    async def test_a_peer_that_goes_is_dead(self, tmp_path):
        async with party(setup(nodes=2, rounds=1), tmp_path) as nodes:
            one, _ = nodes.start(0), nodes.start(1)
            await nodes.phase(Phase.FINISHED)
            await nodes.stop(1)
            await until(lambda: one.standing.lost)
            assert one.standing.peers()[0]["state"] == "dead"
            assert 'starling_peers{path="none",state="dead"} 1.0' in (await nodes.get(0, "metrics"))[1]
            assert one.standing.phase is Phase.FINISHED

    async def test_a_stuck_worker_makes_it_ill(self, tmp_path):
        async with party(setup(nodes=1, rounds=1), tmp_path) as nodes:
            daemon = nodes.start(0, stuck_s=0.01)
            await nodes.phase(Phase.FINISHED)
            entered, release = threading.Event(), threading.Event()
            daemon.standing.executor._executor = Blocking(entered, release)
            thread = threading.Thread(target=daemon.standing.executor.solve, args=(None, []))
            thread.start()
            entered.wait(WAIT_S)
            await until(lambda: daemon.standing.ill() is not None)
            status, text = await nodes.get(0, "healthz")
            assert status == 503
            assert text.startswith("the worker thread has been at one operation for")
            assert (await nodes.get(0, "readyz"))[0] == 200
            release.set()
            thread.join()
            assert await nodes.get(0, "healthz") == (200, "ok\n")


class Blocking(InlineExecutor):
    def __init__(self, entered, release):
        self._entered, self._release = entered, release

    def solve(self, op, tasks):
        self._entered.set()
        self._release.wait(WAIT_S)
        return []


def test_watched_is_idle_after_a_failure_too():
    watched = Watched(InlineExecutor())
    with pytest.raises(AttributeError):
        watched.solve(None, [None])
    assert watched.busy_s() == 0.0


class TestEnding:
    async def test_what_was_measured_is_kept_when_it_is_stopped(self, tmp_path):
        async with party(setup(nodes=1, use="local", rounds=1_000_000), tmp_path) as nodes:
            daemon = nodes.start(0)
            await until(lambda: daemon.standing.progress()["accuracy"])
            assert await nodes.stop() == [0]
            assert nodes.leaving == [0]
        run = load_run(nodes.state(0))
        assert (run.summary.status, run.summary.error) == ("interrupted", "stopped before its protocol had ended")
        assert run.samples("accuracy").value.size >= 1
        assert not (nodes.state(0) / "model.safetensors").exists()

    async def test_stopping_twice_is_stopping_once(self, tmp_path):
        async with party(setup(nodes=1, rounds=1), tmp_path) as nodes:
            daemon = nodes.start(0)
            await nodes.phase(Phase.FINISHED)
            daemon.stop("once")
            assert daemon.standing.unready() == "the node is stopping"
            daemon.stop("twice")
            assert await nodes.tasks[0] == 0
            assert nodes.leaving == [0]
        assert nodes.summary(0)["status"] == "finished"

    async def test_one_that_never_began_keeps_nothing(self, tmp_path):
        async with party(setup(nodes=2, rounds=1), tmp_path) as nodes:
            nodes.start(0)
            await nodes.phase(Phase.WAITING)
            assert await nodes.stop() == [0]
        assert not (nodes.state(0) / "summary.json").exists()

    async def test_over_http_it_takes_the_token(self, tmp_path):
        async with party(setup(nodes=1, rounds=1), tmp_path) as nodes:
            daemon = nodes.start(0)
            await nodes.phase(Phase.FINISHED)
            token = (nodes.state(0) / "admin.token").read_text().strip()
            async with aiohttp.ClientSession() as session:
                for given, status in (("wrong", 403), (token, 200)):
                    headers = {"Authorization": f"Bearer {given}"}
                    answer = await session.post(f"{daemon.standing.admin}/stop", headers=headers)
                    assert answer.status == status
                    assert nodes.tasks[0].done() is False
            assert await nodes.tasks[0] == 0

    async def test_a_failed_protocol(self, tmp_path):
        async with party(setup(nodes=1, use="test_daemon:Fails"), tmp_path) as nodes:
            nodes.start(0)
            assert await nodes.tasks[0] == 3
        run = load_run(nodes.state(0))
        assert run.summary.status == "failed"
        assert run.summary.error.startswith("ValueError: no more")

    async def test_a_failure_after_the_end_costs_no_result(self, tmp_path):
        async with party(setup(nodes=1, use="test_daemon:FailsLater"), tmp_path) as nodes:
            nodes.start(0)
            await nodes.phase(Phase.FINISHED)
            FailsLater.now.set()
            assert await nodes.tasks[0] == 3
        assert nodes.summary(0)["status"] == "finished"

    async def test_a_peer_that_is_needed_and_goes(self, tmp_path):
        async with party(setup(nodes=2, rounds=1_000_000), tmp_path) as nodes:
            one, _ = nodes.start(0), nodes.start(1)
            await until(lambda: one.standing.progress()["round"])
            assert await nodes.stop(1) == [0]
            assert await nodes.tasks[0] == 3
        assert nodes.summary(0)["lost"] == {"1": "has gone"}
        assert "node 1" in nodes.summary(0)["error"]

    async def test_a_result_that_cannot_be_written(self, tmp_path):
        async with party(setup(nodes=1, rounds=1), tmp_path) as nodes:
            nodes.start(0)
            (nodes.state(0) / "metrics.parquet").mkdir()
            with pytest.raises(StoreError, match="the results cannot all be written"):
                await nodes.tasks[0]


@pytest.mark.skipif(sys.platform != "linux" or not os.confstr("CS_GNU_LIBC_VERSION"), reason="glibc alone has mallopt")
def test_malloc_takes_the_thresholds():
    assert keep_freed_memory()


# As processes of their own


class Process:
    """``starling node`` in a folder of its own; everything on its stderr must be JSON."""

    def __init__(self, folder, experiment, node=0, cards="cards"):
        folder.mkdir(exist_ok=True)
        text = f'experiment = "{experiment}"\nnode = {node}\nlisten = "127.0.0.1:0"\nadmin = "127.0.0.1:0"\n'
        (folder / "node.toml").write_text(f'{text}cards = "{cards}"\n')
        self.folder, self.state = folder, folder / "state"
        self.logs = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "node.cli.main", "node", "--config", str(folder / "node.toml")],
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=CLEAN_ENVIRON,
        )

    def until(self, event):
        """Read the log up to an event; gives its line."""
        for line in self.process.stderr:
            self.logs.append(json.loads(line))
            if self.logs[-1]["event"] == event:
                return self.logs[-1]
        raise AssertionError(f"no {event!r} in {self.logs}")

    def signal(self, number):
        self.process.send_signal(number)

    def end(self):
        """Wait for the end; gives the exit status and how long it took."""
        began_s = time.monotonic()
        self.logs += [json.loads(line) for line in self.process.stderr]
        return self.process.wait(WAIT_S), time.monotonic() - began_s

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()


@pytest.fixture
def process_wide():
    """Put back what a daemon sets for its whole process."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


@pytest.mark.usefixtures("process_wide")
def test_processes_learn_and_end_in_order(tmp_path, capsys):
    experiment = tmp_path / "tiny.toml"
    experiment.write_text(TINY)
    with ExitStack() as stack:
        nodes = [stack.enter_context(Process(tmp_path / f"n{i}", experiment, i, "../cards")) for i in range(2)]
        admin = nodes[0].until("started")["admin"]
        for node in nodes:
            node.until("finished")
        assert starling("node", "--config", nodes[1].folder / "node.toml") == 2
        assert "in use by another process" in capsys.readouterr().err
        assert starling("status", "--node", admin, "--json") == 0
        assert json.loads(capsys.readouterr().out)["phase"] == "finished"
        assert starling("stop", "--node", admin, "--token-file", nodes[1].state / "admin.token") == 2
        assert starling("stop", "--node", admin, "--token-file", nodes[0].state / "admin.token") == 0
        nodes[1].signal(signal.SIGTERM)
        ends = [node.end() for node in nodes]
        assert [status for status, _ in ends] == [0, 0]
        assert max(took_s for _, took_s in ends) < 5
        assert all(log["node"] == i for i, node in enumerate(nodes) for log in node.logs)
    shared = prepare(load_run(nodes[0].state).config)
    expected = virtual_models(shared)
    for i, node in enumerate(nodes):
        assert load_run(node.state).summary.status == "finished"
        model = load_model(node.state / "model.safetensors", shared.model)
        assert np.array_equal(np.asarray(model), np.asarray(expected[i]))


def test_a_signal_while_it_starts_ends_it_too(tmp_path):
    (tmp_path / "early.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n")
    experiment = tmp_path / "early.toml"
    experiment.write_text('nodes = 1\nprotocol.use = "early:Early"\n')
    with Process(tmp_path, experiment) as node:
        assert node.end()[0] == 0
    assert node.logs == []


ENDLESS = """
import threading
from node import Protocol, op

@op
def endless(model):
    threading.Event().wait(600)
    return model

class Endless(Protocol):
    async def run(self, ctx):
        return await ctx.value(ctx.apply(endless, ctx.initial_model()))
"""


@pytest.mark.parametrize(("numbers", "status"), [([signal.SIGTERM], 0), ([signal.SIGINT, signal.SIGTERM], 130)])
def test_a_step_that_takes_for_ever_does_not_keep_it(tmp_path, numbers, status):
    (tmp_path / "endless.py").write_text(ENDLESS)
    experiment = tmp_path / "endless.toml"
    experiment.write_text('nodes = 1\nprotocol.use = "endless:Endless"\ntopology.kind = "full"\n')
    with Process(tmp_path, experiment) as node:
        node.until("joined")
        node.signal(numbers[0])
        node.until("stopping")
        for number in numbers[1:]:
            node.signal(number)
        ended, took_s = node.end()
        assert ended == status
        assert took_s < 60  # the step takes ten times as long
        assert process._GONE_BY_S < 5  # what is promised of an end in order, where the machine is not busy
        if not status:
            assert json.loads((node.state / "summary.json").read_text())["status"] == "interrupted"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('experiment = "missing.toml"', "missing.toml: cannot be read"),
        ('listen = "0.0.0.0:7600"', "advertise: listen = '0.0.0.0:7600' means every address"),
        ("node = 99", "node: digits-gossip has no node 99"),
        ("stat = 'x'", "stat: there is no such key; did you mean 'state'?"),
    ],
)
def test_a_bad_file_is_one_line_and_exit_code_2(tmp_path, capsys, text, said):
    (tmp_path / "node.toml").write_text(text)
    assert starling("node", "--config", tmp_path / "node.toml") == 2
    complaint = capsys.readouterr().err
    assert said in complaint
    assert complaint.count("\n") == 1


def starling(*arguments):
    """The exit code of a command in this process."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as done:
        return done.code or 0
    return 0
