"""Where tensors are computed."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from node.errors import ConfigError
from node.op import Value
from node.solver import BatchedExecutor


def find(name: str) -> torch.device:
    """The device that ``executor.device`` means: ``cpu``, ``cuda``, or one of several as ``cuda:1``.

    Raises ConfigError for any other, and for one that this machine or this build of torch does not have.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"executor.device: there is no device {name!r}; allowed: cpu, cuda")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ConfigError(f"executor.device: {name!r} is not there: torch {torch.__version__} finds {count} GPUs")
        # Matrix products are deterministic only with a workspace of fixed size, which is read when CUDA starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return device


class OnDevice(BatchedExecutor):
    """Solves on a device other than the processor: values stay there until somebody reads them."""

    def fetch(self, values: Sequence[Value]) -> list[Value]:
        """Copies of the tensors in this machine's own memory."""
        return [value.cpu() if isinstance(value, torch.Tensor) else value for value in values]
