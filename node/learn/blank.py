"""Bytes that stand for content that nobody has, where real nodes are timed with adapters that are sizes alone."""

from __future__ import annotations

import torch
from torch import Tensor

from node.emulated import blank_spec
from node.op import Op, Task


def _zeros(task: Task) -> Tensor:
    return torch.zeros(task.static["size_bytes"], dtype=torch.uint8)


BLANK: Op[...] = Op(f"{__name__}:blank", _zeros, None, blank_spec)
"""So many zeros as ``size_bytes`` says, shape [size_bytes]."""
