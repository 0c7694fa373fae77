"""Select, mix or abstain: what to do with the scores of a query.

Of queries that no adapter serves, the base model's answer is the best one to be had; so a query must be near enough to
its best adapter, and nearer than to the second. Both thresholds follow from the profiles alone, never from answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from node.selection.embedding import Embedder, Vectors
from node.selection.index import Scored
from node.selection.profile import unit

_SAME = 0.999
"""Prompts at least so near are one prompt: to hold one of them out would hold out nothing."""


class Mode(Enum):
    """What a query is answered with."""

    BASE = "base"
    SELECT = "select"
    MIXTURE = "mixture"


@dataclass(frozen=True)
class Rule:
    """When to trust the scores, and how far.

    A query is answered by the base model where its best score is below ``least_score``, or above the second by less
    than ``least_margin``; by the best adapter where that is near and alone; by a mixture otherwise.
    """

    least_score: float = 0.0
    least_margin: float = 0.0
    sure_score: float = 0.0
    """From this score on one adapter is enough, if it is ahead of the second by ``sure_margin``."""
    sure_margin: float = 0.0
    top_k: int = 3
    """Adapters in a mixture, at most."""
    temperature: float = 0.05
    """Of the softmax of scores that weighs a mixture."""


@dataclass(frozen=True)
class Choice:
    """What a query is answered with: adapters, the nearest first, their weights in the output, and their scores."""

    mode: Mode
    adapters: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()


def decide(scored: Sequence[Scored], rule: Rule) -> Choice:
    """What to answer a query with, given its adapters, the nearest first."""
    if not scored:
        return Choice(Mode.BASE)
    first = scored[0].score
    # Alone in the index, an adapter has nobody to be confused with.
    margin = first - scored[1].score if len(scored) > 1 else np.inf
    if first < rule.least_score or margin < rule.least_margin:
        return Choice(Mode.BASE)
    if rule.top_k == 1 or (first >= rule.sure_score and margin >= rule.sure_margin):
        return Choice(Mode.SELECT, (scored[0].name,), (1.0,), (first,))
    best = scored[: rule.top_k]
    names, scores = zip(*best, strict=True)
    return Choice(Mode.MIXTURE, names, softmax(scores, rule.temperature), scores)


def softmax(scores: Sequence[float], temperature: float) -> tuple[float, ...]:
    """Weights that sum to 1; uniform ones would let two wrong adapters outvote a right one."""
    raised = np.exp((np.asarray(scores) - max(scores)) / temperature)
    return tuple((raised / raised.sum()).tolist())


def calibrated(
    prompts: Mapping[str, Sequence[str]],
    embedder: Embedder,
    *,
    own: float = 0.02,
    strangers: float = 0.9,
    **rule: float,
) -> Rule:
    """Thresholds from the adapters' own prompts.

    Each prompt is asked twice: of the index with its adapter's profile made without it, as a valid query is, and of the
    index without that adapter at all, as a query that nobody serves is.

    Args:
        prompts: example prompts of each adapter, two or more.
        own: share of valid queries that ``least_score`` may reject.
        strangers: share of queries that nobody serves whose lead over the second ``least_margin`` exceeds, unless it
            would then reject more than ``own`` of the valid ones.
        rule: everything else.
    """
    rows = {name: embedder.embed(sorted(prompts[name])) for name in sorted(prompts)}
    valid, foreign = _asked(rows)
    score = float(np.quantile([best for best, _ in valid], own)) if valid else 0.0
    margin = float(np.quantile([lead for _, lead in foreign], strangers)) if foreign else 0.0
    margin = min(margin, float(np.quantile([lead for _, lead in valid], own))) if valid else 0.0
    return Rule(**{"least_score": score, "least_margin": max(0.0, margin), **rule})  # type: ignore[arg-type]


def _asked(rows: Mapping[str, Vectors]) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Best score and lead of every prompt: held out of its own profile, and with its adapter hidden."""
    valid, foreign = [], []
    for name, own in rows.items():
        others = np.stack([unit(row.mean(axis=0)) for other, row in rows.items() if other != name] or [0 * own[0]])
        for query in own:
            scores = others @ query
            rest = own[own @ query < _SAME]
            if len(rest):
                valid.append(_lead(np.append(scores, unit(rest.mean(axis=0)) @ query)))
            if len(rows) > 2:
                foreign.append(_lead(scores))
    return valid, foreign


def _lead(scores: Vectors) -> tuple[float, float]:
    second, first = np.sort(scores)[-2:].tolist()
    return first, first - second
