"""One node's part in a real run, whoever started the process: a live world with its recorder and tape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from node import provenance
from node.config import ExperimentConfig
from node.errors import ConfigError
from node.experiment.folder import LINEAGE
from node.experiment.result import Result
from node.experiment.setup import Setup
from node.experiment.virtual import peak_rss_bytes
from node.learn import tensors
from node.live.checkpoints import Checkpoints
from node.live.pacing import Pace
from node.live.transport import Transport
from node.live.world import LiveWorld, Tensors
from node.op import Value
from node.record import Recorder
from node.sim import devices
from node.sim.draws import per_node
from node.solver import Executor
from node.tape import Tape

TENSORS = Tensors(tensors.to_buffer, tensors.from_buffer)


def paces(config: ExperimentConfig) -> list[Pace] | None:
    """What each node's links are held to in a real run, the same as in a simulation; None where they are not.

    Raises:
        ConfigError: the latency is not one number, or the devices' trace is wrong.
    """
    network, nodes, seed = config.network, config.nodes, config.seed
    if not network.pace:
        return None
    if not isinstance(network.latency_s, float):
        raise ConfigError("network.latency_s: a real run's links can be held to one number of seconds; write a number")
    traced = devices.build(config.devices, nodes, seed, 1.0, 1.0, config.training.batch_size)  # its times do not matter
    ups_bps = traced.up_bps or per_node(network.up_bps, nodes, seed, "up_bps")
    downs_bps = traced.down_bps or per_node(network.down_bps, nodes, seed, "down_bps")
    return [Pace(up_bps, down_bps, network.latency_s) for up_bps, down_bps in zip(ups_bps, downs_bps, strict=True)]


class Participant:
    """Takes part in an experiment as one of its nodes. Make it inside the event loop; its time begins then.

    Args:
        on_settled: called whenever more of the recorder's rows are known.
        folder: the run's, for the log of how values came to be; None: there is nowhere to write it.
        executor: what solves the node's ops; None: what the experiment names.
        keep_spent: keeps what the node spends of its privacy, before it is spent.
        spent: what it had spent before it was started again.
    """

    def __init__(
        self,
        setup: Setup,
        node: int,
        *,
        checkpoints: Checkpoints,
        on_settled: Callable[[], None],
        folder: Path | None = None,
        executor: Executor | None = None,
        keep_spent: Callable[[Mapping[str, Any]], None] = lambda state: None,
        spent: Mapping[str, Any] | None = None,
    ) -> None:
        config = setup.config
        self.node = node
        self.recorder = Recorder(config.record.every)
        self._setup = setup
        self._blocks: list[bytes] = []
        self._tape = Tape(self._blocks.append if config.record.events else None)
        self.world = LiveWorld(
            node,
            config.nodes,
            config.seed,
            setup.workload,
            setup.topology,
            executor or setup.executor(),
            self.recorder,
            self._tape,
            tensors=TENSORS,
            roles=setup.roles,
            participants=setup.participants,
            checkpoints=checkpoints,
            on_settled=on_settled,
        )
        self.world.shapes = setup.shapes
        self.world.inference = setup.inference()
        self.ledger = self.world.ledger = setup.ledger(lambda _, state: keep_spent(state))
        if self.ledger is not None and spent is not None:
            self.ledger.restore(node, spent)
        if setup.is_logged and folder is not None:
            self.world.lineage = provenance.Log.of_life(folder / LINEAGE, node)

    async def run(self, transport: Transport) -> Value | None:
        """Take part until the protocol has ended; gives the final model's value, flat."""
        self.world.transport = transport
        self.world.mechanisms = self._setup.mechanisms(transport.identity, transport.roster)
        return await self.world.run(self._setup.make_protocol(), self._setup.wrapping(self.node))

    def result(self, status: str, error: str | None = None) -> Result:
        """What this node has measured so far, without models."""
        world = self.world
        self._tape.digest()  # completes the last block
        return Result(
            self.recorder,
            status,
            error,
            time_s=world.clock.time(),
            events=self._tape.events,
            tape=b"".join(self._blocks),
            tasks=world.graph.recorded,
            batched_calls=world.batches,
            forced_solves=world.forced_solves,
            messages=world.messages,
            bytes_sent=world.bytes_sent,
            traffic=world.traffic,
            refused_messages=world.refused_messages,
            peak_rss_bytes=peak_rss_bytes(),
            spent={} if self.ledger is None else self.ledger.states([self.node]),
        )
