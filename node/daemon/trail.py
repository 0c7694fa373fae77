"""What a node's operator can read of it afterwards: who wanted what of it, what the network has decided, and its keys.

The file in a network's folder is its owner's, and about all members; this one is in each node's state folder.
"""

from __future__ import annotations

import time
from pathlib import Path

import structlog

from node.trust.audit import Audit

AUDIT = "audit.jsonl"


class Trail:
    """The audit of one node's state folder; a full disk costs lines of it, and nothing else."""

    def __init__(self, folder: Path, node: int) -> None:
        self._audit = Audit(folder / AUDIT)
        self._node = node
        self._log = structlog.get_logger(node=node)

    def note(self, actor: str, action: str, what: str = "", reason: str = "") -> None:
        """Write down who did or wanted what, and why it was refused.

        Args:
            actor: an address, a member or a key.
            what: it was about; the node itself, where nothing is said.
        """
        try:
            self._audit.record(time.time(), actor, action, what or f"node {self._node}", reason)
        except OSError as error:
            self._log.error("audit not written", reason=error.strerror)
