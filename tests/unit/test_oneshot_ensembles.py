"""Ensembles: whose word counts how much, who is asked at all, and what copies of a client change."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node.errors import ConfigError
from node.learn.models import Dense
from node.learn.oneshot.algorithm import Upload
from node.learn.oneshot.catalogue import configured
from node.learn.oneshot.ensembles import (
    LabelWeightedLogits,
    LabelWeightedProbabilities,
    LogitEnsemble,
    MaskedProbabilities,
    ProbabilityEnsemble,
    SizeWeightedLogits,
    SizeWeightedProbabilities,
    VoteEnsemble,
    label_weights,
)
from node.learn.oneshot.robust import MedianEnsemble, TrimmedEnsemble
from node.learn.oneshot.selecting import DiverseEnsemble, SelectedEnsemble
from node.learn.workload import prepare_torch
from oneshot_clients import handmade, trained

MLP = Dense("mlp", (6, 5, 3))
GOLDEN_COUNTS = [(10, 0, 30), (30, 20, 0), (0, 20, 0)]
GOLDEN = torch.tensor([[0.7, 0.1, 0.2], [0.2, 0.5, 0.3], [0.05, 0.9, 0.05]])
PLAIN = (LogitEnsemble, ProbabilityEnsemble, VoteEnsemble, SizeWeightedLogits, SizeWeightedProbabilities)
BY_LABEL = (LabelWeightedLogits, LabelWeightedProbabilities, MaskedProbabilities)


@pytest.fixture(autouse=True)
def _one_thread():
    prepare_torch()


@pytest.fixture
def small():
    return handmade(MLP, (6,), 3)


def option(kind, **options):
    return kind(kind.Config(**options))


def told(own, claims, scores=None):
    """Uploads of clients that claim these counts."""
    scores = scores or [0.5] * len(claims)
    return [
        Upload("it", own.declares, i + 1, torch.zeros(1), {}, sum(counts), counts, score)
        for i, (counts, score) in enumerate(zip(claims, scores, strict=True))
    ]


def spoken(own, world, seed=9):
    """What an ensemble says of random samples."""
    features = torch.rand(40, 6, generator=torch.Generator().manual_seed(seed))
    return own.predict(world.aggregated(own), features, world.assets(own))


def sized(small, *sizes):
    """The same models, whose clients hold so many samples."""
    data = [(torch.zeros(size, 6), torch.arange(size) % 3) for size in sizes]
    return small._replace(data=data)


# Weights


def test_golden_label_weights_and_what_they_make_of_probabilities():
    own = LabelWeightedProbabilities()
    weights = label_weights(told(own, GOLDEN_COUNTS))
    assert weights.tolist() == [[0.25, 0.0, 1.0], [0.75, 0.5, 0.0], [0.0, 0.5, 0.0]]
    found = own.together(GOLDEN.log().unsqueeze(1), weights.float().unsqueeze(1))
    assert found[0].tolist() == pytest.approx([0.265306, 0.571429, 0.163265], abs=1e-6)


def test_a_class_that_nobody_has_weighs_all_alike():
    weights = label_weights(told(LabelWeightedLogits(), [(4, 0, 0), (0, 4, 0)]))
    assert weights[:, 2].tolist() == [0.5, 0.5]


def test_a_masked_model_chooses_among_its_own_classes():
    own = MaskedProbabilities()
    weights = label_weights(told(own, GOLDEN_COUNTS)).float().unsqueeze(1)
    found = own.together(GOLDEN.log().unsqueeze(1), weights)[0]
    # .7 and .2 of the first client's own classes, .2 and .5 of the second's, and the third knows one class alone.
    scores = [0.25 * 0.7 / 0.9 + 0.75 * 0.2 / 0.7, 0.5 * 0.5 / 0.7 + 0.5, 0.2 / 0.9]
    assert found.tolist() == pytest.approx([score / sum(scores) for score in scores])


def test_who_claims_no_sample_at_all_is_not_heard():
    own = MaskedProbabilities()
    honest = label_weights(told(own, GOLDEN_COUNTS)).float().unsqueeze(1)
    beside = label_weights(told(own, [*GOLDEN_COUNTS, (0, 0, 0)])).float().unsqueeze(1)
    louder = torch.cat([GOLDEN.log(), torch.tensor([[50.0, -50.0, 0.0]])]).unsqueeze(1)
    found = own.together(louder, beside)
    assert torch.allclose(found, own.together(GOLDEN.log().unsqueeze(1), honest), atol=1e-6)


def test_samples_weigh_models(small):
    world = sized(small, 30, 10, 20)
    features = torch.rand(5, 6, generator=torch.Generator().manual_seed(1))
    each = [world.task.logits(flat, features) for flat in world.models]
    shares = (1 / 2, 1 / 6, 1 / 3)
    logits = sum(share * said for share, said in zip(shares, each, strict=True)).softmax(1)
    probabilities = sum(share * said.softmax(1) for share, said in zip(shares, each, strict=True))
    for own, expected in ((SizeWeightedLogits(), logits), (SizeWeightedProbabilities(), probabilities)):
        found = own.predict(world.aggregated(own), features, world.assets(own))
        assert torch.allclose(found, expected, atol=1e-6)


def test_most_votes_win_and_probabilities_decide_between_equals():
    own, weights = VoteEnsemble(), torch.full((3, 1, 3), 1 / 3)
    votes = torch.tensor([[0.5, 0.3, 0.2], [0.45, 0.35, 0.2], [0.0, 0.99, 0.01]]).log().clamp_min(-50).unsqueeze(1)
    assert own.together(votes, weights).argmax(1).tolist() == [0]
    split = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.8, 0.1]]).log().unsqueeze(1)
    assert own.together(split, torch.full((2, 1, 3), 1 / 2)).argmax(1).tolist() == [1]


@pytest.mark.parametrize("kind", [ProbabilityEnsemble, VoteEnsemble, MedianEnsemble, TrimmedEnsemble])
def test_a_model_that_is_too_large_for_its_logits_silences_nobody(kind, small):
    alike = small._replace(models=small.models[:1] * 4, data=small.data[:1] * 4)
    huge = torch.full_like(small.models[0], 3e38)
    found = spoken(kind(), alike._replace(models=[*alike.models, huge], data=small.data[:1] * 5))
    assert torch.isfinite(found).all()
    if kind is not ProbabilityEnsemble:  # one that is sure of a class outweighs four that are not
        assert torch.equal(found.argmax(1), spoken(kind(), alike).argmax(1))


# Copies


@pytest.mark.parametrize("kind", [*PLAIN, *BY_LABEL, DiverseEnsemble])
def test_copies_of_one_client_are_that_client(kind, small):
    own, every = kind(), (torch.rand(30, 6), torch.arange(30) % 3)
    alone = small._replace(models=small.models[:1], data=[every])
    copied = small._replace(models=small.models[:1] * 4, data=[every] * 4)
    one, four = spoken(own, alone), spoken(own, copied)
    assert torch.equal(one.argmax(1), four.argmax(1))
    if kind is not DiverseEnsemble:  # of one kind there are as many votes, or one
        assert torch.allclose(one, four, atol=1e-6)


@pytest.mark.parametrize("kind", [LogitEnsemble, ProbabilityEnsemble])
def test_a_copy_doubles_a_client_s_weight(kind, small):
    twice = small._replace(models=[*small.models, small.models[0]], data=[*small.data, small.data[0]])
    weighted = type("Weighted", (kind,), {"weights": lambda *_: torch.tensor([[2.0], [1], [1]]).expand(3, 3) / 4})()
    assert torch.allclose(spoken(kind(), twice), spoken(weighted, small), atol=1e-6)


@pytest.mark.parametrize("kind", BY_LABEL)
def test_a_copy_with_half_of_the_counts_each_changes_nothing(kind):
    own = kind()
    whole = label_weights(told(own, [(8, 4, 2), (2, 6, 0)])).float().unsqueeze(1)
    halved = label_weights(told(own, [(4, 2, 1), (4, 2, 1), (2, 6, 0)])).float().unsqueeze(1)
    logits = torch.randn(2, 20, 3, generator=torch.Generator().manual_seed(3))
    copied = torch.stack([logits[0], logits[0], logits[1]])
    assert torch.allclose(own.together(logits, whole), own.together(copied, halved), atol=1e-6)


# Selections


def chosen(own, claims, scores=None):
    """The clients that an ensemble listens to."""
    world = handmade(MLP, (6,), 3, clients=len(claims))
    uploads = told(own, claims, scores)
    for upload, model in zip(uploads, world.models, strict=True):
        upload._model = model
    weights = own.weights(uploads, world.assets(own))
    assert torch.allclose(weights.sum(0), torch.ones(3))
    assert len({*weights[weights > 0].tolist()}) == 1
    return [i + 1 for i in range(len(claims)) if weights[i, 0] > 0]


CLAIMS = [(10, 0, 0), (5, 5, 5), (1, 1, 1), (9, 1, 0), (7, 7, 7)]
SCORES = [0.9, 0.2, 0.9, 0.5, 0.7]


@pytest.mark.parametrize(
    ("options", "members"),
    [
        ({"members": 2}, [1, 3]),
        ({"members": 3}, [1, 3, 5]),
        ({"members": 9, "least": 0.5}, [1, 3, 4, 5]),
        ({"by": "samples", "members": 1}, [5]),
        ({"by": "samples", "members": 3}, [1, 2, 5]),
        ({"by": "samples", "members": 9, "least": 10}, [1, 2, 4, 5]),
        ({"by": "chance", "members": 9}, [1, 2, 3, 4, 5]),
    ],
)
def test_who_is_chosen(options, members):
    assert chosen(option(SelectedEnsemble, **options), CLAIMS, SCORES) == members


def test_chance_chooses_as_many_as_it_is_asked_and_the_same_again():
    own = option(SelectedEnsemble, by="chance", members=2)
    found = chosen(own, CLAIMS)
    assert len(found) == 2
    assert found == chosen(own, CLAIMS)


def test_nobody_who_is_good_enough_is_an_error():
    with pytest.raises(ConfigError, match=r"^protocol.options.least: no client has score of 0.95$"):
        chosen(option(SelectedEnsemble, least=0.95), CLAIMS, SCORES)


@pytest.mark.parametrize(
    ("by", "cell"), [("score", "R1 .* S1"), ("samples", "R1 .* S0"), ("chance", "R0 D0 W0 H1 M2 F1 S0")]
)
def test_what_a_selection_needs_follows_from_what_counts(by, cell):
    found = configured("ensemble-selected", f'{{"by": "{by}"}}').declares.cell
    assert found[:2] == cell[:2]
    assert found[-2:] == cell[-2:]


def test_a_threshold_of_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"^protocol.options.least: nothing counts where chance chooses"):
        configured("ensemble-selected", '{"by": "chance", "least": 3}')


# One of each kind


@given(st.permutations(range(6)))
def test_of_each_kind_the_largest_votes_whatever_the_order(order):
    """Three kinds of last layers, two clients of each, a little apart."""
    world = handmade(MLP, (6,), 3, clients=6, samples=10)
    kinds = [world.models[i // 2] + 1e-3 * (i % 2) for i in range(6)]
    mixed = world._replace(models=[kinds[i] for i in order], data=[world.data[i] for i in order])
    own = option(DiverseEnsemble, kinds=3)
    weights = own.weights(mixed.uploads(own), mixed.assets(own))
    voting = sorted(order[i] for i in range(6) if weights[i, 0] > 0)
    assert voting == [1, 3, 5]  # the second of each kind holds more
    assert torch.allclose(weights[weights > 0], torch.tensor(1 / 3))


def test_only_the_last_layer_tells_kinds(small):
    world = handmade(MLP, (6,), 3, clients=4, samples=10)
    last = next(part.start for name, part, _ in MLP.parts if name == "3.weight")
    models = [torch.cat([world.models[i][:last], world.models[i // 2][last:]]) for i in range(4)]
    own = option(DiverseEnsemble, kinds=2)
    weights = own.weights(world._replace(models=models).uploads(own), world.assets(own))
    assert [i for i in range(4) if weights[i, 0] > 0] == [1, 3]


def test_where_there_are_no_more_models_than_kinds_all_vote(small):
    assert torch.allclose(spoken(option(DiverseEnsemble, kinds=3), small), spoken(VoteEnsemble(), small), atol=1e-6)


def test_masking_and_label_weights_beat_plain_means_under_strong_skew():
    cell = trained("dirichlet-0.1", 1)
    plain, weighted, masked = (
        cell.accuracy(kind()) for kind in (ProbabilityEnsemble, LabelWeightedProbabilities, MaskedProbabilities)
    )
    assert weighted > plain + 10
    assert masked > plain + 10
