"""Many models of one architecture as the rows of a slab, and what trains them there.

A row's result never depends on the rows beside it: each call has at least four (with fewer, libraries choose other
kernels), the rows of every buffer start at one alignment (which matrix products round by), and a gap between them keeps
element-wise loops from running across rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar
from typing import Protocol as Interface

import torch
from torch import Tensor

from node.config import TrainingSection
from node.learn.training import ADAM_BETAS, ADAM_EPSILON, Guide

T = TypeVar("T")

LEAST_ROWS = 4
"""Models (and samples of a batch) that every stacked call has, filled up where there are fewer."""


@dataclass(frozen=True, slots=True, eq=False)
class StackedBatches:
    """What some models train on, step by step."""

    features: Tensor
    """float32 [samples, *shape]: the whole training set."""
    labels: Tensor
    """int64 [samples]."""
    rows: Tensor
    """int64 [steps, models, width]: samples of each batch; any sample beyond a batch's own size."""
    sizes: Tensor
    """int64 [steps, models]: samples that a batch really holds."""

    def weights(self) -> Tensor:
        """Each sample's share of its batch's mean loss, 0 for the ones that only fill up: [steps, models, width]."""
        real = torch.arange(self.rows.shape[2], device=self.rows.device) < self.sizes.unsqueeze(2)
        return real / self.sizes.unsqueeze(2)

    def step(self, number: int) -> Tensor:
        """The features of one step, [models, width, *shape]."""
        rows = self.rows[number]
        return self.features.index_select(0, rows.flatten()).view(*rows.shape, *self.features.shape[1:])


@dataclass(frozen=True, slots=True, eq=False)
class Guides:
    """What leads some models elsewhere than their data alone would: the :class:`Guide` of each, side by side."""

    toward: Tensor | None = None
    """Slab [models, dimension] of what each proximal term pulls to, in place of the start."""
    mask: Tensor | None = None
    """Slab [models, dimension]: gradients are multiplied by it, weight decay's included."""
    correction: Tensor | None = None
    """Slab [models, dimension]: added to every gradient, before the mask."""
    part: Literal["all", "core", "head"] = "all"
    """Which layers move: those that begin before the cut, or from there on; the others are frozen."""
    cut: int = 0
    """The element that a layer begins with."""

    @property
    def moving(self) -> slice:
        """The elements of a model that are not frozen."""
        return {"all": slice(None), "core": slice(self.cut), "head": slice(self.cut, None)}[self.part]

    def of(self, model: int) -> Guide:
        """What leads one of the models."""
        slabs = (self.toward, self.mask, self.correction)
        toward, mask, correction = (None if slab is None else slab[model] for slab in slabs)
        return Guide(toward, mask, correction, self.part, self.cut)


UNGUIDED = Guides()


class Kernel(Interface):
    """Trains the models of a call."""

    name: str
    """Which kernel with which parameters: models trained by kernels of one name are equal bit for bit."""
    most_rows: int
    """Models that one call should have at most, for speed alone."""
    least_rows: int
    """Models that one call must have, for a row's bits not to depend on how many there are."""

    def train(
        self, slab: Tensor, batches: StackedBatches, lr: Tensor, proximal: Tensor, guides: Guides = UNGUIDED
    ) -> None:
        """Train the rows of a slab [models, dimension] in place; ``lr`` and ``proximal`` are float64 [models, 1].

        Of frozen layers no bit changes.
        """
        ...


def chunks(items: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    """Runs of about equal length, of at most so many items."""
    count = math.ceil(len(items) / most)
    for i in range(count):
        yield items[i * len(items) // count : (i + 1) * len(items) // count]


def filled(items: Sequence[T], least: int = LEAST_ROWS) -> list[T]:
    """The items, the last one repeated until there are enough for a stacked call."""
    return [*items, *[items[-1]] * (least - len(items))]


def aligned(models: int, *shape: int, device: torch.device | str = "cpu") -> Tensor:
    """A new buffer [models, *shape] of zeros, whose rows start at multiples of 64 bytes and have a gap between them."""
    elements = math.prod(shape)
    return torch.zeros(models, (elements // 16 + 1) * 16, device=device)[:, :elements].view(models, *shape)


def gather(flats: Sequence[Tensor], device: torch.device | str = "cpu") -> Tensor:
    """Copy models into the rows of a new slab [models, dimension]."""
    slab = aligned(len(flats), len(flats[0]), device=device)
    torch._foreach_copy_(list(slab.unbind()), list(flats))
    return slab


class SlabOptimizer:
    """The rules of :mod:`node.learn.training`, on a slab with a learning rate for each row.

    Adam divides a gradient by its own size, so it magnifies the rounding of gradients that are nearly zero.
    """

    def __init__(self, section: TrainingSection, slab: Tensor, proximal: Tensor, guides: Guides = UNGUIDED) -> None:
        """Of the slab [models, dimension] that is going to be trained."""
        self._section = section
        self._moving = guides.moving
        self._slab = slab[:, self._moving]
        self._proximal = proximal.to(slab) if bool(proximal.any()) else None
        anchor = self._slab if guides.toward is None else guides.toward[:, self._moving]
        self._anchor = anchor if self._proximal is None else anchor.clone()
        self._mask = None if guides.mask is None else guides.mask[:, self._moving]
        self._correction = None if guides.correction is None else guides.correction[:, self._moving]
        self._steps = 0
        stateful = section.optimizer == "adam" or section.momentum
        self._first = aligned(*self._slab.shape, device=slab.device) if stateful else slab
        self._second = aligned(*self._slab.shape, device=slab.device) if section.optimizer == "adam" else slab

    def step(self, gradient: Tensor, lr: Tensor) -> None:
        """Change the slab in place, by rates [models, 1]; overwrites the gradient [models, dimension]."""
        gradient = gradient[:, self._moving]
        if self._proximal is not None:
            gradient.addcmul_(self._slab - self._anchor, self._proximal)
        if self._section.weight_decay:
            gradient.add_(self._slab, alpha=self._section.weight_decay)
        if self._correction is not None:
            gradient.add_(self._correction)
        if self._mask is not None:
            gradient.mul_(self._mask)
        if self._section.optimizer == "adam":
            self._adam(gradient, lr)
            return
        if self._section.momentum:
            gradient = self._first.mul_(self._section.momentum).add_(gradient)
        self._slab.addcmul_(gradient, lr, value=-1)

    def _adam(self, gradient: Tensor, lr: Tensor) -> None:
        self._steps += 1
        beta1, beta2 = ADAM_BETAS
        self._first.lerp_(gradient, 1 - beta1)
        self._second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        scale = torch.sqrt(self._second, out=gradient)
        scale.div_(math.sqrt(1 - beta2**self._steps)).add_(ADAM_EPSILON)
        self._slab.addcmul_(torch.div(self._first, scale, out=scale), lr, value=-1 / (1 - beta1**self._steps))
