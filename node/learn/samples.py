"""The samples of a data set as its source gives them: checked once, not yet split or scaled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from node.errors import ConfigError

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Features with their labels and, where the source knows them, their owners.

    Raises ConfigError, naming the source and the column, for anything that no model could learn from.
    """

    source: str
    """The file or name that errors speak of."""
    features: np.ndarray
    """Finite numbers, [samples, *shape]; one-dimensional samples are scaled later, all others come scaled."""
    labels: np.ndarray
    """Whole numbers or text, [samples]."""
    owners: np.ndarray | None = None
    """Whole numbers or text, [samples]."""
    columns: tuple[str, ...] = ()
    """Names of the features, where they have names."""

    def __post_init__(self) -> None:
        count = len(self.labels)
        if count == 0:
            raise ConfigError(f"{self.source}: holds no samples")
        if self.features.ndim < 2 or self.features.size == 0:
            raise ConfigError(f"{self.source}: features of shape {list(self.features.shape)}; need [samples, *shape]")
        for what, array in (("features", self.features), ("owners", self.owners)):
            if array is not None and len(array) != count:
                raise ConfigError(f"{self.source}: {len(array)} {what} for {count} labels; each sample needs one")
        self._check_finite()

    def rows(self, chosen: np.ndarray) -> Samples:
        """Some of the samples, by number."""
        owners = None if self.owners is None else self.owners[chosen]
        return replace(self, features=self.features[chosen], labels=self.labels[chosen], owners=owners)

    def _check_finite(self) -> None:
        if self.features.min() >= -_LARGEST and self.features.max() <= _LARGEST:
            return
        sample, *place = np.argwhere(~(np.abs(self.features) <= _LARGEST))[0]
        where = f"column {self.columns[place[0]]!r}" if self.columns else f"feature {[int(axis) for axis in place]}"
        value = self.features[(sample, *place)]
        raise ConfigError(f"{self.source}: {where} of sample {sample} is {value}; need finite float32 numbers")


def names(source: str, column: str, values: np.ndarray) -> np.ndarray:
    """Labels or owners as whole numbers or text, [samples].

    Raises ConfigError for fractions, and for values that name nothing (dates, lists, mixed objects).
    """
    if values.ndim != 1:
        raise ConfigError(f"{source}: {column!r} has shape {list(values.shape)}; need one value for each sample")
    if values.dtype.kind == "U":
        return values
    if values.dtype.kind not in "iubf":
        raise ConfigError(f"{source}: {column!r} holds {values.dtype}; need whole numbers or text")
    whole = np.isfinite(values) & (values == np.trunc(values)) if values.dtype.kind == "f" else np.ones(1, bool)
    if not whole.all():
        raise ConfigError(f"{source}: {column!r} holds {values[~whole][0]}; need whole numbers or text")
    return values.astype(np.int64)


def unlabelled(samples: int) -> np.ndarray:
    """One label for all samples of a source without labels, int64 [samples]."""
    return np.zeros(samples, np.int64)


def absent(source: str, column: str, key: str, there: Sequence[str]) -> ConfigError:
    """The error for a column or array that is not there; lists what is."""
    listed = ", ".join(there[:20]) + (", ..." if len(there) > 20 else "")
    return ConfigError(f"{source}: has no {column!r} ({key}); it has: {listed or 'nothing'}")
