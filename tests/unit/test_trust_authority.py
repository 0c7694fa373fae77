"""Who is let in, with which number, how often, and what is remembered of it."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from node.errors import ConfigError, StoreError
from node.identity import Identity
from node.trust.authority import BACKDATED_S, CHANGE_EVERY_S
from node.trust.certificate import TOLERANCE_S, Role, peer_id
from node.trust.refusal import Reason, Refused
from node.trust.request import Join, Renew
from trust_parties import (
    ADMISSION,
    ALICE,
    BOB,
    BOOTSTRAP,
    CAROL,
    DAY_S,
    FOUNDER,
    MALLORY,
    NETWORK,
    NOW_S,
    Network,
    refused,
)

LIFETIME_S = 30 * DAY_S


@pytest.fixture
def network() -> Network:
    return Network()


class TestInvitations:
    def test_it_lets_one_in(self, network):
        certificate = network.join(ALICE, network.token())
        assert certificate.binds(ALICE)
        assert (certificate.node, certificate.role) == (0, Role.learner)
        certificate.check(ADMISSION.signing_public)
        assert certificate.not_before_s == NOW_S - BACKDATED_S
        assert certificate.not_after_s == NOW_S + LIFETIME_S

    @pytest.mark.parametrize("role", Role)
    def test_its_role_is_had(self, network, role):
        assert network.join(ALICE, network.token(role)).role is role

    def test_it_is_used_up(self, network):
        token = network.token(uses=2)
        network.join(ALICE, token)
        network.join(BOB, token)
        with refused(Reason.USED_UP, "was for 2, who have come"):
            network.join(CAROL, token)

    def test_asking_again_is_the_same_use(self, network):
        token = network.token()
        first = network.join(ALICE, token)
        kept = len(network.kept)
        assert network.join(ALICE, token, NOW_S + 5) == first
        assert len(network.kept) == kept
        with refused(Reason.USED_UP):
            network.join(BOB, token)

    def test_asking_again_works_after_its_end(self, network):
        token = network.token()
        first = network.join(ALICE, token)
        assert network.join(ALICE, token, NOW_S + 2 * DAY_S) == first

    def test_coming_back_with_it_is_the_same_use(self, network):
        """After its certificate has ended, with an invitation that has not."""
        late_s = NOW_S + LIFETIME_S + TOLERANCE_S + 1
        token = network.token(expires_s=late_s)
        first = network.join(ALICE, token)
        again = network.join(ALICE, token, late_s)
        assert (again.node, again.serial) == (first.node, first.serial + 1)
        with refused(Reason.USED_UP):
            network.join(BOB, token, late_s)

    def test_it_ends(self, network):
        token = network.token(expires_s=NOW_S + 10)
        network.join(ALICE, token, NOW_S + 10)
        with refused(Reason.EXPIRED, "ended 1 s ago"):
            network.join(BOB, network.token(expires_s=NOW_S + 10), NOW_S + 11)

    def test_a_made_up_one_is_unknown(self, network):
        token = network.token()
        for wrong in (
            msgspec.structs.replace(token, id=bytes(8)),
            msgspec.structs.replace(token, secret=bytes(16)),
            msgspec.structs.replace(token, id=None, secret=None),
        ):
            with refused(Reason.UNKNOWN_TOKEN):
                network.join(MALLORY, wrong)
        network.join(ALICE, token)

    def test_its_role_cannot_be_changed_by_its_holder(self, network):
        token = msgspec.structs.replace(network.token(), role=Role.attacker, uses=100)
        assert network.join(ALICE, token).role is Role.learner
        with refused(Reason.USED_UP):
            network.join(BOB, token)

    def test_its_secret_is_not_kept(self, network):
        token = network.token()
        network.join(ALICE, token)
        kept = b"".join(msgspec.json.encode(entry) + msgspec.msgpack.encode(entry) for entry in network.kept)
        for secret in (token.secret, token.secret.hex().encode()):
            assert secret not in kept

    def test_all_differ(self, network):
        tokens = [network.token() for _ in range(50)]
        assert len({token.id for token in tokens}) == len({token.secret for token in tokens}) == 50


class TestRequests:
    def test_it_is_about_the_links_key(self, network):
        with refused(Reason.KEY):
            network.authority.admit(Join.by(ALICE, network.token()), MALLORY.curve_public, NOW_S)

    def test_a_stolen_one_is_of_no_use_on_another_link(self, network):
        """Mallory has overheard Alice's request: with her key in it, it is not signed; as it is, it is not hers."""
        stolen = Join.by(ALICE, network.token())
        own = msgspec.structs.replace(stolen, curve_key=MALLORY.curve_public)
        with refused(Reason.SIGNATURE):
            network.authority.admit(own, MALLORY.curve_public, NOW_S)
        with refused(Reason.KEY):
            network.authority.admit(stolen, MALLORY.curve_public, NOW_S)

    def test_it_is_for_this_network(self, network):
        token = msgspec.structs.replace(network.token(), network=bytes(20))
        with refused(Reason.NETWORK):
            network.join(ALICE, token)

    def test_nothing_refused_is_kept(self, network):
        token = network.token()
        network.join(ALICE, token)
        kept = list(network.kept)
        with pytest.raises(Refused):
            network.join(BOB, token)
        assert network.kept == kept


class TestNumbers:
    def test_the_lowest_is_given(self, network):
        assert [network.member(one).node for one in (ALICE, BOB, CAROL)] == [0, 1, 2]

    def test_there_are_no_more_than_there_are(self):
        network = Network(nodes=2)
        network.member(ALICE)
        network.member(BOB)
        with refused(Reason.FULL, "all 2 node numbers"):
            network.member(CAROL)

    def test_a_key_gets_its_own_back(self):
        network = Network(nodes=2, reissue=True)
        token = network.token()
        network.join(ALICE, token)
        network.member(BOB)
        later_s = NOW_S + LIFETIME_S + TOLERANCE_S + 1
        again = network.join(ALICE, network.token(expires_s=later_s + DAY_S), later_s)
        assert again.node == 0
        assert again.serial > 2

    def test_a_member_that_is_invited_again_uses_nothing(self, network):
        first = network.member(ALICE)
        token = network.token()
        assert network.join(ALICE, token) == first
        network.join(BOB, token)

    def test_but_not_in_another_role(self, network):
        network.member(ALICE)
        with refused(Reason.ROLE, "a member already, as learner"):
            network.join(ALICE, network.token(Role.storage))

    @pytest.mark.parametrize("reissue", [False, True])
    def test_one_of_a_revoked_key_is_given_again_only_by_setting(self, reissue):
        network = Network(nodes=1, reissue=reissue)
        network.member(ALICE)
        network.authority.revoke(peer_id(ALICE.signing_public), NOW_S)
        if reissue:
            assert network.member(BOB).node == 0
        else:
            with refused(Reason.FULL):
                network.member(BOB)

    @pytest.mark.parametrize("reissue", [False, True])
    def test_one_of_a_key_that_stayed_away_is_given_again_only_by_setting(self, reissue):
        network = Network(nodes=1, reissue=reissue)
        network.member(ALICE)
        ended_s = NOW_S + LIFETIME_S + TOLERANCE_S
        late = network.token(uses=2, expires_s=ended_s + DAY_S)
        with refused(Reason.FULL):
            network.join(BOB, late, ended_s)
        if reissue:
            assert network.join(BOB, late, ended_s + 1).node == 0
            with refused(Reason.FULL):
                network.join(ALICE, late, ended_s + 2)
        else:
            with refused(Reason.FULL):
                network.join(BOB, late, ended_s + 1)
            assert network.join(ALICE, late, ended_s + 2).node == 0

    @pytest.mark.parametrize("seed", range(6))
    def test_whatever_happens_no_two_have_one_number_or_serial(self, seed):
        """Joining, renewing, changing keys, revoking and restarting at random, for years: the book is always right."""
        rng = np.random.default_rng(seed)
        network = Network(nodes=5, reissue=bool(seed % 2))
        keys = [Identity.generate() for _ in range(9)]
        now_s, serials, revoked = NOW_S, [], set()
        for step in range(150):
            now_s += int(rng.integers(1, 4 * DAY_S))
            one, other = (keys[number] for number in rng.integers(len(keys), size=2))
            happens = rng.random()
            try:
                if happens < 0.05:
                    network.authority.revoke(peer_id(one.signing_public), now_s)
                    revoked.add(one.signing_public)
                elif happens < 0.1:
                    network.authority = network.restarted()
                elif happens < 0.15:
                    network.authority.succeed(Identity.generate(), now_s)
                elif happens < 0.5:
                    serials.append(network.renew(one, other, now_s).serial)
                else:
                    serials.append(network.join(one, network.token(expires_s=now_s + 1), now_s).serial)
            except (Refused, ConfigError):
                pass
            live = network.authority.members(now_s)
            numbers = [held.node for held in live]
            assert numbers == sorted(set(numbers) & set(range(5))), f"seed {seed}, step {step}"
            assert len({held.signing_key for held in live}) == len(live), f"seed {seed}, step {step}"
            assert not revoked & {held.signing_key for held in live}, f"seed {seed}, step {step}"
        assert sorted(set(serials)) == list(range(1, max(serials) + 1)), f"seed {seed}"
        assert network.restarted().members(now_s) == network.authority.members(now_s)


class TestOpenNetworks:
    def test_anybody_comes_as_a_learner(self):
        network = Network(open=True)
        token = network.authority.open_token(BOOTSTRAP)
        assert token.secret is None
        assert [network.join(one, token).node for one in (ALICE, BOB)] == [0, 1]
        assert network.join(ALICE, token).role is Role.learner

    def test_other_roles_need_an_invitation(self):
        network = Network(open=True)
        assert network.join(ALICE, network.token(Role.storage)).role is Role.storage
        asked = msgspec.structs.replace(network.authority.open_token(BOOTSTRAP), role=Role.storage)
        assert network.join(BOB, asked).role is Role.learner

    def test_a_wrong_invitation_is_no_way_in(self):
        network = Network(open=True)
        with refused(Reason.UNKNOWN_TOKEN):
            network.join(ALICE, msgspec.structs.replace(network.token(), secret=bytes(16)))

    def test_the_others_are_not_open(self, network):
        with pytest.raises(ConfigError, match="not open"):
            network.authority.open_token(BOOTSTRAP)

    def test_a_revoked_key_stays_out(self):
        network = Network(open=True)
        token = network.authority.open_token(BOOTSTRAP)
        network.join(ALICE, token)
        network.authority.revoke(peer_id(ALICE.signing_public), NOW_S)
        with refused(Reason.REVOKED):
            network.join(ALICE, token)


class TestRevoking:
    def test_it_is_signed_numbered_and_for_good(self, network):
        network.member(ALICE)
        peer = peer_id(ALICE.signing_public)
        revocation = network.authority.revoke(peer, NOW_S, "stolen")
        revocation.check(ADMISSION.signing_public)
        assert (revocation.number, revocation.peer_id, revocation.why) == (1, peer, "stolen")
        assert revocation.forget_s == NOW_S + LIFETIME_S
        for later_s in (NOW_S, NOW_S + 100 * DAY_S):
            with refused(Reason.REVOKED):
                network.join(ALICE, network.token(expires_s=later_s), later_s)
            with refused(Reason.REVOKED):
                network.renew(ALICE, BOB, later_s)

    def test_once_is_enough(self, network):
        network.member(ALICE)
        peer = peer_id(ALICE.signing_public)
        assert network.authority.revoke(peer, NOW_S) == network.authority.revoke(peer, NOW_S + 5, "again")

    def test_whom_nobody_knows_cannot_be_revoked(self, network):
        with pytest.raises(ConfigError, match="no member has id"):
            network.authority.revoke(bytes(20), NOW_S)

    def test_members_hear_of_it_until_the_certificate_has_ended(self, network):
        network.member(ALICE)
        network.authority.revoke(peer_id(ALICE.signing_public), NOW_S)
        end_s = NOW_S + LIFETIME_S + TOLERANCE_S
        assert len(network.authority.in_force(end_s)) == 1
        assert network.authority.in_force(end_s + 1) == []

    def test_a_number_has_the_holders_that_count(self, network):
        network.member(ALICE)
        assert network.authority.holders(0, NOW_S) == [peer_id(ALICE.signing_public)]
        assert network.authority.holders(1, NOW_S) == []
        network.renew(ALICE, BOB, NOW_S + DAY_S)
        both = sorted([peer_id(ALICE.signing_public), peer_id(BOB.signing_public)])
        assert network.authority.holders(0, NOW_S + DAY_S) == both
        assert network.authority.holders(0, NOW_S + 2 * DAY_S) == [peer_id(BOB.signing_public)]


class TestRenewing:
    def test_the_first_half_changes_nothing(self, network):
        first = network.member(ALICE)
        assert first.renew_s == NOW_S + (LIFETIME_S - BACKDATED_S) // 2
        assert network.renew(ALICE, ALICE, first.renew_s - 1) == first
        later = network.renew(ALICE, ALICE, first.renew_s)
        assert later.not_after_s == first.renew_s + LIFETIME_S
        assert (later.node, later.serial) == (first.node, first.serial + 1)

    def test_too_late_is_too_late(self, network):
        network.member(ALICE)
        network.renew(ALICE, ALICE, NOW_S + LIFETIME_S + TOLERANCE_S)
        late_s = NOW_S + 2 * LIFETIME_S + 2 * TOLERANCE_S + 1
        with refused(Reason.EXPIRED):
            network.renew(ALICE, ALICE, late_s)

    def test_strangers_have_nothing_to_renew(self, network):
        with refused(Reason.EXPIRED, "join again"):
            network.renew(MALLORY, MALLORY, NOW_S)

    def test_new_keys_stand_beside_the_old_ones_for_a_while(self, network):
        first = network.member(ALICE)
        later_s = NOW_S + DAY_S
        second = network.renew(ALICE, BOB, later_s)
        assert second.binds(BOB)
        assert (second.node, second.role) == (first.node, first.role)
        (revocation,) = network.authority.in_force(later_s)
        assert revocation.peer_id == first.peer_id
        assert revocation.at_s == later_s + network.authority.terms.overlap_s
        assert network.authority.members(later_s) == [second]

    def test_asking_again_for_new_keys_gives_the_same(self, network):
        network.member(ALICE)
        second = network.renew(ALICE, BOB, NOW_S + DAY_S)
        kept = len(network.kept)
        assert network.renew(ALICE, BOB, NOW_S + DAY_S + 5) == second
        assert len(network.kept) == kept

    def test_an_old_key_cannot_go_elsewhere(self, network):
        """Whoever steals a key that has been replaced can do nothing with it here."""
        network.member(ALICE)
        network.renew(ALICE, BOB, NOW_S + DAY_S)
        for attempt in (lambda: network.renew(ALICE, MALLORY, NOW_S + DAY_S + 1), lambda: network.member(ALICE)):
            with refused(Reason.REVOKED, "replaced"):
                attempt()

    def test_the_new_key_must_agree(self, network):
        network.member(ALICE)
        taken = Renew.by(ALICE, MALLORY, NETWORK)
        without_consent = msgspec.structs.replace(
            taken, signing_key=BOB.signing_public, curve_key=ALICE.curve_public
        ).signed_by(ALICE)
        with refused(Reason.SIGNATURE, "has not agreed"):
            network.authority.renew(without_consent, ALICE.curve_public, NOW_S + DAY_S)

    def test_the_old_key_must_agree(self, network):
        network.member(ALICE)
        forged = msgspec.structs.replace(Renew.by(MALLORY, MALLORY, NETWORK), old_key=ALICE.signing_public)
        with refused(Reason.SIGNATURE):
            network.authority.renew(forged.signed_by(MALLORY), MALLORY.curve_public, NOW_S + DAY_S)

    def test_another_members_key_is_not_taken_over(self, network):
        network.member(ALICE)
        network.member(BOB)
        with refused(Reason.KEY, "another member's"):
            network.renew(ALICE, BOB, NOW_S + DAY_S)

    @pytest.mark.parametrize("way", ["renew", "join", "enrol"])
    def test_both_keys_change_or_none(self, network, way):
        """A CURVE key that was replaced alone would count until its certificate ends."""
        network.member(ALICE)
        half = Identity(ALICE._signing, BOB._curve)
        with refused(Reason.KEY, "change both"):
            if way == "enrol":
                network.authority.enrol(half, Role.learner, NOW_S + DAY_S)
            elif way == "join":
                network.member(half)
            else:
                network.renew(ALICE, half, NOW_S + DAY_S)

    def test_one_cannot_have_a_thousand(self, network):
        network.member(ALICE)
        with refused(Reason.RATE):
            network.renew(ALICE, BOB, NOW_S + CHANGE_EVERY_S - 1)
        network.renew(ALICE, BOB, NOW_S + CHANGE_EVERY_S)

    def test_a_number_given_to_another_is_gone(self):
        network = Network(nodes=1, reissue=True)
        network.member(ALICE)
        ended_s = NOW_S + LIFETIME_S + TOLERANCE_S + 1
        network.join(BOB, network.token(expires_s=ended_s), ended_s)
        with refused(Reason.EXPIRED, "given to another"):
            network.renew(ALICE, ALICE, ended_s)


class TestAdmissionKey:
    def test_it_hands_over(self, network):
        network.member(ALICE)
        new = Identity.generate()
        succession = network.authority.succeed(new, NOW_S + DAY_S)
        succession.check(ADMISSION.signing_public)
        network.member(BOB, NOW_S + DAY_S).check(new.signing_public)

    def test_members_get_the_new_ones_signature(self, network):
        first = network.member(ALICE)
        new = Identity.generate()
        network.authority.succeed(new, NOW_S + DAY_S)
        second = network.renew(ALICE, ALICE, NOW_S + DAY_S)
        assert second.node == first.node
        second.check(new.signing_public)
        assert network.renew(ALICE, ALICE, NOW_S + DAY_S + 1) == second

    def test_even_those_who_have_only_just_come(self, network):
        token = network.token()
        network.join(ALICE, token)
        new = Identity.generate()
        network.authority.succeed(new, NOW_S + 1)
        network.join(ALICE, token, NOW_S + 2).check(new.signing_public)
        network.renew(ALICE, ALICE, NOW_S + 3).check(new.signing_public)

    def test_older_invitations_still_let_in(self, network):
        token = network.token()
        new = Identity.generate()
        network.authority.succeed(new, NOW_S)
        network.join(ALICE, token).check(new.signing_public)

    def test_an_old_key_signs_nothing_any_more(self, network):
        network.authority.succeed(Identity.generate(), NOW_S)
        network.authority.key = ADMISSION
        token = network.kept
        with pytest.raises(ConfigError, match=r"admission\.key"):
            network.token()
        assert network.kept is token


class TestKeeping:
    def test_a_restart_changes_nothing(self):
        network = Network(nodes=3, reissue=True)
        token = network.token(uses=2)
        alice = network.join(ALICE, token)
        network.join(BOB, token)
        network.renew(BOB, CAROL, NOW_S + DAY_S)
        network.authority.revoke(alice.peer_id, NOW_S + DAY_S)
        network.authority.succeed(Identity.generate(), NOW_S + DAY_S)
        again = network.restarted()
        now_s = NOW_S + DAY_S + 1
        assert again.members(now_s) == network.authority.members(now_s)
        assert again.in_force(now_s) == network.authority.in_force(now_s)
        network.authority = again
        with refused(Reason.USED_UP):
            network.join(MALLORY, token)
        with refused(Reason.REVOKED):
            network.join(ALICE, token, now_s)
        assert network.join(MALLORY, network.token(), NOW_S).serial == 4

    def test_what_cannot_be_kept_has_not_happened(self, network):
        token = network.token()

        def full(entry):
            raise StoreError("the disk is full")

        network.authority._keep, kept = full, network.authority._keep
        with pytest.raises(StoreError):
            network.join(ALICE, token)
        network.authority._keep = kept
        assert network.authority.newest() == []
        assert network.join(BOB, token).serial == 1

    def test_it_is_kept_before_it_is_given(self, network):
        token = network.token()
        certificate = network.join(ALICE, token)
        assert network.kept[-1].certificate == certificate
        assert network.kept[-1].token == token.id

    def test_a_ledger_of_another_network_is_not_read(self, network):
        network.kept[0] = msgspec.structs.replace(network.kept[0], network=bytes(20))
        with pytest.raises(ConfigError, match="ledger is that of network"):
            network.restarted()

    def test_the_founder_is_enrolled_once(self, network):
        first = network.authority.enrol(FOUNDER, Role.learner, NOW_S)
        assert network.authority.enrol(FOUNDER, Role.learner, NOW_S + DAY_S) == first
        renewed = network.authority.enrol(FOUNDER, Role.learner, NOW_S + LIFETIME_S - 1)
        assert (renewed.node, renewed.serial) == (0, 2)
