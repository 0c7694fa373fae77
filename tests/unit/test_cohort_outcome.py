"""What a run of cohort-parallel learning says of itself, in its summary, its report and on the terminal."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from node import Protocol, Row
from node.cli.cohort_summary import Cohorts
from node.cli.cohorts import lines, section
from node.cli.report import write_report
from node.cli.running import run_config
from node.cli.runs import load_run
from node.experiment.loading import validated
from protocols.cohort_outcome import outcome

TRAFFIC = {"cpfl/update/1": 100, "cpfl/version/1": 60, "cpfl/result/1": 30, "cpfl/control/1": 7, "cpfl/hello/1": 2}


def recorded(when, node, round=0, **fields):
    """One record."""
    return [Row(when, node, round, name, float(value)) for name, value in fields.items()]


def a_round(time_s, node, round, cohort, members):
    return recorded(time_s, node, round, members=members, **{"cpfl/round.cohort": cohort})


def stopped(time_s, node, cohort, accuracy=0.5):
    said = {"number": cohort, "stopped_s": time_s, "rounds": 2, "samples": 40, "size": 3, "accuracy": accuracy}
    return recorded(time_s, node, **{f"cpfl/cohort.{name}": value for name, value in said.items()}, loss=9)


def unified(when, node, name, **figures):
    return recorded(when, node, **{f"cpfl/unified/{name}.{figure}": value for figure, value in figures.items()})


def elected(time_s, node, cohort, failover, repeated):
    said = {"cohort": cohort, "failover": failover, "repeated_rounds": repeated}
    return recorded(time_s, node, **{f"cpfl/election.{name}": value for name, value in said.items()})


ROWS = [
    *elected(0.5, 0, 0, 0, 0),
    *elected(0.6, 4, 1, 0, 0),
    *a_round(1, 0, 0, 0, 3),
    *a_round(1, 4, 0, 1, 2),
    *elected(1.5, 1, 0, 1, 1),
    *a_round(2, 1, 1, 0, 2),
    *a_round(2, 4, 1, 1, 2),
    *stopped(3, 1, 0, 0.6),
    *stopped(4, 4, 1, 0.4),
    *unified(6, 2, "kd-hard", accuracy=0.7, loss=1.0, time_s=2.0, flops=10, bytes=50),
    *recorded(6, 2, **{"cpfl/converged_s": 4, "cpfl/unify_s": 2}),
    *unified(8, 2, "average", accuracy=0.65, loss=math.inf, time_s=0.0, flops=0, bytes=40),
    *[
        row
        for node in range(6)
        for row in recorded(9, node, **{"cpfl/training_s": 1.5, "cpfl/member.cohort": node // 3})
    ],
]


def test_each_cohort_says_who_led_it_how_long_and_how_far():
    first, second = outcome(ROWS, TRAFFIC)["cohorts"]
    assert first == {
        "cohort": 0,
        "members": 3,
        "samples": 40,
        "leaders": [0, 1],
        "rounds": 2,
        "stopped_s": 3,
        "accuracy": 0.6,
        "loss": None,
        "participants": 2.5,
        "elections": 2,
        "failovers": 1,
        "repeated_rounds": 1,
        "lost": None,
    }
    assert (second["leaders"], second["elections"], second["failovers"]) == ([4], 1, 0)


def test_the_whole_says_what_it_took():
    block = outcome(ROWS, TRAFFIC)
    assert (block["converged_s"], block["unify_s"]) == (4, 2)
    assert "folded_s" not in block
    assert block["device_cpu_s"] == 6 * 1.5 + 2.0, "what comparing took does not count"
    assert block["bytes"] == {"up": 100, "down": 60, "unifying": 30, "control": 9}
    assert block["participants"] == {"mean": 2.25, "min": 2, "max": 3}
    assert (block["elections"], block["failovers"], block["repeated_rounds"]) == (3, 1, 1)
    assert block["mean_cohort_accuracy"] == 0.5
    assert block["unifier"] == "kd-hard"
    assert list(block["unified"]) == ["kd-hard", "average"]
    assert block["unified"]["average"]["loss"] is None, "what is not finite has no place in JSON"
    json.dumps(block, allow_nan=False)


def test_rows_of_real_nodes_may_come_mixed():
    mixed = [row for pair in zip(ROWS[::2], ROWS[1::2], strict=False) for row in reversed(pair)] + ROWS[
        len(ROWS) // 2 * 2 :
    ]
    assert outcome(mixed, TRAFFIC)["cohorts"][0] == outcome(ROWS, TRAFFIC)["cohorts"][0]


def test_a_student_that_goes_on_adds_up_and_leaders_students_are_averaged():
    folded = [*ROWS, *unified(10, 2, "kd-hard", accuracy=0.8, loss=1.0, time_s=1.0, flops=4, bytes=70)]
    assert outcome(folded, TRAFFIC)["unified"]["kd-hard"] == {
        "accuracy": 0.8,
        "loss": 1.0,
        "time_s": 3.0,
        "flops": 14,
        "bytes": 70,
    }
    many = [
        row
        for node, share in ((0, 0.5), (3, 0.7))
        for row in unified(9, node, "logit-exchange", accuracy=share, time_s=node, bytes=10)
    ]
    found = outcome([*ROWS[:-12], *many], TRAFFIC)["unified"]["logit-exchange"]
    assert found == {"accuracy": pytest.approx(0.6), "time_s": 3.0, "bytes": 20}


def test_a_cohort_that_was_left_out_is_there_with_what_it_has_come_to():
    left = [row for row in ROWS if not (row.node == 4 and row.metric.startswith("cpfl/cohort."))]
    second = outcome(left, TRAFFIC)["cohorts"][1]
    assert (second["stopped_s"], second["accuracy"], second["rounds"]) == (None, None, None)
    assert second["participants"] == 2
    assert outcome(left, TRAFFIC)["mean_cohort_accuracy"] == 0.6


@pytest.mark.parametrize(("is_dissolved", "expected"), [(1, "dissolved"), (0, "gone")])
def test_a_cohort_that_is_lost_says_so_even_with_nothing_else_to_say(is_dissolved, expected):
    """Two nodes that have unified one after the other may both say it."""
    twice = [
        row
        for node in (2, 3)
        for row in recorded(2 + node, node, **{"cpfl/lost.cohort": 2, "cpfl/lost.is_dissolved": is_dissolved})
    ]
    block = outcome([*ROWS, *twice], TRAFFIC)
    assert [cohort["lost"] for cohort in block["cohorts"]] == [None, None, expected]
    assert (block["lost_cohorts"], outcome(ROWS, TRAFFIC)["lost_cohorts"]) == (1, 0)
    found = Cohorts.model_validate(block)
    assert next(lines(found)).startswith("3 cohorts (1 lost), 2 to 2 rounds")
    run = SimpleNamespace(folder=Path("it"), summary=SimpleNamespace(name="it", clock="virtual", cpfl=found))
    assert f"'{expected}'" in section([run], lambda header, rows: str(list(rows)))


def test_without_cohorts_there_is_nothing_to_say():
    assert outcome([], {}) == {}
    assert outcome(recorded(1, 0, accuracy=0.5), TRAFFIC) == {}
    assert Protocol.summary(None, [], {}) == {}


def test_the_terminal_says_it_in_three_lines():
    said = list(lines(Cohorts.model_validate(outcome(ROWS, TRAFFIC))))
    assert said == [
        "2 cohorts, 2 to 2 rounds; converged after 4 s, unified in 2 s; 11 s of training on devices",
        "sent 100 B up, 60 B down, 30 B for unifying, 9 B for control",
        "accuracy: mean cohort model 0.5000, kd-hard 0.7000, average 0.6500",
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with everything that there is to tell."""
    tables = {
        "name": "cohorts",
        "nodes": 6,
        "protocol": {
            "use": "cpfl",
            "cohorts": 2,
            "unify": "kd-hard",
            "compare": ["average", "fisher", "ensemble-label"],
            "checkpoint": "last",
            "stopping": {"rule": "budget", "most_rounds": 2},
            "distillation": {"steps": 20},
        },
        "public": {"name": "held-out", "samples": 40},
        "model": {"name": "softmax"},
    }
    out = tmp_path_factory.mktemp("run") / "out"
    run_config(validated(tables, "here"), out, quiet=True)
    return out


def test_a_runs_summary_has_the_block_and_its_metrics_have_it_not(folder):
    summary = json.loads((folder / "summary.json").read_text())
    block = summary["cpfl"]
    assert list(block["unified"]) == ["kd-hard", "average", "fisher", "ensemble-label"]
    assert sum(block["bytes"].values()) == summary["bytes_sent"]
    assert block["device_cpu_s"] > 0
    assert [cohort["members"] for cohort in block["cohorts"]] == [3, 3]
    assert all(cohort["elections"] >= 1 for cohort in block["cohorts"])
    assert not [name for name in summary["metrics"] if "/" in name]


def test_the_report_compares_all_unifiers_in_one_table(folder, tmp_path):
    page = (folder / "report.html").read_text()
    assert "<h2>Cohorts</h2>" in page
    for cell in ("kd-hard (the run", "average (compared)", "fisher (compared)", "mean cohort model", "failovers"):
        assert cell in page, cell
    runs = [load_run(folder), load_run(folder)]
    write_report(runs, tmp_path / "both.html")
    both = (tmp_path / "both.html").read_text()
    assert both.count("ensemble-label (compared)") == 2
    assert both.count("<th>run</th>") >= 3
