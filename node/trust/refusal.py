"""Why somebody or something is not accepted: one list of reasons for logs, audit and counters."""

from __future__ import annotations

from enum import StrEnum

from node.errors import NotAMember


class Reason(StrEnum):
    """What a refusal is counted under. The detail is for our own log; a stranger is told no more than this word."""

    MALFORMED = "malformed"
    """Bytes that are not what they should be."""
    VERSION = "version"
    """Of a version, or with ciphers, that this program does not speak."""
    SIGNATURE = "signature"
    """Not signed by the key that it says, or by no key that counts here."""
    NETWORK = "network"
    """Of another network."""
    EXPIRED = "expired"
    SKEW = "skew"
    """Not valid yet: a clock is wrong."""
    REVOKED = "revoked"
    UNKNOWN_TOKEN = "unknown_token"
    """No such invitation, or not its secret."""
    USED_UP = "used_up"
    """An invitation that has been used as often as it may be."""
    ROLE = "role"
    """A role that may not be had this way."""
    FULL = "full"
    """No node number is left."""
    KEY = "key"
    """A certificate whose keys are not those of the link."""
    REPLAY = "replay"
    """Said before, in another session, or by ourselves."""
    ORDER = "order"
    """Out of turn."""
    SENDER = "sender"
    """A member that speaks for another."""
    RATE = "rate"
    """Too often."""
    DEADLINE = "deadline"
    """Too late."""


_LONGEST = 400


class Refused(NotAMember):
    """Somebody or something is not accepted."""

    def __init__(self, reason: Reason, detail: str) -> None:
        """``detail`` may hold what a stranger has written: it is made one printable line, not too long."""
        detail = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in detail[:_LONGEST])
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail
