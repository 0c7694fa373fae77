"""Whom one node believes: the network's admission keys, the certificates it has seen, and who is revoked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from node.trust.certificate import TOLERANCE_S, Certificate
from node.trust.ledger import Entry, Founded, Issued, Revoked, Succeeded
from node.trust.refusal import Reason, Refused
from node.trust.revocation import Revocation, Revocations
from node.trust.succession import Lineage, Succession


class _Known(NamedTuple):
    certificate: Certificate
    signer: bytes


def _forgetful(entry: Entry) -> None:
    """Keeps nothing beyond this process."""


class Trust:
    """One node's view of its network. What is new is kept before it counts, so that a restart cannot forget it.

    Two nodes that have been told the same believe the same, in whatever order they were told.
    """

    def __init__(self, network: bytes, founding_key: bytes, keep: Callable[[Entry], None] = _forgetful) -> None:
        """
        Args:
            founding_key: the first admission key, Ed25519; its hash is the network's id.
            keep: has an entry on the disk when it returns, or raises and nothing has changed.
        """
        self.network = network
        self.revocations = Revocations()
        self._lineage = Lineage(network, founding_key)
        self._keep = keep
        self._by_curve_key: dict[bytes, _Known] = {}

    @property
    def successions(self) -> Sequence[Succession]:
        """How the admission key that signs now came from the founding one."""
        return tuple(self._lineage.successions)

    def apply(self, entry: Entry) -> None:
        """Take in what was kept: it was checked then."""
        match entry:
            case Succeeded(succession):
                self._lineage.extend(succession)
            case Revoked(revocation):
                self.revocations.add(revocation)
            case Issued(certificate):
                known = _Known(certificate, self._lineage.signer(certificate))
                self._by_curve_key[certificate.curve_key] = known
            case Founded(network):
                if network != self.network:
                    raise Refused(Reason.NETWORK, "what was kept is another network's")

    def succeed(self, successions: Sequence[Succession]) -> bool:
        """Follow the admission key to its successors, in order; whether any was new. Refused where one is false."""
        new = False
        for succession in successions:
            if self._lineage.accepts(succession):
                self._keep_and_apply(Succeeded(succession))
                new = True
        return new

    def revoke(self, revocation: Revocation, now_s: float) -> bool:
        """Believe a revocation, if it is true; whether it was new, and is to be passed on. Refused where it is false.

        Whoever is revoked by now loses its links at once; what waits of it is dropped.
        """
        if revocation.network != self.network:
            raise Refused(Reason.NETWORK, "a revocation of another network's member")
        if self.revocations.has(revocation) or now_s > revocation.forget_s + TOLERANCE_S:
            return False
        if not self._lineage.counts(self._lineage.signer(revocation), now_s):
            return False  # nor does any certificate count that this key has signed, and the peer has no other
        self._keep_and_apply(Revoked(revocation))
        return True

    def learn(self, certificate: Certificate, now_s: float) -> bool:
        """Remember a member, if its certificate counts; whether it was new. Refused where it does not."""
        self.check(certificate, now_s)
        known = self._by_curve_key.get(certificate.curve_key)
        if known is not None and known.certificate.serial >= certificate.serial:
            return False
        self._keep_and_apply(Issued(certificate))
        return True

    def check(self, certificate: Certificate, now_s: float) -> None:
        """Raise Refused, with the reason, unless this certificate counts here and now."""
        if certificate.network != self.network:
            raise Refused(Reason.NETWORK, "a certificate of another network")
        known = self._by_curve_key.get(certificate.curve_key)
        if known is not None and known.certificate == certificate:
            signer = known.signer
        else:
            signer = self._lineage.signer(certificate)
        self.revocations.check(certificate.peer_id, now_s)
        certificate.check_times(now_s)
        if not self._lineage.counts(signer, now_s):
            raise Refused(Reason.EXPIRED, "a certificate of an admission key that has been replaced; renew it")

    def counts(self, certificate: Certificate, now_s: float) -> bool:
        """Whether this certificate counts here and now."""
        try:
            self.check(certificate, now_s)
        except Refused:
            return False
        return True

    def holder(self, curve_key: bytes, now_s: float) -> Certificate | None:
        """Whose link was made with a CURVE public key (32 bytes); None: a stranger's, as far as we know."""
        known = self._by_curve_key.get(curve_key)
        return known.certificate if known is not None and self.counts(known.certificate, now_s) else None

    def why_not(self, curve_key: bytes, now_s: float) -> str | None:
        """Why the certificate of a CURVE key (32 bytes) does not count now; None: it does, or there is none."""
        known = self._by_curve_key.get(curve_key)
        try:
            if known is not None:
                self.check(known.certificate, now_s)
        except Refused as refused:
            return refused.detail
        return None

    def revoked_keys(self, now_s: float) -> frozenset[bytes]:
        """CURVE keys of the members that are revoked by now, as far as we have known them: no link is to be made."""
        return frozenset(
            key
            for key, (certificate, _) in self._by_curve_key.items()
            if self.revocations.is_revoked(certificate.peer_id, now_s)
        )

    def should_renew(self, certificate: Certificate, now_s: float) -> bool:
        """Whether to ask for the next one: its middle is past, or the admission key has been replaced since."""
        return now_s >= certificate.renew_s or not certificate.is_signed_by(self._lineage.current)

    def members(self, now_s: float) -> list[Certificate]:
        """The newest certificate that counts of each node, sorted by node.

        While a member changes keys both are accepted; this gives the new ones.
        """
        newest: dict[int, Certificate] = {}
        for certificate, _ in self._by_curve_key.values():
            held = newest.get(certificate.node)
            if (held is None or certificate.serial > held.serial) and self.counts(certificate, now_s):
                newest[certificate.node] = certificate
        return [newest[node] for node in sorted(newest)]

    def forget(self, now_s: float) -> None:
        """Drop what has ended: certificates, and revocations of nothing that could still count."""
        for key, (certificate, _) in list(self._by_curve_key.items()):
            if now_s > certificate.not_after_s + TOLERANCE_S:
                del self._by_curve_key[key]
        self.revocations.forget(now_s)

    def _keep_and_apply(self, entry: Entry) -> None:
        self._keep(entry)
        self.apply(entry)
