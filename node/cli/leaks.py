"""What attackers have measured, as a section of a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from node.cli import plots
from node.cli.figures import labels
from node.cli.runs import Floats, Run
from node.cli.summary import Interval
from node.errors import ConfigError
from node.experiment.folder import PICTURES

_COURSES = {
    "membership_auc": "Membership inference: AUC",
    "inversion_psnr": "Gradient inversion: PSNR (dB)",
    "linkability_accuracy": "Linkability: accuracy",
    "attribute_lift": "Attribute inference: lift",
}
_FINAL = {
    "membership_auc": "AUC",
    "membership_best_auc": "best AUC",
    "membership_accuracy": "balanced accuracy",
    "membership_tpr_1pct": "TPR at 1% FPR",
    "membership_tpr_01pct": "TPR at 0.1% FPR",
}
_MOST_PICTURES = 8
_MOST_RUNS = 4


def attacks(runs: Sequence[Run]) -> str:
    """What leaked over the rounds, what final models tell, and reconstructed images; empty without attackers."""
    attacked = [run if run.summary.attacks else None for run in runs]
    if not any(attacked):
        return ""
    drawn = "".join(f"<figure><h3>{escape(title)}</h3>{picture}</figure>" for title, picture in _pictures(attacked))
    alarms = "".join(f'<p class="outcome bad">{escape(line)}</p>' for line in _alarms(runs))
    return alarms + _final(runs) + (f'<div class="grid">{drawn}</div>' if drawn else "")


def _pictures(runs: Sequence[Run | None]) -> Iterator[tuple[str, str]]:
    for metric, title in _COURSES.items():
        courses = [run.course(metric) if run else None for run in runs]
        if any(courses):
            yield title, plots.lines([course and course.by_round for course in courses], "round", metric)
    curves = [_roc(run) if run else None for run in runs]
    if any(curve is not None for curve in curves):
        yield "Final models: ROC", plots.log_log(curves, "false positive rate", "true positive rate")
    for run in [run for run in runs if run and (run.folder / PICTURES).exists()][:_MOST_RUNS]:
        found, real = _images(run.folder / PICTURES)
        yield f"Reconstructed images: {run.summary.name}", plots.side_by_side(real, found, ("original", "found"))


def _roc(run: Run) -> tuple[Floats, Floats] | None:
    final = run.summary.attacks.final if run.summary.attacks else None
    if final is None or final.roc is None or not final.roc.fpr:
        return None
    return np.array(final.roc.fpr), np.array(final.roc.tpr)


def _images(path: Path) -> tuple[Floats, Floats]:
    """The first few reconstructions and what they are of, as grey images; ConfigError for a broken file."""
    import pyarrow.parquet as pq

    try:
        stored = pq.read_table(path, partitioning=None).slice(0, _MOST_PICTURES).to_pydict()
        shape = (-1, *stored["shape"][0])
        found, real = (np.array(stored[name]).reshape(shape).mean(axis=1) for name in ("reconstructed", "original"))
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    return found, real


def _final(runs: Sequence[Run]) -> str:
    rows = [row for run, label in zip(runs, labels(runs), strict=True) for row in _rows(run, label)]
    if not rows:
        return ""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in ("run", "of", *_FINAL.values()))
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    note = (
        "Membership inference; non-members are of each node's own distribution. n/a: too few of them. In brackets: 95% "
        "bootstrap intervals, over victims for messages (of a single one there is none), over samples for final models."
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div><p class="soft">{note}</p>'


def _rows(run: Run, label: str) -> Iterator[list[str]]:
    if run.summary.attacks is None:
        return
    final, messages = run.summary.attacks.final, run.summary.attacks.pooled
    if any(metric in messages for metric in _FINAL):
        yield [label, "all messages, mean", *_with_intervals(messages)]
    if final is None:
        return
    if final.pooled:
        yield [label, "final models, all samples", *_with_intervals(final.pooled)]
    worst = f"final models, the worst, node {final.worst.get('node', 0):g}"
    told = {"final models, mean of nodes": final.mean, worst: final.worst}
    if len(final.groups) > 1:
        told |= {f"final models, mean of group {group}": figures for group, figures in final.groups.items()}
    for of, figures in told.items():
        known = [figures.get(metric) for metric in _FINAL]
        yield [label, of, *("n/a" if value is None else f"{value:.3f}" for value in known)]


def _with_intervals(pooled: Mapping[str, Interval]) -> list[str]:
    told = [pooled.get(metric) for metric in _FINAL]
    return ["n/a" if each is None else f"{each.estimate:.3f}{_bracket(each)}" for each in told]


def _bracket(interval: Interval) -> str:
    low, high = interval.low, interval.high
    return "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"


def _alarms(runs: Sequence[Run]) -> Iterator[str]:
    """A line for each run whose attackers have proven more than its accountant allows."""
    for run, label in zip(runs, labels(runs), strict=True):
        final = run.summary.attacks.final if run.summary.attacks else None
        spent = run.summary.privacy.epsilon if run.summary.privacy else None
        if final and spent and spent.max is not None and (final.epsilon_at_least or 0) > spent.max:
            yield (
                f"{label}: an attack on the final models proves epsilon >= {final.epsilon_at_least:.4g} at delta "
                f"{final.delta:g}, more than the {spent.max:.4g} accounted: noise or accounting is broken."
            )
