"""What robust rules save, and plain averaging loses, on digits: 16 nodes of which 4 lie, under real D-PSGD.

Independent and identically distributed data, 75 samples a node, 5 local steps a round, 50 rounds. Liars know all honest
models; each has what all the others have: the rule too. On the complete graph everybody hears all of them, on a random
6-regular graph of every round some hear more than are tolerated, and some none.
"""

import functools

import pytest

from node.experiment.loading import load
from node.experiment.setup import prepare
from node.experiment.virtual import run_virtual

LIARS = [0, 1, 2, 3]
SETTINGS = [
    "clock=virtual",
    "nodes=16",
    "data.partition=iid",
    "data.test_fraction=0.332",
    "model.hidden=[32]",
    "training.lr=0.1",
    "training.batch_size=16",
    "training.local_steps=5",
    "protocol.rounds=50",
    "record.every=50",
    "executor.kind=batched",
    "executor.kernel=stacked",
    "seed=1",
]
COMPLETE = ("topology.kind=full", 4)
SPARSE = ("topology={kind = 'random-regular', degree = 6}", 3)


@functools.cache
def summary(rule, attack="", graph=COMPLETE, pre=(), **options):
    """Of one run."""
    topology, tolerance = graph
    sets = [*SETTINGS, topology, f"aggregation.rule={rule}", f"aggregation.pre={list(pre)}"]
    if rule != "mean":
        sets.append(f"aggregation.tolerance={tolerance}")
    if attack:
        lie = ", ".join(f"{name} = {value!r}" for name, value in options.items())
        table = f"kind = 'byzantine', nodes = {LIARS}, omniscient = true, attack = '{attack}', {lie}"
        sets.append(f"attackers=[{{{table.rstrip(', ')}}}]")
    setup = prepare(load("digits-gossip", sets, {}))
    result = run_virtual(setup, lambda *_: None)
    try:
        assert result.status == "finished", result.error
        return result.summary(setup)
    finally:
        result.close()


def accuracy(rule, attack, graph=COMPLETE, **options):
    """Mean accuracy of the honest nodes after all rounds."""
    return summary(rule, attack, graph, **options)["attacks"]["byzantine"]["honest_accuracy"]


def test_without_liars_they_learn():
    assert summary("mean")["metrics"]["accuracy"]["mean"] >= 0.9


@pytest.mark.parametrize("attack", ["gaussian", "ipm"])
def test_plain_averaging_is_lost(attack):
    """Reference: .166 under noise of standard deviation 10, .089 under inner product manipulation."""
    assert accuracy("mean", attack) <= 0.4


@pytest.mark.parametrize(
    ("rule", "attack"),
    [
        ("balance", "gaussian"),
        ("balance", "ipm"),
        ("balance", "label-flip"),
        ("monna", "gaussian"),
        ("monna", "foe"),
        ("median", "gaussian"),
    ],
)
def test_rules_hold_on_the_complete_graph(rule, attack):
    """Reference: at least .90 on the complete graph; the band is .88."""
    assert accuracy(rule, attack) >= 0.88


@pytest.mark.parametrize(("rule", "attack"), [("ubar", "gaussian"), ("trimmed-mean", "foe")])
def test_rules_that_do_not_reach_the_reference_hold_nevertheless(rule, attack):
    """Reference: at least .90, with a band of .88 for UBAR. Here UBAR reaches .874 to .894 (four seeds), the trimmed
    mean .873 and .898 (two); the bound is below what was measured, and far above what is lost without a rule."""
    assert accuracy(rule, attack) >= 0.86


def test_a_little_is_harmless_at_this_scale():
    """Reference: ALIE needs long runs or heterogeneous data; with z = 1.5 even the plain mean learns."""
    assert accuracy("mean", "alie", z=1.5) >= 0.85


@pytest.mark.parametrize("rule", ["balance", "ubar", "monna"])
def test_rules_anchored_on_the_own_model_hold_on_sparse_graphs(rule):
    """Reference: .92, .92 and .86 under inner product manipulation with a factor of 10."""
    assert accuracy(rule, "foe", SPARSE) >= 0.84


def test_but_clipped_gossip_loses_to_large_lies():
    """Reference: .10; it takes part of every lie, and its own radius from those it hears."""
    assert accuracy("clipped-gossip", "foe", SPARSE) <= 0.4


def test_some_neighbourhoods_have_more_liars_than_are_tolerated():
    """And the summary says how many: 12 honest nodes in 50 rounds."""
    complete = summary("balance", "gaussian")["aggregation"]
    assert (complete["byzantine_neighbours"], complete["over_tolerance"]) == ({"4": 12}, 0)
    sparse = summary("balance", "foe", SPARSE)["aggregation"]
    heard = {int(liars): count for liars, count in sparse["byzantine_neighbours"].items()}
    assert sum(heard.values()) == 12 * 50
    assert min(heard) == 0
    assert max(heard) == 4
    assert sparse["over_tolerance"] == heard[4] > 0
