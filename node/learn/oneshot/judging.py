"""How good a predictor is: the only place of one-shot learning that sees the test set, and no algorithm sees it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import nll_loss, one_hot

from node.op import Spec

BINS = 15
_LEAST = 1e-12
RELIABILITY = "reliability/"
"""Begins the names of what is in one bin, the bin's number next: of all samples the ``share`` that has its largest
probability there, the share that is ``right`` there, and ``confidence``, the sum of these probabilities over all
samples. Of several test sets their means are those of all together."""
_OF_BIN = ("share", "confidence", "right")
_BINNED = tuple(f"{RELIABILITY}{place}/{what}" for place in range(BINS) for what in _OF_BIN)
_PLAIN = ("accuracy", "loss", "brier", "ece", "ece_adaptive", "balanced_accuracy", "macro_f1", "worst_class")


def names(classes: int) -> Spec:
    """What :func:`judged` gives: its names."""
    recalls = tuple(f"recall_{label}" for label in range(classes))
    told = (*_PLAIN, *recalls, *_BINNED)
    return Spec((len(told),), "float64", told)


def judged(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, calibration, the recall of each class, and what is in each bin of confidence.

    Of probabilities [samples, classes] and labels [samples]. Scores are normalised first. A sample of which scores are
    no numbers is told wrong. A class that no sample is of has recall NaN, and no part in means over classes.
    """
    classes = probabilities.shape[1]
    scores = probabilities.double().clamp_min(_LEAST)
    scores = scores / scores.sum(1, keepdim=True)
    confidence, chosen = scores.max(1)
    is_told = confidence.isfinite()
    right = (chosen == labels) & is_told
    truth, told = one_hot(labels, classes).double(), one_hot(chosen, classes).double() * is_told.unsqueeze(1)
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
    figures |= {f"recall_{label}": float(recall[label]) for label in range(classes)}
    return figures | dict(zip(_BINNED, reliability(confidence, right).flatten().tolist(), strict=True))


def reliability(confidence: Tensor, right: Tensor, bins: int = BINS) -> Tensor:
    """The shares of samples, their confidence and how many of them are right, by bin: float64 [bins, 3].

    All three are sums over a bin's samples, divided by the number of all samples: the diagram of DeGroot and Fienberg:
    The Comparison and Evaluation of Forecasters, 1983.
    """
    told = torch.stack([torch.ones_like(confidence, dtype=torch.float64), confidence.double(), right.double()], 1)
    return told.new_zeros(bins, 3).index_add_(0, _place(confidence, bins), told) / len(confidence)


def _place(confidence: Tensor, bins: int) -> Tensor:
    """Which bin ``(i / bins, (i + 1) / bins]`` each is in, int64."""
    return (confidence.double() * bins).ceil().long().sub(1).clamp(0, bins - 1)


def calibration_error(confidence: Tensor, right: Tensor, bins: int = BINS) -> float:
    """Expected calibration error over bins ``(i / bins, (i + 1) / bins]`` of the largest probability.

    Naeini, Cooper, Hauskrecht: Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI 2015; Guo, Pleiss,
    Sun, Weinberger: On Calibration of Modern Neural Networks, ICML 2017.
    """
    place = _place(confidence, bins)
    gaps = right.double() - confidence.double()
    return float(torch.zeros(bins, dtype=torch.float64).index_add_(0, place, gaps).abs().sum() / len(gaps))


def adaptive_calibration_error(confidence: Tensor, right: Tensor, bins: int = BINS) -> float:
    """The same over bins of equal counts (Nguyen and O'Connor, EMNLP 2015)."""
    order = confidence.argsort(stable=True)
    gaps = (right.double() - confidence.double())[order]
    return float(sum(part.sum().abs() for part in gaps.tensor_split(bins)) / len(gaps))
