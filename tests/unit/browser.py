"""A headless Chromium that a test asks about a page, over its debugging protocol."""

import asyncio
import itertools
import json
import shutil
from contextlib import asynccontextmanager

import aiohttp

WAIT_S = 40.0
BINARY = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


class Page:
    """One page of a browser."""

    def __init__(self, socket):
        self._socket, self._numbers = socket, itertools.count(1)
        self._loads = 0
        self.problems = []
        """What was thrown in the page, or refused by its policy."""

    async def tell(self, method, **params):
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        async with asyncio.timeout(WAIT_S):
            while (said := await self._hear()).get("id") != number:
                pass
        return said["result"]

    async def _hear(self):
        said = json.loads((await self._socket.receive()).data)
        self._loads += said.get("method") == "Page.loadEventFired"
        if said.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
            self.problems.append(said["params"])
        return said

    async def value(self, expression):
        """What an expression comes to in the page."""
        found = await self.tell("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, expression):
        async with asyncio.timeout(WAIT_S):
            while not await self.value(expression):
                await self.value("new Promise((done) => requestAnimationFrame(done))")

    async def show(self, url, width=1280, height=900):
        await self.tell(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        for domain in ("Runtime", "Log", "Page"):
            await self.tell(f"{domain}.enable")
        before = self._loads
        await self.tell("Page.navigate", url=url)
        async with asyncio.timeout(WAIT_S):
            while self._loads == before:
                await self._hear()


@asynccontextmanager
async def browser(folder):
    """A page of a browser of its own."""
    process = await asyncio.create_subprocess_exec(
        BINARY,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--no-proxy-server",
        "--disable-background-networking",
        f"--user-data-dir={folder}",
        "--remote-debugging-port=0",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    draining = None
    try:
        async with asyncio.timeout(WAIT_S):
            while b"listening on" not in (line := await process.stderr.readline()):
                assert line, "the browser has ended"
        draining = asyncio.create_task(process.stderr.read())
        port = line.decode().split("://")[1].split("/")[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://{port}/json/list") as answer:
                [target] = [each for each in await answer.json() if each["type"] == "page"]
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                yield Page(socket)
    finally:
        process.kill()
        await process.wait()
        if draining is not None:
            await draining
