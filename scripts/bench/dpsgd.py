"""What differentially private training costs, as a multiple of plain SGD, in CPU seconds.

    python scripts/bench/dpsgd.py [--model lenet] [--batch 64] [--repeats 7]

All ways to train take turns, one step each on the same batch; medians. ``ghost`` and ``vmap`` clip every sample's
gradient and add noise; where Opacus is installed, its hooks clip the same batch, without noise.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from node.config import ModelSection, TrainingSection
from node.learn.models import Model, build
from node.learn.training import Trainer
from node.learn.workload import prepare_torch
from node.op import Key
from node.privacy.dpsgd import PrivateTrainer, clip_factors
from node.privacy.noise import Seeded

SHAPES = ((1, 8, 8), (1, 28, 28), (3, 32, 32))
CLASSES = 10
CLIP = 1.0
Step = Callable[[], object]


def opacus_step(model: Model, start: Tensor, features: Tensor, labels: Tensor) -> Step:
    """A step with the per-sample gradients of Opacus."""
    from opacus.grad_sample import GradSampleModule

    module = GradSampleModule(copy.deepcopy(model.module), loss_reduction="sum")
    torch.nn.utils.vector_to_parameters(start, module.parameters())

    def step() -> None:
        module.zero_grad()
        cross_entropy(module(features), labels, reduction="sum").backward()
        parameters = list(module.parameters())
        squares = torch.stack([parameter.grad_sample.flatten(1).square().sum(1) for parameter in parameters]).sum(0)
        factors = clip_factors(squares, CLIP)
        with torch.no_grad():
            for parameter in parameters:
                parameter -= 0.1 / len(labels) * torch.tensordot(factors, parameter.grad_sample, 1)

    return step


def ways(model: Model, shape: tuple[int, ...], batch: int) -> dict[str, Step]:
    """Every way to take one step from the same start on the same batch, plain SGD first."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(batch, *shape, generator=generator)
    labels = torch.randint(0, CLASSES, (batch,), generator=generator)
    start, section = model.initial(0), TrainingSection()
    plain = Trainer(model, section)
    ghost, vmap = (PrivateTrainer(model, section, CLIP, 1.0, method) for method in ("ghost", "vmap"))

    def private(trainer: PrivateTrainer) -> Step:
        rng, noise = np.random.default_rng(0), Seeded(Key(0, 0, 0))
        return lambda: trainer.train(start, features, labels, 1.0, 1, 0.1, rng, noise)

    steps = {"plain": lambda: plain.train(start, [(features, labels)], 0.1)}
    steps |= {"ghost": private(ghost), "vmap": private(vmap)}
    if importlib.util.find_spec("opacus"):
        steps["opacus"] = opacus_step(model, start, features, labels)
    return steps


def table(name: str, shape: tuple[int, ...], batch: int, repeats: int) -> None:
    """Measure all ways for a model and print their medians."""
    model = build(ModelSection(name=name), shape, CLASSES)
    steps = ways(model, shape, batch)
    seconds: dict[str, list[float]] = {way: [] for way in steps}
    for _ in range(repeats + 1):
        for way, step in steps.items():
            begin = time.process_time()
            step()
            seconds[way].append(time.process_time() - begin)
    print(f"\n{name} {list(shape)}, {model.dimension} parameters, batch {batch}")
    medians = {way: statistics.median(taken[1:]) for way, taken in seconds.items()}
    for way, median in medians.items():
        print(f"  {way:8}{median * 1e3:10.2f} ms{median / medians['plain']:8.2f}")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", choices=("mlp", "lenet", "resnet8"), default="lenet")
    arguments.add_argument("--batch", type=int, default=64)
    arguments.add_argument("--repeats", type=int, default=7)
    given = arguments.parse_args()
    prepare_torch()
    for shape in SHAPES:
        table(given.model, shape, given.batch, given.repeats)


if __name__ == "__main__":
    main()
