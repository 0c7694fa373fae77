"""What papers claim about the bundled protocols, on models whose every step has a closed form.

Most claims are about communication alone. Their nodes jump to a target of their own in their first training (lr 1), so
that all models differ, and stay there in all later ones (lr 0).
"""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node import ConfigError, Context, Message, Mod, Observer
from node.config import DevicesSection, Distribution, NetworkSection, TopologySection
from node.testing import Quadratic, check_protocol, run_protocol
from node.topology import build, spectral_gap
from protocols.adpsgd import ADPSGD
from protocols.dpsgd import DPSGD
from protocols.epidemic import Epidemic
from protocols.fedavg import FedAvg
from protocols.local import Local
from protocols.pushsum import PushSum

DIFFERENT_SPEEDS = {
    "devices": DevicesSection(seconds_per_sample=Distribution(distribution="lognormal", median=0.1, sigma=1)),
    "network": NetworkSection(latency_s=Distribution(distribution="exponential", mean=0.05)),
}


class Consensus(Quadratic):
    """Averaging alone: each node starts from its own target."""

    def lr(self, call):
        return 1.0 if call == 0 else 0.0


def consensus(protocol, nodes, kind="ring", seed=0, workload=None, **options):
    """The workload and the outcome of averaging what ``nodes`` drew from the seed."""
    workload = workload or Consensus(nodes, seed=seed)
    topology = options.pop("topology", TopologySection(kind=kind))
    return workload, run_protocol(protocol, nodes, workload=workload, topology=topology, seed=seed, **options)


def distance(models):
    return float(np.linalg.norm(models - models.mean(axis=0)))


# Every protocol


BUNDLED = {
    "local": Local(Local.Config(rounds=4)),
    "dpsgd": DPSGD(DPSGD.Config(rounds=4)),
    "adpsgd": ADPSGD(ADPSGD.Config(rounds=4)),
    "epidemic": Epidemic(Epidemic.Config(rounds=4, degree=2)),
    "oracle": Epidemic(Epidemic.Config(rounds=4, degree=2, variant="oracle")),
    "pushsum": PushSum(PushSum.Config(rounds=4)),
    "fedavg": FedAvg(FedAvg.Config(rounds=4, sample=3, over_select=0.5)),
    "fedadam": FedAvg(FedAvg.Config(rounds=4, server="adam")),
}


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_protocol_is_deterministic_and_learns(name):
    """Twice, windowed and batched the same; and closer to its optimum than the model it started from."""
    check_protocol(BUNDLED[name], 6, workload=Quadratic(6, noise=0.01), **DIFFERENT_SPEEDS)
    recorder = run_protocol(BUNDLED[name], 6, workload=Quadratic(6, [[5.0, 5.0]] * 6, lr=0.3)).recorder
    first = [row.value for row in recorder.rows() if row.metric == "accuracy" and row.round == 0]
    last = [row.value for row in recorder.rows() if row.metric == "accuracy" and row.round == 3]
    assert len(first) == len(last) > 0
    assert min(last) > max(first)


# Lian et al., NeurIPS 2017 (D-PSGD)


@settings(max_examples=20)
@given(
    st.sampled_from(["ring", "torus", "exponential", "erdos-renyi", "star", "one-peer", "random-regular"]),
    st.integers(1, 6),
    st.integers(0, 2**32),
)
def test_dpsgd_preserves_the_mean_model(kind, rounds, seed):
    """'The average of all models' is untouched by averaging, as W is doubly stochastic."""
    workload, outcome = consensus(DPSGD(DPSGD.Config(rounds=rounds)), 12, kind, seed)
    assert outcome.mean() == pytest.approx(workload.optimum, abs=1e-12)


@pytest.mark.parametrize("kind", ["ring", "torus", "regular", "exponential", "star"])
@pytest.mark.parametrize("rounds", [1, 3, 8])
def test_dpsgd_contracts_at_the_rate_of_the_spectral_gap(kind, rounds):
    """The distance from the mean falls by at least 1 - gap a round, and the models are exactly W^k X."""
    workload, outcome = consensus(DPSGD(DPSGD.Config(rounds=rounds)), 16, kind)
    matrix = build(TopologySection(kind=kind), 16, 0).matrix()
    models = np.stack(list(outcome.models.values()))
    assert models == pytest.approx(np.linalg.matrix_power(matrix, rounds) @ workload.targets, abs=1e-12)
    assert distance(models) <= (1 - spectral_gap(matrix)) ** rounds * distance(workload.targets) + 1e-12


def test_dpsgd_over_the_full_graph_is_centralized_sgd():
    """With W = 11'/n and one step, every round is a step of gradient descent on the mean loss."""
    rounds, lr = 7, 0.2
    workload = Quadratic(5, lr=lr)
    _, outcome = consensus(DPSGD(DPSGD.Config(rounds=rounds)), 5, "full", workload=workload)
    centralized = workload.optimum * (1 - (1 - lr) ** rounds)
    assert all(model == pytest.approx(centralized, abs=1e-12) for model in outcome.models.values())


def test_dpsgd_does_not_depend_on_speeds_or_latencies():
    """Synchronous: 'each node waits for its neighbours'."""
    even, uneven = (
        consensus(DPSGD(DPSGD.Config(rounds=6)), 9, "torus", workload=Quadratic(9, lr=0.3), **options)[1]
        for options in ({}, DIFFERENT_SPEEDS)
    )
    assert all(np.array_equal(even.models[node], uneven.models[node]) for node in range(9))
    assert uneven.time_s > even.time_s


def test_local_training_never_talks_and_ends_at_its_own_target():
    workload, outcome = consensus(Local(Local.Config(rounds=3)), 5)
    assert outcome.messages == 0
    assert np.array_equal(np.stack(list(outcome.models.values())), workload.targets)


# Lian et al., ICML 2018 (AD-PSGD)


class Settled(ADPSGD):
    """Stays until the last exchange has arrived: what a node that has ended still answers is part of the sum."""

    async def run(self, ctx: Context):
        await super().run(ctx)
        await ctx.sleep(1e4)
        return self.model


@settings(max_examples=30)
@given(st.integers(2, 9), st.integers(1, 4), st.integers(0, 2**32), st.sampled_from(["ring", "full", "star"]))
def test_adpsgd_preserves_the_sum_exactly_under_any_interleaving(nodes, rounds, seed, kind):
    """Whatever overtakes whatever. Small integers halved at most once per exchange: float64 has room for all bits."""
    nodes = max(nodes, 3) if kind == "ring" else nodes
    targets = np.random.default_rng(seed).integers(-64, 64, size=(nodes, 3))
    protocol = Settled(Settled.Config(rounds=rounds, deadline_s=1e3))
    workload = Consensus(nodes, targets)
    _, outcome = consensus(protocol, nodes, kind, seed, workload, **DIFFERENT_SPEEDS)
    assert sum(outcome.models.values()).tolist() == targets.sum(axis=0).tolist()


def test_adpsgd_brings_models_together():
    workload, outcome = consensus(Settled(Settled.Config(rounds=40)), 8, "ring", **DIFFERENT_SPEEDS)
    assert outcome.spread() < 0.05 * distance(workload.targets)


def test_adpsgd_waits_for_nobody():
    """'Fast workers do not wait for slow ones': each node's time is that of its own trainings and exchanges."""
    ended = {}

    class Timed(ADPSGD):
        async def run(self, ctx: Context):
            model = await super().run(ctx)
            ended[ctx.me] = ctx.now
            return model

    class OneSlow(Quadratic):
        def samples(self, node, steps):
            return 100 if node == 0 else 1

    devices, network = DevicesSection(seconds_per_sample=1.0), NetworkSection(latency_s=0.1, up_bps=1e30, down_bps=1e30)
    options = {"workload": OneSlow(6), "devices": devices, "network": network}
    run_protocol(Timed(Timed.Config(rounds=10)), 6, **options)
    assert ended[0] == pytest.approx(10 * 100.2)
    assert [ended[node] for node in range(1, 6)] == pytest.approx([10 * 1.2] * 5)
    assert run_protocol(DPSGD(DPSGD.Config(rounds=10)), 6, **options).time_s == pytest.approx(10 * 100 + 0.1)


# Kempe et al., FOCS 2003, and Assran et al., ICML 2019 (push-sum)


@pytest.mark.parametrize("options", [{}, DIFFERENT_SPEEDS], ids=["even", "different speeds"])
@pytest.mark.parametrize(("kind", "nodes", "rounds"), [("one-peer", 8, 3), ("one-peer", 16, 4), ("one-peer", 32, 5)])
def test_push_sum_over_one_peer_is_exact_after_log2_n_rounds(kind, nodes, rounds, options):
    workload, outcome = consensus(PushSum(PushSum.Config(rounds=rounds)), nodes, kind, **options)
    assert all(model == pytest.approx(workload.optimum, abs=1e-14) for model in outcome.models.values())


@pytest.mark.parametrize("options", [{}, DIFFERENT_SPEEDS], ids=["even", "different speeds"])
@pytest.mark.parametrize(("kind", "nodes"), [("exponential", 11), ("one-peer", 11), ("star", 7), ("erdos-renyi", 9)])
def test_push_sum_reaches_the_average_on_any_graph(kind, nodes, options):
    """Column-stochastic weights are enough: on a star or a random graph, uniform splitting is not doubly stochastic."""
    workload, outcome = consensus(PushSum(PushSum.Config(rounds=200)), nodes, kind, **options)
    assert all(model == pytest.approx(workload.optimum, abs=1e-6) for model in outcome.models.values())


class Weighs(Mod):
    """Node 0 claims a weight of its own for every share."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def outgoing(self, ctx, to, message):
        return dataclasses.replace(message, weight=self.weight) if ctx.me == 0 else message


@pytest.mark.parametrize("weight", [1e12, 11.01, 0.0, -0.5, -1e12, math.nan, math.inf, -math.inf])
def test_a_weight_that_no_honest_node_can_have_harms_nobody(weight):
    nodes, rounds = 11, 60
    workload = Quadratic(nodes, lr=1.0)
    options = {"workload": workload, "topology": TopologySection(kind="exponential"), "mods": [Weighs(weight)]}
    outcome = run_protocol(PushSum(PushSum.Config(rounds=rounds)), nodes, **options)
    honest = [float(outcome.models[node][0]) for node in range(1, nodes)]
    targets = [float(target[0]) for target in workload.targets]
    assert all(math.isfinite(model) for model in honest)
    assert min(targets) - 1e-6 <= min(honest) <= max(honest) <= max(targets) + 1e-6


def test_push_sum_converges_geometrically():
    spreads = [
        consensus(PushSum(PushSum.Config(rounds=rounds)), 11, "exponential")[1].spread() for rounds in (2, 6, 10)
    ]
    assert spreads[1] < 0.1 * spreads[0]
    assert spreads[2] < 0.1 * spreads[1]


# De Vos et al., NeurIPS 2023 (Epidemic Learning)


def test_the_oracle_contracts_faster_than_a_static_ring_of_the_same_degree():
    """'Changing topologies ... mix faster': 32 nodes, two neighbours each, over five seeds."""
    for seed in range(5):
        oracle = Epidemic(Epidemic.Config(rounds=8, variant="oracle", degree=2))
        fresh = consensus(oracle, 32, seed=seed)[1].spread()
        static = consensus(DPSGD(DPSGD.Config(rounds=8)), 32, "ring", seed)[1].spread()
        assert fresh < 0.5 * static, f"seed {seed}"


def test_the_oracle_preserves_the_mean_and_contracts_by_its_expected_square():
    """A fresh d-regular graph: E||X - mean||^2 falls by (n / (d + 1) - 1) / (n - 1) a round."""
    nodes, degree, rounds = 16, 4, 3
    ratios = []
    for seed in range(25):
        protocol = Epidemic(Epidemic.Config(rounds=rounds, variant="oracle", degree=degree))
        workload, outcome = consensus(protocol, nodes, seed=seed)
        assert outcome.mean() == pytest.approx(workload.optimum, abs=1e-12)
        ratios.append((distance(np.stack(list(outcome.models.values()))) / distance(workload.targets)) ** 2)
    expected = ((nodes / (degree + 1) - 1) / (nodes - 1)) ** rounds
    assert np.mean(ratios) == pytest.approx(expected, abs=4 * np.std(ratios) / 25**0.5)


class Sent(Observer):
    """Who sent to whom, in every round."""

    def __init__(self):
        super().__init__()
        self.edges = []

    def sent(self, ctx, to, message: Message):
        self.edges.append((message.round, ctx.me, to))


def test_in_el_local_each_node_sends_to_so_many_different_others_afresh_each_round():
    """'Each node sends its model to s randomly chosen nodes': s out of the others, independent of the topology."""
    nodes, degree, rounds = 12, 3, 25
    sent = Sent()
    run_protocol(Epidemic(Epidemic.Config(rounds=rounds, degree=degree)), nodes, mods=[sent])
    assert len(set(sent.edges)) == len(sent.edges) == nodes * degree * rounds
    assert all(sender != to for _, sender, to in sent.edges)
    received = np.bincount([to for _, _, to in sent.edges], minlength=nodes)
    assert received.sum() == nodes * degree * rounds
    # Binomial: each of 25 x 11 others' rounds picks a node with probability 3/11.
    assert np.abs(received - degree * rounds).max() < 4.5 * (rounds * degree * (1 - degree / 11)) ** 0.5
    assert len({frozenset(edge[1:] for edge in sent.edges if edge[0] == round) for round in range(rounds)}) == rounds


def test_an_epidemic_needs_others_enough():
    for degree in (4, 5):
        with pytest.raises(ConfigError, match=f"protocol.degree: {degree} receivers .* allowed: 1 to 3"):
            Epidemic.check(Epidemic.Config(degree=degree), 4)
    Epidemic.check(Epidemic.Config(degree=3), 4)
