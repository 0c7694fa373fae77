"""The options by which a server, or the leader of a cohort, steps from its model to the next one."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from node import Protocol
from node.learn.federated import ServerOptimizer


class ServerOptions(Protocol.Config):
    """Keys of ``[protocol]``, for whoever averages the models of others."""

    proximal: float = Field(0.0, ge=0)
    """FedProx: strength of the pull towards the common model during local training."""
    server: Literal["average", "momentum", "adagrad", "yogi", "adam"] = "average"
    """How the server steps: to the clients' average, or along its change (FedAvgM, FedAdam and relatives)."""
    server_lr: float = Field(0.1, gt=0)
    """Of all but the average: learning rate."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Of all but the average: decay of the mean."""
    beta2: float = Field(0.99, ge=0, lt=1)
    """FedYogi, FedAdam: decay of the square."""
    tau: float = Field(1e-3, gt=0)
    """FedAdagrad, FedYogi, FedAdam: degree of adaptivity."""

    @property
    def optimizer(self) -> ServerOptimizer:
        """What these options say."""
        return ServerOptimizer(self.server, self.server_lr, self.beta1, self.beta2, self.tau)
