"""A network's folder: its settings, admission key and ledger, and the authority that they make.

::

    network.toml      what its owner has decided
    experiment.toml   what all of its nodes run
    admission.key     signs certificates; whoever has it is the network
    ledger.jsonl      invitations, certificates, revocations, successions
    audit.jsonl       who did what

The folder is for its owner's eyes alone (mode 0700). Processes may share it: a node that admits, and the command line.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import tomli_w

from node import durable
from node.errors import ConfigError
from node.identity import Identity
from node.trust.audit import Audit
from node.trust.authority import Authority
from node.trust.certificate import id_text, peer_id
from node.trust.files import check_private, write_private
from node.trust.ledger import Entry, Founded, Ledger
from node.trust.settings import checked, read_settings
from node.trust.succession import Succession
from node.trust.token import Bootstrap

NETWORK, EXPERIMENT, KEY, LEDGER, AUDIT = (
    "network.toml",
    "experiment.toml",
    "admission.key",
    "ledger.jsonl",
    "audit.jsonl",
)
_NEXT_KEY = "admission.key.next"


class NetworkFolder:
    """One network, as the one who owns it sees it."""

    def __init__(self, path: Path) -> None:
        """Open a folder. ConfigError where something is missing, damaged, or open to others; nothing is made anew."""
        self.path = path
        check_private(path)
        self.settings = read_settings(path / NETWORK, _read_text(path / NETWORK))
        self.experiment = _read_text(path / EXPERIMENT)
        self.audit = Audit(path / AUDIT)
        self._authority = Authority(
            Identity.load(path / KEY), self.settings.terms(), bytes.fromhex(self.settings.key), self._keep
        )
        self._ledger = Ledger(path / LEDGER, self._authority.apply)

    @classmethod
    def create(
        cls, path: Path, name: str, experiment: str, nodes: int, admission: str, *, open: bool = False
    ) -> NetworkFolder:
        """Found a network with a new admission key in a new or empty folder. ConfigError where it is not empty."""
        key = Identity.generate()
        network = peer_id(key.signing_public)
        values = {"name": name, "id": id_text(network), "key": key.signing_public.hex(), "nodes": nodes}
        settings = checked({**values, "admission": admission, "open": open}, NETWORK)
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise ConfigError(f"{path}: is not empty; name a new folder for the network")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be used: {error.strerror}; name a folder of this user") from None
        check_private(path)
        key.save(path / KEY)
        write_private(path / EXPERIMENT, experiment.encode())
        Ledger.create(path / LEDGER, Founded(network, key.signing_public))
        write_private(path / NETWORK, tomli_w.dumps(settings.model_dump()).encode())  # last: now it is one
        return cls(path)

    @contextlib.contextmanager
    def authority(self) -> Iterator[Authority]:
        """The authority, up to date and alone for as long as the context lasts: other processes wait."""
        with self._ledger.locked():
            self._check_key()
            yield self._authority

    def seen(self) -> Authority:
        """The authority as it is now, to look at: others may be deciding meanwhile."""
        self._ledger.refresh()
        return self._authority

    def bootstrap(self) -> tuple[Bootstrap, ...]:
        """Where newcomers go, and which CURVE key they must find there: node 0's."""
        founder = next(iter(self.seen().newest()), None)
        if founder is None:
            raise ConfigError(f"{self.path / LEDGER}: has no founder; restore the file")
        return (Bootstrap(self.settings.admission, founder.curve_key),)

    def rotate(self, now_s: float) -> Succession:
        """Replace the admission key. The old one is gone afterwards, and may be: the ledger has what it said last."""
        with self.authority() as authority:
            following = self.path / _NEXT_KEY
            following.unlink(missing_ok=True)
            key = Identity.generate()
            key.save(following)
            succession = authority.succeed(key, now_s)
            self._take_next_key()
            return succession

    def _check_key(self) -> None:
        """After another process has rotated, or this one died while it did: go on with the key that signs now."""
        authority = self._authority
        if authority.key.signing_public != authority.lineage.current:
            if (self.path / _NEXT_KEY).exists():
                self._take_next_key()
            authority.key = Identity.load(self.path / KEY)
            if authority.key.signing_public != authority.lineage.current:
                raise ConfigError(
                    f"{self.path / KEY}: is not the key that signs for this network now; restore that one"
                )

    def _take_next_key(self) -> None:
        (self.path / _NEXT_KEY).replace(self.path / KEY)
        durable.sync(self.path)

    def _keep(self, entry: Entry) -> None:
        self._ledger.append(entry)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(
            f"{path}: cannot be read: {reason}; 'starling network create' makes a network's folder"
        ) from None
