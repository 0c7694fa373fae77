"""What the transport costs: a 50 MB model and many small messages between two processes over loopback.

Beside it, in the same run and interleaved with it: a raw TCP socket, raw ZeroMQ with CURVE, and plain ``zmq.asyncio``.
Medians; read the ratios, the seconds depend on the machine. All processes collect garbage as rarely as the daemon does.

    python scripts/bench/wire.py [--repetitions 9] [--check]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import multiprocessing
import os
import socket
import statistics
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from typing import Any

import uvloop
import zmq
import zmq.asyncio

from node.codec import Encoded, Header, encode
from node.identity import Identity, Roster
from node.live.transport import Transport
from node.message import Message
from node.op import Ref, Spec

MODEL_BYTES = 50_000_000
CHUNK_BYTES = 1 << 20
SMALL_BYTES = 200
SMALL_MESSAGES = 20_000
TARGETS = {"plain": 0.7, "encrypted": 0.9, "small": 3.0}

KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    "MALLOC_TOP_PAD_": str(16 << 20),
}
"""For all receiving processes, raw ones too: what a launcher should set for a node that receives models."""

Measure = Callable[[], float]
_nowhere: deque[int] = deque(maxlen=0)


class Model(Message, name="bench/model/1"):
    model: Ref


class Small(Message, name="bench/small/1"):
    last: bool
    text: bytes


# --- raw TCP ---------------------------------------------------------------------------------------------------------
def serve_tcp(pipe: Connection) -> None:
    """Receive models into one reused buffer, answering each with a byte."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        pipe.send(server.getsockname()[1])
        connection, _ = server.accept()
        buffer = memoryview(bytearray(MODEL_BYTES))
        while True:
            got = 0
            while got < MODEL_BYTES:
                size = connection.recv_into(buffer[got:])
                if not size:
                    return
                got += size
            connection.sendall(b"k")


@contextmanager
def tcp() -> Iterator[Measure]:
    """Send one model through a blocking socket."""
    with server(serve_tcp) as pipe, socket.create_connection(("127.0.0.1", pipe.recv())) as connection:
        data = os.urandom(MODEL_BYTES)

        def measure() -> float:
            start = time.perf_counter()
            connection.sendall(data)
            connection.recv(1)
            return time.perf_counter() - start

        yield measure


# --- raw ZeroMQ with CURVE -------------------------------------------------------------------------------------------
def serve_curve(pipe: Connection) -> None:
    """Receive chunks into one reused buffer, answering each whole model."""
    public, secret = zmq.curve_keypair()
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.curve_server, router.curve_secretkey = True, secret
        pipe.send((router.bind_to_random_port("tcp://127.0.0.1"), public))
        buffer = memoryview(bytearray(MODEL_BYTES))
        got = 0
        while True:
            sender = router.recv()
            got += router.recv_into(buffer[got:])
            if got == MODEL_BYTES:
                router.send_multipart([sender, b"k"])
                got = 0


@contextmanager
def curve() -> Iterator[Measure]:
    """Send one model as chunk messages, uncopied, with nothing around them."""
    with server(serve_curve) as pipe, zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        port, dealer.curve_serverkey = pipe.recv()
        dealer.curve_publickey, dealer.curve_secretkey = zmq.curve_keypair()
        dealer.linger = 0
        dealer.connect(f"tcp://127.0.0.1:{port}")
        data = memoryview(os.urandom(MODEL_BYTES))

        def measure() -> float:
            start = time.perf_counter()
            for at in range(0, MODEL_BYTES, CHUNK_BYTES):
                dealer.send(data[at : at + CHUNK_BYTES], copy=False)
            dealer.recv()
            return time.perf_counter() - start

        yield measure


# --- plain zmq.asyncio -----------------------------------------------------------------------------------------------
def serve_asyncio(pipe: Connection) -> None:
    """Receive small messages with ``zmq.asyncio``, answering the last."""

    async def run() -> None:
        router = zmq.asyncio.Context.instance().socket(zmq.ROUTER)
        router.rcvhwm = 0
        pipe.send(router.bind_to_random_port("tcp://127.0.0.1"))
        for number in itertools.count(1):
            sender, _ = await router.recv_multipart()
            if number % SMALL_MESSAGES == 0:
                await router.send_multipart([sender, b"k"])

    uvloop.run(run())


@contextmanager
def plain_asyncio() -> Iterator[Measure]:
    """Send small messages with ``zmq.asyncio`` on uvloop."""
    with server(serve_asyncio) as pipe, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        port, data = pipe.recv(), os.urandom(SMALL_BYTES)
        context = zmq.asyncio.Context()

        async def open_() -> zmq.asyncio.Socket:
            dealer = context.socket(zmq.DEALER)
            dealer.sndhwm = dealer.linger = 0
            dealer.connect(f"tcp://127.0.0.1:{port}")
            return dealer

        async def send(dealer: zmq.asyncio.Socket) -> None:
            for _ in range(SMALL_MESSAGES):
                await dealer.send(data)
            await dealer.recv()

        dealer = runner.run(open_())
        yield lambda: timed(runner, send(dealer))
        dealer.close()
        context.term()


# --- our transport ---------------------------------------------------------------------------------------------------
class Node:
    """One end: answers models and last small messages, and knows when it has been answered."""

    def __init__(self, number: int, encrypted: bool) -> None:
        self.number = number
        self.identity = Identity.generate()
        self.answered = asyncio.Event()
        self.lost = asyncio.Event()
        self.transport = Transport(
            number, self.identity, on_message=self.heard, on_lost=lambda _: self.lost.set(), encrypted=encrypted
        )
        self.transport.start()
        self.card = self.identity.card(number, self.transport.address, "bench")

    def heard(self, sender: int, header: Header, buffers: list[memoryview]) -> None:
        if self.number == 0:
            self.answered.set()
        elif header.type is Model or header.values[0]:
            asyncio.get_running_loop().create_task(self.transport.send(0, small(last=False)))

    async def asked(self, messages: Callable[[], Iterator[Encoded]]) -> None:
        self.answered.clear()
        for encoded in messages():
            await self.transport.send(1, encoded)
        await self.answered.wait()


def small(last: bool, text: bytes = b"") -> Encoded:
    """One encoded small message."""
    return encode(Small(last=last, text=text), lambda ref: memoryview(b""))


def serve_transport(pipe: Connection, encrypted: bool) -> None:
    """Be node 1 until node 0 has gone."""

    async def run() -> None:
        node = Node(1, encrypted)
        pipe.send(node.card)
        node.transport.admit(Roster([node.card, pipe.recv()]))
        await node.lost.wait()
        await node.transport.close()

    uvloop.run(run())


def models() -> Iterator[Encoded]:
    """One model; its bytes are the same in every repetition."""
    message = Model(model=Ref(0, Spec((MODEL_BYTES // 4,)), _nowhere))
    yield encode(message, lambda ref: _MODEL)


def smalls() -> Iterator[Encoded]:
    """Small messages, of which the last is to be answered."""
    text = os.urandom(SMALL_BYTES - small(last=True).size_bytes)
    yield from itertools.repeat(small(last=False, text=text), SMALL_MESSAGES - 1)
    yield small(last=True, text=text)


@contextmanager
def transport(messages: Callable[[], Iterator[Encoded]], encrypted: bool) -> Iterator[Measure]:
    """Send messages from node 0 to node 1 with the transport, until it says that it has them."""

    async def open_() -> Node:
        node, other = Node(0, encrypted), pipe.recv()
        pipe.send(node.card)
        node.transport.admit(Roster([node.card, other]))
        return node

    with (
        server(serve_transport, encrypted) as pipe,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        node = runner.run(open_())
        yield lambda: timed(runner, node.asked(messages))
        runner.run(node.transport.close())


# --- the run ---------------------------------------------------------------------------------------------------------
_MODEL = memoryview(bytes(MODEL_BYTES))


def collect_rarely() -> None:
    """What lives now lives on; messages that wait for a moment must not make the collector look at all of it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000)


def serve(target: Callable[..., None], *args: Any) -> None:
    """The other process."""
    collect_rarely()
    target(*args)


@contextmanager
def server(target: Callable[..., None], *args: Any) -> Iterator[Connection]:
    """Another process running ``target``, and a pipe to it; ended with the block."""
    ours, theirs = multiprocessing.Pipe()
    os.environ.update(KEEP_FREED_MEMORY)
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(target, theirs, *args), daemon=True)
    process.start()
    try:
        yield ours
    finally:
        process.join(2.0)
        if process.is_alive():
            process.kill()
            process.join()


def timed(runner: asyncio.Runner, work: Awaitable[None]) -> float:
    """Seconds that a coroutine takes."""

    async def run() -> float:
        start = time.perf_counter()
        await work
        return time.perf_counter() - start

    return runner.run(run())


def medians(repetitions: int) -> dict[str, float]:
    """Median seconds of each path, the paths taking turns."""
    with ExitStack() as stack:
        paths = {
            "tcp": stack.enter_context(tcp()),
            "plain": stack.enter_context(transport(models, encrypted=False)),
            "curve": stack.enter_context(curve()),
            "encrypted": stack.enter_context(transport(models, encrypted=True)),
            "small asyncio": stack.enter_context(plain_asyncio()),
            "small plain": stack.enter_context(transport(smalls, encrypted=False)),
            "small encrypted": stack.enter_context(transport(smalls, encrypted=True)),
        }
        for measure in paths.values():
            measure()
        seconds: dict[str, list[float]] = {name: [] for name in paths}
        for _ in range(repetitions):
            for name, measure in paths.items():
                seconds[name].append(measure())
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> int:
    """Run, print, and with ``--check`` say whether the targets hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    arguments = parser.parse_args()
    collect_rarely()
    found = medians(arguments.repetitions)
    ratios = {
        "plain": found["tcp"] / found["plain"],
        "encrypted": found["curve"] / found["encrypted"],
        "small": found["small asyncio"] / found["small encrypted"],
    }
    for name in ("tcp", "plain", "curve", "encrypted"):
        print(f"{name:16} {MODEL_BYTES / found[name] / 1e9:8.2f} GB/s   {found['tcp'] / found[name]:.2f} of raw TCP")
    for name in ("small asyncio", "small plain", "small encrypted"):
        print(f"{name:16} {SMALL_MESSAGES / found[name]:8.0f} messages/s")
    print(json.dumps({name: round(ratio, 3) for name, ratio in ratios.items()}))
    missed = [name for name, ratio in ratios.items() if ratio < TARGETS[name]]
    for name in missed:
        print(f"missed: {name} is {ratios[name]:.2f}, wanted {TARGETS[name]}", file=sys.stderr)
    return 1 if missed and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
