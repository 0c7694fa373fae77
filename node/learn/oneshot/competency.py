"""A vote in which the aggregator knows, from samples with labels, which class each model takes for which.

Naive Bayes combination: Xu, Krzyzak, Suen, IEEE Transactions on Systems, Man, and Cybernetics, 1992.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from node.assumptions import Assumptions
from node.learn.cost import inference_flops
from node.learn.oneshot.algorithm import Algorithm, Assets, Task, Upload
from node.op import Spec


class CompetencyVote(Algorithm):
    """Each model puts a sample into one class; the class most likely to be taken for all of these wins."""

    declares = Assumptions(public="labelled", mixed_architectures=True, result="ensemble", selection="labelled")

    def result(self, task: Task, uploads: int) -> Spec:
        """Flat: models, then for each the logarithms of P(said | true) [classes, classes]."""
        return Spec((uploads * (task.model.dimension + task.classes**2),))

    def aggregation_flops(self, task: Task, uploads: int, public_samples: int) -> float:
        """All models' answers."""
        return uploads * public_samples * inference_flops(task.model, task.shape)

    def aggregate(self, uploads: Sequence[Upload], assets: Assets) -> Tensor:
        """Models [uploads, dimension] and their competencies [uploads, classes, classes], flat.

        Every pair of classes counts as seen once more than it was, so that none is impossible.
        """
        task = assets.task
        truth = one_hot(assets.labels, task.classes).double()
        models = torch.stack([upload.model for upload in uploads])
        said = torch.stack([one_hot(task.logits(flat, assets.public).argmax(1), task.classes) for flat in models])
        counts = 1 + truth.T @ said.double()
        return torch.cat([models.flatten(), (counts / counts.sum(2, keepdim=True)).log().float().flatten()])

    def predict(self, state: Tensor, features: Tensor, assets: Assets) -> Tensor:
        """Probabilities [samples, classes], of classes that are as likely to begin with."""
        task = assets.task
        members = len(state) // (task.model.dimension + task.classes**2)
        cut = members * task.model.dimension
        models, competencies = state[:cut].view(members, -1), state[cut:].view(members, task.classes, -1)
        said = torch.stack([task.logits(flat, features).argmax(1) for flat in models])
        scores = sum(known[:, classes].T for known, classes in zip(competencies, said, strict=True))
        return torch.as_tensor(scores).softmax(1)
