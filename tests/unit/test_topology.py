"""Topologies: the right graph for each kind, the same for the same seed, and one clear line for what cannot exist."""

import math
import time
import tracemalloc

import networkx as nx
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from node.config import TopologySection
from node.errors import ConfigError
from node.topology import MAX_ENDS, build, spectral_gap
from node.topology.graph import Graph
from node.topology.random_graphs import connected_regular, regular

UNDIRECTED = ["ring", "torus", "regular", "erdos-renyi", "full", "star", "random-regular"]
DIRECTED = ["exponential", "one-peer"]
ALL = [*UNDIRECTED, *DIRECTED]
FRESH = {"one-peer", "random-regular"}


def make(kind, nodes, seed=7, **keys):
    return build(TopologySection(kind=kind, **keys), nodes, seed)


def graph_of(topology, round=0):
    """An independent view of it: networkx, from neighbours() alone."""
    graph = nx.DiGraph() if topology.directed else nx.Graph()
    graph.add_nodes_from(range(topology.nodes))
    graph.add_edges_from((i, j) for i in range(topology.nodes) for j in topology.neighbours(i, round))
    return graph


@st.composite
def degrees(draw, most=40):
    nodes = draw(st.integers(2, most))
    degree = draw(st.integers(1, nodes - 1).filter(lambda degree: degree * nodes % 2 == 0))
    return nodes, degree


# Each kind is the graph that it says


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 9, 16])
def test_ring_star_and_full_are_those_of_networkx(nodes):
    cycle = nx.cycle_graph(nodes) if nodes > 1 else nx.empty_graph(1)
    for kind, expected in [("ring", cycle), ("star", nx.star_graph(nodes - 1)), ("full", nx.complete_graph(nodes))]:
        assert nx.utils.graphs_equal(graph_of(make(kind, nodes)), expected), kind


def test_ring_neighbours():
    ring = make("ring", 5)
    assert [ring.neighbours(node) for node in range(5)] == [(1, 4), (0, 2), (1, 3), (2, 4), (0, 3)]


def test_the_star_has_its_centre_at_node_0():
    star = make("star", 4)
    assert star.neighbours(0) == (1, 2, 3)
    assert [star.neighbours(node) for node in (1, 2, 3)] == [(0,), (0,), (0,)]


@pytest.mark.parametrize(("nodes", "shape"), [(4, (2, 2)), (6, (2, 3)), (12, (3, 4)), (16, (4, 4)), (22, (2, 11))])
def test_the_torus_is_as_square_as_can_be(nodes, shape):
    grid = nx.convert_node_labels_to_integers(nx.grid_2d_graph(*shape, periodic=True), ordering="sorted")
    assert nx.utils.graphs_equal(graph_of(make("torus", nodes)), grid)


@pytest.mark.parametrize("nodes", [1, 2, 3, 5, 7, 13])
def test_a_torus_that_cannot_be_says_what_could(nodes):
    with pytest.raises(ConfigError, match=r"topology\.kind: .*torus") as caught:
        make("torus", nodes)
    advised = str(caught.value).split("set nodes = ")[1].split(", or kind")[0].split(" or ")
    for number in advised:
        assert make("torus", int(number)).neighbours(0)


@pytest.mark.parametrize(("nodes", "out"), [(1, ()), (2, (1,)), (3, (1, 2)), (8, (1, 2, 4)), (9, (1, 2, 4, 8))])
def test_the_exponential_graph_hops_by_powers_of_two(nodes, out):
    topology = make("exponential", nodes)
    assert topology.neighbours(0) == out
    for node in range(nodes):
        assert topology.neighbours(node) == tuple(sorted((node + hop) % nodes for hop in out))
        assert topology.sources(node) == tuple(sorted((node - hop) % nodes for hop in out))


@pytest.mark.parametrize("nodes", [2, 3, 8, 11])
def test_one_peer_takes_one_hop_a_round_and_starts_over(nodes):
    topology, hops = make("one-peer", nodes), math.ceil(math.log2(nodes))
    for round in range(2 * hops + 1):
        for node in range(nodes):
            assert topology.neighbours(node, round) == ((node + 2 ** (round % hops)) % nodes,)
            assert topology.sources(node, round) == ((node - 2 ** (round % hops)) % nodes,)


@settings(max_examples=150, deadline=None)
@given(degrees(), st.integers(0, 2**63 - 1))
def test_regular_is_regular_simple_and_connected(shape, seed):
    nodes, degree = shape
    assume(degree > 1 or nodes == 2)
    topology = make("regular", nodes, seed, degree=degree)
    graph = graph_of(topology)
    assert set(dict(graph.degree).values()) == {degree}
    assert nx.number_of_selfloops(graph) == 0
    assert nx.is_connected(graph)
    assert len(topology.neighbours(0)) == len(set(topology.neighbours(0))) == degree


@pytest.mark.parametrize("seed", [865, 1818])
def test_regular_is_drawn_again_where_it_falls_apart(seed):
    first = nx.Graph(regular(8, 3, np.random.default_rng(seed)).T.tolist())
    assert nx.number_connected_components(first) == 2
    assert connected_regular(8, 3, np.random.default_rng(seed)).unreached() is None


def test_a_large_regular_graph_of_degree_2_is_one_ring_in_random_order():
    topology = make("regular", 20_000, degree=2)
    assert nx.is_connected(graph_of(topology))
    assert topology.neighbours(0) != (1, 19_999)


@settings(max_examples=150, deadline=None)
@given(degrees(), st.integers(0, 2**63 - 1), st.integers(0, 10**6))
def test_random_regular_is_regular_and_simple_in_every_round(shape, seed, round):
    nodes, degree = shape
    graph = graph_of(make("random-regular", nodes, seed, degree=degree), round)
    assert set(dict(graph.degree).values()) == {degree}
    assert nx.number_of_selfloops(graph) == 0


def test_random_regular_of_degree_1_pairs_the_nodes_anew():
    topology = make("random-regular", 10, degree=1)
    pairings = {tuple(topology.neighbours(node, round) for node in range(10)) for round in range(20)}
    assert len(pairings) > 15


def test_regular_graphs_are_drawn_about_uniformly():
    # 70 labelled graphs of 6 nodes have degree 3: 60 prisms and 10 times K3,3.
    rng = np.random.default_rng(0)
    seen = {}
    for _ in range(2100):
        key = Graph(6, regular(6, 3, rng)).edges().tobytes()
        seen[key] = seen.get(key, 0) + 1
    assert len(seen) == 70
    assert max(seen.values()) < 3 * min(seen.values())


@pytest.mark.parametrize("probability", [0.05, 0.3, 1.0])
def test_erdos_renyi_has_the_expected_number_of_edges(probability):
    nodes, draws = 120, 20
    pairs = nodes * (nodes - 1) // 2 * draws
    edges = sum(len(make("erdos-renyi", nodes, seed, probability=probability).edges()) for seed in range(draws))
    assert abs(edges - pairs * probability) <= 5 * math.sqrt(pairs * probability * (1 - probability))


def test_erdos_renyi_gives_every_pair_the_same_chance():
    counts = sum(nx.to_numpy_array(graph_of(make("erdos-renyi", 8, seed, probability=0.6))) for seed in range(400))
    chances = counts[np.triu_indices(8, 1)] / 400
    assert chances.min() > 0.5
    assert chances.max() < 0.72


@pytest.mark.parametrize(("nodes", "probability"), [(100, math.log(100) / 100), (6, 0.35)])
def test_erdos_renyi_is_redrawn_until_connected(nodes, probability):
    # Connected in about one draw of three; of the small ones that are not, many have no isolated node.
    for seed in range(50):
        assert nx.is_connected(graph_of(make("erdos-renyi", nodes, seed, probability=probability)))


@pytest.mark.parametrize("probability", [1e-300, 1e-3, 0.01])
def test_erdos_renyi_that_cannot_be_connected_says_what_could(probability):
    with pytest.raises(ConfigError, match=r"topology\.probability: .* 100 draws") as caught:
        make("erdos-renyi", 100, probability=probability)
    assert make("erdos-renyi", 100, probability=float(str(caught.value).rsplit(" ", 1)[1])).nodes == 100


# What holds for all kinds


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("round", [0, 1, 5])
def test_rows_are_sorted_and_sources_mirror_neighbours(kind, round):
    topology = make(kind, 12, probability=0.4)
    pairs = {(i, j) for i in range(12) for j in topology.neighbours(i, round)}
    assert pairs == {(j, i) for i in range(12) for j in topology.sources(i, round)}
    assert all(i != j for i, j in pairs)
    for node in range(12):
        row = topology.neighbours(node, round)
        assert row == tuple(sorted(set(row)))
        assert all(type(other) is int for other in row)
        assert topology.directed or topology.sources(node, round) == row
    assert topology.directed is (kind in DIRECTED)
    assert topology.fresh is (kind in FRESH)
    assert (topology.kind, topology.nodes) == (kind, 12)


@pytest.mark.parametrize("kind", ["ring", "exponential", "one-peer", "full", "star", "erdos-renyi"])
def test_a_single_node_has_no_neighbours(kind):
    topology = make(kind, 1)
    for round in (0, 1, 100):
        assert (topology.neighbours(0, round), topology.sources(0, round)) == ((), ())
        assert topology.weights(0, round) == (1.0,)
        assert topology.edges(round).shape == (0, 2)
    assert spectral_gap(topology.matrix()) == 1


@pytest.mark.parametrize("kind", ["ring", "exponential", "one-peer", "full", "star", "regular", "random-regular"])
def test_two_nodes_have_each_other(kind):
    topology = make(kind, 2, degree=1)
    for round in (0, 1, 2):
        assert (topology.neighbours(0, round), topology.neighbours(1, round)) == ((1,), (0,))
        assert topology.weights(1, round) == (0.5, 0.5)


@pytest.mark.parametrize("kind", ALL)
def test_edges_are_sorted_pairs(kind):
    topology = make(kind, 12, probability=0.4)
    edges = [tuple(edge) for edge in topology.edges(1).tolist()]
    assert edges == sorted(set(edges))
    assert set(edges) == {(i, j) for i in range(12) for j in topology.neighbours(i, 1) if topology.directed or i < j}


@pytest.mark.parametrize("kind", ["regular", "erdos-renyi", "random-regular"])
def test_the_seed_makes_the_graph(kind):
    def rows(seed, round=3):
        topology = make(kind, 30, seed)
        return [topology.neighbours(node, round) for node in range(30)]

    assert rows(1) == rows(1)
    assert rows(1) != rows(2)
    assert rows(0) != rows(2**63 - 1)


def test_every_node_of_a_run_draws_this_graph_wherever_it_is():
    # Nodes on other machines count on it: what changes these graphs must change the version of what is on the wire.
    assert [make("regular", 8, 7, degree=3).neighbours(node) for node in (0, 1)] == [(2, 3, 4), (5, 6, 7)]
    assert [make("random-regular", 8, 7, degree=3).neighbours(0, round) for round in (1, 2)] == [(2, 3, 4), (1, 2, 3)]
    assert make("erdos-renyi", 8, 7, probability=0.5).neighbours(0) == (2, 4, 6)


def test_only_fresh_topologies_change_with_the_round():
    for kind in ALL:
        topology = make(kind, 12)
        rounds = {tuple(topology.neighbours(node, round) for node in range(12)) for round in range(4)}
        assert len(rounds) == (4 if kind in FRESH else 1), kind


def test_an_old_round_comes_back_as_it_was():
    topology = make("random-regular", 1000, degree=1000 - 100)
    before = topology.neighbours(5, 1), topology.weights(5, 1)
    for round in range(2, 8):
        topology.weights(5, round)
    assert (topology.neighbours(5, 1), topology.weights(5, 1)) == before


def test_the_order_of_questions_does_not_matter():
    up, down = make("random-regular", 20), make("random-regular", 20)
    rising = [up.neighbours(3, round) for round in range(9)]
    assert rising == [down.neighbours(3, round) for round in reversed(range(9))][::-1]


# Mixing weights


@pytest.mark.parametrize("rule", ["metropolis", "uniform"])
@pytest.mark.parametrize("kind", ALL)
def test_weights_are_a_row_of_the_matrix_and_sum_to_1(kind, rule):
    topology = make(kind, 12, probability=0.4, weights=rule)
    matrix = topology.matrix(2)
    for node in range(12):
        weights, sources = topology.weights(node, 2), topology.sources(node, 2)
        assert all(type(weight) is float and weight > 0 for weight in weights)
        assert sum(weights) == pytest.approx(1, abs=1e-15)
        assert matrix[node, [node, *sources]].tolist() == list(weights)
        assert np.count_nonzero(matrix[node]) == 1 + len(sources)


def test_metropolis_weights_on_a_star():
    star = make("star", 5)
    assert star.weights(0) == pytest.approx((0.2, 0.2, 0.2, 0.2, 0.2))
    assert star.weights(1) == pytest.approx((0.8, 0.2))


def test_uniform_weights_on_a_star():
    star = make("star", 5, weights="uniform")
    assert star.weights(0) == pytest.approx((0.2,) * 5)
    assert star.weights(1) == (0.5, 0.5)


@pytest.mark.parametrize("kind", ["ring", "torus", "regular", "exponential", "one-peer", "full", "random-regular"])
def test_where_all_degrees_are_equal_both_rules_give_the_plain_average_bit_for_bit(kind):
    plain, metropolis = make(kind, 36, weights="uniform"), make(kind, 36)
    for node in range(36):
        weights = metropolis.weights(node, 1)
        assert weights == plain.weights(node, 1) == (1 / len(weights),) * len(weights)


def test_the_matrix_says_who_hears_whom():
    matrix = make("one-peer", 4).matrix(0)
    assert matrix.tolist() == [[0.5, 0, 0, 0.5], [0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0.5, 0.5]]


def test_the_spectral_gap_of_extremes():
    assert spectral_gap(make("full", 9).matrix()) == pytest.approx(1)
    assert spectral_gap(np.eye(4)) == pytest.approx(0)
    assert spectral_gap(np.array([[0.0, 1.0], [1.0, 0.0]])) == pytest.approx(0)


def test_no_spectral_gap_of_what_is_not_doubly_stochastic():
    with pytest.raises(ConfigError, match=r"topology\.weights: .*metropolis"):
        spectral_gap(make("star", 5, weights="uniform").matrix())


# What cannot exist


@pytest.mark.parametrize("kind", ["regular", "random-regular"])
@pytest.mark.parametrize(
    ("nodes", "degree", "message"),
    [
        (15, 3, r"topology\.degree: 3 neighbours for 15 nodes gives an odd number of edge ends; make .* even"),
        (4, 4, r"topology\.degree: 4 neighbours for each of 4 nodes; lower degree to at most 3 or raise nodes to .* 5"),
        (3, 10**9, r"topology\.degree: .* at most 2"),
        (1, 1, r"topology\.degree: a single node"),
    ],
)
def test_degrees_that_cannot_be(kind, nodes, degree, message):
    with pytest.raises(ConfigError, match=message):
        make(kind, nodes, degree=degree)


def test_degree_1_is_never_connected():
    with pytest.raises(ConfigError, match=r'topology\.degree: 1 .* at least 2, or kind = "random-regular"'):
        make("regular", 4, degree=1)


@pytest.mark.parametrize(
    ("kind", "keys", "key"),
    [
        ("full", {}, "kind"),
        ("erdos-renyi", {"probability": 0.3}, "probability"),
        ("regular", {"degree": 400}, "degree"),
        ("random-regular", {"degree": 400}, "degree"),
    ],
)
def test_a_graph_that_no_memory_holds_is_refused_before_it_is_built(kind, keys, key):
    with pytest.raises(ConfigError, match=rf"topology\.{key}: .* at most {MAX_ENDS // 100_000} "):
        make(kind, 100_000, **keys)


# Edge lists


def write(folder, text):
    path = folder / "graph.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


@pytest.mark.parametrize(
    "text",
    [
        "0 1\n1 2\n2 3\n",
        "4\n0 1\n1 2\n2 3",
        "# a path\n\n 4 # nodes\n1 0\n0 1\n\t2   1 # both ways\n3 2\n",
        "0 1\r\n1 2\r\n2 3\r\n",
    ],
)
def test_an_edge_list(tmp_path, text):
    topology = make("file", 4, path=write(tmp_path, text))
    assert topology.edges().tolist() == [[0, 1], [1, 2], [2, 3]]
    assert topology.weights(1) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert not topology.directed


def test_an_edge_list_of_a_single_node(tmp_path):
    assert make("file", 1, path=write(tmp_path, "# nobody else\n")).neighbours(0) == ()


def test_any_graph_of_networkx_can_be_read(tmp_path):
    graph = nx.barbell_graph(5, 3)
    nx.write_edgelist(graph, tmp_path / "graph.txt", data=False)
    assert nx.utils.graphs_equal(graph_of(make("file", len(graph), path=str(tmp_path / "graph.txt"))), graph)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 1\n1 2\n2 4\n", r"graph\.txt:3: there is no node 4; 4 nodes have the numbers 0 to 3"),
        ("0 1\n\n# x\n-1 2\n", r"graph\.txt:4: there is no node -1"),
        (f"0 {10**30}\n", rf"graph\.txt:1: there is no node {10**30}"),
        ("0 1\n2 2\n", r"graph\.txt:2: node 2 is its own neighbour"),
        ("0 1\n2 3\n", r"graph\.txt is not connected: no path leads from node 0 to node 2"),
        ("", r"graph\.txt is not connected: no path leads from node 0 to node 1"),
        ("0 1\n1 2 0.5\n", r"graph\.txt:2: '1 2 0\.5' is no edge; write two node numbers"),
        ("0 1\n2\n", r"graph\.txt:2: '2' is no edge"),
        ("0 1\n1 two\n", r"graph\.txt:2: 'two' is no node number"),
        ("0 1.0\n", r"graph\.txt:1: '1\.0' is no node number"),
        ("12\n0 1\n", r"graph\.txt:1: the graph has 12 nodes, the experiment 4; set nodes = 12"),
        ("many\n0 1\n", r"graph\.txt:1: 'many' is no node number"),
        (b"\xff\xfe0\x00", r"graph\.txt is not text"),
    ],
)
def test_a_wrong_edge_list_names_file_and_line(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make("file", 4, path=write(tmp_path, text))
    assert str(caught.value).startswith("topology.path: ")
    assert "\n" not in str(caught.value)


def test_an_edge_list_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"topology\.path: cannot read .*absent\.txt: No such file"):
        make("file", 4, path=str(tmp_path / "absent.txt"))
    with pytest.raises(ConfigError, match=r"topology\.path: cannot read .*: Is a directory"):
        make("file", 4, path=str(tmp_path))
    with pytest.raises(ConfigError, match=r"topology\.path: .* needs an edge list"):
        make("file", 4)


# Size


@pytest.mark.parametrize("kind", ["ring", "torus", "regular", "exponential", "one-peer", "random-regular"])
def test_a_hundred_thousand_nodes(kind):
    start = time.process_time()
    tracemalloc.start()
    topology = make(kind, 100_000)
    topology.weights(0, 1)
    kept_bytes, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(topology.neighbours(99_999, 1)) == {"ring": 2, "exponential": 17, "one-peer": 1}.get(kind, 4)
    assert kept_bytes < 400 * 100_000
    assert peak_bytes < 2_000 * 100_000
    # Fifty times what it takes, but far less than anything quadratic would.
    assert time.process_time() - start < 10


def test_answers_are_not_kept_for_each_node():
    topology = make("regular", 20_000)
    topology.weights(0)
    tracemalloc.start()
    for node in range(20_000):
        topology.neighbours(node)
        topology.weights(node)
    kept_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept_bytes < 20_000


def test_only_a_few_rounds_are_kept():
    topology = make("random-regular", 20_000)
    tracemalloc.start()
    kept_bytes = []
    for round in range(1, 41):
        topology.weights(0, round)
        kept_bytes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert kept_bytes[-1] < 1.2 * kept_bytes[19]
