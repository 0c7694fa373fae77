"""What accuracies of one-shot algorithms on digits are known to be, over five seeds of four divisions.

Figures are means and standard deviations in %, of another implementation on the divisions of
:mod:`node.experiment.oneshot_reference` with the benchmark's local training: an MLP of 64, 100 and 10 units, SGD with
rate 0.05, momentum 0.9 and batches of 32, 40 passes. A right one has a mean within three standard deviations of these,
or three points where that is more.
"""

from __future__ import annotations

from collections.abc import Iterator

PLACES = ("iid", "dirichlet(0.5)", "dirichlet(0.1)", "shards(2)")
_LEAST_WIDTH = 3.0
_DEVIATIONS = 3.0

KNOWN = {
    "centralised": "96.9±1.4 96.9±1.4 96.9±1.4 96.9±1.4",
    "mean client": "90.0±0.8 65.7±1.7 36.3±1.2 24.4±0.8",
    "best client": "92.7±0.8 80.4±1.3 57.7±4.4 34.8±2.9",
    "weighted average": "93.8±0.9 82.3±1.9 56.2±9.5 37.8±9.7",
    "task arithmetic 0.3": "93.3±0.9 75.8±4.5 34.7±9.6 32.7±9.5",
    "weight matching": "93.8±0.9 82.4±2.0 56.2±9.1 39.1±9.6",
    "Fisher": "93.6±1.5 91.3±2.1 81.4±5.7 –",
    "FedFisher": "93.6±1.4 91.2±2.0 81.1±5.9 52.2±9.9",
    "RegMean 0.9": "94.5±1.1 92.9±1.2 90.0±1.6 89.1±2.9",
    "RegMean 0.1": "93.9±0.9 88.1±2.5 72.4±4.0 60.4±11.8",
    "ensemble logits": "94.0±1.0 87.0±2.8 48.9±17.5 48.1±9.1",
    "ensemble probabilities": "94.4±1.0 92.3±1.4 75.1±4.1 61.9±5.9",
    "ensemble vote": "94.3±1.2 91.6±1.1 74.0±4.4 61.5±6.4",
    "ensemble label-weighted logits": "93.9±1.2 93.9±0.7 81.0±9.5 49.6±6.8",
    "ensemble label-weighted probabilities": "94.5±0.9 95.1±0.7 89.4±1.5 83.2±8.6",
    "FedDF probabilities": "92.9±0.5 89.8±1.3 76.1±3.0 60.5±4.1",
    "FedKD": "93.9±1.0 93.5±0.8 78.1±10.7 47.2±6.6",
    "FedKD alike": "92.5±1.4 86.3±2.8 48.0±17.3 48.1±9.3",
    "distillation KL": "92.4±0.8 88.1±1.8 72.1±5.3 56.9±3.4",
    "distillation KL sharper": "– 91.1±1.4 79.6±6.1 64.5±5.3",
    "distillation KL from the average": "– 89.2±1.4 74.2±4.5 57.6±4.5",
    "distillation hard labels": "– 90.7±1.3 88.1±1.4 81.9±9.0",
    "distillation hard labels from the average": "– 91.2±1.2 88.2±1.7 82.4±8.8",
    "FENS": "90.2±1.6 – 89.4±1.4 89.4±1.4",
    "FedOV": "– – 79.5±6.0 82.5±3.5",
    "FedOV best 3": "– – 78.1±5.2 82.4±3.1",
    "DENSE": "– – 35.9±14.3 32.3±5.3",
    "Co-Boosting": "– – 68.8±6.2 –",
    "FedCVAE-Ens": "– – 86.2±1.8 –",
    "FedPFT": "91.5±1.4 92.7±1.6 91.8±0.8 90.5±1.3",
    "ridge": "98.0±0.7 98.0±0.7 98.0±0.7 98.0±0.7",
    "Gaussian head": "98.3±0.4 98.3±0.4 98.3±0.4 98.3±0.4",
    "centroids": "93.0±0.4 92.4±1.5 92.5±1.3 91.8±1.4",
    "fedavg 10 rounds": "54.3±6.5 54.2±8.3 42.7±7.6 53.1±8.9",
    "fedavg 30 rounds": "80.7±4.3 81.0±1.9 75.7±4.4 84.8±2.0",
}
"""By entrant, in each place; –: not known."""


def bands() -> Iterator[tuple[str, str, float, float]]:
    """``(entrant, place, mean, width)``: in points, and to either side."""
    for name, figures in KNOWN.items():
        for place, figure in zip(PLACES, figures.split(), strict=True):
            if figure != "–":
                mean, deviation = map(float, figure.split("±"))
                yield name, place, mean, max(_DEVIATIONS * deviation, _LEAST_WIDTH)
