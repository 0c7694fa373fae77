"""FedLPA: the product of what all clients know of a model, each layer by layer a Gaussian around its own.

Liu, Liu, Ye, Shen, Li, Jiang, Li: FedLPA: One-Shot Federated Learning with Layer-Wise Posterior Aggregation, NeurIPS
2024. Laplace approximation by layers: Ritter, Botev, Barber: A Scalable Laplace Approximation for Neural Networks, ICLR
2018.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy.sparse.linalg import LinearOperator, cg  # type: ignore[import-untyped]
from torch import Tensor

from node.learn.oneshot.algorithm import Task
from node.learn.oneshot.kronecker import Curvature, LayerFisher

_TOLERANCE = 1e-9
"""What may be left of the equation's right side, as a share of it."""


class FedLPA(LayerFisher):
    """The mode of the product of all clients' layer-wise posteriors, with a prior around the mean of all models.

    Whatever no client has information of stays at the mean. The mode solves a linear equation, here by conjugate
    gradients.
    """

    class Config(LayerFisher.Config):
        """Options."""

        prior: float = Field(1.0, gt=0)
        """Precision of the prior, in units of the mean Fisher information of a parameter of the layer."""
        steps: int = Field(1000, ge=1)
        """Of conjugate gradients, at most."""

    config: Config

    def solved(self, mean: Tensor, pull: Tensor, curvature: Curvature) -> Tensor:
        """Where curvature and prior are in balance."""
        shape, prior = mean.shape, self.config.prior * curvature.mean

        def pulled(flat: NDArray[np.float64]) -> NDArray[np.float64]:
            matrix = torch.from_numpy(flat).view(shape)
            return (curvature.times(matrix) + prior * matrix).flatten().numpy()

        operator = LinearOperator((mean.numel(), mean.numel()), matvec=pulled, dtype=np.float64)
        right = (pull - curvature.times(mean)).flatten().numpy()
        moved, _ = cg(operator, right, rtol=_TOLERANCE, maxiter=self.config.steps)
        return mean + torch.from_numpy(moved).view(shape)

    def aggregation_flops(self, task: Task, uploads: int, public_samples: int) -> float:
        """A product each step."""
        return self.config.steps * self.product_flops(task, uploads)
