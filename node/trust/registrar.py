"""The admission of a network as bytes in, bytes out: everything of it but the socket."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import structlog

from node.trust.audit import Audit
from node.trust.authority import Authority
from node.trust.certificate import Certificate, id_text
from node.trust.refusal import Reason, Refused
from node.trust.request import MOST_ANSWER_BYTES, Join, Member, Renew, Turned, Welcome, decode_request, encode


class Registrar:
    """Answers those who come over the admission link."""

    def __init__(
        self,
        authority: Callable[[], AbstractContextManager[Authority]],
        audit: Audit,
        name: str,
        experiment: str,
        cards: Callable[[], Mapping[int, bytes]] = dict,
    ) -> None:
        """
        Args:
            authority: gives the network's authority, with nobody else deciding while the context lasts.
            name: the network's, for people.
            experiment: the text of its TOML file.
            cards: by node, where members can be reached.
        """
        self.refused: Counter[Reason] = Counter()
        """How many were refused, by reason."""
        self._authority = authority
        self._audit = audit
        self._name = name
        self._experiment = experiment
        self._cards = cards
        self._log = structlog.get_logger()

    def answer(self, request: bytes, link_key: bytes, address: str, now_s: float) -> bytes:
        """What to answer. Waits for the disk: call it in a thread, one at a time.

        Args:
            link_key: the CURVE public key of the link, 32 bytes.
            address: where the link comes from, for the logs.
            now_s: our clock, seconds since 1970.

        Raises:
            StoreError: what was decided cannot be kept, so nobody is let in; answer nothing.
        """
        action = "admit"
        try:
            asked = decode_request(request)
            action = "renew" if isinstance(asked, Renew) else "admit"
            with self._authority() as authority:
                certificate = self._decide(authority, asked, link_key, now_s)
                welcome = self._welcome(authority, certificate, now_s)
        except Refused as refused:
            self.refused[refused.reason] += 1
            self._log.warning("admission refused", address=address, reason=refused.reason.value, detail=refused.detail)
            self._note(now_s, address, action, refused.detail, refused.reason.value)
            return encode(Turned(refused.reason))
        peer = id_text(certificate.peer_id)
        self._log.info("admitted", address=address, member=certificate.node, role=certificate.role.value, peer=peer)
        self._note(now_s, address, action, f"node {certificate.node}, {certificate.role.value}, {peer}")
        return encode(welcome)

    def _note(self, now_s: float, address: str, action: str, what: str, reason: str = "") -> None:
        try:
            self._audit.record(now_s, address, action, what, reason)
        except OSError as error:
            self._log.error("audit not written", reason=error.strerror)

    def _decide(self, authority: Authority, asked: Join | Renew, link_key: bytes, now_s: float) -> Certificate:
        if isinstance(asked, Join):
            return authority.admit(asked, link_key, now_s)
        return authority.renew(asked, link_key, now_s)

    def _welcome(self, authority: Authority, certificate: Certificate, now_s: float) -> Welcome:
        cards = self._cards()
        members = [Member(member, cards.get(member.node, b"")) for member in authority.members(now_s)]
        # Those with a card first: they can be asked for the others.
        members.sort(key=lambda member: (not member.card, member.certificate.node))
        while True:
            welcome = Welcome(
                certificate,
                tuple(authority.lineage.successions),
                tuple(authority.in_force(now_s)),
                tuple(members),
                self._name,
                self._experiment,
                int(now_s),
            )
            if not members or len(encode(welcome)) <= MOST_ANSWER_BYTES:
                return welcome
            del members[len(members) // 2 :]
