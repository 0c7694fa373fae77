"""What the executors with several processes share: how many there are, and how an op is found in another process."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from node.op import Op


def count(workers: int) -> int:
    """How many processes to start: ``workers``, or where that is 0 one for each core that this process may use."""
    if workers:
        return workers
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def find(name: str) -> Op[...] | None:
    """The op that its name, ``module:qualname``, leads to; None where it leads nowhere."""
    module_name, _, qualname = name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError):
        return None
    return found if isinstance(found, Op) else None


def is_importable(op: Op[...]) -> bool:
    """Whether another process that imports the op by its name gets this very op."""
    module_name = op.name.partition(":")[0]
    return module_name != "__main__" and module_name in sys.modules and find(op.name) is op
