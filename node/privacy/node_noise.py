"""Node-level local differential privacy around any protocol: what training has changed leaves it clipped and noised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from node.mods import Mod
from node.op import Op, Ref

if TYPE_CHECKING:
    from node.context import Context


class NodeNoise(Mod):
    """Replaces every trained model by the one before, its clipped update, and noise.

    Every later use of the node's data is in an update of its own, and charged by itself: once a training, however many
    steps it has.
    """

    def __init__(self, op: Op[...], clip: float, noise_multiplier: float) -> None:
        """``op``: :func:`~node.privacy.clipping.noised_update`, the same for all nodes."""
        super().__init__()
        self._op = op
        self._clip = clip
        self._noise_multiplier = noise_multiplier

    def trained(self, ctx: Context, before: Ref, after: Ref) -> Ref:
        """What may be sent in place of ``after``."""
        return ctx.apply(self._op, before, after, clip=self._clip, noise_multiplier=self._noise_multiplier)
