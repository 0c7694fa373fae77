"""What an experiment file sweeps: axes, their combinations, what replaces them, and what is wrong with them."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from node.errors import ConfigError
from node.experiment.axes import Axis, _written, grids, replaced
from node.experiment.loading import from_flag, load
from node.experiment.sweep import points

EXPERIMENT = 'name = "mine"\nnodes = 8\nclock = "virtual"\n[protocol]\nuse = "dpsgd"\nrounds = 5\n'


@pytest.fixture
def file(tmp_path):
    """Writes an experiment that sweeps something; gives its path."""

    def write(sweep, experiment=EXPERIMENT):
        path = tmp_path / "mine.toml"
        path.write_text(experiment + sweep, encoding="utf-8")
        return str(path)

    return write


def names(path, sets=(), sweeps=()):
    return [point.name for point in points(path, sets, sweeps)]


# What is swept


def test_all_combinations_run_the_last_key_changes_fastest(file):
    path = file("[sweep]\ntraining.lr = [0.1, 0.2]\nseed = [1, 2, 3]\n")
    assert names(path) == [f"training.lr={lr},seed={seed}" for lr in (0.1, 0.2) for seed in (1, 2, 3)]
    assert [point.config.seed for point in points(path, [], [])] == [1, 2, 3] * 2


def test_a_table_sets_keys_of_its_section_and_leaves_the_others(file):
    path = file('[sweep]\nprotocol = [{ use = "local" }, { use = "ditto", pull = 0.5 }]\n')
    local, ditto = (point.config.protocol for point in points(path, [], []))
    assert (local.use, local.options) == ("local", {"rounds": 5})
    assert (ditto.use, ditto.options) == ("ditto", {"rounds": 5, "pull": 0.5})
    assert names(path) == ["protocol.use=local", "protocol.use=ditto,protocol.pull=0.5"]


def test_a_grid_may_be_for_one_clock_only(file):
    path = file('[[sweep]]\nclock = ["virtual"]\nseed = [1, 2]\n[[sweep]]\nprotocol.rounds = [3]\n')
    assert [point.config.clock for point in points(path, [], [])] == ["virtual"] * 3
    assert names(path) == ["seed=1", "seed=2", "protocol.rounds=3"]
    (real,) = points(path, [], [], clock="real")
    assert (real.name, real.config.clock, real.config.protocol.options["rounds"]) == ("protocol.rounds=3", "real", 3)
    assert len(grids(path, "virtual")) == 2
    assert grids(file('[sweep]\nclock = ["virtual"]\nseed = [1]\n'), "real") == []


def test_both_clocks_can_be_held_against_each_other(file):
    path = file('[sweep]\nclock = ["virtual", "real"]\n')
    assert names(path) == ["clock=virtual", "clock=real"]
    assert [point.config.clock for point in points(path, [], [])] == ["virtual", "real"]


def test_lists_are_values(file):
    path = file('[sweep]\n"data.groups" = [[6, 2], [4, 4], []]\n')
    assert [point.config.data.groups for point in points(path, [], [])] == [(6, 2), (4, 4), ()]


def test_keys_may_be_quoted_or_not(file):
    quoted, dotted, nested = ('"data.alpha" = [0.1]', "data.alpha = [0.1]", "data = { alpha = [0.1] }")
    assert names(file(f"[sweep]\n{quoted}\n")) == names(file(f"[sweep]\n{dotted}\n")) == ["data.alpha=0.1"]
    assert names(file(f"[sweep]\n{nested}\n")) == ["data.alpha=0.1"]


def test_tables_and_lists_of_tables_are_values_below_a_section(file):
    path = file(
        '[sweep]\nnetwork.latency_s = [0.1, { distribution = "uniform", high = 0.2 }]\n'
        'mods = [[], [{ use = "a:B", nodes = [1, 2], why = "it\'s \\"so\\"" }]]\n'
    )
    swept = [point.config for point in points(path, [], [])]
    assert [config.network.latency_s for config in swept[:2]] == [0.1, 0.1]
    assert swept[2].network.latency_s.high == 0.2
    assert [len(config.mods) for config in swept] == [0, 1, 0, 1]
    assert swept[1].mods[0].options == {"why": 'it\'s "so"'}


def test_an_empty_table_is_the_experiment_as_it_is(file):
    path = file('[sweep]\nprivacy = [{}, { mechanism = "node" }]\n')
    assert names(path) == ["base", "privacy.mechanism=node"]


def test_several_tables_are_several_grids_and_equal_points_run_once(file):
    path = file(
        '[[sweep]]\nprotocol.use = ["local", "dpsgd"]\nseed = [1, 2]\n[[sweep]]\nseed = [2, 3]\n"data.alpha" = [0.5]\n'
    )
    swept = points(path, [], [])
    assert [(point.config.protocol.use, point.config.seed) for point in swept] == [
        ("local", 1), ("local", 2), ("dpsgd", 1), ("dpsgd", 2), ("dpsgd", 3),
    ]  # fmt: skip


def test_paths_mean_what_they_mean_in_the_file(file, tmp_path):
    (swept,) = points(file('[sweep]\n"data.name" = ["mine.npz"]\n'), [], [])
    assert swept.config.data.name == str(tmp_path / "mine.npz")
    (topology,) = points(file('[sweep]\ntopology = [{ kind = "file", path = "edges.txt" }]\n'), [], [])
    assert topology.config.topology.path == str(tmp_path / "edges.txt")


def test_whoever_loads_one_experiment_gets_it_without_the_sweep(file):
    assert load(file("[sweep]\nseed = [1, 2]\n")) == load(file(""))


def test_a_file_without_the_table_sweeps_nothing(file):
    assert grids(file("")) == []
    assert grids("digits-gossip") == []
    assert names("digits-gossip") == ["base"]


def test_the_bundled_study_has_three_seeds_of_every_cell():
    swept = points("tradeoff", [], [])
    cells = {}
    for point in swept:
        cells.setdefault(tuple((k, v) for k, v in point.values.items() if k != "seed"), []).append(point.config.seed)
    assert set(map(tuple, cells.values())) == {(1, 2, 3)}
    assert {"local", "dpsgd", "ditto", "facade", "fedper"} <= {point.config.protocol.use for point in swept}


# What the command line changes


def test_a_flag_replaces_the_same_axis_and_adds_others(file):
    path = file("[sweep]\ntraining.lr = [0.1, 0.2]\nseed = [1, 2, 3]\n")
    assert names(path, sweeps=["seed=9"]) == ["training.lr=0.1,seed=9", "training.lr=0.2,seed=9"]
    assert names(path, sweeps=["seed=9", "nodes=4,6"])[:2] == [
        "training.lr=0.1,seed=9,nodes=4", "training.lr=0.1,seed=9,nodes=6",
    ]  # fmt: skip


def test_a_flag_replaces_an_axis_that_has_its_key_among_others(file):
    path = file('[sweep]\nprotocol = [{ use = "local" }, { use = "ditto", pull = 0.5 }]\nseed = [1]\n')
    assert names(path, sweeps=["protocol.use=dpsgd"]) == ["seed=1,protocol.use=dpsgd"]


def test_a_flag_replaces_an_axis_in_every_grid(file):
    path = file("[[sweep]]\nseed = [1, 2]\nnodes = [4]\n[[sweep]]\nseed = [1, 2]\nnodes = [6]\n")
    assert names(path, sweeps=["seed=5"]) == ["nodes=4,seed=5", "nodes=6,seed=5"]


def test_similar_keys_are_not_the_same():
    axis = Axis("data", ({"data.alpha": "1"},))
    assert axis.covers("data.alpha")
    assert Axis("data.alpha", ()).covers("data")
    assert not axis.covers("dataset.alpha")
    assert replaced((axis,), []) == (axis,)


# What is wrong


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (
            "[sweep]\nseed = 1\n",
            "mine.toml: sweep.seed: must be a list of values, for example seed = [1, 2, 3] (got 1)",
        ),
        ("[sweep]\nseed = []\n", "sweep.seed: must be a list of values"),
        ("[sweep]\n", "mine.toml: sweep: must be a table of keys with a list of values each"),
        ("[sweep]\ndata.alpha = 0.5\n", "sweep.data.alpha: must be a list of values"),
        ("[sweep]\nseed = [2020-01-01]\n", "sweep.seed: no experiment has a value like 2020-01-01"),
        ("[sweep]\nsede = [1]\n", "sede: there is no such key; did you mean 'seed'?"),
        ("[sweep]\nseed = [1, 'x']\nnodes = [4]\n", "(got 'x') (with seed=x, nodes=4)"),
        ("[sweep]\nseed = [1, 1]\n", "seed=1 is there twice"),
        (
            '[sweep]\nprotocol = [{ use = "local", rounds = 3 }]\nprotocol.rounds = [1]\n',
            "not valid TOML",
        ),
        (
            '[sweep]\nprotocol = [{ use = "local", rounds = 3 }]\n"protocol.rounds" = [1]\n',
            "sweep: protocol.rounds is in two axes; write all its values in one of them",
        ),
    ],
)
def test_a_wrong_axis_is_one_line(file, sweep, message):
    with pytest.raises(ConfigError) as caught:
        points(file(sweep), [], [])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_that_is_none_is_told(file, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("sweep = 3\n" + EXPERIMENT)
    with pytest.raises(ConfigError, match="sweep: must be a table of keys"):
        points(str(path), [], [])


def test_what_is_swept_cannot_be_set(file):
    path = file("[sweep]\nseed = [1, 2]\n")
    with pytest.raises(ConfigError, match="--set seed=3: the experiment sweeps seed; write --sweep seed=3"):
        points(path, ["seed=3"], [])
    assert names(path, sets=["seed=3"], sweeps=["seed=4"]) == ["seed=4"]
    assert {point.config.nodes for point in points(path, ["nodes=4"], [])} == {4}


# Values as text

SCALARS = (
    st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8"))
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab- .é", min_size=1), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
@example('a\x7f"\\')
@example({"a b": ["\x00", float("inf")]})
def test_a_flag_says_what_the_file_says(value):
    text = _written(value, "sweep.key")
    assert "\n" not in text
    assert from_flag(f"key={text}") == (["key"], value)


@pytest.mark.parametrize("word", ["true", "inf", "nan", "local", "my_module:Class", "runs/x.npz", "a b", ""])
def test_a_string_stays_a_string(word):
    assert from_flag(f"key={_written(word, 'sweep.key')}")[1] == word
    assert tomllib.loads(f"key = [{_written([word], 'sweep.key')}]")["key"] == [[word]]
