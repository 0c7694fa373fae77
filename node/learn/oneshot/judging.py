"""How good a predictor is: the only place of one-shot learning that sees the test set, and no algorithm sees it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import nll_loss, one_hot

from node.op import Spec

BINS = 15
_LEAST = 1e-12
_PLAIN = ("accuracy", "loss", "brier", "ece", "ece_adaptive", "balanced_accuracy", "macro_f1", "worst_class")


def names(classes: int) -> Spec:
    """What :func:`judged` gives: its names, the recall of each class last."""
    recalls = tuple(f"recall_{label}" for label in range(classes))
    return Spec((len(_PLAIN) + classes,), "float64", (*_PLAIN, *recalls))


def judged(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, calibration and the recall of each class, of probabilities [samples, classes] and labels [samples].

    Scores are normalised first. A class that no sample is of has recall NaN, and no part in means over classes.
    """
    classes = probabilities.shape[1]
    scores = probabilities.double().clamp_min(_LEAST)
    scores = scores / scores.sum(1, keepdim=True)
    confidence, chosen = scores.max(1)
    right = chosen == labels
    truth, told = one_hot(labels, classes).double(), one_hot(chosen, classes).double()
    hits, there, claimed = (truth * told).sum(0), truth.sum(0), told.sum(0)
    is_there = there > 0
    recall = torch.where(is_there, hits / there.clamp_min(1), torch.nan)
    f1 = 2 * hits / (there + claimed).clamp_min(1)
    plain = (
        right.double().mean(),
        nll_loss(scores.log(), labels),
        ((scores - truth) ** 2).sum(1).mean(),
        calibration_error(confidence, right),
        adaptive_calibration_error(confidence, right),
        recall[is_there].mean(),
        f1[is_there].mean(),
        recall[is_there].min(),
    )
    figures = dict(zip(_PLAIN, (float(figure) for figure in plain), strict=True))
    return figures | {f"recall_{label}": float(recall[label]) for label in range(classes)}


def calibration_error(confidence: Tensor, right: Tensor, bins: int = BINS) -> float:
    """Expected calibration error over bins ``(i / bins, (i + 1) / bins]`` of the largest probability.

    Naeini, Cooper, Hauskrecht: Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI 2015; Guo, Pleiss,
    Sun, Weinberger: On Calibration of Modern Neural Networks, ICML 2017.
    """
    place = (confidence.double() * bins).ceil().long().sub(1).clamp(0, bins - 1)
    gaps = right.double() - confidence.double()
    return float(torch.zeros(bins, dtype=torch.float64).index_add_(0, place, gaps).abs().sum() / len(gaps))


def adaptive_calibration_error(confidence: Tensor, right: Tensor, bins: int = BINS) -> float:
    """The same over bins of equal counts (Nguyen and O'Connor, EMNLP 2015)."""
    order = confidence.argsort(stable=True)
    gaps = (right.double() - confidence.double())[order]
    return float(sum(part.sum().abs() for part in gaps.tensor_split(bins)) / len(gaps))
