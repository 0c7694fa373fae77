"""A robust rule as a protocol's context records it: one op in place of the weighted mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from node.op import Op, Ref, Static

if TYPE_CHECKING:
    from node.compute import Compute


@dataclass(frozen=True, slots=True)
class Aggregation:
    """What one model is made by; :mod:`node.learn.robust` makes it of an experiment's ``[aggregation]``."""

    mix: Op[...]
    """From the own model, all others and, where it needs them, a metric with the ``loss`` of each: one model."""
    refused: Op[...]
    """From models that were heard, and earlier counts: how many could not be taken in, as ``refused_models``."""
    static: Static
    """Static arguments of ``mix``."""
    is_anchored: bool = False
    """Judges others by the own model, and so always takes it in."""
    needs_losses: bool = False
    takes_weights: bool = False
    takes_progress: bool = False

    def record(self, ctx: Compute, models: Sequence[Ref], weights: Sequence[float] | None, progress: float) -> Ref:
        """Record the op on a node's own model and others, as :meth:`node.compute.Compute.aggregate` says."""
        static: dict[str, Any] = dict(self.static)
        if self.takes_progress:
            static["progress"] = min(max(progress, 0.0), 1.0)
        if weights is not None and self.takes_weights:
            static["weights"] = tuple(weights)
        if weights is not None and not weights[0] and not self.is_anchored:
            static["with_own"] = False
        losses = [ctx.evaluate(model, on="train") for model in models] if self.needs_losses else []
        return ctx.apply(self.mix, *models, *losses, **static)
