"""Which kernel trains many models at once: pinned by name, remembered, or the fastest of what there is, by trial.

Kernels differ by rounding, so the choice is a part of a run's numerics: it has a name, and a file in the user's cache
folder keeps it for the next run of the same model, batch size, processor and torch.
"""

from __future__ import annotations

import math
import platform
from hashlib import sha256
from inspect import getsource
from pathlib import Path

import torch
from torch import Tensor

from node.config import TrainingSection
from node.errors import ConfigError
from node.learn.choices import Choices, cache_folder
from node.learn.models import Dense, Model
from node.learn.slabs import UNGUIDED, Guides, Kernel, StackedBatches
from node.learn.stacked import DenseKernel
from node.learn.training import Trainer
from node.learn.trial import Trial
from node.learn.vectorised import VmapKernel

LOOP = "loop"
CHANNELS_LAST = "channels-last"

_CACHE_BYTES = 2 << 20
_STACKED_ROWS = (8, 16, 32, 64)
_VMAP_ROWS = (8, 32)
_VMAP_PARAMETERS = 100_000
_VMAP_ELEMENTS = 1 << 15
_LOOP_ROWS = 8


class OneByOne:
    """Each model on its own, as the reference trains it: it reads a slab's rows, and batches without filling."""

    most_rows = _LOOP_ROWS
    least_rows = 1

    def __init__(self, model: Model, section: TrainingSection, name: str) -> None:
        self.name = name
        self.trainer = Trainer(model, section, channels_last=name == CHANNELS_LAST)

    def train(
        self, slab: Tensor, batches: StackedBatches, lr: Tensor, proximal: Tensor, guides: Guides = UNGUIDED
    ) -> None:
        """Train the rows of a slab [models, dimension] in place; ``lr`` and ``proximal`` are float64 [models, 1]."""
        sizes = batches.sizes.tolist()
        for i, (row, rate, pull) in enumerate(
            zip(slab, lr.flatten().tolist(), proximal.flatten().tolist(), strict=True)
        ):
            places = [rows[i, : size[i]] for rows, size in zip(batches.rows, sizes, strict=True)]
            pairs = ((batches.features.index_select(0, p), batches.labels.index_select(0, p)) for p in places)
            row.copy_(self.trainer.train(row, pairs, rate, pull, guides.of(i)))


def pinned(kind: str, model: Model, section: TrainingSection, shape: tuple[int, ...], device: torch.device) -> Kernel:
    """The kernel of a kind that ``executor.kernel`` names: loop, channels-last, vmap or stacked.

    Raises ConfigError where there is none of that kind for the model.
    """
    if kind == "stacked" and isinstance(model, Dense):
        rows = _CACHE_BYTES // (4 * model.dimension)
        return DenseKernel(model, section, min(max(rows, _STACKED_ROWS[0]), _STACKED_ROWS[-1]))
    if kind == LOOP or (kind == CHANNELS_LAST and model.is_convolutional):
        return OneByOne(model, section, kind)
    if kind == "vmap":
        kernel = VmapKernel(model, section, _VMAP_ROWS[-1])
        if kernel.supports(shape, device):
            return kernel
    kinds = [LOOP, *([CHANNELS_LAST] if model.is_convolutional else ["stacked"] if isinstance(model, Dense) else [])]
    raise ConfigError(f"executor.kernel: {kind!r} cannot train {model.name!r}; auto and {', '.join(kinds)} can")


def automatic(model: Model, section: TrainingSection, features: Tensor, labels: Tensor) -> Kernel:
    """The kernel that a trial on some samples found fastest, on their device, now or in an earlier run."""
    shape = tuple(features.shape[1:])
    device = features.device
    kernels = candidates(model, section, shape, device)
    choices = Choices(cache_folder() / "starling" / "kernels.json")
    key = _key(model, section, shape, device)
    known = choices.get(key)
    for kernel in kernels:
        if kernel.name == known:
            return kernel
    trial = Trial(model, section, features, labels)
    chosen = next(kernel for kernel in trial.ranked(kernels) if _is_usable(kernel, shape, device))
    choices.keep(key, chosen.name)
    return chosen


def candidates(model: Model, section: TrainingSection, shape: tuple[int, ...], device: torch.device) -> list[Kernel]:
    """What a trial compares, the reference loop first.

    On a processor ``vmap`` is left out for dense models, where it never came near the stacked kernels, and to import it
    costs more than the trial of all others; and for large models and batches, because it keeps all their activations.
    """
    kernels: list[Kernel] = [OneByOne(model, section, LOOP)]
    if model.is_convolutional:
        kernels.append(OneByOne(model, section, CHANNELS_LAST))
    if isinstance(model, Dense):
        kernels += [DenseKernel(model, section, rows) for rows in _STACKED_ROWS]
    is_small = model.dimension <= _VMAP_PARAMETERS and section.batch_size * math.prod(shape) <= _VMAP_ELEMENTS
    if device.type != "cpu" or (is_small and not isinstance(model, Dense)):
        kernels += [VmapKernel(model, section, rows) for rows in _VMAP_ROWS]
    return kernels


def _is_usable(kernel: Kernel, shape: tuple[int, ...], device: torch.device) -> bool:
    return not isinstance(kernel, VmapKernel) or kernel.supports(shape, device)


def _key(model: Model, section: TrainingSection, shape: tuple[int, ...], device: torch.device) -> str:
    """Everything that the speed of a kernel depends on."""
    module = model.module
    kinds = sorted({type(part) for part in module.modules()}, key=lambda kind: f"{kind.__module__}.{kind.__qualname__}")
    parts = [str((name, list(size))) for name, _, size in model.parts]
    definition = "\n".join([repr(module), str(shape), *parts, *map(_source, kinds)])
    where = f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()} {_processor()} {device}"
    how = f"{section.optimizer} batch {section.batch_size} float32"
    return f"{model.name} {sha256(definition.encode()).hexdigest()[:16]} {how} {where}"


def _source(kind: type) -> str:
    """The source of a module's class, where it is somebody's own."""
    if kind.__module__.startswith("torch."):
        return ""
    try:
        return getsource(kind)
    except (OSError, TypeError):
        return ""


def _processor() -> str:
    """The processor's model, as the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
