"""One model that has learned what clients tell of public samples; their own models stay with them.

FedMD: Li and Wang: FedMD: Heterogenous Federated Learning via Model Distillation, 2019. DS-FL: Itahara, Nishio, Koda,
Morikura, Yamamoto: Distillation-Based Semi-Supervised Federated Learning, IEEE Transactions on Mobile Computing, 2021.
Many rounds there, one here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from node.assumptions import Assumptions
from node.learn.oneshot.algorithm import Assets, Client, Measuring, Task, Upload
from node.learn.oneshot.distilling import Lessons, fresh, lesson_flops, student
from node.op import Spec

_SAID = "predictions"


class PredictionUpload(Measuring):
    """Clients upload probabilities of the public samples, and nothing else: architectures may differ, sizes too."""

    declares = Assumptions(reveals="predictions", public="unlabelled", mixed_architectures=True)
    sends_model = False

    class Config(Lessons):
        """Options."""

        entropy_reduction: float = Field(0.1, ge=0)
        """What the mean of probabilities is divided by before a softmax: DS-FL's 0.1 makes it surer; 0: it stays as it
        is, as in FedMD."""
        precision: Literal["float32", "float16"] = "float32"
        """Of each probability on the wire."""

    config: Config

    def parts(self, task: Task, counts: Sequence[int]) -> Mapping[str, Spec]:
        """Probabilities [public samples, classes]."""
        return {_SAID: Spec((task.public_samples, task.classes), self.config.precision)}

    def part(self, name: str, client: Client, trained: Tensor) -> Tensor:
        """What a client's model says of the public samples."""
        return client.task.probabilities(trained, client.public).to(getattr(torch, self.config.precision))

    def aggregation_flops(self, task: Task, uploads: int, public_samples: int) -> float:
        """The student's steps."""
        return lesson_flops(self.config, task, public_samples)

    def aggregate(self, uploads: Sequence[Upload], assets: Assets) -> Tensor:
        """Model [dimension]."""
        mean = torch.stack([upload.part(_SAID).float() for upload in uploads]).mean(0)
        divisor = self.config.entropy_reduction
        targets = (mean / divisor).softmax(1) if divisor else mean
        return student(fresh(assets), targets, "probabilities", assets, self.config)
