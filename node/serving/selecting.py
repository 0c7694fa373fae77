"""Which adapters answer a query for which the client names none: the nearest by example prompts, or the base alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from node.selection.deciding import Choice, Rule, calibrated, decide
from node.selection.embedding import Embedder, HashedNgrams, Remembering
from node.selection.index import Index
from node.selection.profile import Card, packed, profile
from node.serving.registry import Named

FEWEST_PROMPTS = 2
"""An adapter with fewer is never selected: with one prompt there is nothing to calibrate by."""


class Selector:
    """The adapters that have example prompts. Thresholds follow from these prompts alone."""

    def __init__(self, adapters: Iterable[Named] = (), embedder: Embedder | None = None) -> None:
        """``embedder``: hashed n-grams, weighted by the prompts of the first adapters, unless given."""
        known = list(adapters)
        texts = [prompt for named in known for prompt in named.prompts]
        self.embedder: Embedder = Remembering(embedder or HashedNgrams(texts))
        self._index = Index(self.embedder.name)
        self._prompts: dict[str, tuple[str, ...]] = {}
        self._rule: Rule | None = None
        for named in known:
            self.put(named)

    def __len__(self) -> int:
        return len(self._index)

    def put(self, named: Named) -> None:
        """Select an adapter from now on, if it has prompts."""
        self.remove(named.name)
        if len(set(named.prompts)) >= FEWEST_PROMPTS:
            vector = packed(profile(named.prompts, self.embedder))
            self._index.add(Card(named.name, named.version, 0, 0, "", self.embedder.name, vector))
            self._prompts[named.name] = named.prompts
            self._rule = None

    def remove(self, name: str) -> None:
        """Select it no more; nothing happens where it was not."""
        self._index.remove(name)
        if self._prompts.pop(name, None):
            self._rule = None

    def choose(self, query: str) -> Choice:
        """One adapter, or the base where none is near enough."""
        return decide(self._index.scores(self.embedder.embed([query]))[0], self.rule)

    def mix(self, query: str, top_k: int) -> Choice:
        """Up to so many adapters, or the base."""
        rule = replace(self.rule, top_k=top_k, sure_score=float("inf"))
        return decide(self._index.scores(self.embedder.embed([query]))[0], rule)

    @property
    def rule(self) -> Rule:
        """The thresholds; worked out anew after adapters have changed."""
        if self._rule is None:
            self._rule = calibrated(self._prompts, self.embedder) if self._prompts else Rule()
        return self._rule
