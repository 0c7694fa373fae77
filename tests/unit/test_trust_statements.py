"""Certificates, revocations and successions: one form in bytes, one signer, one domain each."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.trust.certificate import TOLERANCE_S, Certificate, Role, id_of, id_text, peer_id
from node.trust.refusal import Reason, Refused
from node.trust.request import Join, Renew
from node.trust.revocation import Revocation, Revocations
from node.trust.statement import verifies
from node.trust.succession import MOST, Lineage, Succession
from trust_parties import ADMISSION, ALICE, BOB, DAY_S, MALLORY, NETWORK, NOW_S, certificate, refused

CERTIFICATE = certificate()
PEER = peer_id(ALICE.signing_public)


def revocation(**changed: object) -> Revocation:
    values = {"network": NETWORK, "number": 1, "peer_id": PEER, "at_s": NOW_S, "forget_s": NOW_S + DAY_S}
    return Revocation(**{**values, **changed}).signed_by(ADMISSION)


def succession(old, new, until_s=NOW_S + DAY_S, network=NETWORK) -> Succession:
    return Succession(network, old.signing_public, new.signing_public, until_s).signed_by(old)


STATEMENTS = [CERTIFICATE, revocation(why="left the company"), succession(ADMISSION, BOB)]


class TestIds:
    def test_a_peer_is_the_hash_of_its_signing_key(self):
        assert CERTIFICATE.peer_id == PEER
        assert len(PEER) == 20
        assert peer_id(BOB.signing_public) != PEER
        assert peer_id(ALICE.curve_public) != PEER

    @given(st.binary(min_size=20, max_size=20))
    def test_their_text_leads_back(self, identifier):
        assert id_of(id_text(identifier)) == identifier
        assert len(id_text(identifier)) == 32

    @pytest.mark.parametrize("text", ["", "a", "A" * 32, "1" * 32, "a" * 31, "a" * 40, "ä" * 32, "a" * 31 + "="])
    def test_no_other_text_is_one(self, text):
        with pytest.raises(ValueError):
            id_of(text)


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda statement: type(statement).__name__)
class TestStatements:
    def test_what_is_written_is_read(self, statement):
        again = type(statement).from_bytes(statement.to_bytes())
        assert again == statement
        assert again.to_bytes() == statement.to_bytes()
        again.check(ADMISSION.signing_public)

    def test_nobody_else_has_signed_it(self, statement):
        with refused(Reason.SIGNATURE, "not signed by the key"):
            statement.check(MALLORY.signing_public)

    def test_a_signature_is_not_that_of_another_kind(self, statement):
        signed = type(statement).domain + b"\x01" + msgspec.msgpack.encode(msgspec.structs.astuple(statement)[:-1])
        assert verifies(ADMISSION.signing_public, signed, statement.signature)
        for other in (Certificate, Revocation, Succession, Join, Renew):
            elsewhere = signed.replace(type(statement).domain, other.domain)
            assert other is type(statement) or not verifies(ADMISSION.signing_public, elsewhere, statement.signature)

    def test_every_bit_counts(self, statement):
        data = statement.to_bytes()
        for place in range(len(data)):
            changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
            with pytest.raises(Refused) as caught:
                type(statement).from_bytes(changed).check(ADMISSION.signing_public)
            assert caught.value.reason in (Reason.MALFORMED, Reason.VERSION, Reason.SIGNATURE)

    def test_a_part_of_it_is_nothing(self, statement):
        data = statement.to_bytes()
        for length in range(len(data)):
            with pytest.raises(Refused):
                type(statement).from_bytes(data[:length])

    def test_what_follows_is_nothing_either(self, statement):
        with refused(Reason.MALFORMED):
            type(statement).from_bytes(statement.to_bytes() + b"\0")

    def test_another_version_is_named(self, statement):
        with refused(Reason.VERSION, "has version 2; this program reads version 1"):
            type(statement).from_bytes(b"\x02" + statement.to_bytes()[1:])

    def test_it_is_bounded(self, statement):
        with refused(Reason.MALFORMED, "at most"):
            type(statement).from_bytes(b"\x01" + bytes(100_000))

    def test_other_bytes_of_the_same_meaning_are_not_it(self, statement):
        data = statement.to_bytes()
        long_array = b"\x01\xdc\x00" + bytes([data[1] & 0x0F]) + data[2:]  # an array 16 instead of a fixarray
        with refused(Reason.MALFORMED, "canonical"):
            type(statement).from_bytes(long_array)


def test_all_domains_differ():
    domains = [kind.domain for kind in (Certificate, Revocation, Succession, Join, Renew)]
    assert len(set(domains)) == len(domains)
    assert not [one for one in domains for other in domains if one != other and one.startswith(other)]


class TestCertificate:
    def test_its_times_count_with_a_tolerance(self):
        for now_s in (CERTIFICATE.not_before_s - TOLERANCE_S, NOW_S, CERTIFICATE.not_after_s + TOLERANCE_S):
            CERTIFICATE.check_times(now_s)
        with refused(Reason.EXPIRED, "renew it"):
            CERTIFICATE.check_times(CERTIFICATE.not_after_s + TOLERANCE_S + 1)
        with refused(Reason.SKEW, "this machine's clock is behind"):
            CERTIFICATE.check_times(CERTIFICATE.not_before_s - TOLERANCE_S - 1)

    def test_it_is_about_two_keys(self):
        assert CERTIFICATE.binds(ALICE)
        assert not CERTIFICATE.binds(BOB)
        assert not certificate(curve_key=BOB.curve_public).binds(ALICE)

    @pytest.mark.parametrize(
        "changed",
        [
            {"network": b"short"},
            {"node": -1},
            {"node": 2**31},
            {"signing_key": bytes(31)},
            {"curve_key": bytes(33)},
            {"not_before_s": -1},
            {"not_after_s": 2**40},
            {"serial": 2**53},
        ],
        ids=lambda changed: next(iter(changed)),
    )
    def test_no_value_is_beyond_its_bounds(self, changed):
        with refused(Reason.MALFORMED):
            Certificate.from_bytes(certificate(**changed).to_bytes())

    def test_a_role_that_is_none(self):
        data = certificate().to_bytes().replace(b"\xa7learner", b"\xa7emperor")
        with refused(Reason.MALFORMED, "emperor"):
            Certificate.from_bytes(data)

    @pytest.mark.parametrize("role", Role)
    def test_it_is_short(self, role):
        assert len(certificate(role=role).to_bytes()) < 200

    def test_it_shows_no_keys(self):
        assert repr(CERTIFICATE) == f"<Certificate 7: node 3, learner, {id_text(PEER)}>"


class TestRevocations:
    def test_it_takes_effect_at_its_time(self):
        known = Revocations()
        known.add(revocation(at_s=NOW_S + 10))
        known.check(PEER, NOW_S + 9)
        with refused(Reason.REVOKED, "number 1"):
            known.check(PEER, NOW_S + 10)
        known.check(peer_id(BOB.signing_public), NOW_S + 10)

    @pytest.mark.parametrize("reverse", [False, True])
    def test_the_earliest_counts_in_whatever_order_they_come(self, reverse):
        known = Revocations()
        for one in sorted([revocation(number=1, at_s=NOW_S + 50), revocation(number=2)], reverse=reverse, key=str):
            known.add(one)
        assert known.is_revoked(PEER, NOW_S)
        assert len(known) == 1

    def test_it_is_forgotten_once_no_certificate_can_count(self):
        known = Revocations()
        known.add(revocation())
        known.forget(NOW_S + DAY_S + TOLERANCE_S)
        assert known.of(PEER) is not None
        known.forget(NOW_S + DAY_S + TOLERANCE_S + 1)
        assert list(known) == []

    def test_they_come_in_the_order_of_their_numbers(self):
        known = Revocations()
        for number in (3, 1, 2):
            known.add(revocation(number=number, peer_id=bytes([number]) * 20))
        assert [one.number for one in known] == [1, 2, 3]

    def test_why_is_one_line(self):
        with refused(Reason.MALFORMED):
            Revocation.from_bytes(revocation(why="line\nbreak").to_bytes())


class TestLineage:
    def lineage(self) -> Lineage:
        return Lineage(NETWORK, ADMISSION.signing_public)

    def test_a_key_names_the_next(self):
        lineage = self.lineage()
        assert lineage.accepts(succession(ADMISSION, ALICE))
        lineage.extend(succession(ADMISSION, ALICE))
        assert lineage.accepts(succession(ALICE, BOB))
        lineage.extend(succession(ALICE, BOB))
        assert lineage.current == BOB.signing_public

    def test_none_is_taken_twice(self):
        lineage = self.lineage()
        lineage.extend(succession(ADMISSION, ALICE))
        assert not lineage.accepts(succession(ADMISSION, ALICE))

    def test_a_key_has_one_successor(self):
        lineage = self.lineage()
        lineage.extend(succession(ADMISSION, ALICE))
        with refused(Reason.ORDER, "does not follow"):
            lineage.accepts(succession(ADMISSION, BOB))

    def test_there_is_no_way_back(self):
        lineage = self.lineage()
        lineage.extend(succession(ADMISSION, ALICE))
        with refused(Reason.ORDER):
            lineage.accepts(succession(ALICE, ADMISSION))

    def test_nobody_names_himself(self):
        stolen = Succession(NETWORK, ADMISSION.signing_public, MALLORY.signing_public, NOW_S).signed_by(MALLORY)
        with refused(Reason.SIGNATURE):
            self.lineage().accepts(stolen)

    def test_it_begins_with_the_founding_key(self):
        with refused(Reason.NETWORK, "founding admission key"):
            Lineage(NETWORK, ALICE.signing_public)
        assert ADMISSION.signing_public in self.lineage()
        assert ALICE.signing_public not in self.lineage()

    def test_another_networks_key_is_not_ours(self):
        with refused(Reason.NETWORK):
            self.lineage().accepts(succession(ADMISSION, ALICE, network=bytes(20)))

    def test_there_are_not_too_many(self):
        lineage = self.lineage()
        key = ADMISSION
        for _ in range(MOST - 1):
            following = type(key).generate()
            assert lineage.accepts(succession(key, following))
            lineage.extend(succession(key, following))
            key = following
        with refused(Reason.FULL):
            lineage.accepts(succession(key, ALICE))

    def test_what_an_old_key_has_signed_ends(self):
        lineage = self.lineage()
        lineage.extend(succession(ADMISSION, ALICE))
        assert lineage.signer(CERTIFICATE) == ADMISSION.signing_public
        assert lineage.counts(ADMISSION.signing_public, NOW_S + DAY_S + TOLERANCE_S)
        assert not lineage.counts(ADMISSION.signing_public, NOW_S + DAY_S + TOLERANCE_S + 1)
        assert lineage.counts(ALICE.signing_public, NOW_S + 100 * DAY_S)

    def test_a_strangers_signature_is_none(self):
        with refused(Reason.SIGNATURE, "a certificate that no admission key"):
            self.lineage().signer(CERTIFICATE.signed_by(MALLORY))
