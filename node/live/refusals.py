"""What was refused, by reason: counted always, logged at most once a second per sender, punished when it goes on."""

from __future__ import annotations

from collections import Counter

import structlog

LOG_EVERY_S = 1.0


class Refusals:
    """Counts refusals and decides when a peer has had enough of them."""

    def __init__(self, node: int, allowed: int) -> None:
        self.counts: Counter[str] = Counter()
        self._log = structlog.get_logger().bind(node=node)
        self._allowed = allowed
        self._offences: Counter[int] = Counter()
        self._quiet: dict[int | None, tuple[float, int]] = {}

    def by_peer(self, reason: str, peer: int, now_s: float, detail: str) -> bool:
        """A member's frame was refused. True once: when its link has to be cut."""
        self.counts[reason] += 1
        self._offences[peer] += 1
        cut = self._offences[peer] == self._allowed
        self._say("refused", peer, now_s, reason=reason, peer=peer, detail=detail)
        if cut:
            self._log.warning("cut off", peer=peer, refusals=self._allowed)
        return cut

    def by_address(self, reason: str, address: str, now_s: float, detail: str) -> None:
        """A handshake failed: somebody at an address, not known to be anybody."""
        self.counts[reason] += 1
        self._say("handshake refused", None, now_s, reason=reason, address=address, detail=detail)

    def _say(self, event: str, sender: int | None, now_s: float, **what: object) -> None:
        said_s, unsaid = self._quiet.get(sender, (-LOG_EVERY_S, 0))
        if now_s - said_s < LOG_EVERY_S:
            self._quiet[sender] = said_s, unsaid + 1
            return
        self._quiet[sender] = now_s, 0
        self._log.warning(event, **what, unsaid=unsaid)
