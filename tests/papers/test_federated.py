"""What papers claim about federated averaging and its relatives, on models whose every step has a closed form.

Node 0 is the server, and trains nothing.
"""

import dataclasses

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from node import ConfigError, Message, Mod, Observer, Unreachable, op
from node.config import ChurnSection, DevicesSection, FaultSection, NetworkSection
from node.tape import EventKind, events_of
from node.testing import Quadratic, run_protocol
from protocols.fedavg import Assignment, CheckIn, FedAvg, Update


class Sent(Observer):
    """Who sent models to whom, in every round."""

    def __init__(self):
        super().__init__()
        self.edges = []

    def sent(self, ctx, to, message: Message):
        if not isinstance(message, CheckIn):
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


class Claims(Mod):
    """Node 1 claims to have trained on so many samples."""

    def __init__(self, samples):
        super().__init__()
        self.samples = samples

    def outgoing(self, ctx, to, message):
        lies = ctx.me == 1 and isinstance(message, Update)
        return dataclasses.replace(message, samples=self.samples) if lies else message


CLAIMS = [[0.0], [1000.0], [1.0], [2.0], [3.0], [4.0]]


def claimed(samples, most_over_median):
    """The global model of four honest clients with ten samples each, and one that claims some number."""
    workload = Shards(6, CLAIMS, [10] * 6, lr=1.0)
    protocol = FedAvg(FedAvg.Config(rounds=1, most_over_median=most_over_median))
    return float(run_protocol(protocol, 6, workload=workload, mods=[Claims(samples)]).models[0][0])


@pytest.mark.parametrize("samples", [10**12, 2**63 - 1])
def test_a_claim_of_samples_counts_as_far_as_the_median_goes(samples):
    assert claimed(samples, 0.0) == pytest.approx(1000, rel=1e-6), "as told: whoever asks for no limit trusts clients"
    for most in (1.0, 3.0, 10.0):
        assert claimed(samples, most) == pytest.approx((1000 * most + 10) / (most + 4))
    assert claimed(10, 1.0) == claimed(10, 0.0) == pytest.approx(202)
    assert claimed(-samples, 3.0) == claimed(0, 0.0) == pytest.approx(2.5), "no samples, no update"


@pytest.mark.parametrize("most_over_median", [0.0, 5.0, 1e9])
def test_no_limit_on_claims_and_one_that_nobody_reaches_give_the_same_bits(most_over_median):
    workload = Shards(4, [[0.0], [0.1], [0.7], [1.3]], [7, 3, 11, 53], lr=0.3)
    limited = run_protocol(FedAvg(FedAvg.Config(rounds=4, most_over_median=most_over_median)), 4, workload=workload)
    plain = run_protocol(FedAvg(FedAvg.Config(rounds=4)), 4, workload=workload)
    assert [model.tobytes() for model in limited.models.values()] == [m.tobytes() for m in plain.models.values()]


def test_the_median_is_the_lower_one_so_that_one_of_two_cannot_set_it():
    workload = Shards(3, [[0.0], [1000.0], [1.0]], [10] * 3, lr=1.0)
    protocol = FedAvg(FedAvg.Config(rounds=1, most_over_median=2.0))
    outcome = run_protocol(protocol, 3, workload=workload, mods=[Claims(10**12)])
    assert float(outcome.models[0][0]) == pytest.approx((2 * 1000 + 1) / 3)


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


# Nodes that come late, go and return. A training takes 1 s, a message 0.25 s: an undisturbed round takes 1.5 s.

PLACE = {
    "devices": DevicesSection(seconds_per_sample=1.0),
    "network": NetworkSection(latency_s=0.25, up_bps=1e30, down_bps=1e30),
}


class Schedule(Quadratic):
    """The learning rate falls with each training, and every training draws its own noise, as batches are drawn."""

    def __init__(self, nodes):
        super().__init__(nodes, noise=0.1)
        self.calls = []

    def lr(self, call):
        self.calls.append(call)
        return 0.5 / (1 + call)


def disturbed(config, *events, nodes=4, detect_s=20.0, workload=None, protocol=FedAvg, mods=()):
    """Run with a schedule of (time_s, node, what)."""
    schedule = tuple(FaultSection(time_s=time_s, node=node, what=what) for time_s, node, what in events)
    return run_protocol(
        protocol(protocol.Config(**config)),
        nodes,
        workload=workload or Quadratic(nodes),
        churn=ChurnSection(schedule=schedule, detect_s=detect_s),
        mods=mods,
        **PLACE,
    )


def results(outcome):
    return [model.tolist() for model in outcome.models.values()]


def test_a_run_costs_its_models_and_a_check_in_of_each_client():
    sent = Sent()
    outcome = disturbed({"rounds": 5}, mods=[sent])
    assert len(sent.edges) == 5 * 2 * 3 + 3
    assert outcome.messages == len(sent.edges) + 3
    assert outcome.time_s == 5 * 1.5 + 0.25, "nobody waits for it"


def test_a_client_that_lost_an_assignment_goes_on_as_if_nothing_had_happened():
    """Learning rate and batches too: it is told of round 1 at 1.5 s, and is away until 1.65 s."""
    whole, cut = Schedule(2), Schedule(2)
    undisturbed = disturbed({"rounds": 5}, nodes=2, workload=whole)
    outcome = disturbed({"rounds": 5}, (1.6, 1, "crash"), (1.65, 1, "return"), nodes=2, workload=cut)
    assert results(outcome) == results(undisturbed)
    assert cut.calls == whole.calls == [0, 1, 2, 3, 4]


def test_learning_rate_and_batches_go_on_after_several_crashes():
    """A training that is cut off, and one whose update is lost, are done again: only the latter counts twice."""
    events = [(1.6, "crash"), (1.65, "return"), (4.0, "crash"), (4.1, "return"), (5.7, "crash"), (5.75, "return")]
    workload = Schedule(2)
    outcome = disturbed({"rounds": 5}, *[(time_s, 1, what) for time_s, what in events], nodes=2, workload=workload)
    assert workload.calls == [0, 1, 2, 2, 3, 4, 5]
    assert outcome.lost == {}


def test_a_client_that_first_comes_after_the_last_round_gets_the_result():
    outcome = disturbed({"rounds": 3}, (1000.0, 3, "return"))
    assert results(outcome) == [results(outcome)[0]] * 4
    assert outcome.time_s == 1000.5
    assert [event.node for event in events_of(outcome.events) if event.kind is EventKind.TRAINED] == [1, 2] * 3


def test_a_client_that_first_comes_amid_a_round_takes_part_from_the_next_on():
    sent = Sent()
    disturbed({"rounds": 4}, (2.0, 3, "return"), mods=[sent])
    assert [round for round, sender, _ in sent.edges if sender == 3] == [2, 3]


def test_a_client_that_is_back_before_it_is_missed_trains_its_assignment_again():
    sent = Sent()
    outcome = disturbed({"rounds": 3}, (2.0, 3, "crash"), (2.1, 3, "return"), mods=[sent])
    assert [(round, to) for round, sender, to in sent.edges if sender == 0 and to == 3] == [
        (r, 3) for r in (0, 1, 1, 2, 3)
    ]
    assert results(outcome) == results(disturbed({"rounds": 3}))


def test_only_who_was_asked_is_asked_again():
    """All three clients crash in round 1, which is one client's alone."""
    sent = Sent()
    events = [(time_s, node, what) for node in (1, 2, 3) for time_s, what in ((2.0, "crash"), (2.1, "return"))]
    outcome = disturbed({"rounds": 6, "sample": 1}, *events, mods=[sent])
    asked = [(round, to) for round, sender, to in sent.edges if sender == 0 and round < 6]
    assert [round for round, _ in asked] == [0, 1, 1, 2, 3, 4, 5]
    assert asked[1] == asked[2]
    assert sorted(outcome.models) == [0, 1, 2, 3]


def test_a_client_that_is_away_when_the_result_goes_out_asks_for_it():
    """The result is sent at 4.5 s."""
    outcome = disturbed({"rounds": 3}, (4.6, 3, "crash"), (1000.0, 3, "return"))
    assert results(outcome) == results(disturbed({"rounds": 3}))
    assert outcome.time_s == 1000.5


@pytest.mark.parametrize("detect_s", [0.0, 5.0, 100.0])
def test_clients_wait_for_a_server_that_comes_back(detect_s):
    outcome = disturbed({"rounds": 3}, (1.0, 0, "crash"), (10.0, 0, "return"), detect_s=detect_s)
    assert results(outcome) == results(disturbed({"rounds": 3}))
    assert outcome.time_s == 14.75, "it begins again at once, with its first round"


def test_a_restored_server_goes_on_with_the_round_that_it_was_in():
    """As in the example of the README: away from 30 s to 60 s."""
    sent, config = Sent(), {"rounds": 40, "server": "adam"}
    outcome = disturbed(config, (30.2, 0, "crash"), (60.0, 0, "return"), detect_s=5.0, mods=[sent])
    times = [round for round, sender, to in sent.edges if (sender, to) == (0, 1)]
    assert times == sorted([*range(41), 20])
    assert results(outcome) == results(disturbed(config))
    assert outcome.time_s == 60 + 20 * 1.5 + 0.25


def test_a_client_that_is_not_sampled_waits_for_the_server_however_long():
    """Its patience is for a server that is gone, not for one that has come back and asks others."""
    config = {"rounds": 60, "sample": 1, "server_wait_s": 12.0}
    outcome = disturbed(config, (1.0, 0, "crash"), (10.0, 0, "return"), detect_s=1.0, nodes=9)
    assert results(outcome) == [results(outcome)[0]] * 9
    assert outcome.time_s > 90


@pytest.mark.parametrize("wait_s", [0.0, 40.0])
def test_a_server_that_stays_away_is_an_error_that_says_so(wait_s):
    with pytest.raises(
        Unreachable, match=rf"node 1: the server, node 0, is gone, .* {wait_s:g} s \(protocol.server_wait_s\)"
    ):
        disturbed({"rounds": 3, "server_wait_s": wait_s}, (1.0, 0, "crash"), (50.0, 0, "return"), detect_s=5.0)


def test_nobody_but_the_server_assigns():
    class Forging(FedAvg):
        async def learn(self, ctx):
            if ctx.me == 1:
                forged = Assignment(round=0, model=ctx.apply(doubled, ctx.initial_model()), last=True)
                await ctx.send((2, 3), forged)
            return await super().learn(ctx)

    outcome = disturbed({"rounds": 3}, protocol=Forging)
    assert results(outcome) == results(disturbed({"rounds": 3}))


@op
def doubled(model):
    return model * 2 + 1


VARIANTS = [
    {},
    {"sample": 2},
    {"server": "adam"},
    {"sample": 2, "over_select": 0.5},
    {"deadline_s": 4.0},
    {"sample": 2, "over_select": 0.5, "deadline_s": 2.0, "server": "adam"},
]


@settings(max_examples=120)
@given(
    config=st.sampled_from(VARIANTS),
    node=st.integers(0, 3),
    crash_s=st.floats(0.01, 8),
    away_s=st.floats(0.01, 15),
    again_s=st.floats(0.01, 3),
    detect_s=st.sampled_from([0.0, 0.5, 40.0]),
)
@example(config={}, node=3, crash_s=2.0, away_s=0.1, again_s=3.0, detect_s=40.0)
@example(config={}, node=0, crash_s=1.0, away_s=9.0, again_s=3.0, detect_s=0.5)
def test_any_node_may_crash_twice_at_any_moment(config, node, crash_s, away_s, again_s, detect_s):
    """All end with the result; only a client that is missed, where every client is needed, ends the run."""
    back_s = crash_s + away_s
    events = [(crash_s, node, "crash"), (back_s, node, "return")]
    events += [(back_s + again_s, node, "crash"), (back_s + again_s + 1.0, node, "return")]
    if node and not config.keys() & {"over_select", "deadline_s"}:
        detect_s = 40.0
    outcome = disturbed({"rounds": 4, **config}, *events, detect_s=detect_s)
    assert results(outcome) == [results(outcome)[0]] * 4
