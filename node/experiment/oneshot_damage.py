"""What befalls a setting of the one-shot benchmark: clients that leave, come late or lie, as tables of its experiment.

=================  =====================================================================================================
``drop N``         N clients at random never upload
``owner N``        the N clients that hold the largest shares of any class never upload
``deadline P``     the aggregator closes at the P-th percentile of the times at which clients have uploaded; devices are
                   alike, so that those who are late have the most samples
``over-claim N``   N clients at random claim a hundred times the samples that they have
``capped N``       the same, to an aggregator that believes nobody more than three times a fair share of all samples
``LIE N``          N clients at random tell another lie of ``[[attackers]]``, as in ``sign-flip 2`` or ``nonfinite 2``
=================  =====================================================================================================
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from node.errors import ConfigError
from node.message import Message
from node.mods import Mod
from protocols.oneshot import Upload

if TYPE_CHECKING:
    from node.context import Context

_DAMAGE = re.compile(r"([a-z-]+) (\d+)")
_OF_UPLOADS = ("deadline", "over-claim", "capped")
"""Damage that is done by nothing but one-shot uploads, or to them."""
_PERCENTILES = 100
_CLAIMED = 100
"""Times what a client has."""
_BELIEVED = 3
"""Times a fair share."""


class Overclaim(Mod):
    """Has a client claim many times the samples that it has, in all and of each class."""

    def outgoing(self, ctx: Context, to: int, message: Message) -> Message:
        """An upload with larger numbers."""
        if not isinstance(message, Upload):
            return message
        samples, counts = _CLAIMED * message.samples, tuple(_CLAIMED * count for count in message.counts)
        return Upload(model=message.model, parts=message.parts, samples=samples, counts=counts, score=message.score)


def is_of_uploads(damage: str) -> bool:
    """Whether protocols with other messages than one upload from each client cannot have it."""
    return damage.partition(" ")[0] in _OF_UPLOADS


def damaged(damage: str, clients: int, seed: int, held: Callable[[], NDArray[np.int64]]) -> dict[str, Any]:
    """The tables that bring damage about, and their keys.

    Args:
        clients: nodes 1 to so many.
        seed: who is hit at random follows from it; more of them are the same and others.
        held: gives the samples of each class that each client has, [clients, classes].

    Raises:
        ConfigError: there is no such damage, or not to so many clients.
    """
    found = _DAMAGE.fullmatch(damage)
    kind, count = (found[1], int(found[2])) if found else ("", 0)
    if not 0 < count < (_PERCENTILES if kind == "deadline" else clients):
        raise ConfigError(
            f"damage: {damage!r} is none; allowed: drop N, owner N, over-claim N, capped N, or a lie and N, N below "
            f"{clients}; or deadline P, P below {_PERCENTILES}"
        )
    rng = np.random.default_rng([seed, *b"damage"])
    hit = sorted(int(node) for node in 1 + rng.permutation(clients)[:count])
    match kind:
        case "drop":
            return _gone(hit)
        case "owner":
            return _gone(sorted(owners(held())[:count]))
        case "deadline":
            return {"protocol": {"quorum": in_time(clients, count)}}
        case "over-claim":
            return _claiming(hit)
        case "capped":
            return _claiming(hit) | {"protocol": {"most_samples": _BELIEVED * int(held().sum()) // clients}}
    return {"attackers": [{"kind": "byzantine", "nodes": hit, "attack": kind}]}


def owners(held: NDArray[np.int64]) -> list[int]:
    """Clients, numbered from 1, by the largest share that each holds of some class, of [clients, classes] samples."""
    shares = (held / np.maximum(held.sum(0), 1)).max(1)
    return [int(client) for client in 1 + np.argsort(-shares, kind="stable")]


def in_time(clients: int, percentile: int) -> int:
    """How many of so many arrivals are not after a percentile of them, which lies between two."""
    return (clients - 1) * percentile // _PERCENTILES + 1


def _gone(clients: list[int]) -> dict[str, Any]:
    schedule = [{"time_s": 0.0, "node": client, "what": "leave"} for client in clients]
    return {"churn": {"schedule": schedule, "detect_s": 0}}


def _claiming(clients: list[int]) -> dict[str, Any]:
    return {"mods": [{"use": f"{__name__}:{Overclaim.__name__}", "nodes": clients}]}
