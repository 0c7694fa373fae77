"""Control variates against client drift: SCAFFOLD, option II (Karimireddy et al., ICML 2020), in a cohort.

A member's steps lead to its own optimum rather than to the cohort's. So it adds to each gradient what the cohort's mean
gradient has been more than its own: the common control, which comes with the model, less the member's own one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from node import Context, Ref
from node.learn.federated import Scaffold
from protocols.versions import Version

COMMON = "control"
"""What the common control is called in a version's state."""
_OWN, _BEFORE, _ROUND = "control", "control before", "control round"


class Drift:
    """A member's own control, which stays with it.

    Where a new leader repeats a round, it goes on from the control before that round: what the last leader heard of its
    change is in no version that members keep.
    """

    def __init__(self) -> None:
        self._own: Ref | None = None
        self._before: Ref | None = None
        self._round = -1

    def correction(self, ctx: Context, version: Version, round: int) -> Ref:
        """What to add to each gradient of a round's training."""
        if self._own is None:
            self._own = Scaffold.start(ctx, version.model)
        if self._before is None or round > self._round:
            self._before, self._round = self._own, round
        return Scaffold.correction(ctx, common_of(ctx, version), self._before)

    def trained(self, ctx: Context, version: Version, after: Ref, lr: float) -> Ref:
        """Take in where the training has led, at the rate ``lr``; gives the change of this member's control."""
        assert self._before is not None
        if after is version.model:  # the privacy budget allows no more training
            return Scaffold.start(ctx, after)
        common = common_of(ctx, version)
        self._own, change = Scaffold.trained(ctx, common, self._before, version.model, after, ctx.steps, lr)
        return change

    # Over restarts

    def state(self) -> dict[str, Ref | float]:
        """For a checkpoint."""
        if self._own is None or self._before is None:
            return {}
        return {_OWN: self._own, _BEFORE: self._before, _ROUND: self._round}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint has kept."""
        if _ROUND in saved:
            self._own, self._before, self._round = saved[_OWN], saved[_BEFORE], int(saved[_ROUND])


def common_of(ctx: Context, version: Version) -> Ref:
    """The common control that goes with a version; 0 at the start."""
    return version.state[COMMON] if COMMON in version.state else Scaffold.start(ctx, version.model)
