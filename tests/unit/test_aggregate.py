"""ctx.aggregate: the experiment's rule in place of a protocol's mean."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from node import Context, Mod, Protocol, op
from node.attack.liar import Byzantine
from node.config import AggregationSection, ExperimentConfig, TopologySection
from node.errors import ConfigError
from node.experiment import aggregation
from node.experiment.combinations import check
from node.experiment.loading import load
from node.experiment.setup import prepare
from node.experiment.simulation import rebuild
from node.experiment.virtual import run_virtual
from node.learn.robust import aggregate, configured
from node.learn.workers import is_importable
from node.testing import run_protocol
from node.topology import build
from protocols.adpsgd import ADPSGD
from protocols.dpsgd import DPSGD
from protocols.epidemic import Epidemic
from protocols.fedavg import FedAvg
from protocols.fedper import FedPer
from protocols.local import Local
from protocols.pushsum import PushSum
from test_liar import InTensors

NODES = 5
FULL = TopologySection(kind="full")


def rule(name, tolerance=0, pre=(), **options):
    return AggregationSection(rule=name, tolerance=tolerance, pre=pre, **options)


class Judged(InTensors):
    """Evaluates tensors too."""

    def __init__(self, nodes):
        super().__init__(nodes)
        evaluate = self.evaluate

        def solve(task):
            with np.errstate(invalid="ignore"):
                return evaluate.solve(task._replace(inputs=tuple([model.numpy() for model in task.inputs])))

        self.evaluate = dataclasses.replace(evaluate, solve=solve)


def workload(section, nodes=NODES):
    made = Judged(nodes)
    made.aggregation = configured(section)
    return made


class Scripted(Protocol):
    """Runs the coroutine function that a test gives it, on every node."""

    def __init__(self, script):
        super().__init__()
        self.script = script

    async def run(self, ctx: Context):
        return await self.script(ctx)


@op
def constant(like, *, numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def models_of(ctx, *rows):
    return [ctx.apply(constant, ctx.initial_model(), numbers=row) for row in rows]


ROWS = ((1.0, 2.0, 3.0, 0.0), (4.0, 5.0, 6.0, 0.0), (7.0, 8.0, 9.0, 0.0), (1e9, 0.0, -1e9, 0.0))
LOST = (math.nan, 0.0, 0.0, 0.0)


def alone(script, section=None):
    """What one node's script returns, and what it records."""
    outcome = run_protocol(Scripted(script), 1, workload=workload(section or rule("mean"), 1))
    return outcome.models[0], {row.metric: row.value for row in outcome.recorder.rows()}


def aggregating(*rows, weights=None, progress=0.0):
    async def script(ctx):
        own, *others = models_of(ctx, *rows)
        final = ctx.aggregate(own, others, weights, progress)
        ctx.record(round=0, size=4.0)
        return final

    return script


# The mean


@pytest.mark.parametrize("weights", [None, (0.4, 0.3, 0.2, 0.1)])
def test_without_a_rule_it_records_what_mix_records(weights):
    async def mixing(ctx):
        final = ctx.mix(models_of(ctx, *ROWS), weights)
        ctx.record(round=0, size=4.0)
        return final

    (mixed, noted), (aggregated, also_noted) = alone(mixing), alone(aggregating(*ROWS, weights=weights))
    assert torch.equal(mixed, aggregated)
    assert noted == also_noted
    assert "refused_models" not in noted


def test_it_counts_no_op_more_than_mix_does():
    """The keys of all ops that follow are the same, and so is all randomness."""
    counts = []

    async def script(ctx):
        own, *others = models_of(ctx, *ROWS)
        before = ctx.counter
        ctx.mix([own, *others])
        between = ctx.counter
        ctx.aggregate(own, dict(enumerate(others, 1)))
        counts.append((between - before, ctx.counter - between))

    run_protocol(Scripted(script), 1, workload=workload(rule("mean"), 1))
    assert counts == [(1, 1)]


def test_an_own_model_of_weight_zero_is_no_part_of_the_mean():
    mean, _ = alone(aggregating(LOST, *ROWS[:2], weights=(0.0, 0.25, 0.75)))
    assert mean.tolist() == [3.25, 4.25, 5.25, 0.0]


def test_the_section_says_whether_there_is_a_rule():
    assert not rule("mean", 3).is_robust
    assert rule("mean", 1, ("nnm",)).is_robust
    assert configured(rule("mean")) is None
    assert rule("monna", 1).options == {}


# A rule


@pytest.mark.parametrize(
    "section",
    [
        rule("median"),
        rule("trimmed-mean", 1),
        rule("mda", 1),
        rule("monna", 1),
        rule("mean", 1, ("nnm",)),
        rule("multi-krum", 0, ("static-clipping",), norm=2.0, selected=2),
        rule("centered-clipping", tau=5.0, passes=2),
    ],
)
def test_a_rule_is_applied_to_the_own_model_and_all_others(section):
    found, noted = alone(aggregating(*ROWS), section)
    rows = torch.tensor(ROWS, dtype=torch.float64)
    expected = aggregate(rows, section.rule, section.tolerance, section.pre, **section.options)
    assert torch.equal(found, expected)
    assert noted["refused_models"] == 0


def test_weights_and_progress_reach_the_rules_that_take_them():
    weights = (0.1, 0.2, 0.3, 0.4)
    clipped, _ = alone(aggregating(*ROWS, weights=weights), rule("clipped-gossip", tau=3.0))
    rows = torch.tensor(ROWS, dtype=torch.float64)
    assert torch.equal(clipped, aggregate(rows, "clipped-gossip", weights=weights, tau=3.0))
    strict, _ = alone(aggregating(*ROWS, weights=weights, progress=1.0), rule("balance", gamma=3.0, kappa=2.0))
    lenient, _ = alone(aggregating(*ROWS, weights=weights), rule("balance", gamma=3.0, kappa=2.0))
    assert strict.tolist() == list(ROWS[0])
    assert lenient.tolist() == [3.25, 4.25, 5.25, 0.0]


def test_models_that_are_not_finite_are_refused_and_counted():
    found, noted = alone(aggregating(ROWS[0], LOST, ROWS[1], LOST, ROWS[2]), rule("median", 2))
    assert found.tolist() == list(ROWS[1])
    assert noted["refused_models"] == 2


def test_counts_add_up_until_they_are_recorded():
    async def script(ctx):
        own, lost, other = models_of(ctx, ROWS[0], LOST, ROWS[1])
        for round, times in enumerate((3, 1, 0)):
            for _ in range(times):
                own = ctx.aggregate(own, [lost, other])
            ctx.record(round=round, size=4.0)
        return own

    outcome = run_protocol(Scripted(script), 1, workload=workload(rule("median"), 1))
    counts = {row.round: row.value for row in outcome.recorder.rows() if row.metric == "refused_models"}
    assert counts == {0: 3.0, 1: 1.0}


@pytest.mark.parametrize(
    "section",
    [
        rule("krum", 1),
        rule("trimmed-mean", 1),
        rule("monna", 2),
        rule("balance", 3, ("nnm",)),
        rule("median", 0, ("arc",)),
    ],
)
@pytest.mark.parametrize("others", [(), (LOST,), (LOST, LOST)])
def test_with_too_few_models_the_own_one_stays(section, others):
    found, _ = alone(aggregating(ROWS[0], *others), section)
    assert found.tolist() == list(ROWS[0])


def test_buckets_are_drawn_anew_each_time():
    async def script(ctx):
        own, *others = models_of(ctx, *ROWS, *((float(i), 0.0, 0.0, 0.0) for i in range(8)))
        drawn = [await ctx.value(ctx.aggregate(own, others)) for _ in range(4)]
        seen.append({tuple(model.tolist()) for model in drawn})

    seen = []
    for _ in range(2):
        run_protocol(Scripted(script), 1, workload=workload(rule("median", 1, ("bucketing",)), 1))
    assert seen[0] == seen[1]
    assert len(seen[0]) > 1


def test_a_rule_that_judges_reads_losses_on_the_own_data():
    """With one target for all, the model that is nearer to it than the own one is accepted, the other is not."""
    ctx_models = ((2.0,) * 4, (1.0,) * 4, (3.0,) * 4)

    async def script(ctx):
        own, *others = models_of(ctx, *ctx_models)
        return ctx.aggregate(own, others)

    made = workload(rule("ubar"), 1)
    made.targets[:] = made.optimum[:] = 0.0
    assert run_protocol(Scripted(script), 1, workload=made).models[0].tolist() == [1.5] * 4


def test_an_own_model_of_weight_zero_is_what_an_anchored_rule_judges_by():
    weights = (0.0, 0.5, 0.25, 0.25)
    median, _ = alone(aggregating((*LOST[1:], 5.0), *ROWS[:3], weights=weights), rule("median"))
    assert median.tolist() == list(ROWS[1]), "it is not one of four"
    clipped, _ = alone(aggregating((0.0,) * 4, *ROWS[:3], weights=weights), rule("centered-clipping", tau=1.0))
    assert float(clipped.norm()) < 1
    kept, _ = alone(aggregating(ROWS[3], LOST, LOST, LOST, weights=weights), rule("median"))
    assert kept.tolist() == list(ROWS[3])


def test_the_ops_reach_other_processes():
    for name, pre in (("median", ()), ("ubar", ()), ("median", ("bucketing",))):
        made = configured(rule(name, 1, pre))
        assert is_importable(made.mix)
        assert is_importable(made.refused)


# Whole runs


def spread_of(values):
    return np.min(values, axis=0), np.max(values, axis=0)


class Seen(Mod):
    """Notes what its node trains."""

    def trained(self, ctx, before, after):
        trained.setdefault(ctx.me, []).append(after)
        return after


trained: dict = {}


@pytest.mark.parametrize("attack", ["nonfinite", "gaussian", "sign-flip", "foe"])
@pytest.mark.parametrize("name", ["median", "trimmed-mean"])
def test_by_coordinates_nobody_leaves_the_range_of_honest_models(attack, name):
    liars, rounds = (1, 4), 4

    class Watched(DPSGD):
        async def run(self, ctx):
            final = await super().run(ctx)
            values = await ctx.values([*trained[ctx.me][-1:], final])
            ends[ctx.me] = [value.numpy() for value in values]
            return final

    trained.clear()
    ends: dict = {}
    liar = Byzantine(Byzantine.Config(attack=attack, byzantine=liars))
    protocol = Watched(Watched.Config(rounds=rounds))
    run_protocol(protocol, 7, workload=workload(rule(name, 2), 7), topology=FULL, mods=[liar, Seen()])
    honest = sorted(set(range(7)) - set(liars))
    low, high = spread_of([ends[node][0] for node in honest])
    for node in honest:
        assert (low <= ends[node][1]).all()
        assert (ends[node][1] <= high).all()


@pytest.mark.parametrize(
    ("make", "others"),
    [
        (lambda: DPSGD(DPSGD.Config(rounds=3)), "median"),
        (lambda: Epidemic(Epidemic.Config(rounds=3, degree=3)), "median"),
        (lambda: ADPSGD(ADPSGD.Config(rounds=3)), "balance"),
        (lambda: FedAvg(FedAvg.Config(rounds=3)), "median"),
        (lambda: FedAvg(FedAvg.Config(rounds=3, server="adam")), "geometric-median"),
    ],
)
def test_every_protocol_that_aggregates_does_so_by_the_rule(make, others):
    """One node's NaN is everybody's without a rule, and nobody else's with one."""
    for section, poisoned in ((rule("mean"), True), (rule(others), False)):
        liar = Byzantine(Byzantine.Config(attack="nonfinite", byzantine=(2,)))
        made = workload(section)
        models = run_protocol(make(), NODES, workload=made, topology=FULL, mods=[liar]).models
        others_lost = [bool(model.isnan().any()) for node, model in models.items() if node != 2]
        assert any(others_lost) == poisoned


def simulate(**tables):
    sets = ["clock=virtual", "nodes=6", "topology.kind=full", "protocol.rounds=3", "model.hidden=[8]"]
    setup = prepare(load("digits-gossip", [*sets, *(f"{key}={value}" for key, value in tables.items())], {}))
    result = run_virtual(setup, lambda *_: None)
    try:
        assert result.status == "finished", result.error
        return result.summary(setup)
    finally:
        result.close()


def with_rule(**more):
    return {"aggregation.rule": "trimmed-mean", "aggregation.tolerance": 1, **more}


@pytest.mark.parametrize("kind", ["processes", "batched"])
def test_executors_give_the_results_of_the_reference(kind):
    tables = {"aggregation.rule": "median", "aggregation.pre": '["bucketing"]'}
    inline = simulate(**tables)
    other = simulate(**tables, **{"executor.kind": kind})
    if kind == "processes":
        assert other["run_hash"] == inline["run_hash"]
    else:
        assert other["metrics"]["accuracy"]["mean"] == pytest.approx(inline["metrics"]["accuracy"]["mean"], abs=0.02)


def test_a_cache_knows_rules_apart(tmp_path):
    cached = {"executor.cache": f'"{tmp_path}"'}
    first, again = simulate(**with_rule(**cached)), simulate(**with_rule(**cached))
    assert first["run_hash"] == again["run_hash"] == simulate(**with_rule())["run_hash"]
    other = simulate(**{**with_rule(**cached), "aggregation.rule": "monna"})
    assert other["run_hash"] != first["run_hash"]


def test_another_process_of_a_cluster_makes_the_same_workload():
    config = load("digits-gossip", ["aggregation.rule=median", "topology.kind=full"], {})
    ops = rebuild(config.model_dump_json())
    assert "learn:train" in ops
    assert prepare(config).workload.aggregation.static["rule"] == "median"


# The summary


LYING = "[{kind='byzantine', nodes=[0], attack='nonfinite'}]"


def test_the_summary_says_the_rule_and_who_hears_how_many_liars():
    summary = simulate(**with_rule(attackers=LYING))
    assert summary["aggregation"] == {
        "rule": "trimmed-mean",
        "pre": [],
        "tolerance": 1,
        "neighbourhoods": {"6": 6},
        "byzantine_neighbours": {"1": 5},
        "over_tolerance": 0,
    }
    assert summary["metrics"]["refused_models"]["max"] == 1


def test_where_every_round_has_a_graph_of_its_own_all_of_them_are_looked_at():
    tables = {"topology.kind": "random-regular", "topology.degree": 3, "nodes": 8}
    said = simulate(**with_rule(attackers=LYING.replace("[0]", "[0, 1, 2]"), **tables))["aggregation"]
    heard = {int(liars): count for liars, count in said["byzantine_neighbours"].items()}
    assert sum(heard.values()) == 5 * 3
    assert said["over_tolerance"] == sum(count for liars, count in heard.items() if liars > 1) > 0
    assert said["neighbourhoods"] == {"4": 8}


def test_without_rule_and_liars_there_is_nothing_to_say():
    summary = simulate()
    assert "aggregation" not in summary
    assert "refused_models" not in summary["metrics"]


# What is refused


def prepared(**tables):
    return prepare(load("digits-gossip", [f"{key}={value}" for key, value in tables.items()], {}))


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"aggregation.rule": "medium"}, "aggregation.rule: no rule 'medium'; did you mean 'median'?"),
        ({"aggregation.pre": '["nmm"]'}, "aggregation.rule: no pre-aggregation 'nmm'; did you mean 'nnm'?"),
        ({"aggregation.rule": "median", "aggregation.tau": 1}, "aggregation.rule: 'median' has no option 'tau'"),
        ({"aggregation.tau": 1}, "aggregation.rule: 'mean' has no option 'tau'"),
        ({"aggregation.rule": "monna", "aggregation.pre": "nnm"}, "aggregation.pre"),
        ({"aggregation.rule": "clipped-gossip", "aggregation.tau": "big"}, "tau is 'big'; allowed: numbers"),
        ({"aggregation.rule": "geometric-median", "aggregation.passes": 2.5}, "passes is 2.5; allowed: whole numbers"),
        ({"aggregation.rule": "balance", "aggregation.progress": 0.5}, "progress follows from the round"),
        ({"aggregation.tolerance": -1}, "aggregation.tolerance"),
        (
            {"aggregation.rule": "trimmed-mean", "aggregation.tolerance": 3},
            "aggregation.tolerance: 'trimmed-mean': 5 models, the own one included, are too few for f = 3: it takes at "
            "least 2 f + 1 = 7 (the smallest neighbourhood: 5 models)",
        ),
        ({"aggregation.rule": "krum", "aggregation.tolerance": 2}, "it takes at least 2 f + 3 = 7"),
        ({"aggregation.rule": "mda", "aggregation.tolerance": 3}, "too few for f = 3"),
        (
            {"aggregation.rule": "mda", "aggregation.tolerance": 14, "nodes": 40, "topology.kind": "full"},
            "subsets to try; at most 50000 are allowed (the smallest neighbourhood: 40 models)",
        ),
        (
            {"aggregation.rule": "median", "protocol.use": "pushsum"},
            "aggregation.rule: protocol 'pushsum' does not aggregate",
        ),
        ({"aggregation.pre": '["nnm"]', "protocol.use": "pushsum"}, "does not aggregate"),
        ({"aggregation.rule": "ubar", "protocol.use": "fedper"}, "judges whole models"),
        ({"aggregation.rule": "ubar", "protocol.use": "fedavg"}, "has no data"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(tables, says):
    with pytest.raises(ConfigError) as caught:
        prepared(**tables)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_plain_mean_is_for_every_protocol():
    assert prepared(**{"protocol.use": "pushsum", "aggregation.tolerance": 2}).workload.aggregation is None


def sizes(protocol, section=FULL, nodes=NODES, **options):
    config = ExperimentConfig(nodes=nodes, aggregation=rule("median"), protocol={"use": "it"})
    return aggregation.neighbourhoods(config, protocol, protocol.Config(**options), build(section, nodes, 0))


def test_how_many_models_a_node_aggregates_follows_from_protocol_and_topology():
    assert sizes(DPSGD) == {5: 5}
    assert sizes(DPSGD, TopologySection(kind="star")) == {2: 4, 5: 1}
    assert sizes(FedPer, TopologySection(kind="ring")) == {3: 5}
    assert sizes(Epidemic, degree=3) == {4: 5}
    assert sizes(ADPSGD) == {2: 5}
    assert sizes(FedAvg) == {4: 1}, "the server alone"
    assert sizes(FedAvg, sample=2) == {2: 1}
    assert sizes(Local) == {}
    assert not PushSum.aggregates


def test_local_training_takes_any_rule_for_comparison():
    assert (
        prepared(**{"protocol.use": "local", "aggregation.rule": "krum", "aggregation.tolerance": 3}).neighbourhoods
        == {}
    )


# What is warned of


def warned(section, neighbourhoods, **privacy):
    config = ExperimentConfig(aggregation=section, privacy=privacy)
    return check(config, DPSGD, [1000], neighbourhoods)


def test_anchored_rules_are_warned_of_where_liars_are_no_minority():
    (warning,) = warned(rule("monna", 2), [4, 9])
    assert warning.startswith("aggregation.tolerance: 'monna' in the smallest neighbourhood: f = 2 of 4 models")
    assert warned(rule("monna", 2), [5, 9]) == []
    assert warned(rule("mean", 2), [2]) == []


def test_noise_and_rules_are_warned_of_together():
    assert any("noise drives honest models apart" in each for each in warned(rule("krum"), [5], mechanism="record"))
    assert not any("noise drives" in each for each in warned(rule("mean"), [5], mechanism="record"))


def test_a_choice_by_losses_is_no_part_of_a_privacy_budget():
    assert any("ubar chooses models by losses" in each for each in warned(rule("ubar"), [5], mechanism="record"))
    assert not any("chooses" in each for each in warned(rule("ubar"), [5]))
