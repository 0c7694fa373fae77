"""Sparse models: which of a model's elements a node keeps, and what of them travels.

A *mask* has the model's shape, 1 where an element is kept and 0 elsewhere. All nodes keep equally many elements, so
that the size of a message is known before anything is computed; which ones is each node's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Protocol as Interface

import numpy as np

from node.arrays import as_array, bytes_like
from node.arrays import like as of_its_kind
from node.op import Op, Ref, Spec, Static, Value, op

if TYPE_CHECKING:
    from node.compute import Compute

_BYTE = 8


class SparseOps(Interface):
    """What a workload knows of its model for it to be sparse."""

    draw: Op[...]
    """A random mask, from the model and the static argument density."""
    regrow: Op[...]
    """The next mask, from a model, its mask and the static argument share: in every layer that share of what is kept,
    the smallest in magnitude, goes, and as many elements come where the gradient of one batch is largest."""

    def kept(self, density: float) -> int:
        """Elements that a mask of some density keeps."""
        ...


class Sparse:
    """Masks of one density, and what is done with them; ``ctx.sparse(density)`` gives it."""

    __slots__ = ("_ctx", "_density", "_kept", "_ops")

    def __init__(self, ctx: Compute, ops: SparseOps, density: float) -> None:
        self._ctx = ctx
        self._ops = ops
        self._density = density
        self._kept = ops.kept(density)

    def mask(self) -> Ref:
        """A random mask of this node's own."""
        return self._ctx.apply(self._ops.draw, self._ctx.initial_model(), density=self._density)

    def pack(self, model: Ref, mask: Ref) -> tuple[Ref, Ref]:
        """What of a model travels: the values [kept] that its mask keeps, and the mask as bits, uint8 [bytes]."""
        return self._ctx.apply(_packed, model, mask, count=self._kept), self._ctx.apply(_bits, mask)

    def mean(self, packed: Sequence[tuple[Ref, Ref]], mask: Ref) -> Ref:
        """Element by element the mean over those of some packed models that keep it, where ``mask`` does too.

        Bits that do not count as many elements as there are values stand for a model that keeps none.
        """
        ctx, every = self._ctx, [1.0] * len(packed)
        masks = [ctx.apply(unpacked_mask, mask, bits, count=self._kept) for _, bits in packed]
        models = [ctx.apply(_unpacked, own, values) for own, (values, _) in zip(masks, packed, strict=True)]
        return ctx.apply(_kept_mean, ctx.mix(models, every), ctx.mix(masks, every), mask)

    def regrow(self, model: Ref, mask: Ref, share: float) -> Ref:
        """The next mask: a share of what each layer keeps is exchanged (:attr:`SparseOps.regrow`).

        The gradient that it reads is not private, whatever training is: an experiment that asks for both is refused.
        """
        return self._ctx.apply(self._ops.regrow, model, mask, share=share) if share else mask


def bits_of(model: Spec) -> Spec:
    """A model's mask as bits."""
    return Spec((-(-model.shape[0] // _BYTE),), "uint8")


def _packed_spec(inputs: Sequence[Spec], static: Static) -> Spec:
    return Spec((static["count"],), inputs[0].dtype)


def _bits_spec(inputs: Sequence[Spec], static: Static) -> Spec:
    return bits_of(inputs[0])


@op(spec=_packed_spec)
def _packed(model: Value, mask: Value, *, count: int) -> Value:
    return model[mask != 0]


@op(spec=_bits_spec)
def _bits(mask: Value) -> Value:
    """Eight elements a byte, the first one lowest."""
    return bytes_like(mask, np.packbits(as_array(mask) != 0, bitorder="little"))


@op
def unpacked_mask(like: Value, bits: Value, *, count: int) -> Value:
    """The mask of a model like another from its bits; 0 everywhere, where they do not count as many elements."""
    kept = np.unpackbits(as_array(bits), count=len(like), bitorder="little")
    return of_its_kind(like, kept if np.count_nonzero(kept) == count else np.zeros_like(kept))


@op
def _unpacked(mask: Value, values: Value) -> Value:
    model = mask * 0.0
    kept = mask != 0
    if kept.any():
        model[kept] = values
    return model


@op
def _kept_mean(total: Value, count: Value, mask: Value) -> Value:
    return total / (count + (count == 0)) * mask
