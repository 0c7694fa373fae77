"""Tasks of one call that are not all alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from node.op import Task


def by_shape(
    tasks: Sequence[Task], shape: Callable[[Task], Hashable], solve: Callable[[Sequence[Task]], list[Any]]
) -> list[Any]:
    """Solve tasks in groups of one shape, and give the values in the tasks' order."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for i, task in enumerate(tasks):
        groups[shape(task)].append(i)
    values: list[Any] = [None] * len(tasks)
    for members in groups.values():
        for i, value in zip(members, solve([tasks[i] for i in members]), strict=True):
            values[i] = value
    return values
