"""Training of every node by DP-SGD, as an experiment says: with noise and batches that are repeatable, or secret."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import Literal

from torch import Tensor

from node.config import PrivacySection, TrainingSection
from node.learn.models import Model
from node.learn.training import Guide
from node.op import Key
from node.privacy.dpsgd import PrivateTrainer
from node.privacy.noise import NoiseSource, secret, secret_coins, seeded
from node.private import Coins

Noise = Literal["seeded", "secret"]
"""Where noise comes from: the experiment's seed, which protects nobody, or the operating system."""


class PrivateTraining:
    """DP-SGD whose batches and noise follow from a task's key, or from nothing that anybody could repeat.

    A batch holds ``batch_size`` records on average, or all where there are fewer: then every step takes every record.
    """

    def __init__(self, model: Model, training: TrainingSection, privacy: PrivacySection, noise: Noise) -> None:
        """Raises ConfigError for a model that mixes records, or that the way to its gradients does not know."""
        clip, noise_multiplier = privacy.clip, privacy.noise_multiplier
        self._trainer = PrivateTrainer(model, training, clip, noise_multiplier, privacy.gradients)
        self._batch_size = training.batch_size
        self._noise = source(noise)
        self._coins = _seeded_coins if noise == "seeded" else _secret_coins
        told = repr((clip, noise_multiplier, privacy.gradients, noise)).encode()
        self.digest = blake2b(told + _sources()).digest()

    def train(
        self,
        start: Tensor,
        features: Tensor,
        labels: Tensor,
        key: Key,
        steps: int,
        lr: float,
        proximal: float,
        guide: Guide | None,
    ) -> Tensor:
        """Take steps from the flat vector ``start`` on, each on some of a node's records; gives a new vector."""
        rate = sampling_rate(self._batch_size, len(labels))
        return self._trainer.train(
            start, features, labels, rate, steps, lr, self._coins(key), self._noise(key), proximal, guide
        )


def sampling_rate(batch_size: int, records: int) -> float:
    """How likely each record of a node is in a batch."""
    return min(1.0, batch_size / records)


def source(noise: Noise) -> NoiseSource:
    """Where the noise of a task comes from."""
    return seeded if noise == "seeded" else secret


def _seeded_coins(key: Key) -> Coins:
    return key.rng()


def _secret_coins(key: Key) -> Coins:
    return secret_coins()


def _sources() -> bytes:
    """All of this package: too much rather than too little."""
    return b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
