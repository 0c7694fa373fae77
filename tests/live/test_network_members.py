"""Members of a network: invited, introduced, gone and back; and those that are none."""

from __future__ import annotations

import asyncio
import os
import time

import numpy as np
import pytest

from networks import network, until
from node.daemon import decrees, renewal
from node.daemon.introduction import Topic, introduce
from node.daemon.members import record_of
from node.daemon.standing import Phase
from node.errors import ConfigError, DeadlineExceeded
from node.experiment.virtual import run_virtual
from node.identity import Identity
from node.learn.tensors import load_model
from node.live.door import visit
from node.membership.statement import State, Statement
from node.trust.certificate import Certificate, Role, id_text
from node.trust.handshake import Handshake, Local

ANSWER_S = 20.0
SILENCE_S = 0.5


def curve_key(daemon):
    return daemon._state.identity.curve_public


def word_of(identity, certificate, address, incarnation=1, node=None):
    """What a member says of itself."""
    card = identity.card(certificate.node, address, id_text(certificate.network))
    peer = certificate.node if node is None else node
    word = Statement(State.ALIVE, peer, incarnation, peer, record_of(certificate, card))
    return word._replace(signature=identity.sign(word.signed_bytes))


async def test_invited_nodes_learn_what_the_simulation_does_bit_for_bit(tmp_path):
    async with network(tmp_path, 3) as net:
        token = net.token(uses=2)
        await net.join("one", token)
        await net.join("two", token)
        await net.phase(Phase.FINISHED)
        assert [daemon.standing.settings.node for daemon in net.daemons.values()] == [0, 1, 2]
        peers = await net.get("two", "peers")
        assert [(peer["node"], peer["state"], peer["role"]) for peer in peers] == [
            (0, "alive", "learner"),
            (1, "alive", "learner"),
        ]
        for name in ("one", "two", "founder"):
            assert await net.stop(name) == 0
        expected = await asyncio.to_thread(run_virtual, net.setup, lambda *_: None)
        for node, name in enumerate(("founder", "one", "two")):
            mine = load_model(tmp_path / name / "model.safetensors", net.setup.model)
            assert np.array_equal(np.asarray(mine), np.asarray(expected.models[node]))


async def test_a_token_lets_in_as_many_as_it_says_and_the_others_are_told_why(tmp_path):
    async with network(tmp_path, 4) as net:
        once = net.token(uses=1)
        await net.join("one", once)
        with pytest.raises(ConfigError, match="used as often as it may be"):
            await net.join("two", once)
        with pytest.raises(ConfigError, match=r"ended .* ago; ask for a new one"):
            await net.join("late", net.token(expires_s=int(time.time()) - 10))
        stranger = once.__class__(
            once.network, once.admission_key, once.bootstrap, Role.learner, 0, 1, bytes(8), bytes(16)
        )
        with pytest.raises(ConfigError, match="it knows no such invitation"):
            await net.join("nobody", stranger)
        assert await net.refused("founder") == {"used_up": 1, "unknown_token": 1}
        assert "alive" in str(await net.get("founder", "peers"))


async def test_one_who_asks_twice_with_the_same_keys_is_the_same_member(tmp_path):
    async with network(tmp_path, 3) as net:
        once = net.token(uses=1)
        await net.join("one", once)
        await net.phase(Phase.WAITING, "one")
        await net.stop("one")
        for name in ("trust.jsonl", "network.json"):
            (tmp_path / "one" / name).unlink()
        again = await net.join("one", once)
        assert again.standing.settings.node == 1


async def test_a_node_that_was_away_returns_without_invitation_as_itself(tmp_path):
    async with network(tmp_path, 2, rounds=2) as net:
        await net.join("one", net.token())
        await net.phase(Phase.FINISHED)
        before = (await net.get("founder", "peers"))[0]
        await net.stop("one")
        await until(lambda: 1 in net.daemons["founder"].standing.lost)
        assert (await net.get("founder", "peers"))[0]["state"] == "left"
        await net.join("one", None)
        await net.phase(Phase.FINISHED, "one")
        await until(lambda: 1 not in net.daemons["founder"].standing.lost)
        after = (await net.get("founder", "peers"))[0]
        assert after["state"] == "alive"
        assert after["incarnation"] > before["incarnation"]
        assert after["address"] != before["address"]  # port 0 is another at every start


async def test_one_that_returns_does_not_wait_for_those_who_are_gone(tmp_path):
    async with network(tmp_path, 3, rounds=2, deadline_s=1.0) as net:
        token = net.token()
        await net.join("one", token)
        await net.join("two", token)
        await net.phase(Phase.FINISHED)
        await net.stop("two")
        await net.stop("one")
        await net.join("one", None)
        await net.phase(Phase.FINISHED, "one")
        assert 2 in net.daemons["one"].standing.lost


async def test_a_revoked_member_is_cut_off_everywhere_and_does_not_come_back(tmp_path):
    async with network(tmp_path, 3, rounds=1) as net:
        token = net.token()
        for name in ("one", "two"):
            await net.join(name, token)
        await net.phase(Phase.FINISHED)
        revoked = net.daemons["two"]._state.identity
        with net.folder.authority() as authority:
            [peer] = authority.holders(2, time.time())
            authority.revoke(peer, time.time(), "stolen")
        for name in ("founder", "one"):
            await until(lambda name=name: 2 in net.daemons[name].standing.lost)
            assert revoked.curve_public not in {card.curve_key for card in net.daemons[name]._transport.roster}
        await net.stop("two")
        before = (await net.refused("founder")).get("revoked", 0)
        await net.join("two", token)  # it may not have heard; the others have
        await net.phase(Phase.FINISHED, "two")
        assert (await net.refused("founder"))["revoked"] > before
        assert 2 in net.daemons["founder"].standing.lost
        assert net.daemons["two"].standing.lost.keys() == {0, 1}


async def test_only_members_are_met(tmp_path):
    """Forged and foreign certificates, stolen ones, replayed handshakes, another's word: refused, counted, and on."""
    async with network(tmp_path, 4) as net:
        founder = net.daemons["founder"]
        member = await net.join("one", net.token())
        await net.phase(Phase.WAITING, "one")
        own = member.standing.joining._local()
        address, key = founder.standing.address, curve_key(founder)

        async def is_refused(identity, conversation, reason):
            before = (await net.refused("founder")).get(reason, 0)
            with pytest.raises(DeadlineExceeded):
                await asyncio.to_thread(visit, identity, address, key, conversation, SILENCE_S)
            assert (await net.refused("founder"))[reason] == before + 1

        def opening(local):
            handshake = Handshake(local, os.urandom(32), key, time.monotonic())
            return bytes([Topic.HANDSHAKE]) + handshake.open(time.time())

        forger = Identity.generate()
        keys, now_s = (forger.signing_public, forger.curve_public), int(time.time())
        forged = Certificate(own.trust.network, 3, *keys, Role.learner, now_s, now_s + 3600, 99).signed_by(forger)
        await is_refused(forger, lambda ask: ask(opening(Local(forger, forged, own.trust, 1))), "signature")

        stolen = Local(forger, own.certificate, own.trust, 1)
        await is_refused(forger, lambda ask: ask(opening(stolen)), "key")

        heard = []

        def overheard(ask):
            handshake = Handshake(own, os.urandom(32), key, time.monotonic())
            heard.append(bytes([Topic.HANDSHAKE]) + handshake.open(time.time()))
            ask(heard[0])
            ask(bytes([Topic.PROOF]) + b"\x92\xc4\x00\x90")

        await is_refused(own.identity, overheard, "malformed")
        await is_refused(forger, lambda ask: ask(heard[0]), "key")
        await is_refused(forger, lambda ask: ask(bytes([Topic.PROOF])), "order")
        await is_refused(forger, lambda ask: ask(b"\x63nonsense"), "malformed")

        borrowed = word_of(own.identity, own.certificate, "tcp://127.0.0.1:9", node=2)
        with pytest.raises(DeadlineExceeded):
            await asyncio.to_thread(introduce, own, borrowed, address, key, 0, SILENCE_S)
        assert (await net.refused("founder"))["sender"] == 1

        await net.join("two", net.token())
        await net.join("three", net.token())
        await net.phase(Phase.FINISHED)


async def test_a_word_with_a_false_record_is_not_believed(tmp_path):
    async with network(tmp_path, 3) as net:
        founder = net.daemons["founder"]
        member = await net.join("one", net.token())
        await net.phase(Phase.WAITING, "one")
        own = member.standing.joining._local()
        for wrong in (
            word_of(own.identity, own.certificate, "tcp://127.0.0.1:9", incarnation=50)._replace(signature=bytes(64)),
            word_of(own.identity, own.certificate, "tcp://127.0.0.1:9", incarnation=50)._replace(record=b"nothing"),
        ):
            _, said = await asyncio.to_thread(
                introduce, own, wrong, founder.standing.address, curve_key(founder), 0, ANSWER_S
            )
            assert all(word.incarnation < 50 for word in said.words)
        assert sum((await net.refused("founder")).values()) == 2
        assert [peer["incarnation"] for peer in await net.get("founder", "peers") if "incarnation" in peer] != [50]


async def test_certificates_are_renewed_when_the_admission_key_is(tmp_path, monkeypatch):
    monkeypatch.setattr(renewal, "LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(decrees, "LOOK_EVERY_S", 0.1)
    async with network(tmp_path, 3, rounds=1) as net:
        token = net.token()
        await net.join("one", token)
        await net.phase(Phase.WAITING, "one")
        folder = net.folder.rotate(time.time())
        for name in ("founder", "one"):
            meeting = net.daemons[name].standing.joining
            await until(lambda meeting=meeting: meeting._local().certificate.is_signed_by(folder.new_key))
        await net.join("two", token)  # the invitation names the old key, which has named the new one
        await net.phase(Phase.FINISHED)
        assert net.daemons["two"].standing.joining._local().certificate.is_signed_by(folder.new_key)
        assert not net.daemons["founder"].standing.lost
