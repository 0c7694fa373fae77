"""Clocks that drift, disks that fill, garbage, and ways that are cut in one direction: the same in both worlds."""

import errno
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node import Context, Message, Observer, Protocol, Ref
from node.clock import VirtualClock
from node.codec import Limits
from node.config import DevicesSection, InjectedFaultSection, NetworkSection, TopologySection
from node.drifting import Drift, DriftingClock
from node.experiment.faults import drifts, full_disks, impairments, kept
from node.live.checkpoints import Checkpoints
from node.live.injection import Disk
from node.live.shaping import Impairment
from node.participants import Participants
from node.sim.garbling import Garbling
from node.sim.surroundings import Spell
from node.testing import run_protocol
from protocols.dpsgd import DPSGD

NODES = 4
QUICK = {
    "devices": DevicesSection(seconds_per_sample=1.0),
    "network": NetworkSection(latency_s=0.0, up_bps=1e12, down_bps=1e12),
}


def fault(kind, **options):
    return InjectedFaultSection(kind=kind, **options)


class Still:
    """A clock that shows what it is told."""

    def __init__(self, now_s=0.0):
        self.now_s = now_s
        self.posted = []

    def time(self):
        return self.now_s

    def post(self, delay_s, fn, arg, priority=0):
        self.posted.append(delay_s)


# Drift


def test_a_clock_without_drift_is_the_true_one():
    still = Still(12.5)
    clock = DriftingClock(still, [])
    clock.post(2.25, print, None)
    assert (clock.time(), still.posted) == (12.5, [2.25])


@pytest.mark.parametrize(
    ("true_s", "own_s"),
    [(0.0, 0.0), (10.0, 10.0), (11.0, 11.5), (14.0, 16.0), (20.0, 22.0), (30.0, 27.0), (31.0, 28.0)],
)
def test_it_gains_and_loses_while_it_drifts_and_keeps_that(true_s, own_s):
    assert DriftingClock(Still(true_s), [Drift(20.0, 30.0, -0.5), Drift(10.0, 14.0, 0.5)]).time() == own_s


@pytest.mark.parametrize(
    ("true_s", "delay_s", "lasts_s"),
    [(0.0, 5.0, 5.0), (10.0, 3.0, 2.0), (9.0, 4.0, 3.0), (13.0, 3.0, 2.5), (14.0, 3.0, 3.0), (12.0, 0.0, 0.0)],
)
def test_a_wait_lasts_as_long_as_that_clock_says(true_s, delay_s, lasts_s):
    still = Still(true_s)
    DriftingClock(still, [Drift(10.0, 14.0, 0.5)]).post(delay_s, print, None)
    assert still.posted == pytest.approx([lasts_s])


@given(
    true_s=st.floats(0, 100),
    delay_s=st.floats(0, 100),
    start_s=st.floats(0, 50),
    for_s=st.floats(0.01, 50),
    gain=st.floats(-0.9, 1),
)
def test_a_wait_is_over_when_the_clock_has_gone_so_far(true_s, delay_s, start_s, for_s, gain):
    still = Still(true_s)
    clock = DriftingClock(still, [Drift(start_s, start_s + for_s, gain), Drift(start_s + for_s, math.inf, -gain / 2)])
    before_s = clock.time()
    clock.post(delay_s, print, None)
    assert still.posted[0] >= 0
    still.now_s += still.posted[0]
    assert clock.time() - before_s == pytest.approx(delay_s, abs=1e-6)


class Waits(Protocol):
    """Waits ten seconds by its own clock, and says what that shows then."""

    async def run(self, ctx: Context) -> Ref | None:
        await ctx.sleep(10.0)
        ctx.record(round=0, now=ctx.now)
        await ctx.collect(Word, frm=ctx.peers(), timeout_s=10.0)
        ctx.record(round=1, now=ctx.now)
        return None


class Word(Message, name="test.kinds/word/1"):
    pass


def test_a_simulated_nodes_timers_follow_its_clock():
    run = run_protocol(Waits(Waits.Config()), NODES, faults=[fault("drift", nodes=(2,), drift=0.25)], **QUICK)
    rows = [row for row in run.recorder.rows() if row.metric == "now"]
    true_s = {(row.node, row.round): row.time_s for row in rows}
    own_s = {(row.node, row.round): row.value for row in rows}
    assert [true_s[node, 0] for node in range(NODES)] == pytest.approx([10.0, 10.0, 8.0, 10.0])
    assert [true_s[node, 1] for node in range(NODES)] == pytest.approx([20.0, 20.0, 16.0, 20.0])
    assert [own_s[node, 1] for node in range(NODES)] == pytest.approx([20.0] * NODES)


def test_what_a_device_computes_takes_no_longer_for_its_clock():
    options = {"faults": [fault("drift", nodes=(1,), drift=-0.5)], **QUICK}
    calm = run_protocol(DPSGD(DPSGD.Config(rounds=3)), NODES, **QUICK)
    assert run_protocol(DPSGD(DPSGD.Config(rounds=3)), NODES, **options).time_s == pytest.approx(calm.time_s)


def test_a_real_nodes_drifts_are_those_of_its_device():
    faults = [
        fault("drift", nodes=(1, 2), drift=0.1, at_s=1.0, for_s=2.0),
        fault("drift", nodes=(1,), drift=0.2, at_s=9),
    ]
    assert drifts(faults, 1) == [Drift(1.0, 3.0, 0.1), Drift(9.0, math.inf, 0.2)]
    assert drifts(faults, 2) == [Drift(1.0, 3.0, 0.1)]
    assert drifts(faults, 0) == []


# Garbage


class Count(Observer):
    """How much has come from whom, to all nodes."""

    def __init__(self):
        super().__init__()
        self.senders = []

    def received(self, ctx, sender, message):
        self.senders.append(sender)


@pytest.mark.parametrize("churning", [False, True])
def test_garbage_is_counted_and_not_taken_in_and_its_sender_cut_off_in_the_end(churning):
    count, rounds = Count(), Limits.refusals // 2
    faults = [fault("garbage", nodes=(1,), rate=0.9)]
    if churning:
        faults.append(fault("restart", nodes=(3,), at_s=5.0, for_s=1.0))
    run = run_protocol(DPSGD(DPSGD.Config(rounds=rounds, deadline_s=0.5)), NODES, faults=faults, mods=[count])
    came = count.senders.count(1)
    assert 0 < came < 0.2 * 2 * rounds
    assert run.refused_messages > 0.8 * 2 * rounds - (10 if churning else 0)
    if not churning:
        assert came + run.refused_messages == 2 * rounds
        assert [count.senders.count(node) for node in (0, 2, 3)] == [2 * rounds] * 3
    assert len(run.models) == NODES


def test_nobody_waits_for_one_who_sends_nothing_but_garbage():
    faults, rounds = [fault("garbage", nodes=(1,), rate=0.999)], 2 * Limits.refusals
    protocol = DPSGD(DPSGD.Config(rounds=rounds, deadline_s=0.5))
    run = run_protocol(protocol, NODES, faults=faults, mods=[Count()], **QUICK)
    assert run.refused_messages == 2 * Limits.refusals, "until both of its neighbours had enough"
    ended_s = max(row.time_s for row in run.recorder.rows() if row.node != 1)
    assert ended_s == pytest.approx(rounds + 0.5 * Limits.refusals, rel=0.02)


def test_spoilt_messages_are_the_same_in_every_run_and_follow_from_the_pair():
    spells = [Spell(frozenset({1}), 1.0, 5.0, 0.5)]
    both, alone = (Garbling(spells, 7, lambda node: node) for _ in range(2))
    parts = [both.part(1, (0, 2), 2.0) for _ in range(200)]
    assert [2 in garbled for _, garbled in parts] == [bool(alone.part(1, (2,), 2.0)[1]) for _ in range(200)]
    assert all(sorted([*well, *garbled]) == [0, 2] for well, garbled in parts)
    assert 70 < sum(0 in garbled for _, garbled in parts) < 130
    assert both.part(1, (0, 2), 5.0) == both.part(0, (0, 2), 2.0) == ((0, 2), ())
    assert both.part(1, (1,), 2.0) == ([1], []), "what a node tells itself is never on the wire"


# A full disk


class Counts(Protocol):
    """Keeps how often it has trained, and says with which number it began."""

    async def run(self, ctx: Context) -> Ref | None:
        first = int((ctx.restore() or {"count": 0})["count"])
        ctx.record(round=first, first=first)
        for count in range(first, 10):
            await ctx.train(ctx.initial_model())
            await ctx.checkpoint(count=count + 1)
        return None


@pytest.mark.parametrize(("full", "back"), [([], 6), ([{"at_s": 3.5}], 3), ([{"at_s": 3.5, "for_s": 2.0}], 6)])
def test_a_simulated_node_goes_on_from_what_it_kept_before_its_disk_was_full(full, back):
    faults = [fault("full-disk", nodes=(1,), **each) for each in full]
    faults.append(fault("restart", nodes=(1,), at_s=6.5, for_s=1.0))
    run = run_protocol(Counts(Counts.Config()), NODES, faults=faults, **QUICK)
    began = [(row.node, row.value) for row in run.recorder.rows() if row.metric == "first"]
    assert sorted(began) == sorted([*((node, 0) for node in range(NODES)), (1, back)])


def test_a_real_node_keeps_its_last_checkpoint_while_there_is_no_room(tmp_path):
    disk = Disk([(0.0, math.inf)])
    checkpoints = Checkpoints(tmp_path, disk.write)
    assert checkpoints.save({"round": 1}, {}), "the run has not begun"
    disk.began_s = time.monotonic()
    assert not checkpoints.save({"round": 2}, {})
    assert Checkpoints(tmp_path).load() == ({"round": 1}, {})
    with pytest.raises(OSError, match="No space left") as caught:
        disk.write(tmp_path / "x", b"")
    assert caught.value.errno == errno.ENOSPC


def test_a_disk_has_room_before_and_after(tmp_path):
    now_s = time.monotonic()
    for began_s, fits in ((now_s, True), (now_s - 150.0, False), (now_s - 1e6, True)):
        disk = Disk([(100.0, 200.0), (300.0, 400.0)])
        disk.began_s = began_s
        assert Checkpoints(tmp_path, disk.write).save({}, {}) == fits


def test_whose_disk_fills_up_keeps_checkpoints_at_all():
    faults = [
        fault("restart", nodes=(3,), for_s=1.0),
        fault("full-disk", nodes=(1, 3), at_s=2.0),
        fault("crash", nodes=(0,)),
    ]
    assert kept(faults) == [1, 3]
    assert full_disks(faults, 1) == [(2.0, math.inf)]
    assert full_disks(faults, 0) == []


# In one direction


def heard(*faults):
    """Who has heard whom, of four who all talk to each other."""
    pairs = set()

    class Pairs(Observer):
        def received(self, ctx, sender, message):
            pairs.add((sender, ctx.me))

    full = TopologySection(kind="full")
    run_protocol(DPSGD(DPSGD.Config(rounds=3, deadline_s=0.5)), NODES, topology=full, faults=faults, mods=[Pairs()])
    return pairs


ALL = {(sender, to) for sender in range(NODES) for to in range(NODES) if sender != to}


def test_a_partition_in_one_direction():
    assert heard(fault("partition", groups=((0, 1),))) == {(0, 1), (1, 0), (2, 3), (3, 2)}
    assert heard(fault("partition", groups=((0, 1),), one_way=True)) == ALL - {(0, 2), (0, 3), (1, 2), (1, 3)}


def test_a_loss_on_some_ways():
    assert heard(fault("loss", nodes=(0,), to=(1, 2), rate=0.999_999)) == ALL - {(0, 1), (0, 2)}
    assert heard(fault("loss", to=(1,), rate=0.999_999)) == ALL - {(0, 1), (2, 1), (3, 1)}


def test_the_same_ways_are_cut_in_a_real_run():
    parties = Participants(NODES, sybils=(0,))
    cut = [fault("partition", groups=((0, 1),), one_way=True)]
    lost = Impairment(0.0, math.inf, loss=1.0, peers=frozenset({2, 3}))
    assert [impairments(cut, parties, number) for number in range(5)] == [(lost,), (lost,), (), (), (lost,)]
    some = [fault("loss", nodes=(1,), to=(0,), rate=0.5), fault("delay", to=(3,), delay_s=1.0)]
    late = Impairment(0.0, math.inf, delay_s=1.0, peers=frozenset({3}))
    assert impairments(some, parties, 1) == (Impairment(0.0, math.inf, loss=0.5, peers=frozenset({0, 4})), late)
    assert impairments(some, parties, 2) == (late,)


def test_the_virtual_clock_serves_a_drifting_one():
    clock = VirtualClock()
    done = []
    drifting = DriftingClock(clock, [Drift(0.0, math.inf, 1.0)])
    drifting.post(4.0, lambda _: (done.append((clock.now, drifting.time())), clock.stop()), None)
    clock.run_forever()
    clock.close()
    assert done == [(2.0, 4.0)]
