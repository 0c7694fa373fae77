"""Public samples: what everybody has besides its own data; labels, if any, are for an aggregator alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from node.config import DataSection, PublicSection
from node.errors import ConfigError
from node.learn.samples import Samples
from node.learn.sources import read

HELD_OUT = "held-out"


@dataclass(frozen=True, slots=True, eq=False)
class PublicData:
    """Samples that teachers speak of and students learn from; they do not know the labels."""

    source: str
    features: torch.Tensor
    """float32 [samples, *shape], in random order; scaled as the training samples are."""
    check_samples: int
    """How many of them, the last ones, no student learns from."""
    foreign_samples: int | None
    """How many are of no class of the experiment's; None where nobody knows."""
    labels: torch.Tensor | None = None
    """int64 [samples], in the same order, where ``public.labelled`` lets an aggregator know them."""


def source_of(section: PublicSection, data: DataSection, train: Samples, seed: int) -> Samples:
    """The samples that ``public.name`` means, where they are no part of the experiment's own.

    Raises ConfigError for a data set that is not there, or that is the experiment's.
    """
    if section.name == data.name:
        raise ConfigError(
            f"public.name: {section.name!r} is what nodes train on and are tested with; allowed: another data set, or "
            f"{HELD_OUT!r} for a share of the training samples"
        )
    like = DataSection(
        name=section.name,
        label=section.label,
        samples=max(section.samples or len(train.labels), 2),
        classes=2,
        shape=train.features.shape[1:],
    )
    if section.labelled and not section.label:
        raise ConfigError("public.labelled: public.label = '' says that there are no labels; name their column")
    own_seed = np.random.SeedSequence([seed, *b"public"]).generate_state(1, np.uint64)
    try:
        samples, _ = read(like, int(own_seed[0]))
    except ConfigError as error:
        raise ConfigError(str(error).replace("data.", "public.")) from None
    if samples.features.shape[1:] != train.features.shape[1:]:
        found, wanted = (list(part.features.shape[1:]) for part in (samples, train))
        raise ConfigError(f"public.name: samples of {section.name!r} have shape {found}; allowed here: {wanted}")
    return samples


def chosen(section: PublicSection, there: int, seed: int) -> np.ndarray:
    """Which of so many samples are public, int64 [samples], in random order.

    Raises ConfigError where there are fewer than are asked for, or where students would get none.
    """
    share = section.fraction if section.name == HELD_OUT else 1.0
    count = section.samples or max(1, round(share * there))
    if count > there:
        raise ConfigError(f"public.samples: {count} of the {there} samples of {section.name!r}; allowed: up to {there}")
    if checked(section, count) == count:
        raise ConfigError(f"public.check_fraction: of {count} public samples, none is left for students to learn from")
    return np.random.default_rng([seed, *b"public"]).permutation(there)[:count]


def checked(section: PublicSection, count: int) -> int:
    """How many of so many public samples no student learns from."""
    return round(section.check_fraction * count)
