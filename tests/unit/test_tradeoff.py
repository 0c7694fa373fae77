"""A small trade-off study, end to end: its rows, its cells, its table, its pictures; and what is left out of each."""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats

from node.cli.main import main
from node.cli.runs import load_run
from node.cli.tradeoff import CSV, Cell, study
from node.cli.tradeoff_formal import _tick, is_bare
from node.cli.tradeoff_plots import Picture, pictures, section
from node.cli.tradeoff_style import Style
from node.cli.tradeoff_table import lines
from node.errors import ConfigError
from node.experiment.folder import LINEAGE, run_folder
from node.experiment.result import write_run
from node.experiment.setup import find_protocol, prepare
from node.experiment.simulation import simulation
from node.experiment.sweep import points
from node.experiment.virtual import run_virtual
from node.provenance import Log

EXPERIMENT = """
name = "small"
nodes = 8
clock = "virtual"
[protocol]
use = "dpsgd"
rounds = 3
[topology]
kind = "regular"
degree = 3
[data]
name = "digits"
groups = [6, 2]
test_fraction = 0.8
[model]
hidden = [8]
[training]
batch_size = 8
local_steps = 4
[executor]
kind = "batched"
[[attackers]]
kind = "membership"
every = 1
nodes = [0, 7]
[[sweep]]
protocol = [{ use = "local" }, { use = "dpsgd" }, { use = "ditto", pull = 0.1 }, { use = "ditto", pull = 1.0 }]
seed = [1, 2]
[[sweep]]
protocol = [{ use = "dpsgd" }]
privacy = [{ mechanism = "record", noise_multiplier = 2.0 }]
seed = [1, 2]
[[sweep]]
privacy = [{ mechanism = "node", noise_multiplier = 2.0 }]
record.lineage = [true]
seed = [1]
[[sweep]]
protocol = [{ use = "muffliato", clip = 0.5, noise = 0.2, gossip_rounds = 2 }, { use = "zipdl", noise = 0.2 }]
seed = [1, 2]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The experiment's file, and the runs of all its points, made in this process."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "small.toml").write_text(EXPERIMENT, encoding="utf-8")
    for point in points(str(folder / "small.toml"), [], []):
        simulate(point, folder / "out" / point.name)
    return folder


def simulate(point, to):
    """Run a point, and write all but its report."""
    setup, to = prepare(point.config), run_folder(to, "")
    log = Log.of_all(to / LINEAGE) if setup.is_logged else None
    result = run_virtual(simulation(setup), lambda *_: None, lineage=log)
    write_run(to, setup, result)
    result.close()


@pytest.fixture(scope="module")
def runs(folder):
    swept = points(str(folder / "small.toml"), [], [])
    return [load_run(folder / "out" / point.name) for point in swept]


@pytest.fixture(scope="module")
def found(runs):
    return study(runs)


def summary(row):
    return json.loads((row.run.folder / "summary.json").read_text())


# End to end


def test_the_command_keeps_what_is_finished_and_tells_what_it_means(folder, capfd, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as ended:
        main(["run", "small.toml", "--out", "out"])
    out, err = capfd.readouterr()
    assert (ended.value.code or 0, err) == (0, "")
    assert out.count("kept, ") == 15
    assert "dpsgd, record" in out
    assert "epsilon [a]: the largest of all nodes, per record, add-remove, T1, delta 1e-05" in out
    assert out.splitlines()[-1].endswith("(report.html, sweep.csv, tradeoff.csv, one folder for each point)")
    with (folder / "out" / CSV).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 15
    assert {row["method"] for row in rows} == {"local", "dpsgd", "ditto pull=0.1", "ditto pull=1", "muffliato", "zipdl"}
    assert "<h2>Trade-off</h2>" in (folder / "out" / "report.html").read_text()


def test_one_point_runs_by_itself_where_it_is_asked_for(folder, capfd, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit):
        main(["run", "small.toml", "--no-sweep", "--set", "protocol.rounds=1", "--out", "alone", "--json"])
    assert json.loads(capfd.readouterr().out)["rounds"] == 1


def test_a_protocol_that_there_is_not_is_told_before_anything_runs(folder, capfd, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as ended:
        main(["run", "small.toml", "--sweep", "protocol.use=local,dittoo", "--out", "wrong"])
    out, err = capfd.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err.startswith("starling: seed=1,protocol.use=dittoo: protocol.use: no ")
    assert not (folder / "wrong").exists()


# Rows and cells


def test_a_row_says_what_its_summary_does(found):
    row = next(row for row in found.rows if row.method == "ditto pull=1")
    told = summary(row)
    groups, final = told["fairness"]["groups"], told["attacks"]["final"]
    figures = row.figures
    assert figures["majority_accuracy"] == groups["0"]["accuracy"]
    assert figures["minority_accuracy"] == groups["1"]["accuracy"]
    assert figures["own_accuracy"] == pytest.approx((6 * groups["0"]["accuracy"] + 2 * groups["1"]["accuracy"]) / 8)
    assert figures["worst_group_accuracy"] == min(group["accuracy"] for group in groups.values())
    assert figures["final_auc"] == final["mean"]["membership_auc"]
    assert figures["final_auc_gap"] == pytest.approx(
        final["groups"]["1"]["membership_auc"] - final["groups"]["0"]["membership_auc"]
    )
    aucs = [message["membership_auc"] for message in told["attacks"]["messages"]]
    assert figures["message_auc"] == pytest.approx(np.mean(aucs))
    of_minority = [m["membership_auc"] for m in told["attacks"]["messages"] if m["victim"] >= 6]
    assert figures["message_auc_minority"] == (pytest.approx(np.mean(of_minority)) if of_minority else None)
    assert (figures["bytes_sent"], figures["rounds"]) == (told["bytes_sent"], 3)


def test_who_sends_nothing_leaks_nothing_on_the_way(found):
    local = next(row for row in found.rows if row.method == "local")
    assert local.figures["message_auc"] is None
    assert local.figures["bytes_sent"] == 0
    assert local.figures["own_accuracy_at_fixed_bytes"] == local.figures["own_accuracy"]


def test_gains_are_over_the_same_seed_privacy_and_data(found):
    own = {(row.method, row.privacy, row.seed): row.figures["own_accuracy"] for row in found.rows}
    for row in found.rows:
        base = own.get(("dpsgd", row.privacy, row.seed))
        if row.method.startswith("ditto"):
            assert row.figures["gain_over_dpsgd"] == row.figures["own_accuracy"] - base
            assert row.figures["gain_over_local"] == row.figures["own_accuracy"] - own["local", row.privacy, row.seed]
        if row.method == "dpsgd":
            assert row.figures["gain_over_dpsgd"] == 0
        if row.privacy.startswith("record"):
            assert row.figures["gain_over_local"] is None  # nobody has learned alone with that noise


def test_an_epsilon_has_its_meaning_and_nothing_else_has_one(found):
    for row in found.rows:
        spent = summary(row).get("privacy", {}).get("epsilon")
        assert row.figures["epsilon_max"] == (spent["max"] if spent else math.inf)
        assert bool(row.meaning) == bool(spent)
    units = {row.meaning.split(",")[0] for row in found.rows if row.meaning}
    assert units == {"per record", "per node"}


def test_what_the_log_accounts_for_stands_in_columns_of_its_own(found):
    for row in found.rows:
        network = summary(row).get("privacy", {}).get("network")
        assert bool(row.pair_meaning) == bool(network)
        names = ("epsilon_pair_mean", "epsilon_pair_max", "mu_pair_mean", "mu_pair_max")
        told = [row.figures.get(name) for name in names]
        if not network:
            assert told == [None] * 4
            continue
        expected = [network[figure][over] for figure in ("epsilon", "mu") for over in ("mean", "max")]
        assert told == [math.inf if value is None else value for value in expected]
        assert row.pair_meaning == "per node, replace-one, T1, delta 1e-05, gdp, exact (non-adaptive)"
    with_log = {row.method: math.isfinite(row.figures["epsilon_pair_max"]) for row in found.rows if row.pair_meaning}
    assert with_log == {"dpsgd": True, "muffliato": True, "zipdl": False}  # without clipping there is no epsilon


def test_a_protocols_noise_is_a_level_of_privacy_and_its_gain_is_over_none(found):
    own = {(row.method, row.privacy, row.seed): row.figures["own_accuracy"] for row in found.rows}
    for row in found.rows:
        if row.method == "muffliato":
            assert row.privacy == "noise=0.2"
            assert row.figures["gain_over_dpsgd"] == row.figures["own_accuracy"] - own["dpsgd", "no DP", row.seed]


def test_a_cell_is_all_seeds_of_what_differs_in_nothing_else(found):
    labels = {cell.label: len(cell.rows) for cell in found.cells}
    assert labels == {
        "local, no DP": 2,
        "dpsgd, no DP": 2,
        "ditto pull=0.1, no DP": 2,
        "ditto pull=1, no DP": 2,
        "dpsgd, record σ=2": 2,
        "dpsgd, node σ=2": 1,
        "muffliato, noise=0.2": 2,
        "zipdl, noise=0.2": 2,
    }
    cell = found.cells[1]
    values = [row.figures["own_accuracy"] for row in cell.rows]
    low, high = stats.t.interval(0.95, 1, loc=np.mean(values), scale=stats.sem(values))
    told = cell.estimate("own_accuracy")
    assert (told.mean - told.half, told.mean + told.half) == (pytest.approx(low), pytest.approx(high))
    assert cell.estimate("nothing of the kind") is None


def test_fixed_bytes_are_what_the_cheapest_sends(found):
    sent = [row.figures["bytes_sent"] for row in found.rows if row.figures["bytes_sent"]]
    assert found.fixed_bytes == min(sent)
    costly = [row for row in found.rows if row.figures["bytes_sent"] > found.fixed_bytes and "ditto" in row.method]
    for row in costly:
        recorded = row.run.samples("own_accuracy").value
        assert recorded.min() <= row.figures["own_accuracy_at_fixed_bytes"] <= recorded.max()


def test_settings_are_told_apart(folder, tmp_path):
    text = (folder / "small.toml").read_text().partition("[[sweep]]")[0]
    path = tmp_path / "groups.toml"
    path.write_text(text + '[sweep]\n"data.groups" = [[6, 2], [4, 4]]\n')
    swept = points(str(path), [], [])
    for point in swept:
        simulate(point, tmp_path / point.name)
    uneven, even = study([load_run(tmp_path / point.name) for point in swept]).rows
    assert (uneven.setting, even.setting) == ("6:2", "4:4")
    assert (uneven.method, uneven.privacy) == ("dpsgd", "")
    assert "majority_accuracy" in uneven.figures
    assert "majority_accuracy" not in even.figures


# What is no study


def test_one_run_is_none_nor_are_runs_that_tell_nothing(runs, tmp_path):
    assert study(runs[:1]) is None
    assert section(runs[:1]) == ""
    bare = []
    for run in runs[:2]:
        shutil.copytree(run.folder, tmp_path / run.folder.name)
        path = tmp_path / run.folder.name / "summary.json"
        told = json.loads(path.read_text())
        del told["attacks"], told["fairness"]
        path.write_text(json.dumps(told))
        bare.append(load_run(path.parent))
    assert study(bare) is None


def test_runs_that_failed_are_left_out(runs, tmp_path):
    shutil.copytree(runs[0].folder, tmp_path / "failed")
    path = tmp_path / "failed" / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "failed", "error": "Deadlock"}))
    assert len(study([*runs, load_run(tmp_path / "failed")]).rows) == len(runs)


# The table


def test_the_table_has_two_parts_with_a_line_for_each_cell(found):
    told = list(lines(found))
    parts = "\n".join(told).split("\n\n")
    assert [len(part.splitlines()) for part in parts[:2]] == [9, 9]
    assert {len(line) for line in parts[0].splitlines()} == {len(parts[0].splitlines()[0])}
    assert "none" in next(line for line in parts[1].splitlines() if line.startswith("local"))
    assert "±" in next(line for line in parts[0].splitlines() if line.startswith("dpsgd, no DP"))
    letters = {line[9:10] for line in told if line.startswith("epsilon [")}
    assert letters == {"a", "b", "c"}


# Pictures


@pytest.fixture(scope="module")
def drawn(found):
    return {picture.title: picture for picture in pictures(found)}


def test_every_picture_that_the_runs_allow_is_drawn(drawn):
    assert list(drawn) == [
        "Utility against formal privacy: per record",
        "Utility against formal privacy: per node",
        "Utility against what nodes may learn of each other: per node",
        "Utility against leakage",
        "Gain of personalization against leakage",
        "Minority against majority: accuracy",
        "Minority against majority: TPR at 1 % FPR",
        "Fairness of privacy and of accuracy",
        "What nodes learn of each other",
        "ROC of membership inference",
        "Empirical against accounted epsilon: per record",
        "Empirical against accounted epsilon: per node",
    ]
    for picture in drawn.values():
        assert picture.svg.startswith("<svg viewBox=")
        assert "mathdefault" not in picture.svg


def test_an_epsilon_axis_has_one_meaning_and_says_it(drawn):
    picture = drawn["Utility against formal privacy: per record"]
    assert ">per record, add-remove, T1, delta 1e-05, rdp<" in picture.svg
    assert picture.caption.startswith("Epsilon per record, add-remove, T1")
    assert ">none<" in picture.svg
    assert ">local<" not in picture.svg  # it has no private run to compare with


def test_leakage_by_distance_is_the_accountants_and_says_so(drawn):
    picture = drawn["What nodes learn of each other"]
    assert picture.caption.startswith("Every pair of nodes")
    assert ">muffliato<" in picture.svg
    assert ">per node, replace-one, T1, delta 1e-05, gdp, exact (non-adaptive)<" in picture.svg


def test_pairs_have_an_axis_with_all_that_is_accounted_by_a_log(drawn):
    picture = drawn["Utility against what nodes may learn of each other: per node"]
    assert ">muffliato<" in picture.svg
    assert ">dpsgd<" in picture.svg
    assert ">zipdl<" not in picture.svg
    assert ">none<" in picture.svg  # D-PSGD without noise


def test_what_has_a_formal_guarantee_is_in_no_picture_of_what_has_none(found, drawn):
    picture = drawn["Gain of personalization against leakage"]
    assert ">muffliato<" not in picture.svg
    assert ">zipdl<" in picture.svg
    assert {cell.first.method for cell in found.cells if not is_bare(cell)} == {"dpsgd", "muffliato"}


def test_a_front_is_of_cells_whose_data_are_alike(found, drawn):
    best = max((cell for cell in found.cells if is_bare(cell)), key=lambda cell: cell.mean("gain_over_dpsgd"))
    worse = [replace(row, setting="4:4") for row in found.cells[1].rows]
    apart = pictures(replace(found, rows=(*found.rows, *worse)))
    caption = next(picture.caption for picture in apart if picture.title.startswith("Gain"))
    alone = drawn["Gain of personalization against leakage"].caption
    area = alone.partition("hypervolume ")[2].partition(",")[0]
    assert f"hypervolume {area}, " in caption  # as without the other setting, whose own comes after it
    assert " 4:4, from AUC 1" in caption
    assert best.mean("gain_over_dpsgd") >= 0


def test_numbers_on_an_epsilon_axis_have_room():
    axes = Figure().add_subplot()
    _tick(axes, [8.0, 8.1, 500.0, 2000.0], 6000.0)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["8", "500", "2,000", "none"]
    _tick(axes, [30.1], math.inf)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["30.1"]


def test_the_table_has_the_mean_over_pairs_and_the_worst(found):
    told = list(lines(found))
    part = "\n".join(told).split("\n\n")[1].splitlines()
    row = next(line for line in part if line.startswith("muffliato"))
    assert row.count("[c]") == 2
    assert next(line for line in part if line.startswith("zipdl")).count("infinite [c]") == 2
    assert next(line for line in part if line.startswith("local")).split()[3:6] == ["none"] * 3
    assert "epsilon [c]: mean over pairs of nodes, and the worst pair, per node, replace-one, T1" in "\n".join(told)


def test_the_same_runs_give_the_same_pictures(found, drawn):
    assert [picture.svg for picture in pictures(found)] == [picture.svg for picture in drawn.values()]


def test_without_what_a_picture_needs_there_is_none(runs):
    titles = [picture.title for picture in pictures(study([run for run in runs if not run.summary.privacy]))]
    assert not [title for title in titles if "formal" in title or "accounted" in title or "learn" in title]
    assert "Utility against leakage" in titles


def test_names_from_a_folder_are_text(runs, monkeypatch):
    told = [Picture("<b>title</b>", "<svg></svg>", "<i>caption</i>")]
    monkeypatch.setattr("node.cli.tradeoff_plots.pictures", lambda study: told)
    page = section(runs)
    assert "<svg></svg>" in page
    assert "&lt;b&gt;title" in page
    assert "&lt;i&gt;caption" in page


def test_no_two_lines_look_alike(found):
    style = Style(found.cells)
    shades = [style.alpha(cell) for cell in found.cells]
    assert max(shades) == 1.0
    assert min(shades) >= 0.3
    row = found.rows[0]
    many = [Cell((replace(row, method=f"method {number}"),)) for number in range(30)]
    style = Style(many)
    looks = {(*style.look(cell, style.shape(cell)).values(), style.dashes(cell)) for cell in many}
    assert len(looks) == 30


def test_a_sweep_of_a_file_says_what_is_wrong_with_it(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text(EXPERIMENT.replace("seed = [1, 2]", "seed = 1"))
    with pytest.raises(ConfigError, match=r"x.toml: sweep.seed: must be a list of values"):
        points(str(path), [], [])


GRID = Path(__file__).parents[2] / "scripts" / "bench" / "tradeoff.toml"


@pytest.mark.parametrize("experiment", ["tradeoff", str(GRID)])
def test_every_point_of_the_studies_names_a_protocol_and_options_that_there_are(experiment):
    swept = points(experiment, ["clock=virtual"], ["seed=1"])
    assert len({point.name for point in swept}) == len(swept) > 10
    for point in swept:
        assert find_protocol(point.config)
        assert point.config.attackers
