"""How likely a sample is to be a member of a model's training set, from what the model says of it: higher is likelier.

All scores are float64, from the softmax with the maximum subtracted first. Sums over the wrong classes are taken
explicitly: ``1 - p`` of a confident model is rounding and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from scipy.special import softmax  # type: ignore[import-untyped]
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from node.errors import ConfigError

Score: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From logits [..., samples, classes] and labels [samples] to scores [..., samples]."""

_LEAST = 1e-45
"""Added inside logarithms, so that a probability of 0 gives a large number rather than infinity."""
_TRAJECTORY_WIDTHS = (64, 32)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """The softmax over the last axis, in float64; not a number where logits are not finite."""
    with np.errstate(invalid="ignore"):
        return np.asarray(softmax(np.asarray(logits, dtype=np.float64), axis=-1))


def label_probability(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The probability of each sample's own label: what :mod:`node.attack.rmia` compares."""
    return _chosen(probabilities(logits), labels)


def loss(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """``log p_y``: the negative loss (Yeom et al., CSF 2018)."""
    return np.asarray(np.log(label_probability(logits, labels) + _LEAST))


def entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """``sum_c p_c log p_c``: the negative entropy, which ignores the labels (Song and Mittal, USENIX Security 2021)."""
    p = probabilities(logits)
    return np.asarray((p * np.log(p + _LEAST)).sum(-1))


def modified_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """``(1-p_y) log p_y + sum_{c != y} p_c log(1-p_c)``, the negative (Song and Mittal, USENIX Security 2021)."""
    p = probabilities(logits)
    rest = _complement(p)
    terms = p * np.log(rest + _LEAST)
    terms[..., np.arange(len(labels)), labels] = 0
    return np.asarray(_chosen(rest, labels) * np.log(_chosen(p, labels) + _LEAST) + terms.sum(-1))


def gap(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """1 where the model is right, 0 where it is wrong (Yeom et al., CSF 2018)."""
    return np.asarray(np.asarray(logits).argmax(-1) == labels, dtype=np.float64)


def phi(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """``log p_y - log(sum_{c != y} p_c)``: the statistic of :mod:`node.attack.lira` (Carlini et al., S&P 2022)."""
    p = probabilities(logits)
    return np.asarray(np.log(_chosen(p, labels) + _LEAST) - np.log(_chosen(_complement(p), labels) + _LEAST))


SCORES: Mapping[str, Score] = MappingProxyType(
    {"loss": loss, "entropy": entropy, "modified-entropy": modified_entropy, "gap": gap, "phi": phi}
)
"""The scores that need one model and nothing else."""


def trajectory(series: np.ndarray, members: np.ndarray, known: np.ndarray, seed: int) -> np.ndarray:
    """Scores [samples] of a small network on what each sample's loss did over the rounds: an upper-bound attacker.

    Two hidden layers of 64 and 32 units, as in the evaluation of Zip-DL (Biswas et al., PoPETs 2025).

    Args:
        series: losses [samples, rounds].
        members: bool [samples].
        known: bool [samples], the samples whose membership the attacker has learnt (0.7 of the victim's, there). Only
            the scores of the others say what leaks.
        seed: of the network's initialisation and batches.

    Raises ConfigError where the known samples are all members, or none is.
    """
    if len(np.unique(members[known])) < 2:
        raise ConfigError("known: needs members and non-members to learn from; all known samples are alike")
    network = MLPClassifier(_TRAJECTORY_WIDTHS, random_state=seed, early_stopping=True, n_iter_no_change=20)
    classifier = make_pipeline(StandardScaler(), network).fit(series[known], members[known])
    return np.asarray(classifier.predict_proba(series)[:, 1])


def _chosen(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """From [..., samples, classes] to [..., samples]: the entry at each sample's label."""
    return np.asarray(values[..., np.arange(len(labels)), labels])


def _complement(p: np.ndarray) -> np.ndarray:
    """``1 - p``, where at the likeliest class, the only one where that would be rounding, the others are summed up."""
    top = p.argmax(-1)[..., None]
    others = p.copy()
    np.put_along_axis(others, top, 0, -1)
    complement = 1 - p
    np.put_along_axis(complement, top, others.sum(-1, keepdims=True), -1)
    return complement
