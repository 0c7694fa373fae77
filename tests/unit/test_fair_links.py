"""Max-min fair links: closed forms in exact fractions, a naive reference, and what must hold after every change."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.sim.network.links import FairLinks
from node.sim.network.maxmin import MaxMin

NEVER = float("inf")


def fractions(*numbers):
    return [Fraction(number) for number in numbers]


def assert_fair(capacities, paths, rates, tolerance=0):
    """No link above its capacity, and each flow has a bottleneck: necessary and sufficient for max-min fairness."""
    used = [sum(rates[flow] for flow in paths if link in paths[flow]) for link in range(len(capacities))]
    fastest = [
        max((rates[flow] for flow in paths if link in paths[flow]), default=0) for link in range(len(capacities))
    ]
    for link, capacity in enumerate(capacities):
        assert used[link] <= capacity * (1 + tolerance)
    for flow, path in paths.items():
        assert any(
            used[link] >= capacities[link] * (1 - tolerance) and rates[flow] >= fastest[link] * (1 - tolerance)
            for link in path
        ), f"flow {flow} over {path} has no bottleneck"


def naive_rates(capacities, paths):
    """Progressive filling over all flows: round by round, fix those of the tightest links at their share."""
    left, waiting, rates = list(capacities), dict(paths), {}
    while waiting:
        count = [sum(link in path for path in waiting.values()) for link in range(len(left))]
        level = min(left[link] / count[link] for link in range(len(left)) if count[link])
        tight = {link for link in range(len(left)) if count[link] and left[link] / count[link] == level}
        for flow in [flow for flow, path in waiting.items() if tight & set(path)]:
            for link in waiting.pop(flow):
                left[link] -= level
            rates[flow] = level
    return rates


class Play:
    """Flows over links until all have ended or stalled: one settle an instant, and everything checked after each."""

    def __init__(self, capacities, flows, *, changes=(), cuts=(), tolerance=0):
        self.links = FairLinks(capacities, tolerance)
        self.capacities, self.tolerance = list(capacities), tolerance
        self.sizes, self.paths, self.flowed = {}, {}, {}
        self.ends, self.rates, self.cut = {}, {}, {}
        self._now, self._running = 0, {}
        todo = [(at, self._start, (path, size)) for path, size, at in flows]
        todo += [(at, self._change, change) for at, *change in changes] + [(at, self._cut, flow) for at, *flow in cuts]
        self._todo = sorted(todo, key=lambda entry: entry[0])
        while self._todo or self.links.next_end_s() < NEVER:
            self._instant(min(self._todo[0][0] if self._todo else NEVER, self.links.next_end_s()))

    def _instant(self, now):
        for flow, rate in self._running.items():
            self.flowed[flow] += rate * (now - self._now)
        self._now = now
        for flow in self.links.take_ended(now):
            self.ends[flow] = now
            self._over(flow)
            self._assert_all_of(flow, self.flowed[flow])
        while self._todo and self._todo[0][0] == now:
            _, act, arg = self._todo.pop(0)
            act(*arg)
        self.links.settle(now)
        self._running = {flow: self.links.rate(flow) for flow in self.paths}
        self.rates[now] = dict(self._running)
        assert_fair(self.capacities, self.paths, self._running, self.tolerance)
        for flow in self.paths:
            left = self.links.remaining(flow, now)
            self._assert_all_of(flow, left + self.flowed[flow])

    def _assert_all_of(self, flow, units):
        assert abs(units - self.sizes[flow]) <= self.tolerance * self.sizes[flow]

    def _start(self, path, size):
        flow = self.links.start(path, size)
        self.sizes[flow], self.paths[flow], self.flowed[flow] = size, path, 0

    def _change(self, link, capacity):
        self.links.set_capacity(link, capacity)
        self.capacities[link] = capacity

    def _cut(self, flow):
        self.cut[flow] = self.links.remaining(flow, self._now)
        self.links.end(flow)
        self._over(flow)

    def _over(self, flow):
        del self.paths[flow]
        self._running.pop(flow, None)


# Closed forms

UP = fractions(10, 100, 100)
EQUAL = [((0, 1), Fraction(100), 0), ((0, 2), Fraction(100), 0)]
SIXTY = Fraction(60)
PARKING = [((0, 1, 2), SIXTY, 0), ((0,), SIXTY, 0), ((1,), SIXTY, 0), ((2,), SIXTY, 0)]
CASES = {
    "one uplink, equal": (UP, EQUAL, (), {0: [5, 5]}, [20, 20]),
    "one uplink, unequal sizes": (
        UP,
        [((0, 1), Fraction(50), 0), ((0, 2), Fraction(100), 0)],
        (),
        {0: [5, 5], 10: [10]},
        [10, 15],
    ),
    "late start": (
        UP,
        [((0, 1), Fraction(100), 0), ((0, 2), Fraction(100), 4)],
        (),
        {0: [10], 4: [5, 5], 16: [10]},
        [16, 20],
    ),
    "asymmetric receiver": (fractions(10, 2, 100), EQUAL, (), {0: [2, 8]}, [50, Fraction(25, 2)]),
    "incast, one slow sender": (
        fractions(2, 10, 10, 12),
        [((sender, 3), SIXTY, 0) for sender in range(3)],
        (),
        {0: [2, 5, 5], 12: [2]},
        [30, 12, 12],
    ),
    "parking lot, equal": (fractions(12, 12, 12), PARKING, (), {0: [6, 6, 6, 6]}, [10, 10, 10, 10]),
    "parking lot, uneven": (
        fractions(12, 8, 20),
        PARKING,
        (),
        {0: [4, 8, 4, 16]},
        [15, Fraction(15, 2), 15, Fraction(15, 4)],
    ),
    "chain of up and down links": (
        fractions(6, 100, 10, 20, 12),  # up A, down B, down C, up D, down E
        [((0, 1), SIXTY, 0), ((0, 2), SIXTY, 0), ((3, 2), SIXTY, 0), ((3, 4), SIXTY, 0)],
        (),
        {0: [3, 3, 7, 12]},
        [20, 20, Fraction(60, 7), 5],
    ),
    "duplex": (
        fractions(10, 50, 20, 50),
        [((0, 3), Fraction(100), 0), ((2, 1), Fraction(100), 0)],
        (),
        {0: [10, 20]},
        [10, 5],
    ),
    "capacity change": (UP, EQUAL[:1], [(5, 0, Fraction(5))], {0: [10], 5: [5]}, [15]),
    "link off and on": (
        UP,
        EQUAL[:1],
        [(2, 0, Fraction(0)), (7, 0, Fraction(10))],
        {0: [10], 2: [0], 7: [10]},
        [15],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_closed_forms_exactly(case):
    capacities, flows, changes, rates, ends = CASES[case]
    play = Play(capacities, flows, changes=changes)
    for at, expected in rates.items():
        assert list(play.rates[at].values()) == expected
    assert [play.ends[flow] for flow in range(len(flows))] == ends


@pytest.mark.parametrize("case", CASES)
def test_closed_forms_in_floats(case):
    capacities, flows, changes, _, ends = CASES[case]
    play = Play(
        [float(capacity) for capacity in capacities],
        [(path, float(size), float(at)) for path, size, at in flows],
        changes=[(float(at), link, float(capacity)) for at, link, capacity in changes],
        tolerance=1e-9,
    )
    assert [play.ends[flow] for flow in range(len(flows))] == pytest.approx([float(end) for end in ends], rel=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_twice_the_capacity_takes_half_the_time(case):
    capacities, flows, changes, _, ends = CASES[case]
    play = Play(
        [2 * capacity for capacity in capacities],
        [(path, size, Fraction(at) / 2) for path, size, at in flows],
        changes=[(Fraction(at) / 2, link, 2 * capacity) for at, link, capacity in changes],
    )
    assert [2 * play.ends[flow] for flow in range(len(flows))] == ends


# Single steps


def test_a_flow_that_is_taken_away_leaves_its_share_to_the_others():
    play = Play(UP, EQUAL, cuts=[(4, 0)])
    assert play.cut == {0: 80}
    assert play.ends == {1: 12}


def test_all_flows_that_end_at_one_instant_end_together():
    links = FairLinks(fractions(*[10] * 20))
    flows = [links.start((up, 10 + down), Fraction(7)) for up in range(10) for down in range(10)]
    links.settle(Fraction(0))
    assert links.next_end_s() == 7
    assert links.take_ended(Fraction(7)) == flows
    assert links.next_end_s() == NEVER


def test_what_starts_and_ends_at_the_same_instant_leaves_no_trace():
    links = FairLinks(UP)
    staying = links.start((0, 1), Fraction(100))
    links.settle(Fraction(0))
    links.end(links.start((0, 2), Fraction(100)))
    links.settle(Fraction(5))
    assert links.rate(staying) == 10
    assert links.next_end_s() == 10


def test_a_flow_of_nothing_ends_when_it_starts_even_over_a_link_that_is_off():
    links = FairLinks(fractions(0, 10))
    nothing = links.start((0, 1), Fraction(0))
    links.settle(Fraction(3))
    assert links.take_ended(Fraction(3)) == [nothing]


def test_stalled_flows_are_told_with_the_link_that_stops_them():
    links = FairLinks(fractions(10, 100, 0))
    moving, stalled = links.start((0, 1), Fraction(10)), links.start((0, 2), Fraction(10))
    links.settle(Fraction(0))
    assert links.stalled() == {stalled: 2}
    assert links.rate(moving) == 10
    links.set_capacity(2, Fraction(3))
    links.settle(Fraction(1, 2))
    assert links.stalled() == {}
    assert (links.rate(moving), links.rate(stalled), links.capacity(2)) == (7, 3, 3)


def test_the_flows_of_a_link_are_in_the_order_of_starting():
    links = FairLinks(UP)
    flows = [links.start((0, 1 + n % 2), Fraction(1)) for n in range(6)]
    links.end(flows[2])
    assert list(links.flows(0)) == [0, 1, 3, 4, 5]
    assert list(links.flows(1)) == [0, 4]


def test_a_flow_asked_for_before_it_is_settled_has_all_its_units_left():
    links = FairLinks(UP)
    flow = links.start((0, 1), Fraction(9))
    assert links.remaining(flow, Fraction(5)) == 9
    assert links.next_end_s() == NEVER


def test_a_private_limit_is_one_more_link():
    """Three jobs of one core each on a machine of two, one of them limited to a quarter."""
    links = FairLinks(fractions(2, 1, 1, Fraction(1, 4)))
    jobs = [links.start((0, 1 + job), Fraction(1)) for job in range(3)]
    links.settle(Fraction(0))
    assert [links.rate(job) for job in jobs] == [Fraction(7, 8), Fraction(7, 8), Fraction(1, 4)]


def test_ends_that_are_put_off_again_and_again_take_no_more_room():
    """Each start makes all others slower; the queue of ends must not grow with the square of their number."""
    links = FairLinks([1e6, *[1e6] * 300])
    for flow in range(300):
        links.start((0, 1 + flow), 1e6)
        links.settle(flow * 1e-3)
    assert len(links._queue) <= 300
    for at in range(30):
        links.set_capacity(0, 1e6 + at)  # a little faster each time: all ends come earlier
        links.settle(0.3 + at * 1e-9)
    assert len(links._queue) <= 100 + 2 * 300


def test_a_change_far_away_touches_nobody():
    sharing = MaxMin(fractions(*[10] * 40))
    for pair in range(20):
        sharing.start((2 * pair, 2 * pair + 1))
    sharing.solve()
    added = sharing.start((0, 1))
    assert set(sharing.solve()) == {0, added}


def test_nothing_to_solve():
    sharing = MaxMin(fractions(1, 2))
    assert sharing.solve() == {}
    sharing.set_capacity(0, Fraction(0))
    assert sharing.solve() == {}


# Random ones


@st.composite
def networks(draw):
    links = draw(st.integers(1, 8))
    capacity = st.one_of(st.integers(0, 6), st.sampled_from([10**k for k in range(-3, 4)]))
    capacities = [Fraction(c).limit_denominator(1000) for c in draw(st.lists(capacity, min_size=links, max_size=links))]
    path = st.lists(st.integers(0, links - 1), min_size=1, max_size=4, unique=True).map(tuple)
    action = st.one_of(
        st.tuples(st.just("start"), path),
        st.tuples(st.just("end"), st.integers(0, 10**6)),
        st.tuples(st.just("set"), st.tuples(st.integers(0, links - 1), capacity.map(Fraction))),
    )
    instants = draw(st.lists(st.lists(action, max_size=6), min_size=1, max_size=12))
    return capacities, instants


def change(sharing, capacities, paths, actions):
    """Apply the changes of one instant to the solver and to the plain description."""
    for what, arg in actions:
        if what == "start":
            paths[sharing.start(arg)] = arg
        elif what == "end" and paths:
            flow = list(paths)[arg % len(paths)]
            sharing.end(flow)
            del paths[flow]
        elif what == "set":
            link, capacity = arg
            sharing.set_capacity(link, capacity)
            capacities[link] = capacity


@settings(max_examples=200)
@given(networks())
def test_any_changes_give_what_filling_anew_gives(network):
    capacities, instants = network
    sharing, paths = MaxMin(capacities, tolerance=0), {}
    for actions in instants:
        change(sharing, capacities, paths, actions)
        before = dict(sharing.rates)
        solved = sharing.solve()
        assert sharing.rates == naive_rates(capacities, paths)
        assert_fair(capacities, paths, sharing.rates)
        assert all(sharing.rates[flow] == rate for flow, rate in before.items() if flow not in solved)


@settings(max_examples=100)
@given(networks())
def test_floats_are_close_to_fractions(network):
    capacities, instants = network
    sharing, paths = MaxMin([float(capacity) for capacity in capacities]), {}
    for actions in instants:
        change(sharing, capacities, paths, actions)
        sharing.solve()
        exact = {flow: float(rate) for flow, rate in naive_rates(capacities, paths).items()}
        assert sharing.rates == pytest.approx(exact, rel=1e-8, abs=1e-9)


@settings(max_examples=100)
@given(networks(), st.integers(0, 2**32))
def test_an_added_flow_never_makes_the_slowest_faster(network, seed):
    capacities, instants = network
    sharing, paths = MaxMin(capacities, tolerance=0), {}
    change(sharing, capacities, paths, [action for actions in instants for action in actions])
    sharing.solve()
    if paths:
        slowest = min(sharing.rates.values())
        sharing.start(list(paths.values())[seed % len(paths)])
        sharing.solve()
        assert min(sharing.rates.values()) <= slowest


@settings(max_examples=100)
@given(networks(), st.randoms(use_true_random=False))
def test_numbers_of_links_and_flows_do_not_matter(network, random):
    capacities, instants = network
    sharing, paths = MaxMin(capacities, tolerance=0), {}
    change(sharing, capacities, paths, [action for actions in instants for action in actions])
    sharing.solve()
    place = list(range(len(capacities)))
    random.shuffle(place)
    order = list(paths)
    random.shuffle(order)
    other = MaxMin([capacities[place.index(link)] for link in range(len(place))], tolerance=0)
    flow_of = {flow: other.start([place[link] for link in paths[flow]]) for flow in order}
    other.solve()
    assert {flow: other.rates[flow_of[flow]] for flow in paths} == sharing.rates


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(2, 6), st.integers(1, 25))
def test_every_byte_arrives_or_is_cut_exactly(seed, nodes, flows):
    """Random starts, cuts and capacities (0 too) in fractions: Play checks fairness and conservation at each event."""
    rng = np.random.default_rng(seed)
    capacities = fractions(*rng.integers(1, 9, 2 * nodes).tolist())
    instants = np.sort(rng.integers(0, 20, flows)).tolist()
    begun = [
        (tuple(rng.choice(2 * nodes, 2, replace=False).tolist()), Fraction(int(rng.integers(1, 100)), 7), Fraction(at))
        for at in instants
    ]
    off = int(rng.integers(2 * nodes))
    play = Play(capacities, begun, changes=[(5, off, Fraction(0)), (9, off, Fraction(4))])
    assert len(play.ends) == flows
    assert not play.paths


def test_capacities_over_six_orders():
    rng = np.random.default_rng(3)
    capacities = (10 ** rng.uniform(2, 8, 60)).tolist()
    flows = [
        ((int(a), 30 + int(b)), float(10 ** rng.uniform(3, 7)), float(at))
        for a, b, at in zip(rng.integers(0, 30, 150), rng.integers(0, 30, 150), rng.uniform(0, 50, 150), strict=True)
    ]
    play = Play(capacities, flows, tolerance=1e-6)
    assert len(play.ends) == 150


def test_a_thousand_flows_incrementally_and_from_scratch():
    """Many changes one by one differ from one solution of what is there in the end by rounding alone."""
    rng = np.random.default_rng(5)
    capacities = rng.lognormal(14, 0.9, 400).tolist()
    sharing, paths = MaxMin(capacities), {}
    for _ in range(1000):
        path = int(rng.integers(200)), 200 + int(rng.integers(200))
        paths[sharing.start(path)] = path
    sharing.solve()
    for _ in range(200):
        gone = list(paths)[int(rng.integers(len(paths)))]
        path = int(rng.integers(200)), 200 + int(rng.integers(200))
        sharing.end(gone)
        del paths[gone]
        paths[sharing.start(path)] = path
        sharing.solve()
    anew = MaxMin(capacities)
    for path in paths.values():
        anew.start(path)
    anew.solve()
    assert list(sharing.rates.values()) == pytest.approx(list(anew.rates.values()), rel=1e-12)
    assert list(sharing.rates) == list(paths)
