"""Members of a network that are paused, drained and looked at."""

from __future__ import annotations

import asyncio

import aiohttp

from networks import network, until
from node.daemon.standing import Phase

MANY = 100_000


async def order(net, name, what):
    daemon = net.daemons[name]
    headers = {"Authorization": f"Bearer {daemon._state.token}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(f"{daemon.standing.admin}/{what}") as answer,
    ):
        return answer.status


async def metric(net, name, start):
    """The one figure whose line begins so."""
    [line] = [line for line in (await net.get(name, "metrics")).splitlines() if line.startswith(start)]
    return float(line.rpartition(" ")[2])


async def test_a_member_that_drains_has_left_and_goes_on_where_it_was_when_it_returns(tmp_path):
    async with network(tmp_path, 2, rounds=MANY, deadline_s=0.5) as net:
        one = await net.join("one", net.token())
        await net.phase(Phase.RUNNING)
        await until(lambda: (one.standing.progress()["round"] or 0) >= 1)
        assert await order(net, "founder", "pause") == 200  # who is ahead is caught up with, and nobody shall be
        assert await order(net, "one", "drain") == 200
        async with asyncio.timeout(30):
            assert await net.tasks["one"] == 0
        await net.stop("one")  # closes its folder
        kept = one.standing.checkpoints.load()[0]["round"]
        assert kept == one.standing.participant.recorder.rounds()
        await until(lambda: 1 in net.daemons["founder"].standing.lost)
        [peer] = await net.get("founder", "peers")
        assert peer["state"] == "left"
        assert (await net.get("founder", "status"))["peers"]["left"] == 1
        assert await metric(net, "founder", 'starling_peers{path="none",state="left"}') == 1

        again = await net.join("one", None)
        await net.phase(Phase.RUNNING, "one")
        assert await order(net, "founder", "resume") == 200
        await until(lambda: again.standing.progress()["round"] is not None)
        assert next(again.standing.participant.recorder.rows(0, 1)).round == kept


async def test_a_member_that_pauses_stays_a_member(tmp_path):
    async with network(tmp_path, 2, rounds=MANY, deadline_s=30.0) as net:
        one = await net.join("one", net.token())
        await net.phase(Phase.RUNNING)
        assert await order(net, "one", "pause") == 200
        await until(lambda: one.standing.steps._waiting)
        heard = one._transport.tally.read()
        await until(lambda: one._transport.tally.read() != heard)
        [peer] = await net.get("founder", "peers")
        assert (peer["state"], peer["role"]) == ("alive", "learner")
        assert (await net.get("one", "status"))["restraint"] == "paused"
        assert await metric(net, "one", "starling_incarnation ") == peer["incarnation"]
        assert await metric(net, "one", "starling_health_score ") >= 0
        assert await metric(net, "one", "starling_suspicions_total ") >= 0
        sent = 'starling_messages_total{direction="sent",kind="starling/membership/1",peer="0"}'
        assert await metric(net, "one", sent) > 0


async def test_the_founder_drains_too_and_the_others_go_on(tmp_path):
    async with network(tmp_path, 3, rounds=MANY, deadline_s=30.0) as net:
        token = net.token()
        one = await net.join("one", token)
        await net.join("two", token)
        await net.phase(Phase.RUNNING)
        assert await order(net, "founder", "drain") == 200
        async with asyncio.timeout(30):
            assert await net.tasks["founder"] == 0
        await until(lambda: 0 in one.standing.lost)
        before = one.standing.participant.recorder.rounds()
        await until(lambda: one.standing.participant.recorder.rounds() > before + 1)
