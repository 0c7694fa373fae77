"""Stops the first leader of a cohort that asks for a round, in a real run, until the test lets it go on; or a member.

The node's side is an observer, named in ``[[mods]]`` for the members of the cohort; this file is copied into the folder
of the run. The test's side is :class:`gate.Gate`.
"""

import json
import os
import socket
from pathlib import Path

from node import Observer
from protocols.cohort_round import Assignment
from protocols.cohort_sums import Masked

WAIT_S = 60.0


class StopLeader(Observer):
    """Tells the gate which process it is, and waits for it; once in a cohort."""

    kind = Assignment

    class Config(Observer.Config):
        path: str
        round: int

    def sent(self, ctx, to, message):
        if not isinstance(message, self.kind) or message.round != self.config.round:
            return
        try:
            Path(self.config.path + ".once").touch(exist_ok=False)
        except FileExistsError:
            return
        with socket.socket(socket.AF_UNIX) as gate:
            gate.settimeout(WAIT_S)
            gate.connect(self.config.path)
            gate.sendall(json.dumps([ctx.me, os.getpid()]).encode())
            gate.recv(1)


class StopMember(StopLeader):
    """The first member that has its part of a sum ready."""

    kind = Masked
