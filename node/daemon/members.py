"""The members of a network as one of them knows them: whose certificate counts, and where each can be reached.

A member's record is its certificate, which the network has signed, and its card, which it has signed itself; it goes
round in its own words (:mod:`node.membership`). Nothing in a word is believed before both have been checked.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import msgspec
import structlog

from node.errors import TransportError
from node.identity import Card, Identity, Roster
from node.membership.statement import Statement
from node.trust.certificate import Certificate, id_text
from node.trust.refusal import Reason, Refused
from node.trust.statement import verifies
from node.trust.trust import Trust

_MOST_CHECKED = 4_096


class Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a member shows of itself."""

    certificate: bytes
    card: bytes


def record_of(certificate: Certificate, card: Card) -> bytes:
    """The bytes of a record."""
    return msgspec.msgpack.encode(Record(certificate.to_bytes(), card.to_bytes()))


def read_record(data: bytes) -> tuple[Certificate, Card]:
    """Certificate and card of a record that fit together, the card verified; Refused for anything else."""
    try:
        record = msgspec.msgpack.decode(data, type=Record)
        certificate, card = Certificate.from_bytes(record.certificate), Card.from_bytes(record.card)
        card.verify()
    except (ValueError, RecursionError) as error:
        raise Refused(Reason.MALFORMED, f"no record of a member: {error}") from None
    except Refused:
        raise
    except TransportError as error:
        raise Refused(Reason.SIGNATURE, str(error)) from None
    same = (certificate.node, certificate.signing_key, certificate.curve_key, id_text(certificate.network))
    if same != (card.node, card.signing_key, card.curve_key, card.network):
        raise Refused(Reason.KEY, f"the card of node {card.node} beside the certificate of node {certificate.node}")
    return certificate, card


class Members:
    """Signs this node's words, and believes others' as far as their records allow.

    Serves :class:`node.membership.statement.Signatures`.
    """

    def __init__(
        self, trust: Trust, identity: Identity, certificate: Certificate, now: Callable[[], float] = time.time
    ) -> None:
        """``now`` gives seconds since 1970."""
        self.refused: Counter[str] = Counter()
        """Words that were not believed, by reason."""
        self.me = certificate.node
        self._trust = trust
        self._identity = identity
        self._now = now
        self._cards: dict[int, Card] = {}
        self._checked: dict[bytes, tuple[Certificate, Card]] = {}
        self._log = structlog.get_logger().bind(node=self.me)

    def sign(self, content: bytes) -> bytes:
        """This node's Ed25519 signature, 64 bytes."""
        return self._identity.sign(content)

    def verify(self, statement: Statement) -> bool:
        """Whether the author is a member and has said this of itself, or of another."""
        try:
            certificate = self._author(statement)
            self._trust.check(certificate, self._now())
            if not verifies(certificate.signing_key, statement.signed_bytes, statement.signature):
                raise Refused(Reason.SIGNATURE, f"node {statement.author} has not said what it is said to have said")
        except Refused as refused:
            self.refused[refused.reason.value] += 1
            self._log.warning("word refused", of=statement.peer, reason=refused.reason.value, detail=refused.detail)
            return False
        return True

    def _author(self, statement: Statement) -> Certificate:
        if statement.is_own_word:
            certificate, _ = self._read(statement.record)
            if certificate.node != statement.peer:
                raise Refused(Reason.SENDER, f"node {certificate.node} speaks for node {statement.peer}")
            return certificate
        card = self._cards.get(statement.author)
        certificate_or_none = self._trust.holder(card.curve_key, self._now()) if card is not None else None
        if certificate_or_none is None:
            raise Refused(Reason.SENDER, f"node {statement.author} is no member that is known here")
        return certificate_or_none

    def _read(self, record: bytes) -> tuple[Certificate, Card]:
        if record not in self._checked:
            checked = read_record(record)
            if len(self._checked) >= _MOST_CHECKED:
                del self._checked[next(iter(self._checked))]
            self._checked[record] = checked
        return self._checked[record]

    def take(self, record: bytes) -> bool:
        """Know a member from now by this record; whether the roster is another with it. Refused where it is false."""
        certificate, card = self._read(record)
        learned = self._trust.learn(certificate, self._now())
        if self._cards.get(card.node) == card:
            return learned
        self._cards[card.node] = card
        return True

    def forget(self, peer: int) -> None:
        """Know of no place where this member can be reached."""
        self._cards.pop(peer, None)

    def roster(self) -> Roster:
        """The members that count now and can be reached, this node among them."""
        counting = [self._cards.get(certificate.node) for certificate in self._trust.members(self._now())]
        known = [card for card in counting if card is not None and self._trust.holder(card.curve_key, self._now())]
        return Roster(known)

    def shut_out(self) -> frozenset[bytes]:
        """CURVE keys of those who are revoked."""
        return frozenset(self._trust.revoked_keys(self._now()))

    def cards(self) -> dict[int, bytes]:
        """Where members can be reached, by node: their cards."""
        return {node: card.to_bytes() for node, card in sorted(self._cards.items())}

    def addresses(self) -> dict[int, str]:
        """Where members say that they listen, by node."""
        return {node: card.address for node, card in sorted(self._cards.items())}
