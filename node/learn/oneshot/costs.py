"""What a one-shot algorithm's result weighs, what an answer of it takes, and what an aggregator holds meanwhile."""

from __future__ import annotations

from typing import NamedTuple

import torch

from node.learn.cost import flops_of
from node.learn.models import Model
from node.learn.oneshot.algorithm import Assets, Task
from node.learn.oneshot.catalogue import configured
from node.op import Key

_SAMPLES = 2
"""As many as a model has been tried with; some normalisations refuse a single one."""


class ResultCosts(NamedTuple):
    """Of one algorithm and so many uploads."""

    result_bytes: int
    inference_flops: float
    """Of one sample; what is no matrix product or convolution does not count."""
    streams: bool
    """Whether uploads can be added up as they come, and need not all be held."""


def result_costs(
    algorithm: str, options: str, model: Model, shape: tuple[int, ...], classes: int, uploads: int
) -> ResultCosts:
    """What becomes of so many uploads, told from the algorithm alone: nothing is aggregated.

    Args:
        options: the algorithm's, as JSON.
        shape: of one sample.
    """
    own, task = configured(algorithm, options), Task(model, shape, classes)
    spec = own.result(task, uploads)
    assets = Assets(algorithm, own.declares, task, model.initial(0), None, Key(0, 0, 0), 0)
    state, samples = torch.zeros(spec.shape), torch.zeros(_SAMPLES, *shape)
    flops = flops_of(lambda: own.predict(state, samples, assets)) / _SAMPLES
    return ResultCosts(spec.size_bytes, flops, own.streams)
