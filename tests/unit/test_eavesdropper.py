"""What an eavesdropper on all links learns: that of the accountant of all messages at once, and DECOR's closed form."""

import itertools
import json
import math

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch import experiment
from logged import FULL, Averaging, Noise, steps_of
from node import ConfigError, provenance
from node.cli.main import main
from node.privacy import gossip
from node.privacy.eavesdropper import decor_mu, eavesdropped_mus, pairwise_covariance
from node.privacy.exposure import of_each, of_eavesdropper
from node.privacy.from_run import told
from node.privacy.lineage import Lineage, Made, Received, private
from node.privacy.lineage import Noise as Normal
from node.privacy.network import NetworkAccountant

DELTA = 1e-5


def adjacency(graph):
    return nx.to_numpy_array(graph, nodelist=sorted(graph)) > 0


def decor(graph, rounds, own=1.0, pairwise=3.0):
    """Everyone sends what its last mix has become by a contribution, noise of its own and that of its edges."""
    matrix, ids, records = gossip.metropolis(adjacency(graph)), itertools.count(), []
    now = dict.fromkeys(graph, None)
    for round in range(rounds):
        sent = {node: next(ids) for node in graph}
        for node in graph:
            edges = [(min(node, peer), max(node, peer)) for peer in sorted(graph[node])]
            shared = [Normal(edge, round, 0, pairwise if node == edge[0] else -pairwise) for edge in edges]
            before = () if now[node] is None else ((now[node], 1.0),)
            records.append(Made(sent[node], node, round, before, 1.0, (private(node, round, own), *shared)))
            records += [Received(sent[node], peer) for peer in graph[node]]
        now = {node: next(ids) for node in graph}
        for node in graph:
            terms = tuple((sent[peer], float(matrix[node, peer])) for peer in sorted({node, *graph[node]}))
            records.append(Made(now[node], node, round, terms))
    return Lineage(records)


def at_once(lineage, sensitivity=1.0):
    """By one accountant for all messages."""
    view = NetworkAccountant(lineage, lineage.nodes, known=())
    return [view.mu(node, sensitivity, "all") for node in lineage.nodes]


GRAPHS = [nx.cycle_graph(8), nx.complete_graph(5), nx.star_graph(4), nx.random_regular_graph(4, 10, seed=2)]


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("rounds", [1, 4])
@pytest.mark.parametrize(("own", "pairwise"), [(1.0, 3.0), (0.5, 0.0), (0.2, 20.0)])
def test_decor_is_its_closed_form(graph, rounds, own, pairwise):
    mus = eavesdropped_mus(decor(graph, rounds, own, pairwise), 2.0)
    assert mus.max() == pytest.approx(decor_mu(adjacency(graph), own, pairwise, rounds=rounds), rel=1e-6)


@pytest.mark.parametrize("graph", GRAPHS)
def test_each_node_has_its_place_on_the_diagonal_of_the_inverse(graph):
    laplacian = nx.laplacian_matrix(graph, nodelist=sorted(graph)).toarray().astype(float)
    inverse = np.linalg.inv(pairwise_covariance(laplacian, 0.7, 1.5))
    mus = eavesdropped_mus(decor(graph, 3, 0.7, 1.5), 2.0)
    assert mus**2 == pytest.approx(3 * 4 * inverse.diagonal(), rel=1e-6)


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_parts_give_what_all_messages_at_once_do(graph):
    lineage = decor(graph, 3)
    assert eavesdropped_mus(lineage, 2.0) == pytest.approx(at_once(lineage, 2.0), rel=1e-6)


def test_without_noise_of_its_own_nothing_is_hidden():
    assert eavesdropped_mus(decor(nx.cycle_graph(5), 1, own=0.0)).tolist() == [math.inf] * 5


@st.composite
def logs(draw):
    """Sums of earlier values, contributions and noise, of which some are sent."""
    nodes, records, weights = draw(st.integers(2, 4)), [], st.sampled_from([0.5, -1.0, 0.25])
    rounds = dict.fromkeys(range(nodes), 0)
    for values in range(draw(st.integers(2, 10))):
        node = draw(st.integers(0, nodes - 1))
        terms = draw(st.dictionaries(st.integers(0, values - 1), weights, max_size=3)) if values else {}
        gradient = draw(st.sampled_from([0.0, 1.0]))
        noise = [private(node, values, 1.5)] if gradient or draw(st.booleans()) else []
        noise += [Normal((0, 1), 0, 0, 0.5)] if draw(st.booleans()) else []
        records.append(Made(values, node, rounds[node], tuple(terms.items()), gradient, tuple(noise)))
        rounds[node] += gradient != 0
        records += [Received(values, (node + 1) % nodes)] if draw(st.booleans()) else []
    return Lineage(records)


@settings(deadline=None, max_examples=60)
@given(logs())
def test_of_any_log_the_parts_tell_no_less_than_single_contributions_and_no_more_than_all(lineage):
    """Over independent parts mu squared adds up; a bound for each is no looser than one for all of them."""
    view = NetworkAccountant(lineage, lineage.nodes, known=())
    mus = dict(zip(lineage.nodes, eavesdropped_mus(lineage), strict=True))
    for node in lineage.nodes:
        assert view.mu(node) <= mus[node] * (1 + 1e-6) + 1e-9
        assert mus[node] <= view.mu(node, 1.0, "all") * (1 + 1e-6) + 1e-9


def test_what_is_noised_once_is_as_well_hidden_as_by_that_noise_alone(tmp_path):
    """Muffliato's gossip adds nothing that an eavesdropper does not know: what remains is local privacy."""
    happened = told(steps_of(tmp_path, lambda: Averaging(Averaging.Config(rounds=6)), mods=[Noise(1.0, 2.0)]))
    exposure = of_eavesdropper(happened, DELTA, "replace_one")
    assert [pair.mu for pair in exposure.pairs] == pytest.approx([2 / 2.0] * 8)
    assert (exposure.view, exposure.is_averaging) == ("T3", True)
    assert {(pair.distance, pair.attackers, pair.published_mu) for pair in exposure.pairs} == {(0.0, (), None)}


def test_nobody_who_takes_part_sees_more(tmp_path):
    fresh = Averaging.Config(rounds=4, always=True)
    happened = told(steps_of(tmp_path, lambda: Averaging(fresh), 6, topology=FULL, mods=[Noise()]))
    all_links = {pair.victim: pair.mu for pair in of_eavesdropper(happened, DELTA, "add_remove").pairs}
    assert list(all_links.values()) == pytest.approx([2.0] * 6)  # the root of four rounds
    for pair in of_each(happened, DELTA, "add_remove").pairs:
        assert pair.mu <= all_links[pair.victim] + 1e-9


def test_a_victim_alone_and_one_that_there_is_not(tmp_path):
    happened = told(steps_of(tmp_path, lambda: Averaging(Averaging.Config(rounds=2)), mods=[Noise()]))
    (pair,) = of_eavesdropper(happened, DELTA, "add_remove", victim=3).pairs
    assert (pair.victim, pair.mu) == (3, pytest.approx(1.0))
    with pytest.raises(ConfigError, match="--victim 12: is not in the log"):
        of_eavesdropper(happened, DELTA, "add_remove", victim=12)
    with pytest.raises(ConfigError, match="nobody has received"):
        of_eavesdropper(told([]), DELTA, "add_remove")


# The command


@pytest.fixture
def starling(capfd):
    def run(*arguments):
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*map(str, arguments)])
        out, err = capfd.readouterr()
        return ended.value.code or 0, out, err

    return run


def test_a_run_of_decor_is_its_closed_form(starling, tmp_path):
    """From the experiment's file to the figure, by what really was sent."""
    options = {"use": "decor", "rounds": 3, "clip": 0.5, "noise": 0.4, "pairwise": 1.2}
    file = experiment(tmp_path, nodes=8, protocol=options, topology={"kind": "regular", "degree": 3})
    code, _, err = starling("run", tmp_path / file, "--out", tmp_path / "run", "--quiet")
    assert (code, err) == (0, "")
    happened = told(provenance.read(tmp_path / "run" / "lineage"))
    edges = np.array([[(i, j) in happened.links for j in range(8)] for i in range(8)])
    assert (edges.sum(axis=0) == 3).all()
    expected = decor_mu(edges, 0.4, 1.2, clip=0.5, rounds=3)
    assert of_eavesdropper(happened, DELTA, "replace_one").worst.mu == pytest.approx(expected, rel=1e-6)
    code, out, _ = starling("privacy", "network", tmp_path / "run", "--eavesdropper")
    assert code == 0
    assert "view T3 (eavesdropper on all links), delta 1e-05" in out.splitlines()[0]
    assert f"towards whoever reads all messages: mu {math.ceil(expected * 1e4) / 1e4:.4f}" in out
    assert out.endswith(f"(Allouah et al., ICML 2024): mu {expected:.4f} of the worst node\n")
    half = starling("privacy", "network", tmp_path / "run", "--eavesdropper", "--adjacency", "add_remove")[1]
    assert half.endswith(f"mu {expected / 2:.4f} of the worst node\n")
    assert "closed form" not in starling("privacy", "network", tmp_path / "run")[1]
    told_json = json.loads(starling("privacy", "network", tmp_path / "run", "--eavesdropper", "--json")[1])
    assert (told_json["view"], told_json["mu"]["max"]) == ("T3", pytest.approx(expected))


@pytest.mark.parametrize(
    ("use", "tables"),
    [
        ("muffliato", {"topology": {"kind": "ring"}}),
        ("decor", {"topology": {"kind": "random-regular", "degree": 3}}),
        ("decor", {"topology": {"kind": "ring"}, "protocol": {"clip": 0.0}}),
    ],
)
def test_there_is_no_closed_form_of_anything_else(starling, tmp_path, use, tables):
    protocol = {"use": use, "rounds": 2, **tables.pop("protocol", {})}
    file = experiment(tmp_path, nodes=8, protocol=protocol, **tables)
    starling("run", tmp_path / file, "--out", tmp_path / "run", "--quiet")
    code, out, _ = starling("privacy", "network", tmp_path / "run", "--eavesdropper")
    assert code == 0
    assert "view T3" in out
    assert "closed form" not in out
