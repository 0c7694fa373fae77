"""What a run has given away: figures by distance, and ``starling privacy network``, which prints them."""

from __future__ import annotations

import json
import math
import re
import sys
from collections import deque

import numpy as np
import pytest

from launch import experiment
from logged import FULL, Averaging, Model, Noise, simulate, steps_of
from node import ConfigError, Ref
from node.cli.main import main
from node.op import Spec
from node.privacy import gaussian
from node.privacy.exposure import of_each, of_set
from node.privacy.from_run import told
from node.privacy.network import NetworkAccountant
from node.provenance import Log, Made, Received

DELTA = 1e-5


def averaging(rounds, always=False):
    return lambda: Averaging(Averaging.Config(rounds=rounds, always=always))


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    return told(steps_of(tmp_path_factory.mktemp("once"), averaging(2), mods=[Noise()]))


@pytest.fixture(scope="module")
def always(tmp_path_factory):
    return told(steps_of(tmp_path_factory.mktemp("always"), averaging(5, always=True), mods=[Noise()]))


# Figures


def test_a_ring_by_distance(once):
    exposure = of_each(once, DELTA, "add_remove")
    assert (exposure.view, exposure.is_clipped, len(exposure.pairs)) == ("T1", True, 56)
    rings = exposure.rings()
    assert [(ring.distance, ring.pairs) for ring in rings] == [(1, 16), (2, 16), (3, 16), (4, 8)]
    assert [ring.mu_max for ring in rings] == pytest.approx([1, 1, 0, 0], abs=1e-6)
    assert [ring.mu_mean for ring in rings] == pytest.approx([1, 1, 0, 0], abs=1e-6)
    assert [ring.epsilon_max for ring in rings] == pytest.approx([4.3771781, 4.3771781, 0, 0], abs=1e-5)
    assert [ring.published_mu_max**2 for ring in rings] == pytest.approx([4 / 3, 1 / 3, 0, 0])


def test_a_replaced_contribution_is_twice_as_far(always):
    pairs = zip(of_each(always, DELTA, "add_remove").pairs, of_each(always, DELTA, "replace_one").pairs, strict=True)
    for added, replaced in pairs:
        assert replaced.mu == pytest.approx(2 * added.mu)
        assert replaced.epsilon > added.epsilon
        assert added.epsilon == pytest.approx(gaussian.epsilon_of(added.mu, DELTA))


def test_several_contributions_have_no_published_figure_and_are_counted_together(always):
    exposure = of_each(always, DELTA, "add_remove")
    assert {pair.published_mu for pair in exposure.pairs} == {None}
    view = NetworkAccountant(always.lineage, {1})
    (pair,) = [pair for pair in exposure.pairs if (pair.victim, pair.attackers) == (0, (1,))]
    assert pair.mu == pytest.approx(view.mu(0, participation="all"))
    assert pair.mu > view.mu(0)
    assert pair.mu <= math.sqrt(5) + 1e-9


def test_the_worst_pair_is_the_one_with_the_largest_mu(always):
    exposure = of_each(always, DELTA, "add_remove")
    assert exposure.worst.mu == max(pair.mu for pair in exposure.pairs)
    assert exposure.worst.distance == 1


def test_a_victim_alone(always):
    whole, alone = of_each(always, DELTA, "add_remove"), of_each(always, DELTA, "add_remove", victim=3)
    assert alone.pairs == tuple(pair for pair in whole.pairs if pair.victim == 3)


def test_nodes_that_collude_know_no_less_than_any_of_them(once):
    exposure = of_set(once, (2, 6), DELTA, "add_remove")
    assert (exposure.view, len(exposure.pairs)) == ("T2", 6)
    alone = {(pair.victim, *pair.attackers): pair.mu for pair in of_each(once, DELTA, "add_remove").pairs}
    for pair in exposure.pairs:
        assert pair.attackers == (2, 6)
        assert pair.mu >= max(alone[pair.victim, 2], alone[pair.victim, 6]) - 1e-9
    assert {pair.victim: pair.distance for pair in exposure.pairs} == {0: 2, 1: 1, 3: 1, 4: 2, 5: 1, 7: 1}


def test_a_set_of_one_is_one_attacker(once):
    exposure = of_set(once, (5,), DELTA, "replace_one", victim=4)
    (pair,) = exposure.pairs
    (same,) = [p for p in of_each(once, DELTA, "replace_one", victim=4).pairs if p.attackers == (5,)]
    assert exposure.view == "T1"
    assert pair[:5] == pytest.approx(same[:5])
    assert pair.attackers == same.attackers


def test_whom_nothing_reaches_is_never_told_of():
    def update(node):
        op = "node.privacy.clipping:noised_update"
        return Made(node, node + 1, op, (0, 0), {"clip": 1.0, "noise_multiplier": 1.0})

    steps = [update(0), Received(1, 0, (1,)), update(2), Received(3, 2, (3,))]
    exposure = of_each(told(steps), DELTA, "add_remove")
    distances = {(pair.victim, *pair.attackers): (pair.distance, pair.mu) for pair in exposure.pairs}
    assert distances[0, 1] == (1, pytest.approx(1.0))
    assert distances[1, 0] == distances[0, 2] == (math.inf, 0.0)
    assert [ring.distance for ring in exposure.rings()] == [1, math.inf]


def test_a_run_in_which_nobody_heard_of_anybody():
    with pytest.raises(ConfigError, match="nobody has received what another node has made"):
        of_each(told([]), DELTA, "add_remove")


def test_all_together_leave_nobody(once):
    with pytest.raises(ConfigError, match="--collude: nobody is left"):
        of_set(once, range(8), DELTA, "add_remove")


def test_infinite_figures_stay_so(tmp_path):
    exposure = of_each(told(steps_of(tmp_path, averaging(1))), DELTA, "add_remove")
    assert not exposure.is_clipped
    near, *far = exposure.rings()
    assert (near.mu_max, near.epsilon_max, near.published_mu_max) == (math.inf, math.inf, math.inf)
    assert [ring.mu_max for ring in far] == [0, 0, 0]


# The command


@pytest.fixture
def starling(capfd):
    def run(*arguments):
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["privacy", "network", *map(str, arguments)])
        out, err = capfd.readouterr()
        return ended.value.code or 0, out, err

    return run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    simulate(folder, averaging(2), mods=[Noise()])
    return folder


def test_the_table_says_what_it_is_about(starling, run_folder):
    code, out, err = starling(run_folder)
    assert (code, err) == (0, "")
    about, head, *rows, worst, published = out.splitlines()
    assert about == (
        "exact (non-adaptive): unit node, adjacency replace-one, view T1 (honest-but-curious neighbour), delta 1e-05"
    )
    assert head.split() == [
        *("distance", "pairs", "mu", "mean", "mu", "max"),
        *("epsilon", "mean", "epsilon", "max", "published"),
    ]
    assert [row.split()[:4] for row in rows] == [
        ["1", "16", "2.0000", "2.0000"],
        ["2", "16", "2.0000", "2.0000"],
        ["3", "16", "0.0000", "0.0000"],
        ["4", "8", "0.0000", "0.0000"],
    ]
    assert worst.startswith("worst: node 0 towards node ")
    assert "which is no guarantee" in published


def test_what_scripts_read(starling, run_folder):
    code, out, _ = starling(run_folder, "--json", "--delta", "1e-6", "--adjacency", "add_remove", "--victim", "3")
    told = json.loads(out)
    assert code == 0
    assert {key: told[key] for key in ("unit", "adjacency", "view", "delta", "label", "clipped", "contributions")} == {
        "unit": "node",
        "adjacency": "add_remove",
        "view": "T1",
        "delta": 1e-6,
        "label": "exact (non-adaptive)",
        "clipped": True,
        "contributions": "one",
    }
    assert [ring["pairs"] for ring in told["distances"]] == [2, 2, 2, 1]
    assert told["distances"][0]["epsilon_max"] == pytest.approx(gaussian.epsilon_of(1.0, 1e-6))
    assert (told["worst"]["victim"], told["worst"]["mu"]) == (3, pytest.approx(1.0))


def test_a_colluding_set(starling, run_folder):
    code, out, _ = starling(run_folder, "--collude", "4,2,4")
    assert code == 0
    assert "view T2 (colluding honest-but-curious nodes)" in out
    assert "towards nodes 2, 4: mu" in out


def test_what_nothing_hides_is_infinite(starling, tmp_path):
    simulate(tmp_path, averaging(1), nodes=3, topology=FULL)
    code, out, _ = starling(tmp_path)
    assert code == 0
    assert out.splitlines()[2].split() == ["1", "6", *["infinite"] * 5]
    assert "training is not clipped" in out.splitlines()[-1]
    _, out, _ = starling(tmp_path, "--json")
    assert json.loads(out)["worst"]["epsilon"] is None


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--collude", "1,two"], "--collude 1,two: allowed: numbers of nodes with commas between them"),
        (["--collude", "1,17"], "--collude: node 17 is not in the log"),
        (["--collude", ""], "--collude is empty: allowed: numbers of nodes with commas between them"),
        (["--victim", "9"], "--victim 9: is not in the log; allowed: 0, 1, 2"),
        (["--delta", "2"], "--delta: 2.0; allowed: above 0 and below 1"),
        (["--adjacency", "near"], "--adjacency near: allowed: add_remove, replace_one"),
    ],
)
def test_wrong_input_is_one_line(starling, run_folder, arguments, complaint):
    code, out, err = starling(run_folder, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"starling: {complaint}")
    assert err.count("\n") == 1


def damaged(folder, run_folder, change):
    """A copy of a run whose log's lines were changed."""
    path = folder / "lineage" / "all.jsonl"
    path.parent.mkdir()
    path.write_bytes(b"".join(change((run_folder / "lineage" / "all.jsonl").read_bytes().splitlines(keepends=True))))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda lines: [*lines[:-1], lines[-1][:-3]], r"all.jsonl: breaks off after \d+ rows; only a whole simulation"),
        (lambda lines: lines[:-1], r"all.jsonl: breaks off"),
        (lambda lines: lines[: len(lines) // 2], r"all.jsonl: breaks off"),
        (lambda lines: [*lines[:4], lines[4][:9], *lines[5:]], r"all.jsonl, line 5: no record"),
        (lambda lines: [*lines[:4], lines[4][:9] + b"\n", *lines[5:]], r"all.jsonl, line 5: no record"),
        (lambda lines: lines[1:], r"all.jsonl: has \d+ rows of \d+; the others are missing"),
        (lambda lines: [*lines[:-5], *lines[-3:]], r"all.jsonl: has \d+ rows of \d+"),
        (lambda lines: [*lines, lines[0]], r"all.jsonl, line \d+: there is more than its end"),
        (lambda lines: [*lines[1:-1], b'["end",%d]\n' % (len(lines) - 2)], r"value \d+ was made by no row before"),
        (lambda lines: [b"\xff\xfe\n", *lines], r"all.jsonl, line 1: no record"),
    ],
)
def test_a_damaged_simulation_is_refused(starling, run_folder, tmp_path, change, complaint):
    damaged(tmp_path, run_folder, change)
    code, out, err = starling(tmp_path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.search(complaint, err)


def test_a_folder_is_no_log(starling, tmp_path):
    (tmp_path / "lineage" / "all.jsonl").mkdir(parents=True)
    code, out, err = starling(tmp_path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "all.jsonl: cannot be read: Is a directory" in err


def test_what_is_missing_of_a_real_run_is_said(starling, tmp_path):
    """Node 0 was killed in the middle of a line; of node 2 there is nothing."""
    (tmp_path / "experiment.toml").write_text("nodes = 3\n")
    folder, content = tmp_path / "lineage", memoryview(b"12345678")
    model = Ref(0, Spec((2,)), deque())
    killed, other = Log.of_life(folder, 0), Log.of_life(folder, 1)
    killed.made(0, model, "quadratic:train", [Ref(-1, Spec((2,)), deque())], {})
    killed.left(0, model, content)
    with (folder / "0-0.jsonl").open("ab") as file:
        file.write(b'["made",0,1,"o')
    arrived = Ref(-2, Spec((2,)), deque())
    other.came(1, arrived, content)
    other.received(1, 0, Model(round=0, model=arrived))
    other.made(1, Ref(0, Spec((2,)), deque()), "quadratic:train", [arrived], {})
    other.close()
    code, out, _ = starling(tmp_path)
    assert code == 0
    assert out.startswith("incomplete (non-adaptive): ")
    assert out.splitlines()[-2:] == [
        f"missing: {gap}; figures are of the rest, and may be too small"
        for gap in (
            "0-0.jsonl breaks off after 2 rows: its process was killed, or rows are missing",
            "2-0.jsonl is missing",
        )
    ]
    told = json.loads(starling(tmp_path, "--json")[1])
    assert (told["label"], len(told["missing"])) == ("incomplete (non-adaptive)", 2)


def test_a_run_without_a_log_is_told_how_to_get_one(starling, tmp_path):
    code, _, err = starling(tmp_path / "run")
    assert code == 2
    assert err.endswith("run with record.lineage = true\n")


def test_a_run_that_protects_records_is_accounted_elsewhere(starling, run_folder, tmp_path):
    (tmp_path / "experiment.toml").write_text('[privacy]\nmechanism = "record"\n')
    code, _, err = starling(tmp_path)
    assert code == 2
    assert "such runs are accounted by `starling privacy epsilon`" in err


# From the experiment file to the table


@pytest.fixture
def simulated(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(**tables):
        record = {"record": {"lineage": True, "models": True}}
        file = experiment(tmp_path / "it", protocol={"use": "dpsgd", "rounds": 3}, **{**record, **tables})
        with pytest.raises(SystemExit):
            main(["run", str(tmp_path / "it" / file), "--out", str(tmp_path / "run"), "--quiet"])
        capfd.readouterr()
        return tmp_path / "run"

    return run


def test_an_experiment_with_noise_on_every_update(starling, simulated):
    folder = simulated(privacy={"mechanism": "node", "noise_multiplier": 2.0})
    code, out, _ = starling(folder, "--json")
    told = json.loads(out)
    assert (code, told["clipped"], told["contributions"]) == (0, True, "many")
    assert "at most all rounds together" in starling(folder)[1].splitlines()[-1]
    local = 2 / 2.0 * math.sqrt(3)
    mus = [ring["mu_max"] for ring in told["distances"]]
    assert mus == sorted(mus, reverse=True)
    assert 0 < mus[-1] < mus[0] <= local + 1e-9


def test_a_second_run_leaves_nothing_of_the_first(simulated):
    folder = simulated()
    first = (folder / "lineage" / "all.jsonl").read_bytes()
    assert (simulated_again(folder)).read_bytes() == first


def simulated_again(folder):
    with pytest.raises(SystemExit):
        main(["run", str(folder.parent / "it" / "experiment.toml"), "--out", str(folder), "--quiet"])
    return folder / "lineage" / "all.jsonl"


def test_without_the_switch_nothing_is_written_and_nothing_differs(simulated):
    folder = simulated()
    logged = json.loads((folder / "summary.json").read_text())
    folder = simulated(record={"models": True})
    plain = json.loads((folder / "summary.json").read_text())
    assert not list((folder / "lineage").glob("*"))
    assert logged["run_hash"] == plain["run_hash"] is not None
    assert np.isfinite(plain["metrics"]["accuracy"]["mean"])
