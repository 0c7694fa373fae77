"""Matching neurons in one shot: orders that are undone, transport, atoms, and networks that cannot be matched."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import nn

from node.config import ModelSection
from node.errors import ConfigError
from node.learn.models import Dense, build
from node.learn.oneshot.averaging import WeightedAverage
from node.learn.oneshot.catalogue import configured
from node.learn.oneshot.matching import OptimalTransport, WeightMatching, transported, weight_matched
from node.learn.oneshot.neurons import Atoms, Pfnm
from node.learn.oneshot.units import Units, hidden_units
from node.learn.workload import prepare_torch
from oneshot_clients import PARTITIONS, fitted, handmade, sequence, trained

DEEP = Dense("mlp", (6, 7, 5, 4, 3))
FLAT = Dense("mlp", (6, 5, 3))
SEEDS = (0, 1)


@pytest.fixture(autouse=True)
def _one_thread():
    prepare_torch()


def convolutional(norms):
    """Two convolutions and two dense layers; ``norms``: groups of a normalisation after the first, 0: none."""
    return sequence(
        lambda: (
            nn.Conv2d(1, 6, 3, padding=1),
            nn.GroupNorm(norms, 6) if norms else nn.Identity(),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Sequential(nn.Conv2d(6, 4, 3, padding=1, bias=False), nn.Tanh()),
            nn.Flatten(),
            nn.Linear(4 * 9, 5),
            nn.ReLU(),
            nn.Linear(5, 3),
        )
    )


def shuffled(model, flat, seed):
    """The same network with its units in other places."""
    chance = torch.Generator().manual_seed(seed)
    turned = flat.clone()
    for units in hidden_units(model):
        size = units.size // units.groups
        order = [torch.randperm(size, generator=chance) + size * group for group in range(units.groups)]
        units.permute(model.named(turned), torch.cat(order))
    return turned


def aligned(how, model, reference, other, seed=0):
    if how == "weights":
        return weight_matched(model, reference, other, np.random.default_rng(seed))
    return transported(model, reference, other)


# Units and their order


def test_units_of_a_dense_network():
    first, second, third = hidden_units(DEEP)
    assert (first.makers, first.reader, first.size) == (("1.weight", "1.bias"), "3.weight", 7)
    assert (second.size, third.size, third.reader) == (5, 4, "7.weight")
    parameters = DEEP.named(DEEP.initial(0))
    assert torch.equal(first.incoming(parameters)[2, :6].float(), parameters["1.weight"][2])
    assert float(first.incoming(parameters)[2, 6]) == float(parameters["1.bias"][2])
    assert torch.equal(first.outgoing(parameters)[2].float(), parameters["3.weight"][:, 2])


def test_units_of_a_convolutional_network_are_channels_and_blocks_of_columns():
    model = convolutional(norms=2)
    first, second, third = hidden_units(model)
    assert first == Units(("0.weight", "0.bias", "1.weight", "1.bias"), "4.0.weight", 6, 2)
    assert (second.makers, second.reader, third.size) == (("4.0.weight",), "6.weight", 5)
    parameters = model.named(model.initial(0))
    assert first.incoming(parameters).shape == (6, 9 + 1 + 1 + 1)
    assert torch.equal(second.outgoing(parameters)[1].float(), parameters["6.weight"][:, 9:18].flatten())


@pytest.mark.parametrize("norms", [0, 1, 2, 6])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_network_says_the_same_whatever_the_order_of_its_units(norms, seed):
    model = convolutional(norms)
    flat, features = model.initial(seed), torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    turned = shuffled(model, flat, seed)
    assert not torch.allclose(turned, flat, atol=1e-3)
    assert torch.allclose(model.logits(turned, features), model.logits(flat, features), atol=1e-5)


@pytest.mark.parametrize("how", ["weights", "transport"])
@given(seed=st.integers(0, 10_000))
def test_any_order_of_three_layers_is_undone(how, seed):
    flat = DEEP.initial(seed)
    assert torch.allclose(aligned(how, DEEP, flat, shuffled(DEEP, flat, seed), seed), flat, atol=1e-6, rtol=0)


@pytest.mark.parametrize("how", ["weights", "transport"])
@pytest.mark.parametrize("norms", [0, 1, 2, 6])
def test_any_order_of_channels_is_undone(how, norms):
    model = convolutional(norms)
    if norms == 6:
        assert hidden_units(model)[0].groups == 1, "normalised one by one, they may go anywhere"
    flat = model.initial(3)
    assert torch.allclose(aligned(how, model, flat, shuffled(model, flat, 4)), flat, atol=1e-6, rtol=0)


def test_matching_leaves_what_it_is_given_as_it_was_and_needs_no_order_of_layers():
    flat, other = DEEP.initial(0), shuffled(DEEP, DEEP.initial(0), 1)
    before = flat.clone(), other.clone()
    found = [aligned("weights", DEEP, flat, other, seed) for seed in range(3)]
    assert torch.equal(flat, before[0])
    assert torch.equal(other, before[1])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@given(st.integers(0, 10_000))
def test_weight_matching_of_other_networks_brings_them_no_further_away(seed):
    ours, theirs = DEEP.initial(seed), DEEP.initial(seed + 1)
    found = aligned("weights", DEEP, ours, theirs, seed)
    assert float(ours @ found) >= float(ours @ theirs) - 1e-5
    features = torch.rand(3, 6, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(DEEP.logits(found, features), DEEP.logits(theirs, features), atol=1e-5)


@given(st.integers(0, 10_000))
def test_one_layer_is_matched_as_well_as_can_be(seed):
    small = Dense("mlp", (3, 4, 2))
    ours, theirs = small.initial(seed), small.initial(seed + 1)
    (units,) = hidden_units(small)
    best = -math.inf
    for order in itertools.permutations(range(4)):
        turned = theirs.clone()
        units.permute(small.named(turned), torch.tensor(order))
        best = max(best, float(ours @ turned))
    assert float(ours @ aligned("weights", small, ours, theirs)) == pytest.approx(best, abs=1e-5)


@given(st.integers(0, 1000))
def test_transport_of_equal_masses_is_an_assignment(seed):
    """The linear program over all plans, which might split units, finds nothing shorter."""
    small, size = Dense("mlp", (3, 4, 2)), 4
    ours, theirs = small.initial(seed), small.initial(seed + 1)
    (units,) = hidden_units(small)
    into = units.incoming(small.named(ours))
    way = torch.cdist(into, units.incoming(small.named(theirs)))
    rows, columns = np.kron(np.eye(size), np.ones(size)), np.kron(np.ones(size), np.eye(size))
    plan = linprog(way.flatten().numpy(), A_eq=np.vstack([rows, columns]), b_eq=np.full(2 * size, 1 / size))
    found = units.incoming(small.named(transported(small, ours, theirs)))
    assert float((into - found).norm(dim=1).mean()) == pytest.approx(plan.fun, abs=1e-6)


# Algorithms


@pytest.mark.parametrize("kind", [WeightMatching, OptimalTransport])
def test_models_are_put_in_the_order_of_the_one_that_has_seen_most(kind):
    world = handmade(DEEP, (6,), 3)
    flat = DEEP.initial(9)
    alike = world._replace(models=[shuffled(DEEP, flat, 1), shuffled(DEEP, flat, 2), flat])
    merged = alike.aggregated(kind())
    assert torch.allclose(merged, flat, atol=1e-6)
    assert not torch.allclose(alike.aggregated(WeightedAverage()), flat, atol=1e-2)


@pytest.mark.parametrize("kind", [WeightMatching, OptimalTransport])
def test_with_nothing_hidden_matching_is_averaging(kind):
    world = handmade(Dense("softmax", (6, 3)), (6,), 3)
    assert torch.allclose(world.aggregated(kind()), world.aggregated(WeightedAverage()), atol=1e-6)


def test_models_that_have_started_apart_need_matching():
    """Without a common start, averaging falls far behind what it is with one, and matching does not."""
    cell = trained("iid", 0)
    model = cell.world.task.model
    starts = [model.initial(10 + i) for i in range(len(cell.world.data))]
    models = [
        fitted(model, start, *own, epochs=20, seed=i)
        for i, (start, own) in enumerate(zip(starts, cell.world.data, strict=True))
    ]
    apart = cell._replace(world=cell.world._replace(models=models))
    plain = apart.accuracy(WeightedAverage())
    assert plain < cell.accuracy(WeightedAverage()) - 15
    for kind in (WeightMatching, OptimalTransport, Pfnm):
        assert apart.accuracy(kind()) > plain + 10, kind


@pytest.mark.parametrize(
    ("partition", "mean", "spread"),
    [*zip(PARTITIONS, (93.8, 82.4, 56.2, 39.1), (0.9, 2.0, 9.1, 9.6), strict=True)],
)
def test_matched_averaging_of_digits_by_the_reference_figures(partition, mean, spread):
    cells = [trained(partition, seed) for seed in SEEDS]
    matched, plain = (np.mean([cell.accuracy(own) for cell in cells]) for own in (WeightMatching(), WeightedAverage()))
    assert matched == pytest.approx(mean, abs=max(3 * spread, 3))
    assert matched == pytest.approx(plain, abs=6), "where all have started alike, there is little to match"


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("weight-matching", "R1 D0 W0 H0 M1 F1 S0"),
        ("ot-fusion", "R1 D0 W0 H0 M1 F1 S0"),
        ("pfnm", "R2 D0 W0 H0 M1 F1 S0"),
    ],
)
def test_no_common_start_is_needed(name, cell):
    assert configured(name, "{}").declares.cell == cell


# Atoms


def posterior(atoms):
    """Each atom's precision-weighted mean and its precision."""
    return [(pull.tolist(), precision.tolist()) for pull, precision in zip(atoms._pull, atoms._precision, strict=True)]


def test_scores_are_those_of_the_paper():
    clients, prior, gamma, noise = 4, 0.5, 7.0, 2.0
    atoms = Atoms(clients, 2, prior, gamma)
    first = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
    precision = torch.tensor([1 / noise, 0.3 / noise], dtype=torch.float64)
    atoms.add(first, precision)
    neurons = torch.tensor([[0.9, -1.5], [4.0, 4.0]], dtype=torch.float64)
    found = atoms.scores(neurons, precision)
    assert found.shape == (2, 4)
    for i, neuron in enumerate(neurons.tolist()):
        for j, (pull, known) in enumerate(posterior(atoms)):
            fit = sum(
                (w * s + g) ** 2 / (s + k) - g**2 / k
                for w, s, g, k in zip(neuron, precision.tolist(), pull, known, strict=True)
            )
            assert float(found[i, j]) == pytest.approx(fit + math.log(1 / (clients - 1)))
        fit = sum((w * s) ** 2 / (1 / prior + s) for w, s in zip(neuron, precision.tolist(), strict=True))
        for k in (1, 2):
            expected = fit - 2 * math.log(k) + 2 * math.log(gamma / clients)
            assert float(found[i, 1 + k]) == pytest.approx(expected)


def test_atoms_are_posterior_means_of_the_neurons_that_share_them():
    atoms = Atoms(2, 3, prior=4.0, gamma=1.0)
    ones = torch.ones(3, dtype=torch.float64)
    atoms.add(torch.tensor([[9.0, 0, 0], [0, 9, 0]], dtype=torch.float64), ones)
    atoms.add(torch.tensor([[0, 8.0, 0], [0, 0, 9]], dtype=torch.float64), ones)
    alone = 9 / 1.25
    expected = [[alone, 0, 0], [0, 17 / 2.25, 0], [0, 0, alone]]
    assert atoms.means.tolist() == [pytest.approx(row) for row in expected]


def test_a_larger_mass_makes_more_atoms():
    chance = torch.Generator().manual_seed(0)
    clients = [torch.randn(6, 3, generator=chance, dtype=torch.float64) for _ in range(4)]
    sizes = []
    for gamma in (1e-6, 7.0, 1e6):
        atoms = Atoms(4, 3, 1.0, gamma)
        for neurons in clients:
            atoms.add(neurons, torch.ones(3, dtype=torch.float64))
        sizes.append(len(atoms.means))
    assert sizes == sorted(sizes)
    assert sizes[0] == 6
    assert sizes[-1] == 24


def atoms_of(world, own):
    """The rows of a result that are no padding, and the biases."""
    inputs, _, classes = world.task.model.widths
    state = world.aggregated(own)
    rows = state[:-classes].view(-1, inputs + 1 + classes)
    return rows[rows.abs().sum(1) > 0], state[-classes:]


def test_pfnm_of_one_network_in_several_orders_is_as_wide_as_that_network():
    """All neurons meet their like; the means are drawn to 0 by the prior alone."""
    world = handmade(FLAT, (6,), 3)
    flat = 5 * FLAT.initial(4)
    alike = world._replace(models=[shuffled(FLAT, flat, i) for i in range(3)])
    rows, biases = atoms_of(alike, Pfnm())
    parameters = FLAT.named(alike.models[2])  # that of most samples comes first
    assert torch.allclose(rows[:, :6], 3 / 4 * parameters["1.weight"], atol=1e-5)
    assert torch.allclose(rows[:, 7:], parameters["3.weight"].T / 2, atol=1e-5)
    assert torch.allclose(biases, parameters["3.bias"] / 2, atol=1e-5)


def test_pfnm_widens_where_networks_have_learned_other_things():
    world = handmade(FLAT, (6,), 3)
    far = world._replace(models=[30 * flat for flat in world.models])
    assert 5 < len(atoms_of(far, Pfnm())[0]) <= 15


def test_weights_out_of_a_neuron_count_by_its_clients_share_of_each_class():
    world = handmade(FLAT, (6,), 3, clients=2)
    labels = [torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 1, 1])]
    data = [(torch.zeros(4, 6), each) for each in labels]
    flat = 5 * FLAT.initial(4)
    models = [flat, flat.clone()]
    FLAT.named(models[0])["3.bias"].copy_(torch.tensor([4.0, 4.0, 4.0]))
    FLAT.named(models[1])["3.bias"].copy_(torch.tensor([0.0, 8.0, 8.0]))
    _, biases = atoms_of(world._replace(data=data, models=models), Pfnm())
    # (3/4 4 + 1/4 0) / (1 + 1), (1/4 4 + 3/4 8) / 2, and a class that nobody has.
    assert biases.tolist() == pytest.approx([1.5, 3.5, 0.0])


def test_an_atom_that_is_not_used_says_nothing():
    world, own = handmade(FLAT, (6,), 3), Pfnm()
    features = torch.rand(4, 6, generator=torch.Generator().manual_seed(1))
    rows, biases = atoms_of(world, own)
    told = own.predict(world.aggregated(own), features, world.assets(own))
    hidden = (features @ rows[:, :6].T + rows[:, 6]).relu()
    assert torch.allclose(told, (hidden @ rows[:, 7:] + biases).softmax(1), atol=1e-6)


# What cannot be matched


@pytest.mark.parametrize("kind", [WeightMatching, OptimalTransport])
def test_networks_that_are_no_sequence_are_refused(kind):
    task = handmade(build(ModelSection(name="resnet8"), (1, 8, 8), 4), (1, 8, 8), 4, clients=1).task
    with pytest.raises(ConfigError, match=r"^model.name: units of 'resnet8' cannot be matched.*allowed: [^\n]*$"):
        kind().result(task, 3)


def test_layers_that_mix_units_are_refused():
    with pytest.raises(ConfigError, match="it has a LayerNorm"):
        hidden_units(sequence(lambda: (nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))))
    with pytest.raises(ConfigError, match="it has a Conv2d"):
        hidden_units(sequence(lambda: (nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(4, 2))))


@pytest.mark.parametrize("model", [Dense("softmax", (6, 3)), DEEP, convolutional(0)], ids=lambda model: model.name)
def test_pfnm_takes_one_hidden_layer(model):
    task = handmade(model, (6,) if isinstance(model, Dense) else (1, 6, 6), 3, clients=1).task
    with pytest.raises(ConfigError, match=r"^model.name: .* allowed: 'mlp' with one hidden layer"):
        Pfnm().result(task, 3)


@pytest.mark.parametrize("key", ["noise", "prior", "gamma"])
def test_bad_options_of_pfnm_are_one_line(key):
    with pytest.raises(ConfigError, match=rf"^protocol.options.{key}: [^\n]*$"):
        configured("pfnm", f'{{"{key}": 0}}')


@pytest.mark.parametrize("own", [WeightMatching(), OptimalTransport(), Pfnm()], ids=lambda own: type(own).__name__)
def test_costs_grow_with_uploads(own):
    task = handmade(FLAT, (6,), 3, clients=1).task
    costs = [own.aggregation_flops(task, uploads, 0) for uploads in (1, 2, 20)]
    assert costs == sorted(costs)
    assert costs[2] > 5 * costs[1]
