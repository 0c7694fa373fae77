"""What a run leaves behind: the summary, and the folder."""

from __future__ import annotations

import json
import math
import tomllib
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from node.config import ExperimentConfig
from node.errors import ConfigError
from node.experiment.folder import run_folder
from node.experiment.loading import bundled, digest, load
from node.experiment.result import SCHEMA, Result, consensus, write_run
from node.experiment.setup import prepare
from node.record import Recorder
from node.row import Row
from node.tape import EventKind, Tape
from node.timeline import Timeline
from node.usage import Usage


@pytest.fixture(scope="module")
def setups():
    """An experiment that keeps everything, and one that keeps little."""
    tables = {"nodes": 2, "topology": {"kind": "full"}, "model": {"name": "softmax"}}
    keeping = {**tables, "record": {"models": True, "events": True}}
    return [prepare(ExperimentConfig.model_validate(values)) for values in (keeping, tables)]


def result(**fields) -> Result:
    recorder = Recorder()
    for node, value in ((0, 0.25), (1, 0.75)):
        recorder.append(Row(1.0, node, 0, "accuracy", value / 2))
        recorder.append(Row(2.0, node, 1, "accuracy", value))
        recorder.append(Row(2.0, node, 1, "loss", math.inf if node else 1.0))
    return Result(recorder, **{"status": "finished", "time_s": 2.0, "wall_s": 0.12345, **fields})


# The summary


def test_a_summary_has_every_key_of_its_schema(setups):
    setup = setups[1]
    summary = result(messages=3, lost={10: "b", 9: "a"}).summary(setup)
    assert " ".join(summary) == (
        "schema name hash clock seed nodes rounds protocol executor status error time_s wall_s events event_hash "
        "run_hash tasks batched_calls forced_solves messages bytes_sent peak_rss_bytes lost metrics "
        "time_to_accuracy_s bytes_to_accuracy time_to_accuracy_worst_decile_s bytes_to_accuracy_worst_decile"
    )
    assert summary["schema"] == SCHEMA
    assert summary["hash"] == digest(setup.config)
    assert (summary["rounds"], summary["messages"], summary["wall_s"]) == (2, 3, 0.123)
    assert list(summary["lost"].items()) == [("9", "a"), ("10", "b")]


def test_a_summary_gives_the_last_value_of_each_node(setups):
    metrics = result().summary(setups[1])["metrics"]
    assert metrics["accuracy"] == {"mean": 0.5, "std": 0.25, "min": 0.25, "max": 0.75}


def test_what_is_not_finite_is_null_and_the_summary_is_json(setups):
    summary = result().summary(setups[1])
    assert summary["metrics"]["loss"]["max"] is None
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_a_summary_says_when_targets_were_reached(setups):
    told = result()
    for node, sent in ((0, 100.0), (1, 50.0)):
        told.recorder.append(Row(2.0, node, 1, "bytes_sent", sent))
    summary = told.summary(setups[1])
    assert summary["time_to_accuracy_s"] == {"0.5": 2.0, "0.8": None, "0.9": None}
    assert summary["bytes_to_accuracy"] == {"0.5": 150.0, "0.8": None, "0.9": None}
    assert set(summary["time_to_accuracy_worst_decile_s"].values()) == {None}


def test_usage_and_graph_are_told_where_they_are_known(setups):
    summary = result(usage={"online_hours": 1.0}, graph={"solved": 3}, run_hash="abc").summary(setups[1])
    assert (summary["usage"], summary["graph"]) == ({"online_hours": 1.0}, {"solved": 3})
    assert summary["run_hash"] == "abc"


def test_a_run_that_measured_nothing_has_a_summary(setups):
    summary = Result(Recorder(), status="failed", error="why").summary(setups[1])
    assert (summary["rounds"], summary["metrics"], summary["status"], summary["error"]) == (0, {}, "failed", "why")


def test_consensus_is_each_models_distance_from_the_mean():
    models = {0: torch.tensor([0.0, 0.0]), 1: torch.tensor([6.0, 8.0])}
    assert consensus(models) == {"mean": 5.0, "std": 0.0, "min": 5.0, "max": 5.0}
    assert consensus({3: torch.ones(4)}) == {"mean": 0.0, "std": 0.0, "min": 0.0, "max": 0.0}


def test_consensus_is_among_the_metrics_where_there_are_models(setups):
    assert "consensus" not in result().summary(setups[1])["metrics"]
    diverged = {0: torch.full((2,), math.nan), 1: torch.zeros(2)}
    spread = result(models=diverged).summary(setups[1])["metrics"]["consensus"]
    assert set(spread.values()) == {None}


# The folder


def test_a_run_leaves_what_was_asked_for(setups, tmp_path):
    keeping, _ = setups
    blocks = []
    tape = Tape(blocks.append)
    tape.note(2.0, EventKind.ENDED, 1)
    tape.note(1.0, EventKind.TRAINED, 0)
    tape.digest()
    model = keeping.model.initial(0)
    told = result(models={0: model, 1: model + 1}, tape=b"".join(blocks))
    reported = []
    summary = write_run(tmp_path, keeping, told, reported.append)
    assert {path.name for path in tmp_path.iterdir()} == {
        "experiment.toml", "summary.json", "metrics.parquet", "models", "events.jsonl",
    }  # fmt: skip
    assert reported == [tmp_path]
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(event["time_s"], event["kind"], event["node"]) for event in events] == [
        (1.0, "trained", 0),
        (2.0, "ended", 1),
    ]
    tensors = load_file(tmp_path / "models" / "1.safetensors")
    flat = torch.cat([tensors[name].flatten() for name in keeping.model.named(model)])
    np.testing.assert_array_equal(flat.numpy(), (model + 1).numpy())


def test_a_run_leaves_no_more_than_was_asked_for(setups, tmp_path):
    write_run(tmp_path, setups[1], result(models={0: setups[1].model.initial(0)}))
    assert {path.name for path in tmp_path.iterdir()} == {"experiment.toml", "summary.json", "metrics.parquet"}


def test_a_run_that_was_watched_leaves_its_timeline(setups, tmp_path):
    usage = Usage(2)
    usage.trained(0, 0.0, 1.0)
    usage.close(2.0)
    write_run(tmp_path, setups[1], result(usage=usage.summary(), timeline=usage.picture()))
    assert Timeline.read(tmp_path / "timeline.parquet").nodes.tolist() == [1, 1]
    write_run(run_folder(tmp_path, "mine"), setups[1], result())
    assert not (tmp_path / "timeline.parquet").exists()


def test_metrics_are_a_long_table(setups, tmp_path):
    write_run(tmp_path, setups[1], result())
    table = pq.read_table(tmp_path / "metrics.parquet")
    assert table.column_names == ["time_s", "node", "round", "metric", "value"]
    assert table.num_rows == 6


def test_the_effective_experiment_can_be_run_again(setups, tmp_path):
    write_run(tmp_path, setups[0], result())
    text = (tmp_path / "experiment.toml").read_text()
    assert text.startswith(f"# hash = {digest(setups[0].config)}\n")
    assert tomllib.loads(text)["record"]["models"] is True
    assert digest(load(str(tmp_path / "experiment.toml"))) == digest(setups[0].config)


INFINITE = {
    "an option of the protocol": {"protocol": {"use": "cpfl", "cohorts": 1, "histogram_epsilon": math.inf}},
    "one in a table": {"protocol": {"use": "dpsgd", "own": {"deep": [1.5, -math.inf], "never": math.inf}}},
    "an option of an attack": {"attackers": [{"kind": "membership", "own": math.inf}]},
    "an option of a mod": {"mods": [{"use": "m:M", "own": (math.inf, 0.5)}]},
}


@pytest.mark.parametrize("tables", INFINITE.values(), ids=INFINITE)
def test_infinity_is_written_as_toml_has_it(setups, tmp_path, tables):
    values = {"nodes": 2, "topology": {"kind": "full"}, "model": {"name": "softmax"}, **tables}
    config = ExperimentConfig.model_validate(values)
    write_run(tmp_path, replace(setups[1], config=config), result())
    text = (tmp_path / "experiment.toml").read_text()
    assert "inf" in text
    again = load(str(tmp_path / "experiment.toml"))
    assert digest(again) == digest(config)
    assert _listed(again.model_dump()) == _listed(config.model_dump())


def _listed(value):
    """The same with lists in place of tuples."""
    if isinstance(value, dict):
        return {key: _listed(each) for key, each in value.items()}
    return [_listed(each) for each in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("name", bundled())
def test_every_bundled_experiment_is_written_whole(setups, tmp_path, name):
    config = load(name)
    write_run(tmp_path, replace(setups[1], config=config), result())
    assert _listed(load(str(tmp_path / "experiment.toml")).model_dump()) == _listed(config.model_dump())


def test_an_option_of_an_attack_that_must_be_finite_is_refused():
    attackers = [{"kind": "inversion", "tv": math.inf}]
    tables = {"nodes": 2, "topology": {"kind": "full"}, "model": {"name": "softmax"}, "attackers": attackers}
    with pytest.raises(ConfigError, match=r"attackers\[0\]\.tv: .*finite"):
        prepare(ExperimentConfig.model_validate(tables))


# Where it goes


def test_runs_of_one_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [run_folder(None, "mine") for _ in range(3)]
    assert len(set(folders)) == 3
    for folder in folders:
        assert folder.parent.name == "runs"
        assert folder.name.startswith("mine-20")
        assert list(folder.iterdir()) == []


def test_a_folder_that_is_there_is_used(tmp_path):
    (tmp_path / "kept").touch()
    assert run_folder(tmp_path, "mine") == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"^--out .*file: cannot be written to: File exists$"):
        run_folder(tmp_path / "file", "mine")
    with pytest.raises(ConfigError, match=r"below: cannot be written to: Not a directory$"):
        run_folder(tmp_path / "file" / "below", "mine")
