"""Members of a network on one local network tell each other by multicast where they are: a suggestion, and no more.

A node that seeks says so, now and then, and those that listen somewhere answer with their cards. Whoever is there has
yet to prove at its door that it is a member; a card that is false, or of another network, is not even tried.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Callable
from typing import NamedTuple

import structlog

from node.errors import ConfigError, TransportError
from node.identity import CARD_BYTES, Card

SEEK_EVERY_S = 2.0
"""How often one that seeks says so."""
ANSWER_EVERY_S = 1.0
"""How often it is answered at most, however many ask."""
MOST_SUGGESTIONS = 64

_SEEK, _HERE = b"starling/seek/1\0", b"starling/here/1\0"


class Group(NamedTuple):
    """Where announcements go: a group of this site's (RFC 2365), so that routers of the site alone may pass it on."""

    address: str = "239.255.76.1"
    port: int = 7602


class Discovery(asyncio.DatagramProtocol):
    """One node's part in it. All of it belongs to the event loop.

    Args:
        own: this node's card, which is what it tells.
        interface: the IPv4 address of the interface to use; any other text: the system's choice.
        suggested: called with a verified card of the same network that was not heard before, or has changed.
    """

    def __init__(
        self, own: Card, interface: str, suggested: Callable[[Card], None], group: Group | None = None
    ) -> None:
        self._own = own
        self._interface = _ipv4(interface) or "0.0.0.0"
        self._suggested = suggested
        self._group = group or Group()
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.DatagramTransport | None = None
        self._seeking: asyncio.TimerHandle | None = None
        self._answered_s = -ANSWER_EVERY_S
        self._known: dict[int, Card] = {}
        self._log = structlog.get_logger().bind(node=own.node)

    async def start(self) -> None:
        """Listen, and tell once. ConfigError where the machine has no multicast."""
        try:
            ready = self._socket()
        except OSError as error:
            raise ConfigError(
                f"multicast: {self._group.address}:{self._group.port} cannot be joined at {self._interface}: "
                f"{error.strerror}; leave multicast = false on machines without it"
            ) from None
        self._transport, _ = await self._loop.create_datagram_endpoint(lambda: self, sock=ready)
        self._tell()

    def seek(self) -> None:
        """Ask who is there, again and again until :meth:`rest`."""
        self.rest()
        self._say(_SEEK + self._own.network.encode())
        self._seeking = self._loop.call_later(SEEK_EVERY_S, self.seek)

    def rest(self) -> None:
        """Ask no more."""
        if self._seeking is not None:
            self._seeking.cancel()
            self._seeking = None

    def close(self) -> None:
        """Neither ask nor answer any more."""
        self.rest()
        if self._transport is not None:
            self._transport.close()

    def datagram_received(self, data: bytes, addr: tuple[str | int, ...]) -> None:
        """Called by asyncio: anybody may have sent anything."""
        if data == _SEEK + self._own.network.encode():
            self._tell()
        elif data.startswith(_HERE) and len(data) <= len(_HERE) + CARD_BYTES:
            with contextlib.suppress(TransportError):
                self._take(Card.from_bytes(data[len(_HERE) :]))

    def error_received(self, exc: Exception) -> None:
        """Called by asyncio: a datagram could not be sent."""
        self._log.info("nothing announced", reason=str(exc))

    def _take(self, card: Card) -> None:
        if card.network != self._own.network or card.is_outbound or card.curve_key == self._own.curve_key:
            return
        if self._known.get(card.node) == card:
            return
        card.verify()
        if len(self._known) >= MOST_SUGGESTIONS:
            del self._known[next(iter(self._known))]
        self._known[card.node] = card
        self._suggested(card)

    def _tell(self) -> None:
        now_s = self._loop.time()
        if not self._own.is_outbound and now_s - self._answered_s >= ANSWER_EVERY_S:
            self._answered_s = now_s
            self._say(_HERE + self._own.to_bytes())

    def _say(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.sendto(data, tuple(self._group))

    def _socket(self) -> socket.socket:
        ready = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            interface = socket.inet_aton(self._interface)
            for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):  # for several nodes of one machine
                ready.setsockopt(socket.SOL_SOCKET, option, 1)
            ready.bind(tuple(self._group))
            membership = socket.inet_aton(self._group.address) + interface
            ready.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
            ready.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, interface)
            ready.setblocking(False)
        except OSError:
            ready.close()
            raise
        return ready


def _ipv4(text: str) -> str | None:
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        return None
    return None if address.is_unspecified else text
