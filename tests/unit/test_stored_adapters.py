"""Storage nodes under the virtual clock: who keeps what, who is asked, and what becomes of it when one goes."""

from collections import defaultdict
from typing import ClassVar

import pytest

from node import Context, Message, Protocol, on
from node.config import ChurnSection, FaultSection, NetworkSection
from node.emulated import SizedShelf, name_of
from node.placement.rendezvous import equally, preference
from node.testing import run_protocol
from node.world import Done
from protocols.directory import Directory
from protocols.fetching import Fetching
from protocols.serving import Serving
from protocols.serving_messages import Absent, Data, Describe, Described, Get, Heard, Want
from protocols.storing import Storing

NETWORK = NetworkSection(model="fifo", latency_s=0.001, up_bps=1e8, down_bps=1e8)
MODEL = {"layers": 4, "hidden": 64, "targets": 2, "chunk_bytes": 4096}
ADAPTER_BYTES = 4 * 2 * 16 * 64 * 2 * 2


def config(**changed):
    workload = {
        "requests": 400,
        "arrivals": {"rate_per_s": 20},
        "prompt_tokens": (10, 100),
        "output_tokens": (1, 20),
        **changed.pop("workload", {}),
    }
    values = {
        "storage": 4,
        "adapters": 40,
        "model": MODEL,
        "cache_bytes": 4 * ADAPTER_BYTES,
        "expected_bps": 1e8,
        "announce_s": 1.0,
        "keeps": False,
        "workload": workload,
    }
    return Serving.Config(**{**values, **changed})


@pytest.fixture
def stores(monkeypatch):
    """The storage parts of the nodes that were ever there, the latest life of each."""
    made = {}
    begin = Storing.__init__

    def watched(self, ctx, *args):
        begin(self, ctx, *args)
        made[ctx.me] = self

    monkeypatch.setattr(Storing, "__init__", watched)
    return made


def serve(made, nodes=6, **world):
    outcome = run_protocol(Serving(made), nodes=nodes, network=NETWORK, **world)
    requests = defaultdict(dict)
    for row in outcome.recorder.rows():
        kind, _, what = row.metric.partition("/")
        if kind == "request":
            requests[row.round][what] = row.value
    return outcome, dict(sorted(requests.items()))


def crash(node, time_s=3.0, back_s=None):
    faults = [FaultSection(time_s=time_s, node=node, what="crash")]
    if back_s is not None:
        faults.append(FaultSection(time_s=back_s, node=node, what="return"))
    return ChurnSection(schedule=tuple(faults), detect_s=0.5)


def replicas(stores, alive, name):
    return [node for node in alive if name in stores[node]._held]


# Who keeps what


def test_every_adapter_is_where_its_hashes_say_and_nowhere_else(stores):
    serve(config(replica_budget=1e-6))
    for name in map(name_of, range(40)):
        assert replicas(stores, range(4), name) == sorted(preference(name, equally([0, 1, 2, 3]))[:2])


def test_what_is_popular_has_more_replicas_and_what_is_not_keeps_the_least(stores):
    popularity = {"kind": "zipf", "alpha": 2.0}
    serve(config(storage=6, replica_budget=2.0, workload={"requests": 600, "popularity": popularity}), nodes=8)
    counts = [len(replicas(stores, range(6), name_of(number))) for number in range(40)]
    assert counts[0] > 2
    assert min(counts) == 2
    assert sum(counts[20:]) == 2 * 20


def test_popularity_that_is_over_costs_its_replicas(stores, monkeypatch):
    """Who is not asked any more to keep an adapter, after others have become popular, lets it go."""
    seen = []
    let_go = Storing._let_go

    def watched(self):
        let_go(self)
        seen.append((self._ctx.now, {name: len(replicas(stores, range(6), name)) for name in map(name_of, range(40))}))

    monkeypatch.setattr(Storing, "_let_go", watched)
    workload = {"requests": 1000, "popularity": {"kind": "zipf", "alpha": 2.0, "drifts": 1}}
    serve(config(storage=6, replica_budget=2.0, workload=workload), nodes=8)
    middle = next(counts for time_s, counts in seen if time_s > seen[-1][0] / 2)
    popular = [name for name, count in middle.items() if count > 2]
    last = seen[-1][1]
    assert popular
    assert any(last[name] == 2 for name in popular)
    assert any(last[name] > 2 for name in last if name not in popular)


# When one goes


@pytest.mark.parametrize("node", [0, 1, 2, 3])
def test_a_storage_node_that_dies_changes_nothing_but_times(node):
    _, without = serve(config())
    outcome, requests = serve(config(), churn=crash(node))
    assert list(outcome.lost) == [node]
    assert list(requests) == list(without)
    assert [each["tokens"] for each in requests.values()] == [each["tokens"] for each in without.values()]
    assert not any(each["error"] for each in requests.values())


def test_what_a_dead_node_kept_is_copied_to_the_next_in_line(stores):
    outcome, _ = serve(config(replica_budget=1e-6), churn=crash(1))
    copied = sum(row.value for row in outcome.recorder.rows() if row.metric == "store/copied")
    assert copied > 0
    for name in map(name_of, range(40)):
        assert set(preference(name, equally([0, 2, 3]))[:2]) <= set(replicas(stores, (0, 2, 3), name))


def test_a_node_that_comes_back_has_what_it_had_and_strangers_go_again(stores):
    serve(config(replica_budget=1e-6, workload={"requests": 600}), churn=crash(1, back_s=8.0))
    for name in map(name_of, range(40)):
        assert replicas(stores, range(4), name) == sorted(preference(name, equally([0, 1, 2, 3]))[:2])


def test_all_but_one_may_die_one_after_another(stores):
    faults = tuple(FaultSection(time_s=4.0 + 5.0 * node, node=node, what="crash") for node in (0, 1, 2))
    _, requests = serve(config(), churn=ChurnSection(schedule=faults, detect_s=0.5))
    assert not any(each["error"] for each in requests.values())
    assert len(stores[3]._held) == 40


def test_without_any_storage_left_requests_end_with_an_error():
    made = config(storage=1, replicas=1, fetch_limit_s=1.0, retry_s=0.5)
    _, requests = serve(made, nodes=3, churn=crash(0, time_s=2.0))
    assert len(requests) == 400
    errors = [bool(each["error"]) for each in requests.values()]
    assert not any(errors[:20])
    assert all(errors[-100:])


# Fetching


def test_a_source_that_lies_is_asked_no_more_and_the_rest_comes_from_another(monkeypatch):
    accepts = SizedShelf.accepts
    lies = []

    def suspicious(self, manifest, chunk, content):
        if content.spec.names or id(content) in lies:
            return Done(False)
        return accepts(self, manifest, chunk, content)

    get = Storing.get

    def lie(self, message):
        answer = get(self, message)
        if self._ctx.me == 0 and isinstance(answer, Data):
            lies.append(id(answer.content))
        return answer

    monkeypatch.setattr(SizedShelf, "accepts", suspicious)
    monkeypatch.setattr(Storing, "get", lie)
    _, requests = serve(config(storage=2, replicas=2, workload={"requests": 50}), nodes=3)
    assert lies
    assert not any(each["error"] for each in requests.values())


def test_concurrent_wants_cause_one_fetch():
    workload = {"requests": 30, "arrivals": {"rate_per_s": 10_000}, "popularity": {"kind": "identical"}}
    outcome, requests = serve(config(keeps=True, workload=workload), nodes=5)
    sent = sum(row.value for row in outcome.recorder.rows() if row.metric == "store/sent_bytes")
    assert len(requests) == 30
    assert sent == ADAPTER_BYTES


def test_a_slow_source_costs_less_where_there_is_another():
    slow = NetworkSection(
        model="fifo",
        latency_s=0.001,
        up_bps=1e8,
        down_bps=1e8,
        rules=({"kind": "delay", "value": 0.3, "frm": (0,), "to": None},),
    )
    made = config(storage=2, replicas=2, workload={"requests": 100})

    def slowest(network):
        outcome = run_protocol(Serving(made), nodes=3, network=network)
        waits = [row.value for row in outcome.recorder.rows() if row.metric == "request/load_wait_s"]
        asked = sum(row.value for row in outcome.recorder.rows() if row.metric == "compute/refetched")
        return sorted(waits)[len(waits) // 2], asked

    (plain_s, _), (slow_s, refetched) = slowest(NETWORK), slowest(slow)
    assert refetched > 0
    assert slow_s < plain_s + 0.3


class Asking(Protocol):
    """A node that asks a storage node what it should not, and gossips with it."""

    uses_topology = False
    heard: ClassVar[list] = []

    @classmethod
    def inference(cls, config, nodes):
        return Serving.inference(made(), nodes)

    @on(Describe)
    def describe(self, ctx: Context, sender: int, message: Describe) -> Message:
        return self.storing.describe(message)

    @on(Get)
    def get(self, ctx: Context, sender: int, message: Get) -> Message:
        return self.storing.get(message)

    @on(Heard)
    def gossip(self, ctx: Context, sender: int, message: Heard) -> Message:
        return self.directory.answer(message)

    @on(Absent)
    def absent(self, ctx: Context, sender: int, message: Absent) -> None:
        self.heard.append(message)

    async def run(self, ctx: Context):
        self.directory = Directory(ctx, made())
        self.storing = Storing(ctx, made(), self.directory)
        ctx.spawn(self.storing.run())
        ctx.spawn(self.directory.gossip())
        assert self.directory.answer(Heard(digest=b"no digest")) is None
        await ctx.sleep(0.1)
        mine = next(iter(self.storing._held))
        for chunk in (-1, 16, 10**9):
            assert isinstance(self.storing.get(Get(adapter=mine, chunk=chunk)), Absent)
        if ctx.me == 2:
            self.heard.append(await ctx.request(0, Describe(adapter="no such")))
            await ctx.send(0, Get(adapter="no such", chunk=0))
            self.storing.want(Want(adapter="no such"))
            fetching = Fetching(ctx, made(), self.directory, ctx.inference.shelf(ctx), "no such")
            self.heard.append(await fetching.run())
        await ctx.sleep(10)
        self.heard.append(sorted({each.node for each in self.directory.index.holders(name_of(0), ctx.now)}))


def test_a_holder_that_makes_no_sense_is_passed_over(monkeypatch):
    describe = Storing.describe

    def lie(self, message):
        if self._ctx.me == 0:
            return Described(adapter=message.adapter, layers_bytes=(-1, 5), chunk_bytes=0, digests=())
        return describe(self, message)

    monkeypatch.setattr(Storing, "describe", lie)
    _, requests = serve(config(storage=2, replicas=2, workload={"requests": 50}), nodes=3)
    assert len(requests) == 50
    assert not any(each["error"] for each in requests.values())


def made():
    return config(storage=3, replicas=2, fetch_limit_s=0.5)


def test_what_nobody_has_is_absent_and_a_fetch_of_it_fails():
    Asking.heard.clear()
    run_protocol(Asking(), nodes=3, network=NETWORK)
    first, second, came, *holders = Asking.heard
    assert first.adapter == second.adapter == "no such"
    assert isinstance(first, Absent)
    assert came is False
    assert holders == [sorted(preference(name_of(0), equally([0, 1, 2]))[:2])] * 3
