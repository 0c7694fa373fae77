"""Who may open a link: the holders of the roster's CURVE keys, asked of us by libzmq before anything else is read."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection

import zmq
from zmq.auth import Authenticator
from zmq.utils import z85

from node.identity import Roster
from node.live.door import Visitors

DOMAIN = b"starling"


class Admission(Authenticator):
    """The ZAP handler (ZeroMQ RFC 27) of one context, served by the thread that owns the sockets.

    Each frame of an admitted link carries the z85 form of its key as ``User-Id``. Until there is a roster nobody is
    answered, unless there is a door: who comes early waits in its handshake instead of being turned away.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        banned: set[int],
        on_refused: Callable[[str, str, str], None],
        visitors: Visitors | None = None,
    ) -> None:
        """``on_refused`` gets the counter and the address of one who is turned away, and why.

        With ``visitors`` there is a door: strangers are let in too, as many as they bear.
        """
        super().__init__(context)
        self.roster: Roster | None = None
        self.shut_out: Collection[bytes] = ()
        """CURVE keys that were revoked: to their holders there is no door."""
        self._banned = banned
        self._on_refused = on_refused
        self._visitors = visitors
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
        curve_key = z85.decode(key)
        card = self.roster.holder(curve_key) if self.roster else None
        if curve_key in self.shut_out:
            self._on_refused("revoked", self._address, "its key was revoked")
        elif card is not None and card.node in self._banned:
            self._on_refused("stranger", self._address, f"node {card.node} was cut off")
        elif card is not None:
            return True
        elif self._visitors is None:
            self._on_refused("stranger", self._address, "its key is not in the roster")
        elif not self._visitors.admits(self._address, time.monotonic()):
            self._on_refused("rate", self._address, "too many strangers from there")
        else:
            return True
        return False
