"""Sweeps: all combinations, checked first; side by side within limits; resumable; one table, one report, one list."""

from __future__ import annotations

import asyncio
import csv
import json
import math
import os
import signal
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.cli import sweeps
from node.cli.main import main
from node.cli.sweeps import Sweep
from node.errors import ConfigError
from node.experiment import sweep as sweeping
from node.experiment.loading import digest
from node.experiment.sweep import at_once, finished, points, row, summary_in, write_table

METRICS = {"accuracy": {"mean": 0.5, "std": 0.1, "min": 0.4, "max": 0.6}}

CHILD = """
import json, os, pathlib, signal, sys
folder, summary, code, mark = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
folder.mkdir(exist_ok=True)
with open(mark, "a") as file:
    file.write(f"{folder.name} begins\\n")
if code == 99:
    signal.pause()
if summary:
    (folder / "summary.json").write_text(summary)
with open(mark, "a") as file:
    file.write(f"{folder.name} ends\\n")
sys.exit(f"starling: it is wrong\\nstarling: {folder.name} is wrong" if code == 2 else code)
"""


def swept(*keys, sets=()):
    return points("digits-gossip", sets, keys)


def names(*keys, sets=()):
    return [point.name for point in swept(*keys, sets=sets)]


def told(point, **changes):
    """A summary as a run of the point would write it."""
    counters = {"rounds": 3, "time_s": 1.5, "wall_s": 0.5, "messages": 7, "bytes_sent": 70, "peak_rss_bytes": 1000}
    return {
        "status": "finished",
        "error": None,
        "hash": digest(point.config),
        "metrics": METRICS,
        **counters,
        **changes,
    }


# Points


def test_all_combinations_the_last_key_changes_fastest():
    found = swept("protocol.rounds=10,20", "seed=1,2,3")
    assert [(point.config.protocol.options["rounds"], point.config.seed) for point in found] == [
        (10, 1), (10, 2), (10, 3), (20, 1), (20, 2), (20, 3),
    ]  # fmt: skip
    assert found[1].name == "protocol.rounds=10,seed=2"
    assert found[1].sets == ["protocol.rounds=10", "seed=2"]


def test_every_point_has_what_is_set_for_all():
    assert {point.config.nodes for point in swept("seed=1,2", sets=["nodes=5"])} == {5}


def test_values_are_toml_and_bare_words_are_strings():
    found = swept('protocol.use=dpsgd,"local"', "model.hidden=[8],[16, 4]", "training.lr=1e-2")
    assert [point.config.protocol.use for point in found] == ["dpsgd", "dpsgd", "local", "local"]
    assert [point.config.model.hidden for point in found] == [(8,), (16, 4)] * 2
    assert found[0].config.training.lr == 0.01


def test_commas_in_strings_lists_and_tables_do_not_divide():
    found = swept('network.latency_s=0.1,{distribution="uniform", high=0.2}', "mods=[],[{use='a,b'}, {use='c]'}]")
    assert len(found) == 4
    assert found[2].config.network.latency_s.high == 0.2
    assert [mod.use for mod in found[1].config.mods] == ["a,b", "c]"]


@given(st.lists(st.text(st.sampled_from("abc019.-"), min_size=1), min_size=1))
def test_plain_values_are_divided_at_every_comma(values):
    assert sweeping._split(",".join(values)) == values


@given(st.text(st.sampled_from("ab,[]{}'\""), max_size=20))
def test_dividing_loses_nothing_but_commas(text):
    assert ",".join(sweeping._split(text)) == text


def test_a_name_can_be_a_folder():
    found = names("data.name=/some/where.csv,'b c.csv'", f"name={'x' * 200}")
    assert len(set(found)) == 2
    for name in found:
        assert "/" not in name
        assert " " not in name
        assert len(name) < 120


def test_names_that_would_look_alike_are_told_apart():
    assert len(set(names("data.name='a b.csv','a?b.csv'"))) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("seed", "--sweep seed: write it as key=value,value"),
        ("seed=", "--sweep seed=: write it as"),
        ("seed=1,,2", "--sweep seed=1,,2: write it as"),
        ("=1,2", "--sweep =1,2: write it as"),
        ("seed=1,1", "--sweep: seed=1 is there twice"),
        ("seed=1,many", "seed: input should be a valid integer"),
        ("sed=1,2", "sed: there is no such key; did you mean 'seed'?"),
        ("training.lr=0.1,-1", "training.lr: input should be greater than 0 (got -1)"),
    ],
)
def test_a_wrong_sweep_is_one_line(given, message):
    with pytest.raises(ConfigError) as caught:
        swept(given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_is_swept_once():
    with pytest.raises(ConfigError, match="--sweep seed: is there twice; write all its values after one --sweep"):
        swept("seed=1", "seed=2")


def test_what_the_environment_says_holds_for_all_points():
    found = points("digits-gossip", [], ["seed=1,2"], {"STARLING_NODES": "9"})
    assert [point.config.nodes for point in found] == [9, 9]


# What is there already


def test_only_a_finished_run_of_this_very_configuration_is_kept(tmp_path):
    one, other = swept("seed=1,2")
    assert finished(one, tmp_path) is None
    for summary, kept in (
        (told(one), True),
        (told(one, status="interrupted"), False),
        (told(one, status="failed"), False),
        (told(other), False),
        ([], False),
    ):
        (tmp_path / "summary.json").write_text(json.dumps(summary))
        assert (finished(one, tmp_path) == summary) is kept
    (tmp_path / "summary.json").write_text('{"status": "fini')
    assert finished(one, tmp_path) is None
    assert summary_in(tmp_path) is None


# Limits

Memory = namedtuple("Memory", "available")


@pytest.mark.parametrize(
    ("sets", "peak", "expected"),
    [
        ([], 0, 8),
        ([], 1_000, 8),
        ([], 20_000, 4),
        ([], 10**9, 1),
        (["clock=real"], 0, 1),
        (["executor.kind=processes"], 0, 1),
        (["executor.kind=dask", "executor.workers=3"], 0, 2),
        (["executor.kind=dask", "executor.workers=99"], 0, 1),
        (["executor.kind=batched"], 0, 8),
    ],
)
def test_as_many_as_cores_and_memory_allow(monkeypatch, sets, peak, expected):
    monkeypatch.setattr("psutil.cpu_count", lambda: 8)
    monkeypatch.setattr("psutil.virtual_memory", lambda: Memory(100_000))
    assert at_once(swept("seed=1,2", sets=["clock=virtual", *sets]), peak) == expected


# Running


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Makes a sweep whose runs are small processes: they write the summary, and end with the code, of their point."""
    monkeypatch.setattr(sweeps, "at_once", lambda swept, peak_bytes: 2)

    def make(*keys, codes=None, **changes):
        codes = codes or {}

        def command(point, folder):
            code = codes.get(point.name, 0)
            summary = "" if code in (2, 1) else json.dumps(told(point, **changes.get(point.name, {})))
            mark = str(tmp_path / "marks")
            return [sys.executable, "-S", "-E", "-c", CHILD, str(folder), summary, str(code), mark]

        lines = []
        made = Sweep(swept(*keys), tmp_path / "out", command, lines.append)
        made.folder.mkdir(exist_ok=True)
        made.lines = lines
        return made

    return make


def marks(tmp_path):
    return (tmp_path / "marks").read_text().split("\n")[:-1]


def test_all_points_run_the_first_one_alone(sweep, tmp_path):
    made = sweep("seed=1,2,3,4")
    asyncio.run(made.run())
    assert next(iter(made.summaries)) == "seed=1"
    assert sorted(made.summaries) == ["seed=1", "seed=2", "seed=3", "seed=4"]
    assert marks(tmp_path)[:2] == ["seed=1 begins", "seed=1 ends"]


def test_never_more_at_once_than_is_allowed(sweep, tmp_path):
    asyncio.run(sweep("seed=1,2,3,4,5,6,7").run())
    running, most = 0, 0
    for line in marks(tmp_path):
        running += 1 if line.endswith("begins") else -1
        most = max(most, running)
    assert most <= 2
    assert running == 0


def test_the_limit_follows_from_the_peak_of_the_first(sweep, monkeypatch):
    asked = []
    monkeypatch.setattr(sweeps, "at_once", lambda swept, peak_bytes: asked.append(peak_bytes) or 1)
    asyncio.run(sweep("seed=1,2", **{"seed=1": {"peak_rss_bytes": 4711}}).run())
    assert asked == [4711]


def test_one_line_for_each_point_as_it_ends(sweep):
    made = sweep("seed=1,2", codes={"seed=2": 2})
    asyncio.run(made.run())
    assert made.lines == [
        "[1/2] seed=1: mean test accuracy 0.5000, 3 rounds, 1.50 s, 0.5 s in all",
        "[2/2] seed=2: failed: seed=2 is wrong",
    ]


def test_a_second_time_runs_only_what_is_not_finished(sweep, tmp_path):
    asyncio.run(sweep("seed=1,2,3", codes={"seed=2": 2}).run())
    (tmp_path / "marks").unlink()
    again = sweep("seed=1,2,3,4")
    asyncio.run(again.run())
    assert sorted(line for line in marks(tmp_path) if line.endswith("begins")) == ["seed=2 begins", "seed=4 begins"]
    assert again.lines[:2] == [
        f"[{i}/4] {name}: kept, mean test accuracy 0.5000, 3 rounds, 1.50 s, 0.5 s in all"
        for i, name in ((1, "seed=1"), (2, "seed=3"))
    ]
    assert len(again.summaries) == 4


def test_a_run_that_dies_without_a_word_has_failed(sweep):
    made = sweep("seed=1", codes={"seed=1": 1})
    asyncio.run(made.run())
    assert made.summaries["seed=1"] == {"status": "failed", "error": "ended with 1"}


def test_a_failed_runs_own_summary_says_why(sweep):
    made = sweep("seed=1", codes={"seed=1": 3}, **{"seed=1": {"status": "failed", "error": "Deadlock"}})
    asyncio.run(made.run())
    assert made.lines == ["[1/1] seed=1: failed: Deadlock"]


def test_an_interrupt_ends_what_runs_and_keeps_what_is_finished(sweep, tmp_path):
    made = sweep("seed=1,2,3,4", codes={"seed=2": 99, "seed=3": 99})

    async def interrupted():
        running = asyncio.create_task(made.run())
        while not (tmp_path / "marks").exists() or len(marks(tmp_path)) < 4:
            await asyncio.wait({running}, timeout=0.005)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(interrupted())
    assert list(made.summaries) == ["seed=1"]
    assert sorted(marks(tmp_path)[2:]) == ["seed=2 begins", "seed=3 begins"]


# The table


def table(folder):
    with (folder / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_holds_keys_means_and_costs():
    (point,) = swept("seed=1")
    usage = {"device_hours": {"total": 2.5}, "utilisation": {"mean": 0.25}}
    reached = {"time_to_accuracy_s": {"0.5": 3.0, "0.9": None}, "bytes_to_accuracy": {"0.5": 40.0, "0.9": None}}
    found = row(point, told(point, usage=usage, **reached))
    assert found["point"] == "seed=1"
    assert (found["seed"], found["accuracy"], found["time_s"], found["messages"]) == ("1", 0.5, 1.5, 7)
    assert (found["time_to_accuracy_s.0.5"], found["bytes_to_accuracy.0.9"]) == (3.0, None)
    assert (found["device_hours"], found["utilisation"]) == (2.5, 0.25)


def test_rows_of_different_columns_are_one_table(tmp_path):
    write_table(tmp_path / "sweep.csv", [{"a": 1, "b": None}, {"a": "x,y", "c": math.pi}])
    assert (tmp_path / "sweep.csv").read_text().splitlines() == ["a,b,c", "1,,", f'"x,y",,{math.pi}']


def test_a_point_that_failed_has_a_row_too(sweep):
    made = sweep("training.lr=0.1,0.2", codes={"training.lr=0.2": 2})
    asyncio.run(made.run())
    write_table(made.folder / "sweep.csv", [row(point, made.summaries[point.name]) for point in made.swept])
    one, other = table(made.folder)
    assert (one["training.lr"], one["status"], one["accuracy"]) == ("0.1", "finished", "0.5")
    assert (other["training.lr"], other["status"], other["accuracy"]) == ("0.2", "failed", "")


# The command


@pytest.fixture
def starling(tmp_path, monkeypatch, capfd):
    """Runs ``starling run digits-gossip`` with small processes in place of runs; gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    codes = {}

    def command(experiment, sets, folder):
        (point,) = points(experiment, [], [sets[-1]])
        summary = "" if codes.get(folder.name) else json.dumps({**told(point), "hash": digest_of(sets)})
        return [
            sys.executable, "-S", "-E", "-c", CHILD, str(folder), summary, str(codes.get(folder.name, 0)), "marks",
        ]  # fmt: skip

    def digest_of(sets):
        return digest(points("digits-gossip", sets[:-1], [sets[-1]])[0].config)

    monkeypatch.setattr(sweeps, "_command", command)
    monkeypatch.setattr("node.cli.runs.load_run", lambda folder: folder)
    monkeypatch.setattr("node.cli.report.write_report", lambda runs, path: path.write_text(" ".join(map(str, runs))))

    def run(*arguments):
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["run", "digits-gossip", *arguments])
        out, err = capfd.readouterr()
        return ended.value.code or 0, out, err

    run.codes = codes
    return run


def test_a_sweep_writes_one_table_and_one_report(starling, tmp_path):
    code, out, err = starling("--set", "nodes=5", "--sweep", "seed=1,2", "--out", "here")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "results: here/  (report.html, sweep.csv, one folder for each point)"
    assert len(out.splitlines()) == 3
    assert [line["seed"] for line in table(Path("here"))] == ["1", "2"]
    assert (tmp_path / "here" / "report.html").read_text() == "here/seed=1 here/seed=2"


def test_json_is_one_list(starling):
    code, out, err = starling("--sweep", "seed=2,1", "--out", "here", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert [(entry["point"], entry["sweep"], entry["status"]) for entry in found] == [
        ("seed=2", {"seed": "2"}, "finished"),
        ("seed=1", {"seed": "1"}, "finished"),
    ]


def test_any_failure_fails_the_sweep_and_is_named(starling):
    starling.codes["seed=2"] = 2
    code, _, err = starling("--sweep", "seed=1,2,3", "--out", "here", "--quiet")
    assert (code, err) == (3, "starling: seed=2: seed=2 is wrong\n")
    starling.codes.clear()
    code, out, err = starling("--sweep", "seed=1,2,3", "--out", "here")
    assert (code, err) == (0, "")
    assert out.count("kept, ") == 2


def test_a_wrong_point_is_found_before_anything_starts(starling, tmp_path):
    code, out, err = starling("--sweep", "seed=1,2", "--sweep", "training.lr=0.1,-1", "--out", "here")
    assert (code, out) == (2, "")
    why = "training.lr: input should be greater than 0 (got -1) (with seed=1, training.lr=-1)"
    assert err == f"starling: digits-gossip: {why}\n"
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("option", [["--trace", "t.json"], ["--check-determinism"]])
def test_what_is_for_one_run_is_not_for_a_sweep(starling, option):
    code, out, err = starling("--sweep", "seed=1,2", *option)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--sweep" in err


def test_an_interrupted_sweep_says_how_to_go_on(starling, monkeypatch):
    async def interrupt(self):
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()

    monkeypatch.setattr(Sweep, "run", interrupt)
    code, _, err = starling("--sweep", "seed=1,2", "--out", "here")
    assert code == 130
    assert err == "starling: interrupted; the same command with --out here goes on\n"
    assert table(Path("here")) == []


def test_a_point_runs_as_a_command_of_its_own(monkeypatch):
    monkeypatch.undo()
    command = sweeps._command("mine.toml", ["nodes=5", "seed=1"], Path("out/seed=1"))
    assert command[3:] == [
        "node.cli.main", "run", "mine.toml", "--no-sweep", "--set", "nodes=5", "--set", "seed=1", "--out", "out/seed=1",
        "--quiet",
    ]  # fmt: skip
