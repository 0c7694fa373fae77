"""The leaderboard of made-up cells: who is compared with whom, what is shown in every form, and what is left out."""

from __future__ import annotations

import csv
import html
import re
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.cli import bench_orderings
from node.cli.bench_bands import KNOWN, bands
from node.cli.leaderboard import Board
from node.cli.leaderboard_html import page
from node.cli.leaderboard_plots import pictures
from node.cli.leaderboard_relaxations import highest, relaxations
from node.cli.leaderboard_table import escaped, latex, lines, shown, write_csv
from node.experiment.oneshot_grid import CENTRAL, Setting

R0, R2 = "R0 D0 W2 H0 M1 F1 S0", "R2 D0 W0 H1 M2 F1 S0"
PARTITIONS = ("iid", "dirichlet(0.5)", "dirichlet(0.1)", "shards(2)")


def record(name, accuracy, partition="iid", seed=0, assumptions=R0, division="closed", status="finished", **more):
    keys = ("data", "clients", "damage", "epsilon", "each")
    setting = asdict(Setting("digits", partition, seed=seed)) | {key: more.pop(key) for key in keys if key in more}
    figures = {"accuracy": accuracy, "up_bytes": 30_088.0, "client_flops": 1e8, "ece": 0.1} | more
    error = None if status == "finished" else "it broke"
    kept = figures if status == "finished" else {}
    return {
        "entrant": name,
        "assumptions": assumptions,
        "division": division,
        "setting": setting,
        "status": status,
        "error": error,
        "figures": kept,
    }


def small(seeds=2):
    """Two that assume little, one that assumes more and is better, lines of reference."""
    made = []
    for place, partition in enumerate(PARTITIONS):
        for seed in range(seeds):
            low = 0.9 - 0.1 * place + 0.01 * seed
            made += [
                record(CENTRAL, 0.97, partition, seed, "", "reference", up_bytes=0.0),
                record("mean client", 0.3, partition, seed, "", "reference", up_bytes=0.0),
                record("average", low, partition, seed),
                record("ties", low - 0.05, partition, seed, up_bytes=15_000.0),
                record("labels", low + 0.05, partition, seed, R2, up_bytes=30_128.0, client_flops=2e8),
            ]
    return made


@pytest.fixture
def board():
    return Board(small())


def entry(board, name):
    return next(each for each in board.entries if each.name == name)


# Means


def test_seeds_are_averaged_first(board):
    spread = board.spread("average", "digits iid N=10")
    assert spread.mean == pytest.approx(0.905)
    assert spread.deviation == pytest.approx(np.std([0.90, 0.91], ddof=1))
    assert spread.percent() == "90.5±0.7"
    assert board.mean("average") == pytest.approx(np.mean([0.905, 0.805, 0.705, 0.605]))


def test_a_single_seed_has_no_deviation():
    assert Board([record("a", 0.5)]).spread("a", "digits iid N=10").percent() == "50.0"


def test_blocks_count_alike_however_many_seeds_they_have():
    made = [*(record("a", 0.2, "iid", seed) for seed in range(5)), record("a", 0.8, "shards(2)")]
    assert Board(made).mean("a") == pytest.approx(0.5)


def test_gap_closed_lies_between_a_client_and_all_data(board):
    assert board.gap_closed(CENTRAL) == 1
    assert board.gap_closed("mean client") == 0
    assert 0 < board.gap_closed("average") < 1
    assert Board([record("a", 0.5)]).gap_closed("a") is None


def test_settings_that_are_compared_have_the_same_seeds():
    made = [record("a", 0.1 * seed, seed=seed) for seed in range(5)]
    made += [record("a", 0.5, seed=seed, damage="drop 1") for seed in (1, 3)]
    board = Board(made)
    whole, hit = board.paired("a", ["digits iid N=10", "digits iid N=10, drop 1"])
    assert whole == pytest.approx(0.2)
    assert hit == 0.5
    assert board.paired("nobody", ["digits iid N=10"]) == [None]


# Ranks


def test_where_only_others_have_results_is_nobodys_rank(board):
    before = {each.name: (each.rank, each.is_best) for each in board.entries}
    more = record("theirs", 0.99, "dirichlet(0.3)", division="open")
    after = {each.name: (each.rank, each.is_best) for each in Board([*small(), more]).entries}
    assert {name: after[name] for name in before} == before
    assert any(rank is not None for rank, _ in before.values())


def test_only_the_closed_division_is_ranked(board):
    made = [record("theirs", 0.99, partition, division="open") for partition in PARTITIONS]
    assert board.contenders == Board([*small(), *made]).contenders == ["average", "ties", "labels"]
    assert board.ranking.ranks.tolist() == [2.0, 3.0, 1.0]
    assert entry(board, CENTRAL).rank is None


def test_who_has_not_finished_everywhere_has_no_rank():
    board = Board([*small(), record("quick", 0.99)])
    assert "quick" not in board.contenders
    assert entry(board, "quick").rank is None
    assert board.mean("quick") is None


def test_damage_and_other_numbers_of_clients_are_not_ranked(board):
    more = [record(name, 0.5, damage="drop 3") for name in ("average", "ties")]
    more += [record(name, 0.5, clients=50) for name in ("average", "ties")]
    other = Board([*small(), *more])
    assert other.main == board.main
    assert other.ranking.ranks.tolist() == board.ranking.ranks.tolist()
    assert other.entries == board.entries


def test_the_best_is_that_of_those_who_assume_the_same(board):
    marks = {each.name: (each.is_best, each.is_equal) for each in board.entries}
    assert marks["average"] == marks["labels"] == (True, True)
    assert marks["ties"] == (False, True)  # four blocks cannot tell
    assert marks[CENTRAL] == (False, False)


def test_enough_blocks_tell_who_is_worse():
    made = [
        record(name, base - 0.01 * place, f"quantity({place + 1})")
        for name, base in (("a", 0.9), ("b", 0.7))
        for place in range(8)
    ]
    marks = {each.name: (each.is_best, each.is_equal) for each in Board(made).entries}
    assert marks == {"a": (True, True), "b": (False, False)}


def test_too_little_for_ranks():
    assert Board([record("a", 0.5), record("b", 0.6)]).ranking is None
    assert Board([]).entries == []


@given(st.permutations(small(1)))
def test_figures_do_not_depend_on_the_order_of_cells(made):
    board = Board(made)
    assert dict(zip(board.contenders, board.ranking.ranks.tolist(), strict=True)) == {
        "average": 2.0,
        "ties": 3.0,
        "labels": 1.0,
    }
    assert board.mean("average") == pytest.approx(0.75)


# What assumptions buy


@pytest.mark.parametrize(
    ("cell", "axis", "level"),
    [(R0, "R", "R0"), ("R- D1 W0 H1 M1 F1 S0", "R", "R-"), ("R4 D0 W1W2 H0 M1 F1 S0", "W", "W2"), (R2, "M", "M2")],
)
def test_levels_of_a_cell(cell, axis, level):
    assert highest(cell, axis) == level


def test_each_step_buys_what_the_best_gains(board):
    found = {(each.axis, each.level): each for each in relaxations(board)}
    assert found["R", "R0"].best == "average"
    assert found["R", "R0"].gain == 0
    assert found["R", "R2"].best == "labels"
    assert found["R", "R2"].gain == pytest.approx(0.05)
    assert found["W", "W0"].best == "labels"  # it assumes no shared start
    assert found["W", "W2"].gain == 0
    assert not any(axis == "D" for axis, _ in found)  # all stand alike


# Text


def test_the_terminal_shows_every_entrant(board):
    text = "\n".join(lines(board))
    assert "average *" in text
    assert "90.5±0.7" in text
    assert "[a] digits iid N=10" in text
    assert "30.09 kB" in text


def test_figures_for_people():
    assert shown(None, "%") == "–"
    assert shown(0.1234, "%") == "12.3"
    assert shown(2.5e9, "GFLOP") == "2.5"
    assert shown(1500.0, "kFLOP") == "1.5"


def test_csv_has_a_row_for_each_entrant(board, tmp_path):
    write_csv(board, tmp_path / "leaderboard.csv")
    rows = {row["entrant"]: row for row in csv.DictReader((tmp_path / "leaderboard.csv").read_text().splitlines())}
    assert list(rows) == board.names
    assert float(rows["average"]["digits iid N=10"]) == pytest.approx(0.905)
    assert rows["average"]["digits iid N=10 seeds"] == "2"
    assert float(rows["labels"]["rank"]) == 1
    assert rows[CENTRAL]["rank"] == ""


def test_latex_marks_the_best_and_escapes_names():
    text = latex(
        Board([*small(), *(record("50%_of {mine} & $x$", 0.99, partition, assumptions=R2) for partition in PARTITIONS)])
    )
    assert r"50\%\_of \{mine\} \& \$x\$ &" in text
    assert r"\textbf{99.0}" in text
    assert r"\underline{75.5}" not in text.split("R2")[0]
    assert r"90.5$\pm$0.7" in text
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 1
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", text)[1]
    rows = [row for row in text.splitlines() if row.endswith(r"\\") and "multicolumn" not in row]
    assert all(len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1 for row in rows)


@given(st.text())
def test_latex_never_sees_a_bare_special_character(text):
    plain = re.sub(
        r"\\textbackslash\{\}|\\textasciitilde\{\}|\\textasciicircum\{\}|\\[&%$#_{}]|\$\\pm\$", "", escaped(text)
    )
    assert not set(plain) & set("\\&%$#_{}~^\n")


# The page


def test_the_page_stands_alone_and_allows_its_own_script_only(board):
    text = page(board, [])
    assert not re.search(r"""(src|href)\s*=|@import|url\(""", re.sub(r'(xlink:)?href="#|url\(#', "", text))
    assert "default-src 'none'" in text
    assert text.count("<script>") == 1
    assert text == page(Board(small()), [])


def test_the_script_is_the_one_whose_hash_is_allowed(board):
    import base64
    import hashlib

    text = page(board, [])
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text


def test_names_from_elsewhere_are_escaped():
    bad = "<img src=x onerror=alert(1)>"
    text = page(Board([*small(), *(record(bad, 0.9, partition, division="open") for partition in PARTITIONS)]), [])
    assert bad not in text
    assert html.escape(bad) in text


def test_every_number_of_the_table_can_be_sorted(board):
    table = re.search(r'<table class="sortable">(.*?)</table>', page(board, []), re.DOTALL)[1]
    rows = re.findall(r"<tr class=.*?</tr>", table)
    assert len(rows) == len(board.names)
    for row in rows:
        for data, text in re.findall(r"<td(?! class=\"text\")[^>]*?(?:data-value=\"([^\"]*)\")?>([^<]*)</td>", row):
            assert text == "–" or float(data or text) is not None


def test_what_failed_is_told():
    text = page(Board([*small(), record("broken", 0.0, status="failed")]), [])
    assert "What did not run" in text
    assert "it broke" in text


def test_damage_stands_beside_what_it_is_without():
    made = [record(name, accuracy, damage="drop 3") for name, accuracy in (("average", 0.42), ("labels", 0.43))]
    text = page(Board([*small(), *made]), [])
    damage = text[text.index("<h2>Damage") :]
    assert ">42.0<" in damage
    assert ">90.0<" in damage  # seed 0 alone, as in the damaged one


# Pictures


def titles(made):
    return [picture.title for picture in pictures(Board(made))]


def test_pictures_of_what_there_is():
    assert {"Accuracy against bytes", "Accuracy against clients' work", "Critical differences"} <= set(titles(small()))
    assert titles([record("a", 0.5)]) == ["By assumptions"]


def test_scaling_needs_three_numbers_of_clients():
    title = "Accuracy by the number of clients"
    made = small()
    for clients in (5, 50):
        assert title not in titles(made)
        made += [record(name, 0.5, "dirichlet(0.1)", clients=clients) for name in ("average", "labels")]
    assert title in titles(made)


def test_slopes_are_those_of_powers():
    made = small()
    for clients in (10, 20, 40):
        made += [
            record("average", 0.5, "shards(2)", 7, clients=clients, state_bytes=1000.0),
            record("labels", 0.5, "shards(2)", 7, clients=clients, state_bytes=1000.0 * clients),
        ]
    (picture,) = [each for each in pictures(Board(made)) if each.title.startswith("Aggregator's memory")]
    assert "labels 1.00" in picture.caption
    assert "average 0.00" in picture.caption


def test_dropout_begins_with_all_clients():
    made = [record(name, 0.4, "iid", damage=f"drop {count}") for name in ("average", "ties") for count in (1, 3)]
    assert "Accuracy by dropped clients" in titles([*small(), *made])
    assert "Accuracy by dropped clients" not in titles(small())


def test_the_front_names_who_is_on_it():
    (picture,) = [each for each in pictures(Board(small())) if each.title == "Accuracy against bytes"]
    assert [name in picture.caption for name in ("ties", "average", "labels")] == [True, True, True]
    made = [record("dear", 0.1, partition, up_bytes=1e6) for partition in PARTITIONS]
    (picture,) = [each for each in pictures(Board([*small(), *made])) if each.title == "Accuracy against bytes"]
    assert "dear" not in picture.caption


# Orderings


def claims(difference, seeds=5, place="dirichlet(0.1)"):
    """Verdicts where label weights are so much better than plain probabilities, in points by seed."""
    made = []
    for seed in range(seeds):
        points = difference[seed] if isinstance(difference, list) else difference
        made += [
            record(bench_orderings.PLAIN, 0.5, place, seed),
            record(bench_orderings.LABEL, 0.5 + points / 100, place, seed),
        ]
    found = bench_orderings.verdicts(Board(made))
    return next(each for each in found if each.first == bench_orderings.LABEL and each.place == place)


def test_a_claim_for_each_seed():
    assert claims(5).status == "holds"
    assert claims([9, 9, 9, 9, 3.9]).status == "FAILS"
    assert claims(5, seeds=4).status == "not measured"


def test_a_claim_for_the_mean():
    assert claims([3, -3, 3, -3, 0.5], place="iid").status == "holds"
    assert claims(1.5, place="iid").status == "FAILS"


def test_bounds():
    below = bench_orderings.Bound("below", 0.0)
    assert below.holds({0: -3.0, 1: 1.0})
    assert not below.holds({0: 0.5})
    assert not bench_orderings.Bound("within", 3.5, each=True).holds({0: 0.0, 1: -4.0})
    assert str(bench_orderings.Bound("above", 4, each=True)) == "> 4, each"


def test_what_is_not_measured_is_told_so():
    found = bench_orderings.verdicts(Board([]))
    assert {each.status for each in found} == {"not measured"}
    text = "\n".join(bench_orderings.lines(found))
    assert "not measured (0 of 5 seeds)" in text
    assert len(text.splitlines()) == len(found) + 1


# Curves


def test_as_many_samples_for_each_is_a_curve_of_its_own():
    title = "Accuracy by the number of clients"
    made = small()
    for clients in (5, 10, 20):
        made += [record(name, 0.5, "dirichlet(0.1)", clients=clients, each=20) for name in ("average", "labels")]
    assert f"{title}, 20 samples each" in titles(made)
    assert title not in titles(made)


def test_areas_are_means_over_what_is_lost():
    made = [record("average", 0.9 - 0.1 * count, "iid", damage=f"drop {count}") for count in (1, 3)]
    (picture,) = [each for each in pictures(Board([*small(), *made])) if each.title == "Accuracy by dropped clients"]
    assert "average 0.750" in picture.caption  # 0.9 at none, on a line to 0.6 at three
    assert "ties" not in picture.caption


def test_deadlines_end_where_nobody_is_late():
    made = [record("average", 0.5, "iid", damage=f"deadline {percentile}") for percentile in (50, 80)]
    assert "Accuracy by deadline" in titles([*small(), *made])
    assert "Accuracy by deadline" not in titles(small())


def test_damage_has_panels_for_who_is_missing_and_for_who_lies():
    made = [record("average", 0.42, damage=damage) for damage in ("owner 1", "over-claim 1")]
    text = page(Board([*small(), *made]), [])
    missing, lie = text.index("Clients are missing"), text.index("Clients lie")
    assert missing < text.index("N=10, owner 1") < lie < text.index("N=10, over-claim 1")


# Bands


def test_every_figure_that_is_known_has_its_width():
    found = {(name, place): (mean, width) for name, place, mean, width in bands()}
    assert found["centralised", "iid"] == (96.9, pytest.approx(4.2))
    assert found["mean client", "shards(2)"] == (24.4, 3)
    assert ("Fisher", "shards(2)") not in found
    assert all(len(figures.split()) == 4 for figures in KNOWN.values())


def test_a_band_is_of_the_mean():
    def status(accuracy):
        made = [record("mean client", accuracy, "shards(2)", seed, "", "reference") for seed in range(5)]
        (verdict,) = [
            each
            for each in bench_orderings.verdicts(Board(made))
            if (each.first, each.second, each.place) == ("mean client", "", "shards(2)")
        ]
        assert verdict.claim == "mean client"
        assert str(verdict.bound) == "24.4 ± 3"
        return verdict.status

    assert [status(accuracy) for accuracy in (0.215, 0.274, 0.213, 0.275)] == ["holds", "holds", "FAILS", "FAILS"]


def test_who_must_be_the_same_everywhere():
    def status(there):
        made = [record("ridge", 0.9, "iid", seed) for seed in range(5)]
        made += [record("ridge", there if seed == 3 else 0.9, "shards(2)", seed) for seed in range(5)]
        found = bench_orderings.verdicts(Board(made))
        return next(each.status for each in found if (each.second, each.place) == ("ridge under iid", "shards(2)"))

    assert status(0.9) == "holds"
    assert status(0.9025) == "FAILS"


def test_settings_of_records_are_whole():
    assert asdict(Setting("digits", "iid")) == record("a", 0.5)["setting"]
