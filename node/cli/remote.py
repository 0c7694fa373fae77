"""Ask a running node over its HTTP interface."""

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


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """No node redirects, and a token goes to nobody else."""


_opener = build_opener(ProxyHandler({}), _NoRedirect())


def ask(node: str, what: str) -> Any:
    """What a node answers to ``GET /what``, parsed. Raises as :func:`ask_to_stop`."""
    return _fetch(node, Request(_url(node, what)))


def ask_to_stop(node: str, token_file: Path) -> None:
    """Have a node stop; it answers at once, and is gone within seconds.

    Raises:
        ConfigError: no URL, no token, or not this node's token.
        Unreachable: no node answers there.
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
    _fetch(node, Request(_url(node, "stop"), method="POST", headers={"Authorization": f"Bearer {token}"}))


def as_lines(found: Mapping[str, Any]) -> str:
    """A status, a line for each key."""
    return "\n".join(f"{key:<12} {_shown(value)}" for key, value in found.items())


def as_table(found: Sequence[Mapping[str, Any]]) -> str:
    """Peers, a line for each."""
    return "\n".join(f"{peer['node']:>6} {peer['state']:<8} {_shown(peer['address'])}" for peer in found) or "no peers"


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
        raise Unreachable(f"{node}: answers {error.code} ({said}); is this a node's admin address?") from None
    except (URLError, TimeoutError, HTTPException, ValueError, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise Unreachable(
            f"{node}: no node answers there ({reason}); is it running, and is this its admin address?"
        ) from None
