"""An observer that counts what ZeroMQ is handed in the processes of a real run; copied into the folder of the run.

It knows nothing of the program's own counters: it stands in for the method of pyzmq that every frame goes through.
"""

import functools
import os
from pathlib import Path

import zmq

from node import Observer

FOLDER = Path(__file__).parent
_send = zmq.Socket.send


@functools.wraps(_send)
def counted(socket, data, flags=0, **more):
    """Send a frame, and once ZeroMQ has taken it write down its length and its first bytes."""
    told = _send(socket, data, flags, **more)
    if socket.type != zmq.DEALER or not socket.last_endpoint.startswith(b"tcp:"):
        return told  # no link to a peer: questions inside a process, and answers to those who send to us
    frame = bytes(memoryview(data).cast("B"))
    with (FOLDER / f"frames-{os.getpid()}").open("ab") as lines:
        lines.write(f"{len(frame)} {int(bool(flags & zmq.SNDMORE))} {frame.hex()}\n".encode())
    return told


zmq.Socket.send = counted


class Wiretap(Observer):
    """Lets the run import this module."""
