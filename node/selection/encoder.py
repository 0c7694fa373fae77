"""A sentence encoder of the transformers library, from a local directory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from node.errors import ConfigError
from node.selection.embedding import Vectors


class SentenceEncoder:
    """Mean-pooled last hidden states, normalised; padding counts for nothing. As sentence-transformers has MiniLM.

    Args:
        folder: a directory with the model and its tokenizer; nothing is downloaded.
        longest: tokens that a text is cut to.

    Raises:
        ConfigError: there is no such model.
    """

    def __init__(self, folder: Path, longest: int = 256) -> None:
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
            weights = (folder / "model.safetensors").read_bytes()
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"{folder}: no sentence encoder (a model directory of transformers): {reason}") from None
        self._longest = longest
        self.dimensions = int(self._model.config.hidden_size)
        self.name = f"encoder-{hashlib.sha256(weights).hexdigest()[:16]}"

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> Vectors:
        """A row of length 1 for each text, shape [texts, dimensions]."""
        batch = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._longest, return_tensors="pt"
        )
        hidden = self._model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp_min(1)
        rows: Vectors = torch.nn.functional.normalize(mean, dim=1).numpy().astype(np.float32)
        return rows
