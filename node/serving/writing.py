"""Tokens become text as soon as it is known: half a letter is not shown, nor what may yet become a stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_HALF = "�"
"""What tokenizers give for bytes that are no letter yet."""


class Writer:
    """The text of one answer."""

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        """``stops``: the answer ends before the first of these."""
        self._tokenizer = tokenizer
        self._stops = tuple(stop for stop in stops if stop)
        self._tokens: list[int] = []
        self._start = self._shown = 0
        self._held = ""
        self.is_stopped = False
        """Whether a stop was found."""

    def add(self, token: int) -> str:
        """One more token; gives the text that can be shown now."""
        self._tokens.append(token)
        known = self._decoded(self._start, self._shown)
        text = self._decoded(self._start, len(self._tokens))
        # Some tokenizers write a token differently behind another one: the tokens shown last are decoded once more.
        if len(text) > len(known) and not text.endswith(_HALF):
            self._start, self._shown = self._shown, len(self._tokens)
            self._held += text[len(known) :]
        return self._cut()

    def finish(self) -> str:
        """No more tokens come; gives what was held back."""
        if self.is_stopped:
            return ""
        known = self._decoded(self._start, self._shown)
        self._held += self._decoded(self._start, len(self._tokens))[len(known) :]
        self._shown = len(self._tokens)
        shown = self._cut()
        if not self.is_stopped:
            shown, self._held = shown + self._held, ""
        return shown

    def _decoded(self, start: int, end: int) -> str:
        return str(self._tokenizer.decode(self._tokens[start:end], skip_special_tokens=True))

    def _cut(self) -> str:
        """Take out of what is held what can be no part of a stop."""
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.is_stopped = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text are the beginning of a stop."""
    longest = min(len(text), len(stop) - 1)
    return next((count for count in range(longest, 0, -1) if text.endswith(stop[:count])), 0)
