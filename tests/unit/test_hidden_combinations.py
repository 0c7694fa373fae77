"""What the table of combinations, and a summary, say of protocols that hide models."""

import pytest

from node.errors import ConfigError
from node.experiment.gossiping import doubt, fewest_senders
from node.experiment.loading import load
from node.experiment.setup import prepare
from node.experiment.virtual import run_virtual
from protocols.muffliato import Muffliato

SMALL = ["clock=virtual", "nodes=8", "topology.degree=4", "model.hidden=[8]", "protocol.rounds=2"]
UNCLIPPED = "noise on models whose updates are not clipped guarantees nothing"
DROPOUT = "noise for nodes that drop out does not cancel"
NODE = ["privacy.mechanism=node", "privacy.noise_multiplier=0.5"]


def config(use, *sets):
    return load("digits-gossip", [*SMALL, f"protocol.use={use}", *sets], {})


def warned(use, *sets):
    return prepare(config(use, *sets)).warnings


def says(warnings, text):
    return any(text in warning for warning in warnings)


# Rejected


@pytest.mark.parametrize("topology", [["topology.kind=ring"], ["topology.kind=star"], ["topology.degree=2"]])
def test_sums_of_fewer_than_three_senders_are_refused(topology):
    with pytest.raises(ConfigError, match=r"topology: a node with [12] neighbours can learn .* secagg allows 3"):
        prepare(config("secagg", *topology))
    assert fewest_senders(config("secagg", *topology)) < 3
    prepare(config("secagg", "topology.degree=3"))


def test_robust_rules_cannot_look_into_sums():
    for use in ("secagg", "zipdl", "decor", "shatter", "muffliato"):
        with pytest.raises(ConfigError, match=r"aggregation\.rule: protocol .* does not aggregate models"):
            prepare(config(use, "aggregation.rule=median"))


@pytest.mark.parametrize("use", ["muffliato", "decor"])
def test_noise_is_not_clipped_away(use):
    with pytest.raises(ConfigError, match=r'protocol\.clip: would cut noise that privacy\.mechanism = "node"'):
        prepare(config(use, *NODE))
    prepare(config(use, *NODE, "protocol.clip=0"))


def test_accelerated_gossip_needs_symmetric_mixing():
    one_peer = ["topology.kind=one-peer"]
    with pytest.raises(ConfigError, match="W: a spectral gap needs a symmetric matrix"):
        prepare(config("muffliato", *one_peer))
    assert not says(warned("muffliato", *one_peer, "protocol.accelerated=false"), "gossip_rounds")


def test_secret_noise_is_not_kept_for_another_run(tmp_path):
    cached = ["privacy.noise=secret", f"executor.cache={tmp_path}"]
    with pytest.raises(ConfigError, match="secret noise must not be used again"):
        prepare(config("zipdl", *cached))
    prepare(config("dpsgd", *cached))


# Warned of


def test_noise_without_clipping_is_no_guarantee():
    for use in ("muffliato", "decor"):
        assert says(warned(use, "protocol.clip=0"), UNCLIPPED)
        assert not says(warned(use), UNCLIPPED)
        assert not says(warned(use, "protocol.clip=0", "protocol.noise=0"), UNCLIPPED)
    assert says(warned("zipdl"), UNCLIPPED)
    assert not says(warned("zipdl", *NODE), UNCLIPPED)


def test_too_few_gossip_rounds_are_told():
    """The rounds of the paper's theorem, for a ring of eight with a gap of 0.1953."""
    ring = ["topology.kind=ring"]
    told = "protocol.gossip_rounds: 10 is below the 12 after which all nodes have nearly the same model"
    assert says(warned("muffliato", *ring), told)
    assert not says(warned("muffliato", *ring, "protocol.gossip_rounds=12"), "gossip_rounds")
    assert "below the 28 after" in doubt(config("muffliato", *ring), Muffliato.Config(accelerated=False))
    assert doubt(config("muffliato", *ring), Muffliato.Config(noise=0)) == ""
    private = config("muffliato", *ring, *NODE)
    assert "below the 5 after" in doubt(private, Muffliato.Config(gossip_rounds=1, noise=0))


def test_noise_for_those_who_may_go_is_warned_of():
    churn = ['churn.schedule=[{time_s=1.0, node=2, what="crash"}]']
    for use in ("zipdl", "decor"):
        assert says(warned(use, "protocol.deadline_s=1"), DROPOUT)
        assert says(warned(use, *churn), DROPOUT)
        assert not says(warned(use), DROPOUT)
    assert not says(warned("secagg", "protocol.deadline_s=1"), DROPOUT)


def test_a_host_and_the_time_link_what_virtual_nodes_do():
    assert says(warned("shatter"), "virtual nodes of one host share its network address")


def test_a_real_run_with_secrets_from_the_seed_is_warned_of():
    for use in ("zipdl", "decor", "secagg", "muffliato"):
        assert says(warned(use, "clock=real", "privacy.noise=seeded"), "insecure keys")
        assert not says(warned(use, "clock=real"), "insecure keys")
        assert not says(warned(use), "insecure keys")
    assert not says(warned("dpsgd", "clock=real", "privacy.noise=seeded"), "insecure keys")


# The summary


@pytest.mark.parametrize(("noise", "insecure"), [("auto", True), ("secret", False)])
def test_a_summary_says_whether_secrets_are_secret(noise, insecure):
    setup = prepare(config("secagg", f"privacy.noise={noise}"))
    result = run_virtual(setup, lambda *_: None)
    privacy = result.summary(setup)["privacy"]
    result.close()
    assert (result.status, privacy["insecure_keys"]) == ("finished", insecure)
    assert privacy["side_channels"] == ["participant set"]


def test_secret_masks_leave_no_trace_and_secret_noise_does():
    """The masks of a sum cancel to the last bit, wherever they come from."""

    def models(use, noise):
        result = run_virtual(prepare(config(use, f"privacy.noise={noise}")), lambda *_: None)
        found = {node: bytes(model.numpy().data) for node, model in result.models.items()}
        result.close()
        return found

    assert models("secagg", "seeded") == models("secagg", "secret")
    assert models("zipdl", "seeded") == models("zipdl", "seeded") != models("zipdl", "secret")
