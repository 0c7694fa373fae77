"""Membership certificates: which keys are which node of which network, in which role, from when until when."""

from __future__ import annotations

import base64
import hashlib
from enum import StrEnum
from typing import Annotated

import msgspec

from node.identity import Identity
from node.trust.refusal import Reason, Refused
from node.trust.statement import Identifier, Number, PublicKey, Seconds, Statement

TOLERANCE_S = 300
"""How much longer, and earlier, a certificate counts: nobody is refused for a clock that is off by less."""

_DOMAIN = b"starling/peer/1\0"


class Role(StrEnum):
    """What a member may be."""

    learner = "learner"
    storage = "storage"
    compute = "compute"
    attacker = "attacker"


def peer_id(signing_key: bytes) -> bytes:
    """The name of the holder of an Ed25519 public key: 20 bytes of its SHA-256.

    A network's id is that of the key that founded it.
    """
    return hashlib.sha256(_DOMAIN + signing_key).digest()[:20]


def id_text(identifier: bytes) -> str:
    """A peer's or network's id for people: 32 characters, ``a`` to ``z`` and ``2`` to ``7``."""
    return base64.b32encode(identifier).decode("ascii").lower()


def id_of(text: str) -> bytes:
    """Read what :func:`id_text` gives; ValueError for anything else."""
    identifier = base64.b32decode(text.upper())
    if id_text(identifier) != text or len(identifier) != 20:
        raise ValueError(f"{text!r} is no id of 32 characters")
    return identifier


class Certificate(Statement, frozen=True):
    """Binds an identity's two public keys to a node number; signed by the admission key. Hold it against a
    :class:`~node.trust.trust.Trust` before believing it.
    """

    domain = b"starling/certificate/1\0"
    most_bytes = 512

    network: Identifier
    node: Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
    signing_key: PublicKey
    """Ed25519."""
    curve_key: PublicKey
    role: Role
    not_before_s: Seconds
    not_after_s: Seconds
    serial: Number
    """Grows with every certificate of the network."""

    @property
    def peer_id(self) -> bytes:
        """The holder's id, 20 bytes: the hash of its signing key."""
        return peer_id(self.signing_key)

    @property
    def renew_s(self) -> int:
        """From when on its holder gets another: the middle of its time."""
        return (self.not_before_s + self.not_after_s) // 2

    def binds(self, identity: Identity) -> bool:
        """Whether it is about these keys."""
        return (self.signing_key, self.curve_key) == (identity.signing_public, identity.curve_public)

    def check_times(self, now_s: float) -> None:
        """Refused (expired, skew) outside its time, with a tolerance of TOLERANCE_S at both ends."""
        if now_s > self.not_after_s + TOLERANCE_S:
            late_s = now_s - self.not_after_s
            raise Refused(Reason.EXPIRED, f"the certificate of node {self.node} ended {late_s:.0f} s ago; renew it")
        if now_s < self.not_before_s - TOLERANCE_S:
            early_s = self.not_before_s - now_s
            raise Refused(
                Reason.SKEW,
                f"the certificate of node {self.node} begins in {early_s:.0f} s: this machine's clock is behind, or "
                "the admitting node's ahead; set them",
            )

    def __repr__(self) -> str:
        return f"<Certificate {self.serial}: node {self.node}, {self.role.value}, {id_text(self.peer_id)}>"
