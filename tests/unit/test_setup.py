"""From a configuration to everything that both worlds run it with."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from node import Mod, Observer
from node.config import ExperimentConfig
from node.errors import ConfigError
from node.experiment.setup import find_protocol, prepare
from node.op import Spec
from node.solver import BatchedExecutor, InlineExecutor
from protocols.dpsgd import DPSGD


class Louder(Mod):
    class Config(Mod.Config):
        by: float = 1.0


class Looking(Observer):
    """Sees."""


HERE = __name__


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """This file, as a module that an experiment can name."""
    monkeypatch.setitem(sys.modules, HERE, sys.modules[__name__])


def config(**tables) -> ExperimentConfig:
    small = {"nodes": 4, "topology": {"kind": "full"}, "model": {"name": "softmax"}, "protocol": {"use": "dpsgd"}}
    return ExperimentConfig.model_validate(small | tables)


def refusal(**tables) -> str:
    with pytest.raises(ConfigError) as refused:
        prepare(config(**tables))
    assert "\n" not in str(refused.value)
    return str(refused.value)


# Protocols


def test_a_protocol_gets_its_own_options():
    setup = prepare(config(protocol={"use": "dpsgd", "rounds": 7}))
    assert setup.protocol is DPSGD
    assert setup.options == DPSGD.Config(rounds=7)
    one, other = setup.make_protocol(), setup.make_protocol()
    assert one is not other
    assert one.config is other.config


def test_a_protocols_options_are_checked_before_anything_is_built():
    assert refusal(protocol={"use": "dpsgd", "rounds": 0}, data={"name": "none.csv"}).startswith("protocol.rounds: ")
    told = refusal(protocol={"use": "epidemic", "degree": 4}, data={"name": "none.csv"})
    assert told == "protocol.degree: 4 receivers where each node has 3 others; allowed: 1 to 3"


def test_a_protocols_own_topologies_are_checked():
    told = refusal(nodes=5, protocol={"use": "epidemic", "variant": "oracle", "degree": 3})
    assert told.startswith("topology.degree: 3 neighbours for 5 nodes gives an odd number of edge ends")


def test_a_protocol_can_be_found_without_its_data():
    protocol, options = find_protocol(config(data={"name": "none.csv"}))
    assert (protocol, options.rounds) == (DPSGD, 100)


# Data


def test_only_learners_are_given_data():
    setup = prepare(config(nodes=5, protocol={"use": "fedavg"}))
    sizes = [setup.workload.shard_size(node) for node in range(5)]
    assert setup.roles == {0: "server"}
    assert sizes[0] == 0
    assert min(sizes[1:]) > 0
    everybody = prepare(config(nodes=4, protocol={"use": "dpsgd"}))
    assert sizes[1:] == [everybody.workload.shard_size(node) for node in range(4)]
    for node in range(1, 5):
        np.testing.assert_array_equal(
            setup.workload.label_histogram(node), everybody.workload.label_histogram(node - 1)
        )


def test_the_seed_decides_who_gets_what():
    data = {"partition": "dirichlet", "alpha": 0.3}

    def histograms(seed):
        workload = prepare(config(seed=seed, data=data)).workload
        return [workload.label_histogram(node).tolist() for node in range(4)]

    assert histograms(1) == histograms(1) != histograms(2)


# Mods


def test_mods_and_observers_are_made_for_the_nodes_they_wrap():
    mods = [
        {"use": f"{HERE}:Louder", "nodes": [1, 2], "by": 3.0},
        {"use": f"{HERE}:Looking"},
        {"use": f"{HERE}:Louder", "nodes": [2]},
    ]
    setup = prepare(config(mods=mods))
    names = {
        node: ([mod.config.by for mod in wrapping.mods], len(wrapping.observers))
        for node in range(4)
        if (wrapping := setup.wrapping(node)) is not None
    }
    assert names == {0: ([], 1), 1: ([3.0], 1), 2: ([3.0, 1.0], 1), 3: ([], 1)}
    assert setup.wrapping(1).mods[0] is not setup.wrapping(1).mods[0], "each call makes new ones"


def test_a_node_without_mods_is_not_wrapped():
    setup = prepare(config(mods=[{"use": f"{HERE}:Louder", "nodes": []}]))
    assert [setup.wrapping(node) for node in range(4)] == [None] * 4


@pytest.mark.parametrize(
    ("mod", "told"),
    [
        ({"use": f"{HERE}:Louder", "nodes": [4]}, "mods[0].nodes: there is no node 4; allowed: 0 to 3"),
        ({"use": f"{HERE}:Louder", "nodes": [-1]}, "mods[0].nodes: there is no node -1; allowed: 0 to 3"),
        ({"use": f"{HERE}:Louder", "by": "x"}, "mods[0].by: input should be a valid number"),
        ({"use": f"{HERE}:Looking", "by": 1}, "mods[0].by: there is no such key"),
        ({"use": f"{HERE}:config"}, f"mods[0].use: {HERE}:config is neither a node.Mod nor a node.Observer"),
        ({"use": f"{HERE}:DPSGD"}, f"mods[0].use: {HERE}:DPSGD is neither a node.Mod nor a node.Observer"),
        (
            {"use": "top-q"},
            "mods[0].use: no mod is called 'top-q'; did you mean 'top-k'?; known: bf16, int8, random-k, top-k, or",
        ),
        ({"use": "top-k", "nodes": [1]}, "mods[0].nodes: 'top-k' wraps all nodes, or receivers cannot read"),
        ({"use": "top-k", "share": 0}, "mods[0].share: input should be greater than 0"),
        ({"use": "bf16", "share": 0.5}, "mods[0].share: there is no such key"),
    ],
)
def test_a_mod_that_cannot_be_is_refused(mod, told):
    assert refusal(mods=[mod]).startswith(told)


def test_models_are_compressed_once_and_not_under_the_eyes_of_attackers():
    twice = [{"use": "bf16"}, {"use": f"{HERE}:Looking"}, {"use": "top-k"}]
    assert refusal(mods=twice).startswith("mods[2].use: models are compressed already; allowed is one compression")
    attackers = [{"kind": "membership", "nodes": [0]}]
    told = refusal(mods=[{"use": "int8"}], attackers=attackers)
    assert told.startswith("mods[0].use: attackers read models as they are on the wire, which compression packs")


def test_every_node_takes_in_packed_models_and_knows_how_to_unpack():
    setup = prepare(config(mods=[{"use": "int8"}]))
    model = setup.workload.model_spec
    packed = Spec((model.shape[0] + 4,), "uint8")
    assert setup.shapes == {model, packed}
    assert prepare(config()).shapes == {model}
    for node in range(4):
        (mod,) = setup.wrapping(node).mods
        assert mod.carried(setup.shapes) == setup.shapes


def test_the_number_of_a_wrong_mod_is_told():
    assert refusal(mods=[{"use": f"{HERE}:Louder"}, {"use": f"{HERE}:Loud"}]).startswith("mods[1].use: ")


# Models and executors


def test_a_model_in_the_current_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    (tmp_path / "setup_model.py").write_text(
        "import math\nfrom torch import nn\n"
        "def wide(shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))\n"
    )
    try:
        setup = prepare(config(model={"name": "setup_model:wide"}))
    finally:
        sys.modules.pop("setup_model", None)
    assert setup.model.dimension == 64 * 10 + 10


def test_the_executor_is_what_the_experiment_names():
    assert isinstance(prepare(config(executor={"kind": "inline"})).executor(), InlineExecutor)
    assert isinstance(prepare(config(executor={"kind": "batched"})).executor(), BatchedExecutor)
