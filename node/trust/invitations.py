"""What an authority remembers of the invitations it has made: hashes of their secrets, and who came with them."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field

from node.trust.ledger import Invited
from node.trust.refusal import Reason, Refused
from node.trust.request import Join


@dataclass
class Invitation:
    """One token, as far as its maker remembers it."""

    entry: Invited
    users: dict[bytes, None] = field(default_factory=dict)
    """Ids of the peers that came with it, in order; each is one use."""

    @property
    def left(self) -> int:
        """How many uses are left."""
        return self.entry.uses - len(self.users)

    def has_ended(self, now_s: float) -> bool:
        """Whether its time is over."""
        return now_s > self.entry.expires_s

    def check(self, peer: bytes, now_s: float) -> None:
        """Refused (expired, used_up) unless this peer may come with it now. Coming again is the same use."""
        name = f"invitation {self.entry.token.hex()}"
        if self.has_ended(now_s):
            raise Refused(Reason.EXPIRED, f"{name} ended {now_s - self.entry.expires_s:.0f} s ago")
        if self.left == 0 and peer not in self.users:
            raise Refused(Reason.USED_UP, f"{name} was for {self.entry.uses}, who have come")


class Invitations:
    """All of a network's."""

    def __init__(self) -> None:
        self._by_id: dict[bytes, Invitation] = {}

    def add(self, entry: Invited) -> None:
        """One was made."""
        self._by_id[entry.token] = Invitation(entry)

    def use(self, token: bytes, peer: bytes) -> None:
        """A peer came with it."""
        self._by_id[token].users[peer] = None

    def find(self, join: Join) -> Invitation:
        """The invitation that a request shows the secret of. Refused (unknown_token) where there is none."""
        invitation = self._by_id.get(join.token) if join.token is not None else None
        wanted = invitation.entry.secret_hash if invitation else bytes(32)
        # The same work whether there is such an invitation or not: how long it takes tells a stranger nothing.
        fits = hmac.compare_digest(wanted, hashed(join.token or b"", join.secret or b""))
        if invitation is None or not fits:
            raise Refused(
                Reason.UNKNOWN_TOKEN, f"no invitation {join.token.hex() if join.token else ''} with that secret"
            )
        return invitation

    def __iter__(self) -> Iterator[Invitation]:
        return iter(self._by_id.values())

    def __len__(self) -> int:
        return len(self._by_id)


def new_secret() -> tuple[bytes, bytes]:
    """A token's id, 8 bytes, and its secret, 16 bytes, from the operating system's random source."""
    return secrets.token_bytes(8), secrets.token_bytes(16)


def hashed(token: bytes, secret: bytes) -> bytes:
    """What is remembered of a secret, 32 bytes. It is random, so that a fast hash is enough."""
    return hashlib.sha256(b"starling/secret/1\0" + token + secret).digest()
