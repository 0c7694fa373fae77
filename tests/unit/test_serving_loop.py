"""The serving loop: nobody waits for another's adapter, nothing is torn, and whatever ends gives back what it had."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count

import numpy as np
import pytest

from node.adapters.keeping import keep, kept, layer_bytes
from node.adapters.publishing import publish_adapter, publish_file
from node.batching.queues import State
from node.batching.scheduler import Rules
from node.errors import ComputeError, ConfigError, Corrupt, DeadlineExceeded, Missing, Unreachable
from node.serving.engine import Engine
from node.serving.loop import Limits, Request, Serving
from node.serving.model import load_model
from node.serving.registry import Named, Registry, registered
from node.serving.residency import Residency
from node.serving.sampling import GREEDY, Sampling
from node.serving.source import StoreSource
from node.serving.updating import install, uninstall
from node.store.catalogue import Catalogue
from node.store.objects import Store
from node.testbed.tokens import BOS
from served import NAMES, save_adapters, save_model

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPT = (BOS, 52, 50, 61)
MANY = [f"a{number}" for number in range(6)]


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    """A model, a store, and the versions of six adapters."""
    root = tmp_path_factory.mktemp("served")
    language = load_model(save_model(root / "base"))
    language = replace(language, end_tokens=frozenset())  # random weights end when they like
    store = Store(root / "store")
    folders = save_adapters(root / "base", root / "adapters", MANY)
    versions = {name: keep(store, folder, name, language.fingerprint) for name, folder in folders.items()}
    return language, store, versions


@asynccontextmanager
async def serving(bed, slots=4, places=4, source=None, **settings):
    language, store, _ = bed
    engine = Engine(language, slots, places)
    one = Serving(engine, source or StoreSource(store), slots, **settings)
    one.start()
    try:
        yield one
        await one.stop(30)
        assert_all_is_free(one)
    finally:
        await one.stop(0)
        engine._attached.detach()


def assert_all_is_free(one):
    assert one.engine.kept.free == one.engine.places
    assert (one.running, one.waiting, one.torn) == (0, 0, 0)
    one.residency.settle()
    on_their_way = one.residency._wanted
    assert all(not entry.pins or entry.key in on_their_way for entry in one.residency.cache.residents())
    assert not one.residency.slots._held


def request(version=None, tokens=8, **settings):
    adapters = ((version, 1.0),) if version else ()
    return Request(PROMPT, tokens, adapters, **settings)


async def text(one, *args, **settings):
    return (await one.submit(request(*args, **settings)).whole())[0]


class Gated:
    """A store whose adapters come when they are let through, layer by layer."""

    def __init__(self, store, streams=False):
        self.store, self.streams = store, streams
        self.gates = {}
        self.asked = []

    def let(self, version, layers=99):
        for _ in range(layers):
            self._gate(version).release()

    def _gate(self, version):
        return self.gates.setdefault(version, asyncio.Semaphore(0))

    async def artifact(self, version):
        self.asked.append(version)
        return kept(self.store, version)

    async def layers(self, artifact):
        version = self.asked[-1] if artifact is None else next(v for v in self.asked if kept(self.store, v) == artifact)
        for layer in artifact.layers:
            await self._gate(version).acquire()
            yield layer, layer_bytes(self.store, artifact, layer)


async def test_each_gets_what_it_gets_alone(bed):
    _, _, versions = bed
    async with serving(bed) as one:
        alone = {name: await text(one, version) for name, version in versions.items()}
        alone[""] = await text(one)
        wanted = [("", *MANY)[index % 7] for index in range(21)]
        together = await asyncio.gather(*(text(one, versions.get(name)) for name in wanted))
    assert together == [alone[name] for name in wanted]
    assert len(set(alone.values())) == 7
    assert one.residency.cache.stats().misses >= 6


async def test_a_slow_adapter_delays_nobody_else(bed):
    _, store, versions = bed
    source = Gated(store)
    source.let(versions["a1"])
    async with serving(bed, source=source) as one:
        slow = asyncio.create_task(text(one, versions["a0"]))
        others = await asyncio.gather(text(one), text(one, versions["a1"]), text(one))
        assert not slow.done()
        assert others[0] == others[2]
        source.let(versions["a0"])
        assert await slow


async def test_concurrent_wants_are_one_fetch(bed):
    _, store, versions = bed
    source = Gated(store)
    async with serving(bed, source=source) as one:
        replies = [one.submit(request(versions["a0"])) for _ in range(5)]
        source.let(versions["a0"])
        texts = {(await reply.whole())[0] for reply in replies}
    assert len(texts) == 1
    assert source.asked == [versions["a0"]]


async def test_streamed_layers_begin_before_the_last_is_there_and_others_go_first(bed):
    _, store, versions = bed
    source = Gated(store, streams=True)
    async with serving(bed) as whole:
        expected = await text(whole, versions["a0"])
    async with serving(bed, source=source) as one:
        reply = one.submit(request(versions["a0"]))
        source.let(versions["a0"], layers=1)
        while reply.timing.begun_s is None:
            await asyncio.sleep(0)
        assert not reply.generated
        assert await text(one)  # while the streaming one waits in the thread
        assert not reply.generated
        source.let(versions["a0"])
        assert (await reply.whole())[0] == expected


async def test_what_fails_ends_its_requests_and_is_tried_again(bed):
    _, store, versions = bed

    class Failing(StoreSource):
        fails = 1

        async def artifact(self, version):
            if self.fails:
                self.fails -= 1
                raise Unreachable("no storage node answers")
            return await super().artifact(version)

    async with serving(bed, source=Failing(store), limits=Limits(retry_s=0.01)) as one:
        with pytest.raises(Unreachable, match="no storage node"):
            await text(one, versions["a0"])
        assert one.scheduler.queues.state(versions["a0"]) is State.ERRORED
        assert await text(one, versions["a0"])
        assert one.residency.slots.free == 3


async def test_a_stream_that_breaks_off_ends_its_requests(bed):
    _, store, versions = bed
    gone = asyncio.Event()

    class Breaking(StoreSource):
        streams = True

        async def layers(self, artifact):
            async for layer in super().layers(artifact):
                yield layer
                await gone.wait()
                raise DeadlineExceeded("the storage node has gone")

    async with serving(bed, source=Breaking(store)) as one:
        reply = one.submit(request(versions["a0"]))
        while reply.timing.begun_s is None:
            await asyncio.sleep(0)
        gone.set()
        with pytest.raises(Unreachable, match="the storage node has gone"):
            await reply.whole()
        assert await text(one)
        assert one.residency.slots.free == 4


async def test_damaged_layers_and_missing_ones_are_errors(bed):
    _, store, versions = bed

    class Lying(StoreSource):
        async def layers(self, artifact):
            for layer in artifact.layers[: 1 if artifact.name == "a1" else None]:
                data = layer_bytes(self._store, artifact, layer)
                yield layer, data if artifact.name == "a1" else bytes(len(data))

    async with serving(bed, source=Lying(store)) as one:
        with pytest.raises(Corrupt, match="layer 0 is damaged"):
            await text(one, versions["a0"])
        with pytest.raises(Corrupt, match="not all of its layers"):
            await text(one, versions["a1"])
        with pytest.raises(Missing):
            await text(one, "0" * 64)
        assert one.residency.slots.free == 4


async def test_what_does_not_fit_is_refused(bed, tmp_path):
    _, store, _ = bed
    folder = save_adapters(save_model(tmp_path / "base"), tmp_path / "adapters", ["x"])["x"]
    foreign = keep(store, folder, "x", "0" * 64)
    async with serving(bed) as one:
        with pytest.raises(ConfigError, match="is for the base model"):
            await text(one, foreign)
        with pytest.raises(ConfigError, match="maximum context length is 128"):
            one.submit(Request((BOS,) * 120, 9))
        with pytest.raises(ConfigError, match="at least one token"):
            one.submit(Request((), 9))
        with pytest.raises(ConfigError, match="adapters: 4 at once; allowed: 3"):
            one.submit(Request(PROMPT, 4, tuple((f"{n}" * 64, 0.25) for n in range(4))))


async def test_a_client_that_goes_frees_its_place(bed):
    _, store, versions = bed
    source = Gated(store)
    async with serving(bed, places=1, source=source) as one:
        first = one.submit(request(tokens=100))
        pieces = first.pieces()
        await anext(pieces)
        second = asyncio.create_task(text(one))
        waits = one.submit(request(versions["a0"]))
        waits.cancel()
        await pieces.aclose()
        assert await second
        assert first.generated < 100
        source.let(versions["a0"])


async def test_a_slow_reader_is_paused_and_then_reads_on(bed):
    async with serving(bed, limits=Limits(most_unread=3)) as one:
        expected = await text(one, tokens=40)
        slow = one.submit(request(tokens=40))
        while not slow.is_full:
            await text(one, tokens=2)
        before = slow.generated
        await text(one, tokens=40)
        assert slow.generated == before
        assert (await slow.whole())[0] == expected


async def test_a_reader_that_never_reads_is_ended(bed):
    async with serving(bed, limits=Limits(most_unread=2, patience_s=0.02)) as one:
        slow = one.submit(request(tokens=60))
        while not slow.is_over:
            await text(one, tokens=1)
        with pytest.raises(DeadlineExceeded, match=r"not read for 0\.02 s"):
            await slow.whole()


async def test_one_slot_serves_all_under_a_skewed_demand(bed):
    _, _, versions = bed
    draws = np.random.default_rng(0).zipf(1.5, 30)
    names = [MANY[int(draw - 1) % len(MANY)] for draw in draws]
    async with serving(bed, slots=2, places=2, rules=Rules(age_limit_s=0.05)) as one:
        found = await asyncio.gather(*(text(one, versions[name], tokens=3) for name in names))
        alone = {name: await text(one, versions[name], tokens=3) for name in set(names)}
    assert found == [alone[name] for name in names]
    assert one.residency.cache.stats().evicted > 0


async def test_a_name_moves_while_requests_run_and_none_is_torn(bed):
    _, _, versions = bed
    registry = Registry()
    async with serving(bed, slots=3, places=4) as one:
        expected = {versions[name]: await text(one, versions[name], tokens=30) for name in ("a0", "a1", "a2")}
        await install(registry, one.residency, Named("x", versions["a0"], "here"))
        seen = set()

        async def client():
            for _ in range(12):
                version = registry["x"].version
                assert await text(one, version, tokens=30) == expected[version]
                seen.add(version)

        async def storm():
            for turn in count(1):
                await install(registry, one.residency, Named("x", versions[f"a{turn % 3}"], "here"))

        moving = asyncio.create_task(storm())
        await asyncio.gather(*(client() for _ in range(3)))
        moving.cancel()
        await asyncio.wait([moving])
    assert len(seen) >= 2
    assert one.torn == 0


async def test_an_update_that_fails_leaves_the_old_version(bed):
    _, _, versions = bed
    registry = Registry()
    async with serving(bed) as one:
        await install(registry, one.residency, Named("x", versions["a0"], "here"), load=True)
        assert one.scheduler.queues.state(versions["a0"]) is State.RESIDENT
        with pytest.raises(Missing):
            await install(registry, one.residency, Named("x", "0" * 64, "nowhere"))
        assert registry["x"].version == versions["a0"]
        uninstall(registry, one.residency, "x")
        one.residency.settle()
        assert versions["a0"] not in one.residency.cache
        with pytest.raises(Missing, match="`x` does not exist"):
            uninstall(registry, one.residency, "x")


async def test_a_pinned_adapter_is_never_evicted(bed):
    _, _, versions = bed
    registry = Registry()
    async with serving(bed, slots=3) as one:
        await install(registry, one.residency, Named("x", versions["a0"], "here", is_pinned=True))
        for name in MANY[1:]:
            await text(one, versions[name], tokens=2)
        assert versions["a0"] in one.residency.cache
        with pytest.raises(ConfigError, match="pinned: 1 adapters are"):
            await install(registry, one.residency, Named("y", versions["a1"], "here", is_pinned=True))
        uninstall(registry, one.residency, "x")


async def test_an_adapter_that_is_removed_while_in_use_is_used_to_the_end(bed):
    _, _, versions = bed
    registry = Registry()
    async with serving(bed) as one:
        expected = await text(one, versions["a0"], tokens=60)
        await install(registry, one.residency, Named("x", versions["a0"], "here"))
        reply = one.submit(request(versions["a0"], tokens=60))
        pieces = reply.pieces()
        start = await anext(pieces)
        uninstall(registry, one.residency, "x")
        rest = [piece.text async for piece in pieces]
        assert start.text + "".join(rest) == expected


async def test_a_mixture_uses_both(bed):
    _, _, versions = bed
    pair = ((versions["a0"], 0.5), (versions["a1"], 0.5))
    async with serving(bed) as one:
        reply = one.submit(Request(PROMPT, 20, pair))
        mixed = (await reply.whole())[0]
        single = [await text(one, version, tokens=20) for version, _ in pair]
        again = await asyncio.gather(
            one.submit(Request(PROMPT, 20, pair)).whole(), text(one, versions["a0"], tokens=20)
        )
    assert [held.version for held in reply.held] == [version for version, _ in pair]
    assert (again[0][0], again[1]) == (mixed, single[0])


async def test_stops_and_ends(bed):
    language, _, _ = bed
    async with serving(bed) as one:
        whole = await text(one, tokens=30)
        stop = whole[4:6]
        shown, finish = await one.submit(request(tokens=30, stops=(stop,))).whole()
        assert (shown, finish) == (whole[: whole.index(stop)], "stop")
        assert (await one.submit(request(tokens=3)).whole())[1] == "length"
        row = one.engine.begin(PROMPT, GREEDY, {})
        one.engine.advance([row])
        one.engine.end(row)
        one.engine.language = replace(language, end_tokens=frozenset([row.tokens[-1]]))
        assert await one.submit(request(tokens=30)).whole() == ("", "stop")


async def test_a_seed_decides_what_is_drawn(bed):
    async with serving(bed) as one:
        hot = Sampling(1.0, 1.0, seed=5)
        texts = await asyncio.gather(*(text(one, sampling=hot, tokens=20) for _ in range(3)), text(one, tokens=20))
    assert texts[0] == texts[1] == texts[2] != texts[3]


async def test_times_add_up(bed):
    _, store, versions = bed
    source = Gated(store)
    async with serving(bed, source=source) as one:
        reply = one.submit(request(versions["a0"], tokens=5))
        await text(one)
        source.let(versions["a0"])
        await reply.whole()
        at_once = one.submit(request(versions["a0"], tokens=5))
        await at_once.whole()
    served = reply.timing.served()
    assert len(served.token_s) == 5
    assert served.load_wait_s > 0
    assert served.load_wait_s + served.queue_s + served.prefill_s == pytest.approx(served.ttft_s)
    assert at_once.timing.load_wait_s == 0


async def test_a_bug_in_a_pass_ends_its_requests_and_the_server_goes_on(bed, monkeypatch):
    async with serving(bed) as one:

        def broken(rows):
            raise RuntimeError("a secret of the machine")

        with monkeypatch.context() as patched:
            patched.setattr(one.engine, "logits", broken)
            with pytest.raises(ComputeError, match="a forward pass has failed: RuntimeError") as caught:
                await text(one)
        assert "secret" not in str(caught.value)
        assert await text(one)


async def test_who_comes_when_it_ends_is_refused_and_who_is_there_is_served(bed):
    async with serving(bed) as one:
        reply = one.submit(request(tokens=20))
        ending = asyncio.create_task(one.stop(30))
        await asyncio.sleep(0)
        with pytest.raises(ComputeError, match="the server is ending"):
            one.submit(request())
        assert (await reply.whole())[1] == "length"
        await ending
        assert not one.is_well


async def test_what_is_not_done_by_the_deadline_is_ended(bed):
    _, store, versions = bed
    async with serving(bed, source=Gated(store)) as one:
        replies = [one.submit(request(versions["a0"])), one.submit(request(tokens=100))]
        await text(one, tokens=2)
        await one.stop(0)
        for reply in replies:
            with pytest.raises(ComputeError, match="is ending"):
                await reply.whole()


async def test_a_bug_in_the_loop_is_told_to_all(bed, monkeypatch):
    async with serving(bed) as one:
        reply = one.submit(request(tokens=20))
        monkeypatch.setattr(one.scheduler, "step", lambda now_s: 1 / 0)
        with pytest.raises(ComputeError, match="the server has failed"):
            await reply.whole()
        assert not one.is_well
        with pytest.raises(ComputeError):
            one.submit(request())


async def test_slots_are_two_at_least(bed):
    language, store, _ = bed
    engine = Engine(language, 2)
    with pytest.raises(ConfigError, match="slots: 1; allowed: at least 2"):
        Residency(StoreSource(store), engine.stacks, 1, language.fingerprint, None)
    engine._attached.detach()


def test_a_store_s_adapters_are_registered_by_name(bed, tmp_path):
    language, _, _ = bed
    save_model(tmp_path / "base")
    folders = save_adapters(tmp_path / "base", tmp_path / "adapters", NAMES)
    (folders["es"] / "prompts.txt").write_text("uno\n\n dos \n", encoding="utf-8")
    store = Store(tmp_path / "store")
    with Catalogue(store, tmp_path / "store", lambda: 0.0) as catalogue:
        entries = {
            name: publish_adapter(catalogue, folder, name, language.fingerprint) for name, folder in folders.items()
        }
        publish_file(catalogue, tmp_path / "base" / "config.json", "config")
        store.remove(entries["fr"].version)
        registry, errors = registered(catalogue)
    assert registry.all() == [
        Named("de", entries["de"].version, entries["de"].version),
        Named("es", entries["es"].version, entries["es"].version, ("uno", "dos")),
    ]
    assert len(errors) == 1
    assert "fr" not in registry
