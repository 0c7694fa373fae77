"""What the tests of a node's HTTP side share: a face whose answers a test chooses, and orders that are counted."""

from contextlib import asynccontextmanager

from node.errors import StarlingError
from node.live.control import Control
from node.live.http import Face, HttpServer

TOKEN = "t" * 43
STATUS = {"node": 3, "phase": "running", "round": None, "peers": {"alive": 2}, "waiting_for": [1, 4], "address": ""}
PEERS = [
    {"node": 1, "state": "alive", "address": "tcp://127.0.0.1:7600"},
    {"node": 2, "state": "dead", "address": None},
]
HISTORY = {"curves": {"accuracy": {"time_s": [1.0, 2.0], "value": [0.5, 0.75]}}, "warnings": []}


class Shown:
    """Plain attributes behind a face."""

    def __init__(self):
        self.ill = self.unready = None
        self.status, self.peers, self.history = STATUS, PEERS, HISTORY
        self.metrics = b"starling_round 3.0\n"
        self.orders, self.noted = [], []
        self.is_leaving = False

    @property
    def stops(self):
        return self.orders.count("stop")

    def face(self):
        return Face(
            ill=lambda: self.ill,
            unready=lambda: self.unready,
            status=lambda: self.status,
            peers=lambda: self.peers,
            history=lambda: self.history,
            metrics=lambda: self.metrics,
        )

    def control(self):
        def taking(name):
            def take():
                if self.is_leaving and name != "stop":
                    raise StarlingError("the node is leaving")
                self.orders.append(name)

            return take

        return Control(
            **{name: taking(name) for name in ("pause", "resume", "drain", "stop")},
            set_level=self.orders.append,
            note=lambda *line: self.noted.append(line),
        )

    def server(self, hosts=(), token=TOKEN):
        return HttpServer(self.face(), self.control(), token, hosts)


@asynccontextmanager
async def served(hosts=(), token=TOKEN):
    """A face on a free port of loopback: what it shows, and its URL."""
    shown = Shown()
    server = shown.server(hosts, token)
    url = await server.start("127.0.0.1", 0)
    try:
        yield shown, url
    finally:
        await server.close()
