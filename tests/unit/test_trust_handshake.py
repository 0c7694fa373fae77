"""Two members prove who they are; whoever is in between, says it again, or says it for another, is refused."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from node.identity import Identity
from node.trust.certificate import Role, peer_id
from node.trust.handshake import DEADLINE_S, MOST_BYTES, Handshake, Hello, Local
from node.trust.refusal import Reason, Refused
from node.trust.session import Session, Stamp
from node.trust.trust import Trust
from trust_parties import ALICE, BOB, DAY_S, MALLORY, NETWORK, NOW_S, Network, ends, refused


@pytest.fixture
def network() -> Network:
    return Network()


@pytest.fixture
def alice(network) -> Local:
    return network.local(ALICE)


@pytest.fixture
def bob(network) -> Local:
    return network.local(BOB)


def hear(end: Handshake, *messages: bytes) -> None:
    for message in messages:
        end.receive(message, 0.0, NOW_S)


def exchange(
    initiator: Handshake, responder: Handshake, changed: dict[int, bytes] | None = None
) -> tuple[list[bytes], Session, Session]:
    """Run a handshake to its end; gives its messages and both sessions. Some may be changed on their way."""
    changed = changed or {}
    opening = initiator.open(NOW_S)
    reply = responder.receive(changed.get(0, opening), 0.1, NOW_S).send
    assert reply is not None
    proof, at_initiator = initiator.receive(changed.get(1, reply), 0.2, NOW_S)
    assert proof is not None
    nothing, at_responder = responder.receive(changed.get(2, proof), 0.3, NOW_S)
    assert nothing is None
    assert at_initiator is not None
    assert at_responder is not None
    return [opening, reply, proof], at_initiator, at_responder


class TestAgreement:
    def test_both_know_each_other_in_the_end(self, alice, bob):
        _, at_alice, at_bob = exchange(*ends(alice, bob))
        assert at_alice.peer == bob.certificate
        assert at_bob.peer == alice.certificate
        assert at_alice.id == at_bob.id
        assert len(at_alice.id) == 16

    def test_both_have_learned_the_other(self, alice, bob):
        exchange(*ends(alice, bob))
        assert alice.trust.holder(BOB.curve_public, NOW_S) == bob.certificate
        assert bob.trust.holder(ALICE.curve_public, NOW_S) == alice.certificate

    def test_three_messages_fit_anywhere(self, alice, bob):
        messages, _, _ = exchange(*ends(alice, bob))
        assert [len(message) < 512 for message in messages] == [True] * 3

    def test_every_session_is_another(self, alice, bob):
        sessions = [exchange(*ends(alice, bob, number))[1].id for number in range(20)]
        assert len(set(sessions)) == 20

    @pytest.mark.parametrize(
        ("ours", "theirs", "chosen"), [((1,), (1, 2), 1), ((1, 2, 3), (2, 1), 2), ((4, 2), (4, 2, 1), 4)]
    )
    def test_the_highest_common_version_is_chosen(self, network, ours, theirs, chosen):
        one, other = network.local(ALICE, versions=ours), network.local(BOB, versions=theirs)
        _, at_alice, at_bob = exchange(*ends(one, other))
        assert at_alice.version == at_bob.version == chosen

    @pytest.mark.parametrize(
        ("ours", "theirs", "chosen"),
        [(("a", "b"), ("b", "a"), "a"), (("b", "a"), ("a", "b"), "b"), (("x", "b"), ("a", "b"), "b")],
    )
    def test_the_initiators_first_common_cipher_is_chosen(self, network, ours, theirs, chosen):
        one, other = network.local(ALICE, ciphers=ours), network.local(BOB, ciphers=theirs)
        _, at_alice, at_bob = exchange(*ends(one, other))
        assert at_alice.cipher == at_bob.cipher == chosen

    @pytest.mark.parametrize("less", [{"versions": (9,)}, {"ciphers": ("none",)}])
    def test_nothing_in_common_is_the_end(self, network, alice, less):
        one, other = ends(alice, network.local(BOB, **less))
        with refused(Reason.VERSION, "that we do"):
            other.receive(one.open(NOW_S), 0.0, NOW_S)

    def test_the_life_of_the_peer_is_known(self, network, alice):
        certificate = network.authority.enrol(BOB, Role.learner, NOW_S)
        later = Local(BOB, certificate, network.trust(), incarnation=17)
        _, at_alice, at_bob = exchange(*ends(alice, later))
        assert (at_alice.incarnation, at_bob.incarnation) == (17, 1)

    def test_a_clock_that_is_off_is_told_and_not_refused(self, alice, bob):
        one, other = ends(alice, bob)
        reply = other.receive(one.open(NOW_S), 0.0, NOW_S + 3600).send
        proof, at_alice = one.receive(reply, 0.0, NOW_S)
        _, at_bob = other.receive(proof, 0.0, NOW_S + 3600)
        assert (at_alice.offset_s, at_bob.offset_s) == (3600, -3600)

    def test_who_slept_through_a_new_admission_key_is_told(self, network, alice):
        succession = network.authority.succeed(Identity.generate(), NOW_S)
        bob = network.local(BOB)
        bob.trust.succeed([succession])
        assert alice.trust.successions == ()
        exchange(*ends(alice, bob))
        assert alice.trust.successions == (succession,)


class TestRefusals:
    def test_a_stranger_of_another_network(self, bob):
        own = peer_id(MALLORY.signing_public)
        elsewhere = msgspec.structs.replace(bob.certificate, network=own).signed_by(MALLORY)
        stranger = Local(MALLORY, elsewhere, Trust(own, MALLORY.signing_public), 1)
        one, there = ends(stranger, bob)
        with refused(Reason.NETWORK):
            there.receive(one.open(NOW_S), 0.0, NOW_S)

    def test_a_forged_certificate(self, bob):
        forged = msgspec.structs.replace(
            bob.certificate, node=0, signing_key=MALLORY.signing_public, curve_key=MALLORY.curve_public
        ).signed_by(MALLORY)
        one, there = ends(Local(MALLORY, forged, bob.trust, 1), bob)
        with refused(Reason.SIGNATURE, "no admission key"):
            there.receive(one.open(NOW_S), 0.0, NOW_S)

    def test_a_certificate_of_another_link(self, alice, bob):
        """Mallory shows Alice's certificate over her own link."""
        one, there = ends(alice, bob, dials=MALLORY)
        with refused(Reason.KEY, "over a link of another CURVE key"):
            there.receive(one.open(NOW_S), 0.0, NOW_S)

    def test_swapped_certificates(self, network, bob):
        """One whose CURVE key Alice's certificate names, but who cannot sign for it."""
        alices = network.authority.enrol(ALICE, Role.learner, NOW_S)
        thief = Local(Identity(MALLORY._signing, ALICE._curve), alices, network.trust(), 1)
        one, there = ends(thief, bob)
        reply = there.receive(one.open(NOW_S), 0.0, NOW_S).send
        proof = one.receive(reply, 0.0, NOW_S).send
        with refused(Reason.SIGNATURE, "does not hold the key"):
            there.receive(proof, 0.0, NOW_S)
        assert bob.trust.holder(ALICE.curve_public, NOW_S) is None

    def test_a_responder_that_cannot_sign(self, network, alice):
        bobs = network.authority.enrol(BOB, Role.learner, NOW_S)
        one, there = ends(alice, Local(Identity(MALLORY._signing, BOB._curve), bobs, network.trust(), 1))
        with refused(Reason.SIGNATURE):
            one.receive(there.receive(one.open(NOW_S), 0.0, NOW_S).send, 0.0, NOW_S)

    @pytest.mark.parametrize("at_initiator", [False, True])
    def test_a_revoked_member(self, network, alice, bob, at_initiator):
        judge, judged = (alice, BOB) if at_initiator else (bob, ALICE)
        judge.trust.revoke(network.authority.revoke(peer_id(judged.signing_public), NOW_S), NOW_S)
        one, there = ends(alice, bob)
        with refused(Reason.REVOKED):
            one.receive(there.receive(one.open(NOW_S), 0.0, NOW_S).send, 0.0, NOW_S)

    def test_an_expired_certificate(self, alice, bob):
        one, there = ends(alice, bob)
        with refused(Reason.EXPIRED):
            there.receive(one.open(NOW_S), 0.0, NOW_S + 40 * DAY_S)

    def test_another_node_than_was_dialled(self, alice, bob):
        one, there = ends(alice, bob)
        reply = there.receive(one.open(NOW_S, expected=7), 0.0, NOW_S).send
        with refused(Reason.SENDER, "node 1 answers where node 7"):
            one.receive(reply, 0.0, NOW_S)

    def test_too_late(self, alice, bob):
        one, there = ends(alice, bob)
        reply = there.receive(one.open(NOW_S), DEADLINE_S, NOW_S).send
        with refused(Reason.DEADLINE, "waited for a reply"):
            one.receive(reply, DEADLINE_S + 0.1, NOW_S)
        there.check_deadline(DEADLINE_S)
        with refused(Reason.DEADLINE, "waited for a proof"):
            there.check_deadline(DEADLINE_S + 0.1)

    def test_a_session_has_no_deadline(self, alice, bob):
        one, there = ends(alice, bob)
        exchange(one, there)
        for end in (one, there):
            end.check_deadline(1e9)


class TestReplay:
    def test_each_message_of_another_session(self, alice, bob):
        """Recorded from a session between the same two, on the same keys: an opening begins, and leads nowhere."""
        recorded, _, _ = exchange(*ends(alice, bob, 1))
        for number, message in enumerate(recorded):
            one, there = ends(alice, bob, 2)
            opening = one.open(NOW_S)
            if number == 0:
                there.receive(message, 0.0, NOW_S)
                with refused(Reason.SIGNATURE):
                    there.receive(recorded[2], 0.0, NOW_S)
            elif number == 1:
                with refused(Reason.SIGNATURE):
                    one.receive(message, 0.0, NOW_S)
            else:
                there.receive(opening, 0.0, NOW_S)
                with refused(Reason.SIGNATURE):
                    there.receive(message, 0.0, NOW_S)

    def test_reflection(self, alice, bob):
        """Everything that Alice says comes back to her."""
        one, there = ends(alice, bob)
        opening = one.open(NOW_S)
        mirror = Handshake(alice, b"\7" * 32, BOB.curve_public, 0.0)
        with refused(Reason.REPLAY, "our own hello came back"):
            mirror.receive(opening, 0.0, NOW_S)
        with refused(Reason.ORDER):
            one.receive(opening, 0.0, NOW_S)
        again, _ = ends(alice, bob)
        reply = there.receive(again.open(NOW_S), 0.0, NOW_S).send
        with refused(Reason.ORDER):
            there.receive(reply, 0.0, NOW_S)

    def test_a_signature_of_one_side_is_not_the_others(self, alice, bob):
        one, there = ends(alice, bob)
        reply = there.receive(one.open(NOW_S), 0.0, NOW_S).send
        signature = msgspec.msgpack.decode(reply[1:])[2]
        reflected = b"\x01" + msgspec.msgpack.encode([3, signature])
        with refused(Reason.SIGNATURE):
            there.receive(reflected, 0.0, NOW_S)

    def test_every_order_but_the_right_one(self, alice, bob):
        recorded, _, _ = exchange(*ends(alice, bob))
        for first, second in itertools.product(recorded, repeat=2):
            if (first, second) == (recorded[0], recorded[2]):
                continue  # to the responder of the same nonces this is the right order
            _, there = ends(alice, bob)
            with refused(Reason.ORDER):
                hear(there, first, second)

    def test_after_a_refusal_nothing_goes_on(self, alice, bob):
        one, there = ends(alice, bob)
        opening = one.open(NOW_S)
        with pytest.raises(Refused):
            there.receive(b"\x01\xff", 0.0, NOW_S)
        with refused(Reason.ORDER, "nothing more"):
            there.receive(opening, 0.0, NOW_S)

    def test_every_part_of_a_message_is_refused(self, alice, bob):
        recorded, _, _ = exchange(*ends(alice, bob))
        for number, message in enumerate(recorded):
            for length in range(0, len(message), 7):
                one, there = ends(alice, bob)
                opening = one.open(NOW_S)
                if number == 2:
                    there.receive(opening, 0.0, NOW_S)
                with pytest.raises(Refused) as caught:
                    (one if number == 1 else there).receive(message[:length], 0.0, NOW_S)
                assert caught.value.reason in (Reason.MALFORMED, Reason.VERSION)

    def test_every_changed_byte_is_noticed(self, alice, bob):
        """By somebody in between, in any of the three messages: no session comes of it."""
        recorded, _, _ = exchange(*ends(alice, bob))
        for number, message in enumerate(recorded):
            for place in range(0, len(message), 5):
                changed = message[:place] + bytes([message[place] ^ 4]) + message[place + 1 :]
                one, there = ends(alice, bob)
                with pytest.raises(Refused):
                    exchange(one, there, {number: changed})

    def test_a_downgrade_is_noticed(self, network):
        one, there = ends(network.local(ALICE, versions=(1, 2)), network.local(BOB, versions=(1, 2)))
        opening = msgspec.msgpack.decode(one.open(NOW_S)[1:])
        weaker = msgspec.structs.replace(Hello.from_bytes(opening[1]), versions=(1,)).to_bytes()
        reply = there.receive(b"\x01" + msgspec.msgpack.encode([1, weaker]), 0.0, NOW_S).send
        with refused(Reason.SIGNATURE, "heard something else"):
            one.receive(reply, 0.0, NOW_S)

    def test_it_is_bounded(self, alice, bob):
        _, there = ends(alice, bob)
        with refused(Reason.MALFORMED, f"at most {MOST_BYTES}"):
            there.receive(bytes(MOST_BYTES + 1), 0.0, NOW_S)


class TestSession:
    @pytest.fixture
    def sessions(self, alice, bob) -> tuple[Session, Session]:
        return exchange(*ends(alice, bob))[1:]

    def test_messages_pass_in_order(self, sessions):
        at_alice, at_bob = sessions
        for _ in range(3):
            at_bob.accept(at_alice.stamp(), 0)
            at_alice.accept(at_bob.stamp(), 1)

    def test_some_may_be_lost(self, sessions):
        at_alice, at_bob = sessions
        stamps = [at_alice.stamp() for _ in range(5)]
        at_bob.accept(stamps[1], 0)
        at_bob.accept(stamps[4], 0)

    @pytest.mark.parametrize("order", [(0, 0), (1, 0), (2, 2)])
    def test_none_comes_twice_or_late(self, sessions, order):
        at_alice, at_bob = sessions
        stamps = [at_alice.stamp() for _ in range(3)]
        at_bob.accept(stamps[order[0]], 0)
        with refused(Reason.REPLAY, "repeated, or reordered"):
            at_bob.accept(stamps[order[1]], 0)

    def test_one_of_another_session(self, sessions, alice, bob):
        _, at_bob = sessions
        other, _ = exchange(*ends(alice, bob, 9))[1:]
        with refused(Reason.REPLAY, "another session"):
            at_bob.accept(other.stamp(), 0)

    def test_a_member_that_speaks_for_another(self, sessions):
        at_alice, at_bob = sessions
        stamp = at_alice.stamp()
        with refused(Reason.SENDER, "node 0 speaks for node 2"):
            at_bob.accept(stamp, 2)
        at_bob.accept(stamp, 0)

    def test_a_stamp_on_the_wire(self, sessions):
        stamp = sessions[0].stamp()
        assert Stamp.from_bytes(stamp.to_bytes()) == stamp
        assert len(stamp.to_bytes()) == 24
        for wrong in (b"", bytes(23), bytes(25)):
            with refused(Reason.MALFORMED):
                Stamp.from_bytes(wrong)


def test_it_is_this_networks(network):
    assert network.local(ALICE).certificate.network == NETWORK
