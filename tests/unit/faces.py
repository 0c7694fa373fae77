"""What the tests of a node's HTTP side share: a face whose answers a test chooses."""

from contextlib import asynccontextmanager

from node.live.http import Face, HttpServer

TOKEN = "t" * 43
STATUS = {"node": 3, "phase": "running", "round": None, "peers": {"alive": 2}, "waiting_for": [1, 4], "address": ""}
PEERS = [
    {"node": 1, "state": "alive", "address": "tcp://127.0.0.1:7600"},
    {"node": 2, "state": "dead", "address": None},
]


class Shown:
    """Plain attributes behind a face."""

    def __init__(self):
        self.ill = self.unready = None
        self.status, self.peers, self.metrics = STATUS, PEERS, b"starling_round 3.0\n"
        self.stops = 0

    def face(self):
        def stop():
            self.stops += 1

        return Face(
            ill=lambda: self.ill,
            unready=lambda: self.unready,
            status=lambda: self.status,
            peers=lambda: self.peers,
            metrics=lambda: self.metrics,
            stop=stop,
        )


@asynccontextmanager
async def served(hosts=(), token=TOKEN):
    """A face on a free port of loopback: what it shows, and its URL."""
    shown = Shown()
    server = HttpServer(shown.face(), token, hosts)
    url = await server.start("127.0.0.1", 0)
    try:
        yield shown, url
    finally:
        await server.close()
