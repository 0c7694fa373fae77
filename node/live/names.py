"""Whether the host names that peers are to be reached at resolve: ZeroMQ goes on trying, and says nothing of it."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

import structlog

from node.errors import Unreachable
from node.identity import Card

_HOST = re.compile(r"[A-Za-z0-9._-]+")


def check_resolves(address: str) -> None:
    """Raise Unreachable where the host of ``tcp://host:port`` is a name that does not resolve. May block for long."""
    host = _name(address)
    try:
        if host is not None:
            socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise Unreachable(f"{address}: {_trouble(host, error)}") from None


class Names:
    """Looks once at each name that peers' cards have, and logs those that do not resolve. Belongs to the event loop."""

    def __init__(self, node: int) -> None:
        self._seen: set[str] = set()
        self._looking: set[asyncio.Task[None]] = set()
        self._log = structlog.get_logger().bind(node=node)

    def look(self, cards: Iterable[Card]) -> None:
        """Begin to look at what is new in these."""
        for card in cards:
            host = _name(card.address)
            if host is not None and host not in self._seen:
                self._seen.add(host)
                task = asyncio.get_running_loop().create_task(self._resolve(card, host))
                self._looking.add(task)
                task.add_done_callback(self._looking.discard)

    def close(self) -> None:
        """Look no more."""
        for task in self._looking:
            task.cancel()

    async def _resolve(self, card: Card, host: str) -> None:
        try:
            await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError as error:
            why = _trouble(host, error)
            self._log.warning("peer cannot be found", peer=card.node, address=card.address, detail=why)


def _name(address: str) -> str | None:
    """The host of an address, where that is a name; None: it is a number, or nothing that could be looked up."""
    try:
        host = urlsplit(address).hostname or ""
    except ValueError:
        return None
    if not _HOST.fullmatch(host):
        return None
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host
    return None


def _trouble(host: str | None, error: OSError) -> str:
    return f"the name {host} does not resolve here ({error.strerror}); mend the name, or advertise a number"
