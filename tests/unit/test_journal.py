"""What a running node logs and shows of it: the level, and the last warnings without what names places."""

import json

import pytest
import structlog

from node.daemon.history import MOST_POINTS, coarse, curves
from node.daemon.journal import MOST_WARNINGS, Journal
from node.record import Recorder


@pytest.fixture
def journal():
    before = structlog.get_config()
    made = Journal()
    made.begin()
    yield made
    structlog.configure(**before)


def logged(capsys):
    return [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]


def log_all(log):
    for level in ("debug", "info", "warning", "error", "critical"):
        getattr(log, level)(level)


def test_from_info_on_everything_is_logged(journal, capsys):
    journal.begin()
    log_all(structlog.get_logger())
    assert logged(capsys) == ["info", "warning", "error", "critical"]


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", ["debug", "info", "warning", "error", "critical"]),
        ("warning", ["warning", "error", "critical"]),
        ("error", ["error", "critical"]),
    ],
)
def test_another_level_counts_at_once_also_for_loggers_that_are_there(journal, capsys, level, expected):
    journal.begin()
    bound = structlog.get_logger().bind(node=3)
    journal.level = level
    log_all(bound)
    assert logged(capsys) == expected


def test_warnings_are_kept_whatever_is_logged(journal, capsys):
    journal.begin()
    journal.level = "error"
    log_all(structlog.get_logger())
    assert [(line["level"], line["event"]) for line in journal.warnings()] == [
        ("warning", "warning"),
        ("error", "error"),
        ("critical", "critical"),
    ]
    assert all(line["time"].endswith("Z") for line in journal.warnings())


def test_only_the_last_are_kept(journal):
    for number in range(3 * MOST_WARNINGS):
        structlog.get_logger().warning(f"{number}")
    assert [line["event"] for line in journal.warnings()] == [
        str(number) for number in range(2 * MOST_WARNINGS, 3 * MOST_WARNINGS)
    ]


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"peer": 4, "reason": "too_large"}, {"peer": 4, "reason": "too_large"}),
        ({"peer": "tcp://192.0.2.1:7600"}, {}),
        ({"reason": "/home/me/state: No such file"}, {}),
        ({"reason": "x" * 33}, {}),
        ({"reason": 7, "address": "192.0.2.1", "detail": "what a stranger said", "path": "/x", "token": "s"}, {}),
    ],
)
def test_what_names_places_is_not_shown(journal, fields, shown):
    structlog.get_logger().warning("refused", **fields)
    [line] = journal.warnings()
    assert {key: line[key] for key in line if key not in ("time", "level", "event")} == shown
    json.dumps(line)


def test_a_failure_is_logged_with_its_trace_and_shown_without(journal, capsys):
    journal.begin()
    try:
        raise ValueError("inside")
    except ValueError:
        structlog.get_logger().error("unhandled", exc_info=True)
    assert "inside" in capsys.readouterr().err
    assert "inside" not in str(journal.warnings())


# Curves


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.123456, 0.123),
        (98765.4, 98800.0),
        (1e-9, 1e-9),
        (0.0, 0.0),
        (1, 1.0),
        (None, None),
        (float("nan"), None),
        (float("inf"), None),
    ],
)
def test_figures_are_coarse_and_always_json(value, expected):
    assert coarse(value) == expected


def recorder(rounds, nodes=1):
    made = Recorder()
    for round in range(rounds):
        for node in range(nodes):
            made.add(round * 2.04, node, round, {"accuracy": round / 7 + node, "loss": float("nan")})
    return made


def test_curves_are_of_this_node_alone():
    found = curves(recorder(3, nodes=2), 1)
    assert found["accuracy"] == {"time_s": [0.0, 2.0, 4.1], "value": [1.0, 1.14, 1.29]}
    assert found["loss"] == {"time_s": [0.0, 2.0, 4.1], "value": [None, None, None]}


def test_before_anything_is_recorded_curves_are_empty():
    assert curves(Recorder(), 0) == {name: {"time_s": [], "value": []} for name in ("accuracy", "loss")}


@pytest.mark.parametrize("rounds", [MOST_POINTS, MOST_POINTS + 1, 50_000])
def test_long_curves_are_thinned_and_keep_both_ends(rounds):
    found = curves(recorder(rounds), 0)["accuracy"]
    assert len(found["time_s"]) == len(found["value"]) == MOST_POINTS
    assert (found["time_s"][0], found["value"][0]) == (0.0, 0.0)
    assert found["time_s"][-1] == round((rounds - 1) * 2.04, 1)
    assert found["time_s"] == sorted(found["time_s"])
