"""What papers claim of federated optimizers, through a cohort's rounds: golden values, and leaders that change."""

import numpy as np
import pytest

from node import ConfigError, Observer
from node.config import ChurnSection, DevicesSection, FaultSection, NetworkSection
from node.testing import Quadratic, check_protocol, run_protocol
from protocols.cohort_round import Assignment, Update
from protocols.cpfl import CPFL
from protocols.fedavg import FedAvg
from protocols.versions import Version

# A training takes 1 s, a message 0.02 s.
PLACE = {
    "devices": DevicesSection(seconds_per_sample=1.0),
    "network": NetworkSection(latency_s=0.02, up_bps=1e30, down_bps=1e30),
}
SERVERS = ["average", "momentum", "adagrad", "yogi", "adam"]


class Curved(Quadratic):
    """Two nodes, one parameter: ``a_i (y - b_i)^2 / 2`` with a = (1, 3) and b = (0, 4); the optimum is 3."""

    rates = (1.0, 3.0)

    def __init__(self):
        super().__init__(2, [[0.0], [4.0]], lr=0.1)

    def steps(self, node):
        return 10

    def _descend(self, task, steps, anchor, moving=1.0, correction=0.0):
        y, node = task.inputs[0], task.key.node
        for _ in range(steps):
            pull = self.rates[node] * (y - self.targets[node]) + task.static["proximal"] * (y - anchor) + correction
            y = y - task.static["lr"] * pull * moving
        return y


class Seen(Observer):
    """All messages, as they come: time, sender, receiver, message."""

    def __init__(self):
        super().__init__()
        self.messages = []

    def received(self, ctx, sender, message):
        self.messages.append((ctx.now, sender, ctx.me, message))

    def of(self, kind):
        return [entry for entry in self.messages if isinstance(entry[3], kind)]


def trained(nodes=5, rounds=6, events=(), workload=None, mods=(), protocol=CPFL, **config):
    """One cohort after some rounds, with faults (time_s, node, what)."""
    schedule = tuple(FaultSection(time_s=time_s, node=node, what=what) for time_s, node, what in events)
    stopping = {"rule": "budget", "most_rounds": rounds}
    settings = protocol.Config(**{"cohorts": 1, "stopping": stopping, "checkpoint": "last", **config})
    workload = workload or Quadratic(nodes, noise=0.1)
    churn = ChurnSection(schedule=schedule, detect_s=5.0)
    return run_protocol(protocol(settings), nodes, workload=workload, churn=churn, mods=mods, **PLACE)


def model(outcome):
    """The one that everybody has ended with."""
    models = {tuple(model.tolist()) for model in outcome.models.values()}
    assert len(models) == 1
    return models.pop()


def curved(rounds, **config):
    return model(trained(2, rounds, workload=Curved(), weights="uniform", leader="fixed", **config))[0]


# Golden values


@pytest.mark.parametrize(
    ("config", "golden"),
    [
        ({}, [1.943505, 2.309784, 2.378814]),
        ({"proximal": 1.0}, [1.490930, 2.093431, 2.336909]),
        ({"correction": "scaffold"}, [1.943505]),
    ],
    ids=["FedAvg", "FedProx", "SCAFFOLD"],
)
def test_the_first_rounds_are_golden(config, golden):
    found = [curved(rounds, **config) for rounds in range(1, len(golden) + 1)]
    assert found == pytest.approx(golden, abs=1e-6)


def test_averaging_drifts_to_another_place_and_control_variates_find_the_optimum():
    assert curved(60) == pytest.approx(2.394845, abs=1e-6)
    assert 2.394845 < curved(60, proximal=1.0) < 3
    assert curved(200, correction="scaffold") == pytest.approx(3.0, abs=1e-6)


class Walk(Quadratic):
    """Nodes whose models' mean goes a given way in each round, wherever it is: all targets are alike."""

    changes = (np.array([0.1, -0.2, 0.0]), np.array([0.05, 0.1, -0.3]))

    def __init__(self):
        super().__init__(3, np.zeros((3, 3)))

    def lr(self, call):
        return float(call)

    def _descend(self, task, steps, anchor, moving=1.0, correction=0.0):
        return task.inputs[0] + self.changes[int(task.static["lr"])]


def in_formulas(rule, lr=0.1, beta1=0.9, beta2=0.99, tau=0.001):
    x, m, v = np.zeros(3), np.zeros(3), np.full(3, tau**2)
    for change in Walk.changes:
        square = (x + change - x) ** 2
        if rule == "momentum":
            m = beta1 * m + change
            x = x + lr * m
            continue
        m = beta1 * m + (1 - beta1) * change
        if rule == "adagrad":
            v = v + square
        elif rule == "yogi":
            v = v - (1 - beta2) * square * np.sign(v - square)
        else:
            v = beta2 * v + (1 - beta2) * square
        x = x + lr * m / (np.sqrt(v) + tau)
    return x


@pytest.mark.parametrize("server", SERVERS[1:])
def test_leaders_step_as_the_formulas_say(server):
    """'FedAdagrad, FedYogi, FedAdam' without bias correction, v from tau^2: changes (.1, -.2, 0), (.05, .1, -.3)."""
    found = model(trained(3, 2, workload=Walk(), server=server, tau=0.001, leader="fixed"))
    assert found == pytest.approx(in_formulas(server), rel=1e-9)


def test_fedadagrad_is_golden():
    """From (1, -2, .5) to (1.022311, -2.013512, .490033); here the start is 0, and steps do not depend on it."""
    found = model(trained(3, 2, workload=Walk(), server="adagrad", tau=0.001, leader="fixed"))
    assert found == pytest.approx([0.022311, -0.013512, -0.009967], abs=1e-6)


@pytest.mark.parametrize("server", SERVERS)
def test_one_cohort_steps_as_a_server_does_bit_for_bit(server):
    workload, options = Quadratic(6, noise=0.1), {"server": server, "server_lr": 0.3, "beta1": 0.8}
    cpfl = trained(6, 5, workload=workload, leader="fixed", leader_trains=False, **options)
    fedavg = run_protocol(FedAvg(FedAvg.Config(rounds=5, **options)), 6, workload=workload, **PLACE)
    assert all(cpfl.models[node].tobytes() == fedavg.models[node].tobytes() for node in range(6))


# Unequal numbers of steps


class Unequal(Quadratic):
    """Node i takes 1 + 3 i steps a round."""

    def steps(self, node):
        return 1 + 3 * node


def test_fednova_is_the_formula():
    """D = tau_eff sum p_i (y_i - x) / tau_i with tau_eff = sum p_i tau_i."""
    workload = Unequal(3, [[0.0], [1.0], [10.0]], lr=0.2)
    x = 0.0
    for _ in range(2):
        change = [(1 - 0.8 ** (1 + 3 * i)) * (target - x) for i, (target,) in enumerate(workload.targets)]
        x += (12 / 3) * sum(change[i] / (1 + 3 * i) for i in range(3)) / 3
    assert model(trained(3, 2, workload=workload, weights="nova", leader="fixed")) == pytest.approx((x,))


def test_fednova_does_not_pull_to_those_that_take_more_steps():
    """'FedNova eliminates objective inconsistency': plain averages end up nearer to the busiest node."""

    class Bowls(Unequal):
        """Small steps."""

        def lr(self, call):
            return 0.01

    workload = Bowls(2, [[0.0], [1.0]])
    plain = model(trained(2, 400, workload=workload, leader="fixed"))[0]
    nova = model(trained(2, 400, workload=workload, leader="fixed", weights="nova"))[0]
    assert plain > 0.75
    assert nova == pytest.approx(0.5, abs=0.02)


# Control variates


def test_scaffold_sends_twice_the_bytes():
    seen = Seen()
    trained(mods=[seen], correction="scaffold", leader="fixed")
    assert all(message.change is not None for *_, message in seen.of(Update))
    assert {len(message.tensors) for *_, message in seen.of(Version)} == {2}


def test_plain_updates_carry_nothing_else():
    seen = Seen()
    trained(mods=[seen])
    assert all(message.change is None and message.utility == 0 for *_, message in seen.of(Update))
    assert {(len(message.tensors), message.sampler) for *_, message in seen.of(Version)} == {(1, b"")}


@pytest.mark.parametrize("weights", ["samples", "uniform"])
def test_scaffold_finds_the_optimum_with_some_members_a_round(weights):
    """The common control is the mean of all members' controls, however many take part."""

    class Sizes(Quadratic):
        def steps(self, node):
            return 4

        def shard_size(self, node):
            return 1 + node

    class Curves(Sizes):
        def _descend(self, task, steps, anchor, moving=1.0, correction=0.0):
            y, node = task.inputs[0], task.key.node
            for _ in range(steps):
                y = y - 0.1 * ((1 + node) * (y - self.targets[node]) + correction)
            return y

    workload = Curves(4, [[0.0], [1.0], [3.0], [9.0]])
    shares = np.arange(1, 5) if weights == "samples" else np.ones(4)
    curvature = np.arange(1, 5) * shares
    optimum = float(curvature @ workload.targets[:, 0] / curvature.sum())
    options = {"workload": workload, "weights": weights, "sample": 2, "leader": "fixed"}
    assert model(trained(4, 150, correction="scaffold", **options))[0] == pytest.approx(optimum, abs=1e-3)
    assert abs(model(trained(4, 150, **options))[0] - optimum) > 0.05


# Leaders that change


def led(options, events=()):
    seen = Seen()
    outcome = trained(5, 6, events, mods=[seen], **options)
    return outcome, seen


SERVED = [{"server": server} for server in SERVERS]


@pytest.mark.parametrize("options", [*SERVED, {"correction": "scaffold"}, {"correction": "scaffold", "server": "adam"}])
def test_a_new_leader_has_all_that_the_last_one_had(options):
    """A leader that only pauses, after a commit, is replaced; with everybody back the models are as undisturbed."""
    undisturbed, seen = led(options)
    leader = seen.of(Assignment)[0][1]
    third = next(time_s for time_s, *_, message in seen.of(Assignment) if message.round == 3)
    disturbed, again = led(options, [(third - 0.005, leader, "crash"), (third + 1.0, leader, "return")])
    leaders = {sender for _, sender, _, _ in again.of(Assignment)}
    assert len(leaders) == 2, leaders
    assert model(disturbed) == model(undisturbed)


@pytest.mark.parametrize("options", [{"server": "yogi"}, {"correction": "scaffold"}])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_members_may_crash_and_go_on(options, share):
    undisturbed, seen = led(options)
    times = [time_s for time_s, *_ in seen.of(Assignment)]
    leader = seen.of(Assignment)[0][1]
    member = (leader + 1) % 5
    time_s = times[int(share * (len(times) - 1))] + 0.3
    disturbed, _ = led(options, [(time_s, member, "crash"), (time_s + 0.2, member, "return")])
    assert model(disturbed) == model(undisturbed)


def test_what_goes_with_a_model_is_checked_like_the_model(capsys):
    class Lying(CPFL):
        """Node 0 hands out other moments than it has committed."""

        def wanted(self, ctx, sender, message):
            answer = super().wanted(ctx, sender, message)
            if ctx.me == 0 and isinstance(answer, Version) and answer.state:
                state = {name: ctx.mix([tensor], [2.0]) for name, tensor in answer.state.items()}
                return Version(digest=answer.digest, model=answer.model, losses=answer.losses, state=state)
            return answer

    options = {"leader": "fixed", "transfer_s": 5.0, "deadline_s": 10.0, "server": "adam"}
    outcome = trained(3, 3, protocol=Lying, **options)
    assert "a model that is not the one it is said to be" in capsys.readouterr().out
    members = [row.value for row in outcome.recorder.rows() if row.metric == "members"]
    assert members == [3, 1, 1]


@pytest.mark.parametrize("options", [*SERVED[1:], {"correction": "scaffold"}, {"weights": "nova"}])
def test_a_run_follows_from_its_seed(options):
    stopping = {"rule": "budget", "most_rounds": 2}
    check_protocol(CPFL(CPFL.Config(cohorts=2, stopping=stopping, **options)), nodes=6)


# Bad input


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"correction": "scaffold", "weights": "nova"}, "protocol.weights: 'nova' does not go with"),
        ({"sampling": "oort"}, "protocol.sample: 0 asks all; with protocol.sampling = 'oort' write 1 or more"),
        ({"branching": 1}, "protocol.branching: 1 is no sum; allowed: 0, or 2 and more"),
        ({"branching": 4, "sampling": "oort", "sample": 3}, "protocol.branching: the leader hears sums, not members"),
        ({"branching": 4, "over_select": 0.5}, "protocol.branching: the leader hears sums, not members"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(config, message):
    with pytest.raises(ConfigError, match=message):
        CPFL.check(CPFL.Config(**config), 8)
    CPFL.check(CPFL.Config(correction="scaffold", branching=4), 8)
