"""A one-shot algorithm whose clients send parts: what they have of each class, summed up by its labels."""

import torch

from node import Spec
from node.assumptions import Assumptions
from node.learn.oneshot.algorithm import Measuring, Streaming


class Summing(Measuring, Streaming):
    declares = Assumptions(reveals="statistics")

    def parts(self, task, counts):
        held = sum(count > 0 for count in counts)
        return {"sums": Spec((held, *task.shape)), "total": Spec((3,), "float64")}

    def part(self, name, client, trained):
        if name == "total":
            return torch.stack([client.features.sum(), trained.sum(), client.features.mean()]).double()
        present = client.labels.unique()
        return torch.stack([client.features[client.labels == label].sum(0) for label in present])

    def state(self, task):
        return Spec((task.model.dimension,), "float64")

    def add(self, state, upload, assets):
        return state + upload.model * upload.part("total")[2] + 1e-6 * upload.part("sums").sum()

    def finish(self, state, assets):
        return state
