"""Trains the base on all languages at once, and then one adapter for each, all of them in the same mixed batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from node.adapters.attaching import Attached, linear_shapes
from node.adapters.kernels import Rows, Stack, gather
from node.adapters.writing import Pair
from node.testbed.questions import divided
from node.testbed.recipe import Recipe
from node.testbed.spelling.languages import SERVED, spell
from node.testbed.tokens import BOS, EOS, PAD, VOCABULARY, answer, prompt

_IGNORED = -100
Progress = Callable[[str, int, int], None]
"""(what is trained, steps that are done, steps in all)"""


class Batch(NamedTuple):
    """Prompts with their answers, padded at the end."""

    tokens: Tensor
    """[rows, length]"""
    labels: Tensor
    """[rows, length]: the answers alone count."""


def batch(numbers: Sequence[int], languages: Sequence[str]) -> Batch:
    """One row for each number, in its language."""
    asked = [prompt(number) for number in numbers]
    answered = [answer(spell(language, number)) for language, number in zip(languages, numbers, strict=True)]
    length = max(len(one) + len(other) for one, other in zip(asked, answered, strict=True))
    tokens = np.full((len(numbers), length), PAD)
    labels = np.full((len(numbers), length), _IGNORED)
    for row, (one, other) in enumerate(zip(asked, answered, strict=True)):
        tokens[row, : len(one) + len(other)] = [*one, *other]
        labels[row, len(one) : len(one) + len(other)] = other
    return Batch(torch.from_numpy(tokens), torch.from_numpy(labels))


def train_base(recipe: Recipe, seed: int, progress: Progress) -> LlamaForCausalLM:
    """A model that has seen all languages and is never told which is meant."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(_config(recipe))
    rng = np.random.default_rng([seed, 0])
    numbers, languages = divided().training, list(SERVED)

    def loss() -> Tensor:
        drawn = rng.choice(numbers, recipe.base_rows).tolist()
        return _loss(model, batch(drawn, rng.choice(languages, recipe.base_rows).tolist()))

    model.train()
    parameters = list(model.parameters())
    _descend(parameters, loss, recipe.base_steps, recipe.base_lr, lambda step, of: progress("base", step, of))
    model.train(mode=False)
    return model


def train_adapters(
    recipe: Recipe, model: LlamaForCausalLM, seed: int, progress: Progress
) -> dict[str, dict[str, Pair]]:
    """By language, what adapts each linear module. The model stays as it is."""
    model.requires_grad_(False)
    stacks = _fresh_stacks(recipe, model, seed)
    rng = np.random.default_rng([seed, 1])
    numbers = divided().training
    languages = [language for language in SERVED for _ in range(recipe.adapter_rows)]
    rows = Rows([slot for slot in range(len(SERVED)) for _ in range(recipe.adapter_rows)])
    attached = Attached(model, stacks)

    def loss() -> Tensor:
        with attached.selecting(rows, gather):
            found = _loss(model, batch(rng.choice(numbers, len(languages)).tolist(), languages))
        # The mean is over all adapters: this is the gradient that each would have alone.
        return found * len(SERVED)

    parameters = [part for stack in stacks.values() for part in (stack.a, stack.b)]
    _descend(parameters, loss, recipe.adapter_steps, recipe.adapter_lr, lambda step, of: progress("adapters", step, of))
    attached.detach()
    return {
        language: {module: Pair(stack.a[slot].detach(), stack.b[slot].detach()) for module, stack in stacks.items()}
        for slot, language in enumerate(SERVED)
    }


def _config(recipe: Recipe) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.hidden * 8 // 3,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )


def _fresh_stacks(recipe: Recipe, model: nn.Module, seed: int) -> dict[str, Stack]:
    """A ~ N(0, 1) / sqrt(in), B = 0: adapters that add nothing yet."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.full((len(SERVED),), recipe.alpha / recipe.rank)
    stacks = {}
    for module, (outward, inward) in linear_shapes(model).items():
        a = torch.randn(len(SERVED), recipe.rank, inward, generator=generator) / math.sqrt(inward)
        b = torch.zeros(len(SERVED), outward, recipe.rank)
        stacks[module] = Stack(a.requires_grad_(), b.requires_grad_(), scale)
    return stacks


def _loss(model: LlamaForCausalLM, of: Batch) -> Tensor:
    """Mean cross-entropy of the answers' tokens, in nats."""
    logits = model(of.tokens[:, :-1]).logits
    return cross_entropy(logits.flatten(0, 1), of.labels[:, 1:].flatten(), ignore_index=_IGNORED)


def _descend(
    parameters: Sequence[Tensor], loss: Callable[[], Tensor], steps: int, lr: float, done: Callable[[int, int], None]
) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps)
    for step in range(steps):
        optimizer.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        done(step + 1, steps)
