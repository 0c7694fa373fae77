"""The page that a node shows: what it is made of, and what a browser makes of it."""

import base64
import re
from html.parser import HTMLParser

import aiohttp
import pytest

from browser import BINARY, browser
from faces import TOKEN, served
from node.live.dashboard import HEADERS, PAGE

STATES = ("alive", "awaited", "suspect", "dead", "left")
STATUS = {
    "node": 3,
    "phase": "running",
    "restraint": None,
    "experiment": "digits",
    "protocol": "dpsgd",
    "nodes": 6,
    "round": 12,
    "accuracy": 0.875,
    "loss": 0.4,
    "bytes": {"sent": 1_234_567, "received": 999},
    "peers": dict.fromkeys(STATES, 1),
    "uptime_s": 3700.0,
}
PEERS = [{"node": 10 + i, "state": state, "address": "tcp://192.0.2.1:7600"} for i, state in enumerate(STATES)]
NASTY = "<img src=x onerror=document.title='owned'>"
HISTORY = {
    "curves": {
        "accuracy": {"time_s": [0.0, 5.0, 9.0], "value": [0.1, 0.5, 0.875]},
        "loss": {"time_s": [0.0, 5.0, 9.0], "value": [2.3, None, 0.4]},
    },
    "warnings": [
        {"time": "2026-01-02T03:04:05Z", "level": "warning", "event": "refused", "peer": 11, "reason": "too_large"},
        {"time": "2026-01-02T03:04:06Z", "level": "error", "event": NASTY},
    ],
}


class Parts(HTMLParser):
    """The tags of a page, with their attributes."""

    def __init__(self):
        super().__init__()
        self.tags = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def tags():
    parts = Parts()
    parts.feed(PAGE.decode())
    return parts.tags


class TestPage:
    def test_it_loads_nothing_from_anywhere(self, tags):
        for tag, attributes in tags:
            assert "src" not in attributes, tag
            assert attributes.get("href", "data:,") == "data:,", tag
        assert not re.search(r"@import|url\(|https?://(?!www\.w3\.org/2000/svg)", PAGE.decode())

    def test_it_never_puts_in_what_it_was_told_as_markup(self):
        for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("):
            assert way not in PAGE.decode()

    def test_it_suits_a_phone(self, tags):
        [viewport] = [attributes for tag, attributes in tags if attributes.get("name") == "viewport"]
        assert viewport["content"] == "width=device-width, initial-scale=1"

    def test_pictures_have_a_role_and_the_page_a_language(self, tags):
        assert [attributes.get("lang") for tag, attributes in tags if tag == "html"] == ["en"]
        assert {attributes.get("role") for tag, attributes in tags if tag == "svg"} == {"img"}

    def test_the_policy_allows_its_own_script_and_style_alone(self):
        policy = dict(part.split(" ", 1) for part in HEADERS["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
        assert policy["connect-src"] == "'self'"
        for kind in ("script-src", "style-src"):
            digest = policy[kind].removeprefix("'sha256-").removesuffix("'")
            assert len(base64.b64decode(digest)) == 32

    async def test_it_is_served_with_its_policy(self):
        async with served() as (_, url), aiohttp.ClientSession() as session, session.get(url) as answer:
            assert await answer.read() == PAGE
            assert HEADERS.items() <= dict(answer.headers).items()


@pytest.mark.skipif(BINARY is None, reason="there is no Chromium here")
class TestInBrowser:
    async def test_what_is_seen_is_what_the_node_says_and_stays_up_to_date(self, tmp_path):
        async with served() as (shown, url), browser(tmp_path) as page:
            shown.status, shown.peers, shown.history = STATUS, PEERS, HISTORY
            await page.show(url)
            await page.until("document.getElementById('state').textContent == 'running, round 12'")
            assert await page.value("document.getElementById('title').textContent") == "Node 3 of digits"
            facts = await page.value(
                "Object.fromEntries([...document.querySelectorAll('dd')].map((d) => [d.id, d.textContent]))"
            )
            assert facts["fact-accuracy"] == "0.875"
            assert facts["fact-sent"] == "1.2 MB"
            assert facts["fact-received"] == "999 B"
            assert facts["fact-uptime"] == "1 h 1 min"
            colours = await page.value(
                "[...document.querySelectorAll('#network g')].map((g) => [g.textContent, getComputedStyle(g).color])"
            )
            assert [text for text, _ in colours[:5]] == [f"{10 + i}node {10 + i}: {s}" for i, s in enumerate(STATES)]
            assert len({colour for _, colour in colours}) == 6
            assert await page.value("document.querySelectorAll('#network line').length") == 2
            assert await page.value("document.querySelector('#accuracy polyline').points.length") == 3
            assert await page.value("document.querySelector('#loss polyline').points.length") == 2
            warnings = await page.value("[...document.querySelectorAll('#warnings li')].map((li) => li.textContent)")
            assert warnings == [f"03:04:06{NASTY}", "03:04:05refused: too_large (node 11)"]
            assert await page.value("document.images.length") == 0

            shown.status = {**STATUS, "round": 13, "restraint": "paused"}
            shown.history = {"curves": {}, "warnings": []}
            await page.until("document.getElementById('state').textContent == 'paused, round 13'")
            assert await page.value("document.getElementById('warnings').textContent") == "none"
            assert await page.value("document.getElementById('loss').textContent") == "nothing recorded yet"
            assert await page.value("document.title") == "Starling: node 3"
            assert TOKEN not in await page.value("document.documentElement.outerHTML")
            assert page.problems == []

    @pytest.mark.parametrize("nodes", [0, 25, 300])
    async def test_on_a_phone_it_is_one_column_that_fits(self, tmp_path, nodes):
        async with served() as (shown, url), browser(tmp_path) as page:
            states = [STATES[node % 5] for node in range(nodes)]
            shown.peers = [{"node": 1000 + node, "state": state} for node, state in enumerate(states)]
            counts = {state: states.count(state) for state in STATES}
            shown.status, shown.history = {**STATUS, "peers": counts}, HISTORY
            await page.show(url, width=360, height=740)
            await page.until("document.querySelectorAll('#network g').length > 0")
            assert await page.value("document.documentElement.scrollWidth") <= 360
            lefts = await page.value(
                "[...document.querySelectorAll('section')].map((s) => s.getBoundingClientRect().left)"
            )
            assert len(set(lefts)) == 1
            assert await page.value("parseFloat(getComputedStyle(document.body).fontSize)") >= 16
            assert await page.value("document.querySelectorAll('#network g').length") == min(nodes, 240) + 1
            across = "[...document.querySelectorAll('#network circle')].map((c) => c.cx.baseVal.value)"
            assert all(0 <= x <= 400 for x in await page.value(across))
            assert ("60 are not drawn" in await page.value("document.getElementById('legend').textContent")) == (
                nodes == 300
            )
            assert page.problems == []
