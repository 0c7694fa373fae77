"""A node's HTTP interface: health and readiness, metrics, status, and a stop that takes a token."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from node.errors import ConfigError

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_MOST_BODY_BYTES = 1024
_SHUTDOWN_S = 0.5


@dataclass(frozen=True)
class Face:
    """What a node shows; every callable is asked anew with each request."""

    ill: Callable[[], str | None]
    """Why the node does not work, whatever its peers do; None: it does."""
    unready: Callable[[], str | None]
    """Why it does not take part; None: it does."""
    status: Callable[[], Mapping[str, Any]]
    peers: Callable[[], Sequence[Mapping[str, Any]]]
    metrics: Callable[[], bytes]
    """In the Prometheus text format."""
    stop: Callable[[], None]
    """Ends the node in order; may be called again."""


class HttpServer:
    """Serves a :class:`Face`. Whoever reaches the address may read; to change something takes the token."""

    def __init__(self, face: Face, token: str, hosts: Iterable[str] = ()) -> None:
        """``hosts`` are names that the node is reached under, besides loopback and the address of each connection."""
        self._face = face
        self._token = token.encode()
        self._hosts = frozenset(hosts)
        app = web.Application(client_max_size=_MOST_BODY_BYTES)
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
                web.get("/status", self._status),
                web.get("/peers", self._peers),
                web.post("/stop", self._stop),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_S)

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

    async def _healthz(self, request: web.Request) -> web.Response:
        return _verdict(self._face.ill())

    async def _readyz(self, request: web.Request) -> web.Response:
        return _verdict(self._face.unready())

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._face.metrics(), headers={"Content-Type": METRICS_TYPE})

    async def _status(self, request: web.Request) -> web.Response:
        return web.json_response(self._face.status())

    async def _peers(self, request: web.Request) -> web.Response:
        return web.json_response(self._face.peers())

    async def _stop(self, request: web.Request) -> web.Response:
        # A page in a browser can reach loopback, under a name of its own choice: the token alone would not tell why.
        if not self._is_ours(request):
            raise web.HTTPMisdirectedRequest(text="this node is not reached under that name\n")
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or not hmac.compare_digest(given.encode(errors="replace"), self._token):
            raise web.HTTPForbidden(text="stopping a node takes its token\n")
        self._face.stop()
        return web.json_response({"stopping": True})

    def _is_ours(self, request: web.Request) -> bool:
        try:
            host = urlsplit(f"//{request.headers.get('Host', '')}").hostname
        except ValueError:
            return False
        if not host:
            return False
        if host == "localhost" or host in self._hosts:
            return True
        local = request.transport.get_extra_info("sockname")[0] if request.transport else None
        try:
            return host == local or ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False


def _verdict(trouble: str | None) -> web.Response:
    return web.Response(text=f"{trouble or 'ok'}\n", status=503 if trouble else 200)
