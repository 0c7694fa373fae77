"""The HTTP interface as the official client of OpenAI uses it, on a real socket."""

import asyncio
import io
import json
from contextlib import asynccontextmanager

import aiohttp
import numpy as np
import openai
import pytest
from aiohttp import web

from node.adapters.keeping import kept
from node.adapters.publishing import publish_adapter
from node.errors import ConfigError
from node.live.openai.server import OpenAIServer
from node.live.openai.surface import Surface, Updates
from node.serving.engine import Engine
from node.serving.loop import Limits, Serving
from node.serving.model import load_model
from node.serving.registry import Named, Registry
from node.serving.selecting import Selector
from node.serving.source import StoreSource
from node.store.catalogue import Catalogue
from node.store.objects import Store
from node.testbed.questions import profile
from peft_folders import change_config
from served import NAMES, save_adapters, save_model

pytestmark = pytest.mark.usefixtures("one_thread")
GREEDY = {"temperature": 0.0}


class Bed:
    def __init__(self, root):
        self.root = root
        self.base = save_model(root / "base")
        self.folders = save_adapters(self.base, root / "adapters")
        self.language = load_model(self.base)
        self.store = Store(root / "store")
        with Catalogue(self.store, root / "store", lambda: 0.0) as catalogue:
            self.versions = {
                name: publish_adapter(catalogue, folder, name, self.language.fingerprint).version
                for name, folder in self.folders.items()
            }


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    return Bed(tmp_path_factory.mktemp("served"))


@asynccontextmanager
async def served(bed, slots=4, places=8, updates=True, limits=None, source=None, **settings):
    engine = Engine(bed.language, slots, places)
    serving = Serving(engine, source or StoreSource(bed.store), slots, limits=limits)
    registry = Registry()
    for name, version in bed.versions.items():
        registry.put(Named(name, version, version, tuple(profile(name))))
    allowed = Updates(bed.store, bed.root / "store", bed.root / "adapters") if updates else None
    surface = Surface("tiny", serving, registry, Selector(registry.all()), allowed, created_s=1, **settings)
    server = OpenAIServer(surface)
    serving.start()
    try:
        url = await server.start("127.0.0.1", 0)
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            yield client, surface, url
    finally:
        await server.close(10)
        engine._attached.detach()
        assert serving.engine.kept.free == places
        assert (serving.running, serving.waiting, serving.torn) == (0, 0, 0)
        assert not serving.residency.slots._held


async def complete(client, model="tiny", prompt="42=", **settings):
    return await client.completions.create(model=model, prompt=prompt, **{**GREEDY, **settings})


async def posted(url, path, body, content_type="application/json"):
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}{path}", data=body, headers={"Content-Type": content_type}) as answer,
    ):
        text = await answer.text()
        return answer.status, json.loads(text) if answer.content_type == "application/json" else text


# Answers


async def test_completions_and_chats_say_what_they_are(bed):
    async with served(bed) as (client, _, _):
        found = await complete(client, "de", max_tokens=8)
        assert (found.object, found.model, len(found.choices)) == ("text_completion", "de", 1)
        assert found.choices[0].finish_reason in ("length", "stop")
        assert found.usage.prompt_tokens == 4
        assert found.usage.total_tokens == 4 + found.usage.completion_tokens
        (adapter,) = found.starling["adapters"]
        assert (adapter["name"], adapter["version"]) == ("de", bed.versions["de"])
        assert found.starling["load_wait_s"] > 0
        chat = await client.chat.completions.create(
            model="de", messages=[{"role": "user", "content": "spell 42"}], max_tokens=8, **GREEDY
        )
        assert chat.object == "chat.completion"
        assert chat.choices[0].message.role == "assistant"
        assert chat.choices[0].message.content == found.choices[0].text
        assert chat.starling["load_wait_s"] == 0


async def test_a_stream_is_the_whole_answer_in_pieces(bed):
    async with served(bed) as (client, _, _):
        whole = await complete(client, "es", max_tokens=24)
        stream = await complete(client, "es", max_tokens=24, stream=True, stream_options={"include_usage": True})
        *pieces, last = [piece async for piece in stream]
        assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
        assert [piece.choices[0].finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
        assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason
        assert (last.choices, last.usage) == ([], whole.usage)
        messages = [{"role": "user", "content": [{"type": "text", "text": "42"}]}]
        stream = await client.chat.completions.create(
            model="es", messages=messages, max_completion_tokens=24, stream=True, **GREEDY
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[0].choices[0].delta.role == "assistant"
        assert "".join(chunk.choices[0].delta.content for chunk in chunks) == whole.choices[0].text


async def test_headers_say_which_adapters_answered(bed):
    async with served(bed) as (client, _, _):
        raw = await client.completions.with_raw_response.create(model="fr", prompt="7=", max_tokens=2)
        assert raw.headers["X-Starling-Adapters"] == f"fr@{bed.versions['fr'][:16]}"
        assert raw.headers["X-Starling-Mode"] == "select"
        assert float(raw.headers["X-Starling-Load-Wait-Seconds"]) > 0
        async with client.completions.with_streaming_response.create(
            model="fr", prompt="7=", max_tokens=2, stream=True
        ) as stream:
            assert stream.headers["X-Starling-Adapters"] == f"fr@{bed.versions['fr'][:16]}"


async def test_seeds_stops_and_tokens(bed):
    async with served(bed) as (client, _, _):
        texts = [
            (await complete(client, temperature=1.0, seed=seed, max_tokens=30)).choices[0].text for seed in (1, 1, 2)
        ]
        assert texts[0] == texts[1] != texts[2]
        whole = (await complete(client, max_tokens=40)).choices[0].text
        stop = whole[3:5]
        stopped = await complete(client, max_tokens=40, stop=[stop, "never"])
        assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == (whole[: whole.index(stop)], "stop")
        by_tokens = await complete(client, prompt=bed.language.tokenizer("42=")["input_ids"], max_tokens=40)
        assert by_tokens.choices[0].text == whole
        assert (await complete(client)).usage.completion_tokens <= 16


# Which adapters


async def test_auto_selects_by_prompts_and_abstains(bed):
    async with served(bed) as (client, _, _):
        found = await complete(client, "auto", "Spell out 4217 in German", max_tokens=2)
        (adapter,) = found.starling["adapters"]
        assert (found.starling["mode"], adapter["name"]) == ("select", "de")
        assert 0 < adapter["score"] <= 1
        chat = await client.chat.completions.create(
            model="auto", messages=[{"role": "user", "content": "Convert 12 to French text"}], max_tokens=2
        )
        assert chat.starling["adapters"][0]["name"] == "fr"
        nothing = await complete(client, "auto", "Fix the bug in line 12 of this program", max_tokens=2)
        assert nothing.starling["mode"] == "base"
        assert nothing.starling["adapters"] == []


async def test_the_adapter_field_decides(bed):
    async with served(bed) as (client, _, _):

        async def mode(**adapter):
            return (await complete(client, "auto", "9=", max_tokens=6, extra_body={"adapter": adapter})).starling

        assert (await mode(mode="base"))["mode"] == "base"
        mixed = await mode(mode="mixture", ids=["de", "es"], weights=[0.25, 0.75])
        assert [(each["name"], each["weight"]) for each in mixed["adapters"]] == [("de", 0.25), ("es", 0.75)]
        assert (await mode(ids=["fr"]))["mode"] == "select"
        for wrong in ({"ids": ["de", "es"], "mode": "select"}, {"ids": ["de"], "weights": [1, 2]}, {"mode": "fusion"}):
            with pytest.raises(openai.BadRequestError):
                await mode(**wrong)
        with pytest.raises(openai.NotFoundError):
            await mode(ids=["xx"])


async def test_models_are_the_base_and_its_adapters(bed):
    async with served(bed) as (client, _, _):
        models = {model.id: model async for model in await client.models.list()}
        assert list(models) == ["tiny", "auto", *NAMES]
        assert models["de"].parent == "tiny"
        assert models["de"].root == bed.versions["de"]
        assert models["tiny"].parent is None
        assert (await client.models.retrieve("es")).id == "es"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("xx")


async def test_embeddings_are_those_of_the_embedder(bed):
    async with served(bed) as (client, surface, _):
        embedder = surface.selector.embedder
        texts = ["spell 12 in German", "Zahl 7"]
        for settings in ({}, {"encoding_format": "float"}):
            found = await client.embeddings.create(model=embedder.name, input=texts, **settings)
            assert np.allclose([each.embedding for each in found.data], embedder.embed(texts), atol=1e-6)
        with pytest.raises(openai.NotFoundError):
            await client.embeddings.create(model="tiny", input="x")
        with pytest.raises(openai.BadRequestError):
            await client.embeddings.create(model=embedder.name, input="x", dimensions=3)


# What goes wrong


async def test_errors_are_openai_s(bed):
    async with served(bed) as (client, _, url):
        with pytest.raises(openai.NotFoundError) as missing:
            await complete(client, "nobody")
        assert missing.value.code == "model_not_found"
        for settings in ({"prompt": "x" * 200}, {"max_tokens": 200}, {"prompt": "x" * 100_000}):
            with pytest.raises(openai.BadRequestError, match="maximum context length is 128") as long:
                await complete(client, **settings)
            assert long.value.code == "context_length_exceeded"
        for settings in ({"n": 2}, {"logprobs": 3}, {"temperature": 9.0}, {"max_tokens": 0}, {"prompt": [999_999]}):
            with pytest.raises(openai.BadRequestError):
                await complete(client, **settings)
        for body in (b"{", b"[]", b'{"model": 3}', b'{"model": "tiny", "prompt": "x", "strange": 1}', b"\xff"):
            status, told = await posted(url, "/v1/completions", body)
            assert status == 400
            assert set(told["error"]) == {"message", "type", "param", "code"}
        assert (await posted(url, "/v1/completions", b"{}", "text/plain"))[0] == 415
        assert (await posted(url, "/v1/completions", io.BytesIO(b"x" * (2 << 20))))[0] == 413
        assert (await posted(url, "/v1/nothing", b"{}"))[0] == 404
        with pytest.raises(openai.BadRequestError, match="chat template"):
            await _bad_template(client, bed)
        assert await complete(client, max_tokens=2)


async def _bad_template(client, bed):
    before = bed.language.tokenizer.chat_template
    bed.language.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    try:
        return await client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x"}])
    finally:
        bed.language.tokenizer.chat_template = before


async def test_a_damaged_adapter_is_an_error_that_names_no_path(bed, tmp_path):
    other = Bed(tmp_path)
    async with served(other) as (client, surface, _):
        damaged = next(iter((tmp_path / "store" / "objects").glob(f"{_weights(other, 'de')}")))
        damaged.write_bytes(bytes(damaged.stat().st_size))
        with pytest.raises(openai.InternalServerError) as caught:
            await complete(client, "de")
        assert (caught.value.status_code, caught.value.code) == (503, "adapter_damaged")
        assert str(tmp_path) not in str(caught.value)
        surface.registry.put(Named("gone", "0" * 64, ""))
        with pytest.raises(openai.InternalServerError) as caught:
            await complete(client, "gone", stream=True)
        assert caught.value.code == "adapter_missing"
        assert await complete(client, "es", max_tokens=2)


def _weights(bed, name):
    artifact = kept(bed.store, bed.versions[name])
    return next(file.object for file in artifact.files if file.name.endswith(".safetensors"))


async def test_too_many_that_wait_are_refused(bed):
    async with served(bed, most_waiting=0) as (client, _, _):
        with pytest.raises(openai.RateLimitError):
            await complete(client)


async def test_an_address_that_is_taken_is_a_config_error(bed):
    async with served(bed) as (_, surface, url):
        server = OpenAIServer(surface)
        with pytest.raises(ConfigError, match="cannot be bound"):
            await server.start("127.0.0.1", int(url.rpartition(":")[2]))
        await server._runner.cleanup()


# Changing what is served


async def test_adapters_are_loaded_and_unloaded_while_it_serves(bed, tmp_path):
    async with served(bed) as (client, surface, url):
        expected = (await complete(client, "es", max_tokens=12)).choices[0].text

        async def changed(what, **body):
            return await posted(url, f"/v1/{what}_lora_adapter", json.dumps(body).encode())

        told = await changed("load", lora_name="new", lora_path="es", load=True)
        assert told == (200, "Success: LoRA adapter 'new' added successfully")
        assert (await complete(client, "new", max_tokens=12)).choices[0].text == expected
        assert (await changed("load", lora_name="new", lora_path=bed.versions["fr"], pinned=True))[0] == 200
        fr = (await complete(client, "fr", max_tokens=12)).choices[0].text
        assert (await complete(client, "new", max_tokens=12)).choices[0].text == fr
        assert (await changed("unload", lora_name="new"))[0] == 200
        assert (await changed("unload", lora_name="new"))[0] == 404
        with pytest.raises(openai.NotFoundError):
            await complete(client, "new")
        for path in ("../store", "/etc", "nowhere", "\0", "0" * 64):
            status, found = await changed("load", lora_name="x", lora_path=path)
            assert status == 400
            assert path == "0" * 64 or str(bed.root) not in found["error"]["message"]
        assert (await changed("load", lora_name="tiny", lora_path="es"))[0] == 400
        assert "x" not in surface.registry


async def test_what_does_not_fit_is_not_loaded(bed):
    wrong = save_adapters(bed.base, bed.root / "adapters", ["high"], init_lora_weights=True)["high"]
    change_config(wrong, use_dora=True)
    async with served(bed) as (client, surface, url):
        body = json.dumps({"lora_name": "high", "lora_path": "high"}).encode()
        status, told = await posted(url, "/v1/load_lora_adapter", body)
        assert status == 400
        assert "use_dora" in told["error"]["message"]
        change_config(wrong, use_dora=False)
        surface.serving.engine.stacks.most_rank = 2
        status, told = await posted(url, "/v1/load_lora_adapter", body)
        assert (status, "above the limit" in told["error"]["message"]) == (400, True)
        surface.serving.engine.stacks.most_rank = 64
        assert "high" not in surface.registry
        assert await complete(client, "de", max_tokens=2)


async def test_updates_are_off_unless_allowed(bed):
    async with served(bed, updates=False) as (_, _, url):
        status, told = await posted(url, "/v1/load_lora_adapter", b'{"lora_name": "x", "lora_path": "es"}')
        assert (status, told["error"]["code"]) == (403, "not_allowed")
        assert (await posted(url, "/v1/unload_lora_adapter", b'{"lora_name": "de"}'))[0] == 403


async def test_a_name_that_moves_under_many_requests_never_tears_one(bed):
    async with served(bed, slots=3) as (client, surface, url):
        expected = {bed.versions[name]: (await complete(client, name, max_tokens=20)).choices[0].text for name in NAMES}
        seen = set()

        async def ask():
            for _ in range(6):
                found = await complete(client, "moving", max_tokens=20)
                (adapter,) = found.starling["adapters"]
                assert found.choices[0].text == expected[adapter["version"]]
                seen.add(adapter["version"])

        async def move(name):
            body = json.dumps({"lora_name": "moving", "lora_path": bed.versions[name]}).encode()
            assert (await posted(url, "/v1/load_lora_adapter", body))[0] == 200

        await move("de")
        asking = asyncio.gather(*(ask() for _ in range(4)))
        while not asking.done():
            for name in NAMES:
                await move(name)
        await asking
        assert len(seen) >= 2
        assert surface.serving.torn == 0


# Clients


async def test_a_client_that_goes_frees_its_place(bed):
    async with served(bed, places=1) as (client, surface, _):
        stream = await complete(client, max_tokens=120, prompt="1=", stream=True, temperature=2.0, seed=3)
        await anext(aiter(stream))
        await stream.close()
        waiting = asyncio.create_task(complete(client, max_tokens=120))
        while not surface.serving.running:
            await asyncio.sleep(0)
        waiting.cancel()
        assert (await complete(client, "de", max_tokens=3)).choices


async def test_a_reader_that_never_reads_is_given_up_and_delays_nobody(bed, monkeypatch):
    """What a socket does when its buffers are full: a write does not return."""
    never = asyncio.Event()

    async def stuck(response, data):
        await never.wait()

    monkeypatch.setattr(web.StreamResponse, "write", stuck)
    limits = Limits(most_unread=4, patience_s=0.05)
    async with served(bed, limits=limits, patience_s=0.1) as (client, surface, _):
        ended = []
        counted, surface.serving.on_end = surface.serving.on_end, lambda *what: (ended.append(what), counted(*what))
        stream = asyncio.create_task(complete(client, max_tokens=120, temperature=1.0, seed=5, stream=True))
        while not any(reply.generated > 3 and (error or reply.is_cancelled) for reply, error in ended):
            assert await complete(client, max_tokens=2)
        given_up = next(reply for reply, error in ended if error or reply.is_cancelled)
        assert given_up.generated < 120
        with pytest.raises(openai.APIConnectionError):
            async for _ in await stream:
                pass


async def test_hundreds_at_once_are_all_answered_alike(bed):
    async with served(bed, slots=3, places=32) as (client, _, url):
        models = ["tiny", *NAMES]
        expected = {model: (await complete(client, model, max_tokens=4)).choices[0].text for model in models}
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(url, connector=connector) as session:

            async def ask(number):
                body = {"model": models[number % 4], "prompt": "42=", "max_tokens": 4, "temperature": 0}
                async with session.post("/v1/completions", json=body) as answer:
                    return (await answer.json())["choices"][0]["text"] == expected[models[number % 4]]

            assert all(await asyncio.gather(*(ask(number) for number in range(250))))


# What operators see


async def test_the_cache_and_the_metrics_say_what_happened(bed):
    async with served(bed, slots=3) as (client, _, url):
        for name in ("de", "es", "fr", "fr"):
            await complete(client, name, max_tokens=3)
        async with aiohttp.ClientSession(url) as session:
            cache = await (await session.get("/v1/cache")).json()
            metrics = await (await session.get("/metrics")).text()
            health = await session.get("/healthz")
        assert len(cache["resident"]) == 2
        assert cache["used_bytes"] + cache["free_bytes"] == cache["capacity_bytes"]
        assert (cache["hits"], cache["misses"], cache["evicted"]) == (1, 3, 1)
        assert cache["next_victim"] in [entry["version"] for entry in cache["resident"]]
        assert {name for entry in cache["resident"] for name in entry["names"]} <= set(NAMES)
        for line in (
            "starling_torn_total 0.0",
            "starling_swaps_total 3.0",
            'starling_requests_total{outcome="served"} 4.0',
        ):
            assert line in metrics
        for name in ("ttft", "tpot", "itl", "e2el"):
            assert f"starling_{name}_seconds_count" in metrics
        assert health.status == 200


async def test_what_was_asked_is_answered_before_it_ends(bed):
    async with served(bed) as (client, surface, url):
        asked = asyncio.create_task(complete(client, max_tokens=100, temperature=1.0, seed=5))
        while not surface.serving.running:
            await asyncio.sleep(0)
        surface.serving.is_closing = True
        async with aiohttp.ClientSession(url) as session:
            answer = await session.post("/v1/completions", json={"model": "tiny", "prompt": "1="})
            assert answer.status == 503
        assert (await asked).choices
