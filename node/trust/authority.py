"""Who is let in: the one place that signs certificates, counts the uses of invitations and gives out node numbers.

A network has a fixed number of nodes, 0 to n - 1. A newcomer gets the lowest number that is free; a key keeps its
number, also while it is away. Whatever is decided is kept before it is answered for, so that an authority that dies in
between has let in nobody that it does not remember; who asks again gets the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from node.errors import ConfigError
from node.identity import Identity
from node.trust.certificate import TOLERANCE_S, Certificate, Role, id_text, peer_id
from node.trust.invitations import Invitation, Invitations, hashed, new_secret
from node.trust.ledger import Entry, Founded, Invited, Issued, Revoked, Succeeded
from node.trust.refusal import Reason, Refused
from node.trust.request import Join, Renew
from node.trust.revocation import Revocation, Revocations
from node.trust.statement import Statement
from node.trust.succession import Lineage, Succession
from node.trust.token import Bootstrap, Token

BACKDATED_S = 3600
"""A certificate begins this long before it is issued: a member whose clock is behind takes it all the same."""
CHANGE_EVERY_S = 600
"""A member changes its keys no more often."""


@dataclass(frozen=True)
class Terms:
    """What a network's owner has decided about who may come."""

    network: bytes
    nodes: int
    """How many node numbers there are."""
    open: bool = False
    """Whether anybody may come without an invitation, as a learner."""
    lifetime_s: int = 30 * 86_400
    """How long a certificate lasts; members renew it from its half on."""
    overlap_s: int = 86_400
    """How long the old of two keys still counts: a member's, or the admission key."""
    reissue: bool = False
    """Whether the number of a node that was revoked, or whose certificate has ended, is given to another."""


class Authority:
    """A network's admission. All times are in seconds since 1970."""

    def __init__(self, key: Identity, terms: Terms, first_key: bytes, keep: Callable[[Entry], None]) -> None:
        """
        Args:
            key: the admission key that signs now.
            first_key: the Ed25519 public key that founded the network.
            keep: has an entry on the disk when it returns, or raises and nothing has changed.
        """
        self.terms = terms
        self.key = key
        self.lineage = Lineage(terms.network, first_key)
        self.revocations = Revocations()
        """All there ever were: a revoked key is never let in again."""
        self.invitations = Invitations()
        self._keep = keep
        self._of_peer: dict[bytes, Certificate] = {}
        self._of_node: dict[int, Certificate] = {}
        self._successors: dict[bytes, bytes] = {}
        self._serial = 0
        self._revoked = 0

    def apply(self, entry: Entry) -> None:
        """Take in what was kept."""
        match entry:
            case Founded(network):
                if network != self.terms.network:
                    raise ConfigError(f"the ledger is that of network {id_text(network)}: restore the right one")
            case Invited():
                self.invitations.add(entry)
            case Issued(certificate, token, retires):
                self._of_peer[certificate.peer_id] = self._of_node[certificate.node] = certificate
                self._serial = max(self._serial, certificate.serial)
                if token is not None:
                    self.invitations.use(token, certificate.peer_id)
                if retires is not None:
                    self._successors[retires.peer_id] = certificate.peer_id
                    self._add(retires)
            case Revoked(revocation):
                self._add(revocation)
            case Succeeded(succession):
                self.lineage.extend(succession)

    # Invitations

    def invite(self, role: Role, expires_s: int, uses: int, bootstrap: Sequence[Bootstrap]) -> Token:
        """Make an invitation. Its secret is in the token alone: nobody can read it here later."""
        token, secret = new_secret()
        self._keep_and_apply(Invited(token, hashed(token, secret), role, expires_s, uses))
        return Token(
            self.terms.network, self._signer().signing_public, tuple(bootstrap), role, expires_s, uses, token, secret
        )

    def open_token(self, bootstrap: Sequence[Bootstrap]) -> Token:
        """What leads anybody to an open network. ConfigError where it is not open."""
        if not self.terms.open:
            raise ConfigError("open: this network is not open; make an invitation")
        return Token(
            self.terms.network, self._signer().signing_public, tuple(bootstrap), Role.learner, 0, 0, None, None
        )

    # Certificates

    def enrol(self, identity: Identity, role: Role, now_s: float) -> Certificate:
        """Let in whom the owner says, without an invitation: the founder. Renews, too, from half of the time on."""
        signing_key, curve_key = identity.signing_public, identity.curve_public
        peer = peer_id(signing_key)
        self._check_lives(peer, now_s)
        held = self._held(peer, curve_key, now_s)
        if held is not None and now_s < held.renew_s:
            return held
        return self._issue((signing_key, curve_key), role, self._number(peer, now_s), now_s)

    def admit(self, join: Join, link_key: bytes, now_s: float) -> Certificate:
        """Let a stranger in, or say with Refused why not. Whoever asks again with the same keys gets the same.

        ``link_key``: the CURVE public key of the link that the request came over, 32 bytes.
        """
        self._check_request(join, join.network, join.curve_key, link_key)
        join.check(join.signing_key)
        peer = peer_id(join.signing_key)
        self._check_lives(peer, now_s)
        invitation, role = self._entitled(join)
        held = self._held(peer, join.curve_key, now_s)
        if held is not None:
            if held.role is not role:
                raise Refused(Reason.ROLE, f"node {held.node} is a member already, as {held.role.value}")
            return held
        if invitation is not None:
            invitation.check(peer, now_s)
        number = self._number(peer, now_s)
        return self._issue((join.signing_key, join.curve_key), role, number, now_s, token=join.token)

    def renew(self, renew: Renew, link_key: bytes, now_s: float) -> Certificate:
        """A member's next certificate, for its own keys or new ones; or Refused.

        The one that it has is given again before the middle of its time. Where the signing key changes, the
        old one counts for ``Terms.overlap_s`` more.
        """
        self._check_request(renew, renew.network, renew.curve_key, link_key)
        renew.check_both()
        old, new = peer_id(renew.old_key), peer_id(renew.signing_key)
        self.revocations.check(new, now_s)
        if new != old and self._successors.get(old) == new:
            held = self._held(new, renew.curve_key, now_s)
            if held is not None:
                return held
        self._check_lives(old, now_s)
        certificate = self._of_peer.get(old)
        if certificate is None or self._of_node[certificate.node] is not certificate:
            raise Refused(Reason.EXPIRED, "no member, or its node number has been given to another: join again")
        certificate.check_times(now_s)
        if new == old:
            held = self._held(old, renew.curve_key, now_s)
            if held is not None and now_s < held.renew_s:
                return held
            retires = None
        else:
            self._check_change(certificate, new, now_s)
            retires = self._revocation(old, now_s + self.terms.overlap_s, "replaced")
        keys = (renew.signing_key, renew.curve_key)
        return self._issue(keys, certificate.role, certificate.node, now_s, retires=retires)

    # Endings

    def revoke(self, peer: bytes, now_s: float, why: str = "") -> Revocation:
        """End a peer's membership, for good; where it has ended already, what was said then."""
        if peer not in self._of_peer:
            raise ConfigError(f"revoke: no member has id {id_text(peer)}; 'starling network show' lists them")
        known = self.revocations.of(peer)
        if known is not None and now_s >= known.at_s:
            return known
        revocation = self._revocation(peer, now_s, why)
        self._keep_and_apply(Revoked(revocation))
        return revocation

    def holders(self, node: int, now_s: float) -> list[bytes]:
        """Ids of the peers whose certificates for a node number still count: two while its keys change."""
        return [
            peer
            for peer, held in sorted(self._of_peer.items())
            if held.node == node and not self._has_ended(held, now_s)
        ]

    def succeed(self, new: Identity, now_s: float) -> Succession:
        """Hand over to a new admission key. What the old one has signed counts for ``Terms.overlap_s`` more; until then
        members renew.
        """
        until_s = int(now_s) + self.terms.overlap_s
        succession = Succession(
            self.terms.network, self._signer().signing_public, new.signing_public, until_s
        ).signed_by(self._signer())
        self.lineage.accepts(succession)
        self._keep_and_apply(Succeeded(succession))
        self.key = new
        return succession

    # Facts

    def members(self, now_s: float) -> list[Certificate]:
        """The newest certificate of each node whose certificate counts, sorted by node."""
        return [held for _, held in sorted(self._of_node.items()) if not self._has_ended(held, now_s)]

    def newest(self) -> list[Certificate]:
        """The newest certificate of each node, whether it counts or not, sorted by node."""
        return [held for _, held in sorted(self._of_node.items())]

    def in_force(self, now_s: float) -> list[Revocation]:
        """The revocations that members need to know of, by number."""
        return [revocation for revocation in self.revocations if now_s <= revocation.forget_s + TOLERANCE_S]

    def _signer(self) -> Identity:
        if self.key.signing_public != self.lineage.current:
            raise ConfigError("admission.key: is not the key that signs for this network now; restore the newest one")
        return self.key

    def _check_request(self, request: Statement, network: bytes, curve_key: bytes, link_key: bytes) -> None:
        if network != self.terms.network:
            raise Refused(Reason.NETWORK, f"a {type(request).__name__.lower()} for network {id_text(network)}")
        if curve_key != link_key:
            raise Refused(Reason.KEY, "a request about another CURVE key than that of its link")

    def _check_lives(self, peer: bytes, now_s: float) -> None:
        self.revocations.check(peer, now_s)
        if peer in self._successors:
            raise Refused(Reason.REVOKED, f"peer {id_text(peer)} has been replaced by its new key")

    def _entitled(self, join: Join) -> tuple[Invitation | None, Role]:
        if join.token is None and self.terms.open:
            return None, Role.learner
        invitation = self.invitations.find(join)
        return invitation, invitation.entry.role

    def _held(self, peer: bytes, curve_key: bytes, now_s: float) -> Certificate | None:
        """The certificate that a peer has, if it counts, and was signed by the key that signs now.

        Refused (key) if it is of another CURVE key: nothing would end the old one.
        """
        held = self._of_peer.get(peer)
        if held is None or self._has_ended(held, now_s):
            return None
        if held.curve_key != curve_key:
            raise Refused(Reason.KEY, f"node {held.node} keeps its signing key and changes the other; change both")
        return held if held.is_signed_by(self.lineage.current) else None

    def _has_ended(self, held: Certificate, now_s: float) -> bool:
        return now_s > held.not_after_s + TOLERANCE_S or self.revocations.is_revoked(held.peer_id, now_s)

    def _check_change(self, held: Certificate, new: bytes, now_s: float) -> None:
        if new in self._of_peer:
            raise Refused(Reason.KEY, "the new key is another member's")
        if now_s < held.not_before_s + BACKDATED_S + CHANGE_EVERY_S:
            raise Refused(Reason.RATE, f"node {held.node} got a certificate less than {CHANGE_EVERY_S} s ago")

    def _number(self, peer: bytes, now_s: float) -> int:
        """The peer's own number if it has one, else the lowest that is free. Refused (full) if there is none."""
        own = self._of_peer.get(peer)
        if own is not None and self._of_node[own.node].peer_id == peer:
            return own.node
        for node in range(self.terms.nodes):
            held = self._of_node.get(node)
            if held is None or (self.terms.reissue and self._has_ended(held, now_s)):
                return node
        raise Refused(Reason.FULL, f"all {self.terms.nodes} node numbers are taken")

    def _issue(
        self,
        keys: tuple[bytes, bytes],
        role: Role,
        node: int,
        now_s: float,
        *,
        token: bytes | None = None,
        retires: Revocation | None = None,
    ) -> Certificate:
        begins_s = max(0, int(now_s) - BACKDATED_S)
        certificate = Certificate(
            self.terms.network, node, *keys, role, begins_s, int(now_s) + self.terms.lifetime_s, self._serial + 1
        ).signed_by(self._signer())
        self._keep_and_apply(Issued(certificate, token, retires))
        return certificate

    def _revocation(self, peer: bytes, at_s: float, why: str) -> Revocation:
        forget_s = max(int(at_s), self._of_peer[peer].not_after_s)
        number = self._revoked + 1
        return Revocation(self.terms.network, number, peer, int(at_s), forget_s, why).signed_by(self._signer())

    def _add(self, revocation: Revocation) -> None:
        self.revocations.add(revocation)
        self._revoked = max(self._revoked, revocation.number)

    def _keep_and_apply(self, entry: Entry) -> None:
        self._keep(entry)
        self.apply(entry)
