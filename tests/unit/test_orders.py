"""A running node that is told to pause, go on, drain, log more and stop; and what it writes down of that."""

import asyncio
import json

import aiohttp
import numpy as np
import pytest
import structlog

from node import Context, Protocol, Ref
from node.cli.runs import load_run
from node.daemon.standing import Phase
from node.errors import StarlingError
from node.experiment.virtual import run_virtual
from node.learn.tensors import load_model
from test_daemon import TINY, Process, party, setup, starling, until

MANY = 100_000


class Waits(Protocol):
    """Trains and waits for ever, and so never comes to a point where it could leave."""

    async def run(self, ctx: Context) -> Ref | None:
        await ctx.train(ctx.initial_model())
        await ctx.future()


async def order(nodes, node, what, body=None, token=None):
    """Status and text of the answer to an order over HTTP."""
    daemon = nodes.daemons[node]
    headers = {"Authorization": f"Bearer {token or daemon._state.token}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(f"{daemon.standing.admin}/{what}", data=body) as answer,
    ):
        return answer.status, await answer.text()


def lines_of_audit(nodes, node):
    return [json.loads(line) for line in (nodes.state(node) / "audit.jsonl").read_text().splitlines()]


def recorded(nodes, node):
    return nodes.daemons[node].standing.progress()["round"] or 0


def trainings(nodes, node):
    text = nodes.daemons[node]._metrics.text().decode()
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith("starling_train_seconds_count"))


@pytest.fixture
async def pair(tmp_path):
    """Two nodes that train for ever."""
    async with party(setup(nodes=2, rounds=MANY, deadline_s=30.0), tmp_path) as nodes:
        for node in range(2):
            nodes.start(node)
        await nodes.phase(Phase.RUNNING)
        await until(lambda: recorded(nodes, 0) >= 1)
        yield nodes


async def test_a_node_that_pauses_trains_no_more_and_answers(pair):
    assert await order(pair, 0, "pause") == (200, '{"done": "pause"}')
    steps = pair.daemons[0].standing.steps
    await until(lambda: steps._waiting)
    trained = trainings(pair, 0)
    assert json.loads((await pair.get(0, "status"))[1])["restraint"] == "paused"
    assert await pair.get(0, "readyz") == (503, "the node is paused\n")
    assert await pair.get(0, "healthz") == (200, "ok\n")
    assert "starling_paused 1.0" in (await pair.get(0, "metrics"))[1]
    assert pair.daemons[1].standing.peers()[0]["state"] == "alive"
    assert trainings(pair, 0) == trained
    assert (await order(pair, 0, "resume"))[0] == 200
    await until(lambda: trainings(pair, 0) >= trained + 2)
    assert json.loads((await pair.get(0, "status"))[1])["restraint"] is None
    assert (await pair.get(0, "readyz"))[0] == 200


async def test_a_pause_changes_no_bit(tmp_path):
    both = setup(nodes=2, rounds=4, deadline_s=30.0)
    async with party(both, tmp_path) as nodes:
        for node in range(2):
            nodes.start(node).standing.steps.hold()
        await nodes.phase(Phase.RUNNING)
        await until(lambda: all(daemon.standing.steps._waiting for daemon in nodes.daemons.values()))
        for node in range(2):
            await order(nodes, node, "resume")
        await nodes.phase(Phase.FINISHED)
    expected = await asyncio.to_thread(run_virtual, both, lambda *_: None)
    for node in range(2):
        mine = load_model(tmp_path / f"state-{node}" / "model.safetensors", both.model)
        assert np.array_equal(np.asarray(mine), np.asarray(expected.models[node]))


async def test_a_node_that_drains_keeps_its_last_round_and_leaves(pair):
    assert await order(pair, 0, "drain") == (200, '{"done": "drain"}')
    async with asyncio.timeout(20):
        assert await pair.tasks[0] == 0
    plain, _ = pair.daemons[0].standing.checkpoints.load()
    run = load_run(pair.state(0))
    assert run.summary.status == "interrupted"
    assert plain["round"] == run.summary.rounds
    await until(lambda: 0 in pair.daemons[1].standing.lost)
    assert pair.daemons[1].standing.phase is Phase.RUNNING


async def test_a_paused_node_may_be_drained_and_nothing_takes_that_back(pair):
    await order(pair, 0, "pause")
    await until(lambda: pair.daemons[0].standing.steps._waiting)
    assert (await order(pair, 0, "drain"))[0] == 200
    async with asyncio.timeout(20):
        assert await pair.tasks[0] == 0
    for act in ("pause", "resume"):
        with pytest.raises(StarlingError, match="is leaving, and that is not taken back; start it again"):
            getattr(_orders(pair, 0), act)()


def _orders(nodes, node):
    from node.daemon.control import Orders

    daemon = nodes.daemons[node]
    return Orders(daemon.standing, daemon.standing.journal, daemon.stop)


async def test_one_that_cannot_finish_leaves_in_time_all_the_same(tmp_path):
    async with party(setup(nodes=1, use="test_orders:Waits"), tmp_path) as nodes:
        daemon = nodes.start(0, drain_s=0.01)
        await nodes.phase(Phase.RUNNING)
        await until(lambda: trainings(nodes, 0))
        assert (await order(nodes, 0, "drain"))[0] == 200
        async with asyncio.timeout(20):
            assert await nodes.tasks[0] == 0
        assert daemon.standing.steps.is_draining


@pytest.mark.parametrize("phase", [Phase.WAITING, Phase.FINISHED])
async def test_where_there_is_nothing_to_finish_draining_is_stopping(tmp_path, phase):
    async with party(setup(nodes=2 if phase is Phase.WAITING else 1, rounds=1), tmp_path) as nodes:
        nodes.start(0)
        await nodes.phase(phase)
        assert (await order(nodes, 0, "drain"))[0] == 200
        async with asyncio.timeout(20):
            assert await nodes.tasks[0] == 0


async def test_one_whose_protocol_ends_while_it_drains_is_finished_and_leaves(tmp_path):
    async with party(setup(nodes=1, rounds=1), tmp_path) as nodes:
        daemon = nodes.start(0)
        daemon.standing.steps.is_draining, daemon.standing.steps._has_begun = True, True
        daemon.standing.steps._keeps = True
        async with asyncio.timeout(20):
            assert await nodes.tasks[0] == 0
        assert nodes.summary(0)["status"] == "finished"


async def test_orders_and_refusals_are_in_the_audit(pair):
    await order(pair, 0, "pause")
    await order(pair, 0, "resume", token="guessed")
    await order(pair, 0, "loglevel", b'{"level": "warning"}')
    assert [{key: line[key] for key in line if key != "time"} for line in lines_of_audit(pair, 0)] == [
        {"actor": "127.0.0.1", "action": "pause", "object": "node 0", "result": "done", "reason": ""},
        {"actor": "127.0.0.1", "action": "resume", "object": "node 0", "result": "refused", "reason": "token"},
        {"actor": "127.0.0.1", "action": "loglevel warning", "object": "node 0", "result": "done", "reason": ""},
    ]
    assert pair.daemons[0].standing.journal.level == "warning"
    assert (pair.state(0) / "audit.jsonl").stat().st_mode & 0o777 == 0o600
    assert pair.daemons[0]._state.token not in (pair.state(0) / "audit.jsonl").read_text()


async def test_an_audit_that_cannot_be_written_keeps_no_order_from_being_carried_out(tmp_path):
    async with party(setup(nodes=1, rounds=1), tmp_path) as nodes:
        nodes.start(0)
        await nodes.phase(Phase.FINISHED)
        (nodes.state(0) / "audit.jsonl").mkdir()
        with structlog.testing.capture_logs() as logs:
            assert (await order(nodes, 0, "pause"))[0] == 200
        assert {"event": "audit not written", "log_level": "error"}.items() <= logs[0].items()
        assert nodes.daemons[0].standing.steps.is_held


def test_a_process_that_is_drained_over_the_command_line_ends_with_0(tmp_path, capsys):
    experiment = tmp_path / "tiny.toml"
    experiment.write_text(TINY.replace("nodes = 2", "nodes = 1").replace("rounds = 3", f"rounds = {MANY}"))
    with Process(tmp_path / "node", experiment) as node:
        admin = node.until("started")["admin"]
        node.until("progress")
        for what in ("pause", "resume", "drain"):
            assert starling(what, "--node", admin, "--token-file", node.state / "admin.token") == 0
        assert capsys.readouterr().out.splitlines() == [
            f"{admin} pauses",
            f"{admin} trains on",
            f"{admin} finishes its round and leaves",
        ]
        assert node.end()[0] == 0
        assert [line["how"] for line in node.logs if line["event"] == "stopping"] == ["drained"]
    assert [json.loads(line)["action"] for line in (node.state / "audit.jsonl").read_text().splitlines()] == [
        "pause",
        "resume",
        "drain",
    ]
