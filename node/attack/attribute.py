"""What a model or an update says of its training data beyond membership: an attribute, a property, the labels.

Only what the attacker could not have guessed without the model counts: every figure comes with that baseline.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from node.errors import ConfigError

_TREES = 200


class Lift(NamedTuple):
    """An attack beside the same attacker without the model."""

    accuracy: float
    baseline_accuracy: float
    auc: float | None
    """None where the attribute has more than two values."""
    baseline_auc: float | None

    @property
    def accuracy_lift(self) -> float:
        """What the model adds to the accuracy; about 0 where it says nothing."""
        return self.accuracy - self.baseline_accuracy

    @property
    def auc_lift(self) -> float | None:
        """What the model adds to the AUC."""
        return None if self.auc is None or self.baseline_auc is None else self.auc - self.baseline_auc


def from_outputs(
    known: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
    attribute: np.ndarray,
    learnt: np.ndarray,
    seed: int,
) -> Lift:
    """Guess an attribute from a model's outputs, by a random forest; the baseline sees all but the outputs.

    Args:
        known: the other attributes, [samples, others].
        labels: int64 [samples].
        probabilities: what the model says, [samples, classes].
        attribute: int64 [samples].
        learnt: bool [samples]: samples whose attribute the attacker knows; it is judged on the others.
        seed: of the forests.
    """
    if len(np.unique(attribute[learnt])) < 2 or learnt.all():
        raise ConfigError("learnt: needs samples of two attribute values to learn from, and others to be judged on")
    without = np.column_stack([known, labels])
    scores = [
        _forest(features, attribute, learnt, seed) for features in (np.column_stack([without, probabilities]), without)
    ]
    (accuracy, auc), (baseline_accuracy, baseline_auc) = scores
    return Lift(accuracy, baseline_accuracy, auc, baseline_auc)


def candidates(features: np.ndarray, column: int, values: np.ndarray) -> np.ndarray:
    """Each sample [samples, features] with each value of one attribute: [values, samples, features]."""
    stacked = np.repeat(features[None], len(values), axis=0)
    stacked[:, :, column] = values[:, None]
    return stacked


def from_losses(losses: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The value of least loss for each sample [samples]: a model fits best what it was trained on.

    ``losses`` [values, samples] are the model's on :func:`candidates`; of equal losses, the first value.
    (Yeom et al., CSF 2018.)
    """
    return np.asarray(values[losses.argmin(axis=0)])


def lift_of(guesses: np.ndarray, attribute: np.ndarray) -> Lift:
    """Guesses [samples] beside the best constant one."""
    most = np.unique(attribute, return_counts=True)[1].max()
    return Lift(float(np.mean(guesses == attribute)), float(most / len(attribute)), None, None)


def property_of(shadows: np.ndarray, properties: np.ndarray, updates: np.ndarray) -> np.ndarray:
    """The property (cluster, rotation, dominant label) of the data behind each update, [updates].

    A linear classifier on standardised updates learns from shadows: updates [shadows, dimension] that the attacker made
    on data of known properties [shadows] (Ganju et al., CCS 2018; Melis et al., S&P 2019).
    """
    if len(np.unique(properties)) < 2:
        raise ConfigError("properties: all shadows have the same one; need two or more")
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return np.asarray(classifier.fit(shadows, properties).predict(updates))


def label_distribution(bias_gradient: np.ndarray, predicted: np.ndarray | None = None) -> np.ndarray:
    """Share of each label [classes] in the batch behind a gradient, from that of the last layer's bias [classes].

    It is the mean prediction less the labels' shares (Wainakh et al., PoPETs 2022). ``predicted`` is the model's mean
    prediction on any data [classes]; absent, all classes are taken for equally likely, as an untrained model has them.
    """
    classes = len(bias_gradient)
    mean = np.full(classes, 1 / classes) if predicted is None else predicted
    shares = np.maximum(mean - np.asarray(bias_gradient, dtype=np.float64), 0)
    return shares / shares.sum() if shares.any() else np.full(classes, 1 / classes)


def total_variation(shares: np.ndarray, others: np.ndarray) -> float:
    """Distance between two distributions [classes]: 0 where equal, 1 where they have nothing in common."""
    return float(np.abs(shares - others).sum() / 2)


def _forest(features: np.ndarray, attribute: np.ndarray, learnt: np.ndarray, seed: int) -> tuple[float, float | None]:
    """Accuracy and, for two values, AUC of a forest that learns from some samples, on all others."""
    forest = RandomForestClassifier(_TREES, random_state=seed).fit(features[learnt], attribute[learnt])
    truth = attribute[~learnt]
    accuracy = float(np.mean(forest.predict(features[~learnt]) == truth))
    if len(np.unique(attribute)) > 2 or len(np.unique(truth)) < 2:
        return accuracy, None
    return accuracy, float(roc_auc_score(truth, forest.predict_proba(features[~learnt])[:, 1]))
