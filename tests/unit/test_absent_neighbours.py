"""What the docstring of each protocol says that it does about absent neighbours: it does."""

import numpy as np
import pytest

from node import Observer, ProtocolError, Unreachable
from node.config import ChurnSection, DevicesSection, InjectedFaultSection, NetworkSection, TopologySection
from node.testing import Quadratic, run_protocol
from protocols import adpsgd, dpsgd, epidemic, fedavg, pushsum
from protocols.adpsgd import ADPSGD
from protocols.dpsgd import DPSGD
from protocols.epidemic import Epidemic
from protocols.fedavg import FedAvg
from protocols.pushsum import PushSum

NODES = 5
ROUNDS = 8
TRAIN_S = 1.0
DEADLINE_S = 0.5
DETECT_S = 2.0


def fault(kind, **options):
    return InjectedFaultSection(kind=kind, **options)


GONE = fault("crash", nodes=(4,), at_s=2.5)
AWAY = fault("restart", nodes=(4,), at_s=2.5, for_s=2.0)
CUT = fault("partition", groups=((4,),), at_s=2.5, for_s=2.0)


def run(protocol, *faults, workload=None, mods=(), topology="full"):
    return run_protocol(
        protocol,
        NODES,
        workload=workload,
        topology=TopologySection(kind=topology),
        devices=DevicesSection(seconds_per_sample=TRAIN_S),
        network=NetworkSection(latency_s=0.0, up_bps=1e12, down_bps=1e12),
        churn=ChurnSection(detect_s=DETECT_S),
        faults=faults,
        mods=mods,
    )


def rounds_of(outcome, node):
    return list(dict.fromkeys(row.round for row in outcome.recorder.rows() if row.node == node))


class Sent(Observer):
    """Who has heard whom, when."""

    def __init__(self):
        super().__init__()
        self.heard = []

    def received(self, ctx, sender, message):
        self.heard.append((ctx.now, ctx.me, sender))


MADE = {
    "dpsgd": lambda deadline_s: DPSGD(DPSGD.Config(rounds=ROUNDS, deadline_s=deadline_s)),
    "pushsum": lambda deadline_s: PushSum(PushSum.Config(rounds=ROUNDS, deadline_s=deadline_s)),
    "fedavg": lambda deadline_s: fed(deadline_s=deadline_s),
    "oracle": lambda deadline_s: Epidemic(
        Epidemic.Config(rounds=ROUNDS, degree=4, variant="oracle", deadline_s=deadline_s or None)
    ),
}


@pytest.mark.parametrize("module", [dpsgd, epidemic, adpsgd, pushsum, fedavg])
def test_each_says_what_it_does(module):
    assert "\nAbsent " in module.__doc__


@pytest.mark.parametrize("name", sorted(MADE))
def test_without_a_deadline_one_that_is_gone_ends_the_run(name):
    with pytest.raises(Unreachable, match="node 4"):
        run(MADE[name](0.0), GONE)


@pytest.mark.parametrize("name", ["dpsgd", "oracle", "pushsum"])
def test_with_a_deadline_rounds_close_there_until_the_others_know(name):
    outcome = run(MADE[name](DEADLINE_S), GONE)
    assert outcome.lost.keys() == {4}
    assert all(rounds_of(outcome, node) == list(range(ROUNDS)) for node in range(4))
    # Training ends at 3.0 with one too few, and again at 4.5; then the others know, and the rest is training alone.
    waited = outcome.time_s - ROUNDS * TRAIN_S
    assert DEADLINE_S <= waited <= 2 * DEADLINE_S + 1e-6


@pytest.mark.parametrize("name", ["dpsgd", "oracle", "pushsum"])
def test_one_that_comes_back_leaves_out_no_round_that_the_others_have_not_left_behind(name):
    outcome = run(MADE[name](DEADLINE_S), AWAY)
    assert outcome.lost == {}
    assert all(rounds_of(outcome, node) == list(range(ROUNDS)) for node in range(NODES))
    recorded = [(row.round, row.metric) for row in outcome.recorder.rows() if row.node == 4]
    assert len(recorded) == len(set(recorded))


def test_dpsgd_gives_an_absent_neighbours_weight_to_a_nodes_own_model():
    """With its own target as model, nothing but mixing happens; cut off, a node keeps what it has."""
    workload = Quadratic(NODES, lr=1.0)
    outcome = run(
        DPSGD(DPSGD.Config(rounds=1, deadline_s=DEADLINE_S)), fault("partition", groups=((4,),)), workload=workload
    )
    assert outcome.models[4] == pytest.approx(workload.targets[4])
    rest = workload.targets[:4]
    expected = [0.2 * rest.sum(axis=0) + 0.2 * rest[node] for node in range(4)]
    assert [outcome.models[node] for node in range(4)] == [pytest.approx(model) for model in expected]


def test_epidemic_averages_what_has_come_by_the_deadline():
    workload = Quadratic(NODES, lr=1.0)
    protocol = Epidemic(Epidemic.Config(rounds=1, degree=4, deadline_s=DEADLINE_S))
    outcome = run(protocol, fault("partition", groups=((4,),)), workload=workload)
    assert outcome.models[4] == pytest.approx(workload.targets[4]), "nothing but its own"
    mean = workload.targets[:4].mean(axis=0)
    assert [outcome.models[node] for node in range(4)] == [pytest.approx(mean)] * 4


def test_epidemic_draws_none_that_is_known_to_be_gone():
    sent = Sent()
    outcome = run(Epidemic(Epidemic.Config(rounds=ROUNDS, degree=3, deadline_s=DEADLINE_S)), GONE, mods=[sent])
    after = [sender for now_s, _, sender in sent.heard if now_s > 2.5 + DETECT_S + TRAIN_S + DEADLINE_S]
    rounds_after = len(after) / (4 * 3)
    assert rounds_after == int(rounds_after) >= 2, "all three messages of each of the four went to who is there"
    assert outcome.lost.keys() == {4}


def test_adpsgd_waits_for_no_more_than_its_deadline_and_draws_none_that_is_known_to_be_gone():
    sent = Sent()
    outcome = run(ADPSGD(ADPSGD.Config(rounds=30, deadline_s=DEADLINE_S)), GONE, mods=[sent])
    assert all(len(rounds_of(outcome, node)) == 30 for node in range(4))
    # Before the others know, each may draw it in two rounds; after that, never.
    assert 30 * TRAIN_S <= outcome.time_s <= 30 * TRAIN_S + 2 * DEADLINE_S + 1e-6
    assert not [now_s for now_s, _, sender in sent.heard if sender == 4 and now_s > 2.5]


def test_adpsgd_trains_on_alone_where_nobody_is_left():
    gone = [fault("crash", nodes=(node,), at_s=0.5) for node in range(1, NODES)]
    workload = Quadratic(NODES, lr=0.5)
    outcome = run(ADPSGD(ADPSGD.Config(rounds=30, deadline_s=DEADLINE_S)), *gone, workload=workload)
    assert outcome.models.keys() == {0}
    assert outcome.models[0] == pytest.approx(workload.targets[0], abs=1e-6)


@pytest.mark.parametrize("disturbance", [CUT, fault("loss", rate=0.6), GONE, fault("partition", groups=((4,),))])
def test_pushsum_does_not_drain_its_weight(disturbance):
    """Left out, absent shares would let weights fall by a fifth or more in each round, and steps grow likewise."""
    workload = Quadratic(NODES, lr=0.3)
    outcome = run(PushSum(PushSum.Config(rounds=60, deadline_s=DEADLINE_S)), disturbance, workload=workload)
    farthest = max(np.linalg.norm(target - workload.optimum) for target in workload.targets)
    assert max(np.linalg.norm(model - workload.optimum) for model in outcome.models.values()) < 1.01 * farthest


def test_pushsum_takes_its_own_share_once_more_so_that_its_estimate_stays():
    workload = Quadratic(NODES, lr=1.0)
    protocol = PushSum(PushSum.Config(rounds=1, deadline_s=DEADLINE_S))
    outcome = run(protocol, fault("partition", groups=((4,),)), workload=workload)
    assert outcome.models[4] == pytest.approx(workload.targets[4])


# A server


def fed(rounds=ROUNDS, **options):
    return FedAvg(FedAvg.Config(rounds=rounds, **options))


def test_fedavg_averages_what_has_come_when_who_is_missing_is_gone():
    outcome = run(fed(deadline_s=5.0), GONE)
    assert rounds_of(outcome, 0) == list(range(ROUNDS))
    clients = [row.value for row in outcome.recorder.rows() if row.node == 0 and row.metric == "clients"]
    assert clients == [4, 4, *[3] * (ROUNDS - 2)]
    assert outcome.time_s == pytest.approx(ROUNDS * TRAIN_S + (2.5 + DETECT_S - 3.0), abs=1e-3)


def test_fedavg_closes_a_round_at_its_deadline():
    outcome = run(fed(deadline_s=1.2), fault("partition", groups=((4,),), at_s=2.5, for_s=2.0))
    clients = [row.value for row in outcome.recorder.rows() if row.node == 0 and row.metric == "clients"]
    assert rounds_of(outcome, 0) == list(range(ROUNDS))
    assert clients.count(3) in (2, 3)
    assert clients[-1] == 4, "and it is asked again"


def test_fedavg_without_any_client_ends_the_run():
    with pytest.raises(ProtocolError, match="every client is gone"):
        run(fed(deadline_s=5.0), *[fault("crash", nodes=(node,), at_s=1.5) for node in range(1, NODES)])


def test_fedavg_asks_a_client_again_that_comes_back_in_its_round():
    outcome = run(fed(), fault("restart", nodes=(4,), at_s=2.5, for_s=0.1))
    clients = [row.value for row in outcome.recorder.rows() if row.node == 0 and row.metric == "clients"]
    assert clients == [4] * ROUNDS
    assert outcome.time_s == pytest.approx(ROUNDS * TRAIN_S + 0.6, abs=1e-3), "the round began anew for it at 2.6 s"


def test_fedavg_clients_wait_for_a_server_that_comes_back_and_not_for_ever():
    back = run(fed(), fault("restart", nodes=(0,), at_s=2.5, for_s=10.0))
    assert rounds_of(back, 0) == list(range(ROUNDS))
    with pytest.raises(Unreachable, match="has not come back in 20 s"):
        run(fed(server_wait_s=20.0), fault("crash", nodes=(0,), at_s=2.5))
