"""Admission as bytes in, bytes out: members are welcomed with all they need, strangers get one word."""

from __future__ import annotations

import json
from contextlib import contextmanager

import msgspec
import pytest
from structlog.testing import capture_logs

from node.errors import StoreError
from node.trust.arrival import arrive
from node.trust.audit import Audit
from node.trust.certificate import Role
from node.trust.refusal import Reason, Refused
from node.trust.registrar import Registrar
from node.trust.request import (
    MOST_ANSWER_BYTES,
    MOST_REQUEST_BYTES,
    Join,
    Renew,
    Turned,
    Welcome,
    decode_answer,
    decode_request,
    encode,
)
from trust_parties import ALICE, BOB, CAROL, DAY_S, MALLORY, NETWORK, NOW_S, Network, certificate, refused

CARDS = {0: b"card of node 0"}


@pytest.fixture
def network() -> Network:
    return Network(nodes=3)


@pytest.fixture
def registrar(network, tmp_path) -> Registrar:
    @contextmanager
    def authority():
        yield network.authority

    return Registrar(authority, Audit(tmp_path / "audit.jsonl"), "demo", "nodes = 3\n", lambda: CARDS)


def ask(registrar: Registrar, request: Join | Renew, link_key: bytes, now_s: float = NOW_S) -> Welcome | Turned:
    return decode_answer(registrar.answer(encode(request), link_key, "192.0.2.9", now_s))


def audited(tmp_path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]


class TestWelcome:
    def test_a_newcomer_gets_all_it_needs(self, network, registrar):
        network.member(ALICE)
        token = network.token()
        welcome = ask(registrar, Join.by(BOB, token), BOB.curve_public)
        assert isinstance(welcome, Welcome)
        assert (welcome.name, welcome.experiment, welcome.time_s) == ("demo", "nodes = 3\n", NOW_S)
        assert [(one.certificate.node, one.card) for one in welcome.members] == [(0, b"card of node 0"), (1, b"")]
        trust = network.trust()
        assert arrive(trust, welcome, BOB, NOW_S) == welcome.certificate
        assert trust.holder(ALICE.curve_public, NOW_S) is not None

    def test_asking_again_gives_the_same_certificate(self, network, registrar):
        request = Join.by(ALICE, network.token())
        first, second = (ask(registrar, request, ALICE.curve_public) for _ in range(2))
        assert first == second

    def test_a_member_renews(self, network, registrar):
        network.member(ALICE)
        welcome = ask(registrar, Renew.by(ALICE, BOB, NETWORK), BOB.curve_public, NOW_S + DAY_S)
        assert welcome.certificate.binds(BOB)
        assert [one.number for one in welcome.revocations] == [1]

    def test_revocations_and_successions_come_with_it(self, network, registrar):
        alices = network.member(ALICE)
        revocation = network.authority.revoke(alices.peer_id, NOW_S)
        succession = network.authority.succeed(MALLORY, NOW_S)
        welcome = ask(registrar, Join.by(BOB, network.token()), BOB.curve_public)
        assert (welcome.revocations, welcome.successions) == ((revocation,), (succession,))
        assert [one.certificate.node for one in welcome.members] == [1]

    def test_it_fits_whatever_the_network_is(self, network, registrar, monkeypatch):
        """Of many members some are told: those that can be reached first."""
        many = [certificate(node=node) for node in range(2000)]
        monkeypatch.setattr(network.authority, "members", lambda now_s: many)
        monkeypatch.setattr(registrar, "_cards", lambda: dict.fromkeys(range(1990, 2000), bytes(1024)))
        answer = registrar.answer(encode(Join.by(BOB, network.token())), BOB.curve_public, "192.0.2.9", NOW_S)
        assert len(answer) <= MOST_ANSWER_BYTES
        told = [one.certificate.node for one in decode_answer(answer).members]
        assert told[:12] == [*range(1990, 2000), 0, 1]
        assert len(told) >= 500


class TestRefusals:
    def test_a_stranger_gets_one_word(self, network, registrar, tmp_path):
        token = msgspec.structs.replace(network.token(), secret=bytes(16))
        with capture_logs() as logs:
            answer = registrar.answer(encode(Join.by(MALLORY, token)), MALLORY.curve_public, "192.0.2.9", NOW_S)
        assert decode_answer(answer) == Turned(Reason.UNKNOWN_TOKEN)
        assert len(answer) < 32
        assert registrar.refused == {Reason.UNKNOWN_TOKEN: 1}
        (line,) = logs
        assert (line["event"], line["reason"], line["address"]) == ("admission refused", "unknown_token", "192.0.2.9")
        (entry,) = audited(tmp_path)
        assert (entry["actor"], entry["result"], entry["reason"]) == ("192.0.2.9", "refused", "unknown_token")

    def test_every_reason_is_counted(self, network, registrar):
        token = network.token(expires_s=NOW_S + 10)
        joins = {
            Reason.NETWORK: (Join.by(ALICE, msgspec.structs.replace(token, network=bytes(20))), ALICE, NOW_S),
            Reason.KEY: (Join.by(ALICE, token), BOB, NOW_S),
            Reason.EXPIRED: (Join.by(ALICE, token), ALICE, NOW_S + 11),
            Reason.SIGNATURE: (Join.by(ALICE, token).signed_by(BOB), ALICE, NOW_S),
            Reason.UNKNOWN_TOKEN: (Join.by(ALICE, msgspec.structs.replace(token, id=bytes(8))), ALICE, NOW_S),
        }
        for reason, (join, link, now_s) in joins.items():
            assert ask(registrar, join, link.curve_public, now_s) == Turned(reason)
        assert registrar.refused == dict.fromkeys(joins, 1)
        assert isinstance(ask(registrar, Join.by(ALICE, token), ALICE.curve_public), Welcome)

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"", Reason.VERSION),
            (b"\x02", Reason.VERSION),
            (b"\x01", Reason.MALFORMED),
            (b"\x01\xc0", Reason.MALFORMED),
            (b"\x01" + b"\x91" * 900, Reason.MALFORMED),
            (bytes(MOST_REQUEST_BYTES + 1), Reason.MALFORMED),
            (encode(Turned(Reason.RATE)), Reason.MALFORMED),
        ],
    )
    def test_anything_else_is_malformed(self, registrar, data, reason):
        assert decode_answer(registrar.answer(data, bytes(32), "192.0.2.9", NOW_S)) == Turned(reason)

    def test_secrets_are_nowhere(self, network, registrar, tmp_path, capfd):
        token = network.token()
        with capture_logs() as logs:
            for who in (ALICE, BOB):
                ask(registrar, Join.by(who, token), who.curve_public)
        told = repr(logs) + (tmp_path / "audit.jsonl").read_text() + "".join(capfd.readouterr())
        assert len(logs) == 2
        for secret in (token.secret.hex(), repr(token.secret), token.to_text()):
            assert secret not in told
        assert repr(Join.by(ALICE, token)) == f"<Join with token {token.id.hex()}>"

    def test_the_run_goes_on(self, network, registrar):
        """Fifty strangers later a member comes in as if nothing had been."""
        token = network.token()
        for number in range(50):
            wrong = msgspec.structs.replace(token, secret=number.to_bytes(16, "big"))
            assert ask(registrar, Join.by(MALLORY, wrong), MALLORY.curve_public) == Turned(Reason.UNKNOWN_TOKEN)
        assert isinstance(ask(registrar, Join.by(CAROL, token), CAROL.curve_public), Welcome)
        assert registrar.refused.total() == 50

    def test_an_audit_that_cannot_be_written_is_told_and_is_no_refusal(self, network, registrar, monkeypatch):
        def full(*entry):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Audit, "record", full)
        with capture_logs() as logs:
            assert isinstance(ask(registrar, Join.by(ALICE, network.token()), ALICE.curve_public), Welcome)
        assert {"event": "audit not written", "reason": "No space left on device", "log_level": "error"} in logs

    def test_a_full_disk_lets_nobody_in(self, network, registrar, monkeypatch):
        request = encode(Join.by(ALICE, network.token()))

        def full(entry):
            raise StoreError("the disk is full")

        monkeypatch.setattr(network.authority, "_keep", full)
        with pytest.raises(StoreError):
            registrar.answer(request, ALICE.curve_public, "192.0.2.9", NOW_S)
        assert network.authority.newest() == []


class TestMessages:
    @pytest.mark.parametrize("role", [Role.learner, Role.storage])
    def test_requests_lead_back(self, network, role):
        for request in (Join.by(ALICE, network.token(role)), Renew.by(ALICE, BOB, NETWORK)):
            again = decode_request(encode(request))
            assert again == request
            assert encode(again) == encode(request)
            assert len(encode(request)) < MOST_REQUEST_BYTES / 2

    def test_an_answer_is_no_request(self):
        for read, data in ((decode_request, encode(Turned(Reason.FULL))), (decode_answer, b"\x01\x93\xa4join\xc0\xc0")):
            with refused(Reason.MALFORMED):
                read(data)

    def test_a_turn_away_names_a_reason_that_there_is(self):
        with pytest.raises(Refused, match="not_a_reason"):
            decode_answer(b"\x01" + msgspec.msgpack.encode(["turned", "not_a_reason"]))
