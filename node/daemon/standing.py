"""How a node stands: what it says of itself over HTTP and in its log. Never a key."""

from __future__ import annotations

import itertools
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
from node.daemon.history import coarse, curves
from node.daemon.joining import Joining
from node.daemon.journal import Journal
from node.daemon.meeting import Meeting
from node.daemon.nodefile import NodeFile
from node.experiment.loading import digest
from node.experiment.participant import Participant
from node.live.checkpoints import Checkpoints
from node.live.metrics import Reading
from node.live.parcels import Parcels
from node.live.steps import Steps
from node.live.transport import Transport
from node.op import Op, Task, Value
from node.privacy.ledger import Ledger
from node.solver import Executor

_TELL_EVERY_S = 5.0
_PACKAGES = ("starling-node", "torch", "pyzmq")
_PATHS = ("direct", "outbound", "relay", "none")
_STATES = ("alive", "awaited", "suspect", "dead", "left")


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
    steps: Steps
    journal: Journal
    checkpoints: Checkpoints
    phase: Phase = Phase.STARTING
    address: str = ""
    admin: str = ""
    joining: Joining | Meeting | None = None
    participant: Participant | None = None
    parcels: Parcels | None = None
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
        if self.phase not in (Phase.RUNNING, Phase.FINISHED):
            return f"the node is {self.phase}"
        return f"the node is {self._restraint}" if self._restraint else None

    @property
    def _restraint(self) -> str | None:
        if self.steps.is_draining:
            return "draining"
        return "paused" if self.steps.is_held else None

    def status(self) -> dict[str, Any]:
        """The contents of ``/status``."""
        return {
            "node": self.settings.node,
            "phase": self.phase.value,
            "restraint": self._restraint,
            "experiment": self.config.name,
            "hash": digest(self.config),
            "protocol": self.config.protocol.use,
            "nodes": self.config.nodes,
            **self.progress(),
            **self._guarantee(),
            "bytes": self._bytes(),
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
        sightings = self.joining.sightings() if self.joining else {}
        paths = self.transport.paths() if self.joining else {}
        return [
            {
                "node": node,
                "state": self._state(node),
                **({} if (path := paths.get(node)) is None else path.shown()),
                "address": addresses.get(node),
                **sightings.get(node, {}),
            }
            for node in range(self.config.nodes)
            if node != self.settings.node
        ]

    def history(self) -> dict[str, Any]:
        """The contents of ``/history``."""
        known = {} if self.participant is None else curves(self.participant.recorder, self.settings.node)
        return {"curves": known, "warnings": self.journal.warnings()}

    def reading(self) -> Reading:
        """What the metrics are made of."""
        passed = self.transport.counters()
        refused = Counter(passed.refused)
        gauges = self._gauges()
        counters = {"disconnects": passed.disconnects, "reconnects": passed.reconnects}
        dropped = {("send", reason): count for reason, count in passed.dropped.items()}
        if self.joining is not None:
            refused.update(self.joining.refused)
            gauges.update(self.joining.vitals())
            counters.update(self.joining.tallies())
        if self.participant is not None:
            world = self.participant.world
            if world.refused_messages:
                refused["content"] = world.refused_messages
            dropped.update(world.dropped)
            counters["rounds_partial"] = world.partial_waits
        counters["rounds_finished"] = self._rounds_finished
        relayed = self.transport.relayed()
        counters.update({"relayed_frames": relayed.frames, "relayed_bytes": relayed.size_bytes})
        if self.parcels is not None:
            counters.update(self.parcels.counters())
        return Reading(
            gauges,
            counters,
            self.transport.tally.read(),
            refused,
            self._peers_by_path(),
            {**self.transport.queued_bytes(), "relay": relayed.queued_bytes},
            dropped,
            self._labels(),
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
        for name in ("accuracy", "loss"):
            known[name] = coarse(known[name])
        return {"round": recorder.rounds() - 1 if recorder.rounds() else None, **known}

    def _gauges(self) -> dict[str, float]:
        progress = self.progress()
        saved_s, epsilon = self.checkpoints.saved_s(), progress.pop("epsilon", None)
        found = {
            **progress,
            "privacy_epsilon": epsilon,
            "privacy_delta": None if epsilon is None else self.config.privacy.delta,
            "checkpoint_age_seconds": None if saved_s is None else max(0.0, round(time.time() - saved_s, 3)),
            "paused": float(self.steps.is_held),
        }
        return {name: value for name, value in found.items() if value is not None}

    @property
    def _rounds_finished(self) -> int:
        """Rounds of this life: one that was started again has not recorded those before."""
        recorder = None if self.participant is None else self.participant.recorder
        first = None if recorder is None else next(recorder.rows(0, min(1, len(recorder))), None)
        return 0 if recorder is None or first is None else recorder.rounds() - first.round

    def _bytes(self) -> dict[str, int]:
        return {direction: self.transport.tally.size_bytes(direction) for direction in ("sent", "received")}

    @property
    def _ledger(self) -> Ledger | None:
        return None if self.participant is None else self.participant.ledger

    def _guarantee(self) -> dict[str, str]:
        return {} if self._ledger is None else {"privacy": str(self._ledger.guarantee(self.settings.node))}

    def _labels(self) -> dict[str, dict[str, str]]:
        """What an epsilon means nothing without."""
        if self._ledger is None:
            return {}
        found = self._ledger.guarantee(self.settings.node)
        mechanism: dict[str, str] = {"mechanism": self.config.privacy.mechanism}
        meaning = {"unit": found.unit, "adjacency": found.adjacency, "view": found.view, "delta": f"{found.delta:g}"}
        return {
            "privacy_epsilon": {**mechanism, **meaning, "conversion": found.conversion},
            "privacy_delta": mechanism,
        }

    def _peer_counts(self) -> dict[str, int]:
        counts = Counter(peer["state"] for peer in self.peers())
        return {state: counts[state] for state in _STATES}

    def _peers_by_path(self) -> dict[tuple[str, str], int]:
        """All combinations that there may be: a series that comes and goes is hard to watch."""
        counts = Counter((peer["state"], peer.get("path", "none")) for peer in self.peers())
        return {pair: counts[pair] for pair in itertools.product(_STATES, _PATHS)}

    def _state(self, peer: int) -> str:
        if peer in self.lost:
            return "dead"
        if self.joining is None or peer in self.joining.absent:
            return "awaited"
        return "alive"
