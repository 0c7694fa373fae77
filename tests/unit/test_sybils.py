"""Sybil identities: how many, whose, with which data, seen by every rule and topology, left out of what is measured."""

import numpy as np
import pytest

from node.config import ExperimentConfig
from node.errors import ConfigError
from node.experiment import aggregation
from node.experiment.combinations import Case
from node.experiment.result import Result
from node.experiment.setup import prepare
from node.experiment.virtual import run_virtual
from node.participants import Participants
from node.record import Recorder
from node.row import Row
from protocols.secagg import SecAgg


def config(*attackers, **tables):
    base = {
        "nodes": 6,
        "clock": "virtual",
        "protocol": {"use": "dpsgd", "rounds": 3},
        "topology": {"kind": "full"},
        "data": {"name": "digits", "partition": "dirichlet", "alpha": 0.5},
        "model": {"name": "softmax"},
        "training": {"lr": 0.1, "local_steps": 2},
    }
    return ExperimentConfig(**base | tables, attackers=attackers)


def lying(identities, **options):
    return {"kind": "byzantine", "attack": "sign-flip", "identities": identities, **options}


def ran(*attackers, **tables):
    setup = prepare(config(*attackers, **tables))
    result = run_virtual(setup, lambda *_: None)
    assert result.status == "finished", result.error
    return setup, result, result.summary(setup)


def held(attacker):
    """What everybody holds."""
    return prepare(config(attacker)).attacks[0].scene.federation


# Whose, and what they hold


def test_each_attacker_registers_as_many():
    setup = prepare(config(lying(2, nodes=[4, 1]), {"kind": "membership", "identities": 1}))
    assert setup.participants == Participants(6, (1, 1, 4, 4, 0))
    assert [attack.nodes for attack in setup.attacks] == [(1, 4, 6, 7, 8, 9), (0, 10)]
    assert setup.topology.nodes == 11
    assert setup.participants.by_role(setup.roles)["learner"] == tuple(range(11))


def test_they_have_the_data_of_their_owner_and_others_keep_theirs():
    shards, before = (held(lying(identities, nodes=[3])).shards for identities in (2, None))
    for node in range(6):
        assert np.array_equal(shards.of(node), before.of(node))
    for identity in (6, 7):
        assert np.array_equal(shards.of(identity), before.of(3))


def test_what_their_owner_poisons_they_train_on():
    poisoned = held({"kind": "byzantine", "attack": "label-flip", "identities": 1, "nodes": [2]})
    flipped = np.flatnonzero((poisoned.train.labels != held(lying(1)).train.labels).numpy())
    assert set(flipped) <= set(poisoned.shards.of(6))
    assert len(flipped) > 0


def test_without_identities_nothing_changes():
    one, other = ran(lying(None)), ran({"kind": "byzantine", "attack": "sign-flip"})
    assert one[1].run_hash == other[1].run_hash
    assert "identities" not in one[2]


# Bad values, one line each


@pytest.mark.parametrize("identities", [0, -1, 1.5, "two"])
def test_a_number_of_identities_is_one_or_more(identities):
    with pytest.raises(ValueError, match="identities"):
        config(lying(identities))


@pytest.mark.parametrize(
    ("table", "tables", "says"),
    [
        (
            lying(1),
            {"topology": {"kind": "regular", "degree": 3}},
            r"^topology.degree: .*\(attackers.identities adds 1 peers to the 6 nodes\)$",
        ),
        (lying(1, nodes=[6]), {}, r"^attackers\[0\].nodes: there is no node 6; allowed: 0 to 5$"),
        (
            lying(1, nodes=[0]),
            {"protocol": {"use": "fedavg", "rounds": 2}},
            r"^attackers\[0\].identities: a server, node 0, has no data for them; name learners$",
        ),
        (
            {"kind": "reconstruction", "identities": 1},
            {},
            r"^attackers.identities: reconstruction solves for what one peer has heard; leave identities out$",
        ),
        (lying(1, nodes=list(range(6))), {}, r"^attackers.nodes: all 6 nodes lie; at least one must be honest$"),
    ],
)
def test_what_does_not_fit_is_refused(table, tables, says):
    with pytest.raises(ConfigError, match=says) as refused:
        prepare(config(table, **tables))
    assert "\n" not in str(refused.value)


def test_a_topology_file_has_to_count_them(tmp_path):
    file = tmp_path / "ring.txt"
    topology = {"topology": {"kind": "file", "path": str(file)}}
    file.write_text("6\n" + "".join(f"{node} {(node + 1) % 6}\n" for node in range(6)))
    prepare(config(**topology))
    with pytest.raises(ConfigError, match=r"the graph has 6 nodes, the experiment 8.*identities adds 2 peers to the 6"):
        prepare(config(lying(2), **topology))
    file.write_text("8\n" + "".join(f"{node} {(node + 1) % 8}\n" for node in range(8)))
    assert prepare(config(lying(2), **topology)).topology.neighbours(0, 0) == (1, 7)


# Seen by rules, left out of what is measured


def test_rules_count_them():
    setup = prepare(config(lying(2), aggregation={"rule": "median", "tolerance": 3}))
    assert setup.neighbourhoods == {8: 8}
    assert aggregation.statement(setup)["byzantine_neighbours"] == {"3": 5}
    with pytest.raises(ConfigError, match="tolerance"):
        prepare(config(lying(2), aggregation={"rule": "krum", "tolerance": 4}))


def test_combinations_count_them():
    secagg = config(topology={"kind": "ring"})
    assert Case(secagg, SecAgg, [9]).fewest_senders == 2
    assert Case(secagg.model_copy(update={"topology": config().topology}), SecAgg, [9], peers=8).fewest_senders == 7


def test_honest_figures_leave_them_out():
    _, result, summary = ran(lying(3, nodes=[1]))
    assert summary["nodes"] == 6
    assert sorted(result.models) == list(range(6))
    assert {row.node for row in result.recorder.rows() if row.metric in ("accuracy", "loss")} == set(range(6))
    assert summary["identities"] == {"sybil": 3, "virtual": 0, "owners": [1, 1, 1]}
    assert summary["attacks"]["byzantine"]["nodes"] == [1, 6, 7, 8]
    assert summary["attacks"]["byzantine"]["liars_heard"] == {"4": 5}
    sent = summary["metrics"]["bytes_sent"]
    assert sent["mean"] * 6 == pytest.approx(summary["bytes_sent"])
    assert sent["max"] == pytest.approx(4 * sent["min"])


def test_a_curious_attacker_pools_what_its_identities_hear():
    """The attacker gets the messages of all of them (T6), and takes none of their own for a victim's."""
    table = {"kind": "membership", "every": 1, "most": 2, "scores": ["loss"], "final": False, "nodes": [0]}
    alone, beset = (
        ran(table | ({"identities": 4} if more else {}), topology={"kind": "full"})[2]["attacks"]["messages"]
        for more in (False, True)
    )
    assert len(beset) == 5 * len(alone) == 5 * 2 * 3
    assert {message["attacker"] for message in beset} == {0}
    assert {message.get("identity") for message in beset} == {None, 6, 7, 8, 9}
    assert {message["victim"] for message in beset} == {1, 2, 3, 4, 5}


def test_sybils_of_two_tables_do_not_take_each_other_for_their_own():
    tables = [{"kind": "linkability", "every": 1, "most": 9, "identities": 1, "nodes": [node]} for node in (0, 3)]
    messages = ran(*tables)[2]["attacks"]["messages"]
    by = {who: {message["victim"] for message in messages if message["attacker"] == who} for who in (0, 3)}
    assert by == {0: {1, 2, 3, 4, 5}, 3: {0, 1, 2, 4, 5}}


def test_they_leave_nothing_to_a_spent_budget():
    """What is spent on an identity's training is the attacker's affair: a summary tells of nodes."""
    _, result, summary = ran(lying(1), privacy={"mechanism": "record", "noise_multiplier": 1.0})
    assert sorted(result.spent) == list(range(6))
    assert summary["privacy"]["epsilon"]["max"] > 0


def test_what_identities_send_is_their_device_s():
    setup, recorder = prepare(config(lying(1, nodes=[2]))), Recorder()
    for node, sent in ((0, 1.0), (2, 2.0), (6, 4.0), (6, 5.0)):
        recorder.append(Row(0.0, node, 0, "bytes_sent", sent))
    assert Result(recorder).summary(setup)["metrics"]["bytes_sent"] == {"mean": 4.0, "std": 3.0, "min": 1.0, "max": 7.0}
