"""What the mailbox's tests share: messages, one wait, and what comes."""

import asyncio

from node.clock import Priority, VirtualClock
from node.mailbox import Mailbox
from node.message import Message


class Round(Message, name="test.mailbox/round/1", key=("round",)):
    round: int


class Keyless(Message, name="test.mailbox/keyless/1"):
    text: str = ""


class Part(Message, name="test.mailbox/part/1", key=("round", "part")):
    round: int
    part: int


SLOT = Round(round=0).slot


def scenario(wait, *arrivals, lost=(), losing=()):
    """One wait, begun at time 1, and what comes: ``arrivals`` of (time, sender), ``losing`` of (time, peer).

    Gives the senders heard, in order, and the time at which the wait was over.
    """

    async def main():
        loop = asyncio.get_running_loop()
        mailbox = Mailbox(9, loop)
        for time_s, sender in arrivals:
            loop.post(time_s, lambda sender: mailbox.put(sender, Round(round=0)), sender)
        for time_s, peer in losing:
            loop.post(time_s, mailbox.lose, peer, Priority.FAULT)
        await asyncio.sleep(1)
        outcome = begin(mailbox, lost=lost, **wait)
        heard = await outcome if isinstance(outcome, asyncio.Future) else outcome
        return list(heard), loop.time()

    with asyncio.Runner(loop_factory=VirtualClock) as runner:
        return runner.run(main())


def begin(mailbox, slot=SLOT, frm=None, lost=(), timeout_s=None, quorum=None, grace_s=0.0):
    return mailbox.collect(slot, frm, lost, timeout_s=timeout_s, quorum=quorum, grace_s=grace_s)


def on_the_clock(main):
    async def inside():
        return await main(asyncio.get_running_loop())

    with asyncio.Runner(loop_factory=VirtualClock) as runner:
        return runner.run(inside())
