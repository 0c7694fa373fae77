"""What may be changed of a node over HTTP: by whoever has its token, under a name that is the node's own."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

import msgspec
from aiohttp import web

from node.errors import StarlingError

Level = Literal["debug", "info", "warning", "error"]


class _LogLevel(msgspec.Struct, forbid_unknown_fields=True):
    level: Level


@dataclass(frozen=True)
class Control:
    """What a node can be told. Each may be called again; StarlingError: not now."""

    pause: Callable[[], None]
    """Begins no new training step, and goes on answering."""
    resume: Callable[[], None]
    """Takes a pause back."""
    drain: Callable[[], None]
    """Leaves as soon as nothing is lost by it."""
    stop: Callable[[], None]
    """Ends the node in order."""
    set_level: Callable[[Level], None]
    """Logs this and what is worse."""
    note: Callable[[str, str, str], None]
    """Is told who wanted what, and why that was refused, or ``""``."""


class ControlRoutes:
    """Takes orders over HTTP."""

    def __init__(self, control: Control, token: str, hosts: Iterable[str]) -> None:
        """``hosts`` are names that the node is reached under, besides loopback and the address of each connection."""
        self._control = control
        self._token = token.encode()
        self._hosts = frozenset(hosts)

    def routes(self) -> list[web.RouteDef]:
        """The paths, all of them for POST."""
        control = self._control
        return [
            web.post("/pause", partial(self._plain, control.pause)),
            web.post("/resume", partial(self._plain, control.resume)),
            web.post("/drain", partial(self._plain, control.drain)),
            web.post("/stop", partial(self._plain, control.stop)),
            web.post("/loglevel", self._set_level),
        ]

    async def _plain(self, act: Callable[[], None], request: web.Request) -> web.Response:
        self._admit(request)
        return self._done(request, act)

    async def _set_level(self, request: web.Request) -> web.Response:
        self._admit(request)
        try:
            wanted = msgspec.json.decode(await request.read(), type=_LogLevel)
        except ValueError as error:
            allowed = ", ".join(get_args(Level))
            raise web.HTTPBadRequest(text=f'{error}; write {{"level": "info"}}, allowed are {allowed}\n') from None
        return self._done(request, lambda: self._control.set_level(wanted.level), **msgspec.structs.asdict(wanted))

    def _done(self, request: web.Request, act: Callable[[], None], **what: Any) -> web.Response:
        action = request.path.removeprefix("/")
        try:
            act()
        except StarlingError as error:
            self._control.note(_caller(request), action, str(error))
            raise web.HTTPConflict(text=f"{error}\n") from None
        self._control.note(_caller(request), " ".join([action, *what.values()]), "")
        return web.json_response({"done": action, **what})

    def _admit(self, request: web.Request) -> None:
        # A page in a browser can reach loopback, under a name of its own choice: the token alone would not tell why.
        if not self._is_ours(request):
            self._control.note(_caller(request), request.path.removeprefix("/"), "host")
            raise web.HTTPMisdirectedRequest(text="this node is not reached under that name\n")
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or not hmac.compare_digest(given.encode(errors="replace"), self._token):
            self._control.note(_caller(request), request.path.removeprefix("/"), "token")
            raise web.HTTPForbidden(text="telling a node what to do takes its token\n")

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


def _caller(request: web.Request) -> str:
    return request.remote or "unknown"
