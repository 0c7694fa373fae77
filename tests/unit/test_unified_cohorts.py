"""Cohorts' models made one, on digits: each way of doing it, where, when some come late, and what of it travels."""

import numpy as np
import pytest

from node import Observer, Ref
from node.cohorts import teacher_weights
from node.config import (
    ChurnSection,
    DataSection,
    DevicesSection,
    FaultSection,
    ModelSection,
    NetworkSection,
    PublicSection,
    TrainingSection,
)
from node.learn.data import federate
from node.learn.models import build
from node.learn.workload import Workload, prepare_torch
from node.testing import run_protocol
from node.unifiers import UNIFIERS
from protocols.cohort_outcome import outcome
from protocols.cpfl import CPFL
from protocols.handing import Examined, Extract, Sought, Stopped
from protocols.unification import Result, Taught
from protocols.unifying import MOST_OVER_MEDIAN, Teacher, label_weights
from protocols.versions import Shelf

NODES, PUBLIC = 6, 60
DATA = DataSection(partition="dirichlet", alpha=0.5, local_test_fraction=0.2)
PLACE = {
    "devices": DevicesSection(seconds_per_sample=1e-3),
    "network": NetworkSection(latency_s=0.02, up_bps=1e30, down_bps=1e30),
}
ROUNDS = {"cohorts": 3, "checkpoint": "last", "leader": "fixed", "stopping": {"rule": "budget", "most_rounds": 4}}
QUICK = {"distillation": {"steps": 60, "batch_size": 32, "lr": 1e-2, "generator_epochs": 3}}


def model(name="mlp"):
    return build(ModelSection(name=name, hidden=(16,)), (1, 8, 8), 10)


def workload(public=True, student=None, kind=Workload):
    prepare_torch()
    section = PublicSection(name="held-out", samples=PUBLIC, check_fraction=0.2) if public else PublicSection()
    training = TrainingSection(batch_size=16, lr=0.2, local_steps=12)
    return kind(federate(DATA, NODES, 3, section), model(), training, 7, student=student)


class Seen(Observer):
    """All messages: time, sender, receiver, message."""

    def __init__(self):
        super().__init__()
        self.messages = []

    def received(self, ctx, sender, message):
        self.messages.append((ctx.now, sender, ctx.me, message))

    def of(self, kind):
        return [entry for entry in self.messages if isinstance(entry[3], kind)]


def trained(work=None, events=(), mods=(), **config):
    schedule = tuple(FaultSection(time_s=time_s, node=node, what=what) for time_s, node, what in events)
    options = CPFL.Config(**{**ROUNDS, **QUICK, **config})
    options.check_unification()
    churn = ChurnSection(schedule=schedule, detect_s=1.0)
    return run_protocol(CPFL(options), NODES, workload=work or workload(), mods=mods, churn=churn, **PLACE)


def told(run, traffic=None):
    return outcome(run.recorder.rows(), traffic or {})


def models(run):
    return {tuple(np.asarray(flat).tolist()) for flat in run.models.values()}


def cohorts_of(seen):
    """Who was assigned rounds by whom: each node's leader."""
    return {to: sender for _, sender, to, message in seen.messages if message.wire_name.startswith("cpfl/assignment")}


# Every way


@pytest.mark.parametrize("name", UNIFIERS)
def test_every_unifier_makes_one_predictor_of_the_cohorts(name):
    run = trained(unify=name)
    block = told(run)
    way = UNIFIERS[name]
    assert len(run.models) == NODES
    assert block["unifier"] == name
    assert list(block["unified"]) == [name]
    found = block["unified"][name]
    assert 0.1 < found["accuracy"] <= 1
    assert (found["flops"] > 0) == (found["time_s"] > 0) == (way.loss is not None)
    assert ("agreement" in found) == (way.needs_public and not way.is_exchanged)
    expected = {"ensemble-uniform": 3, "ensemble-label": 3, "logit-exchange": 3}.get(name, 1)
    assert len(models(run)) == expected, "an ensemble leaves everybody its cohort's model; leaders make their own"


def test_the_average_is_that_of_the_cohorts_models_by_their_samples():
    seen = Seen()
    run = trained(unify="average", mods=[seen])
    stopped = [message for *_, message in seen.of(Stopped)]
    assert len({message.cohort for message in stopped}) == 3
    assert told(run)["converged_s"] <= run.time_s
    assert told(run)["unify_s"] == 0


@pytest.mark.parametrize("name", ["kd-hard", "kd-label-prob", "kd-generated", "logit-exchange"])
def test_a_student_may_be_of_another_architecture(name):
    run = trained(workload(student=model("softmax")), unify=name)
    assert {np.asarray(flat).shape for flat in run.models.values()} == {(650,)}


def test_one_cohort_is_its_model_whatever_the_unifier():
    plain, kd = (trained(cohorts=1, unify=name) for name in ("average", "kd-hard"))
    assert models(plain) == models(kd)
    assert told(kd)["unifier"] == "alone"
    assert told(kd)["mean_cohort_accuracy"] == told(kd)["unified"]["alone"]["accuracy"]


# Chosen by what there is


def test_without_public_data_the_average_is_chosen():
    assert models(trained(workload(public=False))) == models(trained(workload(public=False), unify="average"))
    assert told(trained(workload(public=False)))["unifier"] == "average"


def test_samples_that_cohorts_know_have_hard_labels_and_strange_ones_soft_targets():
    class Strange(Workload):
        """Its public samples are noise."""

        def __init__(self, federation, *arguments, **options):
            noise = np.random.default_rng(0).random(federation.public.features.shape, dtype=np.float32)
            federation.public.features.copy_(federation.public.features.new_tensor(noise))
            super().__init__(federation, *arguments, **options)

    learned = {"stopping": {"rule": "budget", "most_rounds": 25}}
    known = trained(**learned)
    assert told(known)["unifier"] == "kd-hard"
    strange = trained(workload(kind=Strange), **learned)
    assert told(strange)["unifier"] == "kd-label-logit"
    average = {"distillation": {**QUICK["distillation"], "start": "average"}}
    assert models(known) == models(trained(unify="kd-hard", **learned, **average))
    assert models(strange) == models(trained(workload(kind=Strange), unify="kd-label-logit", **learned, **average))


def test_labels_are_told_where_there_is_public_data_to_weigh_them_by():
    for public in (True, False):
        seen = Seen()
        trained(workload(public=public), mods=[seen])
        assert all(bool(message.counts) == public for *_, message in seen.of(Stopped))


# Where


def test_split_gives_the_student_of_the_node_to_half_precision():
    seen, whole = Seen(), Seen()
    split = trained(unify="kd-label-logit", unify_at="split", mods=[seen])
    node = trained(unify="kd-label-logit", mods=[whole])
    (one,), (other,) = models(split), models(node)
    assert np.corrcoef(one, other)[0, 1] > 0.9
    assert one != other
    extracts = [message for *_, message in seen.of(Extract)]
    assert {message.logits.spec for message in extracts} == {extracts[0].logits.spec}
    assert extracts[0].logits.spec.size_bytes == 2 * 10 * PUBLIC, "2 C bytes a sample"
    assert all(message.model is None for message in extracts)
    assert all(message.logits is None for *_, message in whole.of(Extract))
    parts = [told(run) for run in (split, node)]
    assert parts[0]["unified"]["kd-label-logit"]["flops"] < parts[1]["unified"]["kd-label-logit"]["flops"]


def test_no_model_leaves_its_cohort_where_logits_are_exchanged():
    seen = Seen()
    run = trained(unify="logit-exchange", mods=[seen])
    leader = cohorts_of(seen)
    for _, sender, to, message in seen.messages:
        carried = [value for value in vars(message).values() if isinstance(value, Ref)]
        if leader[sender] != leader[to]:
            assert {ref.spec.dtype for ref in carried} <= {"float16"}, message
    assert len(seen.of(Taught)) == 3
    assert {(sender, leader[to]) for _, sender, to, _ in seen.of(Result)} == {(each, each) for each in leader.values()}
    assert len(models(run)) == 3
    found = told(run)["unified"]["logit-exchange"]
    assert found["bytes"] == 3 * 2 * 2 * 10 * PUBLIC + NODES * model().dimension * 4
    assert told(run)["unify_s"] >= found["time_s"] > 0


def test_what_cohorts_have_learned_is_told_to_nobody_but_the_node_that_unifies():
    class Nosy(CPFL):
        async def run(self, ctx):
            result = await super().run(ctx)
            if ctx.me == 5:
                for _, leader, _, stopped in seen.of(Stopped):
                    answers.append(await ctx.request(leader, Sought(digest=stopped.digest), timeout_s=1))
            return result

    seen, answers = Seen(), []
    options = Nosy.Config(**{**ROUNDS, "late": "leave", "unify": "average"})
    run_protocol(Nosy(options), NODES, workload=workload(), mods=[seen], **PLACE)
    unifier = {to for _, _, to, _ in seen.of(Stopped)}
    assert 5 not in unifier
    assert answers
    assert {type(answer).__name__ for answer in answers} == {"Absent"}


# Fisher information


def test_every_member_tells_its_fisher_information_to_its_leader_alone():
    seen = Seen()
    trained(unify="fisher", mods=[seen])
    leader = cohorts_of(seen)
    told_to = {(sender, to) for _, sender, to, _ in seen.of(Examined)}
    assert told_to == {(node, leader[node]) for node in range(NODES)}
    assert all(message.fisher is not None for *_, message in seen.of(Extract))


# Compared


def test_comparing_changes_neither_the_result_nor_when_it_comes():
    names = tuple(name for name in UNIFIERS if name not in ("kd-hard", "logit-exchange"))
    seen, alone = Seen(), Seen()
    run = trained(unify="kd-hard", compare=names, mods=[seen])
    plain = trained(unify="kd-hard", mods=[alone])
    assert models(run) == models(plain)
    assert [entry[0] for entry in seen.of(Result)] == [entry[0] for entry in alone.of(Result)]
    block, without = told(run), told(plain)
    assert [block[key] for key in ("converged_s", "unify_s")] == [without[key] for key in ("converged_s", "unify_s")]
    assert block["device_cpu_s"] == pytest.approx(without["device_cpu_s"])
    assert list(block["unified"]) == ["kd-hard", *names]
    assert block["unified"]["kd-hard"] == without["unified"]["kd-hard"]
    sizes = {name: found["bytes"] for name, found in block["unified"].items()}
    whole = model().dimension * 4
    assert sizes["average"] == sizes["kd-uniform"] == (3 + NODES - 1) * whole
    assert sizes["ensemble-uniform"] == 3 * whole
    assert sizes["fisher"] == sizes["average"] + (3 + NODES) * whole
    assert block["unified"]["fisher"]["loss"] != block["unified"]["average"]["loss"]


# Late cohorts


class OneSlow(Workload):
    """Node 0, and so its cohort, takes longer than all others together."""

    def samples(self, node, steps):
        return super().samples(node, steps) * (30 if node == 0 else 1)


def late(**config):
    return trained(workload(kind=OneSlow), quantile=0.6, **config)


def test_late_cohorts_are_left_out():
    seen = Seen()
    run = late(unify="average", mods=[seen])
    assert {message.cohort for *_, message in seen.of(Stopped)} == {
        each["cohort"] for each in told(run)["cohorts"] if each["stopped_s"] is not None
    }
    assert len(seen.of(Extract)) <= 2
    assert [row.value for row in run.recorder.rows() if row.metric == "teachers"] == [2]


@pytest.mark.parametrize("unify", ["average", "kd-label-logit", "ensemble-label"])
def test_late_cohorts_are_folded_in(unify):
    run, left = late(unify=unify, late="fold", late_steps=40), late(unify=unify)
    block, without = told(run), told(left)
    for key in ("converged_s", "unify_s"):
        assert block[key] == without[key], "time to convergence is that of the quantile"
    assert block["folded_s"] > block["converged_s"] + block["unify_s"]
    assert "folded_s" not in without
    assert all(each["stopped_s"] is not None for each in block["cohorts"])
    assert sum(each["stopped_s"] is None for each in without["cohorts"]) == 1
    assert models(run) != models(left) or unify == "ensemble-label"
    if UNIFIERS[unify].loss:
        steps = block["unified"][unify]["flops"] / without["unified"][unify]["flops"]
        assert 1.5 < steps < 2, "a student goes on for 40 steps after its 60"
    if unify == "average":
        (folded,), (short,) = models(run), models(left)
        (whole,) = models(trained(workload(kind=OneSlow), unify="average"))
        away = [np.linalg.norm(np.subtract(each, whole)) for each in (folded, short)]
        assert away[0] < away[1] / 3, "the average of all three, and not of two"


def test_weights_are_normalised_over_the_teachers_that_are_there():
    counts = [(10, 0, 0), (30, 20, 0), (0, 60, 0)]
    teachers = [teacher(cohort, each) for cohort, each in enumerate(counts)]
    for present in (teachers[:2], teachers[1:], teachers):
        weights = np.array(label_weights(present))
        assert weights.sum(axis=0) == pytest.approx(1)
        assert weights[:, 2] == pytest.approx(1 / len(present)), "a class that nobody has seen"


def test_a_cohort_that_claims_a_hundred_times_its_samples_is_clipped():
    honest = [(30, 30, 40)] * 4
    claims = [tuple(100 * count for count in honest[0]), *honest[1:]]
    weights = np.array(label_weights([teacher(cohort, counts) for cohort, counts in enumerate(claims)]))
    assert weights[0] == pytest.approx(MOST_OVER_MEDIAN / (MOST_OVER_MEDIAN + 3))
    assert teacher_weights(dict(enumerate(claims)))[0] == pytest.approx(100 / 103), "unclipped"


def teacher(cohort, counts):
    stopped = Stopped(cohort=cohort, digest="d", rounds=1, samples=sum(counts), counts=tuple(map(float, counts)))
    return Teacher(stopped, cohort, 1, Extract(digest="d"), None)


# Losses


def test_a_successor_unifies_what_leaders_tell_it_anew():
    seen = Seen()
    trained(unify="kd-label-logit", unify_at="split", mods=[seen], leader="elected", cohorts=2)
    (unifier,) = {to for _, _, to, _ in seen.of(Stopped)}
    when = seen.of(Stopped)[-1][0] + 0.03
    again = Seen()
    run = trained(
        unify="kd-label-logit",
        unify_at="split",
        leader="elected",
        cohorts=2,
        mods=[again],
        events=[(when, unifier, "crash")],
    )
    assert len(run.models) == NODES - 1
    assert len({to for _, _, to, _ in again.of(Stopped)}) == 2
    assert told(run)["unified"]["kd-label-logit"]["accuracy"] > 0.1


def test_a_best_model_that_is_lost_does_not_hold_up_the_run(monkeypatch, capsys):
    fetch = Shelf.fetch

    async def forgets(shelf, ctx, digest, holders):
        """A leader that looks for a model among its members does not find it."""
        return False if len(holders) > 1 else await fetch(shelf, ctx, digest, holders)

    monkeypatch.setattr(Shelf, "fetch", forgets)
    newest = models(trained(cohorts=2, unify="average"))
    assert "the best model is lost" not in capsys.readouterr().out
    assert models(trained(cohorts=2, unify="average", checkpoint="best")) == newest
    assert "the best model is lost with those that had it; the newest is handed in" in capsys.readouterr().out
