"""The folder in which the nodes of an experiment leave their cards for one another."""

from __future__ import annotations

import os
from pathlib import Path

import structlog

from node.config import ExperimentConfig
from node.errors import BadFrame, ConfigError, NotAMember, TransportError
from node.experiment.loading import digest
from node.identity import CARD_BYTES, Card

_SUFFIX = ".card"
_LONGEST_TEXT = 2 * CARD_BYTES


def network_of(config: ExperimentConfig) -> str:
    """The network that the nodes of an experiment form: its name, and a hash of all that they must agree on.

    Where files lie may differ from machine to machine, so only their names count.
    """
    data = config.data.model_copy(update={"name": Path(config.data.name).name})
    topology = config.topology.model_copy(update={"path": Path(config.topology.path).name})
    return f"{config.name}-{digest(config.model_copy(update={'data': data, 'topology': topology}))}"


class CardFolder:
    """Cards of one network in files ``NODE.card``, each a word of text; what does not belong is logged and left out."""

    def __init__(self, folder: Path, network: str, nodes: int) -> None:
        self._folder = folder
        self._network = network
        self._nodes = nodes
        self._seen: dict[Path, tuple[str, Card | None]] = {}

    def publish(self, card: Card) -> None:
        """Write this node's card, whole or not at all. ConfigError where its place is taken, or cannot be written."""
        path = self._path(card.node)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            other = self._verified(path) if path.exists() else None
            if other is not None and other.signing_key != card.signing_key:
                raise ConfigError(
                    f"cards: {path} is the card of other keys: two nodes have number {card.node}, or this one's state "
                    "was lost; give it its own number, or remove that card to take its place"
                )
            new = path.with_name(f".{path.name}.{os.getpid()}")
            new.write_text(card.to_text() + "\n", encoding="ascii")
            new.replace(path)
        except OSError as error:
            raise ConfigError(f"cards: {self._folder} cannot be written to: {error.strerror}") from None

    def read(self) -> dict[int, Card]:
        """The cards that are there now and verify, by node, sorted."""
        cards = [self._verified(path) for path in sorted(self._folder.glob(f"*{_SUFFIX}"))]
        return {card.node: card for card in sorted(filter(None, cards), key=lambda card: card.node)}

    def _path(self, node: int) -> Path:
        return self._folder / f"{node}{_SUFFIX}"

    def _verified(self, path: Path) -> Card | None:
        try:
            with path.open(encoding="ascii", errors="replace") as file:
                text = file.read(_LONGEST_TEXT + 1).strip()
        except OSError:
            return None  # it went, or is being replaced
        if path not in self._seen or self._seen[path][0] != text:
            self._seen[path] = text, self._checked(path, text)
        return self._seen[path][1]

    def _checked(self, path: Path, text: str) -> Card | None:
        try:
            card = Card.from_text(text)
            card.verify()
            if card.network != self._network:
                raise NotAMember(f"it is for {card.network}, but this is {self._network}: not the same experiment")
            if card.node >= self._nodes:
                raise NotAMember(f"there is no node {card.node}; allowed: 0 to {self._nodes - 1}")
            if path != self._path(card.node):
                raise BadFrame(f"it is the card of node {card.node}")
        except TransportError as error:
            structlog.get_logger().warning("card refused", card=path.name, reason=str(error))
            return None
        return card
