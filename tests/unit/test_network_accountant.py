"""The network accountant: reference values, identities, what attackers can really do, and logs that make no sense."""

import itertools
import math

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from node.errors import ConfigError
from node.privacy import gaussian, gossip, lineage
from node.privacy.eavesdropper import decor_mu
from node.privacy.lineage import Input, Lineage, Made, Noise, Received, Variable, decode, encode, private
from node.privacy.network import NetworkAccountant, mu_matrix
from node.privacy.rowspace import RowSpace

RING8, RING16 = nx.cycle_graph(8), nx.cycle_graph(16)
HYPERCUBE8, COMPLETE8 = nx.hypercube_graph(3), nx.complete_graph(8)


def adjacency(graph):
    return nx.to_numpy_array(graph, nodelist=sorted(graph)) > 0


def weights(graph):
    return gossip.metropolis(adjacency(graph))


def gossiped(matrices, fresh=False, sigma=1.0):
    """The log of gossip with these mixing matrices: everyone sends to whom it has a weight for, then mixes."""
    nodes, ids = range(len(matrices[0])), itertools.count()
    now = {node: next(ids) for node in nodes}
    records = [Made(now[node], node, 0, (), 1.0, (private(node, 0, sigma),)) for node in nodes]
    for round, matrix in enumerate(matrices, 1):
        records += [Received(now[j], i) for i in nodes for j in nodes if i != j and matrix[i, j]]
        before, now = now, {node: next(ids) for node in nodes}
        for i in nodes:
            terms = tuple((before[j], float(matrix[i, j])) for j in nodes if matrix[i, j])
            noise = (private(i, round, sigma),) if fresh else ()
            records.append(Made(now[i], i, round, terms, float(fresh), noise))
    return Lineage(records)


def averaging(graph, rounds, **options):
    return gossiped([weights(graph)] * rounds, **options)


@st.composite
def gossip_logs(draw, fresh=None):
    nodes = draw(st.integers(3, 7))
    rounds = draw(st.integers(1, 4))
    pairs = list(itertools.combinations(range(nodes), 2))
    matrices = []
    for _ in range(rounds):
        chosen = draw(st.lists(st.sampled_from(pairs), min_size=1, max_size=2 * nodes, unique=True))
        graph = nx.empty_graph(nodes)
        graph.add_edges_from(chosen)
        matrices.append(weights(graph))
    return matrices, draw(st.booleans()) if fresh is None else fresh


# Reference values


@pytest.mark.parametrize(
    ("graph", "rounds", "published", "exact"),
    [
        (RING8, 2, [1.3333, 0.3333, 0, 0, 0, 0.3333, 1.3333], [1, 1, 0, 0, 0, 1, 1]),
        (HYPERCUBE8, 2, [1.25, 1.25, 0.5, 1.25, 0.5, 0.5, 0], [1, 1, 1, 1, 1, 1, 0]),
        (COMPLETE8, 3, [2.75] * 7, [1] * 7),
    ],
)
def test_published_sums_and_exact_leverages(graph, rounds, published, exact):
    log = averaging(graph, rounds)
    views = [NetworkAccountant(log, {attacker}) for attacker in range(1, 8)]
    assert [view.published_mu(0) ** 2 for view in views] == pytest.approx(published, abs=1e-4)
    assert [view.leverage(0) for view in views] == pytest.approx(exact, abs=1e-9)
    assert [view.mu(0) ** 2 for view in views] == pytest.approx(exact, abs=1e-9)


def test_published_sums_are_neither_above_nor_below():
    short = NetworkAccountant(averaging(RING8, 2), {2})
    assert short.published_mu(0) ** 2 == pytest.approx(1 / 3)
    assert short.mu(0) ** 2 == pytest.approx(1)
    long = NetworkAccountant(averaging(RING8, 8), {1})
    assert long.published_mu(0) ** 2 == pytest.approx(3.79, abs=5e-3)
    assert long.mu(0) ** 2 == pytest.approx(1)


def test_a_large_regular_graph():
    graph = nx.random_regular_graph(4, 256, seed=1)
    view = NetworkAccountant(averaging(graph, 10), {0})
    leverages = np.array([view.leverage(node) for node in range(256)])
    far = [node for node, hops in nx.single_source_shortest_path_length(graph, 0).items() if hops == 5]
    assert view.resolved
    assert leverages[1:].mean() == pytest.approx(40 / 255, abs=1e-9)
    assert leverages[far].mean() == pytest.approx(0.110, abs=1e-3)
    assert np.mean([view.published_mu(node) ** 2 for node in far]) == pytest.approx(0.012, abs=1e-3)


def test_a_graph_redrawn_every_round():
    matrices = [weights(nx.random_regular_graph(4, 100, seed=round)) for round in range(10)]
    view = NetworkAccountant(gossiped(matrices), {0})
    assert np.mean([view.leverage(node) for node in range(1, 100)]) == pytest.approx(40 / 99, abs=1e-9)


def test_fresh_noise_by_distance():
    view = NetworkAccountant(averaging(RING16, 10, fresh=True), {0})
    single = [view.mu(node) ** 2 for node in range(1, 6)]
    sums = [np.abs(view.gram(node)).sum() for node in range(1, 6)]
    assert single == pytest.approx([1, 0.11473, 0.02126, 0.00543, 0.00140], abs=1e-5)
    assert sums == pytest.approx([10.48986, 2.06783, 0.54222, 0.11777, 0.01993], abs=1e-5)
    capped = [view.mu(node, participation="all") ** 2 for node in range(1, 6)]
    assert capped == pytest.approx([10, *sums[1:]])


@pytest.mark.parametrize(
    ("graph", "sigma_cdp", "sigma_cor", "half"),
    [
        (RING16, 1, 0, 2),
        (RING16, 1, 1, 0.8944275583),
        (RING16, 1, 10, 0.1504483628),
        (RING16, 0.1, 10, 12.5265506869),
        (nx.complete_graph(16), 1, 0, 2),
        (nx.complete_graph(16), 1, 1, 0.2352941176),
        (nx.complete_graph(16), 1, 10, 0.1261711430),
        (RING8, 1, 0, 2),
        (RING8, 1, 1, 0.8952380952),
    ],
)
def test_decor(graph, sigma_cdp, sigma_cor, half):
    assert decor_mu(adjacency(graph), sigma_cdp, sigma_cor) ** 2 / 2 == pytest.approx(half, abs=1e-9)


def test_decor_over_rounds_by_two_conversions():
    mu = decor_mu(adjacency(RING16), 1, 10, clip=0.1, rounds=100)
    assert gaussian.zcdp_epsilon_of(mu, 1e-5) == pytest.approx(2.7826343644, abs=1e-8)
    assert gaussian.epsilon_of(mu, 1e-5) == pytest.approx(2.2107536, abs=1e-6)


def test_decor_at_its_limits():
    assert decor_mu(adjacency(RING16), 2, 1e5) ** 2 / 2 == pytest.approx(2 / (16 * 4), rel=1e-3)
    assert decor_mu(adjacency(RING16), 0, 1) == math.inf
    # A ring without one node is a path; a node whose neighbours both collude has nothing but its own noise.
    path = adjacency(nx.path_graph(15))
    assert decor_mu(adjacency(RING16), 1, 1, corrupted=[5]) == pytest.approx(decor_mu(path, 1, 1))
    assert decor_mu(adjacency(RING16), 1, 1, corrupted=[4, 6]) ** 2 == pytest.approx(4)


# Identities


@settings(max_examples=40, deadline=None)
@given(gossip_logs(), st.data())
def test_leverages_are_shares_that_sum_to_the_rank(log, data):
    built = gossiped(*log)
    view = NetworkAccountant(built, {data.draw(st.sampled_from(built.nodes))})
    leverages = [view.leverage(*input) for node in built.nodes for input in view.inputs(node)]
    assert view.resolved
    assert min(leverages) >= -1e-9
    assert max(leverages) <= 1 + 1e-9
    assert sum(leverages) == pytest.approx(view.rank, abs=1e-6)
    assert all(view.leverage(*input) == 0 for attacker in view.view for input in view.inputs(attacker))


@settings(max_examples=40, deadline=None)
@given(gossip_logs(), st.data())
def test_more_rounds_and_more_attackers_see_more(log, data):
    matrices, fresh = log
    nodes = range(len(matrices[0]))
    attackers = data.draw(st.sets(st.sampled_from(nodes), min_size=2, max_size=len(nodes) - 1))
    longer, shorter = gossiped(matrices, fresh), gossiped(matrices[:-1] or matrices, fresh)
    together = NetworkAccountant(longer, attackers)
    fewer = [NetworkAccountant(longer, set(sorted(attackers)[:-1])), NetworkAccountant(shorter, attackers)]
    for node in set(nodes) - attackers:
        assert together.mu(node) >= max(view.mu(node) for view in fewer) - 1e-7


@settings(max_examples=30, deadline=None)
@given(gossip_logs(), st.data())
def test_the_general_formula_agrees_with_the_leverages(log, data):
    paired = gossiped(*log, sigma=2.0)
    # The same run with contribution and noise logged apart, so that they have a column each.
    records = []
    for made in paired.made.values():
        if made.gradient:
            apart = [("z", made.value), ("g", made.value)]
            records += [Made(_id(apart[0]), made.node, made.round, noise=made.noise)]
            records += [Made(_id(apart[1]), made.node, made.round, gradient=made.gradient)]
            terms = (*made.terms, *((_id(name), 1.0) for name in apart))
            records.append(Made(made.value, made.node, made.round, terms))
        else:
            records.append(made)
    split = Lineage([*records, *paired.received])
    attacker = data.draw(st.sampled_from(paired.nodes))
    first, second = (NetworkAccountant(built, {attacker}) for built in (paired, split))
    assert len(split.columns) == 2 * len(paired.columns)
    for node in set(paired.nodes) - {attacker}:
        assert first.gram(node) == pytest.approx(second.gram(node), abs=1e-7)
        leverages = [first.leverage(*input) / 4 for input in first.inputs(node)]
        assert first.gram(node).diagonal() == pytest.approx(leverages, abs=1e-9)


def _id(name):
    return 1_000_000 + 2 * name[1] + (name[0] == "g")


def test_a_secure_sum_over_a_full_mesh():
    nodes = 6
    records = [Made(node, node, 0, (), 1.0, (private(node, 0, 1.0),)) for node in range(nodes)]
    records += [Made(9, 0, 0, tuple((node, 1.0) for node in range(nodes))), Received(9, 0)]
    view = NetworkAccountant(Lineage(records), {0})
    assert [view.leverage(node) for node in range(1, nodes)] == pytest.approx([1 / (nodes - 1)] * (nodes - 1))
    assert view.reconstructable() == ()
    # With every sender but one colluding, it is exposed.
    colluding = NetworkAccountant(Lineage(records), {0}, known={0, 1, 2, 3, 4})
    assert colluding.reconstructable() == (Input(5, 0),)


def decor_round(graph, sigma_cdp, sigma_cor):
    """Everyone sends its gradient with its own noise and that of its edges."""
    records = []
    for node in sorted(graph):
        edges = [(min(node, peer), max(node, peer)) for peer in sorted(graph[node])]
        shared = [Noise(edge, 0, 0, sigma_cor if node == edge[0] else -sigma_cor) for edge in edges]
        records.append(Made(node, node, 0, (), 1.0, (private(node, 0, sigma_cdp), *shared)))
        records += [Received(node, peer) for peer in graph[node]]
    return Lineage(records)


@pytest.mark.parametrize("graph", [RING8, COMPLETE8, nx.star_graph(4)])
def test_an_eavesdropper_of_a_decor_round(graph):
    built = decor_round(graph, 1.0, 3.0)
    view = NetworkAccountant(built, built.nodes, known=())
    most = max(view.mu(node, sensitivity=2.0) for node in built.nodes)
    assert most == pytest.approx(decor_mu(adjacency(graph), 1, 3))


def test_a_colluder_gives_away_the_noise_of_its_edges():
    built = decor_round(RING8, 1.0, 3.0)
    view = NetworkAccountant(built, built.nodes, known={0})
    worst = max(view.mu(node, sensitivity=2.0) for node in range(1, 8))
    assert worst == pytest.approx(decor_mu(adjacency(RING8), 1, 3, corrupted=[0]))


def test_edge_noise_alone_hides_nothing_from_everybody_together():
    built = decor_round(RING8, 0.0, 3.0)
    assert NetworkAccountant(built, built.nodes, known=()).mu(3) == math.inf
    assert NetworkAccountant(built, {1}).mu(2) == pytest.approx(1 / 3)


def test_noise_on_messages_alone_is_averaged_away():
    # A node that keeps its clean model and draws anew for every message.
    records = [Made(0, 0, 0, (), 1.0)]
    for number in range(1, 10):
        records += [Made(number, 0, 0, ((0, 1.0),), 0.0, (private(0, 0, 2.0, number),)), Received(number, 1)]
    view = NetworkAccountant(Lineage(records), {1})
    assert view.mu(0) == pytest.approx(3 / 2)
    assert view.published_mu(0) == pytest.approx(3 / 2)
    assert view.reconstructable() == ()


def test_without_noise_there_is_no_privacy():
    records = [Made(node, node, 0, (), 1.0) for node in range(3)]
    records += [Made(3, 2, 0, ((0, 0.5), (1, 0.5))), Received(3, 2), Received(0, 1)]
    log = Lineage(records)
    assert NetworkAccountant(log, {2}).mu(0) == math.inf
    assert NetworkAccountant(log, {2}).published_mu(0) == math.inf
    # But half a sum is not the value itself.
    assert NetworkAccountant(log, {2}).reconstructable() == ()
    assert NetworkAccountant(log, {1}).reconstructable() == (Input(0, 0),)
    assert NetworkAccountant(log, {1}).mu(2) == 0


# Whose rounds


def test_participation_in_some_rounds():
    view = NetworkAccountant(averaging(RING16, 6, fresh=True), {0})
    single, every = view.mu(2), view.mu(2, participation="all")
    assert view.mu(2, participation=[[round] for round in range(7)]) == pytest.approx(single)
    assert view.mu(2, participation=[range(7)]) == pytest.approx(every)
    assert single <= view.mu(2, participation=[[0, 3], [1, 4]]) <= every
    assert view.mu(2, participation=[]) == 0


def test_the_bound_for_all_rounds_is_one():
    view = NetworkAccountant(averaging(RING16, 8, fresh=True), {0})
    for node in range(1, 4):
        gram = view.gram(node)
        signs = np.sign(gram[np.argmax(gram.diagonal())])
        assert signs @ gram @ signs <= view.mu(node, participation="all") ** 2 + 1e-9


def test_sensitivity_and_noise_scale_it():
    quiet, loud = (averaging(RING16, 4, fresh=True, sigma=sigma) for sigma in (1.0, 4.0))
    mu = NetworkAccountant(quiet, {0}).mu(2)
    assert NetworkAccountant(loud, {0}).mu(2) == pytest.approx(mu / 4)
    assert NetworkAccountant(loud, {0}).mu(2, sensitivity=8.0) == pytest.approx(2 * mu)


def test_a_step_size_drops_out():
    def trained(lr):
        own = Made(0, 0, 0, (), -lr, (private(0, 0, lr * 2.0),))
        return Lineage([own, Received(0, 1)])

    assert NetworkAccountant(trained(0.1), {1}).mu(0) == pytest.approx(0.5)
    assert NetworkAccountant(trained(0.5), {1}).mu(0) == pytest.approx(0.5)


def test_a_guarantee_of_the_view():
    view = NetworkAccountant(averaging(RING8, 2), {2})
    guarantee = view.guarantee(0, 1e-5, "T1")
    assert guarantee.epsilon == view.epsilon(0, 1e-5) == pytest.approx(gaussian.epsilon_of(1, 1e-5))
    assert (guarantee.unit, guarantee.view, guarantee.adaptive, guarantee.conversion) == ("node", "T1", False, "gdp")


# What attackers can really do


def test_the_best_attack_wins_as_often_as_mu_allows():
    seed, trials = 5, 20_000
    rng, ring = np.random.default_rng(seed), weights(RING8)
    present = rng.integers(0, 2, trials)
    values = rng.normal(size=(8, trials))
    values[0] += present
    mixed = ring @ values
    guess = 3 * mixed[1] - values[1] - values[2]
    assert np.abs(guess - values[0]).max() < 1e-9
    mu = NetworkAccountant(averaging(RING8, 2), {2}).mu(0)
    assert roc_auc_score(present, guess) == pytest.approx(gaussian.attack_auc(mu), abs=0.01), f"seed {seed}"
    assert gaussian.attack_auc(mu) == pytest.approx(0.76025, abs=1e-5)
    assert gaussian.attack_auc(math.sqrt(1 / 3)) == pytest.approx(0.6585, abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(gossip_logs(), st.data())
def test_what_is_reconstructable_is_what_least_squares_solves(log, data):
    built = gossiped(*log)
    view = NetworkAccountant(built, {data.draw(st.sampled_from(built.nodes))})
    matrix, columns = view.matrix()
    solvable = []
    for at, column in enumerate(columns):
        wanted = np.eye(len(columns))[at]
        combination = np.linalg.lstsq(matrix.T, wanted)[0] if len(matrix) else np.zeros(0)
        if np.abs(matrix.T @ combination - wanted).max() < 1e-6:
            solvable.append(column)
    assert view.reconstructable() == tuple(sorted(solvable))


def test_neighbours_of_the_first_round_are_reconstructable():
    view = NetworkAccountant(averaging(RING16, 3, fresh=True), {0})
    assert {Input(1, 0), Input(15, 0)} <= set(view.reconstructable())
    assert all(input.node != 0 for input in view.reconstructable())


def test_the_matrix_explains_what_is_received():
    ring = weights(RING8)
    matrix, columns = NetworkAccountant(averaging(RING8, 2), {2}).matrix()
    assert columns == [Input(node, 0) for node in range(8) if node != 2]
    unknown = [node for node in range(8) if node != 2]
    assert matrix == pytest.approx(np.array([np.eye(8)[1], np.eye(8)[3], ring[1], ring[3]])[:, unknown])


# Protocols


def test_a_message_that_was_lost_tells_nothing():
    records = [Made(node, node, 0, (), 1.0, (private(node, 0, 1.0),)) for node in range(3)]
    records += [Received(0, 1), Made(3, 1, 1, ((0, 0.5), (1, 0.5))), Made(4, 2, 1, ((2, 1.0),)), Received(3, 2)]
    view = NetworkAccountant(Lineage(records), {2})
    assert view.values == [3]
    assert view.mu(0) == view.mu(1) == pytest.approx(math.sqrt(0.5))


def test_asynchronous_pairs():
    # 0 asks 1, which answers with what it had and moves; meanwhile 0 has trained on; then 1 asks 2.
    records = [Made(node, node, 0, (), 1.0, (private(node, 0, 1.0),)) for node in range(3)]
    records += [Received(0, 1), Made(3, 1, 0, ((1, 0.5), (0, 0.5))), Received(1, 0)]
    records += [Made(4, 0, 1, ((0, 1.0),), 1.0, (private(0, 1, 1.0),))]
    records += [Made(5, 0, 1, ((4, 1.0), (1, 0.5), (0, -0.5))), Received(3, 2), Received(5, 2)]
    view = NetworkAccountant(Lineage(records), {2})
    assert len(view.values) == view.rank == 2
    assert view.reconstructable() == (Input(0, 1),)
    assert view.leverage(0, 0) + view.leverage(0, 1) + view.leverage(1, 0) == pytest.approx(2)


def test_zip_dl_cancels_in_the_average_but_not_for_a_receiver():
    # Node 0 sends a share to each neighbour and keeps one; the shares' noises sum to zero.
    def share(own):
        return tuple(private(0, 0, (1.0 if part == own else 0.0) - 1 / 3, part) for part in range(3))

    records = [Made(10 + part, 0, 0, ((0, 1.0),), 0.0, share(part)) for part in range(3)]
    records = [Made(0, 0, 0, (), 1.0), *records, Received(11, 1), Received(12, 2)]
    records += [Made(20, 0, 0, tuple((10 + part, 1 / 3) for part in range(3))), Received(20, 3)]
    log = Lineage(records)
    assert NetworkAccountant(log, {1}).mu(0) == pytest.approx(math.sqrt(3 / 2))
    assert NetworkAccountant(log, {1, 2}).mu(0) < math.inf
    assert NetworkAccountant(log, {3}).mu(0) == math.inf


@pytest.mark.parametrize("participation", ["single", "all"])
def test_everyone_towards_everyone(participation, monkeypatch):
    log = averaging(RING8, 3, fresh=True)
    matrix = mu_matrix(log, 2.0, participation)
    for attacker in log.nodes:
        view = NetworkAccountant(log, {attacker})
        expected = [view.mu(node, 2.0, participation) if node != attacker else math.nan for node in log.nodes]
        assert matrix[:, attacker] == pytest.approx(expected, nan_ok=True)
    monkeypatch.setattr("node.privacy.network._BATCH_BYTES", 0)
    assert (mu_matrix(log, 2.0, participation) == matrix)[~np.eye(8, dtype=bool)].all()


# Numerics


def test_when_the_rank_is_in_doubt_the_answer_is_local_privacy():
    log = averaging(nx.random_regular_graph(4, 100, seed=1), 20, sigma=2.0)
    view = NetworkAccountant(log, {0})
    assert not view.resolved
    assert {view.leverage(node) for node in range(1, 100)} == {1.0}
    assert view.mu(50) == view.mu(50, participation="all") == 0.5
    assert set(view.reconstructable()) < {Input(node, 0) for node in range(1, 100)}


def test_small_singular_values_count():
    rng = np.random.default_rng(3)
    directions = np.linalg.qr(rng.normal(size=(20, 4)))[0].T
    scales = np.diag([1, 1e-3, 1e-6, 3e-8])
    space = RowSpace(np.linalg.qr(rng.normal(size=(4, 4)))[0] @ scales @ directions, np.ones(20, bool))
    assert (space.rank, space.resolved) == (4, True)
    assert space.squares == pytest.approx((directions**2).sum(axis=0), abs=1e-6)


def test_rounding_is_no_direction_and_doubt_is_said():
    rows = np.array([[1.0, 0, 0], [1.0, 1e-16, 0], [1e-17, 0, 1e-17]])
    assert RowSpace(rows, np.ones(3, bool)).rank == 1
    rows[1, 1] = 1e-11
    assert not RowSpace(rows, np.ones(3, bool)).resolved
    assert RowSpace(np.zeros((2, 3)), np.ones(3, bool)).rank == 0
    assert RowSpace(np.zeros((0, 3)), np.ones(3, bool)).squares.tolist() == [0, 0, 0]


def test_both_ways_to_whiten_agree():
    rng = np.random.default_rng(11)
    rows, noise = np.tril(rng.normal(size=(30, 1200)), 1000), np.ones(1200, bool)
    noise[7] = False
    fast, exact = RowSpace(rows, noise), RowSpace(np.vstack((rows, rows[:1])), noise)
    assert fast.rank == exact.rank == 30
    assert fast.squares == pytest.approx(exact.squares, abs=1e-8)
    assert not fast.outside.any()
    assert not exact.outside.any()


def test_who_hears_nothing_learns_nothing():
    log = Lineage([Made(0, 0, 0, (), 1.0, (private(0, 0, 1.0),)), Made(1, 1, 0)])
    view = NetworkAccountant(log, {1})
    assert view.mu(0) == view.published_mu(0) == view.epsilon(0, 1e-5) == view.leverage(0) == 0
    assert view.inputs(1) == []
    assert view.mu(1) == 0
    assert view.reconstructable() == ()


# Logs


def test_a_log_survives_its_file():
    log = decor_round(RING8, 1.0, 3.0)
    records = [*log.made.values(), *log.received]
    lines = [encode(record) for record in records]
    assert lines[0] == b'["Made",0,0,0,[],1.0,[[[0],0,0,1.0],[[0,1],0,0,3.0],[[0,7],0,0,3.0]]]'
    assert decode([*lines, b"", "\n"]) == records


@pytest.mark.parametrize("line", [b"{}", b'["Sent",1,2]', b'["Received",1]', b'["Made",0,0,0,[[1]]]', b"nonsense"])
def test_a_line_that_is_no_record(line):
    with pytest.raises(ConfigError, match="line 2 is no record"):
        decode([encode(Received(1, 2)), line])


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([Received(0, 1)], "record 1 of the log: value 0 was not made before"),
        ([Made(0, 0, 0), Made(1, 0, 0, ((2, 1.0),))], "record 2 of the log: value 2 was not made before"),
        ([Made(0, 0, 0, ((0, 1.0),))], "record 1 of the log: value 0 was not made before"),
        ([Made(0, 0, 0), Made(0, 0, 1)], "record 2 of the log: value 0 is made twice"),
    ],
)
def test_a_log_that_makes_no_sense(records, words):
    with pytest.raises(ConfigError, match=words):
        Lineage(records)


def test_columns_pair_contributions_with_their_own_noise_only():
    log = Lineage(
        [
            Made(0, 0, 0, (), 1.0, (private(0, 0, 2.0),)),
            Made(1, 1, 0, (), 1.0, (Noise((0, 1), 0, 0, 1.0),)),
            Made(2, 2, 0, (), 1.0, (private(2, 0, 1.0),)),
            Made(3, 2, 1, (), 0.0, (private(2, 0, -1.0),)),
            Made(4, 3, 0, (), 1.0, (private(3, 0, 0.0),)),
        ]
    )
    assert log.columns == [
        Variable((0,), 0, 0),
        Variable((0, 1), 0, 0),
        Input(1, 0),
        Variable((2,), 0, 0),
        Input(2, 0),
        Input(3, 0),
    ]
    assert log.sources[Input(0, 0)] == (0, 0.5)
    assert log.matrix([0, 1]).tolist() == [[2, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0]]


def test_values_are_let_go_of_when_nobody_needs_them(monkeypatch):
    log = averaging(RING8, 50)
    last = log.rows([max(log.made)])
    monkeypatch.setattr(lineage, "MAX_BYTES", 8 * 8 * 30)
    assert (log.rows([max(log.made)])[max(log.made)] == last[max(log.made)]).all()
    with pytest.raises(ConfigError, match="GiB to account for; log fewer nodes or rounds"):
        log.rows(list(log.made))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda log: NetworkAccountant(log, {99}), "node 99 is not in the log"),
        (lambda log: NetworkAccountant(log, {1}, known={99}), "node 99 is not in the log"),
        (lambda log: NetworkAccountant(log, {1}).mu(99), "node: 99 is not in the log"),
        (lambda log: NetworkAccountant(log, {1}).leverage(0, 99), "node 0 contributed nothing in round 99"),
        (lambda log: NetworkAccountant(log, {1}).mu(0, participation="some"), "participation: 'some'; allowed: single"),
        (lambda log: NetworkAccountant(log, {1}).mu(0, participation=[[0, 9]]), "contributed nothing in round 9"),
        (lambda log: NetworkAccountant(log, {1}).epsilon(0, 0), "delta: 0"),
        (lambda log: decor_mu(adjacency(RING8), -1, 1), "sigma_cdp, sigma_cor: -1, 1"),
        (lambda log: decor_mu(adjacency(RING8), 1, 1, corrupted=range(8)), "nobody is left"),
    ],
)
def test_what_is_refused(call, words):
    with pytest.raises(ConfigError, match=words):
        call(averaging(RING8, 2))
