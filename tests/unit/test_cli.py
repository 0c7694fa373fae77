"""The command line in this process: exit codes, one line for every mistake, and what goes to which stream."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import structlog

from launch import experiment
from node.cli import running, tape
from node.cli.doctor import Finding
from node.cli.main import main
from node.cli.progress import Progress
from node.config import ExperimentConfig
from node.record import Recorder
from node.row import Row

TINY = ["--set", "nodes=3", "--set", "protocol.rounds=2", "--set", "topology.kind=full", "--set", "model.name=softmax"]
TINY_VIRTUAL = ["digits-gossip", "--clock", "virtual", *TINY]


@pytest.fixture
def starling(tmp_path, monkeypatch, capfd):
    """Runs a command in an empty folder; gives its exit code, and what it wrote to stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)

    def run(*arguments):
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return ended.value.code or 0, out, err

    yield run
    structlog.reset_defaults()
    for name in [name for name in sys.modules if name.startswith("mine") and name not in known]:
        del sys.modules[name]


def assert_refused(outcome, *parts):
    """Exit code 2, nothing on stdout, and one line on stderr that says all of ``parts``."""
    code, out, err = outcome
    assert (code, out) == (2, "")
    assert err.startswith("starling: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    for part in parts:
        assert part in err


# Wrong input

WRONG = {
    "an unknown key": (
        ["training.learning_rate=0.1"],
        ["digits-gossip: training.learning_rate: there is no such key", "known here: batch_size"],
    ),
    "a misspelt key": (["training.momentun=0.1"], ["training.momentun", "did you mean 'momentum'?"]),
    "a misspelt table": (["trainng.lr=0.1"], ["trainng: there is no such key; did you mean 'training'?"]),
    "an unknown key of the protocol": (["protocol.round=3"], ["protocol.round", "did you mean 'rounds'?"]),
    "a wrong type": (["nodes=many"], ["nodes: input should be a valid integer", "(got 'many')"]),
    "a wrong type of the protocol": (["protocol.rounds=[1]"], ["protocol.rounds: input should be a valid integer"]),
    "a table that is none": (["training=3"], ["training: must be a table (got 3)"]),
    "a key below a number": (["nodes.a=3"], ["'nodes' is not a table"]),
    "an unknown protocol": (["protocol.use=dpsgdd"], ["protocol.use: no protocol is called", "did you mean 'dpsgd'?"]),
    "an unknown model": (["model.name=mpl"], ["model.name: no model 'mpl'; did you mean 'mlp'?"]),
    "an alpha of 0": (["data.alpha=0"], ["data.alpha: input should be greater than 0 (got 0)"]),
    "a negative alpha": (["data.alpha=-0.5"], ["data.alpha: input should be greater than 0 (got -0.5)"]),
    "more shards than samples": (["data.partition=shards", "data.shards_per_node=500"], ["data.shards_per_node"]),
    "more nodes than samples": (["data.partition=iid", "nodes=20000"], ["nodes", "samples"]),
    "an odd number of edge ends": (["nodes=15", "topology.degree=3"], ["topology.degree", "even"]),
    "a degree beyond the nodes": (["nodes=4", "topology.degree=4"], ["topology.degree"]),
    "an edge list that is not there": (["topology.kind=file", "topology.path=none.txt"], ["topology.path"]),
    "a data file that is not there": (["data.name=none.csv"], ["data.name: there is no file '", "/none.csv'"]),
    "a data set that is nothing": (["data.name=digit"], ["data.name", "'digit'"]),
    "a lognormal without median": (
        ['network.latency_s={distribution="lognormal"}'],
        ["network.latency_s: the lognormal distribution needs 'median'"],
    ),
    "a misspelt key of a distribution": (
        ['devices.seconds_per_sample={distribution="lognormal", medain=1}'],
        ["devices.seconds_per_sample.medain: there is no such key; did you mean 'median'?"],
    ),
    "an unknown distribution": (['network.up_bps={distribution="normal"}'], ["network.up_bps.distribution", "uniform"]),
    "a negative latency": (["network.latency_s=-1"], ["network.latency_s: input should be greater than or equal to 0"]),
    "an unknown mod": (['mods=[{use="node.mods:Mood"}]'], ["mods[0].use: module 'node.mods' has no 'Mood'"]),
    "a mod that is none": (['mods=[{use="node:Message"}]'], ["mods[0].use", "neither a node.Mod nor a node.Observer"]),
    "a mod without module": (['mods=[{use="Mod"}]'], ["mods[0].use: no mod is called 'Mod'", "or module:Class"]),
    "a mod's unknown key": (['mods=[{use="node:Mod", strength=1}]'], ["mods[0].strength: there is no such key"]),
    "a mod on no node": (['mods=[{use="node:Mod", nodes=[16]}]'], ["mods[0].nodes: there is no node 16", "0 to 15"]),
    "a protocol in no module": (
        ["protocol.use=nowhere_at_all:P"],
        ["protocol.use: 'nowhere_at_all' cannot be imported"],
    ),
    "a protocol that is none": (["protocol.use=node:Message"], ["protocol.use: node:Message is not a subclass"]),
    "a --set without value": (["nodes"], ["--set nodes: write it as key=value"]),
    "a --set without key": (["=3"], ["--set =3: write it as key=value"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_one_line(starling, tmp_path, name):
    sets, parts = WRONG[name]
    overrides = [argument for value in sets for argument in ("--set", value)]
    assert_refused(starling("run", "digits-gossip", *overrides, "--out", tmp_path / "run"), *parts)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["run", "digits-gosip"], "EXPERIMENT: no experiment is called 'digits-gosip'; did you mean 'digits-gossip'?"),
        (["run", "none.toml"], "none.toml: cannot be read: No such file or directory"),
        (["run"], "Missing argument 'experiment'"),
        (["run", "digits-gossip", "--clock", "sundial"], "'real', 'virtual'"),
        (["run", "digits-gossip", "--sett", "a=1"], "No such option"),
        (["run", "digits-gossip", "--check-determinism", "--clock", "real"], "only the virtual clock"),
        (["run", "digits-gossip", "--clock", "real", "--trace", "t.json"], "--trace t.json: only the virtual clock"),
        (["run", "digits-gossip", "--clock", "real", "--set", "record.trace=true"], "record.trace: only the virtual"),
        (
            ["run", "digits-gossip", "--clock", "virtual", "--trace", "no/t.json"],
            "--trace no/t.json: there is no folder",
        ),
        (["run", "digits-gossip", "--sweep", "seed"], "--sweep seed: write it as key=value,value"),
        (["list", "protocol"], "list: nothing is called 'protocol'; allowed: experiments, protocols"),
        (["report", "none"], "none: there is no such folder"),
        (["fly"], "No such command 'fly'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_command_is_one_line(starling, arguments, part):
    assert_refused(starling(*arguments), part)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("nodes = = 3", "experiment.toml: not valid TOML"),
        ("nodes = 3\nnodes = 4", "experiment.toml: not valid TOML"),
        ("[data\nname = 1", "not valid TOML"),
        ("seed = -1", "experiment.toml: seed: input should be greater than or equal to 0 (got -1)"),
        ('name = "a/b"', "experiment.toml: name: "),
        ("nodes = 3\nlr = 1\nrounds = 2", "experiment.toml: lr: there is no such key"),
    ],
)
def test_a_wrong_file_is_one_line(starling, tmp_path, text, part):
    (tmp_path / "experiment.toml").write_text(text)
    assert_refused(starling("run", "experiment.toml"), part)


def test_a_file_that_is_no_text_is_one_line(starling, tmp_path):
    (tmp_path / "experiment.toml").write_bytes(b"\xff\xfe\x00")
    assert_refused(starling("run", "experiment.toml"), "experiment.toml: cannot be read: not UTF-8 text")
    assert_refused(starling("run", tmp_path), "cannot be read: Is a directory")


@pytest.mark.parametrize(
    ("header", "parts"),
    [
        ("a,b,c", ["mine.csv", "'label'", "data.label"]),
        ("a,label,c", ["mine.csv", "'owner'", "data.column"]),
    ],
)
def test_a_data_file_with_a_column_missing_is_one_line(starling, tmp_path, header, parts):
    (tmp_path / "mine.csv").write_text(header + "\n" + "1,0,2\n2,1,3\n" * 50)
    file = experiment(tmp_path, data={"name": "mine.csv", "partition": "natural", "column": "owner"})
    assert_refused(starling("run", file), *parts)


def test_a_folder_that_cannot_be_written_to_is_one_line(starling, tmp_path):
    (tmp_path / "file").touch()
    assert_refused(starling("run", *TINY_VIRTUAL, "--out", "file/run"), "--out file/run: cannot be written to")
    (tmp_path / "runs").touch()
    assert_refused(starling("run", *TINY_VIRTUAL), "--out runs/digits-gossip-", "cannot be written to")


@pytest.mark.parametrize(
    ("code", "part"),
    [
        ("def (", "SyntaxError: invalid syntax (mine_broken.py, line 1)"),
        (
            "\nimport node\nnode.nothing",
            "AttributeError: module 'node' has no attribute 'nothing' (mine_broken.py, line 3)",
        ),
        ("import mine_missing", "ModuleNotFoundError: No module named 'mine_missing'"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines (mine_broken.py, line 1)"),
    ],
)
@pytest.mark.parametrize("key", ["protocol.use", "model.name", "mods"])
def test_a_broken_module_of_the_user_is_one_line(starling, tmp_path, key, code, part):
    (tmp_path / "mine_broken.py").write_text(code)
    value = '[{use="mine_broken:Mine"}]' if key == "mods" else "mine_broken:Mine"
    key_told = "mods[0].use" if key == "mods" else key
    outcome = starling("run", *TINY_VIRTUAL, "--set", f"{key}={value}")
    assert_refused(outcome, f"{key_told}: 'mine_broken' cannot be imported: {part}")


# What works


def test_a_run_tells_its_outcome(starling, tmp_path):
    code, out, err = starling("run", *TINY_VIRTUAL, "--out", "here")
    assert (code, err) == (0, "")
    first, second, *costs, last = out.splitlines()
    assert first.startswith("digits-gossip: 3 simulated nodes, dpsgd, 2 rounds: mean test accuracy 0.")
    assert " virtual time, " in second
    assert any("device hours" in line for line in costs)
    assert last == "  results: here/  (report.html, summary.json, metrics.parquet)"
    files = {path.name for path in (tmp_path / "here").iterdir()}
    assert files == {"experiment.toml", "summary.json", "metrics.parquet", "report.html", "timeline.parquet"}


OUTCOME = {
    "name": "mine", "nodes": 2, "clock": "virtual", "protocol": "dpsgd", "rounds": 3, "metrics": {}, "time_s": 1.0,
    "wall_s": 2.0, "messages": 4, "bytes_sent": 5, "lost": {"1": "was killed"}, "time_to_accuracy_s": {"0.9": None},
    "bytes_to_accuracy": {"0.9": None},
}  # fmt: skip


def test_an_outcome_tells_only_what_is_known(capfd):
    running.tell_outcome(OUTCOME, Path("here"))
    assert capfd.readouterr().out.splitlines()[2:] == [
        "  node 1 was killed",
        "  results: here/  (report.html, summary.json, metrics.parquet)",
    ]


def test_an_outcome_tells_what_it_took(capfd):
    known = {
        "time_to_accuracy_s": {"0.5": 3.25, "0.8": 300.0, "0.9": None},
        "bytes_to_accuracy": {"0.5": 4e6, "0.8": None, "0.9": None},
        "usage": {
            "device_hours": {"total": 1.5, "lost": 0.25, "discarded": 0.125},
            "utilisation": {"mean": 0.5, "min": 0.0, "max": 1.0},
        },
        "graph": {"discarded_trainings": 1230},
    }
    running.tell_outcome(OUTCOME | known, Path("here"))
    assert capfd.readouterr().out.splitlines()[2:5] == [
        "  accuracy 0.5 after 3.25 s and 4 MB, 0.8 after 5.0 min, 0.9 not reached",
        "  1.5 device hours (0.25 lost, 0.125 discarded); devices train 50.0% of their time online",
        "  1,230 updates discarded, never trained",
    ]


def test_json_prints_the_summary_and_nothing_else(starling, tmp_path):
    code, out, err = starling("run", *TINY_VIRTUAL, "--out", "here", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads((tmp_path / "here" / "summary.json").read_text())


def test_quiet_says_nothing_but_why_a_run_failed(starling, tmp_path):
    assert starling("run", *TINY_VIRTUAL, "--out", "here", "--quiet") == (0, "", "")
    (tmp_path / "mine_failing.py").write_text(
        "from node import Protocol\nclass Mine(Protocol):\n    async def run(self, ctx):\n        1 / 0\n"
    )
    arguments = ["digits-gossip", "--clock", "virtual", "--set", "protocol={use='mine_failing:Mine'}", "--quiet"]
    told = "node 0: ZeroDivisionError: division by zero (mine_failing.py, line 4)"
    assert starling("run", *arguments) == (3, "", f"starling: failed: {told}\n")
    code, out, _ = starling("run", *arguments, "--json")
    assert (code, json.loads(out)["error"]) == (3, told)


def test_a_run_can_be_repeated_from_its_own_folder(starling):
    _, first, _ = starling("run", *TINY_VIRTUAL, "--out", "one", "--json")
    _, second, _ = starling("run", "one/experiment.toml", "--json")
    volatile = ("wall_s", "peak_rss_bytes", "graph")
    one, other = (
        {key: value for key, value in json.loads(out).items() if key not in volatile} for out in (first, second)
    )
    assert one == other


@pytest.mark.parametrize(
    ("options", "file"), [(["--trace", "out.json"], "out.json"), (["--set", "record.trace=true"], "here/trace.json")]
)
def test_a_run_can_be_traced(starling, tmp_path, options, file):
    assert starling("run", *TINY_VIRTUAL, "--out", "here", "--quiet", *options) == (0, "", "")
    trace = json.loads((tmp_path / file).read_text())
    assert {event["name"] for event in trace["traceEvents"]} >= {"train", "send", "process_name", "thread_name"}
    assert {event["tid"] for event in trace["traceEvents"]} == {0, 1, 2}


def test_a_trace_of_a_run_that_fails_is_whole(starling, tmp_path):
    (tmp_path / "mine_failing_late.py").write_text(
        "from node import Protocol\nclass Mine(Protocol):\n"
        "    async def run(self, ctx):\n        await ctx.train(ctx.initial_model())\n        1 / 0\n"
    )
    options = ["--clock", "virtual", "--set", "protocol={use='mine_failing_late:Mine'}", "--trace", "t.json", "--quiet"]
    assert starling("run", "digits-gossip", *options)[0] == 3
    assert json.loads((tmp_path / "t.json").read_text())["otherData"]["nodes"] == 16


def test_report_compares_runs(starling, tmp_path):
    for seed in (1, 2):
        starling("run", *TINY_VIRTUAL, "--set", f"seed={seed}", "--out", f"run{seed}", "--quiet")
    code, out, err = starling("report", "run1", "run2", "--out", "both.html")
    assert (code, err) == (0, "")
    assert "digits-gossip" in out
    assert "report: both.html" in out
    assert (tmp_path / "both.html").stat().st_size > 1000


def test_list_names_what_an_experiment_can_name(starling):
    code, out, err = starling("list")
    assert (code, err) == (0, "")
    assert "protocols:\n" in out
    assert "  dpsgd " in out
    code, out, _ = starling("list", "protocols", "--json")
    assert {"dpsgd", "fedavg", "adpsgd", "epidemic", "pushsum", "local"} <= set(json.loads(out)["protocols"])


def test_doctor_finds_this_installation_healthy(starling):
    code, out, _ = starling("doctor")
    assert code == 0
    assert "MISSING" not in out
    assert "ok      the package 'node' is Starling's" in out


def test_doctor_fails_where_something_is_missing(starling, monkeypatch):
    monkeypatch.setattr("node.cli.doctor.examine", lambda: iter([Finding("torch", False, "no torch; install it")]))
    assert starling("doctor") == (3, "MISSING torch: no torch; install it\n", "")


def test_version(starling):
    assert starling("--version") == (0, version("starling-node") + "\n", "")


# Progress


class Clock:
    """A wall clock that moves when told to."""

    now_s = 0.0

    def monotonic(self):
        return self.now_s


@pytest.fixture
def progress(monkeypatch, capfd):
    """Shows one update, ten seconds after the start, and gives the line that this wrote to stderr."""
    clock = Clock()
    monkeypatch.setattr("node.cli.progress.time", clock)

    def show(done, state=None, **options):
        config = ExperimentConfig(name="mine", protocol={"use": "dpsgd", **options})
        recorder = Recorder()
        for round in range(done):
            recorder.append(Row(float(round), 0, round, "accuracy", 0.5))
        with Progress(config, quiet=False) as shown:
            clock.now_s += 10.0
            shown.update(3.5, recorder, state)
        return capfd.readouterr().err

    return show


def test_progress_tells_the_time_left(progress):
    expected = "mine: round 10/40  accuracy 0.500  1.0 rounds/s  3.5 s  about 0:00:30 left\n"
    assert progress(10, rounds=40) == expected


def test_progress_tells_events_tasks_and_memory(progress):
    state = {"events": 12_345, "recorded": 600, "solved": 512, "resident_bytes": 412_000_000}
    expected = "mine: round 5  accuracy 0.500  0.5 rounds/s  3.5 s  12,345 events  512 of 600 tasks solved  412 MB\n"
    assert progress(5, state) == expected


def test_progress_promises_nothing_before_the_first_round(progress):
    assert progress(0, rounds=40) == "mine: round 0/40  0.0 rounds/s  3.5 s\n"


# Determinism


def test_a_simulation_that_fails_has_no_tape_to_compare(starling, tmp_path, capfd):
    (tmp_path / "mine_failing_too.py").write_text(
        "from node import Protocol\nclass Mine(Protocol):\n    async def run(self, ctx):\n        1 / 0\n"
    )
    use = "protocol={use='mine_failing_too:Mine'}"
    assert tape.main("digits-gossip", "file.tape", use, "clock=virtual") == 3
    told = "node 0: ZeroDivisionError: division by zero (mine_failing_too.py, line 4)\n"
    assert capfd.readouterr() == ("", told)
    assert tape.main("digits-gosip", "file.tape") == 3
    assert capfd.readouterr().err.startswith("EXPERIMENT: no experiment")


def test_a_process_that_fails_fails_the_comparison(starling, monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    outcome = starling("run", *TINY_VIRTUAL, "--check-determinism")
    assert outcome == (3, "", "starling: the simulation failed\n")


def test_a_bundled_experiment_is_deterministic(starling):
    code, out, err = starling("run", *TINY_VIRTUAL, "--check-determinism")
    assert (code, err) == (0, "")
    assert out.startswith("deterministic: ")
    assert int(out.split()[1]) > 10


def test_what_depends_on_a_sets_order_is_named_with_its_first_event(starling, tmp_path):
    (tmp_path / "mine_misbehaving.py").write_text(
        "from protocols.dpsgd import DPSGD\n"
        "class Mine(DPSGD):\n"
        "    async def run(self, ctx):\n"
        "        names = [hash(str(name)) for name in range(3)]\n"
        "        await ctx.sleep(names[ctx.me] % 1000 / 1000)\n"
        "        return await super().run(ctx)\n"
    )
    arguments = [*TINY_VIRTUAL, "--set", "protocol.use=mine_misbehaving:Mine", "--check-determinism"]
    code, out, err = starling("run", *arguments)
    assert (code, out) == (3, "")
    assert err.startswith("starling: two runs of digits-gossip differ first at event 0: {")
    assert '"kind": "trained"' in err
    assert "the protocol reads something that is not in its context" in err
    assert err.count("\n") == 1
