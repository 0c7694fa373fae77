"""Orders over HTTP: which there are, who may give them, and what is written down of it."""

import aiohttp
import pytest

from faces import TOKEN, served

BEARER = {"Authorization": f"Bearer {TOKEN}"}
PLAIN = ("pause", "resume", "drain", "stop")


async def post(url, what, body=None, **headers):
    """Status and text of the answer."""
    async with (
        aiohttp.ClientSession(skip_auto_headers=["Content-Type"]) as session,
        session.post(f"{url}/{what}", data=body, headers=headers) as answer,
    ):
        return answer.status, await answer.text()


@pytest.mark.parametrize("what", PLAIN)
async def test_an_order_with_the_token_is_carried_out_and_written_down(what):
    async with served() as (shown, url):
        assert await post(url, what, **BEARER) == (200, f'{{"done": "{what}"}}')
        assert shown.orders == [what]
        assert shown.noted == [("127.0.0.1", what, "")]


async def test_an_order_may_come_twice():
    async with served() as (shown, url):
        assert [(await post(url, "stop", **BEARER))[0] for _ in range(2)] == [200, 200]
        assert shown.orders == ["stop", "stop"]


@pytest.mark.parametrize("what", [*PLAIN, "loglevel"])
@pytest.mark.parametrize(
    "given",
    [None, "", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, "Bearer tö"],
)
async def test_without_the_token_nothing_happens(what, given):
    async with served() as (shown, url):
        headers = {} if given is None else {"Authorization": given}
        assert (await post(url, what, b'{"level": "info"}', **headers))[0] == 403
        assert shown.orders == []
        assert shown.noted == [("127.0.0.1", what, "token")]


@pytest.mark.parametrize("what", [*PLAIN, "loglevel"])
@pytest.mark.parametrize("host", ["evil.example", "evil.example:7601", "", "[", "127.0.0.1.evil.example", "8.8.8.8"])
async def test_under_a_strange_name_nothing_happens_even_with_the_token(what, host):
    async with served(hosts=("node-1.example",)) as (shown, url):
        assert (await post(url, what, b'{"level": "info"}', **BEARER, Host=host))[0] == 421
        assert shown.orders == []
        assert shown.noted == [("127.0.0.1", what, "host")]


@pytest.mark.parametrize("host", ["localhost:7601", "127.0.0.1", "[::1]:7601", "node-1.example:7601", "LOCALHOST"])
async def test_names_of_its_own_are_heard(host):
    async with served(hosts=("node-1.example",)) as (shown, url):
        assert (await post(url, "stop", **BEARER, Host=host))[0] == 200
        assert shown.orders == ["stop"]


async def test_what_the_node_will_not_do_now_is_a_conflict_and_written_down():
    async with served() as (shown, url):
        shown.is_leaving = True
        assert await post(url, "pause", **BEARER) == (409, "the node is leaving\n")
        assert shown.orders == []
        assert shown.noted == [("127.0.0.1", "pause", "the node is leaving")]


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
async def test_the_level_of_the_log(level):
    async with served() as (shown, url):
        status, text = await post(url, "loglevel", f'{{"level": "{level}"}}'.encode(), **BEARER)
        assert (status, text) == (200, f'{{"done": "loglevel", "level": "{level}"}}')
        assert shown.orders == [level]
        assert shown.noted == [("127.0.0.1", f"loglevel {level}", "")]


@pytest.mark.parametrize(
    "body",
    [
        None,
        b"",
        b"debug",
        b"null",
        b"[]",
        b"{}",
        b'{"level": "loud"}',
        b'{"level": 1}',
        b'{"level": "debug", "more": 1}',
        b'{"level": "debug"',
        b"\xff\xfe",
        b'{"\xdd": 1}',
        b"[" * 1000,
    ],
)
async def test_what_is_no_level_is_one_line_that_says_what_is(body):
    async with served() as (shown, url):
        status, text = await post(url, "loglevel", body, **BEARER)
        assert status == 400
        assert text.endswith('write {"level": "info"}, allowed are debug, info, warning, error\n')
        assert text.count("\n") == 1
        assert shown.orders == []


async def test_a_large_body_is_refused():
    async with served() as (shown, url):
        assert (await post(url, "loglevel", b"x" * 100_000, **BEARER))[0] == 413
        assert shown.orders == []


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_other_methods_do_nothing(method):
    async with served() as (shown, url), aiohttp.ClientSession(headers=BEARER) as session:
        async with session.request(method, f"{url}/stop") as answer:
            assert answer.status == 405
        assert shown.orders == []


async def test_no_answer_lets_another_site_read_it():
    async with served() as (_, url), aiohttp.ClientSession() as session:
        for path in ("/", "/status", "/peers", "/history"):
            async with session.get(url + path, headers={"Origin": "http://evil.example"}) as answer:
                assert "Access-Control-Allow-Origin" not in answer.headers
