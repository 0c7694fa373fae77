"""Random experiments: any protocol on any topology, devices and links, with lost messages, late ones and lost peers.

Each is drawn from its seed, which is in the test's name: ``pytest "tests/swarm/test_swarm.py::test_...[17]"`` runs one.
"""

import asyncio
import gc
import signal
from dataclasses import dataclass

import numpy as np
import pytest

from node import Context, Mod, Observer, ProtocolError, StarlingError, Unreachable
from node.clock import VirtualClock
from node.config import ChurnSection, DevicesSection, Distribution, NetworkSection, TopologySection
from node.errors import Deadlock
from node.graph import Graph
from node.mods import Wrapping
from node.record import Recorder
from node.sim.surroundings import surround
from node.sim.world import SimWorld
from node.solver import BatchedExecutor, InlineExecutor, Solver
from node.tape import Tape
from node.testing import Quadratic
from node.topology import build
from protocols.adpsgd import ADPSGD
from protocols.dpsgd import DPSGD
from protocols.epidemic import Epidemic
from protocols.fedavg import FedAvg
from protocols.local import Local
from protocols.pushsum import PushSum

SEEDS = range(48)
LONGEST_S = 60
"""Wall seconds after which a run counts as hanging."""

KINDS = ["ring", "torus", "regular", "exponential", "one-peer", "erdos-renyi", "full", "star", "random-regular"]


class Consensus(Quadratic):
    """Averaging alone: nodes jump to their own target, and stay."""

    def lr(self, call):
        return 1.0 if call == 0 else 0.0


class Drop(Mod):
    """Loses some of what a node sends."""

    def __init__(self, rng, share):
        super().__init__()
        self.rng, self.share, self.dropped = rng, share, 0

    def outgoing(self, ctx, to, message):
        if self.rng.random() < self.share:
            self.dropped += 1
            return None
        return message


class Delay(Mod):
    """Holds some messages of a round back, so that others overtake them."""

    def __init__(self, rng, share):
        super().__init__()
        self.rng, self.share, self.late = rng, share, set()

    def outgoing(self, ctx, to, message):
        if message in self.late or not message.key_fields or self.rng.random() >= self.share:
            return message
        self.late.add(message)
        ctx.spawn(self.send_later(ctx, to, message, self.rng.exponential(0.5)))
        return None

    async def send_later(self, ctx, to, message, seconds):
        await ctx.sleep(seconds)
        await ctx.send(to, message)
        self.late.discard(message)


class Count(Observer):
    """What has come to a node."""

    def __init__(self):
        super().__init__()
        self.received_count = 0

    def received(self, ctx, sender, message):
        self.received_count += 1


def with_churn(kind, losses):
    """The protocol, on nodes that learn at some time that some peers are gone; ends when all messages have settled."""

    class Churned(kind):
        async def run(self, ctx: Context):
            for peer, after_s in losses:
                if peer != ctx.me:
                    ctx.spawn(self.lose(ctx, peer, after_s))
            model = await super().run(ctx)
            await ctx.sleep(1e5)
            return getattr(self, "model", model)

        async def lose(self, ctx, peer, after_s):
            await ctx.sleep(after_s * (1 + ctx.me / 10))
            ctx.lose(peer)

    return Churned


@dataclass
class Experiment:
    """What a seed stands for."""

    seed: int
    nodes: int
    topology: TopologySection
    kind: type
    config: object
    devices: DevicesSection
    network: NetworkSection
    drop: float
    delay: float
    losses: list
    window: int
    batched: bool

    @property
    def may_fail(self):
        """Whether losing a message or a peer may leave somebody without what it needs."""
        return bool(self.drop or self.losses)

    @property
    def keeps_the_mean(self):
        if self.kind is Epidemic:
            return self.config.variant == "oracle" and self.config.deadline_s is None
        return self.kind is ADPSGD or (self.kind is DPSGD and not self.config.deadline_s)


def draw(seed):
    rng = np.random.default_rng([seed, 77])

    def pick(*choices):
        return choices[rng.integers(len(choices))]

    nodes = 2 * int(rng.integers(2, 7))
    kind = pick(Local, DPSGD, DPSGD, ADPSGD, ADPSGD, Epidemic, Epidemic, PushSum, FedAvg)
    rounds, deadline_s = int(rng.integers(1, 6)), pick(0.0, 0.3, 3.0)
    options = {
        Local: {},
        DPSGD: {"deadline_s": deadline_s},
        ADPSGD: {"deadline_s": 1e3},
        Epidemic: {"degree": 2, "variant": pick("local", "oracle"), "deadline_s": deadline_s or None},
        PushSum: {"deadline_s": deadline_s},
        FedAvg: {"deadline_s": deadline_s, "sample": pick(0, 2), "over_select": pick(0.0, 0.5), "server": "adam"},
    }[kind]
    speed = pick(0.1, Distribution(distribution="lognormal", median=0.1, sigma=pick(0.5, 2.0)))
    latency_s = pick(0.0, 0.05, Distribution(distribution="exponential", mean=0.2))
    return Experiment(
        seed,
        nodes,
        TopologySection(kind=pick(*KINDS), degree=2, weights="metropolis"),
        kind,
        kind.Config(rounds=rounds, **options),
        DevicesSection(seconds_per_sample=speed),
        NetworkSection(latency_s=latency_s, up_bps=pick(1e4, Distribution(distribution="uniform", low=1e3, high=1e5))),
        pick(0.0, 0.0, 0.1, 0.5),
        pick(0.0, 0.0, 0.3),
        [(int(rng.integers(nodes)), float(rng.exponential(0.5))) for _ in range(pick(0, 0, 1, 3))],
        pick(1, 50, 10**9),
        pick(False, True),
    )


def wrappings(experiment):
    """One Wrapping for each node, each with its own seeded mods."""
    made = []
    for node in range(experiment.nodes):
        streams = [np.random.default_rng([experiment.seed, node, which]) for which in (0, 1)]
        made.append(Wrapping([Delay(streams[0], experiment.delay), Drop(streams[1], experiment.drop)], [Count()]))
    return made


async def simulated(experiment, workload):
    """The world after the run, the error that ended it (None: it ended well), the tape's hash, and the wrappings."""
    tape, mods = Tape(), wrappings(experiment)
    protocol = with_churn(experiment.kind, dict(experiment.losses).items())
    world = SimWorld(
        experiment.nodes,
        experiment.seed,
        workload,
        build(experiment.topology, experiment.nodes, experiment.seed),
        Solver(Graph(experiment.seed), BatchedExecutor() if experiment.batched else InlineExecutor()),
        Recorder(),
        tape,
        surround(
            experiment.nodes,
            experiment.seed,
            experiment.devices,
            experiment.network,
            ChurnSection(),
            learners=range(experiment.nodes),
        ),
        roles=experiment.kind.roles(experiment.config, experiment.nodes),
        window_tasks=experiment.window,
    )
    run = asyncio.ensure_future(world.run(lambda: protocol(experiment.config), lambda node: mods[node]))
    await asyncio.wait([run])
    error = run.exception()
    if error is not None and not isinstance(error, StarlingError):
        raise error
    return world, error, tape.digest(), mods


def simulate(experiment, workload=None):
    workload = workload or Consensus(experiment.nodes, seed=experiment.seed)
    signal.setitimer(signal.ITIMER_REAL, LONGEST_S)
    try:
        with asyncio.Runner(loop_factory=VirtualClock) as runner:
            return runner.run(simulated(experiment, workload))
    except Deadlock as deadlock:
        return None, deadlock, "", []
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@pytest.fixture(autouse=True)
def _hanging_is_a_failure():
    def give_up(*_):
        raise AssertionError(f"still running after {LONGEST_S} s of wall time")

    before = signal.signal(signal.SIGALRM, give_up)
    yield
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_experiment_ends_well_or_with_a_clean_error_and_the_same_again(seed):
    experiment = draw(seed)
    world, error, digest, mods = simulate(experiment)
    _, error_again, digest_again, _ = simulate(experiment)
    assert (str(error), digest) == (str(error_again), digest_again), experiment

    if error is not None:
        assert experiment.may_fail, f"{error!r} of {experiment}"
        assert isinstance(error, Deadlock | Unreachable | ProtocolError), f"{error!r} of {experiment}"
        assert not isinstance(error, Deadlock) or "waits for" in str(error), f"a deadlock without a story: {error}"
        assert type(error) is not ProtocolError or "every client is gone" in str(error), f"{error!r} of {experiment}"
        return

    assert len(world.finals) == experiment.nodes, experiment
    assert sum(wrapping.observers[0].received_count for wrapping in mods) == world.mail.messages, experiment
    graph, initial, finals = world.graph, world.initial, world.finals
    del world, mods
    gc.collect()  # with the nodes go the messages that nobody has collected
    graph.drain()
    assert set(graph.values) == {initial.id, *(ref.id for ref in finals.values())}, experiment
    assert all(np.isfinite(graph.values[ref.id]).all() for ref in finals.values()), experiment


@pytest.mark.parametrize("seed", SEEDS)
def test_a_protocol_that_claims_to_keep_the_mean_keeps_it(seed):
    """Whatever is late or overtaken, as long as nothing is lost."""
    experiment = draw(seed)
    experiment.drop, experiment.losses = 0.0, []
    workload = Consensus(experiment.nodes, seed=seed)
    if not experiment.keeps_the_mean:
        experiment.kind = ADPSGD
        experiment.config = ADPSGD.Config(rounds=3, deadline_s=1e3)
    world, error, _, _ = simulate(experiment, workload)
    assert error is None, f"{error!r} of {experiment}"
    models = [world.solver.value(ref) for _, ref in sorted(world.finals.items())]
    assert np.mean(models, axis=0) == pytest.approx(workload.optimum, abs=1e-12), experiment


@pytest.mark.parametrize("seed", SEEDS[::4])
def test_how_and_when_values_are_solved_changes_neither_events_nor_models(seed):
    experiment = draw(seed)
    results = []
    for window, batched in ((1, False), (10**9, True)):
        experiment.window, experiment.batched = window, batched
        world, error, digest, _ = simulate(experiment, Quadratic(experiment.nodes, noise=0.1, seed=seed))
        finals = sorted(world.finals.items()) if error is None else []
        results.append((str(error), digest, [world.solver.value(ref).tolist() for _, ref in finals]))
    assert results[0] == results[1], experiment


def test_the_swarm_visits_what_it_should():
    """Or all of it could pass because nothing is tried."""
    experiments = [draw(seed) for seed in SEEDS]
    assert {experiment.kind for experiment in experiments} == {Local, DPSGD, ADPSGD, Epidemic, PushSum, FedAvg}
    assert {experiment.topology.kind for experiment in experiments} == set(KINDS)
    assert sum(bool(experiment.losses) for experiment in experiments) > 12
    assert sum(bool(experiment.drop) for experiment in experiments) > 12
    assert sum(bool(experiment.delay) for experiment in experiments) > 10
    ends = [simulate(experiment)[1] for experiment in experiments[:24]]
    assert {type(error) for error in ends} >= {type(None), Deadlock, Unreachable}
    assert sum(error is None for error in ends) > 8
