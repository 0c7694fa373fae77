"""Who is in which cohort: sizes, what each way of forming promises, and who moves when nodes come and go."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score

from node.cohorts import (
    advised_count,
    at_random,
    best_start,
    by_latency,
    by_loss,
    by_rendezvous,
    by_speed,
    cohort_file,
    completed,
    dissolved,
    distance_costs,
    favourite,
    gradient_noise_scale,
    joined,
    near_costs,
    noised,
    predicted_rounds,
    rendezvous_costs,
    round_time_s,
    similar,
    similar_costs,
    stratified,
    stratified_costs,
    total_variation,
    without,
)
from node.cohorts.forming import name_of, preferred, sizes
from node.cohorts.similarity import balanced
from node.election import score
from node.errors import ConfigError, ProtocolError


def rng_of(seed=0):
    return np.random.default_rng(seed)


def skewed(nodes, seed, classes=10, alpha=0.3):
    """Label counts as a Dirichlet partition leaves them, of unequal nodes."""
    rng = rng_of(seed)
    return {node: rng.multinomial(rng.integers(10, 60), rng.dirichlet([alpha] * classes)) for node in range(nodes)}


def holds_each_once(cohorts, nodes):
    members = [node for cohort in cohorts for node in cohort]
    return sorted(members) == sorted(nodes) and all(list(cohort) == sorted(cohort) for cohort in cohorts)


def spread(cohorts):
    return max(map(len, cohorts)) - min(map(len, cohorts))


def labels_of(cohorts):
    of = {node: number for number, members in enumerate(cohorts) for node in members}
    return [of[node] for node in sorted(of)]


# All ways


WAYS = {
    "random": lambda nodes, cohorts, seed: at_random(nodes, cohorts, rng_of(seed)),
    "speed": lambda nodes, cohorts, seed: by_speed(
        dict(zip(nodes, rng_of(seed).lognormal(size=len(nodes)), strict=True)), cohorts
    ),
    "stratified": lambda nodes, cohorts, seed: stratified(
        {node: rng_of([seed, node]).integers(0, 20, 4) for node in nodes}, cohorts
    ),
    "similar": lambda nodes, cohorts, seed: similar(
        {node: rng_of([seed, node]).normal(size=4) for node in nodes}, cohorts, rng_of(seed), starts=2
    ),
    "latency": lambda nodes, cohorts, seed: by_latency(
        nodes, rng_of(seed).lognormal(size=(len(nodes), len(nodes))), cohorts, rng_of(seed), starts=2
    )[0],
}


@pytest.mark.parametrize("way", WAYS)
@given(
    nodes=st.lists(st.integers(0, 500), unique=True, min_size=1, max_size=25),
    cohorts=st.integers(1, 25),
    seed=st.integers(0, 9),
)
def test_every_node_is_in_one_cohort_and_sizes_are_within_one(way, nodes, cohorts, seed):
    if cohorts > len(nodes):
        with pytest.raises(ConfigError, match=f"cohorts: {cohorts} for {len(nodes)} nodes; allowed: 1 to {len(nodes)}"):
            WAYS[way](nodes, cohorts, seed)
        return
    formed = WAYS[way](nodes, cohorts, seed)
    assert len(formed) == cohorts
    assert holds_each_once(formed, nodes)
    assert spread(formed) <= 1


@pytest.mark.parametrize("way", [way for way in WAYS if way != "latency"])
def test_the_order_in_which_nodes_are_named_changes_nothing(way):
    nodes = list(range(23))
    if way == "speed":
        times = dict(zip(nodes, rng_of(3).lognormal(size=23), strict=True))
        assert by_speed(times, 4) == by_speed(dict(reversed(times.items())), 4)
    else:
        assert WAYS[way](nodes, 4, 1) == WAYS[way](nodes[::-1], 4, 1)


# Nothing revealed, or speed


def test_a_shuffle_gives_the_first_cohorts_one_more():
    formed = at_random(range(11), 4, rng_of(1))
    assert [len(cohort) for cohort in formed] == [3, 3, 3, 2] == sizes(11, 4)
    assert formed == at_random(range(11), 4, rng_of(1))
    assert formed != at_random(range(11), 4, rng_of(2))


def test_no_cohorts_are_refused():
    with pytest.raises(ConfigError, match="0 for 3 nodes"):
        sizes(3, 0)


def test_tiers_are_sorted_by_time_and_equals_by_number():
    assert by_speed({0: 5.0, 1: 1.0, 2: 3.0, 3: 1.0, 4: 9.0}, 2) == ((1, 2, 3), (0, 4))
    assert by_speed({3: 1.0, 0: 1.0, 2: 1.0, 1: 1.0}, 2) == ((0, 1), (2, 3))


def test_the_time_of_a_round_is_training_and_the_model_both_ways():
    assert round_time_s(5, 20, 0.05, 4_000_000, 1e6) == pytest.approx(3 * 5 * 20 * 0.05 + 8)


# Rendezvous


def test_rendezvous_scores_are_golden():
    ids = [f"n{number:02d}" for number in range(8)]
    order = sorted(ids, key=lambda name: score("beacon-0", "cohort-0", name), reverse=True)
    assert order == ["n07", "n04", "n01", "n06", "n02", "n00", "n03", "n05"]
    assert name_of(0) == "cohort-0"


def test_each_goes_where_it_is_drawn_highest():
    formed = by_rendezvous(range(40), 5, "b")
    for number, members in enumerate(formed):
        for node in members:
            assert number == max(range(5), key=lambda cohort: score("b", name_of(cohort), node))
            assert preferred("b", node, 5)[0] == number
    assert holds_each_once(formed, range(40))


@given(st.sets(st.integers(0, 300), min_size=6, max_size=40), st.data())
def test_who_leaves_or_joins_moves_nobody_else(nodes, data):
    gone = data.draw(st.sampled_from(sorted(nodes)))
    before, after = by_rendezvous(sorted(nodes), 5, "b"), by_rendezvous(sorted(nodes - {gone}), 5, "b")
    assert without(before, gone) == after


@given(st.sets(st.integers(0, 300), min_size=8, max_size=40), st.integers(1, 8), st.integers(0, 3), st.randoms())
def test_a_capacity_is_kept_and_nobody_would_rather_swap(nodes, cohorts, room, shuffler):
    capacity = -(-len(nodes) // cohorts) + room
    order = sorted(nodes)
    formed = by_rendezvous(order, cohorts, "b", capacity)
    shuffler.shuffle(order)
    assert by_rendezvous(order, cohorts, "b", capacity) == formed
    assert holds_each_once(formed, nodes)
    assert max(map(len, formed)) <= capacity
    for number, members in enumerate(formed):
        for node in members:
            for better in preferred("b", node, cohorts)[: preferred("b", node, cohorts).index(number)]:
                lowest = min(score("b", name_of(better), member) for member in formed[better])
                assert len(formed[better]) == capacity
                assert lowest > score("b", name_of(better), node)


def test_too_little_room_is_refused():
    with pytest.raises(ConfigError, match=r"capacity: 3 cohorts of 3 do not hold 10 nodes; allowed: 4 or more"):
        by_rendezvous(range(10), 3, "b", capacity=3)


# Labels


@pytest.mark.parametrize(("nodes", "cohorts"), [(40, 4), (30, 7)])
def test_stratified_cohorts_are_nearer_to_the_whole_than_random_ones(nodes, cohorts):
    gains = []
    for seed in range(20):
        histograms = skewed(nodes, seed)
        formed = stratified(histograms, cohorts)
        assert spread(formed) <= 1
        drawn = at_random(range(nodes), cohorts, rng_of(seed))
        gains.append(total_variation(histograms, drawn).mean() - total_variation(histograms, formed).mean())
    assert min(gains) > 0
    assert np.mean(gains) > 0.08


def test_stratified_finds_a_perfect_split():
    """Six pairs of nodes of one class each: every cohort can have one of each pair."""
    histograms = {node: np.eye(6)[node // 2] * 10 for node in range(12)}
    formed = stratified(histograms, 2)
    assert all(sorted(node // 2 for node in cohort) == list(range(6)) for cohort in formed)
    assert total_variation(histograms, formed).tolist() == [0, 0]


@given(st.integers(0, 1000), st.integers(2, 5))
def test_no_swap_of_two_is_left_that_would_help(seed, cohorts):
    histograms = skewed(12, seed, classes=4)
    target = np.sum(list(histograms.values()), axis=0) / cohorts

    def objective(formed):
        return sum(np.abs(sum(histograms[node] for node in members) - target).sum() for members in formed)

    formed = stratified(histograms, cohorts)
    least = objective(formed)
    for a, b in itertools.combinations(range(cohorts), 2):
        for i, j in itertools.product(formed[a], formed[b]):
            swapped = list(formed)
            swapped[a] = tuple({*formed[a], j} - {i})
            swapped[b] = tuple({*formed[b], i} - {j})
            assert objective(swapped) >= least - 1e-6


def test_total_variation_is_0_for_alike_and_1_for_nothing():
    histograms = {0: np.array([5, 0]), 1: np.array([0, 5]), 2: np.array([5, 5])}
    assert total_variation(histograms, ((0, 1), (2,))).tolist() == [0, 0]
    assert total_variation(histograms, ((0,), (1,), (2,))).tolist() == [0.5, 0.5, 0]
    assert total_variation(histograms, ((0, 1, 2), ())).tolist() == [0, 1]


def test_noise_is_laplace_clipped_at_0_and_its_epsilon_is_kept():
    counts = np.full(20_000, 50)
    told = noised(counts, 0.5, rng_of(1))
    assert told.epsilon == 0.5
    noise = told.counts - 50
    assert noise.mean() == pytest.approx(0, abs=0.1)
    assert np.abs(noise).mean() == pytest.approx(2, rel=0.03)
    assert np.median(np.abs(noise)) == pytest.approx(2 * math.log(2), rel=0.03)
    assert noised(np.zeros(1000, int), 0.1, rng_of(2)).counts.min() == 0
    assert np.array_equal(told.counts, noised(counts, 0.5, rng_of(1)).counts)


def test_an_infinite_epsilon_tells_the_truth():
    told = noised(np.array([3, 0, 4]), math.inf, rng_of())
    assert told.counts.tolist() == [3, 0, 4]
    assert math.isinf(told.epsilon)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan])
def test_an_epsilon_without_meaning_is_refused(epsilon):
    with pytest.raises(ConfigError, match="histogram_epsilon"):
        noised(np.array([1]), epsilon, rng_of())


def test_noised_histograms_still_form_better_cohorts():
    histograms = skewed(40, 5)
    told = {node: noised(counts, 1.0, rng_of([5, node])).counts for node, counts in histograms.items()}
    formed, drawn = stratified(told, 4), at_random(range(40), 4, rng_of(5))
    assert total_variation(histograms, formed).mean() < total_variation(histograms, drawn).mean()


# Similarity


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(0, 4))
def test_balanced_assignment_is_the_cheapest_of_all(seed, cohorts, more):
    count = cohorts + more if cohorts < 3 else cohorts + min(more, 2)
    costs = rng_of(seed).normal(size=(count, cohorts))
    wanted = sizes(count, cohorts)
    of = balanced(costs, wanted)
    assert sorted(np.bincount(of, minlength=cohorts)) == sorted(wanted)
    every = itertools.product(range(cohorts), repeat=count)
    allowed = [each for each in every if sorted(np.bincount(each, minlength=cohorts)) == sorted(wanted)]
    cheapest = min(costs[range(count), each].sum() for each in allowed)
    assert costs[range(count), of].sum() == pytest.approx(cheapest)


def test_nodes_of_the_same_labels_are_together_however_many_they_have():
    rng = rng_of(3)
    histograms = {node: np.eye(4)[node % 4] * rng.integers(1, 500) + rng.random(4) * 0.1 for node in range(20)}
    formed = similar(histograms, 4, rng_of(0))
    assert adjusted_rand_score([node % 4 for node in range(20)], labels_of(formed)) == 1.0


def test_nodes_that_are_all_alike_are_divided_all_the_same():
    formed = similar({node: np.ones(3) for node in range(7)}, 3, rng_of(0))
    assert holds_each_once(formed, range(7))
    assert spread(formed) == 1
    zeros = similar({node: np.zeros(3) for node in range(7)}, 3, rng_of(0))
    assert spread(zeros) == 1


def test_a_vector_that_is_not_finite_is_named():
    with pytest.raises(ConfigError, match="features: node 4 has a NaN"):
        similar({2: np.zeros(2), 4: np.array([1, np.nan])}, 1, rng_of())


def plane(seed, nodes=24, groups=3):
    """Round trips between nodes around a few far places; not symmetric, and one far below 0."""
    rng = rng_of(seed)
    places = 1000 * np.array([[0, 0], [3, 0], [0, 4]])[np.arange(nodes) % groups] + rng.normal(size=(nodes, 2)) * 50
    rtt = 5 + 0.1 * np.linalg.norm(places[:, None] - places, axis=2) * rng.lognormal(sigma=0.1, size=(nodes, nodes))
    rtt[0, 1] = -1e4
    return rtt


@pytest.mark.parametrize("seed", range(5))
def test_nodes_near_to_each_other_are_together_and_medoids_are_central(seed):
    rtt, nodes = plane(seed), list(range(100, 124))
    formed, medoids = by_latency(nodes, rtt, 3, rng_of(seed))
    assert adjusted_rand_score(np.arange(24) % 3, labels_of(formed)) == 1.0
    far = np.maximum(rtt, 0) + np.maximum(rtt, 0).T
    np.fill_diagonal(far, 0)
    for members, medoid in zip(formed, medoids, strict=True):
        rows = [node - 100 for node in members]
        assert medoid in members
        assert medoid - 100 == rows[int(far[np.ix_(rows, rows)].sum(axis=0).argmin())]


def test_round_trips_of_another_shape_or_unknown_are_refused():
    with pytest.raises(ConfigError, match="shape"):
        by_latency([0, 1], np.zeros((3, 3)), 1, rng_of())
    with pytest.raises(ConfigError, match="node 9"):
        by_latency([8, 9], np.array([[0, 1], [np.inf, 0]]), 1, rng_of())


# Clusters of nodes whose digits are rotated alike

IMAGES, DIGITS = load_digits(return_X_y=True)
ROTATION = [node // 5 for node in range(20)]


def rotated(seed):
    """Features with a constant [samples, 65] and labels [samples, 10] of 20 nodes, 5 to each rotation."""
    parts = np.array_split(rng_of(seed).permutation(len(DIGITS)), 20)
    data = []
    for part, turn in zip(parts, ROTATION, strict=True):
        images = np.rot90(IMAGES[part].reshape(-1, 8, 8) / 16, turn, axes=(1, 2)).reshape(len(part), -1)
        data.append((np.hstack([images, np.ones((len(part), 1))]), np.eye(10)[DIGITS[part]]))
    return data


def probabilities(weights, features):
    logits = features @ weights
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def trained(weights, features, labels, steps):
    for _ in range(steps):
        weights = weights - 0.5 * features.T @ (probabilities(weights, features) - labels) / len(features)
    return weights


def losses_of(models, data):
    return {
        node: [-np.log((probabilities(model, features) * labels).sum(axis=1)).mean() for model in models]
        for node, (features, labels) in enumerate(data)
    }


@pytest.mark.parametrize("seed", range(3))
def test_updates_tell_rotations_apart(seed):
    updates = {node: trained(np.zeros((65, 10)), *data, 20) for node, data in enumerate(rotated(seed))}
    assert adjusted_rand_score(ROTATION, labels_of(similar(updates, 4, rng_of(seed)))) == 1.0


def test_the_best_start_of_loss_based_choice_tells_rotations_apart():
    data, ends = rotated(0), []
    for start in range(6):
        models = [rng_of([start, k]).normal(size=(65, 10)) * 0.3 for k in range(4)]
        for _ in range(12):
            formed = by_loss(losses_of(models, data))
            models = [
                np.mean([trained(model, *data[node], 10) for node in members], axis=0) if members else model
                for model, members in zip(models, formed, strict=True)
            ]
        ends.append(losses_of(models, data))
    scores = [adjusted_rand_score(ROTATION, labels_of(by_loss(end))) for end in ends]
    assert scores[best_start(ends)] == 1.0
    assert min(scores) < 1.0


def test_the_lowest_loss_is_chosen_the_first_of_equals_and_never_one_that_is_not_finite():
    assert favourite([2.0, 1.0, 1.0]) == 1
    assert favourite([math.nan, 5.0, -math.inf]) == 1
    assert favourite([math.nan, math.inf]) == 0
    assert by_loss({3: [1.0, 2.0, 3.0], 1: [2.0, 1.0, 0.5], 2: [0.0, 1.0, 1.0]}) == ((2, 3), (), (1,))


# From a file


def written(tmp_path, text):
    path = tmp_path / "cohorts.txt"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_cohorts_are_read_from_a_file(tmp_path):
    path = written(tmp_path, "# node cohort\n0 1\n3 0  # the server's neighbour\n\n1 0\n2 1\n")
    assert cohort_file.read(path, range(4)) == ((1, 3), (0, 2))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0 0\n1 0\n", "missing: 2"),
        ("0 0\n1 0\n2 0\n1 0\n", "node 1 is on lines 2 and 4"),
        ("0 0\n1 1\n1 0\n", "node 1 is on lines 2 and 3; missing: 2"),
        ("0 0\n1 0\n2 0\n7 0\n", "unknown: 7"),
        ("0 0\n1 2\n2 2\n", "cohort 1 has no members"),
        ("0 0\n1\n2 0\n", "cohorts.txt:2: '1'"),
        ("0 0\n1 x\n", "cohorts.txt:2: '1 x'"),
        ("-1 0\n", "cohorts.txt:1: '-1 0'"),
        ("", "missing: 0, 1, 2"),
    ],
)
def test_a_wrong_file_is_one_line_that_says_what_is_wrong(tmp_path, text, said):
    with pytest.raises(ConfigError) as error:
        cohort_file.read(written(tmp_path, text), range(3))
    assert said in str(error.value)
    assert str(error.value).startswith("protocol.path: ")
    assert "\n" not in str(error.value)


def test_many_missing_nodes_are_counted(tmp_path):
    with pytest.raises(ConfigError, match="missing: 1, 2, 3, 4, 5 and 94 more"):
        cohort_file.read(written(tmp_path, "0 0\n"), range(100))


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        cohort_file.read(str(tmp_path / "none"), range(3))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not text"):
        cohort_file.read(str(tmp_path / "binary"), range(3))


# Coming and going


def test_a_joiner_goes_to_the_cheapest_cohort_with_room():
    cohorts = ((0, 1, 2), (3, 4), (5,))
    assert joined(cohorts, 9, [0.0, 2.0, 1.0]) == ((0, 1, 2), (3, 4), (5, 9))
    assert joined(cohorts, 9, [0.0, 2.0, 1.0], capacity=4) == ((0, 1, 2, 9), (3, 4), (5,))
    assert joined(cohorts, 9, [1.0, 1.0, 1.0], capacity=9) == ((0, 1, 2, 9), (3, 4), (5,))


def test_a_dissolved_cohort_is_not_joined():
    assert joined(((0,), (), (1,)), 2, [1.0, 0.0, 0.5]) == ((0,), (), (1, 2))


def test_who_has_a_cohort_or_finds_no_room_is_refused():
    with pytest.raises(ProtocolError, match="node 1 joins a second cohort"):
        joined(((0, 1),), 1, [0.0])
    with pytest.raises(ProtocolError, match="no cohort has room"):
        joined(((0, 1), (2, 3)), 4, [0.0, 0.0], capacity=2)
    with pytest.raises(ProtocolError, match="no cohort has room"):
        joined(((), ()), 4, [0.0, 0.0])


@given(st.integers(2, 6), st.integers(0, 30))
def test_joiners_keep_cohorts_balanced(cohorts, comers):
    formed = at_random(range(cohorts), cohorts, rng_of())
    for node in range(cohorts, cohorts + comers):
        formed = joined(formed, node, rendezvous_costs("b", node, cohorts))
    assert holds_each_once(formed, range(cohorts + comers))
    assert max(map(len, formed)) == -(-(cohorts + comers) // cohorts)


def test_stratified_costs_ask_for_what_a_cohort_lacks():
    histograms = {0: np.array([10, 0]), 1: np.array([0, 10])}
    costs = stratified_costs(histograms, ((0,), (1,)), np.array([0, 10]))
    assert costs[0] < costs[1]
    assert joined(((0,), (1,)), 2, costs, capacity=2) == ((0, 2), (1,))


def test_stratified_costs_are_by_how_much_the_objective_grows():
    histograms, cohorts = {0: np.array([6, 2]), 1: np.array([1, 3])}, ((0,), (1,), ())
    target = np.array([9, 9]) / 2
    expected = [np.abs([8 - 4.5, 6 - 4.5]).sum() - np.abs([6 - 4.5, 2 - 4.5]).sum()]
    expected += [np.abs([3 - 4.5, 7 - 4.5]).sum() - np.abs([1 - 4.5, 3 - 4.5]).sum()]
    expected += [np.abs([2 - 4.5, 4 - 4.5]).sum() - target.sum()]
    assert stratified_costs(histograms, cohorts, np.array([2, 4])) == pytest.approx(expected)


def test_distance_costs_ask_for_those_alike():
    features = {0: np.array([0.0, 0.0]), 1: np.array([2.0, 0.0]), 2: np.array([9.0, 9.0])}
    assert distance_costs(features, ((0, 1), (2,), ()), np.array([1.0, 3.0])) == [3.0, 10.0, math.inf]


def test_similar_costs_go_by_what_labels_are_in_common_and_not_by_how_many():
    histograms = {0: (90, 10), 1: (1, 9), 2: (0, 0)}
    near, far, nothing, nobody = similar_costs(histograms, ((0,), (1,), (2,), ()), (9, 1))
    assert (near, nothing) == pytest.approx((0.0, 1.0))
    assert nothing < far < math.sqrt(2)
    assert nobody == math.inf
    assert similar_costs(histograms, ((0,), (2,)), (0, 0)) == pytest.approx([1.0, 0.0])


def test_near_costs_are_mean_round_trips_to_those_that_were_measured():
    assert near_costs({1: 0.2, 2: 0.4, 5: 0.1}, ((0, 1, 2), (5, 6), (7,), ())) == pytest.approx(
        [0.3, 0.1, math.inf, math.inf]
    )


def test_a_small_cohort_dissolves_in_rendezvous_order():
    cohorts = ((0, 1, 2, 3), (4,), (5, 6, 7, 8))
    first = max((0, 2), key=lambda cohort: score("b", name_of(cohort), 4))
    after = dissolved(cohorts, 2, "b")
    assert after[1] == ()
    assert 4 in after[first]
    assert holds_each_once(after, range(9))
    assert dissolved(cohorts, 1, "b") == cohorts


@given(st.lists(st.integers(0, 6), min_size=1, max_size=6), st.integers(0, 8))
def test_after_dissolving_no_cohort_is_too_small_but_the_last(counts, min_size):
    ends = list(itertools.accumulate(counts, initial=0))
    cohorts = tuple(tuple(range(start, end)) for start, end in itertools.pairwise(ends))
    after = dissolved(cohorts, min_size, "b")
    live = [members for members in after if members]
    assert len(after) == len(cohorts)
    assert holds_each_once(after, range(sum(counts)))
    assert len(live) <= 1 or min(map(len, live)) >= min_size
    assert all(not members or set(members) >= set(old) for members, old in zip(after, cohorts, strict=True))


# How many


def test_the_noise_scale_is_that_of_the_distribution():
    rng, mean = rng_of(1), np.full(50, 0.3)
    updates = mean + rng.normal(size=(4000, 50)) * 2.0
    expected = 50 * 4 / (50 * 0.09)
    assert gradient_noise_scale([updates]) == pytest.approx(expected, rel=0.15)
    assert gradient_noise_scale(np.split(updates, 100)) == pytest.approx(expected, rel=0.15)
    assert gradient_noise_scale([[mean, mean, mean]]) == pytest.approx(0, abs=1e-9)
    assert math.isinf(gradient_noise_scale([[mean, -mean]]))
    with pytest.raises(ConfigError, match="a round of 1 updates; allowed: 2 or more"):
        gradient_noise_scale([[mean, mean], [mean]])


@pytest.mark.parametrize(
    ("noise_scale", "floors", "expected"),
    [
        (10, {}, 4),
        (0, {}, 20),
        (math.inf, {}, 1),
        (2, {}, 20),
        (2, {"least_samples": 200}, 4),
        (2, {"least_holders": 4}, 5),
        (2, {"least_samples": 10_000}, 1),
        (1, {"least_holders": 0}, 40),
    ],
)
def test_there_are_as_many_cohorts_as_noise_and_floors_allow(noise_scale, floors, expected):
    """40 nodes of 20 samples, of classes 0 and 1; class 1 is with half of them, class 2 nowhere."""
    histograms = {node: np.array([20, 0, 0]) if node % 2 else np.array([10, 10, 0]) for node in range(40)}
    assert advised_count(noise_scale, histograms, **{"least_holders": 1, **floors}) == expected


def test_predicted_rounds_hardly_fall_beyond_the_noise_scale():
    assert predicted_rounds(100, 50, 10, 50) == 100
    assert predicted_rounds(100, 10, 10, 20) == pytest.approx(75)
    assert predicted_rounds(100, 1000, 10, 10) == pytest.approx(198, abs=0.1)
    assert predicted_rounds(100, 10, math.inf, 20) == 50


# Round trips that not everybody has measured


def test_what_was_measured_by_either_is_taken_and_the_rest_is_the_shortest_way():
    known = completed({3: {5: 2.0, 9: 10.0}, 5: {9: 1.0}, 9: {}})
    assert known.tolist() == [[0, 2, 3], [2, 0, 1], [3, 1, 0]]


def test_nodes_without_a_way_are_twice_as_far_as_any():
    known = completed({0: {1: 4.0}, 1: {}, 2: {3: 1.0}, 3: {2: 0.5}})
    assert known[0, 1] == known[1, 0] == 4.0
    assert known[2, 3] == known[3, 2] == 0.5
    assert (known[:2, 2:] == 8.0).all()


def test_what_is_no_time_or_of_a_stranger_is_passed_over():
    known = completed({0: {1: math.inf, 7: 0.1}, 1: {0: 3.0}, 2: {0: -1.0, 1: math.nan}})
    assert known[0, 1] == 3.0
    assert known[0, 2] == pytest.approx(0, abs=1e-5)
    assert np.isfinite(completed({0: {}, 1: {}})).all()


@given(st.integers(6, 40), st.integers(0, 99))
def test_a_few_round_trips_find_two_places(nodes, seed):
    """Each node measures five others of its own place and five others, far away: all ways within a place are short."""
    place = [node % 2 for node in range(nodes)]
    rng = rng_of(seed)
    measured = {
        node: {
            int(peer): (1.0 if place[peer] == place[node] else 50.0) + float(rng.random())
            for peer in [*rng.permutation(range(place[node], nodes, 2))[:5], *rng.permutation(nodes)[:5]]
            if peer != node
        }
        for node in range(nodes)
    }
    cohorts, medoids = by_latency(range(nodes), completed(measured), 2, rng)
    assert {len({place[node] for node in members}) for members in cohorts} == {1}
    assert {place[medoid] for medoid in medoids} == {0, 1}
