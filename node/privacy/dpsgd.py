"""Differentially private training of one model: DP-SGD (Abadi et al., CCS 2016).

Every record is in a step's batch by a coin of its own, every record's gradient is clipped over all that may move, and
the sum is noised there and divided by the experiment's batch size. What an optimizer makes of it is post-processing.

The divisor is the same at every node: one that followed from the number of a node's records would tell it, through the
size of the noise. The rate of the coins does follow from that number, so it counts as public.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal
from typing import Protocol as Interface

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.functional import cross_entropy

from node.config import TrainingSection
from node.errors import ComputeError, ConfigError
from node.learn.models import Model
from node.learn.training import Guide, moving_of, optimizer
from node.privacy.clipping import check_clipping
from node.privacy.ghost import EVERY, GhostGradients, SampleGradients, weighted_sum
from node.privacy.noise import NoiseStream
from node.private import Coins

AT_ONCE = 64
"""Samples whose gradients are held at once; a larger batch is summed up in parts."""
_TINY = 1e-6
_CHECKED = 4
_AGREE = 1e-3


class Gradients(Interface):
    """A way to per-sample gradients."""

    def at(
        self, parameters: Sequence[Tensor], features: Tensor, labels: Tensor, moving: slice = EVERY
    ) -> SampleGradients:
        """The gradients at some parameters, in the model's order, of samples [b, *shape] with labels [b].

        ``moving``: those of the parameters that they are by.
        """
        ...


class VmapGradients:
    """Per-sample gradients of any model, all of them written out: the reference."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._names = [name for name, _, _ in model.parts]
        self._each = vmap(grad(self._loss), in_dims=(None, 0, 0))

    def _loss(self, parameters: dict[str, Tensor], features: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(self._model.forward(parameters, features[None]), label[None])

    def at(
        self,
        parameters: Sequence[Tensor],
        features: Tensor,
        labels: Tensor,
        moving: slice = EVERY,
        masks: Sequence[Tensor] = (),
    ) -> SampleGradients:
        """The gradients at some parameters, in the model's order, of samples [b, *shape] with labels [b].

        ``moving``: those of the parameters that they are by. ``masks``: one for each of these, 0 where an element does
        not move: there the gradients count as 0.
        """
        found = self._each(dict(zip(self._names, parameters, strict=True)), features, labels)
        each = [found[name] for name in self._names[moving]]
        if masks:
            each = [part * (mask != 0) for part, mask in zip(each, masks, strict=True)]
        squares = torch.stack([part.flatten(1).square().sum(1) for part in each]).sum(0)

        def weighted(factors: Tensor) -> list[Tensor]:
            return [weighted_sum(factors, part) for part in each]

        return SampleGradients(squares, weighted)


def clip_factors(squares: Tensor, clip: float) -> Tensor:
    """What each gradient is multiplied by, [samples], so that its norm is at most ``clip``; from the squared norms.

    0 where a square is not finite, or negative by rounding: there is no bound on what such a record would add, and a
    model that makes one record's gradient infinite would tell by the sum whether that record is there.
    """
    factors = (clip / (squares.sqrt() + _TINY)).clamp_(max=1.0)
    return torch.where(squares.isfinite() & (squares >= 0), factors, 0.0)


class PrivateTrainer:
    """Trains one model at a time by DP-SGD, with record-level privacy.

    The ghost norms of a model are held to the reference once, on a few samples of noise: a model that shares a layer's
    weights, or that mixes samples, would else be trained with norms that mean nothing.
    """

    def __init__(
        self,
        model: Model,
        section: TrainingSection,
        clip: float,
        noise_multiplier: float,
        method: Literal["ghost", "vmap"] = "ghost",
    ) -> None:
        """``clip``: largest norm of a record's gradient; the noise's standard deviation is ``noise_multiplier * clip``.

        Raises ConfigError for values without a meaning, for BatchNorm, and for a model that has no ghost norms.
        """
        check_clipping(clip, noise_multiplier)
        if norm := next(
            (part for part in model.module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)), None
        ):
            raise ConfigError(
                f"model.name: {model.name!r} has {type(norm).__name__}, which mixes records; use GroupNorm"
            )
        self._model = model
        self._section = section
        self._clip = clip
        self._deviation = noise_multiplier * clip if noise_multiplier else 0.0
        self._reference = VmapGradients(model)
        self._gradients: Gradients = GhostGradients(model) if method == "ghost" else self._reference
        self._is_checked = method == "vmap"

    @torch.no_grad()
    def train(
        self,
        start: Tensor,
        features: Tensor,
        labels: Tensor,
        rate: float,
        steps: int,
        lr: float,
        sampling: Coins,
        noise: NoiseStream,
        proximal: float = 0.0,
        guide: Guide | None = None,
    ) -> Tensor:
        """Take steps from the flat vector ``start`` on; gives a new vector.

        ``features`` [n, *shape] and ``labels`` [n] are all that the node holds, of which every step takes each record
        with probability ``rate``. Nobody else may be able to tell what ``sampling`` draws, or the batches are no secret
        and the guarantee is that of ``rate`` 1. ``proximal`` is the strength of the pull back to ``start``, or to the
        guide's model. What a guide freezes or masks out counts in no norm and gets no noise; all else that it does
        comes after the noise, on which no guarantee depends. A mask that is made from the node's records is a release
        of its own.

        Raises ConfigError for a rate without a meaning or a node without records, ComputeError for a model whose ghost
        norms are not those of its gradients.
        """
        if not 0 < rate <= 1 or not len(labels):
            raise ConfigError(
                f"rate: {rate} of {len(labels)} records; allowed are rates above 0, up to 1, of 1 or more"
            )
        section, moving = self._section, moving_of(self._model, guide)
        trained = start.clone()
        parameters = self._named(trained)
        moved = parameters[moving]
        toward, mask, correction = (None, None, None) if guide is None else (guide.toward, guide.mask, guide.correction)
        anchors = self._named(start if toward is None else toward)[moving]
        masks = [] if mask is None else self._named(mask)[moving]
        corrections = [] if correction is None else self._named(correction)[moving]
        self._check_norms(parameters, features, labels)
        rule = optimizer(section)
        for _ in range(steps):
            batch = torch.from_numpy(np.flatnonzero(sampling.random(len(labels)) < rate)).to(features.device)
            gradients = self._clipped_sum(parameters, features[batch], labels[batch], moving, masks)
            self._add_noise(gradients, noise)
            torch._foreach_div_(gradients, section.batch_size)
            if proximal:
                torch._foreach_add_(gradients, torch._foreach_sub(moved, anchors), alpha=proximal)
            if section.weight_decay:
                torch._foreach_add_(gradients, moved, alpha=section.weight_decay)
            if corrections:
                torch._foreach_add_(gradients, corrections)
            if masks:
                torch._foreach_mul_(gradients, masks)
            rule.step(moved, gradients, lr)
        return trained

    def _named(self, flat: Tensor) -> list[Tensor]:
        return list(self._model.named(flat).values())

    def _clipped_sum(
        self,
        parameters: list[Tensor],
        features: Tensor,
        labels: Tensor,
        moving: slice = EVERY,
        masks: Sequence[Tensor] = (),
    ) -> list[Tensor]:
        """The sum of the clipped gradients of a batch, which may be empty, by what moves."""
        sums = [torch.zeros_like(parameter) for parameter in parameters[moving]]
        for first in range(0, len(labels), AT_ONCE):
            part = features[first : first + AT_ONCE], labels[first : first + AT_ONCE]
            if masks:  # there are no ghost norms of some elements of a layer
                gradients = self._reference.at(parameters, *part, moving, masks)
            else:
                gradients = self._gradients.at(parameters, *part, moving)
            torch._foreach_add_(sums, gradients.weighted(clip_factors(gradients.squares, self._clip)))
        return sums

    def _add_noise(self, sums: list[Tensor], noise: NoiseStream) -> None:
        """To all that moves; a mask takes away later what it gives to elements that do not."""
        if not self._deviation or not sums:
            return
        sizes = [part.numel() for part in sums]
        drawn = np.split(noise.normals(sum(sizes)) * self._deviation, np.cumsum(sizes)[:-1])
        shaped = [torch.from_numpy(part).to(like).view_as(like) for part, like in zip(drawn, sums, strict=True)]
        torch._foreach_add_(sums, shaped)

    def _check_norms(self, parameters: list[Tensor], features: Tensor, labels: Tensor) -> None:
        """On samples that are like the node's, but none of them: by an error, too, no record may be told."""
        if self._is_checked:
            return
        drawn = np.random.default_rng(0).standard_normal((_CHECKED, *features.shape[1:]))
        samples = torch.from_numpy(drawn).to(features), labels.new_zeros(_CHECKED)
        found, expected = (
            gradients.at(parameters, *samples).squares.sqrt() for gradients in (self._gradients, self._reference)
        )
        comparable = found.isfinite() & expected.isfinite()
        if not comparable.any():
            return
        if not torch.allclose(found[comparable], expected[comparable], rtol=_AGREE, atol=_TINY):
            raise ComputeError(
                f"ghost: the norms of {self._model.name!r} are not those of its gradients: it uses a layer's weights "
                f"outside the layer, or mixes samples; use the method 'vmap' if it does not mix them"
            )
        self._is_checked = True
