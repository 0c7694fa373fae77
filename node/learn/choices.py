"""Choices that were made by measurement, kept in the user's cache folder so that the next run makes the same ones."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path


class Choices:
    """A JSON file of names by key. One that is not there, cannot be read or makes no sense is an empty one."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, key: str) -> str | None:
        """The choice for a key; None where none has been made."""
        return self._read().get(key)

    def keep(self, key: str, choice: str) -> None:
        """Write a choice, whole or not at all; where the folder cannot be written to, it is forgotten."""
        content = json.dumps({**self._read(), key: choice}, indent=1, sort_keys=True)
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(content)
                os.replace(temporary, self._path)
            finally:
                Path(temporary).unlink(missing_ok=True)

    def _read(self) -> dict[str, str]:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        entries = content.items() if isinstance(content, dict) else ()
        return {key: choice for key, choice in entries if isinstance(choice, str)}


def cache_folder() -> Path:
    """Where this user's programs keep what they can make again (XDG Base Directory Specification)."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return Path(given) if os.path.isabs(given) else Path(os.path.expanduser("~/.cache"))
