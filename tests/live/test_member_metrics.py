"""What ``/metrics`` of a member says: each figure moves when that happens which it is about."""

from __future__ import annotations

import asyncio

from networks import network, until
from node.clock import VirtualClock
from node.daemon.standing import Phase
from node.live.beginning import MOST_KEPT, Beginning
from node.live.waits import TimedMailbox
from node.membership.statement import State, Statement
from node.membership.vocabulary import Gossip
from node.message import Message

MANY = 1_000_000


class Round(Message, name="test.member/round/1", key=("round",)):
    round: int


SLOT = Round(round=0).slot


async def figures(net, name):
    """All figures of a node, by name with labels."""
    lines = (await net.get(name, "metrics")).splitlines()
    pairs = [line.rpartition(" ") for line in lines if not line.startswith("#")]
    return {name.strip(): float(value) for name, _, value in pairs}


async def reaches(net, name, what, least):
    """Wait until a figure of a node is so large."""
    async with asyncio.timeout(60):
        while (await figures(net, name)).get(what, 0.0) < least:
            await asyncio.sleep(0.05)


async def test_rounds_mixes_waits_checkpoints_and_probes_are_timed(tmp_path):
    async with network(tmp_path, 2, rounds=5) as net:
        await net.join("one", net.token())
        await net.phase(Phase.FINISHED)
        await reaches(net, "one", "starling_probe_rtt_seconds_count", 1)
        found = await figures(net, "one")
        counts = {what: found[f"starling_{what}_seconds_count"] for what in ("round", "train", "mix", "wait")}
        assert counts == {"round": 5, "train": 5, "mix": 5, "wait": 5}
        assert found["starling_checkpoint_seconds_count"] >= 5
        assert found["starling_round_seconds_sum"] >= found["starling_train_seconds_sum"] > 0
        assert 0 < found["starling_probe_rtt_seconds_sum"] < 60
        assert found["starling_rounds_partial_total"] == found["starling_refutations_total"] == 0
        assert found["starling_checkpoint_age_seconds"] >= 0
        assert abs(found["starling_clock_ahead_seconds"]) < 30


async def test_a_member_that_goes_is_a_broken_link_a_partial_round_and_lost_messages(tmp_path):
    async with network(tmp_path, 2, rounds=MANY, deadline_s=0.2) as net:
        one = await net.join("one", net.token())
        await net.phase(Phase.RUNNING)
        await until(lambda: one.standing.progress()["round"])
        before = await figures(net, "founder")
        assert before["starling_disconnects_total"] == 0
        assert await net.stop("one") == 0
        await until(lambda: net.daemons["founder"].standing.lost)
        await reaches(net, "founder", 'starling_dropped_total{queue="send",reason="gone"}', 1)
        after = await figures(net, "founder")
        assert after["starling_rounds_partial_total"] > before["starling_rounds_partial_total"]


async def test_a_member_that_is_accused_objects_and_counts_it(tmp_path):
    async with network(tmp_path, 2, rounds=1) as net:
        one = await net.join("one", net.token())
        await net.phase(Phase.FINISHED)
        meeting = one.standing.joining
        machine, accuser = meeting._machine, net.daemons["founder"].standing.joining
        accusation = Statement(State.SUSPECT, 1, machine.incarnation, 0, b"")
        signed = accusation._replace(signature=accuser._members.sign(accusation.signed_bytes))
        before = machine.incarnation
        meeting._membership.hear(0, Gossip((signed,)))
        assert (await figures(net, "one"))["starling_refutations_total"] == 1
        assert machine.incarnation == before + 1


# The parts


def on_the_clock(main):
    async def inside():
        return await main(asyncio.get_running_loop())

    with asyncio.Runner(loop_factory=VirtualClock) as runner:
        return runner.run(inside())


def waits(*arrivals, frm, timeout_s=None):
    """Who was heard, and what was told of the wait: that it took some time, and whether it was partial."""
    told = []

    async def main(clock):
        mailbox = TimedMailbox(9, clock, lambda seconds, is_partial: told.append((seconds >= 0, is_partial)))
        for time_s, sender in arrivals:
            clock.post(time_s, lambda sender: mailbox.put(sender, Round(round=0)), sender)
        await asyncio.sleep(1)
        outcome = mailbox.collect(SLOT, frm, (), timeout_s=timeout_s, quorum=None, grace_s=0.0)
        return list(await outcome if isinstance(outcome, asyncio.Future) else outcome)

    return on_the_clock(main), told


def test_a_wait_for_all_is_told_and_whole():
    assert waits((2.0, 1), (3.0, 2), frm=[1, 2]) == ([1, 2], [(True, False)])
    assert waits((0.5, 1), (0.6, 2), frm=[1, 2]) == ([1, 2], [(True, False)])


def test_a_wait_that_ends_without_some_is_partial():
    assert waits((2.0, 1), frm=[1, 2], timeout_s=5.0) == ([1], [(True, True)])


def test_a_wait_for_anybody_is_never_partial():
    assert waits(frm=None, timeout_s=5.0) == ([], [(True, False)])


def test_a_wait_that_is_given_up_is_not_told():
    told = []

    async def main(clock):
        mailbox = TimedMailbox(9, clock, lambda *each: told.append(each))
        mailbox.collect(SLOT, [1], (), timeout_s=None, quorum=None, grace_s=0.0).cancel()
        await asyncio.sleep(1)

    on_the_clock(main)
    assert told == []


def test_what_comes_too_early_is_kept_in_order_and_in_bounds():
    beginning, seen = Beginning(), []
    for number in range(MOST_KEPT + 3):
        beginning.when_begun(lambda ctx, number=number: seen.append((ctx, number)))
    assert seen == []
    beginning.begin("context")
    assert seen == [("context", number) for number in range(MOST_KEPT)]
    assert beginning.refused == 3
    beginning.when_begun(lambda ctx: seen.append("now"))
    assert seen[-1] == "now"
