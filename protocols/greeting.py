"""Who takes part in a round, and under which key: what is common to protocols whose nodes share secrets.

A node says hello when it has trained, so that nobody counts on one that is slow; who has said hello is there for the
rest of the round. A restarted node shows a new key, and what it shared before is forgotten.
"""

from node import Context, Message, ShownKey


class Hello(Message, name="greeting/hello/1", key=("round",)):
    """I take part in a round, and this is my public key."""

    round: int
    public: bytes
    """X25519, 32 bytes."""
    signature: bytes
    """Over the key and the run's name, by the node's identity."""


async def greeted(ctx: Context, round: int, deadline_s: float) -> dict[int, ShownKey]:
    """Say hello to the neighbours of a round; gives the keys of those that have said it too, by node.

    A key that is not its sender's does not count as one. ``deadline_s``: longest wait; 0: all are needed.
    """
    public, signature = ctx.privacy.key
    await ctx.send(ctx.neighbours(round), Hello(round=round, public=public, signature=signature))
    heard = await ctx.collect(Hello, frm=ctx.sources(round), timeout_s=deadline_s or None, round=round)
    shown = {peer: ShownKey(hello.public, hello.signature) for peer, hello in heard.items()}
    return {peer: key for peer, key in shown.items() if ctx.privacy.trusts(peer, key)}
