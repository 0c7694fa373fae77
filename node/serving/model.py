"""A causal language model of the transformers library, from a local folder: nothing is downloaded, no code is run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from node.adapters.fingerprint import base_fingerprint
from node.errors import ConfigError


@dataclass(frozen=True)
class LanguageModel:
    """A model that is ready to compute with, and its tokenizer."""

    model: Any
    tokenizer: Any
    fingerprint: str
    """Of its weights; adapters are for one."""
    context_tokens: int
    """A prompt and its answer together, at most."""
    end_tokens: frozenset[int]
    """An answer ends with any of these."""
    width: int
    """Of its hidden states."""


def load_model(folder: Path, most_context_tokens: int | None = None) -> LanguageModel:
    """Read a model that transformers has saved, in single precision.

    Raises:
        ConfigError: there is none, it has no safetensors, or it attends in a way that is not served.
    """
    fingerprint = base_fingerprint(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, use_safetensors=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{folder}: no causal model of transformers: {str(error).splitlines()[0]}") from None
    config = model.config
    windows = {kind for kind in getattr(config, "layer_types", None) or () if kind != "full_attention"}
    if windows or (getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)):
        raise ConfigError(f"{folder}: its layers attend to windows; allowed: models whose layers attend to everything")
    context = int(config.max_position_embeddings)
    return LanguageModel(
        model=model.train(mode=False).requires_grad_(False),
        tokenizer=tokenizer,
        fingerprint=fingerprint,
        context_tokens=min(context, most_context_tokens or context),
        end_tokens=_end_tokens(model, tokenizer),
        width=int(config.hidden_size),
    )


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    given = getattr(model.generation_config, "eos_token_id", None)
    several = given if isinstance(given, list) else [given]
    return frozenset(int(token) for token in [*several, tokenizer.eos_token_id] if token is not None)
