"""Whom leaders ask: Oort through whole runs, what comes too late, and leaders that change."""

import numpy as np
import pytest

from node import Observer
from node.attack.poisoning import with_flipped_labels
from node.cohorts import Oort, OortSection
from node.cohorts import Seen as Told
from node.config import (
    ChurnSection,
    DataSection,
    DevicesSection,
    ExperimentConfig,
    FaultSection,
    ModelSection,
    NetworkSection,
    TrainingSection,
)
from node.experiment.setup import prepare
from node.experiment.virtual import run_virtual
from node.learn.data import federate
from node.learn.models import build
from node.learn.workload import Workload, prepare_torch
from node.testing import Quadratic, check_protocol, run_protocol
from protocols.cohort_round import Assignment, Update
from protocols.cpfl import CPFL
from protocols.versions import Version

# A training takes 1 s, a message 0.02 s.
PLACE = {
    "devices": DevicesSection(seconds_per_sample=1.0),
    "network": NetworkSection(latency_s=0.02, up_bps=1e30, down_bps=1e30),
}
OORT = {"sampling": "oort", "sample": 3, "oort": {"explore": 0.5, "preferred_s": 2.0, "most_times": 0}}


class Seen(Observer):
    """All messages, as they come: time, sender, receiver, message."""

    def __init__(self):
        super().__init__()
        self.messages = []

    def received(self, ctx, sender, message):
        self.messages.append((ctx.now, sender, ctx.me, message))

    def of(self, kind):
        return [entry for entry in self.messages if isinstance(entry[3], kind)]

    def asked(self):
        """Members by round."""
        rounds = {}
        for _, _, to, message in self.of(Assignment):
            rounds.setdefault(message.round, set()).add(to)
        return [sorted(rounds[round]) for round in sorted(rounds)]


def trained(nodes=9, rounds=12, events=(), workload=None, mods=(), **config):
    schedule = tuple(FaultSection(time_s=time_s, node=node, what=what) for time_s, node, what in events)
    stopping = {"rule": "budget", "most_rounds": rounds}
    settings = CPFL.Config(**{"cohorts": 1, "stopping": stopping, "checkpoint": "last", **config})
    churn = ChurnSection(schedule=schedule, detect_s=5.0)
    workload = workload or Quadratic(nodes, noise=0.1)
    return run_protocol(CPFL(settings), nodes, workload=workload, churn=churn, mods=mods, **PLACE)


def model(outcome):
    """The one that everybody has ended with."""
    models = {tuple(model.tolist()) for model in outcome.models.values()}
    assert len(models) == 1
    return models.pop()


# Lai et al., OSDI 2021 (Oort)


def test_members_tell_samples_times_the_root_mean_square_of_losses():
    class Sizes(Quadratic):
        def shard_size(self, node):
            return 10 + node

    workload, seen = Sizes(9, [[float(node)] for node in range(9)]), Seen()
    trained(workload=workload, mods=[seen], rounds=1, **OORT)
    told = {sender: message.utility for _, sender, _, message in seen.of(Update)}
    assert len(told) == 3
    assert told == {node: (10 + node) * node**2 / 2 for node in told}


def test_those_who_can_teach_more_are_asked_more_often():
    """'Statistical utility': the nodes whose losses stay high train more often than those that have nothing to add."""

    class Still(Quadratic):
        def lr(self, call):
            return 0.0

    workload, seen = Still(10, [[3.0]] * 4 + [[0.1]] * 6), Seen()
    trained(10, 60, workload=workload, mods=[seen], **OORT)
    asked = np.bincount([to for _, _, to, _ in seen.of(Assignment)], minlength=10)
    assert asked[:4].mean() > 2 * asked[4:].mean()
    assert asked.min() > 0


def test_the_slow_are_asked_less():
    """'System utility': the same losses everywhere, and half of the nodes take longer than is preferred."""

    class Speeds(Quadratic):
        def samples(self, node, steps):
            return 8 if node % 2 else 1

        def lr(self, call):
            return 0.0

    workload, seen = Speeds(10, [[1.0]] * 10), Seen()
    trained(10, 40, workload=workload, mods=[seen], **OORT)
    asked = np.bincount([to for _, _, to, _ in seen.of(Assignment)], minlength=10)
    assert asked[::2].mean() > 1.5 * asked[1::2].mean()


def share_of_flipped(seed, **oort):
    """How much more often than their number would have it 4 of 40 nodes, whose labels are flipped, train on digits."""
    prepare_torch()
    federation = federate(DataSection(partition="iid"), 40, seed)
    bad = np.random.default_rng(seed).choice(40, 4, replace=False).tolist()
    model = build(ModelSection(name="softmax"), tuple(federation.train.features.shape[1:]), federation.train.classes)
    workload, seen = Workload(with_flipped_labels(federation, bad), model, TrainingSection(), seed), Seen()
    sampling = {"sampling": "oort", "sample": 6, "oort": {"preferred_s": 1e6, **oort}}
    stopping = {"rule": "budget", "most_rounds": 60}
    config = CPFL.Config(cohorts=1, leader="fixed", checkpoint="last", stopping=stopping, **sampling)
    run_protocol(CPFL(config), 40, workload=workload, mods=[seen], seed=seed, **PLACE)
    asked = [to for _, _, to, assignment in seen.of(Assignment) if not assignment.again]
    assert len(asked) == 60 * 6
    return sum(to in bad for to in asked) / len(asked) / 0.1


@pytest.mark.parametrize("seed", range(3))
def test_flipped_labels_are_not_asked_for_three_times_their_share(seed):
    """The trap of choosing by loss: one in ten nodes has labels that the model can only deny."""
    assert 1 < share_of_flipped(seed) <= 3, "they have more to say, and are held back"


def test_it_is_clipping_and_rest_that_hold_them_back():
    """With the paper's quantile, and asked without end, they fill the rounds."""
    assert share_of_flipped(0, clip_quantile=0.95, most_times=0) > 3


# Leaders that change


@pytest.mark.parametrize("config", [OORT, {"sampling": "capacity", "sample": 3}])
def test_a_new_leader_chooses_as_the_last_one_would_have(config):
    """What was seen of members goes with the model: with everybody back, the same ones are asked."""
    undisturbed, seen = Seen(), Seen()

    class Speeds(Quadratic):
        """Times that tell members apart."""

        def samples(self, node, steps):
            return 1 + node / 10

    def run(events, observer):
        return trained(workload=Speeds(9, noise=0.1), events=events, mods=[observer], **config)

    expected = model(run((), undisturbed))
    leader = undisturbed.of(Assignment)[0][1]
    sixth = next(time_s for time_s, *_, message in undisturbed.of(Assignment) if message.round == 6)
    found = run([(sixth - 0.005, leader, "crash"), (sixth + 1.0, leader, "return")], seen)
    assert len({sender for _, sender, _, _ in seen.of(Assignment)}) == 2
    assert seen.asked()[6] == undisturbed.asked()[6]
    if config is not OORT:  # times are measured by another leader from then on, and Oort asks by them
        assert len(model(found)) == len(expected)


def test_what_is_known_of_members_goes_with_each_version():
    seen = Seen()
    trained(mods=[seen], **OORT)
    sizes = {message.digest: len(message.sampler) for *_, message in seen.of(Version)}
    assert all(size >= 8 * 4 for size in sizes.values())
    assert max(sizes.values()) <= 8 * (4 + 12 + 5 * 9)


def test_a_state_that_makes_no_sense_is_begun_anew(capsys):
    class Lying(CPFL):
        def wanted(self, ctx, sender, message):
            answer = super().wanted(ctx, sender, message)
            if isinstance(answer, Version):
                return Version(digest=answer.digest, model=answer.model, losses=answer.losses, sampler=b"12345")
            return answer

    seen = Seen()
    trained(mods=[seen], **OORT)
    leader = seen.of(Assignment)[0][1]
    fourth = next(time_s for time_s, *_, message in seen.of(Assignment) if message.round == 4)
    schedule = (FaultSection(time_s=fourth - 0.005, node=leader, what="crash"),)
    config = Lying.Config(cohorts=1, checkpoint="last", stopping={"rule": "budget", "most_rounds": 8}, **OORT)
    churn = ChurnSection(schedule=schedule, detect_s=5.0)
    outcome = run_protocol(Lying(config), 9, workload=Quadratic(9), churn=churn, **PLACE)
    assert "choosing members anew" in capsys.readouterr().out
    assert len(outcome.models) == 8


def test_a_sampler_goes_on_from_anothers_state():
    rng = np.random.default_rng(4)
    section = OortSection(pacer_rounds=2, most_times=3)
    first = Oort(section, dict.fromkeys(range(8), 5.0))

    for round in range(9):
        second = Oort(section, dict.fromkeys(range(8), 5.0))
        second.restore(first.state())
        assert second.state() == first.state()
        chosen = first.select(range(8), 3, np.random.default_rng(round))
        assert second.select(range(8), 3, np.random.default_rng(round)) == chosen
        told = {node: Told(float(rng.gamma(2)), float(rng.gamma(2))) for node in chosen}
        first.observe(told)
        second.observe(told)
        assert second.preferred_s == first.preferred_s
        assert second.state() == first.state()


# What comes too late


class Halves(Quadratic):
    """Nodes of odd numbers are slower than all others."""

    def __init__(self, nodes):
        super().__init__(nodes, noise=0.1)

    def samples(self, node, steps):
        return (10 if node % 2 else 1) + node / 100


def test_what_comes_late_counts_nowhere():
    seen = Seen()
    outcome = trained(10, 1, workload=Halves(10), sample=5, over_select=1.0, leader="fixed", mods=[seen])
    members = [row.value for row in outcome.recorder.rows() if row.metric == "members"]
    assert members == [5]
    targets = Halves(10).targets
    assert model(outcome) == pytest.approx(0.1 * targets[::2].mean(axis=0), abs=0.15)


@pytest.mark.parametrize("options", [{"sample": 5, "over_select": 1.0}, {"deadline_s": 5.0}])
def test_what_comes_late_is_never_trained(options):
    """Five of ten are slow: their trainings take their time, and no arithmetic, where nobody needs the result."""
    late = trained(10, 30, workload=Halves(10), leader="fixed", **options)
    members = [row.value for row in late.recorder.rows() if row.metric == "members"]
    assert members == [5] * 30
    hours = late.usage.summary()["device_hours"]
    assert hours["discarded"] > 10 * 10 / 3600
    assert hours["discarded"] + 30 * 5 / 3600 <= hours["total"] * (1 + 1e-9)
    assert late.counters["skipped"] >= 10


def test_a_summary_counts_what_came_late():
    slow = {"distribution": "uniform", "low": 0.5, "high": 1.0}
    protocol = {"use": "cpfl", "cohorts": 2, "checkpoint": "last", "sample": 4, "over_select": 0.5}
    sections = {
        "nodes": 20,
        "clock": "virtual",
        "protocol": {**protocol, "stopping": {"rule": "budget", "most_rounds": 5}},
        "data": {"partition": "iid"},
        "model": {"name": "softmax"},
        "devices": {"seconds_per_sample": slow},
    }
    result = run_virtual(prepare(ExperimentConfig.model_validate(sections)), lambda *_: None)
    assert result.status == "finished"
    assert result.graph["discarded_trainings"] >= 10
    assert result.usage["device_hours"]["discarded"] > 0


@pytest.mark.parametrize("kind", [OORT, {"sampling": "capacity", "sample": 3}, {"sample": 3, "over_select": 0.5}])
def test_a_run_follows_from_its_seed(kind):
    stopping = {"rule": "budget", "most_rounds": 3}
    check_protocol(CPFL(CPFL.Config(cohorts=2, stopping=stopping, **kind)), nodes=10)
