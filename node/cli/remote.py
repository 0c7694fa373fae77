"""Ask a running node over its HTTP interface, and tell it what to do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from node.errors import ConfigError, Unreachable

_TIMEOUT_S = 5.0
_MOST_BYTES = 16 << 20
_NUMBERS = (0, 2, 3)
"""Columns of the table of peers that are numbers."""


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """No node redirects, and a token goes to nobody else."""


_opener = build_opener(ProxyHandler({}), _NoRedirect())


def ask(node: str, what: str) -> Any:
    """What a node answers to ``GET /what``, parsed. Raises as :func:`order`, but for the token."""
    return _fetch(node, Request(_url(node, what)))


def order(node: str, what: str, token_file: Path) -> None:
    """Have a node ``pause``, ``resume``, ``drain`` or ``stop``; it answers at once, and does it soon.

    Raises:
        ConfigError: no URL, no token, or not this node's token.
        Unreachable: no node answers there, or it will not now.
    """
    try:
        token = token_file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a token"
        raise ConfigError(
            f"--token-file {token_file}: cannot be read: {reason}; name admin.token in the node's state folder"
        ) from None
    if not token or not token.isprintable():
        raise ConfigError(f"--token-file {token_file}: holds no token; name admin.token in the node's state folder")
    _fetch(node, Request(_url(node, what), method="POST", headers={"Authorization": f"Bearer {token}"}))


def as_lines(found: Mapping[str, Any]) -> str:
    """A status, a line for each key."""
    return "\n".join(f"{key:<12} {_shown(value)}" for key, value in found.items())


def as_table(found: Sequence[Mapping[str, Any]]) -> str:
    """Peers, a line for each: who, in which state and since when, how far away, how it is reached, and what for."""
    if not found:
        return "no peers"
    rows = [("NODE", "STATE", "SINCE", "RTT", "PATH", "ADDRESS", "ROLE"), *map(_row, found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_line(row, widths) for row in rows)


def _row(peer: Mapping[str, Any]) -> tuple[str, ...]:
    since_s, rtt_s = peer.get("since_s"), peer.get("rtt_s")
    return (
        _shown(peer["node"]),
        _shown(peer["state"]),
        "-" if since_s is None else _duration(since_s),
        "-" if rtt_s is None else f"{rtt_s * 1000:.1f} ms",
        _path(peer),
        _shown(peer.get("address")),
        _shown(peer.get("role")),
    )


def _path(peer: Mapping[str, Any]) -> str:
    via = peer.get("via")
    return _shown(peer.get("path")) if via is None else f"relay via {via}"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell.rjust(width) if column in _NUMBERS else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()


def _duration(seconds: float) -> str:
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if hours >= 48:
        return f"{hours // 24} d"
    return f"{hours} h {minutes % 60:02} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(part)}" for key, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "-"
    return "-" if value in (None, "") else str(value)


def _url(node: str, what: str) -> str:
    try:
        parts = urlsplit(node)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise ConfigError(f"--node {node}: not a URL; write it as http://host:port, the node's admin address")
    return f"{node.rstrip('/')}/{what}"


def _fetch(node: str, request: Request) -> Any:
    try:
        with _opener.open(request, timeout=_TIMEOUT_S) as answer:
            return json.loads(answer.read(_MOST_BYTES))
    except HTTPError as error:
        with error:
            said = error.read(200).decode(errors="replace").strip()
        if error.code == 403:
            raise ConfigError(
                f"--token-file: {node} refuses this token; take admin.token of its state folder"
            ) from None
        if error.code == 409:
            raise Unreachable(f"{node}: {said}") from None
        raise Unreachable(f"{node}: answers {error.code} ({said}); is this a node's admin address?") from None
    except (URLError, TimeoutError, HTTPException, ValueError, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise Unreachable(
            f"{node}: no node answers there ({reason}); is it running, and is this its admin address?"
        ) from None
