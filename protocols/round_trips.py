"""How near nodes are to each other: each asks a bounded number of others, and takes the time until they answer."""

from __future__ import annotations

from node import Context, DeadlineExceeded, Message, Unreachable
from node.cohorts import generator, uniform

MOST_PEERS = 16
"""So many others are asked: with 1,000 nodes a pair that has not asked is two or three such steps apart."""

REPEATS = 3
"""The shortest of them counts: whatever else delays an answer is not the network."""

_DRAW = 2**33
"""Takes the place of a cohort's number where nodes draw whom they ask."""


class Ping(Message, name="cpfl/ping/1"):
    """Answer at once."""


class Pong(Message, name="cpfl/pong/1"):
    """Here I am."""


async def measured(ctx: Context, timeout_s: float) -> dict[int, float]:
    """Round trips in s, by peer, of those drawn that have answered within ``timeout_s``."""
    drawn = uniform(ctx.peers(None), MOST_PEERS, generator(ctx.seed, _DRAW, ctx.me))
    found: dict[int, float] = {}
    for peer in drawn:
        try:
            found[peer] = min([await _round_trip_s(ctx, peer, timeout_s) for _ in range(REPEATS)])
        except (Unreachable, DeadlineExceeded):
            continue
    return found


async def _round_trip_s(ctx: Context, peer: int, timeout_s: float) -> float:
    began_s = ctx.now
    await ctx.request(peer, Ping(), timeout_s=timeout_s)
    return ctx.now - began_s
