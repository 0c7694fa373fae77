"""How the receiver of a masked sum has it opened, by those whose parts are in it, and what they answer."""

from typing import Any

from node import Context, Gathered, Message


class Survivors(Message, name="secagg/survivors/1"):
    """Help me to open a sum of these senders, without the others."""

    round: int
    total: bytes
    """Names the sum."""
    alive: tuple[int, ...]
    shares: tuple[bytes, ...]
    """What each of them has for you."""


class Opened(Message, name="secagg/opened/1", key=("round",)):
    """What you have asked for: shares of the masks that hide the sum of those who are there; empty where I refuse."""

    round: int
    shares: bytes


async def openings(ctx: Context, gathered: Gathered, **limits: Any) -> dict[int, bytes]:
    """What those who are there have to open their sum with; nothing where they are too few.

    ``limits``: of ``ctx.collect``; without any, all of them are needed.
    """
    if not gathered.alive:
        return {}
    round, alive = gathered.round, gathered.alive
    for peer in alive:
        shares = gathered.shares_for(peer)
        await ctx.send(peer, Survivors(round=round, total=gathered.digest, alive=alive, shares=shares))
    opened = await ctx.collect(Opened, frm=alive, **limits, round=round)
    return {peer: message.shares for peer, message in opened.items()}
