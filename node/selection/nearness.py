"""Among adapters that are nearly as good, the one that is there sooner."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from node.selection.index import Scored


def cheapest(
    scored: Sequence[Scored], load_s: Callable[[str], float], *, epsilon: float, score_per_s: float
) -> Scored | None:
    """The adapter with the most score left after the time to load it is paid for; None where there is none.

    Args:
        scored: adapters, the nearest first.
        load_s: how long an adapter takes to be resident, in seconds; 0 where it is.
        epsilon: only adapters within so much of the best score are looked at.
        score_per_s: what a second of waiting is worth; 0: nothing, and the nearest is chosen.
    """
    near = [each for each in scored if each.score >= scored[0].score - epsilon]
    return max(near, key=lambda each: each.score - score_per_s * load_s(each.name), default=None)
