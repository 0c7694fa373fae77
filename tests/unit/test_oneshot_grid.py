"""The benchmark's cells: which experiment each is, which cells a preset has, and what is refused in one line."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from node.cli.bench_bands import bands
from node.cli.bench_orderings import CLAIMS
from node.errors import ConfigError
from node.experiment.oneshot_grid import CENTRAL, REFERENCES, Cell, Entrant, Setting, divided, held
from node.experiment.oneshot_presets import ENTRANTS, VARIANTS, entrants, preset
from node.learn.oneshot.catalogue import configured, known

MEAN = Entrant("mean", "average")


def config(entrant=MEAN, **setting):
    return Cell(entrant, Setting(**{"data": "digits", "partition": "iid", **setting})).config()


# Settings


@pytest.mark.parametrize(
    ("partition", "keys"),
    [
        ("iid", {"partition": "iid"}),
        ("dirichlet(0.1)", {"partition": "dirichlet", "alpha": 0.1, "least_samples": 10}),
        ("shards(2)", {"partition": "shards", "shards_per_node": 2}),
        ("quantity(0.5)", {"partition": "quantity", "alpha": 0.5}),
        ("natural(writer)", {"partition": "natural", "column": "writer"}),
    ],
)
def test_partitions_by_name(partition, keys):
    assert divided(Setting("digits", partition)) == keys


@pytest.mark.parametrize("partition", ["iid(1)", "dirichlet", "dirichlet(a)", "shards(0.5)", "", "iid; shards(2)"])
def test_other_partitions_are_refused(partition):
    with pytest.raises(ConfigError, match=r"partition: .*(allowed|no number)"):
        divided(Setting("digits", partition))


def test_alpha_is_never_without_its_rule():
    assert Setting("digits", "dirichlet(0.1)").block == "digits dir[class](0.1) N=10"
    assert Setting("digits", "iid", damage="drop 1").block == "digits iid N=10, drop 1"


def test_too_few_samples_for_many_clients_are_no_reason_to_draw_anew():
    assert "least_samples" not in divided(Setting("digits", "dirichlet(0.1)", 50))
    assert "least_samples" not in divided(Setting("breast_cancer", "dirichlet(0.1)"))


# Data


def test_known_divisions_are_those_of_digits_among_ten_clients():
    assert config(partition="shards(2)").data.division
    assert not config(partition="quantity(0.5)").data.division
    assert not config(clients=20).data.division
    assert not config(data="breast_cancer").data.division
    assert held(Setting("digits", "dirichlet(0.1)")).sum() == 1197


@pytest.mark.parametrize("clients", [5, 10, 50])
def test_as_many_samples_for_each_however_many_clients(clients):
    setting = Setting("digits", "dirichlet(0.1)", clients, each=20)
    assert held(setting).sum() == 20 * clients
    assert setting.block == f"digits dir[class](0.1) N={clients} of 20"
    made = config(partition="iid", clients=clients, each=20)
    assert made.public.samples == 200
    assert made.data.test_fraction > 0.2


def test_more_samples_for_each_than_there_are_is_refused():
    with pytest.raises(ConfigError, match="data digits: 2000 samples for all clients together: there are 1197"):
        config(clients=100, each=20)


def test_settings_that_leave_something_out_are_not_ranked():
    assert Setting("digits", "iid").is_plain
    assert not Setting("digits", "iid", each=20).is_plain
    assert not Setting("digits", "iid", damage="owner 1").is_plain


# Damage


def test_dropped_clients_leave_before_they_upload():
    events = config(damage="drop 3").churn.schedule
    assert len({event.node for event in events}) == 3
    assert all(1 <= event.node <= 10 and event.time_s == 0 and event.what == "leave" for event in events)


def test_a_deadline_is_a_quorum_beside_the_algorithm():
    made = config(damage="deadline 80")
    assert made.protocol.options == {"algorithm": "average", "options": {}, "quorum": 8}


def test_who_has_another_protocol_has_no_deadline():
    settings = [Setting("digits", "iid", damage=damage) for damage in ("deadline 50", "over-claim 1", "drop 1")]
    chosen = replace(preset("orderings"), main=tuple(settings))
    fens = entrants(["FENS"])[len(REFERENCES) :]
    assert [cell.setting.damage for cell in chosen.cells(fens)] == ["drop 1"]


def test_data_in_one_place_has_nobody_to_lose():
    central = next(entrant for entrant in REFERENCES if entrant.name == CENTRAL)
    whole, hit = config(central), config(central, damage="drop 3")
    assert whole == hit
    assert whole.nodes == 2


# Cells


def test_a_cell_is_an_ordinary_experiment():
    made = config(Entrant("x", "ties", {"keep": 0.5}), clients=7, seed=3)
    assert (made.nodes, made.seed, made.clock) == (8, 3, "virtual")
    assert made.protocol.options == {"algorithm": "ties", "options": {"keep": 0.5}}
    assert made.training.local_epochs == 40


def test_all_entrants_of_a_setting_have_the_same_data():
    setting = Setting("digits", "dirichlet(0.1)")
    made = [Cell(entrant, setting).config() for entrant in (*REFERENCES, MEAN)]
    assert len({(each.data, each.public, each.model) for each in made}) == 1


def test_an_entrants_keys_come_beside_the_settings():
    made = config(Entrant("x", "average", sets={"data": {"local_test_fraction": 0.1}}), partition="shards(2)")
    assert made.data.local_test_fraction == 0.1
    assert made.data.partition == "shards"


def test_another_protocol_replaces_the_whole_table():
    made = config(Entrant("x", sets={"protocol": {"use": "fedavg", "rounds": 4}}))
    assert made.protocol.use == "fedavg"
    assert made.protocol.options == {"rounds": 4}


def test_a_wrong_key_names_entrant_and_setting():
    with pytest.raises(ConfigError, match=r"odd in digits iid N=10: training.lr"):
        config(Entrant("odd", "average", sets={"training": {"lr": -1}}))


# Presets


def test_the_small_preset_has_every_partition_with_five_seeds():
    main = preset("small").main
    digits = {(setting.partition, setting.seed) for setting in main if setting.data == "digits"}
    assert len(digits) == 25
    assert all(not setting.damage and setting.clients == 10 for setting in main)


def test_slow_entrants_meet_few_settings():
    slow = Entrant("slow", "average", is_slow=True)
    small = preset("small")
    settings = [cell.setting for cell in small.cells([slow])]
    assert settings == [setting for setting in small.main if setting.seed < small.slow_seeds]
    assert len(list(small.cells([MEAN]))) == len(small.main) + len(small.beside)


def test_other_data_and_seeds():
    chosen = preset("small", ["wine", "iris.npz"], 3)
    assert {setting.data for setting in chosen.main} == {"wine", "iris.npz"}
    assert {setting.seed for setting in chosen.main} == {0, 1, 2}
    assert {setting.data for setting in chosen.beside} == {"wine"}
    assert not any(setting.each for setting in chosen.beside)
    assert max(setting.seed for setting in preset("full", seeds=1).beside) == 0


def test_orderings_are_of_five_seeds_of_everybody():
    chosen = preset("orderings")
    assert len(chosen.main) == 20
    assert chosen.slow_seeds == 5
    assert not chosen.beside


@pytest.mark.parametrize("name", ["small", "full", "orderings"])
def test_no_cell_is_there_twice(name):
    cells = [(cell.entrant.name, cell.setting) for cell in preset(name).cells(entrants())]
    assert len(cells) == len(set(cells))


def test_damage_of_presets_is_damage():
    for name in ("small", "full"):
        for setting in preset(name).beside:
            Cell(MEAN, setting).config()


def test_figures_are_known_of_rows_that_there_are():
    names = {entrant.name for entrant in entrants(variants=VARIANTS)}
    assert {name for name, *_ in bands()} <= names


def test_variants_are_rows_where_they_are_asked_for():
    names = {entrant.name for entrant in VARIANTS}
    assert not names & {entrant.name for entrant in entrants()}
    assert names <= {entrant.name for entrant in entrants(variants=VARIANTS)}
    assert [entrant.name for entrant in entrants(["FedKD alike"])][-1] == "FedKD alike"
    assert preset("orderings").variants == VARIANTS


def test_an_unknown_preset_is_refused():
    with pytest.raises(ConfigError, match="--preset: 'big' is none; allowed: small, full, orderings"):
        preset("big")


# Entrants


def test_every_row_is_an_algorithm_that_takes_its_options():
    for entrant in ENTRANTS:
        if entrant.algorithm:
            configured(entrant.algorithm, entrant.options_json)


def test_no_registered_algorithm_is_left_out(monkeypatch):
    assert set(known()) <= {entrant.algorithm for entrant in entrants()}
    monkeypatch.setattr("node.experiment.oneshot_presets.ENTRANTS", ENTRANTS[:1])
    assert set(known()) == {entrant.algorithm for entrant in entrants() if entrant.algorithm}


def test_entrants_get_what_their_algorithm_declares():
    best, plain = entrants(["ensemble best 5 by score", "average"])[len(REFERENCES) :]
    assert best.sets == {"data": {"local_test_fraction": 0.1}}
    assert plain.sets == {}


def test_names_can_be_listed_with_commas():
    names = [entrant.name for entrant in (*REFERENCES, *ENTRANTS)]
    assert not any("," in name for name in names)
    assert len(names) == len(set(names))


def test_rows_by_name_by_algorithm_and_by_class():
    chosen = entrants(["TIES", "average", "node.learn.oneshot.averaging:Average"])
    assert [entrant.name for entrant in chosen[len(REFERENCES) :]] == [
        "TIES",
        "average",
        "node.learn.oneshot.averaging:Average",
    ]


@pytest.mark.parametrize(
    ("code", "says"),
    [("import nowhere_at_all", "No module named"), ("1 / 0", "ZeroDivisionError"), ("", "has no 'Mine'")],
)
def test_a_row_of_a_module_that_cannot_be_had_is_refused_in_one_line(tmp_path, monkeypatch, code, says):
    name = f"row_{len(code)}_long"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=says) as caught:
        entrants([f"{name}:Mine"])
    assert "\n" not in str(caught.value)


def test_a_row_may_be_a_class_of_the_current_folder(tmp_path, monkeypatch):
    code = "from node.learn.oneshot.averaging import Average\n\n\nclass Mine(Average):\n    pass\n"
    (tmp_path / "row_of_this_folder.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in sys.path if entry])
    assert entrants(["row_of_this_folder:Mine"])[-1].algorithm == "row_of_this_folder:Mine"


def test_an_unknown_row_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="no row or algorithm is called 'averge'; did you mean 'average'"):
        entrants(["averge"])


def test_claims_are_about_rows_that_there_are():
    names = {entrant.name for entrant in entrants()}
    assert {name for first, second, _ in CLAIMS for name in (first, second)} <= names
