"""A network's authority, its members and their links, for tests of trust: everything in memory, at made-up times."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from node.identity import Identity
from node.trust.authority import Authority, Terms
from node.trust.certificate import Certificate, Role, peer_id
from node.trust.handshake import Handshake, Local
from node.trust.ledger import Entry, Founded
from node.trust.refusal import Reason, Refused
from node.trust.request import Join, Renew
from node.trust.token import Bootstrap, Token
from node.trust.trust import Trust

NOW_S = 1_800_000_000
DAY_S = 86_400
KEYS = [Identity.generate() for _ in range(6)]
ADMISSION, FOUNDER, ALICE, BOB, CAROL, MALLORY = KEYS
NETWORK = peer_id(ADMISSION.signing_public)
BOOTSTRAP = (Bootstrap("192.0.2.1:7600", FOUNDER.curve_public),)


def refused(reason: Reason, detail: str = ""):
    """Expects a refusal for this reason, in one line."""
    return pytest.raises(Refused, match=f"^{reason.value}: .*{detail}")


@dataclass
class Network:
    """An authority and what it has kept."""

    nodes: int = 4
    open: bool = False
    reissue: bool = False
    kept: list[Entry] = field(default_factory=list)
    authority: Authority = field(init=False)

    def __post_init__(self) -> None:
        self.authority = self._authority(ADMISSION)
        self.kept.append(Founded(NETWORK, ADMISSION.signing_public))

    def _authority(self, key: Identity) -> Authority:
        terms = Terms(NETWORK, self.nodes, open=self.open, reissue=self.reissue)
        return Authority(key, terms, ADMISSION.signing_public, self.kept.append)

    def restarted(self) -> Authority:
        """Another authority that has read what this one has kept."""
        again = self._authority(self.authority.key)
        for entry in self.kept:
            again.apply(entry)
        return again

    def token(self, role: Role = Role.learner, uses: int = 1, expires_s: int = NOW_S + DAY_S) -> Token:
        return self.authority.invite(role, expires_s, uses, BOOTSTRAP)

    def join(self, identity: Identity, token: Token, now_s: float = NOW_S) -> Certificate:
        return self.authority.admit(Join.by(identity, token), identity.curve_public, now_s)

    def renew(self, old: Identity, new: Identity, now_s: float) -> Certificate:
        return self.authority.renew(Renew.by(old, new, NETWORK), new.curve_public, now_s)

    def member(self, identity: Identity, now_s: float = NOW_S) -> Certificate:
        return self.join(identity, self.token(), now_s)

    def trust(self) -> Trust:
        return Trust(NETWORK, ADMISSION.signing_public)

    def local(self, identity: Identity, **more: object) -> Local:
        return Local(identity, self.authority.enrol(identity, Role.learner, NOW_S), self.trust(), 1, **more)


def certificate(**changed: object) -> Certificate:
    """One of Alice's, signed as it is after the changes."""
    values = {
        "network": NETWORK,
        "node": 3,
        "signing_key": ALICE.signing_public,
        "curve_key": ALICE.curve_public,
        "role": Role.learner,
        "not_before_s": NOW_S - 3600,
        "not_after_s": NOW_S + DAY_S,
        "serial": 7,
    }
    return Certificate(**{**values, **changed}).signed_by(ADMISSION)


def ends(
    initiator: Local,
    responder: Local,
    number: int = 0,
    *,
    dialled: Identity | None = None,
    dials: Identity | None = None,
) -> tuple[Handshake, Handshake]:
    """Both ends of one link; who is really there may be somebody else than who is meant to be."""
    nonces = [bytes([number, side]) * 16 for side in (1, 2)]
    return (
        Handshake(initiator, nonces[0], (dialled or responder.identity).curve_public, 0.0),
        Handshake(responder, nonces[1], (dials or initiator.identity).curve_public, 0.0),
    )
