"""What has to be copied or dropped so that everything is where it belongs again."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from node.placement.rendezvous import Key, Node, Weights, preference


@dataclass(frozen=True)
class Copy:
    """A node should fetch a key, from any of these."""

    key: Key
    target: Node
    sources: tuple[Node, ...]


@dataclass(frozen=True)
class Drop:
    """A node need not keep a key any longer."""

    key: Key
    node: Node


@dataclass(frozen=True)
class Lost:
    """Nobody who is there holds a key."""

    key: Key


Order: TypeAlias = Copy | Drop | Lost


def repair(replicas: Mapping[Key, int], members: Weights, holders: Mapping[Key, Collection[Node]]) -> list[Order]:
    """Orders for all keys, after a storage node has joined, died or changed its weight, or replicas were adjusted.

    ``members`` are the storage nodes that are there, and ``holders`` is what nodes announce. A holder that is no
    storage node, or has died and is announced still, may be asked for a copy, but does not count as one. Nothing is
    dropped before all who should hold the key do, so that plans made from stale announcements lose nothing; where
    everything is in its place there are no orders. All who know the same make the same plan, and each node carries out
    what is about itself.
    """
    orders: list[Order] = []
    for key, count in replicas.items():
        orders += _orders(key, preference(key, members), count, holders.get(key, ()))
    return orders


def _orders(key: Key, preferred: list[Node], count: int, holders: Collection[Node]) -> list[Order]:
    wanted = preferred[:count]
    members = [node for node in preferred if node in holders]
    sources = (*members, *sorted(set(holders).difference(members)))
    if not sources:
        return [Lost(key)]
    missing = [node for node in wanted if node not in holders]
    if missing:
        return [Copy(key, node, sources) for node in missing]
    return [Drop(key, node) for node in members if node not in wanted]
