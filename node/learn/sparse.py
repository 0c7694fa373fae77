"""Which elements of a model a sparse node keeps: random at first, then those that its own gradients ask for.

Densities by layer: Mocanu, Mocanu, Stone, Nguyen, Gibescu, Liotta (Nature Communications 2018), with the kernel term of
Evci, Gale, Menick, Castro, Elsen: Rigging the Lottery, ICML 2020; so is growing by gradient. Pruned and regrown node by
node: Dai, Shen, He, Tian, Tao: DisPFL, ICML 2022.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from node.learn.layers import network
from node.learn.models import Model
from node.op import Key, Op, Task

Batch = Callable[[Key], tuple[Tensor, Tensor]]
"""From a task's key to the features [b, *shape] and labels [b] of one batch of its node's data."""


def densities(shapes: Sequence[tuple[int, ...]], density: float) -> list[float]:
    """The density of each parameter tensor, in proportion to ``sum(shape) / prod(shape)``, and at most 1.

    Together they keep ``density`` of all elements.
    """
    sizes = [math.prod(shape) for shape in shapes]
    full: set[int] = set()
    while len(full) < len(shapes):
        free = [i for i in range(len(shapes)) if i not in full]
        left = density * sum(sizes) - sum(sizes[i] for i in full)
        scale = left / sum(sum(shapes[i]) for i in free)
        share = {i: scale * sum(shapes[i]) / sizes[i] for i in free}
        largest = max(share.values())
        if largest <= 1:
            return [share.get(i, 1.0) for i in range(len(shapes))]
        full.update(i for i in free if share[i] == largest)
    return [1.0] * len(shapes)


class Sparsity:
    """The ops of :class:`node.sparse.SparseOps` for one model.

    Args:
        batch: what ``regrow`` differentiates the loss on.
        basis: what a value follows from besides its task (:attr:`node.op.Op.basis`).
    """

    def __init__(self, model: Model, batch: Batch, basis: Callable[[Key], bytes]) -> None:
        self._model = model
        self._network = network(model)
        self._batch = batch
        self.draw: Op[...] = Op("learn:sparse-mask", self._draw, seeded=True, basis=basis)
        self.regrow: Op[...] = Op("learn:regrow", self._regrow, seeded=True, basis=basis)

    @property
    def ops(self) -> tuple[Op[...], ...]:
        """All of them."""
        return self.draw, self.regrow

    def kept(self, density: float) -> int:
        """Elements that a mask of some density keeps."""
        return sum(self._counts(density))

    def _sizes(self) -> list[int]:
        return [math.prod(shape) for _, _, shape in self._model.parts]

    def _counts(self, density: float) -> list[int]:
        """Elements kept of each parameter tensor, at least one: the same at every node, and in every round."""
        shares = densities([tuple(shape) for _, _, shape in self._model.parts], density)
        return [max(1, round(share * size)) for share, size in zip(shares, self._sizes(), strict=True)]

    def _draw(self, task: Task) -> Tensor:
        mask = torch.zeros_like(task.inputs[0])
        rng = task.key.rng()
        counts = self._counts(task.static["density"])
        for (_, part, _), size, count in zip(self._model.parts, self._sizes(), counts, strict=True):
            mask[part][torch.from_numpy(rng.permutation(size)[:count])] = 1.0
        return mask

    @torch.no_grad()
    def _regrow(self, task: Task) -> Tensor:
        model, mask = task.inputs
        parameters = list(self._model.named(model.clone()).values())
        gradients = self._network.at(parameters)(*self._batch(task.key))
        grown = torch.empty_like(mask)
        for (_, part, _), gradient in zip(self._model.parts, gradients, strict=True):
            grown[part] = _exchanged(model[part], mask[part], gradient.flatten(), task.static["share"])
        return grown


def _exchanged(weights: Tensor, mask: Tensor, gradient: Tensor, share: float) -> Tensor:
    """One layer's next mask; which of equals goes or comes is decided by place."""
    kept = mask.nonzero().flatten()
    count = round(share * len(kept))
    smallest = weights[kept].abs().argsort(stable=True)[:count]
    grown = mask.clone()
    grown[kept[smallest]] = 0.0
    free = (grown == 0).nonzero().flatten()
    largest = gradient[free].abs().argsort(stable=True, descending=True)[:count]
    grown[free[largest]] = 1.0
    return grown
