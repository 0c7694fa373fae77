"""Who may open a link: the holders of the roster's CURVE keys, asked of us by libzmq before anything else is read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import zmq
from zmq.auth import Authenticator
from zmq.utils import z85

from node.identity import Roster

DOMAIN = b"starling"


class Admission(Authenticator):
    """The ZAP handler (ZeroMQ RFC 27) of one context, served by the thread that owns the sockets.

    Each frame of an admitted link carries the z85 form of its key as ``User-Id``. Until there is a roster nobody is
    answered: who comes early waits in its handshake instead of being turned away.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], banned: set[int], on_refused: Callable[[str, str], None]
    ) -> None:
        """``on_refused`` gets the address of one who is turned away, and why."""
        super().__init__(context)
        self.roster: Roster | None = None
        self._banned = banned
        self._on_refused = on_refused
        self.configure_curve_callback(DOMAIN.decode(), self)
        self.start()

    def answer(self) -> None:
        """Answer one request that waits at ``zap_socket``."""
        request = self.zap_socket.recv_multipart()
        self._address = request[3].decode("ascii", "replace")
        # The coroutine awaits nothing, because our callback is not one: a single step runs it to its end.
        with contextlib.suppress(StopIteration):
            self.handle_zap_message(request).send(None)

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether the holder of a CURVE key (z85) may come in; called by the Authenticator."""
        card = self.roster.holder(z85.decode(key)) if self.roster else None
        if card is None:
            self._on_refused(self._address, "its key is not in the roster")
        elif card.node in self._banned:
            self._on_refused(self._address, f"node {card.node} was cut off")
        else:
            return True
        return False
