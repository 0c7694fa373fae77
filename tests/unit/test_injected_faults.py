"""``[[faults]]``: what the table may say, and what it means to a simulation and to real processes."""

import math
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node import Observer
from node.config import ChurnSection, DevicesSection, InjectedFaultSection, NetworkSection, check_faults
from node.errors import ConfigError
from node.experiment.faults import acts, check, impairments, restarts
from node.experiment.loading import load
from node.live.injection import Act
from node.live.shaping import Impairment
from node.participants import Participants
from node.sim.churn import Change
from node.sim.faults import surrounded
from node.sim.surroundings import surround
from node.testing import run_protocol
from protocols.dpsgd import DPSGD

NODES = 5


def fault(kind, **options):
    return InjectedFaultSection(kind=kind, **options)


def around(*faults, devices=None, churn=None):
    devices, churn = devices or DevicesSection(), churn or ChurnSection()
    return surrounded(surround(NODES, 0, devices, NetworkSection(), churn, learners=range(NODES)), faults, NODES)


# The table


@pytest.mark.parametrize(
    ("toml", "line"),
    [
        ('kind = "flood"', "faults.0.kind: input should be 'crash', 'restart', 'pause', 'slow', 'partition', 'loss'"),
        ('kind = "crash"', "faults.0: kind = 'crash' needs 'nodes'; its keys: at_s, nodes"),
        ('kind = "crash"\nnodes = [1]\nfor_s = 3', "faults.0: kind = 'crash' has no 'for_s'; its keys: at_s, nodes"),
        ('kind = "restart"\nnodes = [1]', "faults.0: kind = 'restart' needs 'for_s'; its keys: at_s, nodes, for_s"),
        ('kind = "pause"\nnodes = []\nfor_s = 1', "faults.0.nodes: tuple should have at least 1 item"),
        ('kind = "slow"\nnodes = [1]\nrate = 1', "faults.0.rate: input should be less than 1 (got 1)"),
        (
            'kind = "partition"\nnodes = [1]',
            "faults.0: kind = 'partition' has no 'nodes'; its keys: at_s, groups, for_s, one_way",
        ),
        ('kind = "loss"\nrate = 0', "faults.0.rate: input should be greater than 0 (got 0)"),
        ('kind = "delay"\njitter_s = 1', "faults.0: kind = 'delay' needs 'delay_s'; its keys: at_s, delay_s, nodes"),
        ('kind = "garbage"\nrate = 0.5', "faults.0: kind = 'garbage' needs 'nodes'"),
        ('kind = "drift"\nnodes = [1]', "faults.0: kind = 'drift' needs 'drift'; its keys: at_s, nodes, drift, for_s"),
        ('kind = "drift"\nnodes = [1]\ndrift = -1', "faults.0.drift: input should be greater than -1 (got -1)"),
        ('kind = "full-disk"', "faults.0: kind = 'full-disk' needs 'nodes'; its keys: at_s, nodes, for_s"),
        ('kind = "garbage"\nnodes = [1]\nrate = 0.5\nto = [2]', "faults.0: kind = 'garbage' has no 'to'"),
        ('kind = "loss"\nrate = 0.5\none_way = true', "faults.0: kind = 'loss' has no 'one_way'"),
        ('kind = "loss"\nrate = 0.5\nat_s = -1', "faults.0.at_s: input should be greater than or equal to 0"),
        ('kind = "loss"\nrate = 0.5\nuntil_s = 1', "faults.0.until_s: there is no such key"),
    ],
)
def test_what_is_written_wrong_is_said_in_one_line(tmp_path, toml, line):
    file = tmp_path / "e.toml"
    file.write_text(f"[[faults]]\n{toml}\n")
    with pytest.raises(ConfigError) as error:
        load(str(file))
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_all_kinds_can_be_written(tmp_path):
    file = tmp_path / "e.toml"
    file.write_text("""
faults = [
    { kind = "crash", nodes = [1], at_s = 3 },
    { kind = "restart", nodes = [2, 3], at_s = 1, for_s = 2 },
    { kind = "pause", nodes = [0], for_s = 2 },
    { kind = "slow", nodes = [4], rate = 0.5 },
    { kind = "partition", groups = [[0, 1], [2]], at_s = 1, for_s = 2 },
    { kind = "loss", rate = 0.1 },
    { kind = "delay", nodes = [1], delay_s = 0.1, jitter_s = 0.05 },
    { kind = "garbage", nodes = [1], rate = 0.1 },
    { kind = "partition", groups = [[3]], one_way = true },
    { kind = "loss", nodes = [0], to = [1, 2], rate = 0.5 },
    { kind = "drift", nodes = [1], drift = -0.1 },
    { kind = "full-disk", nodes = [1], at_s = 1, for_s = 2 },
]""")
    faults = load(str(file)).faults
    check_faults(faults, NODES)
    assert [(each.at_s, each.end_s) for each in faults[:4]] == [(3, math.inf), (1, 3), (0, 2), (0, math.inf)]


@pytest.mark.parametrize(
    ("faults", "line"),
    [
        ([fault("crash", nodes=(5,))], "faults[0].nodes: there is no node 5; allowed: 0 to 4"),
        ([fault("loss", rate=0.5, nodes=(1, 1))], "faults[0].nodes: names node 1 twice"),
        ([fault("loss", rate=0.5, to=(5,))], "faults[0].to: there is no node 5; allowed: 0 to 4"),
        (
            [fault("drift", nodes=(1,), drift=0.1), fault("drift", nodes=(1,), drift=0.2, at_s=3.0)],
            "faults[1].at_s: faults[0] has node 1 until inf s; begin after that",
        ),
        ([fault("partition", groups=((0, 1), (1, 2)))], "faults[0].groups: names node 1 twice"),
        ([fault("partition", groups=((0, 1), (7,)))], "faults[0].groups: there is no node 7"),
        ([fault("partition", groups=((0, 1), ()))], "faults[0].groups: one side has no node or all 5"),
        ([fault("partition", groups=((4, 3, 2, 1, 0),))], "faults[0].groups: one side has no node or all 5"),
        (
            [fault("crash", nodes=(1,), at_s=1.0), fault("pause", nodes=(0, 1), at_s=9.0, for_s=1.0)],
            "faults[1].at_s: faults[0] has node 1 until inf s; begin after that",
        ),
        (
            [fault("pause", nodes=(1,), at_s=2.0, for_s=1.0), fault("restart", nodes=(1,), at_s=1.0, for_s=1.0)],
            "faults[0].at_s: faults[1] has node 1 until 2 s; begin after that",
        ),
    ],
)
def test_faults_that_cannot_be_are_refused(faults, line):
    for world in (lambda: around(*faults), lambda: check(faults, Participants(NODES))):
        with pytest.raises(ConfigError) as error:
            world()
        assert line in str(error.value)


def test_one_after_the_other_is_allowed():
    check_faults([fault("pause", nodes=(1,), for_s=1.0), fault("restart", nodes=(1,), at_s=1.1, for_s=1.0)], NODES)


def test_what_hits_different_parts_of_a_node_may_coincide():
    check_faults([fault("restart", nodes=(1,), for_s=1.0), fault("full-disk", nodes=(1,))], NODES)
    check_faults([fault("crash", nodes=(1,)), fault("drift", nodes=(1,), drift=0.1)], NODES)


# Simulated


def test_no_faults_change_nothing():
    surroundings = surround(NODES, 0, DevicesSection(), NetworkSection(), ChurnSection(), learners=range(NODES))
    assert surrounded(surroundings, (), NODES) is surroundings


def test_process_faults_are_changes():
    found = around(
        fault("crash", nodes=(1,), at_s=3.0),
        fault("restart", nodes=(2,), at_s=5.0, for_s=2.0),
        fault("pause", nodes=(2,), at_s=1.0, for_s=2.0),
    )
    assert found.churn.absent == {}
    assert {node: list(changes) for node, changes in found.churn.changes.items()} == {
        1: [Change(3.0, "crash")],
        2: [Change(1.0, "pause"), Change(3.0, "return"), Change(5.0, "crash"), Change(7.0, "return")],
    }


def test_churn_of_other_nodes_stays():
    schedule = ({"time_s": 1.0, "node": 0, "what": "leave"},)
    churn = ChurnSection.model_validate({"schedule": schedule})
    found = around(fault("crash", nodes=(1,), at_s=3.0), churn=churn)
    assert {node: list(changes) for node, changes in found.churn.changes.items()} == {
        0: [Change(1.0, "leave")],
        1: [Change(3.0, "crash")],
    }
    with pytest.raises(ConfigError, match=r"faults\[0\].nodes: node 0 goes by \[churn\] already"):
        around(fault("crash", nodes=(0,)), churn=churn)


def test_a_slow_device_takes_longer_for_what_it_begins_in_that_time():
    found = around(fault("slow", nodes=(1,), rate=0.5, at_s=1.0, for_s=2.0), fault("slow", nodes=(2,), rate=0.25))
    assert [found.speed(1, time_s) for time_s in (0.9, 1.0, 2.9, 3.0)] == [1.0, 0.5, 0.5, 1.0]
    assert [found.speed(2, time_s) for time_s in (0.0, 1e9)] == [0.25, 0.25]
    assert found.speed(0, 1.0) == 1.0


def ended_s(*faults, rounds=4):
    """When a run of four rounds of a second each ends."""
    return run_protocol(
        DPSGD(DPSGD.Config(rounds=rounds, deadline_s=0.5)),
        NODES,
        devices=DevicesSection(seconds_per_sample=1.0),
        network=NetworkSection(latency_s=0.0, up_bps=1e12, down_bps=1e12),
        faults=faults,
    ).time_s


def test_faults_take_the_time_that_they_say():
    assert ended_s() == pytest.approx(4.0, abs=1e-6)
    assert ended_s(fault("slow", nodes=(1,), rate=0.8, at_s=1.0, for_s=2.0)) == pytest.approx(4.5, abs=1e-6)
    assert ended_s(fault("delay", delay_s=0.25, at_s=0.5, for_s=1.0)) == pytest.approx(4.25, abs=1e-6)
    assert ended_s(fault("partition", groups=((0,),), at_s=0.5, for_s=1.0)) == pytest.approx(4.5, abs=1e-6)
    assert ended_s(fault("pause", nodes=(1,), at_s=0.25, for_s=0.25)) == pytest.approx(4.25, abs=1e-6)


class Count(Observer):
    """What has come, to all nodes."""

    def __init__(self):
        super().__init__()
        self.senders = []

    def received(self, ctx, sender, message):
        self.senders.append(sender)


def test_a_loss_loses_about_its_share_of_the_messages_of_those_it_is_about():
    count, rounds = Count(), 300
    faults = [fault("loss", nodes=(1, 2), rate=0.2)]
    run = run_protocol(DPSGD(DPSGD.Config(rounds=rounds, deadline_s=0.5)), NODES, faults=faults, mods=[count])
    assert run.messages == rounds * 2 * NODES, "what is lost has been sent"
    came = [count.senders.count(node) for node in range(NODES)]
    assert [came[node] for node in (0, 3, 4)] == [2 * rounds] * 3
    assert all(0.75 < came[node] / (2 * rounds) < 0.85 for node in (1, 2)), came


def test_a_simulation_refuses_what_it_cannot_do():
    with pytest.raises(ConfigError, match=r"faults\[0\].kind: nodes that share a machine"):
        around(fault("pause", nodes=(1,), for_s=1.0), devices=DevicesSection(cores=2))


# Real


def test_what_is_done_to_processes_is_in_order_of_time():
    faults = [
        fault("restart", nodes=(2, 3), at_s=2.0, for_s=3.0),
        fault("crash", nodes=(1,), at_s=4.0),
        fault("pause", nodes=(0,), at_s=1.0, for_s=2.0),
        fault("loss", nodes=(4,), rate=0.1),
    ]
    assert list(acts(faults)) == [
        Act(1.0, 0, "stop"),
        Act(2.0, 2, "kill"),
        Act(2.0, 3, "kill"),
        Act(3.0, 0, "go_on"),
        Act(4.0, 1, "kill"),
        Act(5.0, 2, "revive"),
        Act(5.0, 3, "revive"),
    ]
    assert restarts(faults) == [2, 3]


@given(rate=st.floats(0.1, 0.9), at_s=st.floats(0, 10), for_s=st.floats(0.1, 5))
def test_a_slow_process_is_stopped_for_its_share_of_the_time_and_goes_on_in_the_end(rate, at_s, for_s):
    done = list(acts([fault("slow", nodes=(1,), rate=rate, at_s=at_s, for_s=for_s)]))
    assert [act.what for act in done] == ["stop", "go_on"] * (len(done) // 2)
    stopped_s = sum(after.at_s - before.at_s for before, after in zip(done[::2], done[1::2], strict=True))
    assert stopped_s == pytest.approx((1 - rate) * for_s, abs=0.1)
    assert all(before.at_s <= after.at_s for before, after in pairwise(done))


def test_who_is_slow_to_the_end_is_slow_without_end():
    assert len(list(islice(acts([fault("slow", nodes=(1,), rate=0.5)]), 1_000))) == 1_000


def test_impairments_are_a_senders_own():
    faults = [
        fault("loss", rate=0.1, at_s=1.0),
        fault("loss", nodes=(2,), rate=0.2, for_s=5.0),
        fault("garbage", nodes=(2,), rate=0.3),
        fault("delay", nodes=(3,), delay_s=0.1, jitter_s=0.2),
        fault("crash", nodes=(2,)),
    ]
    everybody = Impairment(1.0, float("inf"), loss=0.1)
    parties = Participants(NODES)
    assert impairments(faults, parties, 0) == (everybody,)
    assert impairments(faults, parties, 2) == (
        everybody,
        Impairment(0.0, 5.0, loss=0.2),
        Impairment(0.0, float("inf"), garbage=0.3),
    )
    assert impairments(faults, parties, 3) == (everybody, Impairment(0.0, float("inf"), delay_s=0.1, jitter_s=0.2))


def test_a_partition_lies_between_groups_and_the_rest_and_holds_for_all_on_a_device():
    parties = Participants(NODES, sybils=(1, 4))
    faults = [fault("partition", groups=((0, 1), (2,)), at_s=1.0, for_s=2.0)]
    sides = {0: {2, 3, 4, 6}, 1: {2, 3, 4, 6}, 2: {0, 1, 3, 4, 5, 6}, 3: {0, 1, 2, 5}, 5: {2, 3, 4, 6}, 6: {0, 1, 2, 5}}
    for number, others in sides.items():
        assert impairments(faults, parties, number) == (Impairment(1.0, 3.0, loss=1.0, peers=frozenset(others)),)


def test_nodes_with_further_identities_are_not_restarted():
    with pytest.raises(ConfigError, match=r"faults\[0\].kind: identities beyond the nodes cannot be restarted"):
        check([fault("restart", nodes=(1,), for_s=1.0)], Participants(NODES, sybils=(1,)))
