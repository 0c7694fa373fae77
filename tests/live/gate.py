"""Stops one node of a real run at the start of its n-th training until the test lets it go on.

The node's side is an observer, named in ``[[mods]]``; this file is copied into the folder of the run.
"""

import json
import os
import socket

from node import Observer

WAIT_S = 60.0


class Stop(Observer):
    """Tells the gate which process it is, and waits for it."""

    class Config(Observer.Config):
        path: str
        training: int

    def __init__(self, config=None):
        super().__init__(config)
        self.trainings = 0

    def trained(self, ctx, before, after):
        self.trainings += 1
        if self.trainings == self.config.training:
            with socket.socket(socket.AF_UNIX) as gate:
                gate.settimeout(WAIT_S)
                gate.connect(self.config.path)
                gate.sendall(json.dumps([ctx.me, os.getpid()]).encode())
                gate.recv(1)


class Gate:
    """The test's side: a socket in a folder. Use it as a context manager; leaving it lets everybody go on."""

    def __init__(self, folder, node, training):
        self.path = str(folder / "gate")
        self.mods = [{"use": "gate:Stop", "nodes": [node], "path": self.path, "training": training}]
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.settimeout(WAIT_S)
        self._held = None

    def __enter__(self):
        self._listening.bind(self.path)
        self._listening.listen()
        return self

    def __exit__(self, *error):
        self.open()
        self._listening.close()

    def reached(self):
        """Wait for the node; gives its process."""
        self._held, _ = self._listening.accept()
        self._held.settimeout(WAIT_S)
        _, pid = json.loads(self._held.recv(1024))
        return pid

    def open(self):
        """Let the node go on."""
        if self._held is not None:
            self._held.close()
            self._held = None
