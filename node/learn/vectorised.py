"""Training any small module as many models at once, with its gradient vectorised by ``torch.func``.

Its first use imports a compiler stack: over a CPU-second, and 75 MB.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from node.config import TrainingSection
from node.learn.models import Model
from node.learn.slabs import LEAST_ROWS, UNGUIDED, Guides, SlabOptimizer, StackedBatches, gather

_TRIAL_ROWS = 20


class VmapKernel:
    """Any small module, with its gradient vectorised by ``torch.func``."""

    least_rows = LEAST_ROWS

    def __init__(self, model: Model, section: TrainingSection, most_rows: int) -> None:
        self.name = f"vmap-{most_rows}"
        self.most_rows = most_rows

        def loss(flat: Tensor, features: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
            return cross_entropy(model.logits(flat, features), labels, reduction="none") @ weights

        self._model = model
        self._section = section
        self._gradient = torch.func.vmap(torch.func.grad(loss))

    def supports(self, shape: tuple[int, ...], device: torch.device | str = "cpu") -> bool:
        """Whether the module can be vectorised with rows that do not depend on their place, found by trying.

        Inside ``vmap`` nobody can align buffers, so modules with layers of odd sizes may fail.
        """
        slab = gather([self._model.initial(seed) for seed in range(_TRIAL_ROWS)], device)
        generator = torch.Generator().manual_seed(0)
        try:
            for width in (LEAST_ROWS, max(LEAST_ROWS, self._section.batch_size)):
                samples = torch.randn(_TRIAL_ROWS, width, *shape, generator=generator)
                labels = torch.zeros(_TRIAL_ROWS, width, dtype=torch.int64)
                inputs = (samples, labels, torch.ones(_TRIAL_ROWS, width))
                trial = (slab, *[tensor.to(device) for tensor in inputs])
                whole = self._gradient(*trial)
                for first in range(1, _TRIAL_ROWS - LEAST_ROWS):
                    part = [tensor[first:].clone() for tensor in trial[1:]]
                    if not torch.equal(self._gradient(gather(slab[first:].unbind(), device), *part), whole[first:]):
                        return False
        except (RuntimeError, ValueError, TypeError):
            return False
        return True

    def train(
        self, slab: Tensor, batches: StackedBatches, lr: Tensor, proximal: Tensor, guides: Guides = UNGUIDED
    ) -> None:
        """Train the rows of a slab [models, dimension] in place; ``lr`` and ``proximal`` are float64 [models, 1]."""
        lr = lr.to(slab)
        weights = batches.weights()
        rule = SlabOptimizer(self._section, slab, proximal, guides)
        for step, rows in enumerate(batches.rows):
            gradient = self._gradient(slab, batches.step(step), batches.labels[rows], weights[step])
            rule.step(gradient, lr)
