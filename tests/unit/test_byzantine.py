"""Byzantine attacks: their golden values, what they know, and what holds for all of them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from node.attack import byzantine
from node.attack.byzantine import ATTACKS, View, alie_z, lie, told, told_at_random
from node.attack.identities import byzantine_neighbours, draw_byzantine, sybil_identities
from node.config import TopologySection
from node.errors import ConfigError
from node.learn.robust import RULES, aggregate
from node.learn.workers import find
from node.op import Key
from node.testing import check_op
from node.topology import build

HONEST = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 1, 1]], dtype=torch.float32)
OWN = torch.tensor([2.0, -1.0, 0.5])


def models(seed, n=8, d=5):
    return torch.from_numpy(np.random.default_rng(seed).normal(1, 1, (n, d))).float()


def view(**known):
    return View(**{"own": OWN, "honest": HONEST, "nodes": 20, "byzantine": 4, **known})


def run(attack, seed=0, **options):
    known = {
        name: options.pop(name) for name in ("own", "honest", "nodes", "byzantine", "to", "target") if name in options
    }
    return lie(view(**known), attack, np.random.default_rng(seed), **options)


# Golden values


@pytest.mark.parametrize(
    ("attack", "options", "expected"),
    [
        ("sign-flip", {}, [-2, 1, -0.5]),
        ("sign-flip", {"of": "mean"}, [-3.25, -4, -4.75]),
        ("ipm", {}, [-0.325, -0.4, -0.475]),
        ("ipm", {"epsilon": 0.5}, [-1.625, -2, -2.375]),
        ("foe", {}, [-32.5, -40, -47.5]),
        ("alie", {"z": 1.5}, [-1.0584, -0.7434, -0.5]),
        ("alie", {"z": -1.5}, [7.5584, 8.7434, 10.0]),
        ("two-faced", {"to": 2}, [7.5584, 8.7434, 10.0]),
        ("two-faced", {"to": 3}, [-1.0584, -0.7434, -0.5]),
        ("mimic", {"victim": 1}, [4, 5, 6]),
        ("mimic", {"victim": 7}, [1, 1, 1]),
    ],
)
def test_golden_value(attack, options, expected):
    assert run(attack, **options).tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("nodes", "liars", "z"), [(20, 4, 0.15731068), (50, 12, 0.33603814), (10, 2, 0)])
def test_z_of_alie(nodes, liars, z):
    assert alie_z(nodes, liars) == pytest.approx(z, abs=1e-8)


def test_alie_finds_its_z_from_how_many_there_are():
    expected = HONEST.double().mean(0) - 0.15731068 * HONEST.double().std(0)
    assert torch.allclose(run("alie"), expected.float(), atol=1e-6)


@pytest.mark.parametrize(("nodes", "liars"), [(10, 6), (2, 0), (1, 0), (4, 4), (10, -1)])
def test_alie_needs_honest_nodes_to_persuade(nodes, liars):
    with pytest.raises(ConfigError, match=f"{liars} of {nodes} nodes are no minority"):
        alie_z(nodes, liars)


@pytest.mark.parametrize(("value", "wanted"), [("nan", math.isnan), ("inf", math.isinf)])
def test_not_finite(value, wanted):
    assert all(wanted(number) for number in run("nonfinite", value=value).tolist())


def test_gaussian_noise_has_the_scale_it_is_given():
    own = torch.full((40_000,), 5.0)
    around = run("gaussian", own=own, honest=own[None], sigma=3.0)
    alone = run("gaussian", own=own, honest=own[None], sigma=3.0, around="zero")
    assert (float(around.mean()), float(around.std())) == pytest.approx((5, 3), abs=0.1)
    assert (float(alone.mean()), float(alone.std())) == pytest.approx((0, 3), abs=0.1)


def test_one_known_model_does_not_vary():
    assert torch.equal(run("alie", honest=HONEST[:1]), HONEST[0])


# Dissensus


def test_dissensus_pushes_as_hard_as_the_honest_pull():
    """Equal weights 1/8: with all liars saying this, the target's mix is where it was."""
    lied = run("dissensus", target=1)
    mixed = torch.cat([HONEST, lied.repeat(4, 1)]).mean(0)
    assert mixed.tolist() == pytest.approx(HONEST[1].tolist(), abs=1e-5)


def test_dissensus_beyond_1_drives_the_target_away():
    mean = HONEST.mean(0)
    mixed = torch.cat([HONEST, run("dissensus", target=1, epsilon=1.5).repeat(4, 1)]).mean(0)
    assert torch.linalg.vector_norm(mixed - mean) > torch.linalg.vector_norm(HONEST[1] - mean)


def test_dissensus_has_nothing_to_say_to_whom_it_does_not_know():
    assert torch.equal(run("dissensus"), OWN)


# Attacks that look for the worst


@settings(max_examples=10)
@given(st.integers(0, 2**32), st.sampled_from(["mean", "median", "trimmed-mean", "krum"]))
@pytest.mark.parametrize(
    ("optimal", "plain", "option"), [("optimal-ipm", "ipm", "epsilon"), ("optimal-alie", "alie", "z")]
)
def test_no_other_factor_that_it_tries_does_more_harm(optimal, plain, option, seed, rule):
    honest = models(seed)

    def harm(lied):
        reached = aggregate(torch.cat([honest, lied.repeat(2, 1)]), rule, 2)
        return float(torch.linalg.vector_norm(reached.double() - honest.double().mean(0)))

    found = harm(run(optimal, honest=honest, own=honest[0], byzantine=2, rule=rule))
    for factor in byzantine._FACTORS:
        other = run(plain, honest=honest, own=honest[0], byzantine=2, **{option: factor})
        assert found >= harm(other) - 1e-5


def test_against_the_mean_the_largest_factor_is_the_worst():
    assert torch.allclose(run("optimal-ipm"), run("ipm", epsilon=100.0))


def test_it_sees_the_rule_as_its_target_does():
    """MoNNA judges by the own model: what does the most harm depends on whom it is told to."""
    lies = {tuple(run("optimal-ipm", target=target, rule="monna").tolist()) for target in range(4)}
    assert len(lies) > 1


def test_whoever_knows_too_little_for_a_rule_tries_it_with_fewer_liars():
    assert run("optimal-alie", honest=HONEST[:1], rule="median", byzantine=4).isfinite().all()
    assert run("optimal-ipm", honest=HONEST[:1], rule="krum", byzantine=1).isfinite().all()


@pytest.mark.parametrize("rule", ["median", "krum", "mda", "geometric-median"])
def test_robust_rules_bound_what_even_the_worst_can_do(rule):
    honest = models(3)
    lied = run("optimal-ipm", honest=honest, own=honest[0], byzantine=2, rule=rule)
    reached = aggregate(torch.cat([honest, lied.repeat(2, 1)]), rule, 2)
    widest = torch.cdist(honest, honest).max()
    assert torch.linalg.vector_norm(reached - honest.mean(0)) < widest


# What holds for all of them


@pytest.mark.parametrize("attack", ATTACKS)
def test_it_is_seeded_leaves_its_inputs_alone_and_keeps_the_shape(attack):
    own, honest = OWN.clone(), HONEST.clone()
    told = run(attack, own=own, honest=honest, target=0)
    assert told.shape == own.shape
    assert told.dtype == own.dtype
    assert torch.equal(told, run(attack, target=0)) or attack == "nonfinite"
    differs = not torch.equal(told, run(attack, seed=1, target=0))
    assert differs == (ATTACKS[attack].is_random or attack == "nonfinite")
    told.fill_(99.0)
    assert torch.equal(own, OWN)
    assert torch.equal(honest, HONEST)


@pytest.mark.parametrize("attack", ATTACKS)
def test_whether_it_reads_what_the_honest_have_trained(attack):
    options = {"of": "mean"} if attack == "sign-flip" else {}
    one, other = (run(attack, honest=honest, target=0, **options) for honest in (HONEST, models(1, 4, 3)))
    assert torch.equal(one.nan_to_num(), other.nan_to_num()) != ATTACKS[attack].needs_honest


@pytest.mark.parametrize("attack", ATTACKS)
def test_whether_it_tells_each_receiver_something_else(attack):
    one, other = (run(attack, to=to, target=to) for to in (0, 1))
    differs = not torch.equal(one.nan_to_num(), other.nan_to_num())
    assert differs == ATTACKS[attack].is_per_receiver


@pytest.mark.parametrize("attack", sorted(set(ATTACKS) - {"gaussian"}))
def test_as_an_op(attack):
    numbers = {"nodes": 20, "byzantine": 4, "to": 1, "target": 1}
    check_op(told, [OWN, *HONEST], attack=attack, **numbers)
    check_op(told, [OWN], attack=attack, nodes=20, byzantine=4)


def test_a_random_attack_as_an_op():
    check_op(told_at_random, [OWN], attack="gaussian", nodes=20, byzantine=4, sigma=2.0)


@pytest.mark.parametrize("op", [told, told_at_random])
def test_other_processes_and_the_cache_find_the_op(op):
    assert find(op.name) is op
    assert len(op.basis(Key(0, 0, 1))) == 16


# Bad input


@pytest.mark.parametrize(
    ("attack", "options", "message"),
    [
        ("ipm", {"sigma": 1.0}, "mods.sigma: no option of 'ipm' (there are epsilon)"),
        ("mimic", {"victim": -1}, "mods.victim: -1 means nothing to 'mimic'; allowed: 0, 1, 2, ..."),
        ("ipm", {"epsilon": math.nan}, "mods.epsilon: nan means nothing to 'ipm'; allowed: finite numbers"),
        ("alie", {"z": True}, "mods.z: True means nothing to 'alie'; allowed: finite numbers"),
        ("gaussian", {"sigma": -1.0}, "mods.sigma: -1.0 means nothing to 'gaussian'"),
        ("gaussian", {"around": "one"}, "mods.around: 'one' means nothing to 'gaussian'; allowed: own, zero"),
        ("sign-flip", {"of": "all"}, "mods.of: 'all' means nothing to 'sign-flip'; allowed: own, mean"),
        ("nonfinite", {"value": "0"}, "mods.value: '0' means nothing to 'nonfinite'; allowed: nan, inf"),
        ("optimal-ipm", {"rule": "ubar"}, "mods.rule: 'ubar' means nothing to 'optimal-ipm'; allowed: mean, median,"),
        (
            "optimal-ipm",
            {"pre": ("bucketing",)},
            "mods.pre: ('bucketing',) means nothing to 'optimal-ipm'; allowed: nnm,",
        ),
        ("nonfinite", {"epsilon": 1.0}, "mods.epsilon: no option of 'nonfinite' (there are value)"),
    ],
)
def test_bad_options_get_one_line(attack, options, message):
    with pytest.raises(ConfigError) as caught:
        ATTACKS[attack].check(attack, options)
    assert str(caught.value).startswith(message)


def test_good_options_pass():
    ATTACKS["optimal-alie"].check("optimal-alie", {"rule": "krum", "pre": ("nnm", "arc")})
    ATTACKS["gaussian"].check("gaussian", {"sigma": 0, "around": "zero"})
    for rule in sorted(set(RULES) - {"ubar"}):
        ATTACKS["optimal-ipm"].check("optimal-ipm", {"rule": rule})


# Who lies


@given(st.integers(0, 2**32), st.integers(1, 30))
def test_liars_are_drawn_from_the_seed(seed, nodes):
    liars = seed % nodes
    drawn = draw_byzantine(nodes, liars, np.random.default_rng(seed))
    assert drawn == draw_byzantine(nodes, liars, np.random.default_rng(seed))
    assert drawn == tuple(sorted(set(drawn)))
    assert len(drawn) == liars
    assert all(0 <= node < nodes for node in drawn)


def test_someone_must_be_honest():
    with pytest.raises(ConfigError, match="4 of 4 nodes; at least one must be honest"):
        draw_byzantine(4, 4, np.random.default_rng(0))


def test_sybils_are_counted_on_from_the_nodes():
    assert sybil_identities(10, [7, 2], 3) == {7: (7, 10, 11, 12), 2: (2, 13, 14, 15)}
    assert sybil_identities(10, [7, 2], 0) == {7: (7,), 2: (2,)}


@pytest.mark.parametrize("attackers", [[10], [-1], [3, 3]])
def test_sybils_belong_to_nodes_that_there_are(attackers):
    with pytest.raises(ConfigError, match="need different numbers from 0 to 9"):
        sybil_identities(10, attackers, 1)


def test_how_many_liars_the_honest_hear():
    ring = build(TopologySection(kind="ring"), 6, 0)
    sources = {node: ring.sources(node, 0) for node in range(6)}
    assert byzantine_neighbours(sources, (0, 2)) == {0: 1, 1: 2, 2: 1}
    assert byzantine_neighbours(sources, ()) == {0: 6}
