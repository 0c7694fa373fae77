"""What is claimed of cohort-parallel federated learning, on models whose every step has a closed form."""

import networkx
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from node import ConfigError, Observer
from node.config import ChurnSection, DevicesSection, FaultSection, NetworkSection
from node.testing import Quadratic, check_protocol, run_protocol
from protocols.cohort_round import Answer, Assignment, Update, mean_loss
from protocols.cpfl import CPFL
from protocols.fedavg import FedAvg
from protocols.leadership import Control
from protocols.unification import Result, Stopped
from protocols.versions import Version

# A training takes 1 s, a message 0.02 s.
PLACE = {
    "devices": DevicesSection(seconds_per_sample=1.0),
    "network": NetworkSection(latency_s=0.02, up_bps=1e30, down_bps=1e30),
}
ROUNDS = {"stopping": {"rule": "budget", "most_rounds": 6}, "checkpoint": "last"}
SERVED = {"cohorts": 1, "leader": "fixed", "leader_trains": False}


class Shards(Quadratic):
    """Nodes of different sizes, with noise, as batches have."""

    def __init__(self, nodes, **options):
        super().__init__(nodes, noise=0.1, **options)

    def shard_size(self, node):
        return 3 + node


class Seen(Observer):
    """All messages, as they come: time, sender, receiver, message."""

    def __init__(self):
        super().__init__()
        self.messages = []

    def received(self, ctx, sender, message):
        self.messages.append((ctx.now, sender, ctx.me, message))

    def of(self, kind):
        return [entry for entry in self.messages if isinstance(entry[3], kind)]


def trained(events=(), nodes=9, detect_s=5.0, workload=None, mods=(), place=PLACE, **config):
    """A run with faults (time_s, node, what)."""
    schedule = tuple(FaultSection(time_s=time_s, node=node, what=what) for time_s, node, what in events)
    return run_protocol(
        CPFL(CPFL.Config(**{"cohorts": 3, **ROUNDS, **config})),
        nodes,
        workload=workload or Shards(nodes),
        churn=ChurnSection(schedule=schedule, detect_s=detect_s),
        mods=mods,
        **place,
    )


def result(outcome):
    """The one model that everybody has ended with."""
    models = {tuple(model.tolist()) for model in outcome.models.values()}
    assert len(models) == 1
    return models.pop()


# From federated averaging to one-shot learning


@pytest.mark.parametrize("weights", ["samples", "uniform"])
def test_one_cohort_is_federated_averaging_bit_for_bit(weights):
    """'K = 1 corresponds to standard FL': with a leader that serves, and all members in every round."""
    workload = Shards(9) if weights == "samples" else Quadratic(9, noise=0.1)
    cpfl = trained(workload=workload, weights=weights, **SERVED)
    fedavg = run_protocol(FedAvg(FedAvg.Config(rounds=6)), 9, workload=workload, **PLACE)
    assert all(cpfl.models[node].tobytes() == fedavg.models[node].tobytes() for node in range(9))


def test_the_server_is_not_needed_for_that():
    """Whoever leads, the same members train the same: an elected cohort's model is a fixed one's."""
    assert result(trained(leader="elected")) == result(trained(leader="fixed"))


def test_as_many_cohorts_as_nodes_train_alone():
    """'K = N corresponds to one-shot FL': no cohort hears another one until its model is done."""
    seen, workload = Seen(), Quadratic(4, lr=1.0)
    outcome = trained(nodes=4, cohorts=4, workload=workload, mods=[seen])
    assert result(outcome) == pytest.approx(workload.optimum, abs=1e-12)
    assert not [entry for entry in seen.of((Assignment, Update, Control)) if entry[1] != entry[2]]


def test_cohorts_do_not_hear_each_other_while_they_train():
    seen = Seen()
    trained(mods=[seen], forming="rendezvous")
    cohorts = networkx.Graph((sender, to) for _, sender, to, _ in seen.of((Assignment, Update, Control)))
    assert sorted(map(len, networkx.connected_components(cohorts))) == [3, 3, 3]


def test_a_cohorts_models_are_averaged_by_its_members_samples():
    """One round that jumps to the targets: the result is the mean of all targets, weighted by samples."""
    workload = Shards(9, lr=1.0)
    workload._noise = 0.0
    outcome = trained(workload=workload)
    sizes = np.arange(3, 12)
    assert result(outcome) == pytest.approx(sizes @ workload.targets / sizes.sum(), abs=1e-12)


@pytest.mark.parametrize("forming", ["random", "rendezvous", "stratified", "label-similar", "speed"])
@pytest.mark.parametrize("leader", ["fixed", "elected"])
def test_a_run_follows_from_its_seed(forming, leader):
    config = CPFL.Config(cohorts=2, forming=forming, leader=leader, stopping={"rule": "budget", "most_rounds": 2})
    check_protocol(CPFL(config), nodes=6)


def test_a_file_may_say_who_belongs_where(tmp_path):
    path = tmp_path / "cohorts.txt"
    path.write_text("".join(f"{node} {int(node >= 5)}\n" for node in range(9)))
    seen = Seen()
    trained(mods=[seen], forming="file", path=str(path), leader="fixed")
    assert {(sender, to) for _, sender, to, _ in seen.of(Assignment)} == {
        *[(0, node) for node in range(5)],
        *[(5, node) for node in range(5, 9)],
    }


def test_the_fast_and_the_slow_are_apart():
    class Speeds(Shards):
        def samples(self, node, steps):
            return steps * (1 + node % 3)

    seen = Seen()
    trained(mods=[seen], forming="speed", leader="fixed", workload=Speeds(9))
    assert {to % 3 for _, sender, to, _ in seen.of(Assignment) if sender == 0} == {0}


# Rounds


def test_a_round_asks_whom_the_seed_draws():
    seen, again = Seen(), Seen()
    trained(mods=[seen], cohorts=1, sample=4)
    trained(mods=[again], cohorts=1, sample=4, leader="fixed")
    asked = [[(m.round, to) for _, _, to, m in log.of(Assignment)] for log in (seen, again)]
    assert asked[0] == asked[1]
    assert len(asked[0]) == 6 * 4
    assert len({to for _, to in asked[0]}) > 4


def test_over_selection_takes_the_first_to_answer():
    class Speeds(Quadratic):
        def samples(self, node, steps):
            return steps * (1 + node)

    outcome = trained(workload=Speeds(9), cohorts=1, leader="fixed", sample=4, over_select=1.0)
    assert {row.value for row in outcome.recorder.rows() if row.metric == "members"} == {4}


def test_a_deadline_leaves_the_slow_out():
    class OneSlow(Quadratic):
        def samples(self, node, steps):
            return 50 if node == 8 else 1

    outcome = trained(workload=OneSlow(9), cohorts=1, leader="fixed", deadline_s=3.0, sampling="capacity")
    assert {row.value for row in outcome.recorder.rows() if row.metric == "members"} == {8}
    assert outcome.time_s < 30


@pytest.mark.parametrize("window", [1, 2, 64])
def test_a_mean_is_the_same_to_rounding_however_few_models_wait_for_their_turn(window):
    """Slow members of low numbers hold up those of high ones; with all of them in the window, bits are fedavg's."""

    class Backwards(Shards):
        def samples(self, node, steps):
            return steps * (20 - node)

    narrow = result(trained(workload=Backwards(9), window=window, **SERVED))
    fedavg = run_protocol(FedAvg(FedAvg.Config(rounds=6)), 9, workload=Shards(9), **PLACE).models[0]
    assert narrow == pytest.approx(fedavg, abs=1e-12)
    if window > 9:
        assert narrow == tuple(fedavg.tolist())


def test_losses_are_weighted_by_what_they_are_means_over():
    answers = [Answer(1.0, 30), Answer(4.0, 10), Answer(float("nan"), 0)]
    assert mean_loss(answers) == (1.75, 40, 0.0)
    assert mean_loss([mean_loss(answers[:2]), Answer(7.0, 40)]) == mean_loss([*answers, Answer(7.0, 40)])
    assert np.isnan(mean_loss(answers[2:]).loss)
    assert np.isnan(mean_loss([]).loss)


def test_a_cohort_stops_by_the_loss_of_the_models_that_came():
    """The first loss is that of the initial model; what is handed in entered the round with the best one."""
    seen, workload = Seen(), Quadratic(3, [[1.0], [1.0], [1.0]], lr=1.0)
    outcome = trained(
        nodes=3,
        cohorts=1,
        workload=workload,
        mods=[seen],
        leader="fixed",
        stopping={"window": 1, "patience": 3},
        checkpoint="best",
    )
    losses = [row.value for row in outcome.recorder.rows() if row.metric == "validation_loss"]
    assert losses == [0.5, 0.0, 0.0, 0.0, 0.0]
    assert {message.loss for _, _, _, message in seen.of(Update) if message.round == 0} == {0.5}
    assert result(outcome) == (1.0,)


def test_the_best_model_is_the_result_and_not_the_last():
    class Leaves(Quadratic):
        """Every step goes away from the target."""

        def lr(self, call):
            return -1.0

    config = {"stopping": {"window": 1, "patience": 2}, "leader": "fixed", "cohorts": 1, "nodes": 3}
    assert result(trained(workload=Leaves(3, [[1.0]] * 3), **config, checkpoint="best")) == (0.0,)
    assert result(trained(workload=Leaves(3, [[1.0]] * 3), **config, checkpoint="last")) == pytest.approx((-7.0,))


# Unification


def test_late_cohorts_are_left_out():
    class Tiers(Quadratic):
        def samples(self, node, steps):
            return steps * (100 if node == 3 else 1)

    workload = Tiers(4, [[0.0], [1.0], [2.0], [100.0]], lr=1.0)
    outcome = trained(nodes=4, cohorts=4, workload=workload, quantile=0.75)
    assert result(outcome) == pytest.approx((1.0,))
    assert outcome.time_s < 100
    assert {row.value for row in outcome.recorder.rows() if row.metric == "teachers"} == {3}


def test_the_unifier_is_told_once_by_each_cohort_and_tells_everybody():
    seen = Seen()
    outcome = trained(mods=[seen], leader="fixed")
    assert sorted(message.cohort for *_, message in seen.of(Stopped)) == [0, 1, 2]
    assert len({to for *_, to, _ in seen.of(Stopped)}) == 1
    assert len(seen.of(Result)) == 8
    accuracy = {row.node: row.value for row in outcome.recorder.rows() if row.metric == "accuracy"}
    assert len(set(accuracy.values())) == 1


def test_labels_are_told_only_where_they_are_needed():
    seen = Seen()
    trained(mods=[seen])
    assert not any(message.counts for *_, message in seen.of(Stopped))


# Leaders that go

PHASES = {"it asks": Assignment, "it collects": Update, "it has aggregated": Control, "members fetch": Version}


def sent_by_leader(kind, occurrence):
    """When, in an undisturbed run of one cohort, and who led."""
    seen = Seen()
    outcome = trained(mods=[seen], nodes=5, cohorts=1)
    leader = seen.of(Assignment)[0][1]
    times = [time_s for time_s, sender, to, _ in seen.of(kind) if leader in (sender, to)]
    return outcome, leader, times[int(occurrence * (len(times) - 1))]


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("occurrence", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("returns", [True, False])
def test_a_leader_may_be_lost_in_any_phase(phase, occurrence, returns):
    """Another one goes on after the last committed round: rounds are neither lost nor, but for one, repeated."""
    undisturbed, leader, time_s = sent_by_leader(PHASES[phase], occurrence)
    events = [(time_s + 0.001, leader, "crash")] + ([(time_s + 8.0, leader, "return")] if returns else [])
    seen = Seen()
    outcome = trained(events, nodes=5, cohorts=1, mods=[seen])
    assert len(outcome.models) == 4 + returns
    assert np.array(result(outcome)) == pytest.approx(np.array(result(undisturbed)), abs=0.5)
    rounds = [(message.term, message.round) for *_, message in seen.of(Assignment)]
    assert rounds == sorted(rounds)
    assert {round for _, round in rounds} == set(range(6))
    repeated = [round for round in range(6) if len({term for term, r in rounds if r == round}) > 1]
    assert len(repeated) <= 1


def test_a_new_leader_is_there_within_three_election_timeouts():
    _, leader, time_s = sent_by_leader(Assignment, 0.5)
    seen = Seen()
    trained([(time_s + 0.001, leader, "crash")], nodes=5, cohorts=1, mods=[seen])
    later = [when for when, sender, _, _ in seen.of(Assignment) if sender != leader]
    assert later[0] - time_s < 3 * CPFL.Config().election_timeout_s


def test_a_minority_commits_nothing():
    """Three of five go for a while: the others train no round meanwhile, whoever of them leads."""
    seen = Seen()
    events = [(time_s, node, what) for node in (0, 1, 2) for time_s, what in ((5.0, "crash"), (60.0, "return"))]
    outcome = trained(events, nodes=5, cohorts=1, mods=[seen])
    rounds = {message.round for when, *_, message in seen.of(Assignment) if 10 < when < 60}
    assert len(rounds) <= 1
    assert len(outcome.models) == 5


@settings(max_examples=40)
@given(
    node=st.integers(0, 8),
    crash_s=st.floats(0.01, 12),
    away_s=st.sampled_from([0.05, 0.5, 3.0, 20.0, None]),
    other=st.integers(1, 8),
    other_s=st.floats(0.01, 12),
    detect_s=st.sampled_from([0.2, 5.0, 40.0]),
)
@example(node=7, crash_s=9.914533356704036, away_s=3.0, other=4, other_s=2.24, detect_s=40.0)
def test_nodes_may_crash_at_any_moment(node, crash_s, away_s, other, other_s, detect_s):
    """Everybody who is there at the end has the result, as long as every cohort keeps a majority."""
    events = [(crash_s, node, "crash")] + ([] if away_s is None else [(crash_s + away_s, node, "return")])
    second = (node + other) % 9
    events += [(other_s, second, "crash"), (other_s + 2.0, second, "return")]
    outcome = trained(events, detect_s=detect_s)
    assert {*range(9)} - {node} <= {*outcome.models}
    assert away_s is None or node in outcome.models
    result(outcome)


def test_a_cohort_whose_members_are_all_gone_is_not_waited_for(tmp_path):
    path = tmp_path / "cohorts.txt"
    path.write_text("".join(f"{node} {node // 3}\n" for node in range(9)))
    events = [(4.0, node, "crash") for node in (0, 1, 2)]
    outcome = trained(events, forming="file", path=str(path))
    assert len(outcome.models) == 6
    assert {row.value for row in outcome.recorder.rows() if row.metric == "teachers"} == {2}
    lost = {row.metric: row.value for row in outcome.recorder.rows() if row.metric.startswith("cpfl/lost.")}
    assert lost == {"cpfl/lost.cohort": 0, "cpfl/lost.is_dissolved": 0}


def test_a_leader_that_lies_about_a_model_is_not_believed(capsys):
    """Members check the digest of what they get: the lie is named, and commits nothing."""

    class Lying(CPFL):
        def wanted(self, ctx, sender, message):
            answer = super().wanted(ctx, sender, message)
            if ctx.me == 0 and isinstance(answer, Version):
                return Version(digest=answer.digest, model=ctx.mix([answer.model], [2.0]), losses=answer.losses)
            return answer

    protocol = Lying(Lying.Config(cohorts=1, leader="fixed", transfer_s=5.0, deadline_s=10.0, **ROUNDS))
    outcome = run_protocol(protocol, 3, workload=Quadratic(3), **PLACE)
    assert "a model that is not the one it is said to be" in capsys.readouterr().out
    members = [row.value for row in outcome.recorder.rows() if row.metric == "members"]
    assert members[0] == 3, "the initial model is everybody's own"
    assert set(members[1:]) == {1}


# Bad input


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"cohorts": 5}, "protocol.cohorts: 5 for 4 nodes; allowed: 1 to 4"),
        ({"path": "x"}, "protocol.path: a file of cohorts goes with"),
        ({"forming": "file"}, "protocol.path: a file of cohorts goes with"),
        ({"leader_trains": False}, "protocol.leader_trains: only a leader that is fixed may be no member"),
        ({"compare": ("kd-hart",)}, "protocol.compare: 'kd-hart' cannot be compared; allowed: average"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(config, message):
    with pytest.raises(ConfigError, match=message):
        CPFL.check(CPFL.Config(**config), 4)
    CPFL.check(CPFL.Config(), 4)
