"""``starling status`` and ``peers``, ``pause``, ``resume``, ``drain`` and ``stop``: what they print and exit with."""

import asyncio
import json

import pytest
from aiohttp import web

from faces import STATUS, TOKEN, served
from node.cli.main import main
from node.cli.remote import as_table


async def starling(*arguments):
    """The exit code of a command, run beside the loop that serves it."""

    def run():
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as done:
            return done.code or 0
        return 0

    return await asyncio.to_thread(run)


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "admin.token"
    path.write_text(TOKEN + "\n")
    return path


async def test_status_in_lines(capsys):
    async with served() as (_, url):
        assert await starling("status", "--node", url) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines == {
        "node": "3",
        "phase": "running",
        "round": "-",
        "peers": "alive 2",
        "waiting_for": "1, 4",
        "address": "-",
    }


async def test_status_as_json(capsys):
    async with served() as (_, url):
        assert await starling("status", "--node", f"{url}/", "--json") == 0
    assert json.loads(capsys.readouterr().out) == STATUS


async def test_peers(capsys):
    async with served() as (shown, url):
        shown.peers = [
            {
                "node": 1,
                "state": "alive",
                "since_s": 7.4,
                "rtt_s": 0.00123,
                "path": "direct",
                "address": "tcp://127.0.0.1:7600",
                "role": "learner",
            },
            {"node": 20, "state": "suspect", "since_s": 200_000.0, "rtt_s": None, "address": None, "role": None},
            {"node": 3, "state": "awaited", "path": "relay", "via": 12, "address": "outbound"},
        ]
        assert await starling("peers", "--node", url) == 0
        assert capsys.readouterr().out.splitlines() == [
            "NODE  STATE    SINCE     RTT  PATH          ADDRESS               ROLE",
            "   1  alive      7 s  1.2 ms  direct        tcp://127.0.0.1:7600  learner",
            "  20  suspect    2 d       -  -             -                     -",
            "   3  awaited      -       -  relay via 12  outbound              -",
        ]
        assert await starling("peers", "--node", url, "--json") == 0
        assert json.loads(capsys.readouterr().out) == shown.peers


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.0, "59 s"), (60.0, "1 min"), (3_599.0, "59 min"), (3_660.0, "1 h 01 min"), (172_800.0, "2 d")],
)
def test_how_long_since(seconds, text):
    table = as_table([{"node": 1, "state": "alive", "since_s": seconds}])
    assert f" {text} " in table.splitlines()[1]


async def test_no_peers(capsys):
    async with served() as (shown, url):
        shown.peers = []
        assert await starling("peers", "--node", url) == 0
    assert capsys.readouterr().out == "no peers\n"


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("pause", "pauses"),
        ("resume", "trains on"),
        ("drain", "finishes its round and leaves"),
        ("stop", "stops"),
    ],
)
async def test_orders(capsys, token_file, what, said):
    async with served() as (shown, url):
        assert await starling(what, "--node", url, "--token-file", token_file) == 0
        assert shown.orders == [what]
    assert capsys.readouterr().out == f"{url} {said}\n"


async def test_what_a_node_will_not_do_now(capsys, token_file):
    async with served() as (shown, url):
        shown.is_leaving = True
        assert await starling("resume", "--node", url, "--token-file", token_file) == 3
    assert capsys.readouterr().err == f"starling: {url}: the node is leaving\n"


async def test_stop_with_the_default_token_file(monkeypatch, tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "admin.token").write_text(TOKEN)
    monkeypatch.chdir(tmp_path)
    async with served() as (shown, url):
        assert await starling("stop", "--node", url) == 0
        assert shown.stops == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("wrong", "refuses this token"),
        ("", "holds no token"),
        ("two\nlines", "holds no token"),
        (None, "cannot be read"),
    ],
)
@pytest.mark.parametrize("what", ["pause", "resume", "drain", "stop"])
async def test_no_order_without_the_token(capsys, tmp_path, what, content, said):
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
    async with served() as (shown, url):
        assert await starling(what, "--node", url, "--token-file", path) == 2
        assert shown.orders == []
    complaint = capsys.readouterr().err
    assert said in complaint
    assert complaint.count("\n") == 1


@pytest.mark.parametrize("command", ["status", "peers"])
async def test_nobody_there(capsys, command):
    async with served() as (_, url):
        pass
    assert await starling(command, "--node", url) == 3
    complaint = capsys.readouterr().err
    assert f"{url}: no node answers there" in complaint
    assert complaint.count("\n") == 1


@pytest.mark.parametrize(
    "url", ["127.0.0.1:7601", "file:///etc/passwd", "ftp://host/x", "http://", "http://[", "http://h:x"]
)
async def test_what_is_no_url(capsys, url):
    assert await starling("status", "--node", url) == 2
    assert "not a URL; write it as http://host:port" in capsys.readouterr().err


async def test_something_else_answers(capsys):
    async with served() as (_, url):
        assert await starling("status", "--node", f"{url}/other") == 3
    assert "answers 404" in capsys.readouterr().err


async def test_the_token_follows_no_redirect(token_file):
    seen = []

    async def away(request):
        seen.append(request.path)
        raise web.HTTPFound("/elsewhere")

    app = web.Application()
    app.router.add_route("*", "/{any:.*}", away)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    assert await starling("stop", "--node", url, "--token-file", token_file) == 3
    await runner.cleanup()
    assert seen == ["/stop"]


async def test_a_proxy_of_the_environment_is_not_asked(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with served() as (_, url):
        assert await starling("status", "--node", url) == 0
