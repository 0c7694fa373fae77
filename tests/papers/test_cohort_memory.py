"""A leader's memory does not grow with its cohort."""

import tracemalloc

import numpy as np
import pytest

from node import Observer, Protocol
from node.config import DevicesSection, NetworkSection
from node.testing import Quadratic, run_protocol
from protocols.cohort_round import Update
from protocols.cpfl import CPFL
from protocols.running_sum import RunningSum

# A training takes about 1 s, a message 0.02 s.
PLACE = {
    "devices": DevicesSection(seconds_per_sample=1.0),
    "network": NetworkSection(latency_s=0.02, up_bps=1e30, down_bps=1e30),
}
WINDOW = 8


class Held(Observer):
    """How many members' models the leader, node 0, has heard and not let go of: the most there ever were."""

    most = 0

    def __init__(self):
        super().__init__()
        self.alive = []

    def received(self, ctx, sender, message):
        if ctx.me == 0 and isinstance(message, Update):
            graph = ctx._world.graph
            graph.drain()
            self.alive.append(message.model.id)
            self.alive = [id for id in self.alive if graph.uses(id)]
            Held.most = max(Held.most, len(self.alive))


class Spread(Quadratic):
    """Members answer one after another, but by no means in the order of their numbers."""

    def samples(self, node, steps):
        return 1 + node * 617 % 1009 / 1009


def most_held(members, **config):
    Held.most = 0
    stopping = {"rule": "budget", "most_rounds": 1}
    options = {"cohorts": 1, "leader": "fixed", "window": WINDOW, "checkpoint": "last", "stopping": stopping, **config}
    run_protocol(CPFL(CPFL.Config(**options)), members, workload=Spread(members), mods=[Held()], **PLACE)
    return Held.most


@pytest.mark.parametrize("config", [{}, {"correction": "scaffold"}])
def test_a_leader_of_a_thousand_holds_no_more_models_than_one_of_fifty(config):
    few, many = most_held(50, **config), most_held(1000, **config)
    assert many <= 1.05 * few
    assert few <= 2 * WINDOW + 1, "as many wait for their turn as may, and as many for the next partial sum"


def test_it_is_the_window_that_bounds_them():
    assert most_held(50, window=50) > 2 * most_held(50, window=4)


class Streaming(Protocol):
    """Models that come to a node from nowhere, with an allocation of their own, in the order of no numbers."""

    senders = 0
    peak_bytes = 0

    async def run(self, ctx):
        size, order = 20_000, np.random.default_rng(3).permutation(self.senders)
        running = RunningSum(ctx, range(self.senders), WINDOW)
        tracemalloc.start()
        for sender in order.tolist():
            value = np.full(size, float(sender))
            running.add(sender, ctx._world.graph.constant(value, ctx.initial_model().spec), 1 / self.senders)
            await ctx.sleep(0.01)
        total = await ctx.value(running.total())
        Streaming.peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert total == pytest.approx(np.full(size, (self.senders - 1) / 2))


def test_so_do_its_bytes():
    """Less than 5% from 50 to 1,000, measured by what Python allocates."""
    peaks = []
    for Streaming.senders in (50, 1000):
        run_protocol(Streaming(), 1, workload=Quadratic(1, np.zeros((1, 20_000))))
        peaks.append(Streaming.peak_bytes)
    assert peaks[1] < 1.05 * peaks[0]
