"""Whom a node believes: whatever it is told in whatever order, across restarts, and with clocks that are off."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from node.errors import ConfigError, Corrupt, StoreError
from node.identity import Identity
from node.trust.arrival import arrive, founding_key
from node.trust.certificate import TOLERANCE_S, peer_id
from node.trust.ledger import Founded
from node.trust.refusal import Reason, Refused
from node.trust.request import Member, Turned, Welcome
from node.trust.skew import WARN_S, Skew
from node.trust.state import begin_trust, load_trust
from node.trust.trust import Trust
from trust_parties import (
    ADMISSION,
    ALICE,
    BOB,
    CAROL,
    DAY_S,
    MALLORY,
    NETWORK,
    NOW_S,
    Network,
    certificate,
    refused,
)

LATER_S = NOW_S + DAY_S


@pytest.fixture
def network() -> Network:
    return Network()


@pytest.fixture
def trust(network) -> Trust:
    return network.trust()


class TestChecking:
    def test_what_the_admission_key_has_signed_counts(self, network, trust):
        trust.check(network.member(ALICE), NOW_S)

    @pytest.mark.parametrize(
        ("changed", "reason"),
        [
            ({"network": bytes(20)}, Reason.NETWORK),
            ({"not_after_s": NOW_S - TOLERANCE_S - 1}, Reason.EXPIRED),
            ({"not_before_s": NOW_S + TOLERANCE_S + 1}, Reason.SKEW),
        ],
    )
    def test_what_is_wrong_is_named(self, trust, changed, reason):
        with refused(reason):
            trust.check(certificate(**changed), NOW_S)
        assert not trust.counts(certificate(**changed), NOW_S)

    def test_a_forged_one_does_not_count(self, trust):
        with refused(Reason.SIGNATURE):
            trust.check(certificate().signed_by(MALLORY), NOW_S)

    def test_one_that_is_known_is_not_a_way_round(self, trust):
        """A certificate with a known CURVE key but other contents is checked anew."""
        trust.learn(certificate(), NOW_S)
        with refused(Reason.SIGNATURE):
            trust.check(msgspec.structs.replace(certificate(), node=0), NOW_S)

    @pytest.mark.parametrize("off_s", [-3600, -300, 300, 3600])
    def test_a_wrong_clock_refuses_no_fresh_member(self, network, trust, off_s):
        trust.check(network.member(ALICE), NOW_S + off_s)


class TestKnowing:
    def test_a_link_has_a_holder(self, network, trust):
        alices = network.member(ALICE)
        assert trust.holder(ALICE.curve_public, NOW_S) is None
        assert trust.learn(alices, NOW_S)
        assert trust.holder(ALICE.curve_public, NOW_S) == alices
        assert trust.holder(MALLORY.curve_public, NOW_S) is None

    def test_it_is_no_news_twice(self, network, trust):
        alices = network.member(ALICE)
        assert [trust.learn(alices, NOW_S) for _ in range(2)] == [True, False]

    def test_a_later_one_replaces_an_earlier_one_and_not_the_other_way_round(self, network, trust):
        first = network.member(ALICE)
        second = network.renew(ALICE, ALICE, NOW_S + 20 * DAY_S)
        for one in (second, first):
            trust.learn(one, NOW_S + 20 * DAY_S)
        assert trust.holder(ALICE.curve_public, NOW_S + 20 * DAY_S) == second

    def test_a_holder_ends_with_its_certificate(self, network, trust):
        trust.learn(network.member(ALICE), NOW_S)
        end_s = NOW_S + 30 * DAY_S + TOLERANCE_S
        assert trust.holder(ALICE.curve_public, end_s) is not None
        assert trust.holder(ALICE.curve_public, end_s + 1) is None
        assert trust.members(end_s + 1) == []

    def test_members_come_by_number(self, network, trust):
        known = [network.member(one) for one in (ALICE, BOB, CAROL)]
        for one in reversed(known):
            trust.learn(one, NOW_S)
        assert trust.members(NOW_S) == known

    def test_what_has_ended_is_forgotten(self, network, trust):
        alices = network.member(ALICE)
        trust.learn(alices, NOW_S)
        trust.revoke(network.authority.revoke(alices.peer_id, NOW_S), NOW_S)
        trust.forget(NOW_S + 30 * DAY_S)
        assert len(trust.revocations) == 1
        trust.forget(NOW_S + 31 * DAY_S)
        assert len(trust.revocations) == 0
        assert trust.holder(ALICE.curve_public, NOW_S) is None


class TestRevoking:
    def test_it_ends_a_link(self, network, trust):
        alices = network.member(ALICE)
        trust.learn(alices, NOW_S)
        assert trust.revoke(network.authority.revoke(alices.peer_id, NOW_S), NOW_S)
        assert trust.holder(ALICE.curve_public, NOW_S) is None
        with refused(Reason.REVOKED):
            trust.learn(alices, NOW_S)

    def test_its_holder_is_to_be_shut_out(self, network, trust):
        alices = network.member(ALICE)
        for one in (alices, network.member(BOB)):
            trust.learn(one, NOW_S)
        assert trust.revoked_keys(NOW_S) == frozenset()
        trust.revoke(network.authority.revoke(alices.peer_id, NOW_S), NOW_S)
        assert trust.revoked_keys(NOW_S) == {ALICE.curve_public}
        assert trust.revoked_keys(NOW_S - 1) == frozenset()

    def test_who_has_expired_may_still_knock(self, network, trust):
        trust.learn(network.member(ALICE), NOW_S)
        late_s = NOW_S + 40 * DAY_S
        assert trust.holder(ALICE.curve_public, late_s) is None
        assert trust.revoked_keys(late_s) == frozenset()

    def test_it_is_passed_on_once(self, network, trust):
        revocation = network.authority.revoke(network.member(ALICE).peer_id, NOW_S)
        assert [trust.revoke(revocation, NOW_S) for _ in range(3)] == [True, False, False]

    def test_it_is_not_taken_up_again_once_forgotten(self, network, trust):
        revocation = network.authority.revoke(network.member(ALICE).peer_id, NOW_S)
        trust.revoke(revocation, NOW_S)
        late_s = NOW_S + 31 * DAY_S
        trust.forget(late_s)
        assert not trust.revoke(revocation, late_s)
        assert len(trust.revocations) == 0

    def test_nobody_else_revokes(self, network, trust):
        true = network.authority.revoke(network.member(ALICE).peer_id, NOW_S)
        for forger in (ALICE, MALLORY):
            forged = msgspec.structs.replace(true, peer_id=peer_id(BOB.signing_public)).signed_by(forger)
            with refused(Reason.SIGNATURE):
                trust.revoke(forged, NOW_S)
        with refused(Reason.NETWORK):
            trust.revoke(msgspec.structs.replace(true, network=bytes(20)).signed_by(ADMISSION), NOW_S)

    def test_the_order_of_news_does_not_matter(self, network):
        """Two members and two revocations, told in every order: the same is believed in the end."""
        alices, bobs = network.member(ALICE), network.member(BOB)
        renewed = network.renew(BOB, CAROL, LATER_S)
        news = [
            *((Trust.learn, one) for one in (alices, bobs, renewed)),
            (Trust.revoke, network.authority.revoke(alices.peer_id, LATER_S)),
            (Trust.revoke, network.authority.revocations.of(bobs.peer_id)),
        ]
        for order in itertools.permutations(news):
            trust = network.trust()
            for tell, what in order:
                if tell is Trust.revoke or trust.counts(what, LATER_S):
                    tell(trust, what, LATER_S)
            held = [trust.holder(one.curve_public, LATER_S) for one in (ALICE, BOB, CAROL)]
            assert held == [None, bobs, renewed]
            assert trust.members(LATER_S) == [renewed]
            assert [one.number for one in trust.revocations] == [1, 2]


class TestRotating:
    def test_both_keys_count_until_the_old_one_ends(self, network, trust):
        first = network.member(ALICE)
        trust.learn(first, NOW_S)
        second = network.renew(ALICE, BOB, LATER_S)
        trust.learn(second, LATER_S)
        trust.revoke(network.authority.revocations.of(first.peer_id), LATER_S)
        over_s = LATER_S + network.authority.terms.overlap_s
        for now_s, holds in ((LATER_S, True), (over_s - 1, True), (over_s, False)):
            assert (trust.holder(ALICE.curve_public, now_s) is not None) is holds
            assert trust.holder(BOB.curve_public, now_s) == second
            assert trust.members(now_s) == [second]

    def test_a_new_admission_key_is_followed(self, network, trust):
        trust.learn(network.member(ALICE), NOW_S)
        succession = network.authority.succeed(Identity.generate(), NOW_S)
        bobs = network.member(BOB)
        with refused(Reason.SIGNATURE):
            trust.learn(bobs, NOW_S)
        assert trust.succeed([succession])
        assert not trust.succeed([succession])
        assert trust.learn(bobs, NOW_S)

    def test_what_the_old_admission_key_signed_ends_after_the_overlap(self, network, trust):
        trust.learn(network.member(ALICE), NOW_S)
        trust.succeed([network.authority.succeed(Identity.generate(), NOW_S)])
        over_s = NOW_S + network.authority.terms.overlap_s + TOLERANCE_S
        assert trust.holder(ALICE.curve_public, over_s) is not None
        assert trust.holder(ALICE.curve_public, over_s + 1) is None
        trust.learn(network.renew(ALICE, ALICE, over_s), over_s)
        assert trust.holder(ALICE.curve_public, over_s + 1) is not None

    def test_a_member_knows_when_to_renew(self, network, trust):
        alices = network.member(ALICE)
        assert not trust.should_renew(alices, alices.renew_s - 1)
        assert trust.should_renew(alices, alices.renew_s)
        trust.succeed([network.authority.succeed(Identity.generate(), NOW_S)])
        assert trust.should_renew(alices, NOW_S)
        renewed = network.renew(ALICE, ALICE, LATER_S)
        assert not trust.should_renew(renewed, LATER_S)

    def test_a_stolen_old_admission_key_ends_too(self, network, trust):
        trust.succeed([network.authority.succeed(Identity.generate(), NOW_S)])
        late_s = NOW_S + network.authority.terms.overlap_s + TOLERANCE_S + 1
        keys = {"signing_key": MALLORY.signing_public, "curve_key": MALLORY.curve_public}
        forged = certificate(**keys, not_after_s=late_s)
        with refused(Reason.EXPIRED, "has been replaced"):
            trust.learn(forged, late_s)
        with refused(Reason.ORDER):
            trust.succeed([network.authority.lineage.successions[0], self.fork()])

    @staticmethod
    def fork():
        from node.trust.succession import Succession

        return Succession(NETWORK, ADMISSION.signing_public, MALLORY.signing_public, LATER_S).signed_by(ADMISSION)


class TestKeeping:
    def test_a_restart_forgets_nothing(self, network, tmp_path):
        path = tmp_path / "trust.jsonl"
        trust = begin_trust(path, NETWORK, ADMISSION.signing_public)
        alices, bobs = network.member(ALICE), network.member(BOB)
        for one in (alices, bobs):
            trust.learn(one, NOW_S)
        trust.revoke(network.authority.revoke(alices.peer_id, NOW_S), NOW_S)
        trust.succeed([network.authority.succeed(Identity.generate(), NOW_S)])
        again = load_trust(path)
        assert again.members(NOW_S) == trust.members(NOW_S) == [bobs]
        assert again.successions == trust.successions
        assert list(again.revocations) == list(trust.revocations)
        with refused(Reason.REVOKED):
            again.check(alices, NOW_S)

    def test_a_revocation_is_kept_before_it_counts(self, network):
        def full(entry):
            raise StoreError("the disk is full")

        trust = Trust(NETWORK, ADMISSION.signing_public, full)
        with pytest.raises(StoreError):
            trust.revoke(network.authority.revoke(network.member(ALICE).peer_id, NOW_S), NOW_S)
        assert len(trust.revocations) == 0

    def test_nothing_is_begun_twice(self, tmp_path):
        begin_trust(tmp_path / "trust.jsonl", NETWORK, ADMISSION.signing_public)
        with pytest.raises(ConfigError, match="allowed: a new file"):
            begin_trust(tmp_path / "trust.jsonl", bytes(20), MALLORY.signing_public)

    def test_a_missing_file_is_no_new_trust(self, tmp_path):
        with pytest.raises(ConfigError, match="No such file"):
            load_trust(tmp_path / "trust.jsonl")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("content", [b"", b'{"type":"founded"', b'{"type":"revoked"}\n', b"\xff\n"])
    def test_a_damaged_file_is_one_line(self, tmp_path, content):
        path = tmp_path / "trust.jsonl"
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(Corrupt, match=r"trust\.jsonl") as caught:
            load_trust(path)
        assert "\n" not in str(caught.value)

    def test_anothers_file_is_not_believed(self, trust):
        with refused(Reason.NETWORK):
            trust.apply(Founded(bytes(20), ADMISSION.signing_public))


class TestArriving:
    def welcome(self, network: Network, identity: Identity, **changed: object) -> Welcome:
        mine = network.member(identity)
        members = tuple(Member(one) for one in network.authority.members(NOW_S))
        welcome = Welcome(
            mine,
            tuple(network.authority.lineage.successions),
            tuple(network.authority.in_force(NOW_S)),
            members,
            "demo",
            "nodes = 4",
            NOW_S,
        )
        return msgspec.structs.replace(welcome, **changed)

    def test_a_newcomer_knows_all_it_was_told(self, network, trust):
        network.member(ALICE)
        welcome = self.welcome(network, BOB)
        assert arrive(trust, welcome, BOB, NOW_S).binds(BOB)
        assert [one.node for one in trust.members(NOW_S)] == [0, 1]

    def test_the_revoked_are_known_before_anybody_is_accepted(self, network, trust):
        alices = network.member(ALICE)
        revocation = network.authority.revoke(alices.peer_id, NOW_S)
        welcome = self.welcome(network, BOB, members=(Member(alices),), revocations=(revocation,))
        arrive(trust, welcome, BOB, NOW_S)
        assert trust.holder(ALICE.curve_public, NOW_S) is None

    @pytest.mark.parametrize("older", [0, 1, 2])
    def test_a_token_of_any_admission_key_is_enough(self, network, older):
        """Two keys later, whether the token is of the first, the second or the third."""
        tokens = [network.token()]
        alices = network.member(ALICE)
        network.authority.revoke(network.member(CAROL).peer_id, NOW_S)
        for day in (1, 2):
            network.authority.succeed(Identity.generate(), NOW_S + day * 3600)
            tokens.append(network.token())
        welcome = self.welcome(network, BOB, members=(Member(alices),))
        first = founding_key(tokens[older], welcome)
        assert first == ADMISSION.signing_public
        trust = Trust(NETWORK, first)
        assert arrive(trust, welcome, BOB, NOW_S).binds(BOB)
        assert trust.holder(ALICE.curve_public, NOW_S) == alices
        assert trust.holder(CAROL.curve_public, NOW_S) is None

    def test_what_old_keys_have_revoked_is_no_obstacle_later(self, network, trust):
        network.authority.revoke(network.member(ALICE).peer_id, NOW_S)
        network.authority.succeed(Identity.generate(), NOW_S)
        late_s = NOW_S + 10 * DAY_S
        bobs = network.join(BOB, network.token(expires_s=late_s), late_s)
        revocations = tuple(network.authority.in_force(late_s))
        assert len(revocations) == 1
        welcome = self.welcome(network, CAROL, certificate=bobs, revocations=revocations)
        assert arrive(trust, welcome, BOB, late_s) == bobs
        assert len(trust.revocations) == 0

    def test_a_branch_of_a_stolen_older_key_is_not_our_network(self, network):
        network.authority.succeed(Identity.generate(), NOW_S)
        token = network.token()
        branch = Network()
        branch.authority.succeed(MALLORY, NOW_S)
        with refused(Reason.SIGNATURE, "none of those"):
            founding_key(token, self.welcome(branch, BOB))

    def test_nor_is_a_chain_from_elsewhere(self, network):
        token = msgspec.structs.replace(network.token(), admission_key=MALLORY.signing_public)
        with refused(Reason.NETWORK):
            founding_key(token, self.welcome(network, BOB))

    def test_who_is_turned_away_has_no_key(self, network):
        with refused(Reason.FULL, "every node number"):
            founding_key(network.token(), Turned(Reason.FULL))

    def test_an_admitting_node_without_the_key_is_not_believed(self, network, trust):
        true = self.welcome(network, BOB)
        with refused(Reason.SIGNATURE):
            arrive(trust, msgspec.structs.replace(true, certificate=true.certificate.signed_by(MALLORY)), BOB, NOW_S)

    def test_a_certificate_of_other_keys_is_not_ours(self, network, trust):
        with refused(Reason.KEY):
            arrive(trust, self.welcome(network, BOB), ALICE, NOW_S)

    def test_a_false_member_is_left_out(self, network, trust):
        forged = certificate(node=3).signed_by(MALLORY)
        arrive(trust, self.welcome(network, BOB, members=(Member(forged),)), BOB, NOW_S)
        assert [one.node for one in trust.members(NOW_S)] == [0]

    @pytest.mark.parametrize("reason", Reason)
    def test_who_is_turned_away_is_told_what_to_do(self, trust, reason):
        with pytest.raises(Refused) as caught:
            arrive(trust, Turned(reason), BOB, NOW_S)
        assert caught.value.reason is reason
        assert "\n" not in str(caught.value)


class TestSkew:
    def test_a_clock_that_is_off_is_told_once(self):
        skew = Skew()
        for peer in range(5):
            skew.observe(peer, NOW_S + 3600, NOW_S)
        assert skew.median_s == 3600
        said = skew.warning(5)
        assert said is not None
        assert "3600 s behind the median of 5 peers: set it" in said
        assert skew.warning(5) is None

    def test_ahead_is_told_too(self):
        skew = Skew()
        skew.observe(1, NOW_S - WARN_S, NOW_S)
        assert "30 s ahead of" in (skew.warning(1) or "")

    def test_less_is_nothing(self):
        skew = Skew()
        for peer in range(3):
            skew.observe(peer, NOW_S + WARN_S - 0.1, NOW_S)
        assert skew.warning(3) is None

    def test_one_peer_of_many_says_nothing(self):
        skew = Skew()
        skew.observe(1, NOW_S + 3600, NOW_S)
        assert skew.warning(8) is None

    def test_a_minority_that_lies_changes_nothing(self):
        skew = Skew()
        for peer in range(5):
            skew.observe(peer, NOW_S + (10**9 if peer < 2 else 0), NOW_S)
        assert skew.warning(5) is None

    def test_one_that_is_wrong_does_not_make_another_so(self):
        """Of three clocks one is an hour off: its owner is told, and nobody else."""
        right, wrong = Skew(), Skew()
        for peer, ahead_s in ((1, 0), (2, 3600)):
            right.observe(peer, NOW_S + ahead_s, NOW_S)
            wrong.observe(peer, NOW_S - 3600, NOW_S)
        assert right.warning(2) is None
        assert "3600 s ahead of the median of 2 peers" in (wrong.warning(2) or "")

    def test_half_against_half_tells_nobody(self):
        skew = Skew()
        for peer, ahead_s in ((1, 0), (2, 3600), (3, 3600)):
            skew.observe(peer, NOW_S + ahead_s, NOW_S)
        assert skew.median_s == 0
        assert skew.warning(3) is None

    def test_one_that_has_gone_counts_no_more(self):
        skew = Skew()
        for peer in range(3):
            skew.observe(peer, NOW_S + 3600, NOW_S)
            skew.lose(peer)
        assert skew.median_s == 0
        assert skew.warning(3) is None

    def test_it_is_told_again_after_it_was_right(self):
        skew = Skew()
        skew.observe(1, NOW_S + 100, NOW_S)
        assert skew.warning(1)
        skew.observe(1, NOW_S, NOW_S)
        assert skew.warning(1) is None
        skew.observe(1, NOW_S + 100, NOW_S)
        assert skew.warning(1)

    def test_who_has_gone_counts_no_more(self):
        skew = Skew()
        assert skew.median_s == 0.0
        skew.observe(1, NOW_S + 100, NOW_S)
        skew.lose(1)
        skew.lose(2)
        assert skew.median_s == 0.0
        assert skew.warning(0) is None
