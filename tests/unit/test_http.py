"""A node's HTTP interface: what each path answers, and what a server survives."""

import asyncio
import socket

import aiohttp
import pytest
from structlog.testing import capture_logs

from faces import HISTORY, PEERS, STATUS, TOKEN, Shown, served
from node.errors import ConfigError
from node.live.http import METRICS_TYPE


async def get(url, path):
    async with aiohttp.ClientSession() as session, session.get(url + path) as answer:
        return answer.status, await answer.text(), answer.headers["Content-Type"]


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
                assert await (await session.get(f"{url}/history")).json() == HISTORY
            assert await get(url, "/metrics") == (200, "starling_round 3.0\n", METRICS_TYPE)

    async def test_nothing_else_is_there(self):
        async with served() as (shown, url):
            for path in ("/admin.token", "/dashboard.html", "/../state/admin.token", "//"):
                assert (await get(url, path))[0] == 404
            for path in ("/pause", "/resume", "/drain", "/stop", "/loglevel"):
                assert (await get(url, path))[0] == 405
            assert shown.orders == []

    async def test_no_answer_shows_the_token(self):
        async with served() as (_, url):
            for path in ("/", "/healthz", "/readyz", "/metrics", "/status", "/peers", "/history", "/stop"):
                assert TOKEN not in (await get(url, path))[1]


class TestServer:
    async def test_a_taken_port_is_one_line(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            server = Shown().server()
            with pytest.raises(ConfigError, match=rf"^admin: 127.0.0.1:{port} cannot be bound: .*port 0 for any"):
                await server.start("127.0.0.1", port)
            await server.close()

    async def test_a_host_that_is_nowhere_is_one_line(self):
        server = Shown().server()
        with pytest.raises(ConfigError, match=r"^admin: nowhere.invalid:0 cannot be bound"):
            await server.start("nowhere.invalid", 0)
        await server.close()

    async def test_ipv6_is_in_brackets(self):
        server = Shown().server()
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

    async def test_what_is_wrong_with_a_request_is_not_logged_nor_the_token_in_it(self, capfd, caplog):
        async with served() as (_, url):
            request = f"POST /stop HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\x00\r\n\r\n"
            assert b" 400 " in (await raw(url, request.encode())).split(b"\r\n")[0]
        assert not caplog.records
        assert capfd.readouterr().err == ""

    async def test_a_body_that_is_not_as_its_headers_say(self):
        async with served() as (shown, url):
            head = f"POST /loglevel HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
            answer = await raw(url, f"{head}Transfer-Encoding: chunked\r\n\r\nzz\r\n".encode())
            assert b" 400 " in answer.split(b"\r\n")[0]
            assert shown.orders == []
            assert (await get(url, "/healthz"))[0] == 200

    async def test_a_node_that_fails_to_answer_says_so_and_logs_why(self):
        async with served() as (shown, url):
            shown.status = object()
            with capture_logs() as logs:
                status, text, _ = await get(url, "/status")
            assert (status, text) == (500, "the node has failed to answer; its log says why\n")
            assert [(line["event"], line["path"]) for line in logs] == [("http failed", "/status")]
            assert (await get(url, "/healthz"))[0] == 200
