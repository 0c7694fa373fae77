"""Reading an experiment: which source wins, what paths mean, and what a mistake is called."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from node.config import ExperimentConfig, Section
from node.errors import ConfigError
from node.experiment.loading import bundled, digest, explain, load, unknown, validated


def refusal(*arguments, **options) -> str:
    with pytest.raises(ConfigError) as refused:
        load(*arguments, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# Sources


def test_every_bundled_experiment_loads():
    assert {"digits-gossip", "digits-fedavg", "digits-async"} <= set(bundled())
    assert bundled() == sorted(bundled())
    for name in bundled():
        assert load(name).name == name


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path):
    (tmp_path / "my.toml").write_text("nodes = 3\nseed = 3\n[training]\nlr = 0.3\nbatch_size = 3\n")
    environ = {"STARLING_SEED": "4", "STARLING_TRAINING__LR": "0.4", "HOME": "/root", "starling_nodes": "4"}
    config = load(str(tmp_path / "my.toml"), ["training.lr=0.5"], environ)
    assert (config.nodes, config.seed, config.training.lr, config.training.batch_size) == (3, 4, 0.5, 3)


def test_a_later_flag_wins():
    assert load("digits-gossip", ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("flag", "table", "key", "value"),
    [
        ("training.lr=0.05", "training", "lr", 0.05),
        (" training.lr = 1 ", "training", "lr", 1.0),
        ("record.models=true", "record", "models", True),
        ("topology.kind=ring", "topology", "kind", "ring"),
        ('topology.kind="ring"', "topology", "kind", "ring"),
        ("model.hidden=[8, 4]", "model", "hidden", (8, 4)),
        ("data.column=a=b", "data", "column", "a=b"),
        ("data.column=", "data", "column", ""),
        ("data.label=[", "data", "label", "["),
    ],
)
def test_a_flags_value_is_toml_and_a_bare_word_a_string(flag, table, key, value):
    assert getattr(getattr(load("digits-gossip", [flag]), table), key) == value


def test_a_flag_may_set_a_whole_table_or_a_key_of_the_protocol():
    config = load("digits-gossip", ["protocol={use='fedavg', rounds=3}", "protocol.sample=2"])
    assert config.protocol.use == "fedavg"
    assert config.protocol.options == {"rounds": 3, "sample": 2}


def test_an_error_of_the_environment_names_the_key():
    assert "seed: " in refusal("digits-gossip", environ={"STARLING_SEED": "none"})
    assert "environment STARLING_SEED__A: 'seed' is not a table" in refusal(
        "digits-gossip", environ={"STARLING_SEED__A": "1"}
    )


@given(st.text(alphabet=string.printable, max_size=20))
def test_any_flag_is_taken_or_refused_in_one_line(flag):
    told = "taken"
    try:
        load("digits-gossip", [flag])
    except ConfigError as error:
        told = str(error)
    assert len(told.splitlines()) == 1


# Paths


def test_paths_in_a_file_are_relative_to_it(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    file = tmp_path / "deep" / "my.toml"
    file.write_text('[data]\nname = "rows.csv"\n[topology]\nkind = "file"\npath = "../edges.txt"\n')
    monkeypatch.chdir(tmp_path)
    for name in ("deep/my.toml", str(file)):
        config = load(name)
        assert config.data.name == str(tmp_path / "deep" / "rows.csv")
        assert config.topology.path == str(tmp_path / "edges.txt")


def test_what_is_no_path_in_a_file_stays_as_it_is(tmp_path):
    (tmp_path / "my.toml").write_text('[data]\nname = "someone/images"\n[topology]\npath = ""\n')
    config = load(str(tmp_path / "my.toml"))
    assert (config.data.name, config.topology.path) == ("someone/images", "")
    (tmp_path / "my.toml").write_text('[data]\nname = "/elsewhere/rows.csv"\n')
    assert load(str(tmp_path / "my.toml")).data.name == "/elsewhere/rows.csv"


def test_paths_in_flags_are_relative_to_the_current_folder(tmp_path):
    (tmp_path / "my.toml").write_text("nodes = 3")
    assert load(str(tmp_path / "my.toml"), ["data.name=rows.csv"]).data.name == str(Path.cwd() / "rows.csv")
    environ = {"STARLING_TOPOLOGY__PATH": "edges.txt", "STARLING_NODE__LISTEN": "another command's"}
    assert load(str(tmp_path / "my.toml"), environ=environ).topology.path == str(Path.cwd() / "edges.txt")


def test_tables_of_a_wrong_kind_are_left_to_the_check(tmp_path):
    (tmp_path / "my.toml").write_text("data = 3\ntopology = []\n")
    assert "my.toml: topology: must be a table (got []) (and 1 more)" in refusal(str(tmp_path / "my.toml"))


# Hashes


def test_the_digest_depends_on_every_key_and_on_nothing_else():
    base = digest(load("digits-gossip"))
    assert base == digest(load("digits-gossip"))
    assert base == digest(load("digits-gossip", ["seed=7", "nodes=16"]))
    others = ["seed=8", "nodes=15", "protocol.rounds=29", "training.lr=0.25", "protocol.deadline_s=1"]
    assert len({base, *[digest(load("digits-gossip", [flag])) for flag in others]}) == 6


# Explanations


class Sub(Section):
    depth: int = 0
    interval: float | None = None


class Model(Section):
    number: int = Field(1, ge=1)
    sub: Sub = Sub()
    other: Sub | float = 1.0

    @model_validator(mode="after")
    def _together(self):
        if self.number == 13:
            raise ValueError("number and sub do not go together")
        return self


def explained(values, prefix=""):
    try:
        Model.model_validate(values)
    except ValueError as error:
        return explain(error.errors(), Model, prefix)
    raise AssertionError("nothing to explain")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"number": 0}, "number: input should be greater than or equal to 1 (got 0)"),
        ({"number": 0, "sub": 1}, "number: input should be greater than or equal to 1 (got 0) (and 1 more)"),
        ({"numbr": 1}, "numbr: there is no such key; did you mean 'number'?; known here: number, other, sub"),
        ({"sub": {"dept": 1}}, "sub.dept: there is no such key; did you mean 'depth'?; known here: depth, interval"),
        ({"sub": {"interval": {}}}, "sub.interval: input should be a valid number (got {})"),
        ({"sub": 5}, "sub: must be a table (got 5)"),
        ({"number": 13}, "number and sub do not go together"),
    ],
)
def test_an_explanation_names_the_key_what_is_wrong_and_what_is_allowed(values, told):
    key, separator, rest = told.partition(": ")
    assert explained(values).removeprefix(": ") == told
    if separator:
        assert explained(values, "protocol.") == f"protocol.{key}: {rest}"


def test_a_number_or_a_distribution_is_judged_as_what_it_was_meant_to_be():
    def told(value):
        with pytest.raises(ConfigError) as refused:
            validated({"network": {"latency_s": value}}, "f")
        return str(refused.value)

    assert told(-1) == "f: network.latency_s: input should be greater than or equal to 0 (got -1)"
    assert told({"distribution": "exponential"}) == "f: network.latency_s: the exponential distribution needs 'mean'"
    assert told({"distribution": "uniform"}) == "f: network.latency_s: the uniform distribution needs 'high'"
    assert told({}) == "f: network.latency_s.distribution: field required"
    low_high = {"distribution": "uniform", "low": 2.0, "high": 1.0}
    assert told(low_high) == "f: network.latency_s: 'high' must be at least 'low'"


def test_an_unknown_name_offers_the_nearest():
    error = unknown("colour", "paint", "gren", ["red", "green"])
    assert str(error) == "paint: no colour is called 'gren'; did you mean 'green'?; known: green, red"
    assert "did you mean" not in str(unknown("colour", "paint", "xyzzy", ["red"]))


def test_validated_gives_a_configuration():
    assert validated({}, "nothing") == ExperimentConfig()
