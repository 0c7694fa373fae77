"""The corners of a context: waits that are given up, numbers that are none, handlers that are overridden."""

import asyncio

import pytest

from node import DeadlineExceeded, Message, Protocol, ProtocolError, on
from node.config import NetworkSection, RecordSection, TopologySection
from node.experiment.loading import validated
from node.experiment.setup import prepare
from node.record import Recorder
from node.testing import Quadratic, run_protocol
from node.testing.quadratic import _METRICS

FAST = NetworkSection(latency_s=1, up_bps=1e30, down_bps=1e30)


class Plain(Message, name="test.edges/plain/1"):
    text: str = ""


class Numbered(Message, name="test.edges/numbered/1", key=("round",)):
    round: int


class Unordered(Message, name="test.edges/unordered/1", key=("parts",)):
    parts: tuple[int, ...]


def told(behave, nodes=2, protocol=Protocol, **options):
    """Run ``behave(ctx)`` on every node, and give what each has returned, by node."""
    said = {}

    class Told(protocol):
        async def run(self, ctx):
            said[ctx.me] = await behave(ctx)

    run_protocol(Told(), nodes, **{"network": FAST, **options})
    return said


def test_what_comes_for_a_wait_that_was_given_up_is_kept_for_the_next():
    async def behave(ctx):
        if ctx.me == 0:
            await ctx.sleep(5)
            await ctx.send(1, Plain(text="late"))
            return None
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                await ctx.collect(Plain, frm=(0,))
        await ctx.sleep(10)
        return (await ctx.collect(Plain, frm=(0,)))[0].text

    assert told(behave)[1] == "late"


def test_a_wait_that_was_given_up_may_begin_again_before_anything_comes():
    async def behave(ctx):
        if ctx.me == 0:
            await ctx.sleep(5)
            await ctx.send(1, Numbered(round=3))
            return None
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await ctx.collect(Numbered, frm=(0,), timeout_s=4, round=3)
        heard = await ctx.collect(Numbered, frm=(0,), timeout_s=90, round=3)
        return list(heard), ctx.now

    assert told(behave)[1] == ([0], 6), "the first wait's deadline ended the second"


def test_weights_are_in_the_order_of_those_who_were_heard():
    async def behave(ctx):
        if ctx.me:
            return None
        return ctx.weights((1, 2, 3)), ctx.weights((1, 2)), ctx.weights((2, 1))

    everybody, rising, falling = told(behave, 4, topology=TopologySection(kind="full"))[0]
    assert rising[1:] == falling[:0:-1]
    assert sum(rising) == pytest.approx(1)
    assert rising[0] == pytest.approx(everybody[0] + everybody[3])


@pytest.mark.parametrize("seconds", [-1, float("inf"), float("nan")])
def test_a_time_that_is_none_is_refused_wherever_it_is_given(seconds):
    async def behave(ctx):
        with pytest.raises(ProtocolError, match="no time to wait"):
            await ctx.sleep(seconds)
        with pytest.raises(ProtocolError, match="no time to wait"):
            await ctx.collect(Plain, frm=(1,), timeout_s=seconds)
        with pytest.raises(ProtocolError, match="no time to wait"):
            await ctx.request(1, Plain(), timeout_s=seconds)

    told(behave)


@pytest.mark.parametrize("to", [-1, 2, 99])
def test_a_node_that_is_not_there_cannot_be_sent_to(to):
    async def behave(ctx):
        with pytest.raises(ProtocolError, match="nodes are numbered 0 to 1"):
            await ctx.send(to, Plain())

    told(behave)


def test_a_send_can_be_spawned():
    async def behave(ctx):
        if ctx.me == 0:
            ctx.spawn(ctx.send(1, Plain(text="spawned")))
            return None
        return (await ctx.collect(Plain, frm=(0,)))[0].text

    assert told(behave)[1] == "spawned"


def test_an_overridden_handler_handles():
    class Asked(Protocol):
        @on(Plain)
        def answer(self, ctx, sender, message):
            return Plain(text="base")

    class Overridden(Asked):
        def answer(self, ctx, sender, message):
            return Plain(text="overridden")

    async def behave(ctx):
        return (await ctx.request(1, Plain())).text if ctx.me == 0 else None

    assert told(behave, protocol=Overridden)[0] == "overridden"


def test_nodes_of_a_test_run_share_nothing_that_their_protocol_holds():
    class Holding(Protocol):
        def __init__(self):
            super().__init__()
            self.held = []

        async def run(self, ctx):
            self.held.append(ctx.me)
            await ctx.sleep(1)
            assert self.held == [ctx.me]

    run_protocol(Holding(), 3)


def test_a_deadline_of_a_request_runs_while_it_is_being_sent():
    async def behave(ctx):
        if ctx.me == 1:
            return None
        with pytest.raises(DeadlineExceeded):
            await ctx.request(1, Plain(), timeout_s=0.5)
        return ctx.now

    assert told(behave)[0] == 0.5


def test_metrics_are_no_checkpoint():
    async def behave(ctx):
        with pytest.raises(ProtocolError, match="takes tensors"):
            await ctx.checkpoint(metrics=ctx.evaluate(ctx.initial_model()))

    told(behave)


def test_a_key_that_cannot_be_ordered_is_refused_at_the_first_send():
    async def behave(ctx):
        with pytest.raises(ProtocolError, match="a key field is an int or a str"):
            await ctx.send(1 - ctx.me, Unordered(parts=(1,)))

    told(behave)


def test_keys_of_different_types_end_the_run_in_one_line():
    async def behave(ctx):
        if ctx.me == 0:
            await ctx.send(1, Numbered(round=0))
            await ctx.send(1, Numbered(round="one"))
        else:
            await ctx.collect(Numbered, frm=(0,), round=0)
            await ctx.sleep(9)

    with pytest.raises(ProtocolError, match="Numbered: keys of one kind cannot be ordered"):
        told(behave)


def test_a_node_without_data_cannot_train():
    class Empty(Quadratic):
        def shard_size(self, node):
            return 0

    async def behave(ctx):
        with pytest.raises(ProtocolError, match=f"node {ctx.me} has no data to train on"):
            await ctx.train(ctx.initial_model())

    told(behave, workload=Empty(2))


def test_two_records_of_one_round_are_both_kept_of_the_last():
    recorder = Recorder(every=10)
    recorder.add(1.0, 0, 7, {"first": 1.0})
    recorder.add(1.5, 0, 7, {"second": 2.0})
    recorder.keep_last()
    assert [(row.metric, row.value) for row in recorder.rows()] == [("first", 1.0), ("second", 2.0)]
    assert RecordSection().every == 1
    assert _METRICS.names == ("accuracy", "loss")


@pytest.mark.parametrize("protocol", ["local", "fedavg", "epidemic"])
def test_a_topology_that_a_protocol_does_not_use_need_not_exist(protocol):
    degree = {"degree": 1} if protocol == "epidemic" else {}
    config = validated({"nodes": 3, "protocol": {"use": protocol, **degree}}, "test")
    assert prepare(config).topology.nodes == 3
