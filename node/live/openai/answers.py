"""What clients get: OpenAI's objects, with a field and headers that say which adapters have answered."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from node.serving.registry import Named
from node.serving.reply import Finish, Reply


@dataclass(frozen=True)
class Chosen:
    """What answers a request: adapters with their weights and, where they were selected, how near they were."""

    mode: str
    """``base``, ``select`` or ``mixture``."""
    adapters: tuple[Named, ...] = ()
    weights: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()

    def facts(self, reply: Reply) -> dict[str, Any]:
        """The ``starling`` field."""
        scores = self.scores or (None,) * len(self.adapters)
        return {
            "mode": self.mode,
            "adapters": [
                {"name": named.name, "version": named.version, "weight": weight, "score": score}
                for named, weight, score in zip(self.adapters, self.weights, scores, strict=True)
            ],
            "load_wait_s": reply.timing.load_wait_s,
        }

    def headers(self, reply: Reply) -> dict[str, str]:
        """The same, for who reads no bodies."""
        return {
            "X-Starling-Mode": self.mode,
            "X-Starling-Adapters": ", ".join(f"{named.name}@{named.version[:16]}" for named in self.adapters),
            "X-Starling-Scores": ", ".join(f"{score:.4f}" for score in self.scores),
            "X-Starling-Load-Wait-Seconds": f"{reply.timing.load_wait_s:.6f}",
        }


@dataclass(frozen=True)
class Answer:
    """The objects of one answer."""

    model: str
    is_chat: bool
    chosen: Chosen
    reply: Reply
    created_s: int = field(default_factory=lambda: int(time.time()))
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def whole(self, text: str, finish: Finish) -> dict[str, Any]:
        """All of it at once."""
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish}
        choice |= {"message": {"role": "assistant", "content": text}} if self.is_chat else {"text": text}
        return {**self._head(is_piece=False), "choices": [choice], "usage": self.usage()}

    def piece(self, text: str, finish: Finish | None, is_first: bool) -> dict[str, Any]:
        """A piece of a stream; the first says whose it is."""
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish}
        role = {"role": "assistant"} if is_first else {}
        choice |= {"delta": {**role, "content": text}} if self.is_chat else {"text": text}
        return {**self._head(is_piece=True), "choices": [choice]}

    def last(self) -> dict[str, Any]:
        """What a stream ends with where its usage is asked for."""
        return {**self._head(is_piece=True), "choices": [], "usage": self.usage()}

    def usage(self) -> Mapping[str, int]:
        """How many tokens it took."""
        prompt, generated = self.reply.prompt_tokens, self.reply.generated
        return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}

    def _head(self, is_piece: bool) -> dict[str, Any]:
        prefix, kind = ("chatcmpl", "chat.completion") if self.is_chat else ("cmpl", "text_completion")
        return {
            "id": f"{prefix}-{self.id}",
            "object": f"{kind}.chunk" if self.is_chat and is_piece else kind,
            "created": self.created_s,
            "model": self.model,
            "starling": self.chosen.facts(self.reply),
        }
