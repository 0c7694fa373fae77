"""Members that go on under other keys: as the same node, past an overlap in which both count."""

from __future__ import annotations

import asyncio
import time

import pytest

from networks import network, until
from node.cli import network as cli
from node.daemon import rekeying
from node.daemon.rekeying import rekey
from node.daemon.standing import Phase
from node.errors import ConfigError, TransportError
from node.identity import Identity
from node.trust import authority
from node.trust.certificate import peer_id
from node.trust.state import TRUST, load_trust

MANY = 100_000


@pytest.fixture(autouse=True)
def at_any_time(monkeypatch):
    monkeypatch.setattr(authority, "CHANGE_EVERY_S", -3600)


def keys(tmp_path, name="one"):
    return Identity.load(tmp_path / name / "keys" / "node.key")


async def changed(net, tmp_path, name="one"):
    """Stop a member, and have it change its keys; certificate, and until when the old ones count."""
    await net.stop(name)
    return await asyncio.to_thread(rekey, tmp_path / name)


async def test_a_member_goes_on_under_new_keys_as_the_same_node_in_the_round_that_it_had_come_to(tmp_path):
    async with network(tmp_path, 3, rounds=MANY, deadline_s=0.5) as net:
        token = net.token()
        one = await net.join("one", token)
        two = await net.join("two", token)
        await net.phase(Phase.RUNNING)
        await until(lambda: (one.standing.progress()["round"] or 0) >= 1)
        old, number = keys(tmp_path), one.standing.joining._own.node
        certificate, until_s = await changed(net, tmp_path)
        kept = one.standing.checkpoints.load()[0]["round"]
        assert certificate.node == number
        assert certificate.binds(keys(tmp_path))
        assert keys(tmp_path).signing_public != old.signing_public
        assert keys(tmp_path).curve_public != old.curve_public
        assert until_s > time.time() + 86_000, "a day, by default"

        again = await net.join("one", None)
        await net.phase(Phase.RUNNING, "one")
        await until(lambda: again.standing.progress()["round"] is not None)
        assert next(again.standing.participant.recorder.rows(0, 1)).round >= kept
        for daemon in (net.daemons["founder"], two):
            await until(lambda daemon=daemon: number not in daemon.standing.lost)
            members = daemon.standing.joining._members
            await until(lambda members=members: members.roster().card(number).curve_key == keys(tmp_path).curve_public)
            trust = daemon.standing.joining._belonging.trust
            now_s = time.time()
            assert trust.holder(old.curve_public, now_s), "both count for a while"
            await until(lambda trust=trust: trust.holder(old.curve_public, until_s + 1.0) is None)
            assert trust.holder(keys(tmp_path).curve_public, until_s + 1.0) == certificate


async def test_nobody_gets_new_keys_twice_in_ten_minutes(tmp_path, monkeypatch):
    async with network(tmp_path, 2, rounds=MANY) as net:
        await net.join("one", net.token())
        await net.phase(Phase.RUNNING)
        monkeypatch.setattr(authority, "CHANGE_EVERY_S", 600)
        before = keys(tmp_path)
        with pytest.raises(ConfigError, match=r"change its keys in ten minutes \(rate\)"):
            await changed(net, tmp_path)
        assert keys(tmp_path).signing_public == before.signing_public


async def test_a_node_that_runs_keeps_its_keys(tmp_path):
    async with network(tmp_path, 2, rounds=MANY) as net:
        await net.join("one", net.token())
        await net.phase(Phase.RUNNING)
        with pytest.raises(ConfigError, match="in use by another process; stop that node"):
            await asyncio.to_thread(rekey, tmp_path / "one")


class Killed(Exception):
    pass


def killed(*args):
    raise Killed


@pytest.mark.parametrize("step", ["ask", "arrive", "take_over"])
async def test_who_is_killed_on_the_way_does_it_again_and_gets_the_same_keys(tmp_path, monkeypatch, step):
    async with network(tmp_path, 2, rounds=MANY) as net:
        await net.join("one", net.token())
        await net.phase(Phase.RUNNING)
        old = keys(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(rekeying, step, killed)
            with pytest.raises(Killed):
                await changed(net, tmp_path)
        assert keys(tmp_path).signing_public == old.signing_public, "it could start as it was"
        coming = Identity.load(tmp_path / "one" / "keys" / "next.key").signing_public
        certificate, _ = await asyncio.to_thread(rekey, tmp_path / "one")
        assert certificate.signing_key == coming == keys(tmp_path).signing_public
        with net.folder.authority() as held:
            assert held.holders(certificate.node, time.time()) == sorted([peer_id(old.signing_public), peer_id(coming)])
        await net.join("one", None)
        await net.phase(Phase.RUNNING, "one")


async def test_a_revoked_member_gets_no_new_keys(tmp_path):
    async with network(tmp_path, 2, rounds=MANY) as net:
        await net.join("one", net.token())
        await net.phase(Phase.RUNNING)
        with net.folder.authority() as held:
            held.revoke(peer_id(keys(tmp_path).signing_public), time.time())
        with pytest.raises(ConfigError, match=r"\(revoked\)"):
            await changed(net, tmp_path)


async def test_without_its_admitting_node_a_member_keeps_its_keys(tmp_path, monkeypatch):
    async with network(tmp_path, 2, rounds=MANY) as net:
        await net.join("one", net.token())
        await net.phase(Phase.RUNNING)
        await net.stop("one")
        await net.stop("founder")
    before = keys(tmp_path).signing_public
    monkeypatch.setattr("node.daemon.renewal._ANSWER_S", 0.2)
    with pytest.raises(TransportError, match="no answer in time"):
        await asyncio.to_thread(rekey, tmp_path / "one")
    assert keys(tmp_path).signing_public == before
    assert load_trust(tmp_path / "one" / TRUST).holder(keys(tmp_path).curve_public, time.time())


async def test_the_command_says_who_it_is_now_and_until_when_the_old_keys_count(tmp_path, capsys):
    async with network(tmp_path, 2, rounds=MANY) as net:
        await net.join("one", net.token())
        await net.phase(Phase.RUNNING)
        await net.stop("one")
        await asyncio.to_thread(cli.rotate, tmp_path / "nowhere", tmp_path / "one")
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("node 1 is peer ")]
    assert "from its next start, its old keys end 2" in line


async def test_a_founder_keeps_its_keys(tmp_path):
    """They are in every invitation, and every member dials them."""
    async with network(tmp_path, 2) as net:
        await net.stop("founder")
        before = keys(tmp_path, "founder").signing_public
        with pytest.raises(ConfigError, match=r"^--member .*: allowed: the state folder of a node that has joined"):
            rekey(tmp_path / "founder")
        assert keys(tmp_path, "founder").signing_public == before


def test_a_folder_of_nobody_stays_as_it_is(tmp_path):
    with pytest.raises(ConfigError, match="--member"):
        rekey(tmp_path / "nobody")
    assert not list(tmp_path.iterdir())
