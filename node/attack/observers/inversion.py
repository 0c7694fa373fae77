"""Training images back from an update: what a victim sent, against what the attacker knows it started from.

In decentralized learning nobody sees a victim's own start. The attacker's estimate is the model that it had mixed
itself (marginalization: Pasquini et al., S&P 2023): exact in the first round, and wherever all nodes mix alike.
Algorithms: :mod:`node.attack.inversion`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import Field
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
from torch import Tensor

from node.attack import images, inversion
from node.attack.attacker import Scene
from node.attack.inversion import DLG, CosineMatching, Leak, LocalSteps, Method
from node.attack.sampling import ORIGINAL, PICTURE, Curious, Own, Seen
from node.config import ExperimentConfig
from node.errors import ComputeError, ConfigError
from node.learn.models import Dense
from node.op import Ref, Spec, Task
from node.privacy.chunks import partition

if TYPE_CHECKING:
    from node.context import Context

_MOST_DB = 150.0
"""What an exact reconstruction counts for, so that means are numbers."""
_MOST_PIXELS = 4_096
"""Larger pictures are measured, but not kept."""
_UNSUITED = {
    "dispfl": "with 'dispfl' nobody knows the start of a model under another mask",
    "pfedme": "'pfedme' has rates of its own",
}
"""Why the updates of some protocols cannot be matched."""
_PLAIN_SGD = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant"}
_SMOOTH = (torch.nn.Sigmoid, torch.nn.Tanh, torch.nn.GELU, torch.nn.SiLU, torch.nn.Softplus)


class InversionAttack(Curious):
    """Gradient inversion of sampled messages."""

    class Config(Curious.Config):
        """Options of the attack."""

        most: int = Field(1, ge=1)
        """Attack at most so many messages of a round, drawn by seed: each takes seconds."""
        method: Literal["auto", "analytic", "dlg", "cosine"] = "auto"
        """``analytic``: a first fully connected layer gives away a single sample; ``dlg``: for smooth activations;
        ``cosine``: for any; ``auto``: whichever of them suits the model. A part of a model, which does not tell the
        labels by itself, is always left to ``dlg``."""
        iterations: int = Field(600, ge=1)
        """Of ``dlg`` and ``cosine``."""
        tv: float = Field(0.0, ge=0, allow_inf_nan=False)
        """Weight of the total variation, a prior on images: against noise."""
        restarts: int = Field(1, ge=1)
        """Searches, of which the one counts that explains the update best."""

    config: Config

    def __init__(self, config: Config, nodes: tuple[int, ...], scene: Scene) -> None:
        super().__init__(config, nodes, scene)
        features = scene.federation.train.features
        if features.ndim != 4:
            shape = list(features.shape[1:])
            raise ConfigError(f"attackers.kind: inversion looks for images, but data.name has samples of shape {shape}")
        self._low, self._high = float(features.min()), float(features.max())
        self.metrics = tuple(f"inversion_{name}" for name in ("mse", "psnr", "ssim", "recovered", "labels"))
        pixels = math.prod(features.shape[1:])
        kept = range(pixels if pixels <= _MOST_PIXELS else 0)
        self._names = (*self.metrics, *(f"{what}{i}" for what in (PICTURE, ORIGINAL) for i in kept))
        self._op = self.op("inversion", self._solve, Spec((len(self._names),), "float64", self._names))

    @classmethod
    def check(cls, config: Config, nodes: tuple[int, ...], experiment: ExperimentConfig) -> None:
        """Raise ConfigError for updates that are not ``training.lr`` times gradients from a start that can be known."""
        if why_not := _UNSUITED.get(experiment.protocol.use):
            raise ConfigError(f"attackers.kind: inversion divides updates by training.lr, but {why_not}")
        for key, plain in _PLAIN_SGD.items():
            if (value := getattr(experiment.training, key)) != plain:
                raise ConfigError(
                    f"training.{key}: {value!r}, but inversion takes an update for gradients of plain SGD, times "
                    f"training.lr; allowed with it: {plain!r}"
                )

    def attack(self, ctx: Context, round: int, seen: Sequence[Seen], own: Own) -> Sequence[Ref]:
        """One op for each message."""
        return [
            ctx.apply(
                self._op,
                each.model,
                own.start,
                victim=each.sender,
                round=round,
                observed=each.observed,
                chunk=each.chunk,
            )
            for each in seen
        ]

    def _solve(self, task: Task) -> dict[str, float]:
        received, start = (model.cpu().double() for model in task.inputs)
        victim, round = task.static["victim"], task.static["round"]
        places = self._places(task.static["observed"], task.static["chunk"], round)
        update = (start - received)[places] / self.scene.config.training.lr
        if not torch.isfinite(update).all() or not update.any():
            return dict.fromkeys(self._names, math.nan)
        try:
            features, labels = self._found(start, update, places, victim, round)
        except ComputeError:  # no unit of the layer was active
            return dict.fromkeys(self._names, math.nan)
        return dict(zip(self._names, self._judged(features, labels, victim), strict=True))

    def _places(self, observed: int, chunk: int | None, round: int) -> Tensor:
        """Which coordinates have come: the first ones, or those of a chunk by the round's public partition."""
        if chunk is None:
            return torch.arange(observed)
        sizes = tuple(part.stop - part.start for _, part, _ in self.scene.model.parts)
        options = self.scene.options
        return torch.tensor(partition(sizes, options.chunks, options.beacon, round)[chunk])

    def _found(self, start: Tensor, update: Tensor, places: Tensor, victim: int, round: int) -> tuple[Tensor, Tensor]:
        """Features [samples, *shape] and labels [samples] that explain an update."""
        scene, model = self.scene, self.scene.model
        steps = self._steps(victim)
        samples = sum(map(len, steps.batches))
        is_whole = len(update) == model.dimension
        labels = self._labels(update, places, samples, len(steps.batches))
        shape = (samples, *scene.federation.train.features.shape[1:])
        method = self._method(samples, is_whole)
        if method == "analytic":
            (_, weight, outline), (_, bias, _) = model.parts[:2]
            image = inversion.analytic_input(update[weight].view(outline), update[bias]).view(shape)
            assert labels is not None
            return image, labels
        search: Method = DLG(self.config.iterations, tv=self.config.tv)
        if method == "cosine":
            search = CosineMatching(self.config.iterations, tv=self.config.tv)
        leak = Leak(start, update, None if is_whole else places, steps if len(steps.batches) > 1 else None)
        rng = np.random.default_rng([scene.config.seed, victim, round, *b"inversion"])
        found = inversion.invert(model.logits, [leak], shape, labels, search, rng, restarts=self.config.restarts)
        return found.features, found.labels

    def _labels(self, update: Tensor, places: Tensor, samples: int, steps: int) -> Tensor | None:
        """Labels int64 [samples]; None where a part of a model does not prove as many (:func:`inversion.labels_of`)."""
        model = self.scene.model
        if len(update) == model.dimension:
            gradient = inversion.output_bias(model, update) / steps
            return torch.from_numpy(inversion.labels_of(gradient, samples))
        _, bias, shape = model.parts[-1]
        proven = places[(places >= bias.start) & (update < 0)] - bias.start
        return proven if len(shape) == 1 and len(proven) == samples else None

    def _steps(self, victim: int) -> LocalSteps:
        """What the attacker takes the victim's steps for: each of other samples, as in a first pass over its data."""
        training, held = self.scene.config.training, self.scene.federation.shards.size(victim)
        size = min(training.batch_size, held)
        steps = training.local_epochs * math.ceil(held / size) if training.local_epochs else training.local_steps
        steps = min(steps, held // size)
        return LocalSteps(training.lr, tuple(tuple(range(s * size, (s + 1) * size)) for s in range(steps)))

    def _method(self, samples: int, is_whole: bool) -> str:
        if not is_whole:
            return "dlg"
        if self.config.method != "auto":
            return self.config.method
        if isinstance(self.scene.model, Dense) and samples == 1:
            return "analytic"
        is_smooth = any(isinstance(part, _SMOOTH) for part in self.scene.model.module.modules())
        return "dlg" if is_smooth else "cosine"

    def _judged(self, features: Tensor, labels: Tensor, victim: int) -> list[float]:
        """The metrics, and the pixels of the best picture and of the image that it is of.

        An image counts as what the victim holds that is nearest to it, none twice.
        """
        members = self.scene.truth.members(victim)
        scale = self._high - self._low
        found = ((features.double() - self._low) / scale).clamp(0, 1).numpy()
        held = ((members.features.double() - self._low) / scale).numpy()
        cost = np.stack([((held - each) ** 2).reshape(len(held), -1).sum(1) for each in found])
        rows, nearest = linear_sum_assignment(cost)
        pairs = images.compare(held[nearest], found[rows])
        psnr = np.minimum(pairs.psnr_db, _MOST_DB)
        right = members.labels.numpy()[nearest] == labels.numpy()[rows][pairs.order]
        figures = [pairs.mse.mean(), psnr.mean(), pairs.ssim.mean(), pairs.recovered, right.mean()]
        best = int(psnr.argmax())
        pictures = np.concatenate([found[rows][pairs.order][best].ravel(), held[nearest][best].ravel()])
        return [*map(float, figures), *map(float, pictures[: len(self._names) - len(figures)])]
