"""Least squares in the space that the rows of a matrix span, with an honest answer to how large that space is."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import scipy  # type: ignore[import-untyped]
from numpy.typing import NDArray

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

RANK_TOLERANCE = 1e-9
"""Singular values below this share of the largest count as zero. Those of what gossip mixes fall to 1e-6 in ten rounds:
a looser tolerance would call directions unseen that are seen."""
# What rounding leaves of a zero, per row: between this and the tolerance, nobody can tell.
_ROUNDING = 8 * float(np.finfo(np.float64).eps)
# R R' has the squared condition number of R; where its reciprocal is below this, singular values are computed instead.
_WELL_CONDITIONED = 1e-6
_BLOCK = 512


class RowSpace:
    """What a matrix with noise in some columns tells of each column: the map that makes its noise white, applied.

    Args:
        rows: shape (rows, columns). Rows of zeros, and rows that follow from others, are harmless. Where late rows only
            add columns to early ones, as in a log, most of the work is saved.
        spanning: which columns span the space, shape (columns,): the noise.
    """

    def __init__(self, rows: Array, spanning: Flags) -> None:
        norms = np.sqrt(np.einsum("rc,rc,c->r", rows, rows, spanning))
        # Noise that cancels leaves a trace: next to what it covers, or to other rows' noise.
        self._seen = norms > _ROUNDING * np.maximum(np.linalg.norm(rows, axis=1), norms.max(initial=0.0))
        self._bare_rows = rows[~self._seen]
        # Rows of one length: the rank is no question of their scale. A column of theirs is contiguous here.
        self._columns = np.ascontiguousarray((rows[self._seen] / norms[self._seen, None]).T)
        self._spanning = spanning
        self._lower = self._cholesky()
        self._left, self._singular, self.resolved = np.empty((0, 0)), np.empty(0), True
        """``resolved``: whether float64 could tell the rank; if not, ``rank`` is the least that it can be."""
        if self._lower is None:
            self._decompose()

    @property
    def rank(self) -> int:
        """Dimension of the space."""
        return len(self._singular) if self._lower is None else len(self._lower)

    @cached_property
    def whitened(self) -> Array:
        """What becomes of each column if the rows' noise is made white, shape (columns, rank).

        Those that span the space are then orthonormal vectors' entries: their squared lengths are leverages.
        """
        if self._lower is None:
            return np.asarray(self._columns @ (self._left / self._singular))
        white = np.zeros_like(self._columns)
        for columns, first in self._blocks():
            white[columns, first:] = scipy.linalg.solve_triangular(
                self._lower[first:, first:], self._columns[columns, first:].T, lower=True, check_finite=False
            ).T
        return white

    @cached_property
    def squares(self) -> Array:
        """Squared length of each column when whitened, shape (columns,)."""
        return np.asarray(np.einsum("cr,cr->c", self.whitened, self.whitened))

    @cached_property
    def outside(self) -> Flags:
        """Which columns move the rows in a way that no noise could have, shape (columns,)."""
        sizes = np.abs(self._bare_rows)
        bare = (sizes > _ROUNDING * sizes.max(initial=0.0)).any(axis=0)
        if self._lower is not None:
            return np.asarray(bare)
        rest = np.linalg.norm(self._columns - (self._columns @ self._left) @ self._left.T, axis=1)
        norms = np.linalg.norm(self._columns, axis=1)
        moved = rest > RANK_TOLERANCE * norms + _ROUNDING * norms.max(initial=0.0)
        return np.asarray(bare | (moved & ~self._spanning))

    def _blocks(self) -> Iterator[tuple[slice, int]]:
        """Some columns at a time, and the first row that is not zero in all of them."""
        for start in range(0, len(self._columns), _BLOCK):
            columns = slice(start, start + _BLOCK)
            used = np.flatnonzero(self._columns[columns].any(axis=0))
            if len(used):
                yield columns, int(used[0])

    def _cholesky(self) -> Array | None:
        """The triangle L with L L' = R R', or None where it would be too inexact."""
        rows = self._columns.shape[1]
        if not 0 < rows <= self._spanning.sum():
            return None
        gram = np.zeros((rows, rows))
        for columns, first in self._blocks():
            block = self._columns[columns, first:][self._spanning[columns]]
            gram[first:, first:] += block.T @ block
        try:
            lower: Array = scipy.linalg.cholesky(gram, lower=True, check_finite=False)
        except scipy.linalg.LinAlgError:
            return None
        reciprocal, _ = scipy.linalg.lapack.dpocon(lower, np.abs(gram).sum(axis=0).max(), uplo="L")
        return lower if reciprocal > _WELL_CONDITIONED else None

    def _decompose(self) -> None:
        # The triangular factor has the same singular values, and is no larger than the shorter side allows.
        spanning = self._columns[self._spanning]
        triangle = np.asarray(np.linalg.qr(spanning, mode="r")).T
        left, singular, _ = np.linalg.svd(triangle, full_matrices=False)
        largest = singular.max(initial=0.0)
        kept = singular > RANK_TOLERANCE * largest
        doubtful = ~kept & (singular > _ROUNDING * spanning.shape[1] * largest)
        self._left, self._singular, self.resolved = left[:, kept], singular[kept], not doubtful.any()
