"""Forward passes of many requests at once, each with its adapters: continuous batching (Orca: Yu et al., OSDI 2022).

Which requests are in a pass is decided anew for each; what a request gets does not depend on who else is in it, up to
the rounding of floating-point sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from node.adapters.attaching import Attached, Wait, linear_shapes
from node.adapters.choosing import Chooser, buckets, remembered
from node.adapters.directory import layer_of, layer_order
from node.adapters.kernels import BASE, Composed, Rows, mixture
from node.adapters.stacks import Stacks
from node.errors import ConfigError
from node.learn.choices import Choices
from node.serving.keyvalues import KeyValues, Window
from node.serving.model import LanguageModel
from node.serving.sampling import Sampler, Sampling

PIECE_TOKENS = 128
"""Of a prompt, in one pass; longer ones are read in several, so that nobody waits long for a step."""
MOST_RANK = 64
MOST_MEASURED = 32
"""Requests in the batches that kernels are measured with; a rule chooses for larger ones."""


def slot_bytes(language: LanguageModel, most_rank: int = MOST_RANK) -> int:
    """What one adapter takes in memory, whatever its own rank."""
    shapes = linear_shapes(language.model).values()
    return sum((out + inward) * most_rank for out, inward in shapes) * torch.float32.itemsize


@dataclass
class Row:
    """A request in the engine: its tokens, and how many of them have been read."""

    tokens: list[int]
    place: int
    sampler: Sampler
    slots: Mapping[int, float]
    """The adapters' slots, each with its weight; none: the base alone."""
    waits: Sequence[Wait] = ()
    """For adapters of which layers are still on their way."""
    read: int = 0

    @property
    def unread(self) -> int:
        """How many tokens are left to read; one while the answer is generated."""
        return len(self.tokens) - self.read


class Engine:
    """One model with its adapters' slots. Whoever computes with it does so from one thread at a time."""

    def __init__(
        self,
        language: LanguageModel,
        slots: int,
        places: int = 32,
        most_rank: int = MOST_RANK,
    ) -> None:
        """``slots``: adapters in memory at once; ``places``: requests at once."""
        if places < 1:
            raise ConfigError(f"places: {places}; allowed: at least 1 request at once")
        self.language = language
        self.stacks = Stacks(linear_shapes(language.model), slots, most_rank)
        self.places = places
        self.kept = KeyValues(places, language.context_tokens + PIECE_TOKENS)
        self._chooser = Chooser(language.width)
        self._attached = Attached(language.model, self.stacks)

    def choose_kernels(self, choices: Choices, stopwatch: Callable[[], float]) -> None:
        """Measure which kernels are fastest here, once for all runs on this machine; until then a rule says so.

        ``stopwatch`` tells CPU time in seconds. Slots are read, whatever is in them.
        """
        layer = self.stacks.of_layer(min((layer_of(module) for module in self.stacks), key=layer_order))
        wanted = buckets(min(self.places, MOST_MEASURED))
        self._chooser = Chooser(self.language.width, remembered(choices, layer, wanted, stopwatch))

    def begin(
        self, prompt: Sequence[int], sampling: Sampling, slots: Mapping[int, float], waits: Sequence[Wait] = ()
    ) -> Row:
        """A place for a request whose prompt has one token at least; IndexError where all are taken."""
        return Row(list(prompt), self.kept.take(), Sampler(sampling), slots, waits)

    def end(self, row: Row) -> None:
        """The request is over."""
        self.kept.give_back(row.place)

    def advance(self, rows: Sequence[Row]) -> list[Row]:
        """Read on in each request, one token or a piece of its prompt; gives those that have one more token now."""
        logits = self.logits(rows)
        complete = [(row, each) for row, each in zip(rows, logits, strict=True) if not row.unread]
        likeliest = logits.argmax(dim=1).tolist()
        greedy = {id(row): token for row, token in zip(rows, likeliest, strict=True)}
        for row, each in complete:
            row.tokens.append(greedy[id(row)] if row.sampler.is_greedy else row.sampler.draw(each))
        return [row for row, _ in complete]

    @torch.inference_mode()
    def logits(self, rows: Sequence[Row]) -> Tensor:
        """The same, without choosing a token: what follows the last token that was read, shape [rows, vocabulary].

        Where an adapter that is waited for does not come, its error is raised and nothing counts as read.
        """
        counts = [min(PIECE_TOKENS, row.unread) for row in rows]
        tokens = torch.zeros(len(rows), max(counts), dtype=torch.int64)
        for index, (row, count) in enumerate(zip(rows, counts, strict=True)):
            tokens[index, :count] = torch.tensor(row.tokens[row.read : row.read + count])
        window = Window(self.kept, [row.place for row in rows], [row.read for row in rows], max(counts))
        last, which = torch.unique(torch.tensor(counts) - 1, return_inverse=True)
        with self._adapting(rows, max(counts)):
            found = self.language.model(
                input_ids=tokens,
                attention_mask=window.mask(torch.float32),
                # Padding has positions, too, and a model need not know those behind its context.
                position_ids=window.positions.clamp(max=self.language.context_tokens - 1),
                past_key_values=window,
                use_cache=True,
                logits_to_keep=last,
            )
        for row, count in zip(rows, counts, strict=True):
            row.read += count
        logits: Tensor = found.logits[torch.arange(len(rows)), which].float()
        return logits

    def _adapting(self, rows: Sequence[Row], tokens: int) -> AbstractContextManager[None]:
        waits = [wait for row in rows for wait in row.waits]
        if all(tuple(row.slots.values()) in ((), (1.0,)) for row in rows):
            single = Rows([next(iter(row.slots), BASE) for row in rows])
            return self._attached.selecting(single, self._chooser.kernel(single, tokens), waits)
        most = max(len(row.slots) for row in rows)
        slots = [[*row.slots, *[BASE] * (most - len(row.slots))] for row in rows]
        weights = [[*row.slots.values(), *[0.0] * (most - len(row.slots))] for row in rows]
        return self._attached.composing(Composed(torch.tensor(slots), torch.tensor(weights)), mixture, waits)
