"""The pacer against the fluid links that it stands for: rates, fair shares, deadlines, bursts; and the delay."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.live.pacing import BURST_S, Delay, Pacer, earliest

RATE_BPS = 8_000.0
"""1,000 bytes a second, so that bytes are milliseconds."""


def pacer(**options) -> Pacer[str]:
    return Pacer(RATE_BPS, **options)


def take_all(link: Pacer[str], now_s: float) -> list[tuple[float, str]]:
    taken = []
    while (passed := link.take(now_s)) is not None:
        taken.append(passed)
    return taken


def run(link: Pacer[str], until_s: float = math.inf) -> list[tuple[float, str]]:
    """Look exactly when the pacer wants it, until nothing is left."""
    passed = []
    while (due_s := link.due_s) is not None and due_s <= until_s:
        passed += take_all(link, due_s)
    return passed


class Sender:
    """Flows that add their next piece when the one before has passed, as links do."""

    def __init__(self, link: Pacer[str], lateness_s=lambda: 0.0) -> None:
        self.link = link
        self.left: dict[str, list[int]] = {}
        self.ends: dict[str, float] = {}
        self.now_s = 0.0
        self._late_s = lateness_s

    def start(self, name: str, pieces: list[int], at_s: float = 0.0) -> None:
        self.left[name] = list(pieces)
        self._ask(name, at_s)

    def run(self, until_s: float = math.inf) -> dict[str, float]:
        """When each flow's last piece was seen to pass."""
        while True:
            for at_s, name in iter(lambda: self.link.take(self.now_s), None):
                self.ends[name] = self.now_s
                self._ask(name, at_s)
            if self.link.due_s is None or self.link.due_s > until_s:
                return self.ends
            self.now_s = max(self.now_s, self.link.due_s + self._late_s())

    def _ask(self, name: str, since_s: float) -> None:
        if self.left[name]:
            self.link.add(ord(name), self.left[name].pop(0), name, since_s)


class TestRate:
    def test_a_piece_takes_its_time(self):
        link = pacer()
        link.add(1, 500, "a", 2.0)
        assert take_all(link, 2.0) == []
        assert link.due_s == 2.5
        assert take_all(link, 2.499) == []
        assert take_all(link, 2.5) == [(2.5, "a")]
        assert link.due_s is None

    def test_pieces_of_one_flow_keep_their_order_and_follow_without_a_gap(self):
        link = pacer()
        for i, size in enumerate([300, 1, 200]):
            link.add(1, size, str(i), 0.0)
        assert run(link) == [(pytest.approx(0.3), "0"), (pytest.approx(0.301), "1"), (pytest.approx(0.501), "2")]

    def test_nothing_is_saved_up_by_being_idle(self):
        link = pacer()
        link.add(1, 100, "a", 0.0)
        assert len(run(link)) == 1
        link.add(1, 100, "b", 50.0)
        link.add(1, 100, "c", 50.0)
        assert take_all(link, 50.0) == []
        assert [at_s for at_s, _ in run(link)] == pytest.approx([50.1, 50.2])

    def test_counts_what_has_not_passed(self):
        link = pacer()
        assert link.queued_bytes == 0
        link.add(1, 100, "a", 0.0)
        link.add(2, 50, "b", 0.0)
        assert link.queued_bytes == 150
        take_all(link, 0.0)
        assert take_all(link, 0.05) == [(0.05, "b")]
        assert link.queued_bytes == 100
        run(link)
        assert link.queued_bytes == 0

    def test_something_without_bytes_passes_at_once_when_nothing_else_waits(self):
        link = pacer()
        link.add_last("bye", 3.0)
        assert take_all(link, 3.0) == [(3.0, "bye")]

    @given(st.lists(st.integers(1, 10_000), min_size=1, max_size=50), st.floats(1e3, 1e10))
    def test_any_pieces_take_together_what_their_bytes_take(self, sizes, rate_bps):
        link: Pacer[int] = Pacer(rate_bps)
        for i, size in enumerate(sizes):
            link.add(i % 3, size, i, 0.0)
        passed = run(link)
        assert sorted(item for _, item in passed) == list(range(len(sizes)))
        assert passed[-1][0] == pytest.approx(sum(sizes) * 8 / rate_bps)
        assert [at_s for at_s, _ in passed] == sorted(at_s for at_s, _ in passed)


class TestShares:
    def test_two_flows_take_turns(self):
        link = pacer()
        for _ in range(3):
            link.add(1, 100, "a", 0.0)
        for _ in range(3):
            link.add(2, 100, "b", 0.0)
        assert "".join(item for _, item in run(link)) == "ababab"

    def test_shares_are_of_bytes_and_not_of_pieces(self):
        sender = Sender(pacer())
        sender.start("a", [100] * 100)
        sender.start("b", [10] * 1000)
        ends = sender.run()
        assert ends["a"] == pytest.approx(20.0, abs=0.2)
        assert ends["b"] == pytest.approx(20.0, abs=0.2)

    def test_the_fluid_model_within_a_piece(self):
        # As one uplink of 1,000 bytes a second shares: 5,000 and 10,000 bytes end at 10 and 15 seconds.
        sender = Sender(pacer())
        sender.start("a", [16] * 312 + [8])
        sender.start("b", [16] * 625)
        assert sender.run() == pytest.approx({"a": 10.0, "b": 15.0}, abs=0.04)

    def test_a_late_start(self):
        sender = Sender(pacer())
        sender.start("a", [10] * 1000)
        sender.run(until_s=4.0)
        sender.start("b", [10] * 1000, at_s=4.0)
        assert sender.run() == pytest.approx({"a": 16.0, "b": 20.0}, abs=0.03)

    def test_what_is_to_be_first_waits_for_the_piece_in_service_at_most(self):
        link = pacer()
        for _ in range(50):
            link.add(1, 100, "large", 0.0)
            link.add(2, 100, "other", 0.0)
        assert len(run(link, until_s=2.05)) == 20
        link.add_first(10, "small", 2.05)
        link.add_first(10, "next", 2.05)
        passed = run(link)
        assert [item for _, item in passed][1:3] == ["small", "next"]
        assert "".join(item[0] for _, item in passed[3:]) == "ol" * 39 + "o"
        assert passed[1][0] == pytest.approx(2.11)

    def test_what_is_to_be_last_is_last_of_all_flows(self):
        link = pacer()
        for flow, item in ((1, "a"), (1, "b"), (2, "c"), (3, "d")):
            link.add(flow, 100, item, 0.0)
        link.add_last("bye", 0.0)
        link.add_first(1, "e", 0.0)
        link.add(2, 100, "later", 0.0)
        assert [item for _, item in run(link)][-2:] == ["bye", "later"]

    @given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 100)), min_size=2, max_size=6))
    def test_backlogged_flows_never_drift_apart_by_more_than_a_piece_each(self, flows):
        # Golestani 1994: what two backlogged flows have received differs by less than their largest pieces together.
        link, received = pacer(), {}
        for i, (pieces, size) in enumerate(flows):
            received[chr(97 + i)] = 0
            for _ in range(pieces):
                link.add(ord(chr(97 + i)), size, chr(97 + i), 0.0)
        sizes = {chr(97 + i): size for i, (_, size) in enumerate(flows)}
        left = {chr(97 + i): pieces for i, (pieces, _) in enumerate(flows)}
        for _, name in run(link):
            received[name] += sizes[name]
            left[name] -= 1
            for a in received:
                for b in received:
                    if left[a] and left[b]:
                        assert abs(received[a] - received[b]) <= sizes[a] + sizes[b]


class TestDeadlines:
    @pytest.mark.parametrize("late_s", [0.0, 0.001, 0.0099])
    def test_wakings_that_are_late_do_not_add_up(self, late_s):
        sender = Sender(pacer(), lambda: late_s)
        sender.start("a", [20] * 500)
        assert sender.run() == {"a": pytest.approx(10.0 + late_s)}

    @given(st.lists(st.floats(0, BURST_S), min_size=1, max_size=20))
    def test_nor_do_random_ones(self, latenesses):
        turn = iter(range(10**6))
        sender = Sender(pacer(), lambda: latenesses[next(turn) % len(latenesses)])
        sender.start("a", [7] * 300)
        sender.start("b", [11] * 200)
        ends = sender.run()
        assert max(ends.values()) == pytest.approx(4.3, abs=BURST_S + 1e-9)

    def test_a_long_sleep_is_not_made_up_for(self):
        link = pacer()
        for _ in range(1000):
            link.add(1, 5, "a", 0.0)
        assert len(take_all(link, 0.005)) == 1
        burst = take_all(link, 2.0)
        # The piece that was in service, and what a burst holds.
        assert len(burst) == 1 + BURST_S * 1000 / 5
        assert link.due_s == pytest.approx(2.005)

    def test_a_piece_longer_than_the_burst_is_alone(self):
        link = pacer()
        for _ in range(5):
            link.add(1, 100, "a", 0.0)
        take_all(link, 0.0)
        assert len(take_all(link, 7.0)) == 1
        assert link.due_s == pytest.approx(7.0 - BURST_S + 0.1)

    def test_where_bursts_are_not_limited_all_is_made_up_for(self):
        link = pacer(burst_s=math.inf)
        for _ in range(10):
            link.add(1, 100, "a", 0.0)
        take_all(link, 0.0)
        assert len(take_all(link, 5.0)) == 10


class TestTwoInARow:
    """An uplink into a downlink: a message takes the time of the slower, not of both."""

    @pytest.mark.parametrize(("up", "down"), [(1000, 1000), (1000, 250), (250, 1000), (1000, 999)])
    @pytest.mark.parametrize("pieces", [1, 2, 50])
    def test_one_flow_takes_the_slower_ones_time(self, up, down, pieces):
        arrivals = self.passing(up, {"a": [10] * pieces})
        ends = self.through(down, [("a", arrivals["a"])])
        assert ends["a"] == pytest.approx(pieces * 10 / min(up, down))

    def test_two_senders_share_a_downlink(self):
        a, b = (self.passing(1000, {name: [10] * 100})[name] for name in "ab")
        ends = self.through(1000, [("a", a), ("b", b)])
        assert ends == pytest.approx({"a": 2.0, "b": 2.0}, abs=0.02)

    def test_a_ring_is_as_fast_as_its_links(self):
        # Each of two senders has half of its uplink for us: together they fill our downlink, and none waits.
        a, b = (self.passing(1000, {name: [10] * 100, "x": [10] * 100})[name] for name in "ab")
        assert self.through(1000, [("a", a), ("b", b)]) == pytest.approx({"a": 2.0, "b": 2.0}, abs=0.02)

    @staticmethod
    def passing(rate: float, flows: dict[str, list[int]]) -> dict[str, list[tuple[float, int]]]:
        """When each piece of each flow leaves an uplink, and its size."""
        link: Pacer[tuple[str, int]] = Pacer(8.0 * rate)
        for i in range(max(map(len, flows.values()))):
            for name, pieces in flows.items():
                if i < len(pieces):
                    link.add(ord(name), pieces[i], (name, pieces[i]), 0.0)
        left: dict[str, list[tuple[float, int]]] = {name: [] for name in flows}
        while (due_s := link.due_s) is not None:
            while (passed := link.take(due_s)) is not None:
                left[passed[1][0]].append((passed[0], passed[1][1]))
        return left

    @staticmethod
    def through(rate: float, flows: list[tuple[str, list[tuple[float, int]]]]) -> dict[str, float]:
        """When each flow's last piece has passed a downlink at which its pieces arrive at these times."""
        link: Pacer[str] = Pacer(8.0 * rate, burst_s=math.inf)
        arrivals, ends = [], {}
        for name, pieces in flows:
            began_s = 0.0
            for at_s, size in pieces:
                arrivals.append((at_s, began_s, name, size))
                began_s = at_s
        for at_s, began_s, name, size in sorted(arrivals):
            while link.due_s is not None and link.due_s < at_s:
                ends.update({name: passed_s for passed_s, name in take_all(link, link.due_s)})
            link.add(ord(name), size, name, began_s)
            ends.update({name: max(passed_s, at_s) for passed_s, name in take_all(link, at_s)})
        ends.update({name: passed_s for passed_s, name in run(link)})
        return ends


class TestDelay:
    def test_holds_everything_for_its_time(self):
        path: Delay[str] = Delay(0.5)
        assert path.due_s is None
        assert path.take(100.0) is None
        path.add(1.0, "a")
        path.add(1.25, "b")
        assert path.due_s == 1.5
        assert path.take(1.49) is None
        assert path.take(1.5) == "a"
        assert path.take(1.5) is None
        assert path.due_s == 1.75
        assert path.take(9.0) == "b"

    def test_without_delay_passes_at_once(self):
        path: Delay[str] = Delay(0.0)
        path.add(1.0, "a")
        assert path.take(1.0) == "a"

    @given(st.lists(st.fractions(0, 10), max_size=20), st.fractions(0, 5))
    def test_keeps_order_and_loses_nothing(self, times, delay):
        path: Delay[Fraction] = Delay(delay)  # type: ignore[arg-type]
        for time in sorted(times):
            path.add(time, time)  # type: ignore[arg-type]
        taken = []
        while (due := path.due_s) is not None:
            item = path.take(due)
            assert item is not None
            assert due == item + delay
            taken.append(item)
        assert taken == sorted(times)


@pytest.mark.parametrize(
    ("times", "first"), [((), None), ((None, None), None), ((2.0, None, 1.0), 1.0), ((None, 0.0), 0.0)]
)
def test_the_earliest_of_what_is_known(times, first):
    assert earliest(*times) == first
