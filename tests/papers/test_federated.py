"""What papers claim about federated averaging and its relatives, on models whose every step has a closed form.

Node 0 is the server, and trains nothing.
"""

import numpy as np
import pytest

from node import ConfigError, Message, Observer
from node.config import DevicesSection
from node.testing import Quadratic, run_protocol
from protocols.fedavg import FedAvg, Update


class Sent(Observer):
    """Who sent to whom, in every round."""

    def __init__(self):
        super().__init__()
        self.edges = []

    def sent(self, ctx, to, message: Message):
        self.edges.append((message.round, ctx.me, to))


class Shards(Quadratic):
    """Nodes of different sizes; a step's learning rate may differ from 1."""

    def __init__(self, nodes, targets, sizes, **options):
        super().__init__(nodes, targets, **options)
        self.sizes = sizes

    def shard_size(self, node):
        return self.sizes[node]


# McMahan et al., AISTATS 2017 (FedAvg)


def test_fedavg_is_the_mean_weighted_by_samples():
    """w = sum n_k / n w_k; the server, node 0, trains nothing."""
    targets, sizes = [[99.0], [1.0], [10.0], [100.0]], [7, 1, 2, 5]
    workload = Shards(4, targets, sizes, lr=1.0)
    outcome = run_protocol(FedAvg(FedAvg.Config(rounds=1)), 4, workload=workload)
    expected = (1 * 1 + 2 * 10 + 5 * 100) / 8
    assert [float(model[0]) for model in outcome.models.values()] == pytest.approx([expected] * 4)


def test_one_round_of_everybody_with_one_step_is_a_centralized_step():
    """'FedSGD': with full participation and one local step, averaging models is averaging gradients."""
    lr = 0.3
    workload = Quadratic(6, lr=lr)
    outcome = run_protocol(FedAvg(FedAvg.Config(rounds=1)), 6, workload=workload)
    gradient = 0 - workload.targets[1:].mean(axis=0)
    assert outcome.models[0] == pytest.approx(-lr * gradient, abs=1e-14)


def test_fedavg_samples_different_clients_in_different_rounds():
    sent = Sent()
    run_protocol(FedAvg(FedAvg.Config(rounds=30, sample=3)), 11, mods=[sent])
    chosen = [sorted({to for round, sender, to in sent.edges if (round, sender) == (r, 0)}) for r in range(30)]
    assert all(len(clients) == 3 for clients in chosen)
    assert {client for clients in chosen for client in clients} == set(range(1, 11))
    assert len({tuple(clients) for clients in chosen}) > 20


@pytest.mark.parametrize(
    ("nodes", "config", "message"),
    [
        (1, {}, "nodes: fedavg needs a server and at least one client"),
        (4, {"sample": 4}, "protocol.sample: 4 of 3 clients; allowed: 0 to 3"),
    ],
)
def test_fedavg_needs_clients_enough(nodes, config, message):
    with pytest.raises(ConfigError, match=message):
        FedAvg.check(FedAvg.Config(**config), nodes)
    FedAvg.check(FedAvg.Config(sample=3), 4)


# Li et al., MLSys 2020 (FedProx)


def test_fedprox_pulls_towards_the_global_model():
    """'Restricting the local updates to be closer to the global model': the more, the larger mu is."""

    class ManySteps(Quadratic):
        def steps(self, node):
            return 50

    workload = ManySteps(3, [[0.0], [6.0], [6.0]], lr=0.2)
    reached = []
    for proximal in (0.0, 0.5, 1.0, 3.0):
        outcome = run_protocol(FedAvg(FedAvg.Config(rounds=1, proximal=proximal)), 3, workload=workload)
        reached.append(float(outcome.models[0][0]))
    # The minimum of (x - 6)^2 / 2 + mu (x - 0)^2 / 2 is 6 / (1 + mu).
    assert reached == pytest.approx([6.0, 4.0, 3.0, 1.5], abs=1e-3)


# Reddi et al., ICLR 2021 (FedAdam)


def test_fedadam_steps_by_the_formula():
    """Algorithm 2: m, v from Delta; x + eta m / (sqrt(v) + tau); v starts from tau^2, and nothing is bias-corrected."""
    lr, beta1, beta2, tau, local = 0.05, 0.8, 0.95, 0.01, 0.4
    workload = Quadratic(5, lr=local)
    config = FedAvg.Config(rounds=3, server="adam", server_lr=lr, beta1=beta1, beta2=beta2, tau=tau)
    outcome = run_protocol(FedAvg(config), 5, workload=workload)
    x, m, v = np.zeros(4), np.zeros(4), np.full(4, tau**2)
    for _ in range(3):
        delta = local * (workload.targets[1:].mean(axis=0) - x)
        m = beta1 * m + (1 - beta1) * delta
        v = beta2 * v + (1 - beta2) * delta**2
        x = x + lr * m / (np.sqrt(v) + tau)
    assert all(model == pytest.approx(x, abs=1e-14) for model in outcome.models.values())


def test_fedadam_without_memory_steps_like_a_sign():
    """beta1 = beta2 = 0 and a tiny tau leave Delta / |Delta|: every parameter moves by the server's learning rate."""
    config = FedAvg.Config(rounds=1, server="adam", server_lr=0.1, beta1=0, beta2=0, tau=1e-12)
    outcome = run_protocol(FedAvg(config), 5, workload=(workload := Quadratic(5)))
    assert outcome.models[0] == pytest.approx(0.1 * np.sign(workload.targets[1:].mean(axis=0)), abs=1e-6)


# Bonawitz et al., MLSys 2019 (over-selection)


class Heard(Observer):
    """What the server received."""

    def __init__(self):
        super().__init__()
        self.updates = []

    def received(self, ctx, sender, message):
        if isinstance(message, Update):
            self.updates.append((message.round, sender, ctx.now))


def test_over_selection_takes_the_first_to_arrive():
    """'130% of the target number' are asked; the fastest make the round, and stragglers are ignored."""

    class Speeds(Quadratic):
        """The higher its number, the slower a node."""

        def samples(self, node, steps):
            return node

    nodes, sample = 14, 10
    workload = Speeds(nodes, [[2.0**node] for node in range(nodes)], lr=1.0)
    heard = Heard()
    outcome = run_protocol(
        FedAvg(FedAvg.Config(rounds=1, sample=sample, over_select=0.3)),
        nodes,
        workload=workload,
        devices=DevicesSection(seconds_per_sample=1.0),
        mods=[heard],
    )
    assert [sender for _, sender, _ in heard.updates] == list(range(1, len(heard.updates) + 1))
    assert len(heard.updates) >= sample
    assert float(outcome.models[0][0]) == pytest.approx(sum(2.0**node for node in range(1, 11)) / 10)
    assert {row.value for row in outcome.recorder.rows() if row.metric == "clients"} == {10}


@pytest.mark.parametrize(
    ("sample", "over_select", "asked"),
    [(10, 0.1, 11), (10, 0.3, 13), (3, 0.5, 5), (7, 0.0, 7), (0, 0.5, 20), (100, 0.07, 107)],
)
def test_so_many_clients_are_asked(sample, over_select, asked):
    """A further share of the sample, rounded up; 100 x 0.07 is 7, whatever floating point makes of it."""
    sent, nodes = Sent(), 121 if sample == 100 else 21
    run_protocol(FedAvg(FedAvg.Config(rounds=1, sample=sample, over_select=over_select)), nodes, mods=[sent])
    assert len([edge for edge in sent.edges if edge[:2] == (0, 0)]) == asked


def test_a_straggler_joins_the_newest_round():
    """A client that is still busy trains the newest assignment next, not every one that it has missed."""

    class OneSlow(Quadratic):
        def samples(self, node, steps):
            return 35 if node == 3 else 10

    heard = Heard()
    outcome = run_protocol(
        FedAvg(FedAvg.Config(rounds=8, sample=2, over_select=0.5)),
        4,
        workload=OneSlow(4),
        devices=DevicesSection(seconds_per_sample=1.0),
        mods=[heard],
    )
    late = [(round, int(time_s) // 10) for round, sender, time_s in heard.updates if sender == 3]
    assert late == [(0, 3), (3, 7)]
    assert 80 < outcome.time_s < 120
