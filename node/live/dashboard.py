"""The page that a node shows of itself to a browser: one file that loads nothing but what the node says."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files


def _allowed(page: str, tag: str) -> str:
    """What of a page is allowed to run, by its hash: nothing that gets into it later is."""
    [content] = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


_TEXT = files("node.live").joinpath("dashboard.html").read_text(encoding="utf-8")

PAGE = _TEXT.encode()
"""The page, in HTML."""

HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": (
        f"default-src 'none'; connect-src 'self'; img-src data:; script-src {_allowed(_TEXT, 'script')}; "
        f"style-src {_allowed(_TEXT, 'style')}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
