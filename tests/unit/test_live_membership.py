"""What drives a membership machine on a real event loop."""

import asyncio

import uvloop

from node.live.membership import Listeners, LiveMembership
from node.membership.vocabulary import SetTimer, Start, Tick

TIMERS = 100
PERIOD_S = 0.0033
"""No whole number of milliseconds."""


class Clockwork:
    """A machine that wants to be called at certain times, and nothing else; a call that is early gives it no other."""

    me = 0

    def __init__(self):
        self.due_s = 0.0
        self.left = TIMERS
        self.done = asyncio.Event()

    def step(self, event, now_s):
        if isinstance(event, Tick):
            if now_s < self.due_s:
                return []
            self.left -= 1
        elif not isinstance(event, Start):
            return []
        if not self.left:
            self.done.set()
            return []
        self.due_s = now_s + PERIOD_S
        return [SetTimer(self.due_s)]


def test_no_timer_is_early_where_the_loop_counts_milliseconds():
    async def wound_up():
        machine = Clockwork()
        membership = LiveMembership(machine, None, Listeners(lambda _: None, lambda *_: None, lambda: None))
        membership.start([])
        try:
            async with asyncio.timeout(30):
                await machine.done.wait()
        finally:
            membership.close()
        return machine.left

    assert uvloop.run(wound_up()) == 0
