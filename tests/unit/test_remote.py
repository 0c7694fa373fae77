"""``starling status``, ``peers`` and ``stop``: what they print, and their exit codes."""

import asyncio
import json

import pytest
from aiohttp import web

from faces import PEERS, STATUS, TOKEN, served
from node.cli.main import main


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
    async with served() as (_, url):
        assert await starling("peers", "--node", url) == 0
        assert capsys.readouterr().out.split() == ["1", "alive", "tcp://127.0.0.1:7600", "2", "dead", "-"]
        assert await starling("peers", "--node", url, "--json") == 0
    assert json.loads(capsys.readouterr().out) == PEERS


async def test_no_peers(capsys):
    async with served() as (shown, url):
        shown.peers = []
        assert await starling("peers", "--node", url) == 0
    assert capsys.readouterr().out == "no peers\n"


async def test_stop(capsys, token_file):
    async with served() as (shown, url):
        assert await starling("stop", "--node", url, "--token-file", token_file) == 0
        assert shown.stops == 1
    assert capsys.readouterr().out == f"{url} stops\n"


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
async def test_stop_without_the_token(capsys, tmp_path, content, said):
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
    async with served() as (shown, url):
        assert await starling("stop", "--node", url, "--token-file", path) == 2
        assert shown.stops == 0
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
