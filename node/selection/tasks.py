"""Routing to tasks instead of adapters: each task knows its best adapters from a few validation examples.

Then an adapter needs no texts of its own, and a query costs as much as there are tasks. After LORAUTER (Dhasade et al.,
arXiv 2601.21795, 2026), as we read it; successive halving: Jamieson and Talwalkar, AISTATS 2016.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from node.selection.deciding import softmax
from node.selection.index import Scored


def halved(
    adapters: Sequence[str], quality: Callable[[str, int, int], float], examples: int, first: int = 2
) -> list[str]:
    """The adapters from best to worst, found with O(n first log n) evaluations of one example.

    In each rung all that are left are scored on fresh examples, the better half stays, and the number of examples is
    doubled. Ties stay in their order.

    Args:
        quality: mean quality of an adapter on validation examples ``start`` to ``stop``.
        examples: validation examples that there are; when they run out, all of them are used once more.
        first: examples of the first rung.
    """
    left, lost, start, count = list(adapters), list[str](), 0, first
    while len(left) > 1:
        if start + count > examples:
            start, count = 0, min(count, examples)
        scored = {adapter: quality(adapter, start, start + count) for adapter in left}
        left.sort(key=lambda adapter: -scored[adapter])
        keep = (len(left) + 1) // 2
        left, lost = left[:keep], left[keep:] + lost
        start, count = start + count, 2 * count
    return left + lost


def routed(
    tasks: Sequence[Scored], best: Mapping[str, str], top_k: int, temperature: float
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """The adapters of the ``top_k`` nearest tasks, and their weights in the output, which sum to 1.

    Args:
        tasks: the nearest first.
        best: the best adapter of each task; tasks may share one, whose weights are then added.
    """
    near = tasks[:top_k]
    shares: dict[str, float] = {}
    for (task, _), weight in zip(near, softmax([score for _, score in near], temperature), strict=True) if near else ():
        shares[best[task]] = shares.get(best[task], 0.0) + weight
    return tuple(shares), tuple(shares.values())
