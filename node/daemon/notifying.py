"""Tell a service manager how this process stands, by the protocol of sd_notify(3): datagrams to a Unix socket.

The protocol is stable and needs no library. Outside a service manager there is no socket, and nothing is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Mapping

READY, STOPPING, WATCHDOG = "READY=1", "STOPPING=1", "WATCHDOG=1"

_FEEDS = 3
"""How often the watchdog is fed in the time after which it bites: one or two may come late."""


class Notifier:
    """What the manager that started this process hears of it; without ``NOTIFY_SOCKET`` nobody does.

    Args:
        environ: where the manager has put the socket's name and the watchdog's time.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environ = environ or {}
        name = environ.get("NOTIFY_SOCKET", "")
        self._address = f"\0{name[1:]}" if name.startswith("@") else name
        self._feed_every_s = _watchdog_s(environ) / _FEEDS

    def tell(self, state: str) -> None:
        """Send one state, for example ``READY``. A manager that has gone or is busy is no reason to stop working."""
        if self._address:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto(state.encode(), self._address)

    async def feed(self, ill: Callable[[], str | None]) -> None:
        """Keep the manager's watchdog quiet until cancelled, but for as long as ``ill`` gives a reason.

        It runs on the loop that it vouches for: where that hangs, the watchdog bites.
        """
        while self._address and self._feed_every_s:
            if ill() is None:
                self.tell(WATCHDOG)
            await asyncio.sleep(self._feed_every_s)


def _watchdog_s(environ: Mapping[str, str]) -> float:
    """Seconds without a word after which the manager kills this very process; 0: it never does."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    try:
        return max(0.0, int(environ.get("WATCHDOG_USEC", "0")) / 1e6)
    except ValueError:
        return 0.0
