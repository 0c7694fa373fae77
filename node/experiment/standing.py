"""How a node stands: what it says of itself over HTTP and in its log. Never a key."""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.metadata import version
from typing import Any

import structlog

from node.config import ExperimentConfig
from node.experiment.joining import Joining
from node.experiment.loading import digest
from node.experiment.nodefile import NodeFile
from node.experiment.participant import Participant
from node.live.metrics import Reading
from node.live.transport import Transport
from node.op import Op, Task, Value
from node.privacy.ledger import Ledger
from node.solver import Executor

_TELL_EVERY_S = 5.0
_PACKAGES = ("starling-node", "torch", "pyzmq")


class Phase(StrEnum):
    """Where a node is on its way."""

    STARTING = "starting"
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    STOPPING = "stopping"


class Watched:
    """An executor that tells for how long it has been at one piece of work."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._since_s: float | None = None

    def solve(self, op: Op[...], tasks: Sequence[Task]) -> list[Value]:
        """Solve tasks of one op."""
        self._since_s = time.monotonic()
        try:
            return self._executor.solve(op, tasks)
        finally:
            self._since_s = None

    def fetch(self, values: Sequence[Value]) -> list[Value]:
        """The values themselves, in this process."""
        return self._executor.fetch(values)

    def close(self) -> None:
        """Give back what the executor holds."""
        self._executor.close()

    def busy_s(self) -> float:
        """Seconds since the work that goes on began; 0 where none does."""
        since_s = self._since_s
        return 0.0 if since_s is None else time.monotonic() - since_s


@dataclass
class Standing:
    """What there is to know of a running node; its owner keeps it up to date."""

    settings: NodeFile
    config: ExperimentConfig
    transport: Transport
    executor: Watched
    phase: Phase = Phase.STARTING
    address: str = ""
    admin: str = ""
    joining: Joining | None = None
    participant: Participant | None = None
    lost: dict[int, str] = field(default_factory=dict)
    """The peers that have gone, and how."""
    _started_s: float = field(default_factory=time.monotonic)
    _told: tuple[float, int] = (0.0, -1)

    @property
    def uptime_s(self) -> float:
        """Seconds since the node was set up."""
        return round(time.monotonic() - self._started_s, 3)

    def ill(self) -> str | None:
        """Why the node does not work, None where it does: the loop turns, or nobody would ask."""
        busy_s = self.executor.busy_s()
        if busy_s > self.settings.stuck_s:
            return f"the worker thread has been at one operation for {busy_s:.0f} s; stuck_s is {self.settings.stuck_s}"
        if self.participant is not None and self.participant.world.failure.done():
            return "a handler or a background task of the protocol has failed"
        return None

    def unready(self) -> str | None:
        """Why the node does not take part, None where it does."""
        return None if self.phase in (Phase.RUNNING, Phase.FINISHED) else f"the node is {self.phase}"

    def status(self) -> dict[str, Any]:
        """The contents of ``/status``."""
        return {
            "node": self.settings.node,
            "phase": self.phase.value,
            "experiment": self.config.name,
            "hash": digest(self.config),
            "protocol": self.config.protocol.use,
            "nodes": self.config.nodes,
            **self.progress(),
            **self._guarantee(),
            "peers": self._peer_counts(),
            "waiting_for": self.joining.awaited if self.joining and self.phase is Phase.WAITING else [],
            "address": self.address,
            "admin": self.admin,
            "uptime_s": self.uptime_s,
            "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        }

    def peers(self) -> list[dict[str, Any]]:
        """The contents of ``/peers``."""
        addresses = self.joining.addresses() if self.joining else {}
        others = [node for node in range(self.config.nodes) if node != self.settings.node]
        return [{"node": node, "state": self._state(node), "address": addresses.get(node)} for node in others]

    def reading(self) -> Reading:
        """What the metrics are made of."""
        traffic = self.transport.counters()
        refused = dict(traffic.refused)
        if self.participant is not None and self.participant.world.refused_messages:
            refused["content"] = self.participant.world.refused_messages
        gauges = {name: value for name, value in self.progress().items() if value is not None}
        return Reading(
            gauges,
            (traffic.messages_sent, traffic.bytes_sent),
            (traffic.messages_received, traffic.bytes_received),
            refused,
            self._peer_counts(),
            self._meanings(),
        )

    def tell_progress(self) -> None:
        """Log the round, every few seconds at most; called whenever more is known."""
        progress, now_s = self.progress(), time.monotonic()
        told_s, told = self._told
        if progress["round"] is not None and progress["round"] != told and now_s - told_s >= _TELL_EVERY_S:
            self._told = now_s, progress["round"]
            structlog.get_logger().info("progress", node=self.settings.node, **progress)

    def progress(self) -> dict[str, Any]:
        """The last round of this node and what it recorded of it, None where there is nothing yet."""
        if self.participant is None:
            return {"round": None, "accuracy": None, "loss": None}
        recorder, node = self.participant.recorder, self.settings.node
        names = ("accuracy", "loss") if self._ledger is None else ("accuracy", "loss", "epsilon")
        known = {name: recorder.latest(name).get(node) for name in names}
        return {"round": recorder.rounds() - 1 if recorder.rounds() else None, **known}

    @property
    def _ledger(self) -> Ledger | None:
        return None if self.participant is None else self.participant.ledger

    def _guarantee(self) -> dict[str, str]:
        return {} if self._ledger is None else {"privacy": str(self._ledger.guarantee(self.settings.node))}

    def _meanings(self) -> dict[str, dict[str, str]]:
        """What an epsilon means nothing without."""
        if self._ledger is None:
            return {}
        found = self._ledger.guarantee(self.settings.node)
        meaning = {"unit": found.unit, "adjacency": found.adjacency, "view": found.view, "delta": f"{found.delta:g}"}
        return {"epsilon": {**meaning, "conversion": found.conversion}}

    def _peer_counts(self) -> dict[str, int]:
        counts = Counter(self._state(node) for node in range(self.config.nodes) if node != self.settings.node)
        return {state: counts[state] for state in ("alive", "awaited", "dead")}

    def _state(self, peer: int) -> str:
        if peer in self.lost:
            return "dead"
        if self.joining is None or peer in self.joining.absent:
            return "awaited"
        return "alive"
