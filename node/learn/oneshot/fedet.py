"""One model that has learned what sure models say together, and a little of what others say against it.

Cho, Manoel, Joshi, Sim, Dimitriadis: Heterogeneous Ensemble Knowledge Transfer for Training Large Models in Federated
Learning (Fed-ET), IJCAI 2022. Many rounds and a larger student there; one round here, and a student like the clients'.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from node.assumptions import Assumptions
from node.config import Section
from node.learn.cost import inference_flops, training_flops
from node.learn.oneshot.algorithm import Algorithm, Assets, Task, Upload
from node.learn.oneshot.distilling import drawn_key, fresh
from node.learn.unify.distillation import distil

_LEAST = torch.finfo(torch.float32).tiny


class FedET(Algorithm):
    """A student of the class that all models choose, each weighted by how far its logits are apart."""

    declares = Assumptions(public="unlabelled", mixed_architectures=True)

    class Config(Section):
        """Options."""

        diversity: float = Field(0.05, ge=0)
        """What the divergence from those that choose another class counts, beside cross-entropy with the chosen one."""
        steps: int = Field(1500, ge=1)
        """Of Adam."""
        batch_size: int = Field(64, ge=1)
        """Samples a step."""
        lr: float = Field(1e-3, gt=0)
        """Learning rate."""

    config: Config

    def aggregation_flops(self, task: Task, uploads: int, public_samples: int) -> float:
        """All models' answers, and the student's steps."""
        config = self.config
        taken = config.steps * min(config.batch_size, public_samples) * training_flops(task.model, task.shape)
        return uploads * public_samples * inference_flops(task.model, task.shape) + taken

    def aggregate(self, uploads: Sequence[Upload], assets: Assets) -> Tensor:
        """Model [dimension]."""
        config, task = self.config, assets.task
        chosen, others, is_disputed = consensus(
            torch.stack([task.logits(upload.model, assets.public) for upload in uploads])
        )

        def objective(logits: Tensor, rows: Tensor) -> Tensor:
            apart = kl_div(logits.log_softmax(1), others[rows], reduction="none").sum(1) * is_disputed[rows]
            return cross_entropy(logits, chosen[rows]) + config.diversity * apart.mean()

        course = {"steps": config.steps, "batch_size": config.batch_size}
        start, key = fresh(assets), drawn_key(assets)
        return distil(task.model, start, assets.public, objective, key, **course, lr=config.lr)


def consensus(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What models say of samples together, of their logits [models, samples, classes].

    A model counts by the variance of its logits over classes, as a share of that of all models.

    Returns:
        The class of the weighted mean, int64 [samples]; the probabilities of the weighted mean of those that choose
        another one, [samples, classes]; and whether anybody does, [samples].
    """
    variance = logits.var(2, correction=0)
    shares = (variance / variance.sum(0).clamp_min(_LEAST)).unsqueeze(2)
    chosen = (shares * logits).sum(0).argmax(1)
    disagrees = (logits.argmax(2) != chosen).unsqueeze(2)
    against = shares * disagrees
    others = (against * logits).sum(0) / against.sum(0).clamp_min(_LEAST)
    return chosen, others.softmax(1), disagrees.any(0).squeeze(1)
