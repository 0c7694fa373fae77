"""What the test bed's model writes, greedily, how often that is right, and how surprised it is by what is right."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from node.adapters.attaching import Attached
from node.adapters.kernels import BASE, Composed, Composition, Rows, segment
from node.testbed.questions import divided
from node.testbed.spelling.languages import SERVED, spell
from node.testbed.tokens import EOS, MOST_TOKENS, prompt, text
from node.testbed.training import batch

Adding = Callable[[Sequence[int]], AbstractContextManager[None]]
"""Adds adapters within, for a batch of these requests, by their places."""


class Scores(NamedTuple):
    """Shares of held-out numbers, by language, that are spelled exactly."""

    base: dict[str, float]
    right: dict[str, float]
    """By the language's own adapter."""
    wrong: dict[str, float]
    """By the best of the others."""


def base_alone(places: Sequence[int]) -> AbstractContextManager[None]:
    """No adapters."""
    return nullcontext()


def selecting(attached: Attached, slots: Sequence[int]) -> Adding:
    """One adapter for each request; ``slots`` [requests]."""
    return lambda places: attached.selecting(Rows([slots[place] for place in places]), segment)


def composing(attached: Attached, composed: Composed, composition: Composition) -> Adding:
    """Several adapters for each request."""
    return lambda places: attached.composing(
        Composed(composed.slots[list(places)], composed.weights[list(places)]), composition
    )


def written(model: nn.Module, numbers: Sequence[int], adding: Adding = base_alone) -> list[str]:
    """What the model answers to each number; prompts of one length make a batch."""
    prompts = [prompt(number) for number in numbers]
    answers = [""] * len(numbers)
    for length in sorted({len(tokens) for tokens in prompts}):
        places = [place for place, tokens in enumerate(prompts) if len(tokens) == length]
        with torch.inference_mode(), adding(places):
            found = _greedy(model, torch.tensor([prompts[place] for place in places]))
        for place, tokens in zip(places, found.tolist(), strict=True):
            answers[place] = text(tokens)
    return answers


def exact(answers: Sequence[str], numbers: Sequence[int], languages: Sequence[str]) -> float:
    """The share of answers that are exactly the words."""
    pairs = zip(answers, numbers, languages, strict=True)
    return sum(each == spell(language, number) for each, number, language in pairs) / len(answers)


def bits_per_byte(model: nn.Module, numbers: Sequence[int], language: str, adding: Adding = base_alone) -> float:
    """How surprised the model is by the right words, the mark at their end included."""
    asked = batch(numbers, [language] * len(numbers))
    with torch.inference_mode(), adding(range(len(numbers))):
        logits = model(asked.tokens[:, :-1]).logits
    labels = asked.labels[:, 1:].flatten()
    return float(cross_entropy(logits.flatten(0, 1), labels)) / math.log(2)


def judged(model: nn.Module, attached: Attached, each: int) -> Scores:
    """How well the base and each adapter spell that many held-out numbers; the adapter of language i is in slot i."""
    languages, numbers = list(SERVED), divided().judging[:each]
    slots = [slot for slot in (BASE, *range(len(languages))) for _ in numbers]
    answers = written(model, numbers * (1 + len(languages)), selecting(attached, slots))
    shares = [
        [exact(answers[at : at + each], numbers, [language] * each) for language in languages]
        for at in range(0, len(answers), each)
    ]
    base, *adapters = shares
    return Scores(
        dict(zip(languages, base, strict=True)),
        {language: adapters[place][place] for place, language in enumerate(languages)},
        {
            language: max(adapter[place] for other, adapter in enumerate(adapters) if other != place)
            for place, language in enumerate(languages)
        },
    )


def _greedy(model: nn.Module, tokens: Tensor) -> Tensor:
    """[rows, up to MOST_TOKENS]: the likeliest tokens behind prompts of one length, until each row has ended."""
    cache, found = None, []
    ended = torch.zeros(len(tokens), dtype=torch.bool)
    for _ in range(MOST_TOKENS - tokens.shape[1]):
        output = model(tokens, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        tokens = output.logits[:, -1:].argmax(-1)
        found.append(tokens)
        ended |= tokens[:, 0] == EOS
        if ended.all():
            break
    return torch.cat(found, dim=1)
