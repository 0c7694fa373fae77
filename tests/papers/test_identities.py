"""What identities beyond the nodes do: virtual nodes hide who sent what, Sybil identities multiply an attacker."""

from collections import Counter

import numpy as np
import pytest

from node.config import ExperimentConfig
from node.experiment.setup import prepare
from node.experiment.virtual import run_virtual


def ran(**tables):
    base = {"seed": 2, "clock": "virtual", "data": {"name": "digits", "test_fraction": 0.3}}
    setup = prepare(ExperimentConfig(**base | tables))
    result = run_virtual(setup, lambda *_: None)
    assert result.status == "finished", result.error
    return result.summary(setup)


# Shatter: Biswas et al., Noiseless Privacy-Preserving Decentralized Learning, PoPETs 2025


def linked(use, **options):
    """How often three onlookers of sixteen nodes whose labels differ name the sender; chance is one in fifteen."""
    summary = ran(
        nodes=16,
        protocol={"use": use, "rounds": 11, **options},
        topology={"kind": "random-regular", "degree": 4},
        data={"name": "digits", "partition": "dirichlet", "alpha": 0.1, "test_fraction": 0.3},
        model={"name": "mlp", "hidden": [64]},
        training={"lr": 0.1, "local_steps": 10, "batch_size": 16},
        record={"every": 5},
        attackers=[{"kind": "linkability", "every": 5, "most": 8, "nodes": [0, 3, 6]}],
    )
    messages = summary["attacks"]["messages"]
    assert all(message["victim"] not in (message["attacker"], None) for message in messages)
    return float(np.mean([message["linkability_accuracy"] for message in messages])), summary


def test_the_more_virtual_nodes_the_harder_it_is_to_tell_who_sent_a_chunk():
    """Linkability of models as they are at least .6, in sixteen chunks at most .2; it falls with their number."""
    whole, plain = linked("dpsgd")
    few, four = linked("shatter", chunks=4, degree=4)
    many, sixteen = linked("shatter", chunks=16, degree=4)
    assert whole >= 0.6
    assert many <= 0.2
    assert whole > few + 0.2 > many + 0.3
    for shattered, chunks in ((four, 4), (sixteen, 16)):
        assert plain["bytes_sent"] < shattered["bytes_sent"] < 1.05 * plain["bytes_sent"]
        assert abs(shattered["metrics"]["accuracy"]["mean"] - plain["metrics"]["accuracy"]["mean"]) < 0.1
        assert shattered["identities"]["virtual"] == 16 * chunks


def test_virtual_nodes_mix_as_well_as_nodes_do():
    """Biswas et al., section 6: no loss of utility against Epidemic Learning of the same degree."""
    tables = {
        "nodes": 12,
        "data": {"name": "digits", "partition": "dirichlet", "alpha": 0.5, "test_fraction": 0.3},
        "model": {"name": "softmax"},
        "training": {"lr": 0.1, "local_steps": 5},
    }
    shattered, epidemic = (
        ran(protocol={"use": use, "rounds": 25, **options}, **tables)
        for use, options in (("shatter", {"chunks": 4, "degree": 4}), ("epidemic", {"degree": 4}))
    )
    assert shattered["metrics"]["accuracy"]["mean"] > epidemic["metrics"]["accuracy"]["mean"] - 0.02


# Sybils: Douceur, The Sybil Attack, IPTPS 2002


def beset(identities, **aggregation):
    """Accuracy of nine honest nodes, of which a tenth lies under so many more names."""
    more = {"identities": identities} if identities else {}
    return ran(
        nodes=10,
        protocol={"use": "dpsgd", "rounds": 12},
        topology={"kind": "full"},
        model={"name": "softmax"},
        training={"lr": 0.1, "local_steps": 3},
        attackers=[{"kind": "byzantine", "attack": "sign-flip", "nodes": [0], **more}],
        **aggregation,
    )["attacks"]["byzantine"]["honest_accuracy"]


def test_identities_multiply_what_a_lie_does_to_plain_mixing():
    alone, two, four = beset(0), beset(2), beset(4)
    assert alone > 0.75
    assert two < alone - 0.15
    assert four < two - 0.15


def test_a_rule_that_tolerates_as_many_bounds_them():
    accuracies = [
        beset(identities, aggregation={"rule": "median", "tolerance": 1 + identities}) for identities in (0, 2, 4)
    ]
    assert min(accuracies) > 0.75
    assert max(accuracies) - min(accuracies) < 0.05


@pytest.mark.parametrize("degree", [2, 4])
def test_curious_identities_see_more_of_the_victims(degree):
    """T6: each identity has neighbours of its own, and the attacker has all their models."""

    def seen(identities):
        table = {"kind": "membership", "every": 1, "most": 9, "scores": ["loss"], "final": False, "nodes": [0]}
        summary = ran(
            nodes=8,
            protocol={"use": "dpsgd", "rounds": 2},
            topology={"kind": "random-regular", "degree": degree},
            model={"name": "softmax"},
            training={"local_steps": 2},
            attackers=[table | ({"identities": identities} if identities else {})],
        )
        return Counter(message["victim"] for message in summary["attacks"]["messages"])

    alone, beset_by_four = seen(0), seen(4)
    assert sum(beset_by_four.values()) > 2 * sum(alone.values())
    assert len(beset_by_four) >= len(alone)
