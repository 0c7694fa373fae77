"""Simulated runs whose log is read: nodes push models by a vector of their own, clipped and noised, and gossip."""

from __future__ import annotations

import asyncio

import numpy as np

from node import Context, Message, Mod, Protocol, Ref
from node.clock import VirtualClock
from node.config import ChurnSection, DevicesSection, NetworkSection, TopologySection
from node.graph import Graph
from node.mods import Wrapping
from node.op import Op
from node.privacy.noise import Seeded
from node.provenance import Log, read
from node.record import Recorder
from node.sim.surroundings import surround
from node.sim.world import SimWorld
from node.solver import InlineExecutor, Solver
from node.tape import Tape
from node.testing import Quadratic
from node.topology import build
from node.world import shapes

RING = TopologySection(kind="ring")
FULL = TopologySection(kind="full")


class Pushing(Quadratic):
    """Training adds the node's target to the model, whatever that is: contributions do not depend on noise."""

    def _train(self, task):
        return task.inputs[0] + self.targets[task.key.node]


def _noised(task):
    """As ``node.privacy.clipping:noised_update``, on numpy's arrays."""
    before, after = task.inputs
    clip, noise_multiplier = task.static["clip"], task.static["noise_multiplier"]
    update = after - before
    update = update * min(1.0, clip / max(np.linalg.norm(update), 1e-12))
    return before + update + noise_multiplier * clip * Seeded(task.key).normals(len(before))


NOISED = Op("node.privacy.clipping:noised_update", _noised, seeded=True)


class Noise(Mod):
    """Node-level noise on what every training has changed."""

    def __init__(self, clip=1.0, noise_multiplier=1.0):
        super().__init__()
        self.static = {"clip": clip, "noise_multiplier": noise_multiplier}

    def trained(self, ctx, before, after):
        return ctx.apply(NOISED, before, after, **self.static)


class Model(Message, name="test.logged/model/1", key=("round",)):
    round: int
    model: Ref


class Averaging(Protocol):
    """Train once, or before every exchange, and average with the neighbours."""

    class Config(Protocol.Config):
        rounds: int = 2
        always: bool = False

    async def run(self, ctx: Context) -> Ref:
        model = ctx.initial_model()
        for round in range(self.config.rounds):
            if self.config.always or not round:
                model = await ctx.train(model)
            await ctx.send(ctx.neighbours(round), Model(round=round, model=model))
            heard = await ctx.collect(Model, frm=ctx.sources(round), round=round)
            model = ctx.mix([model, *(m.model for m in heard.values())], ctx.weights(heard, round))
        return model


def simulate(folder, make, nodes=8, *, workload=None, topology=RING, mods=(), churn=None, seed=3):
    """Run what ``make`` makes on every node; the world, once the log has been written to ``folder/lineage``."""

    async def main():
        churned = surround(
            nodes, seed, DevicesSection(), NetworkSection(), churn or ChurnSection(), learners=range(nodes)
        )
        world = SimWorld(
            nodes,
            seed,
            workload or Pushing(nodes, seed=seed),
            build(topology, nodes, seed),
            Solver(Graph(seed), InlineExecutor()),
            Recorder(),
            Tape(),
            churned,
            roles=(protocol := make()).roles(protocol.config, nodes),
            window_tasks=10**9,
        )
        world.shapes = shapes(world.workload, protocol.private_layers(protocol.config))
        if folder is not None:
            world.lineage = Log.of_all(folder / "lineage")
        await world.run(make, lambda node: Wrapping(list(mods), []) if mods else None)
        if folder is not None:
            world.lineage.close()
        return world

    with asyncio.Runner(loop_factory=VirtualClock) as runner:
        return runner.run(main())


def steps_of(folder, make, nodes=8, **options):
    """What happened in such a run."""
    simulate(folder, make, nodes, **options)
    return read(folder / "lineage")
