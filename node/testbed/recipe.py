"""How large the test bed's model is, and how long it and its adapters are trained."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from node.testbed.spelling.languages import MOST, SERVED, spell


@dataclass(frozen=True)
class Recipe:
    """The whole takes about two CPU-minutes as it is."""

    hidden: int = 96
    layers: int = 3
    heads: int = 4
    base_steps: int = 700
    base_rows: int = 32
    """Numbers in a batch, each in a language drawn at random."""
    base_lr: float = 3e-3
    rank: int = 8
    alpha: float = 16.0
    adapter_steps: int = 250
    adapter_rows: int = 8
    """Numbers in a batch for each adapter; all adapters are trained in the same batches."""
    adapter_lr: float = 4e-3
    judged: int = 48
    """Numbers that the base and each adapter are judged by."""

    def digest(self, seed: int) -> str:
        """What a trained test bed follows from: this, the seed and all words; 16 hexadecimal digits."""
        words = [spell(language, number) for language in SERVED for number in range(MOST + 1)]
        content = json.dumps([asdict(self), seed, words], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]
