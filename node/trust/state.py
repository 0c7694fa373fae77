"""What one member believes, kept in its state folder from start to start."""

from __future__ import annotations

from pathlib import Path

from node.errors import Corrupt
from node.trust.ledger import Entry, Founded, Ledger
from node.trust.trust import Trust

TRUST = "trust.jsonl"


def begin_trust(path: Path, network: bytes, founding_key: bytes) -> Trust:
    """Begin to keep what is believed about a network, in a new file. ConfigError where there is one."""
    Ledger.create(path, Founded(network, founding_key))
    return load_trust(path)


def load_trust(path: Path) -> Trust:
    """Believe what was believed. ConfigError where the file is missing or open to others; Corrupt: it is damaged."""
    entries: list[Entry] = []
    ledger = Ledger(path, entries.append)
    match entries:
        case [Founded(network, key), *_]:
            trust = Trust(network, key, ledger.append)
        case _:
            raise Corrupt(f"{path}: does not begin with a network; restore it, or join again in another folder")
    for entry in entries:
        trust.apply(entry)
    return trust
