"""How an admission key hands over to the next one."""

from __future__ import annotations

from node.trust.certificate import TOLERANCE_S, peer_id
from node.trust.refusal import Reason, Refused
from node.trust.statement import Identifier, PublicKey, Seconds, Statement

MOST = 32
"""No network has had more admission keys."""


class Succession(Statement, frozen=True):
    """An admission key names its only successor, and until when its own signatures count; signed by the old key."""

    domain = b"starling/succession/1\0"
    most_bytes = 256

    network: Identifier
    old_key: PublicKey
    new_key: PublicKey
    until_s: Seconds
    """When what the old key has signed ends."""


class Lineage:
    """The admission keys of one network, from the one that founded it to the one that signs now."""

    def __init__(self, network: bytes, key: bytes) -> None:
        """``key``: the Ed25519 public key that founded the network. Refused (network) if its hash is not the id."""
        if peer_id(key) != network:
            raise Refused(Reason.NETWORK, "the founding admission key is not the one that the network's id is made of")
        self.network = network
        self.successions: list[Succession] = []
        self._keys = [key]

    @property
    def current(self) -> bytes:
        """The Ed25519 public key that signs now."""
        return self._keys[-1]

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def accepts(self, succession: Succession) -> bool:
        """Whether it is the next one, and not known. Refused where it is false, or a second one of the same key."""
        if succession.network != self.network:
            raise Refused(Reason.NETWORK, "a succession of another network's admission key")
        if succession in self.successions:
            return False
        if succession.old_key != self.current or succession.new_key in self._keys:
            raise Refused(Reason.ORDER, "a succession that does not follow from the admission key that signs now")
        if len(self._keys) == MOST:
            raise Refused(Reason.FULL, f"a network has at most {MOST} admission keys, one after the other")
        succession.check(self.current)
        return True

    def extend(self, succession: Succession) -> None:
        """Take one in that :meth:`accepts` found good."""
        self.successions.append(succession)
        self._keys.append(succession.new_key)

    def signer(self, statement: Statement) -> bytes:
        """Which admission key has signed it. Refused (signature) if none has."""
        for key in reversed(self._keys):
            if statement.is_signed_by(key):
                return key
        kind = type(statement).__name__.lower()
        raise Refused(Reason.SIGNATURE, f"a {kind} that no admission key of this network has signed")

    def counts(self, key: bytes, now_s: float) -> bool:
        """Whether what an admission key has signed still counts."""
        ends = [succession.until_s for succession in self.successions if succession.old_key == key]
        return not ends or now_s <= ends[0] + TOLERANCE_S
