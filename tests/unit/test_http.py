"""A node's HTTP interface: what each path answers, and who may stop a node."""

import asyncio
import socket

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from faces import PEERS, STATUS, TOKEN, Shown, served
from node.errors import ConfigError
from node.live.http import METRICS_TYPE, HttpServer
from node.live.metrics import Metrics, Reading

BEARER = {"Authorization": f"Bearer {TOKEN}"}


async def get(url, path):
    async with aiohttp.ClientSession() as session, session.get(url + path) as answer:
        return answer.status, await answer.text(), answer.headers["Content-Type"]


async def post_stop(url, **headers):
    async with aiohttp.ClientSession() as session, session.post(f"{url}/stop", headers=headers) as answer:
        return answer.status


async def raw(url, request):
    """What a server says to bytes that no HTTP library would send."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


class TestReading:
    async def test_health(self):
        async with served() as (shown, url):
            assert (await get(url, "/healthz"))[:2] == (200, "ok\n")
            shown.ill = "the worker is stuck"
            assert (await get(url, "/healthz"))[:2] == (503, "the worker is stuck\n")
            assert (await get(url, "/readyz"))[:2] == (200, "ok\n")

    async def test_readiness(self):
        async with served() as (shown, url):
            shown.unready = "the node is waiting"
            assert (await get(url, "/readyz"))[:2] == (503, "the node is waiting\n")
            assert (await get(url, "/healthz"))[:2] == (200, "ok\n")

    async def test_facts_are_json_and_metrics_text(self):
        async with served() as (_, url):
            async with aiohttp.ClientSession() as session:
                assert await (await session.get(f"{url}/status")).json() == STATUS
                assert await (await session.get(f"{url}/peers")).json() == PEERS
            assert await get(url, "/metrics") == (200, "starling_round 3.0\n", METRICS_TYPE)

    async def test_nothing_else_is_there(self):
        async with served() as (shown, url):
            assert (await get(url, "/"))[0] == 404
            assert (await get(url, "/stop"))[0] == 405
            assert shown.stops == 0

    async def test_no_answer_shows_the_token(self):
        async with served() as (_, url):
            for path in ("/healthz", "/readyz", "/metrics", "/status", "/peers", "/stop", "/admin.token"):
                assert TOKEN not in (await get(url, path))[1]


class TestStop:
    async def test_takes_the_token(self):
        async with served() as (shown, url):
            assert await post_stop(url, **BEARER) == 200
            assert shown.stops == 1

    @pytest.mark.parametrize(
        "given",
        [
            None,
            "",
            "Bearer",
            "Bearer ",
            f"Bearer {TOKEN}x",
            f"Bearer {TOKEN[:-1]}",
            f"Basic {TOKEN}",
            TOKEN,
            "Bearer tö",
        ],
    )
    async def test_is_refused_without_it(self, given):
        async with served() as (shown, url):
            assert await post_stop(url, **({} if given is None else {"Authorization": given})) == 403
            assert shown.stops == 0

    @pytest.mark.parametrize(
        "host", ["evil.example", "evil.example:7601", "", "[", "127.0.0.1.evil.example", "8.8.8.8"]
    )
    async def test_is_refused_under_a_strange_name_even_with_the_token(self, host):
        async with served(hosts=("node-1.example",)) as (shown, url):
            assert await post_stop(url, **BEARER, Host=host) == 421
            assert shown.stops == 0

    @pytest.mark.parametrize("host", ["localhost:7601", "127.0.0.1", "[::1]:7601", "node-1.example:7601", "LOCALHOST"])
    async def test_is_heard_under_a_name_of_its_own(self, host):
        async with served(hosts=("node-1.example",)) as (shown, url):
            assert await post_stop(url, **BEARER, Host=host) == 200
            assert shown.stops == 1

    async def test_may_come_twice(self):
        async with served() as (shown, url):
            assert [await post_stop(url, **BEARER) for _ in range(2)] == [200, 200]
            assert shown.stops == 2


class TestServer:
    async def test_a_taken_port_is_one_line(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            server = HttpServer(Shown().face(), TOKEN)
            with pytest.raises(ConfigError, match=rf"^admin: 127.0.0.1:{port} cannot be bound: .*port 0 for any"):
                await server.start("127.0.0.1", port)
            await server.close()

    async def test_a_host_that_is_nowhere_is_one_line(self):
        server = HttpServer(Shown().face(), TOKEN)
        with pytest.raises(ConfigError, match=r"^admin: nowhere.invalid:0 cannot be bound"):
            await server.start("nowhere.invalid", 0)
        await server.close()

    async def test_ipv6_is_in_brackets(self):
        server = HttpServer(Shown().face(), TOKEN)
        try:
            url = await server.start("::1", 0)
        except ConfigError:
            pytest.skip("this machine has no IPv6")
        assert url.startswith("http://[::1]:")
        await server.close()

    async def test_nobody_listens_after_the_end(self):
        async with served() as (_, url):
            pass
        with pytest.raises(aiohttp.ClientConnectionError):
            await get(url, "/healthz")

    @pytest.mark.parametrize(
        "junk", [b"\x00\xff\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /" + b"a" * 20_000 + b"\r\n\r\n"]
    )
    async def test_junk_is_answered_and_survived(self, junk):
        async with served() as (_, url):
            assert b" 400 " in (await raw(url, junk)).split(b"\r\n")[0]
            assert (await get(url, "/healthz"))[0] == 200

    async def test_a_large_body_is_not_read(self):
        async with served() as (shown, url), aiohttp.ClientSession() as session:
            async with session.post(f"{url}/stop", data=b"x" * 100_000) as answer:
                assert answer.status == 403
            assert shown.stops == 0


READING = Reading(
    {"round": 7, "accuracy": 0.5},
    sent=(10, 1000),
    received=(9, 900),
    refused={"stranger": 2},
    peers={"alive": 3, "dead": 1},
)


def samples(metrics):
    families = text_string_to_metric_families(metrics.text().decode())
    return {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}


class TestMetrics:
    def test_names_and_labels(self):
        found = samples(Metrics(lambda: READING))
        assert {key: value for key, value in found.items() if "lag" not in key[0]} == {
            ("starling_round",): 7,
            ("starling_accuracy",): 0.5,
            ("starling_messages_total", "sent"): 10,
            ("starling_messages_total", "received"): 9,
            ("starling_bytes_total", "sent"): 1000,
            ("starling_bytes_total", "received"): 900,
            ("starling_refused_total", "stranger"): 2,
            ("starling_peers", "alive"): 3,
            ("starling_peers", "dead"): 1,
        }

    def test_are_read_anew_each_time(self):
        rounds = iter([1, 2])
        metrics = Metrics(lambda: READING._replace(gauges={"round": next(rounds)}))
        assert [samples(metrics)[("starling_round",)] for _ in range(2)] == [1, 2]

    def test_two_nodes_of_one_process_do_not_mix(self):
        one, other = (Metrics(lambda n=n: READING._replace(gauges={"round": n})) for n in (1, 2))
        assert (samples(one)[("starling_round",)], samples(other)[("starling_round",)]) == (1, 2)

    async def test_the_loops_lag_is_seen(self, monkeypatch):
        monkeypatch.setattr("node.live.metrics._PROBE_S", 0.001)
        metrics = Metrics(lambda: READING)
        probing = asyncio.create_task(metrics.probe_lag())
        while not samples(metrics)[("starling_loop_lag_seconds_count",)]:
            await asyncio.sleep(0)
        probing.cancel()
        found = samples(metrics)
        assert found[("starling_loop_lag_seconds_bucket", "+Inf")] == found[("starling_loop_lag_seconds_count",)] > 0
