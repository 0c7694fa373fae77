"""What values follow from, as hashes: the names under which an earlier run's values are found again.

A digest covers the op, its source, its static arguments to the last bit, its inputs, its key where it reads one, and
what else the op names as its basis: data, model, arithmetic. It does not cover times, links, devices, the number of
rounds, nodes or workers, nor paths: they change no value.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from node.cache import DIGEST_BYTES, Cache, ToBuffer
from node.errors import ComputeError
from node.graph import Graph
from node.op import Op, Ref, Value
from node.values import size_bytes

_PACK_BYTES = 64 << 20
"""Models in one pack, about: they are in memory together, whatever the budget."""


class Digests:
    """What the values of a graph follow from, as hashes; computed when asked for, and kept while they may be needed."""

    def __init__(self, graph: Graph, to_buffer: ToBuffer) -> None:
        self._graph = graph
        self._to_buffer = to_buffer
        self._known: dict[int, bytes] = {}
        self._calls: dict[int, bytes] = {}

    def of(self, id: int) -> bytes:
        """The digest of a task or constant: its op and static arguments, its inputs, and its key where that matters."""
        known = self._known
        stack = [id]
        while stack:
            last = stack[-1]
            if last in known:
                stack.pop()
                continue
            inputs = self._graph.inputs(last) if last >= 0 else ()
            missing = [i for i in inputs if i not in known]
            if missing:
                stack.extend(missing)
                continue
            known[last] = self._of_task(last) if last >= 0 else self._of_constant(last)
            stack.pop()
        return known[id]

    def _of_constant(self, id: int) -> bytes:
        return blake2b(self._to_buffer(self._graph.values[id]), digest_size=DIGEST_BYTES).digest()

    def _of_task(self, id: int) -> bytes:
        graph = self._graph
        op, key = graph.op_of(id), graph.task_key(id)
        digest = blake2b(self._of_call(id), digest_size=DIGEST_BYTES)
        if op.basis is not None:
            digest.update(op.basis(key))
        if op.seeded:
            digest.update(struct.pack("<QQQ", *key))
        for i in graph.inputs(id):
            digest.update(self._known[i])
        return digest.digest()

    def _of_call(self, id: int) -> bytes:
        number = self._graph.call_of(id)
        if number not in self._calls:
            call = self._graph.calls[number]
            exact = msgspec.msgpack.encode([call.op.name, sorted((name, _exact(v)) for name, v in call.static.items())])
            source = _source(call.op) if call.op.basis is None else b""
            self._calls[number] = blake2b(source + exact, digest_size=DIGEST_BYTES).digest()
        return self._calls[number]

    def forget(self) -> None:
        """Drop the digests of values that are gone."""
        values = self._graph.values
        self._known = {id: digest for id, digest in self._known.items() if id in values}


def _exact(value: Any) -> Any:
    """A static argument by its bits: 0.1 + 0.2 is not 0.3, and 1 is not 1.0."""
    if isinstance(value, float):
        return ["float", value.hex()]
    if isinstance(value, tuple | list):
        return [_exact(part) for part in value]
    return [type(value).__name__, repr(value)]


def _source(op: Op[...]) -> bytes:
    """The source of the module that an op was written in: what its function calls is there too, most of the time."""
    module = sys.modules.get(op.name.partition(":")[0])
    path = getattr(module, "__file__", None)
    if path is None or "<locals>" in op.name:
        why = "its source is not known" if path is None else "what its function has from around it is not known"
        raise ComputeError(f"{op.name} cannot be cached, because {why}: define it in a module, or give the Op a basis")
    return Path(path).read_bytes()


class Store:
    """Recalls for a solver what earlier runs have solved, and keeps what this one solves.

    Args:
        every: keep what every so many windows leave alive.
    """

    def __init__(self, graph: Graph, cache: Cache, to_buffer: ToBuffer, every: int = 1) -> None:
        self._graph = graph
        self._cache = cache
        self._digests = Digests(graph, to_buffer)
        self._every = every
        self._windows = 0
        self._numbers: dict[bytes, tuple[Value, Any]] = {}

    def recall(self, wanted: Mapping[int, Ref]) -> None:
        """Take in all that is known of what some values need."""
        seen: set[int] = set()
        stack = list(wanted)
        while stack:
            id = stack.pop()
            if id in seen or self._graph.is_solved(id):
                continue
            seen.add(id)
            value = self._cache.get(self._digests.of(id))
            if value is None:
                stack.extend(self._graph.inputs(id))
            else:
                self._graph.reuse(id, value)

    def note(self, numbers: Sequence[int]) -> None:
        """Metrics and numbers that have just been solved: they are small, and are all kept."""
        graph = self._graph
        self._numbers.update((self._digests.of(id), (graph.values[id], graph.spec_of(id))) for id in numbers)

    def close_window(self, fetch: Callable[[Sequence[Value]], list[Value]]) -> None:
        """Keep the numbers so far, and the models that are alive, in every so many windows."""
        self._windows += 1
        if self._windows % self._every == 0:
            self.keep(fetch)

    def keep(self, fetch: Callable[[Sequence[Value]], list[Value]]) -> None:
        """Keep the numbers so far, and the models that are alive: a run that is like this one so far goes on there."""
        self._digests.forget()
        pack, self._numbers = self._numbers, {}
        pack_bytes = 0
        for digest, (value, spec) in self._models(fetch):
            pack[digest] = (value, spec)
            pack_bytes += spec.size_bytes
            if pack_bytes > _PACK_BYTES:
                self._cache.put(pack)
                pack, pack_bytes = {}, 0
        self._cache.put(pack)

    def _models(self, fetch: Callable[[Sequence[Value]], list[Value]]) -> Iterable[tuple[bytes, tuple[Value, Any]]]:
        graph = self._graph
        for id in list(graph.values):
            if id >= 0 and size_bytes(graph.spec_of(id)) and (digest := self._digests.of(id)) not in self._cache:
                yield digest, (fetch([graph.values[id]])[0], graph.spec_of(id))
