"""A node's HTTP interface: health and readiness, metrics, status, a page to look at, and control by its token."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from node.errors import ConfigError
from node.live.control import Control, ControlRoutes
from node.live.dashboard import HEADERS, PAGE

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_MOST_BODY_BYTES = 1024
_SHUTDOWN_S = 0.5

# aiohttp would log what is wrong with a request as often as strangers like, and with the token that may be in it.
_SILENCE = logging.Logger("starling.http")
_SILENCE.addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Face:
    """What a node shows; every callable is asked anew with each request."""

    ill: Callable[[], str | None]
    """Why the node does not work, whatever its peers do; None: it does."""
    unready: Callable[[], str | None]
    """Why it does not take part; None: it does."""
    status: Callable[[], Mapping[str, Any]]
    peers: Callable[[], Sequence[Mapping[str, Any]]]
    history: Callable[[], Mapping[str, Any]]
    """Curves, and the last warnings."""
    metrics: Callable[[], bytes]
    """In the Prometheus text format."""


class HttpServer:
    """Serves a :class:`Face`. Whoever reaches the address may read; to change something takes the token."""

    def __init__(self, face: Face, control: Control, token: str, hosts: Iterable[str] = ()) -> None:
        """``hosts`` are names that the node is reached under, besides loopback and the address of each connection."""
        self._face = face
        app = web.Application(client_max_size=_MOST_BODY_BYTES, middlewares=[_tell_failure])
        app.add_routes(
            [
                web.get("/", self._page),
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
                web.get("/status", partial(_facts, face.status)),
                web.get("/peers", partial(_facts, face.peers)),
                web.get("/history", partial(_facts, face.history)),
                *ControlRoutes(control, token, hosts).routes(),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, logger=_SILENCE, shutdown_timeout=_SHUTDOWN_S)

    async def start(self, host: str, port: int) -> str:
        """Listen, on any free port for 0; gives the URL. ConfigError where the address cannot be had."""
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            raise ConfigError(
                f"admin: {host}:{port} cannot be bound: {error.strerror or error}; allowed are an address of this "
                "machine and a free port, port 0 for any, or '' for no HTTP at all"
            ) from None
        bound, port = self._runner.addresses[0][:2]
        return f"http://[{bound}]:{port}" if ":" in bound else f"http://{bound}:{port}"

    async def close(self) -> None:
        """Stop listening, after the answers that are on their way."""
        await self._runner.cleanup()

    async def _page(self, request: web.Request) -> web.Response:
        return web.Response(body=PAGE, headers=HEADERS)

    async def _healthz(self, request: web.Request) -> web.Response:
        return _verdict(self._face.ill())

    async def _readyz(self, request: web.Request) -> web.Response:
        return _verdict(self._face.unready())

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._face.metrics(), headers={"Content-Type": METRICS_TYPE})


@web.middleware
async def _tell_failure(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except (web.HTTPException, ConnectionError):
        raise
    except web.RequestPayloadError:
        raise web.HTTPBadRequest(text="the body does not end as its headers say\n") from None
    except Exception:
        structlog.get_logger().error("http failed", path=request.path, exc_info=True)
        raise web.HTTPInternalServerError(text="the node has failed to answer; its log says why\n") from None


async def _facts(ask: Callable[[], Any], request: web.Request) -> web.Response:
    return web.json_response(ask())


def _verdict(trouble: str | None) -> web.Response:
    return web.Response(text=f"{trouble or 'ok'}\n", status=503 if trouble else 200)
