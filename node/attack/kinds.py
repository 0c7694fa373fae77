"""The kinds of attack that an ``[[attackers]]`` table can name; importing this imports none of them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Kind(NamedTuple):
    """One kind."""

    path: str
    """``module:Class``."""
    meaning: str
    """One line."""


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "membership": Kind(
            "node.attack.observers.membership:Membership",
            "was a sample in a node's training data? From messages, and from final models",
        ),
        "byzantine": Kind(
            "node.attack.observers.byzantine:ByzantineNodes", "nodes that lie in what they send, or in their data"
        ),
        "inversion": Kind("node.attack.observers.inversion:InversionAttack", "training samples back from an update"),
        "linkability": Kind("node.attack.observers.linkability:Linkability", "whose data was this model trained on?"),
        "reconstruction": Kind(
            "node.attack.observers.reconstruction:Reconstruction",
            "updates of nodes that are no neighbours, by linear algebra over rounds",
        ),
        "attribute": Kind(
            "node.attack.observers.attribute:AttributeAttack",
            "one feature of a sample, from all its others and a model",
        ),
    }
)
