"""Whose upload counts, and when the aggregator closes: in simulations of clients that are late, gone or wrong."""

from __future__ import annotations

import math

import pytest

from node import ConfigError
from oneshots import NODES, Run, checked, mod

CLIENTS = range(1, NODES)
ALGORITHMS = ("average", "ensemble-probabilities")  # one that streams, and one that keeps all uploads
ONE_BY_ONE = {"network": {"rules": [{"kind": "delay", "value": 1.0 * i, "frm": [i], "to": [0]} for i in CLIENTS]}}
SLOW = {"network": {"rules": [{"kind": "delay", "value": 10.0, "frm": [5], "to": [0]}]}}


def silent(*nodes):
    """The same run, in which some clients never say anything."""
    return {"mods": [mod("Changing", *nodes, what="nothing")]}


def crash(time_s, *nodes, back_s=None):
    faults = [{"time_s": time_s, "node": node, "what": "crash"} for node in nodes]
    faults += [{"time_s": back_s, "node": node, "what": "return"} for node in nodes if back_s is not None]
    return {"churn": {"schedule": faults, "detect_s": 0.5}}


@pytest.fixture(scope="module", params=ALGORITHMS)
def algorithm(request):
    return request.param


@pytest.fixture(scope="module")
def whole(algorithm):
    return Run(protocol={"algorithm": algorithm})


@pytest.fixture(scope="module")
def five(algorithm):
    """Without client 5."""
    return Run(protocol={"algorithm": algorithm, "deadline_s": 5.0}, **silent(5))


def test_every_client_uploads_once_and_counts(whole, algorithm):
    assert whole.missing == {}
    assert whole.metric("uploads") == len(CLIENTS)
    assert whole.summary["messages"] == len(CLIENTS)
    assert set(whole.models) == {*CLIENTS, *([0] if algorithm == "average" else [])}
    assert len(set(whole.models.values())) == len(whole.models)
    assert whole.metric("accuracy") > 0.3


def test_who_is_late_is_named_and_has_no_part(five, whole, algorithm):
    late = Run(protocol={"algorithm": algorithm, "deadline_s": 5.0}, **SLOW)
    assert late.metric("closed_s") == five.metric("closed_s") == 5.0
    assert late.verdict == five.verdict != whole.verdict
    assert late.models.get(0) == five.models.get(0)
    assert (late.missing, five.missing) == ({"unheard": [5]}, {"unheard": [5]})


def test_who_uploads_while_the_aggregator_is_at_work_is_late(algorithm):
    alike = {"data": {"partition": "iid"}}  # all clients take the same time
    during_s = Run(protocol={"algorithm": algorithm}, **alike).metric("aggregated_s") / 2
    slow = {"rules": [{"kind": "delay", "value": during_s, "frm": [5], "to": [0]}]}
    run = Run(protocol={"algorithm": algorithm, "quorum": 5}, network=slow, **alike)
    assert run.missing == {"late": [5]}
    assert run.metric("uploads") == 5


def test_without_a_deadline_the_aggregator_waits_for_the_slowest(whole, algorithm):
    run = Run(protocol={"algorithm": algorithm}, **SLOW)
    assert run.metric("closed_s") > 10
    assert run.verdict == whole.verdict
    assert run.models == whole.models


def test_a_quorum_closes_early(algorithm):
    run = Run(protocol={"algorithm": algorithm, "quorum": 3, "deadline_s": 60.0}, **ONE_BY_ONE)
    assert run.metric("uploads") == 3
    assert run.missing == {"unheard": [4, 5, 6]}
    assert 3 < run.metric("closed_s") < 4


def test_who_is_turned_away_is_no_part_of_a_quorum(algorithm):
    wrong = mod("Changing", 2, what="number")
    run = Run(protocol={"algorithm": algorithm, "quorum": 3}, mods=[wrong], **ONE_BY_ONE)
    assert run.missing == {"unsound": [2], "unheard": [5, 6]}
    assert 4 < run.metric("closed_s") < 5


def test_it_closes_when_each_class_is_covered():
    options = {"algorithm": "ensemble-label-probabilities", "cover": 2}
    run = Run(protocol=options, data={"partition": "iid"}, **ONE_BY_ONE)
    assert run.metric("uploads") == 2
    everything = Run(protocol=options | {"cover": len(CLIENTS)}, data={"partition": "shards"})
    assert everything.metric("uploads") == len(CLIENTS)  # no class is at all clients: they have all been waited for


def test_who_crashes_before_uploading_is_gone(five, algorithm):
    run = Run(protocol={"algorithm": algorithm}, **crash(0.001, 5))
    assert run.missing == {"gone": [5]}
    assert run.verdict == five.verdict


def test_a_client_that_comes_back_uploads_what_it_trains_then(algorithm, whole):
    run = Run(protocol={"algorithm": algorithm, "deadline_s": 60.0}, **crash(0.001, 5, back_s=0.2))
    assert run.missing == {}
    assert run.metric("uploads") == len(CLIENTS)


def test_an_aggregator_that_comes_back_asks_for_uploads_again(whole, algorithm):
    """It crashes when all uploads but the slow one are there, and comes back after that has got lost too."""
    run = Run(protocol={"algorithm": algorithm}, **SLOW, **crash(8.0, 0, back_s=20.0))
    assert run.missing == {}
    assert run.verdict == whole.verdict
    assert run.models.get(0) == whole.models.get(0)
    assert run.own["sent_bytes"]["oneshot/again/1"] > 0


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ({"what": "shape"}, "malformed"),
        ({"what": "no_model"}, "malformed"),
        ({"what": "more_parts"}, "malformed"),
        ({"what": "claims_samples"}, "malformed"),
        ({"what": "claims_counts"}, "malformed"),
        ({"what": "negative"}, "malformed"),
        ({"what": "number"}, "unsound"),
        ({"what": "number", "value": math.inf}, "unsound"),
        ({"what": "number", "value": -1e30}, "unsound"),
        ({"what": "number", "value": 1.01e15}, "unsound"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_what_is_no_upload_is_named_and_changes_nothing(five, algorithm, what, why):
    run = Run(protocol={"algorithm": algorithm}, mods=[mod("Changing", 5, **what)])
    assert run.missing == {why: [5]}
    assert run.verdict == five.verdict
    assert run.models.get(0) == five.models.get(0)
    assert run.metric("closed_s") < 1  # nobody waits for who has spoken


@pytest.mark.parametrize(
    ("first", "then", "counts"),
    [("plain", "half", "whole"), ("shape", "plain", "whole"), ("plain", "shape", "whole"), ("half", "plain", "half")],
)
def test_the_first_upload_that_is_one_counts(whole, algorithm, first, then, counts):
    """The slow client keeps the aggregator waiting until both have come."""
    two = mod("Changing", 3, what=first, then=then)
    run = Run(protocol={"algorithm": algorithm}, mods=[two], **SLOW)
    assert run.summary["messages"] == len(CLIENTS) + 1
    assert run.missing == {}
    if counts == "half":
        once = Run(protocol={"algorithm": algorithm}, mods=[mod("Changing", 3, what="half")])
        assert run.verdict == once.verdict != whole.verdict
    else:
        assert run.verdict == whole.verdict


def test_late_uploads_lead_to_another_predictor_where_that_is_asked_for(whole, algorithm):
    """The first is made after 1.5 s, of one client; the others come one by one."""
    options = {"algorithm": algorithm, "deadline_s": 2.0, "incremental": True}
    run = Run(protocol=options, **ONE_BY_ONE)
    course = [row.value for row in run.result.recorder.rows() if row.metric == "uploads"]
    assert course == [1, 2, 3, 4, 5, 6]
    assert run.summary["rounds"] == 6
    assert run.missing == {}
    assert run.verdict["accuracy"] == whole.verdict["accuracy"]
    assert run.models.get(0) == whole.models.get(0)


@pytest.mark.parametrize("algorithm", ["ridge", "gaussian-head", "prototypes"])
@pytest.mark.parametrize("value", [-1e30, 3e38])
def test_absurd_parts_are_unsound_and_the_rest_makes_a_predictor(algorithm, value):
    run = Run(
        protocol={"algorithm": algorithm, "reveal": "statistics"},
        mods=[mod("Changing", 5, what="absurd_parts", value=value)],
    )
    assert run.missing == {"unsound": [5]}
    assert math.isfinite(run.metric("loss"))


def test_an_aggregator_that_is_gone_for_good_is_named():
    run = Run(churn={"schedule": [{"time_s": 0.0, "node": 0, "what": "leave"}]})
    assert run.summary["status"] == "failed"
    assert run.summary["error"] == "node 0, the aggregator, is gone before it has ended: away since 0 s"


def test_late_uploads_that_never_come_end_nothing_later(algorithm):
    options = {"algorithm": algorithm, "deadline_s": 2.0, "incremental": True}
    run = Run(protocol=options, **crash(0.001, 2, 3), mods=[mod("Changing", 4, what="shape")])
    assert run.missing == {"gone": [2, 3], "malformed": [4]}
    assert run.summary["rounds"] == 1


def test_nothing_that_counts_is_an_error_that_names_everybody():
    run = Run(nodes=3, mods=[mod("Changing", 1, what="shape"), mod("Changing", 2, what="number")])
    assert run.summary["status"] == "failed"
    assert "no upload counts" in run.summary["error"]
    assert "1 malformed, 2 unsound" in run.summary["error"]


def test_an_error_about_nobody_tells_who_is_gone_from_who_was_not_heard():
    run = Run(protocol={"deadline_s": 2.0}, **crash(0.001, *range(1, NODES)))
    assert run.summary["status"] == "failed"
    assert "1 gone, 2 gone, " in run.summary["error"]


@pytest.mark.parametrize(
    ("protocol", "nodes", "says"),
    [
        ({}, 1, "nodes: oneshot needs an aggregator and at least one client"),
        ({"quorum": 7}, NODES, "protocol.quorum: 7 of 6 clients; allowed: 0 to 6"),
        ({"cover": 2}, NODES, "protocol.cover: 'average' does not let clients tell which classes they have"),
        ({"cover": 9}, NODES, "protocol.cover: 9 of 6 clients; allowed: 0 to 6"),
    ],
)
def test_what_cannot_be_is_refused(protocol, nodes, says):
    with pytest.raises(ConfigError, match=says):
        checked(nodes=nodes, protocol=protocol)
