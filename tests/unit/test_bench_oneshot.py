"""``starling bench oneshot`` end to end on a small preset: cold, warm, interrupted, with results of others."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal

import pytest

from node.cli import bench_cells, bench_oneshot
from node.cli.bench_cells import Progress
from node.cli.leaderboard_open import FOLDER, add, added, read_entry
from node.cli.main import main
from node.errors import ConfigError
from node.experiment import oneshot_cell
from node.experiment.oneshot_grid import Cell, Entrant, Setting
from node.experiment.oneshot_presets import Preset

QUICK = {"training": {"local_epochs": 1}}
SETTINGS = tuple(
    Setting("breast_cancer", partition, 3, seed) for seed in range(2) for partition in ("iid", "shards(2)")
)
ROWS = [Entrant("mean", "average", sets=QUICK), Entrant("vote", "ensemble-vote", sets=QUICK)]
OUTPUTS = ("leaderboard.html", "leaderboard.csv", "leaderboard.tex", "cells.csv")
THEIRS = {
    "name": "Theirs & co",
    "assumptions": "R1 D0 W2 H0 M1 F1 S0",
    "results": [{"data": "breast_cancer", "partition": "iid", "clients": 10, "accuracy": 0.987, "up_bytes": 12345}],
}


@pytest.fixture
def tiny(monkeypatch):
    """A benchmark of eight quick cells, solved in this process."""

    def here(self, processes=0):
        (self.folder / bench_cells.CELLS).mkdir(parents=True, exist_ok=True)
        for place, cell in enumerate(self.cells):
            if place not in self.records:
                (self.records[place],) = bench_cells._solve_setting([cell], self.folder)

    monkeypatch.setattr(bench_oneshot, "preset", lambda *_: Preset(SETTINGS, (), 1))
    monkeypatch.setattr(bench_oneshot, "entrants", lambda *_: ROWS)
    monkeypatch.setattr(Progress, "solve_missing", here)


def starling(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, arguments)))
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


# The command


def test_cold_and_warm_say_the_same_to_the_digit(tiny, tmp_path, capsys, monkeypatch):
    code, cold, _ = starling(capsys, "bench", "oneshot", "--out", tmp_path)
    texts = {name: (tmp_path / name).read_bytes() for name in OUTPUTS}
    assert code == 0
    assert "8 cells: 0 kept from before, 8 to solve" in cold

    monkeypatch.setattr(bench_cells, "solve", lambda *_: pytest.fail("a kept cell is solved again"))
    code, warm, _ = starling(capsys, "bench", "oneshot", "--out", tmp_path)
    assert code == 0
    assert "8 cells: 8 kept from before, 0 to solve" in warm
    assert cold.split("\n", 1)[1] == warm.split("\n", 1)[1]
    assert texts == {name: (tmp_path / name).read_bytes() for name in OUTPUTS}


def test_cells_csv_has_every_cell(tiny, tmp_path, capsys):
    starling(capsys, "bench", "oneshot", "--out", tmp_path, "--quiet")
    rows = list(csv.DictReader((tmp_path / "cells.csv").read_text().splitlines()))
    assert [(row["entrant"], row["partition"], row["seed"]) for row in rows[:3]] == [
        ("mean", "iid", "0"),
        ("vote", "iid", "0"),
        ("mean", "shards(2)", "0"),
    ]
    assert len(rows) == 8
    assert all(0 < float(row["accuracy"]) <= 1 and float(row["up_bytes"]) > 0 for row in rows)


def test_one_bad_cell_does_not_end_the_others(tiny, tmp_path, capsys, monkeypatch):
    """Shards of too many clients cannot be cut; who asks for them is told, and all else is solved."""
    cells = [Setting("breast_cancer", "shards(200)", 3), SETTINGS[0]]
    monkeypatch.setattr(bench_oneshot, "preset", lambda *_: Preset(tuple(cells), (), 1))
    code, out, _ = starling(capsys, "bench", "oneshot", "--out", tmp_path)
    assert code == 0
    assert "not run: mean: data.shards_per_node: 200" in out
    assert "What did not run" in (tmp_path / "leaderboard.html").read_text()


def test_check_fails_where_claims_are_not_there(tiny, tmp_path, capsys):
    code, out, _ = starling(capsys, "bench", "oneshot", "--out", tmp_path, "--check", "--quiet")
    assert code == 3
    assert "not measured (0 of 5 seeds)" in out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--preset", "huge"], "--preset: 'huge' is none; allowed: small, full, orderings"),
        (["--algorithms", "avrage"], "--algorithms: no row or algorithm is called 'avrage'; did you mean 'average'?"),
        (["--algorithms", "average", "--datasets", "no.csv"], "data.name: there is no file 'no.csv'"),
        (["--algorithms", "average", "--datasets", "wine", "--add", "none.json"], "--add none.json: cannot be read"),
    ],
)
def test_mistakes_are_one_line(arguments, complaint, tmp_path, capsys):
    code, out, err = starling(capsys, "bench", "oneshot", "--out", tmp_path, *arguments)
    assert code == 2
    assert complaint in err
    assert not out
    assert len(err.splitlines()) == 1


def test_a_folder_that_cannot_be(tmp_path, capsys, tiny):
    (tmp_path / "file").touch()
    code, _, err = starling(capsys, "bench", "oneshot", "--out", tmp_path / "file" / "x")
    assert code == 2
    assert "cannot be written to" in err


def test_algorithms_are_listed_with_what_they_assume(capsys):
    code, out, _ = starling(capsys, "list", "algorithms")
    assert not code
    assert "average " in out
    assert "R2 D0 W0 H1 M2 F1 S0  Probabilities, where a model counts" in out


# Processes


def test_processes_give_what_one_gives(tmp_path):
    cells = [Cell(entrant, setting) for setting in SETTINGS[:2] for entrant in ROWS]
    told = []
    progress = Progress(cells, tmp_path / "a", told.append)
    progress.solve_missing(1)
    here = [oneshot_cell.solve(cell, tmp_path / "b") for cell in cells]
    assert progress.in_order == here
    assert len(told) == 2
    assert "2 cells" in told[0]
    assert not multiprocessing.active_children()


def test_an_interrupt_keeps_what_is_finished_and_the_next_run_goes_on(tmp_path):
    cells = [Cell(entrant, setting) for setting in SETTINGS for entrant in ROWS]

    def stop(line):
        os.kill(os.getpid(), signal.SIGINT)

    first = Progress(cells, tmp_path, stop)
    first.solve_missing(1)
    assert first.interrupted
    assert 2 <= len(first.records) < len(cells)
    for child in multiprocessing.active_children():
        child.join()

    second = Progress(cells, tmp_path, lambda line: None)
    second.read_kept()
    assert {place: second.records[place] for place in first.records} == first.records
    missing = [place for place in range(len(cells)) if place not in second.records]
    assert missing
    bench_cells._solve_setting([cells[place] for place in missing], tmp_path)
    second.read_kept()
    assert second.in_order == [oneshot_cell.solve(cell, tmp_path / "anew") for cell in cells]


# Results of others


def test_results_of_others_stand_in_place_without_a_rank(tiny, tmp_path, capsys):
    path = tmp_path / "theirs.json"
    results = [{**THEIRS["results"][0], "data": "breast_cancer", "clients": 10}]
    path.write_text(json.dumps({**THEIRS, "results": results}))
    code, out, _ = starling(capsys, "bench", "oneshot", "--out", tmp_path / "out", "--add", path)
    assert code == 0
    assert "added: Theirs & co, 1 results, R1 D0 W2 H0 M1 F1 S0" in out
    (row,) = [line for line in out.splitlines() if line.startswith("Theirs & co (open)")]
    assert "98.7" in row
    assert "12.35 kB" in row or "12.3" in row
    assert "Theirs &amp; co (open)" in (tmp_path / "out" / "leaderboard.html").read_text()
    assert r"Theirs \& co" in (tmp_path / "out" / "leaderboard.tex").read_text()


def test_the_same_name_replaces_what_it_had(tmp_path):
    path = tmp_path / "theirs.json"
    for accuracy in (0.5, 0.6):
        path.write_text(json.dumps({**THEIRS, "results": [{**THEIRS["results"][0], "accuracy": accuracy}]}))
        add(path, tmp_path)
    assert [record["figures"]["accuracy"] for record in added(tmp_path)] == [0.6]
    assert [entry.name[:10] for entry in (tmp_path / FOLDER).iterdir()] == ["Theirs_co-"]


def test_names_that_look_alike_as_files_are_kept_apart(tmp_path):
    for name in ("A/B", "A B", "β", "γ"):
        path = tmp_path / "theirs.json"
        path.write_text(json.dumps({**THEIRS, "name": name}))
        add(path, tmp_path)
    assert sorted({record["entrant"] for record in added(tmp_path)}) == ["A B", "A/B", "β", "γ"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"name": ""}, "name: "),
        ({"assumptions": "R9"}, "must be a cell, for example"),
        ({"results": []}, "results: "),
        ({"results": [{**THEIRS["results"][0], "accuracy": 98.7}]}, "accuracy: "),
        ({"results": [{**THEIRS["results"][0], "partition": "some"}]}, "partition: 'some' is none"),
        ({"results": [{**THEIRS["results"][0], "partition": "dirichlet(nan)"}]}, "nan is out of range"),
        ({"results": [{**THEIRS["results"][0], "partition": "dirichlet(0)"}]}, "0 is out of range"),
        ({"name": "average"}, "name: 'average' is a row of this benchmark's own"),
        ({"name": "two\nlines"}, "name: "),
        ({"colour": "red"}, "colour"),
    ],
)
def test_wrong_results_are_refused_in_one_line(change, complaint, tmp_path):
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps({**THEIRS, **change}))
    with pytest.raises(ConfigError) as refused:
        read_entry(path)
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00"])
def test_what_is_no_file_of_results(text, tmp_path):
    path = tmp_path / "theirs.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"theirs\.json"):
        read_entry(path)


def test_paths_in_names_stay_in_the_folder(tmp_path):
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps({**THEIRS, "name": "../../etc/x"}))
    add(path, tmp_path / "out")
    assert [each.parent for each in (tmp_path / "out").rglob("*.json")] == [tmp_path / "out" / FOLDER]
