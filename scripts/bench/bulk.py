"""What a bulk transfer costs: 500 MB from one process's store to another's over loopback, beside a raw TCP socket.

Interleaved in one run: a raw socket that fills a reused buffer; a transfer without SHA-256 and disk, which is what the
wire itself and its encryption cost (the target is for that); a whole transfer, each chunk of it verified and written to
disk, while a message goes back and forth over the link of the same two nodes. In the last transfer a proxy cuts the
connection at random bytes, and what is sent again is counted. Medians; read the ratios, the seconds depend on the
machine. Processor time hardly depends on what else it does, and what else it does may well decide the ratio of rates.

    scripts/bench/bulk [--repetitions 5] [--megabytes 500] [--folder /dev/shm] [--check]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import shutil
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil
import structlog
import uvloop

from node.codec import Header, encode
from node.identity import Card, Identity, Roster
from node.live.bulk import Bulk
from node.live.bulk_ciphers import ciphers
from node.live.bulk_socket import NUMBER
from node.live.transport import Transport
from node.message import Message
from node.store.objects import Store
from node.store.partial import Partial
from node.transfer.manifest import CHUNK_BYTES, Manifest
from node.transfer.sealing import TAG_BYTES

CUTS = 3
PAUSE_S = 0.005
QUIET_S = 1.0
LEAST_RATIO = 0.7
TARGETS = {"round_trip_p99_ms": 50.0, "grown_mb": 64.0, "chunks_twice": 0}


class Ping(Message, name="bench/bulk/ping/1"):
    number: int


class Party:
    """A node with a store, that echoes pings."""

    def __init__(self, node: int, folder: Path, advertised_port: int = 0) -> None:
        self.identity = Identity.generate()
        self.pong = asyncio.Event()
        self._node = node
        self.transport = Transport(node, self.identity, on_message=self._hear, on_lost=lambda peer: None)
        self.transport.start()
        self.store = Store(folder)
        self.bulk = Bulk(node, self.transport, self.store, may_fetch=lambda *_: True, advertised_port=advertised_port)
        self.bulk.start()

    @property
    def card(self) -> Card:
        return self.identity.card(self._node, self.transport.address, "bench")

    async def close(self) -> None:
        await self.bulk.close()
        await self.transport.close()

    def _hear(self, sender: int, header: Header, buffers: list[memoryview]) -> None:
        if header.type in Bulk.KINDS:
            self.bulk.receive(sender, header, buffers)
        elif self._node:
            self.pong.set()
        else:
            asyncio.get_running_loop().create_task(self.ping(sender))

    async def ping(self, peer: int) -> None:
        await self.transport.send(peer, encode(Ping(number=0), lambda ref: memoryview(b"")))


def serve(folder: str, pipe: Connection) -> None:
    """The sending node, in a process of its own; a port in the pipe is the proxy's, None ends it."""

    async def main() -> None:
        party = Party(0, Path(folder))
        pipe.send((party.card.to_text(), party.bulk.port))
        party.transport.admit(Roster([party.card, Card.from_text(pipe.recv())]))
        loop = asyncio.get_running_loop()
        while (command := await loop.run_in_executor(None, pipe.recv)) is not None:
            party.bulk._advertised_port = command
            pipe.send(party.bulk.chunks_sent)
        await party.close()

    _quiet()
    uvloop.run(main())


def raw_send(port: int, size_bytes: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as out:
        chunk = bytes(CHUNK_BYTES)
        for _ in range(size_bytes // CHUNK_BYTES):
            out.sendall(chunk)


def raw_tcp(size_bytes: int) -> tuple[float, float]:
    """Seconds that a raw socket takes, into one reused buffer, and CPU-seconds of both ends."""
    cpu_s = time.process_time() + children_cpu_s()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = multiprocessing.Process(target=raw_send, args=(listener.getsockname()[1], size_bytes))
        sender.start()
        connection, _ = listener.accept()
        room = memoryview(bytearray(CHUNK_BYTES))
        began_s = time.perf_counter()
        while connection.recv_into(room):
            pass
        took_s = time.perf_counter() - began_s
        connection.close()
        sender.join()
    return took_s, time.process_time() + children_cpu_s() - cpu_s


def children_cpu_s() -> float:
    """CPU-seconds of the processes that have been waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def both_cpu_s(child: int) -> float:
    """CPU-seconds of this process and of one that runs."""
    times = psutil.Process(child).cpu_times()
    return time.process_time() + times.user + times.system


class Proxy:
    """Passes connections on, in a thread; each of the first ends after so many bytes towards the receiver."""

    def __init__(self, target: int, cuts: list[int]) -> None:
        self._target, self._cuts = target, cuts
        self.passed_bytes: list[int] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        for number in range(len(self._cuts) + 1):
            outer, _ = self._listener.accept()
            inner = socket.create_connection(("127.0.0.1", self._target))
            back = threading.Thread(target=_copy, args=(outer, inner, None), daemon=True)
            back.start()
            self.passed_bytes.append(_copy(inner, outer, self._cuts[number] if number < len(self._cuts) else None))
            with suppress(OSError):
                outer.shutdown(socket.SHUT_WR)
                inner.shutdown(socket.SHUT_RDWR)
            back.join()
            outer.close()
            inner.close()


def _copy(source: socket.socket, sink: socket.socket, most: int | None) -> int:
    passed, room = 0, memoryview(bytearray(CHUNK_BYTES))
    with suppress(OSError):
        while most is None or passed < most:
            count = source.recv_into(room[: len(room) if most is None else min(len(room), most - passed)])
            if not count:
                break
            passed += count
            with suppress(OSError):  # drained all the same: closing on unread bytes would reset the connection
                sink.sendall(room[:count])
    return passed


@contextmanager
def growth(*pids: int) -> Iterator[list[float]]:
    """By process the megabytes by which its resident memory grows at most, sampled; filled in at the end."""
    processes = [psutil.Process(pid) for pid in pids]
    before = [process.memory_info().rss for process in processes]
    most, over = list(before), threading.Event()

    def sample() -> None:
        while not over.wait(0.01):
            for i, process in enumerate(processes):
                most[i] = max(most[i], process.memory_info().rss)

    sampler = threading.Thread(target=sample)
    sampler.start()
    grown: list[float] = []
    try:
        yield grown
    finally:
        over.set()
        sampler.join()
        grown += [(top - start) / 1e6 for top, start in zip(most, before, strict=True)]


async def round_trips(party: Party, milliseconds: list[float]) -> None:
    while True:
        party.pong.clear()
        began_s = time.perf_counter()
        await party.ping(0)
        await party.pong.wait()
        milliseconds.append((time.perf_counter() - began_s) * 1e3)
        await asyncio.sleep(PAUSE_S)


async def quiet_round_trips(party: Party) -> list[float]:
    """As many milliseconds without any transfer: what this machine makes of them at the time."""
    milliseconds: list[float] = []
    pinging = asyncio.create_task(round_trips(party, milliseconds))
    await asyncio.sleep(QUIET_S)
    pinging.cancel()
    return milliseconds


async def transfer(party: Party, manifest: Manifest, child: int) -> dict[str, Any]:
    """One fetch, into an empty store."""
    arrived_s: list[float] = []
    cpu_s, began_s = both_cpu_s(child), time.perf_counter()
    await party.bulk.fetch(manifest.id, 0, progress=lambda here, whole: arrived_s.append(time.perf_counter() - began_s))
    installed_s = time.perf_counter() - began_s
    cpu_s = both_cpu_s(child) - cpu_s
    party.store.remove(manifest.id)
    return {"arrived_s": arrived_s[-1], "installed_s": installed_s, "cpu_s": cpu_s}


async def watched(party: Party, manifest: Manifest, child: int) -> dict[str, Any]:
    """The same, with a message going back and forth meanwhile, and both processes' memory sampled."""
    milliseconds: list[float] = []
    pinging = asyncio.create_task(round_trips(party, milliseconds))
    with growth(os.getpid(), child) as grown:
        result = await transfer(party, manifest, child)
    pinging.cancel()
    return result | {"grown_mb": {"receiver": grown[0], "sender": grown[1]}, "ms": milliseconds}


async def measure(folder: Path, repetitions: int, size_bytes: int) -> dict[str, Any]:
    rng = np.random.default_rng(7)
    source = folder / "source"
    with source.open("wb") as file:
        for _ in range(size_bytes // CHUNK_BYTES):
            file.write(rng.bytes(CHUNK_BYTES))
    manifest = Store(folder / "0").add(source)
    source.unlink()
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.Process(target=serve, args=(str(folder / "0"), theirs))
    child.start()
    text, port = ours.recv()
    party = Party(1, folder / "1")
    ours.send(party.card.to_text())
    party.transport.admit(Roster([party.card, Card.from_text(text)]))
    assert child.pid is not None
    first = await watched(party, manifest, child.pid)  # dials, and touches every buffer
    raw: list[tuple[float, float]] = []
    quiet_ms: list[float] = []
    arms: dict[str, list[dict[str, Any]]] = {"stored": [], "sealed": []}
    for _ in range(repetitions):
        raw.append(raw_tcp(size_bytes))
        with patch.object(Manifest, "matches", lambda *_: True), patch.object(Partial, "write", lambda *_: None):
            arms["sealed"].append(await transfer(party, manifest, child.pid))
        quiet_ms += await quiet_round_trips(party)
        arms["stored"].append(await watched(party, manifest, child.pid))
    broken = await cut(party, manifest, child.pid, ours, port, rng)
    ours.send(None)
    await party.close()
    child.join()
    more = {"quiet_round_trip_p99_ms": p99(quiet_ms), "grown_mb": grown_mb([first, *arms["stored"]])}
    return summary(size_bytes, raw, arms) | more | broken


async def cut(
    party: Party, manifest: Manifest, child: int, pipe: Connection, port: int, rng: np.random.Generator
) -> dict[str, Any]:
    """A transfer that is cut, against what it had to send: what was missing each time, and not a chunk more."""
    total = manifest.size_bytes + manifest.chunks * (NUMBER.size + TAG_BYTES)
    cuts = rng.integers(1, total // (CUTS + 1), CUTS).tolist()
    proxy = Proxy(port, cuts)
    pipe.send(proxy.port)
    pipe.recv()
    before = party.bulk.chunks_received
    result = await watched(party, manifest, child)
    frame_bytes = NUMBER.size + CHUNK_BYTES + TAG_BYTES
    whole = [passed // frame_bytes for passed in proxy.passed_bytes]
    return {
        "cuts": cuts,
        "chunks": manifest.chunks,
        "chunks_received": party.bulk.chunks_received - before,
        "chunks_by_attempt": whole,
        "chunks_twice": sum(whole) - manifest.chunks,
        "cut_round_trip_p99_ms": p99(result["ms"]),
        "cut_grown_mb": grown_mb([result]),
    }


def p99(milliseconds: list[float]) -> float:
    return round(float(np.percentile(milliseconds, 99)), 2)


def grown_mb(transfers: list[dict[str, Any]]) -> dict[str, float]:
    """The most by which each end grew, in MB."""
    return {end: round(max(each["grown_mb"][end] for each in transfers), 1) for end in ("sender", "receiver")}


def summary(size_bytes: int, raw: list[tuple[float, float]], arms: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    raw_s = statistics.median(took_s for took_s, _ in raw)
    raw_cpu_s = statistics.median(cpu_s for _, cpu_s in raw)
    result: dict[str, Any] = {
        "cipher": ciphers()[0],
        "raw_mb_s": round(size_bytes / raw_s / 1e6),
        "raw_cpu_s_per_gb": round(raw_cpu_s / size_bytes * 1e9, 2),
    }
    for name, runs in arms.items():
        arrived = statistics.median(run["arrived_s"] for run in runs)
        cpu_s = statistics.median(run["cpu_s"] for run in runs)
        ratios = [took_s / run["arrived_s"] for (took_s, _), run in zip(raw, runs, strict=True)]
        result[name] = {
            "mb_s": round(size_bytes / arrived / 1e6),
            "ratio": round(raw_s / arrived, 2),
            "cpu_s_per_gb": round(cpu_s / size_bytes * 1e9, 2),
            "cpu_ratio": round(raw_cpu_s / cpu_s, 2),
            "paired_ratios": [round(ratio, 2) for ratio in ratios],
            "installed_s": round(statistics.median(run["installed_s"] for run in runs), 2),
        }
    times = [ms for run in arms["stored"] for ms in run["ms"]]
    result["round_trip_p50_ms"] = round(float(np.percentile(times, 50)), 2)
    result["round_trip_p99_ms"] = p99(times)
    result["ratio"] = result["sealed"]["ratio"]
    return result


def missed(result: dict[str, Any]) -> list[str]:
    """A line for each claim that does not hold."""
    most = {
        "round_trip_p99_ms": max(result["round_trip_p99_ms"], result["cut_round_trip_p99_ms"]),
        "grown_mb": max(*result["grown_mb"].values(), *result["cut_grown_mb"].values()),
        "chunks_twice": result["chunks_twice"],
    }
    short = [f"{name}: {figure}, at most {TARGETS[name]}" for name, figure in most.items() if figure > TARGETS[name]]
    return short + ([f"ratio: {result['ratio']}, at least {LEAST_RATIO}"] if result["ratio"] < LEAST_RATIO else [])


def _quiet() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--folder", type=Path, help="where the stores are; none: the folder for temporary files")
    parser.add_argument("--check", action="store_true", help="fail where a target is missed")
    args = parser.parse_args()
    _quiet()
    folder = Path(tempfile.mkdtemp(prefix="starling-bulk-", dir=args.folder))
    try:
        result = uvloop.run(measure(folder, args.repetitions, args.megabytes * 10**6 // CHUNK_BYTES * CHUNK_BYTES))
    finally:
        shutil.rmtree(folder)
    print(json.dumps(result, indent=2))
    short = missed(result)
    print("\n".join(short), file=sys.stderr)
    return 1 if args.check and short else 0


if __name__ == "__main__":
    sys.exit(main())
