"""The application of a serving node, on a socket: what was asked is answered before it ends."""

from __future__ import annotations

import logging

from aiohttp import web

from node.errors import ConfigError
from node.live.openai.administration import AdministrationRoutes
from node.live.openai.bodies import MOST_BODY_BYTES
from node.live.openai.figures import Figures
from node.live.openai.generation import GenerationRoutes
from node.live.openai.refusals import telling
from node.live.openai.surface import Surface

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BACKLOG = 1024
_SHUTDOWN_S = 1.0

# aiohttp would log what is wrong with a request as often as strangers like.
_SILENCE = logging.Logger("starling.openai")
_SILENCE.addHandler(logging.NullHandler())


class OpenAIServer:
    """Serves a :class:`Surface`. Whoever reaches the address may ask."""

    def __init__(self, surface: Surface) -> None:
        self._surface = surface
        self._figures = Figures(surface.serving)
        app = web.Application(client_max_size=MOST_BODY_BYTES, middlewares=[telling])
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/health", self._healthz),
                web.get("/metrics", self._metrics),
                *GenerationRoutes(surface).routes(),
                *AdministrationRoutes(surface).routes(),
            ]
        )
        # A handler whose client has gone is cancelled, and with it what it has the engine do.
        self._runner = web.AppRunner(
            app, access_log=None, logger=_SILENCE, shutdown_timeout=_SHUTDOWN_S, handler_cancellation=True
        )

    async def start(self, host: str, port: int) -> str:
        """Listen, on any free port for 0; gives the URL. ConfigError where the address cannot be had."""
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port, backlog=_BACKLOG).start()
        except OSError as error:
            raise ConfigError(
                f"--listen {host}:{port}: cannot be bound: {error.strerror or error}; allowed are an address of this"
                " machine and a free port, port 0 for any"
            ) from None
        bound, port = self._runner.addresses[0][:2]
        return f"http://[{bound}]:{port}" if ":" in bound else f"http://{bound}:{port}"

    async def close(self, deadline_s: float) -> None:
        """Stop listening, answer for so long what has been asked, and stop the serving loop, too."""
        for site in list(self._runner.sites):
            await site.stop()
        await self._surface.serving.stop(deadline_s)
        await self._runner.cleanup()

    async def _healthz(self, request: web.Request) -> web.Response:
        is_well = self._surface.serving.is_well
        return web.Response(text="ok\n" if is_well else "serving has ended\n", status=200 if is_well else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._figures.text(), headers={"Content-Type": _METRICS_TYPE})
