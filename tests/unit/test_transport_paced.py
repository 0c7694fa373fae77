"""Transports whose links are paced: rates, shares and latency against closed forms, and that nothing is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loopback import WAIT_S, Party, acquaint, model, note, parts
from node.config import Distribution, ExperimentConfig, NetworkSection
from node.errors import ConfigError
from node.experiment.participant import paces
from node.live import frames
from node.live.pacing import Pace
from node.sim.draws import per_node

MBIT = 1e6
RNG = np.random.Generator(np.random.Philox(key=[3, 1]))


@pytest.fixture
async def party() -> AsyncIterator[Callable[..., Party]]:
    made: list[Party] = []

    def make(node: int, up_bps: float = 1e9, down_bps: float = 1e9, latency_s: float = 0.0, **options: Any) -> Party:
        made.append(Party(node, pace=Pace(up_bps, down_bps, latency_s), **options))
        return made[-1]

    yield make
    for each in made:
        await each.transport.close(0.0)


async def connect(*pairs: tuple[Party, Party]) -> None:
    """Have a note pass each way that is measured later, so that no handshake is measured."""
    for sender, receiver in pairs:
        count = len(receiver.heard)
        await sender.transport.send(receiver.node, note(0))
        await receiver.hears(count + 1)
    for _, receiver in pairs:
        receiver.heard.clear()
        receiver.buffers.clear()


async def took(*waits: Any) -> float:
    begun = time.monotonic()
    await asyncio.gather(*waits)
    return time.monotonic() - begun


def payload(size_bytes: int) -> np.ndarray:
    return RNG.integers(0, 256, size_bytes, dtype=np.uint8)


class TestRates:
    """A paced link cannot be faster than its rate: that is asserted. How much slower is the machine's business."""

    @pytest.mark.parametrize(("up_mbit", "down_mbit"), [(8, 1000), (1000, 8), (8, 8)])
    async def test_a_model_takes_the_slower_ends_time(self, party: Callable[..., Party], up_mbit: int, down_mbit: int):
        a, b = party(0, up_bps=up_mbit * MBIT), party(1, down_bps=down_mbit * MBIT)
        acquaint(a, b)
        await connect((a, b))
        array = payload(200_000)
        taken = await took(a.transport.send(1, model(1, array)), b.hears(1))
        assert taken >= 0.199
        np.testing.assert_array_equal(np.frombuffer(b.buffers[0][0], np.uint8), array)

    async def test_an_uplink_is_shared_by_all_its_receivers(self, party: Callable[..., Party]):
        a, b, c = party(0, up_bps=8 * MBIT), party(1), party(2)
        acquaint(a, b, c)
        await connect((a, b), (a, c))
        encoded = model(1, payload(100_000))
        begun, heard_s = time.monotonic(), {}

        async def hears(receiver: Party) -> None:
            await receiver.hears(1)
            heard_s[receiver.node] = time.monotonic() - begun

        await asyncio.gather(a.transport.send(1, encoded), a.transport.send(2, encoded), hears(b), hears(c))
        # Shared fairly: the first is not there after half of the time, as it would be one after the other.
        assert min(heard_s.values()) >= 0.18
        assert max(heard_s.values()) >= 0.199

    async def test_a_downlink_is_shared_by_all_its_senders(self, party: Callable[..., Party]):
        a, b, c = party(0, down_bps=8 * MBIT), party(1), party(2)
        acquaint(a, b, c)
        await connect((b, a), (c, a))
        encoded = model(1, payload(100_000))
        taken = await took(b.transport.send(0, encoded), c.transport.send(0, encoded), a.hears(2))
        assert taken >= 0.199

    async def test_a_slow_receiver_leaves_the_uplink_to_the_others(self, party: Callable[..., Party]):
        # b would take 10 s at its 0.8 Mbit/s; c's model passes meanwhile.
        a, b, c = party(0, up_bps=80 * MBIT), party(1, down_bps=0.8 * MBIT), party(2)
        acquaint(a, b, c)
        await connect((a, b), (a, c))
        await a.transport.send(1, model(1, payload(1_000_000)))
        await a.transport.send(2, model(2, payload(1_000_000)))
        await c.hears(1)
        assert b.heard == []

    async def test_many_small_messages_are_held_to_the_rate_too(self, party: Callable[..., Party]):
        a, b = party(0, up_bps=8 * MBIT), party(1)
        acquaint(a, b)
        await connect((a, b))
        size = note(1, "x" * 1000).size_bytes
        begun = time.monotonic()
        for number in range(100):
            await a.transport.send(1, note(number, "x" * 1000))
        await b.hears(100)
        assert time.monotonic() - begun >= 100 * size * 8 / (8 * MBIT) - 0.012
        assert b.notes == list(range(100))


class TestLatency:
    @pytest.mark.parametrize("size_bytes", [10, 100_000])
    async def test_is_added_to_every_message(self, party: Callable[..., Party], size_bytes: int):
        a, b = party(0), party(1, latency_s=0.1)
        acquaint(a, b)
        await connect((a, b))
        assert await took(a.transport.send(1, model(1, payload(size_bytes))), b.hears(1)) >= 0.1

    async def test_messages_that_follow_do_not_add_it_up(self, party: Callable[..., Party]):
        a, b = party(0), party(1, latency_s=0.2)
        acquaint(a, b)
        await connect((a, b))
        begun = time.monotonic()
        for number in range(200):
            await a.transport.send(1, note(number))
        await b.hears(200)
        assert time.monotonic() - begun >= 0.2
        assert b.notes == list(range(200))


class TestDelivery:
    async def test_payloads_of_any_size_arrive_bit_for_bit(self, party: Callable[..., Party]):
        a, b = party(0, latency_s=0.005), party(1, latency_s=0.005)
        acquaint(a, b)
        chunk = frames.PACED.chunk_bytes
        arrays = [payload(size) for size in (0, 1, 1_400, 3_000, chunk - 1, chunk, 0, chunk + 1, 300_000, 0)]
        for count in range(1, len(arrays) + 1):
            await a.transport.send(1, parts(*arrays[:count]))
        await b.hears(len(arrays))
        for buffers in b.buffers:
            for array, buffer in zip(arrays, buffers, strict=False):
                np.testing.assert_array_equal(np.frombuffer(buffer, np.uint8), array)
        assert sorted(map(len, b.buffers)) == list(range(1, len(arrays) + 1))

    async def test_many_models_both_ways_among_many(self, party: Callable[..., Party]):
        parties = [party(node, 200 * MBIT, 200 * MBIT, 0.002) for node in range(4)]
        acquaint(*parties)
        array = payload(100_000)
        for number in range(3):
            for each in parties:
                for other in parties:
                    if other is not each:
                        await each.transport.send(other.node, model(number, array))
        for each in parties:
            await each.hears(9)
            for sender in range(4):
                numbers = [message.number for frm, message in each.heard if frm == sender]
                assert numbers == ([0, 1, 2] if sender != each.node else [])

    async def test_a_small_message_overtakes_a_model(self, party: Callable[..., Party]):
        a, b = party(0, up_bps=8 * MBIT), party(1, down_bps=8 * MBIT)
        acquaint(a, b)
        await connect((a, b))
        await a.transport.send(1, model(1, payload(200_000)))
        await a.transport.send(1, note(2))
        await b.hears(2)
        assert [message.number for _, message in b.heard] == [2, 1]

    async def test_counts_what_passes_once_it_has(self, party: Callable[..., Party]):
        a, b = party(0), party(1, latency_s=0.3)
        acquaint(a, b)
        messages = [note(1), model(2, payload(300_000)), note(3)]
        for message in messages:
            await a.transport.send(1, message)
        assert b.transport.counters().messages_received == 0
        await b.hears(3)
        size = sum(message.size_bytes for message in messages)
        counted = b.transport.counters()
        assert (counted.messages_received, counted.bytes_received, counted.refused) == (3, size, {})
        await a.transport.close(WAIT_S)
        assert a.transport.counters()[:2] == (3, size)

    async def test_close_sends_what_is_queued_and_who_stays_hears_all_before_the_loss(
        self, party: Callable[..., Party]
    ):
        a, b = party(0, up_bps=40 * MBIT), party(1, latency_s=0.1)
        acquaint(a, b)
        for number in range(20):
            await a.transport.send(1, note(number))
        await a.transport.send(1, model(20, payload(200_000)))
        heard_when_lost: list[int] = []
        lose = b.transport._on_lost
        b.transport._on_lost = lambda peer: (heard_when_lost.append(len(b.heard)), lose(peer))[1]
        await a.transport.close(WAIT_S)
        await b.until(lambda: b.lost)
        assert heard_when_lost == [21]

    async def test_a_peer_that_is_lost_takes_its_queue_with_it(self, party: Callable[..., Party]):
        a, b = party(0, up_bps=0.4 * MBIT), party(1)
        acquaint(a, b)
        await connect((a, b))
        await a.transport.send(1, model(1, payload(1_000_000)))
        for number in range(10):
            await a.transport.send(1, note(number, "x" * 1000))
        await b.transport.close(0.0)
        await a.until(lambda: a.lost)
        await a.transport.close(WAIT_S)
        assert a.transport._io.links.account(1).queued_bytes == 0
        assert a.transport.counters().messages_sent < 12


class TestRatesOfAnExperiment:
    def config(self, devices: Any = None, **network: Any) -> ExperimentConfig:
        return ExperimentConfig(nodes=5, seed=11, network=NetworkSection(**network), devices=devices or {})

    def test_are_the_simulations_draws(self):
        up = Distribution(distribution="lognormal", median=2e7, sigma=1.0)
        drawn = per_node(up, 5, 11, "up_bps")
        assert len(set(drawn)) == 5
        made = paces(self.config(pace=True, up_bps=up, down_bps=5e7, latency_s=0.02))
        assert made == [Pace(bps, 5e7, 0.02) for bps in drawn]

    def test_are_the_devices_where_their_trace_has_them(self, tmp_path: Path):
        trace = tmp_path / "trace.csv"
        rows = [f"{node},0.001,{node + 1}e6" for node in range(5)]
        trace.write_text("\n".join(["node,seconds_per_sample,up_bps", *rows]) + "\n")
        made = paces(self.config({"trace": str(trace)}, pace=True, up_bps=9e9, down_bps=5e7, latency_s=0.02))
        assert made == [Pace((node + 1) * 1e6, 5e7, 0.02) for node in range(5)]

    def test_are_not_held_unless_asked(self):
        assert paces(self.config(up_bps=1e6, latency_s={"geography": "cities"})) is None

    @pytest.mark.parametrize(
        "latency_s",
        [{"geography": "cities"}, {"distribution": "uniform", "high": 1.0}, {"matrix": "m", "trip": "one-way"}],
    )
    def test_take_one_latency_only(self, latency_s: Any):
        with pytest.raises(ConfigError, match=r"^network\.latency_s: .*write a number$"):
            paces(self.config(pace=True, latency_s=latency_s))

    def test_take_a_whole_number_of_seconds(self):
        made = paces(self.config(pace=True, latency_s=1))
        assert made is not None
        assert {each.latency_s for each in made} == {1.0}
