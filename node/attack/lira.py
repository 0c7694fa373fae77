"""Likelihood-ratio membership inference: what would a model that was, or was not, trained on this sample say of it?

Carlini, Chien, Nasr, Song, Terzis and Tramèr, "Membership inference attacks from first principles", S&P 2022. Also the
simpler calibrated loss (Watson et al., ICLR 2022), which compares with the same reference models.

All functions take, and give, higher for members. ``target`` [samples] is the attacked model's statistic (``phi`` of
:mod:`node.attack.scores`; its mean over augmentations where they make sense), ``references`` [models, samples] that of
models trained on other random halves, and ``inside`` bool [models, samples] which of them were trained on what.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import norm  # type: ignore[import-untyped]

from node.errors import ConfigError

_LEAST_DEVIATION = 1e-30


def online(
    target: np.ndarray, references: np.ndarray, inside: np.ndarray, *, fixed_variance: bool = True
) -> np.ndarray:
    """``log N(phi; in) - log N(phi; out)`` [samples], with medians as the means.

    Args:
        fixed_variance: one deviation for all samples, about their own medians: better below some 64 references.

    Raises ConfigError for a sample that no reference, or every one, was trained on.
    """
    median_in, deviation_in = _normal("in", references, inside, fixed_variance)
    median_out, deviation_out = _normal("out", references, ~inside, fixed_variance)
    return np.asarray(norm.logpdf(target, median_in, deviation_in) - norm.logpdf(target, median_out, deviation_out))


def offline(
    target: np.ndarray, references: np.ndarray, inside: np.ndarray, *, fixed_variance: bool = True
) -> np.ndarray:
    """How far beyond models that never saw it a sample lies, as a one-sided normal probability [samples].

    Only references that were not trained on a sample are used. Raises ConfigError where there is none.
    """
    median, deviation = _normal("out", references, ~inside, fixed_variance)
    return np.asarray(norm.cdf(target, median, deviation))


def calibrated(target: np.ndarray, references: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """How much higher the target scores a sample than models that never saw it do on average [samples].

    On ``loss`` of :mod:`node.attack.scores`: the loss calibrated by difficulty (Watson et al., ICLR 2022).
    """
    _refuse_absent("out", ~inside)
    return np.asarray(target - np.mean(references, axis=0, where=~inside))


def _normal(side: str, references: np.ndarray, chosen: np.ndarray, fixed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Median and standard deviation of each sample's statistics over the chosen references; without those that have
    diverged, and not a number where all of a sample's have.
    """
    _refuse_absent(side, chosen)
    statistics = np.where(chosen, references, np.nan)
    if np.isnan(statistics).all(axis=0).any():
        nothing = np.full(statistics.shape[1:], np.nan)
        return nothing, nothing
    median = np.nanmedian(statistics, axis=0)
    if fixed:
        deviation = np.full_like(median, np.sqrt(np.nanmean((statistics - median) ** 2)))
    else:
        deviation = np.nanstd(statistics, axis=0)
    return median, deviation + _LEAST_DEVIATION


def _refuse_absent(side: str, chosen: np.ndarray) -> None:
    without = np.flatnonzero(~chosen.any(axis=0))
    if len(without):
        raise ConfigError(
            f"inside: sample {without[0]} has no '{side}' model among {len(chosen)} references; "
            f"train them in complementary pairs, and keep at least one pair besides the target's"
        )
