"""Which of several kernels is fastest here, and is right: a short trial on the experiment's own data."""

from __future__ import annotations

import resource
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from node.config import TrainingSection
from node.learn.models import Dense, Model
from node.learn.slabs import LEAST_ROWS, Kernel, StackedBatches, filled, gather

STEPS = 5
"""Steps of a trial, unless a task has fewer, and of the comparison with the reference."""
ROUNDS = 5
BUDGET_S = 1.5
"""CPU seconds after which no further round of measurements begins."""
MOST_LR = 0.01
"""Learning rate at most: with large steps networks magnify rounding, and diverge."""


class Trial:
    """Trains some models with each kernel, in turns, and takes CPU time, which other processes disturb least."""

    def __init__(self, model: Model, section: TrainingSection, features: Tensor, labels: Tensor) -> None:
        """``features`` [samples, *shape] and ``labels`` [samples] are on the device that the kernels run on."""
        self._model = model
        self._section = section
        self._features = features
        self._labels = labels
        self._steps = STEPS if section.local_epochs else min(section.local_steps, STEPS)
        self._start = model.initial(0)

    def ranked(self, kernels: Sequence[Kernel]) -> Iterator[Kernel]:
        """The kernels that can train the model as the first one does, which is the reference; the fastest first."""
        reference, *_ = kernels
        seconds = self._measured(kernels)
        for kernel in sorted(seconds, key=lambda kernel: seconds[kernel]):
            if kernel is reference or self._agrees(kernel, reference):
                yield kernel

    def _measured(self, kernels: Sequence[Kernel]) -> dict[Kernel, float]:
        """CPU seconds for a model, of each kernel that can train this one."""
        seconds: dict[Kernel, float] = {}
        estimated_s = 0.0
        for kernel in kernels:
            try:
                self._seconds(kernel, 1)  # sets up what is set up on first use
                once_s = self._seconds(kernel, 1)
            except (RuntimeError, ValueError, TypeError):
                continue
            seconds[kernel] = once_s / kernel.most_rows
            estimated_s += once_s * self._steps
        rounds = min(ROUNDS, int(BUDGET_S / estimated_s)) if estimated_s else ROUNDS
        taken = [[self._seconds(kernel, self._steps) / kernel.most_rows for kernel in seconds] for _ in range(rounds)]
        return dict(zip(seconds, map(min, zip(*taken, strict=True)), strict=True)) if taken else seconds

    def _seconds(self, kernel: Kernel, steps: int) -> float:
        start = _cpu_s()
        self._trained(kernel, kernel.most_rows, steps)
        if self._features.is_cuda:
            torch.cuda.synchronize()
        return _cpu_s() - start

    def _agrees(self, kernel: Kernel, reference: Kernel) -> bool:
        """Whether a kernel trains one model as the reference does, up to rounding.

        Normalisation and Adam divide by what may be nearly zero, and so magnify rounding: there the difference is held
        to a share of what training changed.
        """
        expected, found = (self._trained(each, 1, STEPS)[0] for each in (reference, kernel))
        if torch.allclose(found, expected, rtol=1e-5, atol=1e-6):
            return True
        is_exact = isinstance(self._model, Dense) and self._section.optimizer == "sgd"
        change = (expected - self._start.to(expected)).norm()
        return not is_exact and bool((found - expected).norm() <= 1e-2 * change)

    def _trained(self, kernel: Kernel, rows: int, steps: int) -> Tensor:
        models = filled([self._start] * rows, kernel.least_rows)
        width = max(LEAST_ROWS, min(self._section.batch_size, len(self._labels)))
        # Models come first, so that the first ones have the same samples however many there are.
        drawn = np.random.default_rng(0).integers(0, len(self._labels), (len(models), steps, width))
        places = torch.from_numpy(np.ascontiguousarray(drawn.swapaxes(0, 1)))
        rates = torch.full((len(models), 1), min(self._section.lr, MOST_LR), dtype=torch.float64)
        device = self._features.device
        with torch.no_grad():
            slab = gather(models, device)
            sizes = torch.full(places.shape[:2], width, device=device)
            batches = StackedBatches(self._features, self._labels, places.to(device), sizes)
            kernel.train(slab, batches, rates, torch.zeros_like(rates))
        return slab


def _cpu_s() -> float:
    """CPU seconds of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
