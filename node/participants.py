"""Who takes part in a run: its nodes, and identities beyond them that nodes own.

Each has a number, keys and an address of its own. First come the nodes; then Sybil identities (Douceur, IPTPS 2002),
which are peers as nodes are, have their owner's data, and are in every topology; then virtual nodes (Biswas et al.,
PoPETs 2025), which are in none: they pass on what their owner gives them. Whose a virtual node is, nobody can tell from
its number.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

VIRTUAL = "virtual"
"""The role of virtual nodes."""


def drawn(k: int, roster: Sequence[int], me: int, gone: Collection[int], rng: np.random.Generator) -> tuple[int, ...]:
    """``k`` different members of a roster drawn uniformly (all, where there are fewer), sorted; neither me nor gone."""
    if 2 * (k + len(gone) + 1) > len(roster):
        peers = [peer for peer in roster if peer != me and peer not in gone]
        return tuple(peers if k >= len(peers) else sorted(rng.choice(peers, k, replace=False).tolist()))
    found: set[int] = set()
    while len(found) < k:  # most may be drawn: to draw again, where one may not, costs less than to list them
        picks = rng.integers(len(roster), size=k - len(found)).tolist()
        found.update(peer for i in picks if (peer := roster[i]) != me and peer not in gone)
    return tuple(sorted(found))


@dataclass(frozen=True)
class Participants:
    """Everybody with keys and an address of its own, by number."""

    nodes: int
    sybils: tuple[int, ...] = ()
    """The node that owns each Sybil identity, in the order of their numbers."""
    virtual: tuple[int, ...] = ()
    """The place of each virtual node among those of all peers: a peer's come one after another."""
    virtual_each: int = 0
    """How many virtual nodes a peer owns."""

    @classmethod
    def drawn(cls, nodes: int, sybils: tuple[int, ...], virtual_each: int, rng: np.random.Generator) -> Participants:
        """With so many virtual nodes for each peer, whose numbers are drawn."""
        found = cls(nodes, sybils)
        places = rng.permutation(found.peers * virtual_each).tolist()
        return replace(found, virtual=tuple(places), virtual_each=virtual_each)

    @property
    def peers(self) -> int:
        """How many are in topologies: nodes and Sybil identities. Virtual nodes are numbered from here."""
        return self.nodes + len(self.sybils)

    @property
    def total(self) -> int:
        """How many there are."""
        return self.peers + len(self.virtual)

    @property
    def are_nodes_alone(self) -> bool:
        """Whether there is no identity beyond the nodes."""
        return self.total == self.nodes

    def owner(self, number: int) -> int | None:
        """The peer that owns a virtual node; None for a peer."""
        return self.virtual[number - self.peers] // self.virtual_each if number >= self.peers else None

    def virtual_of(self, peer: int) -> tuple[int, ...]:
        """The virtual nodes of a peer, in the order of what they carry: not that of their numbers."""
        return self._by_place[peer * self.virtual_each : (peer + 1) * self.virtual_each]

    def device(self, number: int) -> int:
        """The node that runs a participant: itself, or the last owner of an identity."""
        return self._devices[number]

    def is_own(self, one: int, other: int) -> bool:
        """Whether one of two is a virtual node of the other: what these tell each other never leaves a device."""
        return self.owner(one) == other or self.owner(other) == one

    def by_role(self, roles: Mapping[int, str]) -> dict[str | None, tuple[int, ...]]:
        """The peers of each role, sorted (None: all of them), and the virtual nodes.

        Args:
            roles: of the peers that are no learners.
        """
        found: dict[str | None, list[int]] = {None: list(range(self.peers))}
        for peer in range(self.peers):
            found.setdefault(roles.get(peer, "learner"), []).append(peer)
        if self.virtual:
            found[VIRTUAL] = list(range(self.peers, self.total))
        return {role: tuple(members) for role, members in found.items()}

    @cached_property
    def _by_place(self) -> tuple[int, ...]:
        return tuple((np.argsort(self.virtual) + self.peers).tolist()) if self.virtual else ()

    @cached_property
    def _devices(self) -> tuple[int, ...]:
        of_peers = (*range(self.nodes), *self.sybils)
        return (*of_peers, *(of_peers[place // self.virtual_each] for place in self.virtual))
