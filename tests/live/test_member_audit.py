"""The audits of a network and of its members: joins, refusals, revocations, control calls, changes of keys."""

from __future__ import annotations

import asyncio
import json
import stat
import time

import aiohttp
import pytest
from structlog.testing import capture_logs

from networks import network, until
from node.daemon import decrees, renewal
from node.daemon.decrees import Decrees
from node.daemon.standing import Phase
from node.daemon.trail import AUDIT, Trail
from node.errors import ConfigError, DeadlineExceeded
from node.identity import Identity
from node.live.door import visit
from node.trust.certificate import id_text
from node.trust.revocation import Revocation

KEYS = {"time", "actor", "action", "object", "result", "reason"}


def lines(folder):
    """What an audit says, each as (action, result, reason)."""
    found = [json.loads(line) for line in (folder / AUDIT).read_text().splitlines()]
    assert all(set(line) == KEYS for line in found)
    assert [line["time"] for line in found] == sorted(line["time"] for line in found)
    return found


def told(folder, action):
    return [line for line in lines(folder) if line["action"] == action] if (folder / AUDIT).exists() else []


async def test_joins_and_refusals_are_in_the_audits_of_both_ends(tmp_path):
    async with network(tmp_path, 2, rounds=1) as net:
        once = net.token(uses=1)
        one = await net.join("one", once)
        with pytest.raises(ConfigError):
            await net.join("two", once)
        admitted, turned_away = told(net.folder.path, "admit")
        peer = id_text(one.standing.joining._local().certificate.peer_id)
        assert (admitted["result"], admitted["reason"], admitted["object"]) == ("done", "", f"node 1, learner, {peer}")
        assert (turned_away["result"], turned_away["reason"], turned_away["actor"]) == (
            "refused",
            "used_up",
            "127.0.0.1",
        )
        [joined] = told(tmp_path / "one", "join")
        assert joined["object"] == f"network {net.folder.settings.id}, as node 1, learner"
        assert not (tmp_path / "two" / AUDIT).exists()

        founder = net.daemons["founder"]
        with pytest.raises(DeadlineExceeded):
            await asyncio.to_thread(
                visit,
                Identity.generate(),
                founder.standing.address,
                founder._state.identity.curve_public,
                lambda ask: ask(b"\x63nonsense"),
                0.3,
            )
        [knock] = told(tmp_path / "founder", "knock")
        assert (knock["actor"], knock["result"], knock["reason"]) == ("127.0.0.1", "refused", "malformed")
        assert stat.S_IMODE((tmp_path / "founder" / AUDIT).stat().st_mode) == 0o600


async def test_revocations_and_changes_of_keys_are_in_every_members(tmp_path, monkeypatch):
    monkeypatch.setattr(renewal, "LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(decrees, "LOOK_EVERY_S", 0.1)
    async with network(tmp_path, 3, rounds=1) as net:
        token = net.token()
        for name in ("one", "two"):
            await net.join(name, token)
        await net.phase(Phase.FINISHED)
        key = net.folder.rotate(time.time()).new_key.hex()
        with net.folder.authority() as authority:
            [peer] = authority.holders(2, time.time())
            authority.revoke(peer, time.time(), "stolen")
        await until(lambda: told(tmp_path / "one", "revoke") and told(tmp_path / "one", "renew"))
        [revoked], [succeeded], [renewed] = (told(tmp_path / "one", what) for what in ("revoke", "succeed", "renew"))
        assert revoked["object"].startswith(f"peer {id_text(peer)}, ")
        assert succeeded["object"] == f"admission key {key}"
        assert renewed["object"].endswith(" of node 1")
        assert {line["actor"] for line in (revoked, succeeded)} == {"admission key"}
        assert told(net.folder.path, "renew")[0]["object"].startswith("node 1, learner, ")


async def test_control_calls_are_with_and_without_the_token(tmp_path):
    async with network(tmp_path, 1, rounds=1) as net:
        founder = net.daemons["founder"]
        await net.phase(Phase.FINISHED)
        async with aiohttp.ClientSession() as session:
            for token, status in (("wrong", 403), (founder._state.token, 200)):
                headers = {"Authorization": f"Bearer {token}"}
                async with session.post(f"{founder.standing.admin}/pause", headers=headers) as answer:
                    assert answer.status == status
        paused = [(line["result"], line["reason"], line["object"]) for line in told(tmp_path / "founder", "pause")]
        assert paused == [("refused", "token", "node 0"), ("done", "", "node 0")]
        assert founder._state.token not in (tmp_path / "founder" / AUDIT).read_text()


async def test_a_decree_that_is_none_is_held_against_who_tells_it(tmp_path):
    async with network(tmp_path, 2, rounds=1) as net:
        one = await net.join("one", net.token())
        await net.phase(Phase.FINISHED)
        own = one.standing.joining._belonging.trust
        forged = Revocation(own.network, 1, bytes(20), int(time.time()), int(time.time()) + 3600)
        wrong = Decrees(revocations=(forged.signed_by(Identity.generate()).to_bytes(),), successions=())
        from node import codec

        one._transport.post(0, codec.encode(wrong, lambda ref: memoryview(b"")))
        await until(lambda: told(tmp_path / "founder", "decree"))
        [line] = told(tmp_path / "founder", "decree")
        assert (line["actor"], line["result"]) == ("node 1", "refused")


def test_a_full_disk_costs_a_line_and_nothing_else(tmp_path, monkeypatch):
    trail = Trail(tmp_path, 3)
    trail.note("somebody", "pause")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("node.trust.audit.os.open", full)
    with capture_logs() as logs:
        trail.note("somebody", "stop")
    monkeypatch.undo()
    assert [(line["event"], line["reason"]) for line in logs] == [("audit not written", "No space left on device")]
    assert [line["action"] for line in lines(tmp_path)] == ["pause"]
    assert lines(tmp_path)[0]["object"] == "node 3"
