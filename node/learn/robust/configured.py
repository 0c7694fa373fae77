"""The rule that an experiment's ``[aggregation]`` names, as what a context records."""

from __future__ import annotations

from node.aggregation import Aggregation
from node.config import AggregationSection
from node.learn.robust.ops import bucketed_mix, judged_mix, nonfinite, robust_mix
from node.learn.robust.rules import RULES, arguments, functions_of


def configured(section: AggregationSection) -> Aggregation | None:
    """The rule of a section that was checked; None for the plain mean, which is the protocol's own."""
    if not section.is_robust:
        return None
    rule = RULES[section.rule]
    taken = {name for function in functions_of(section.rule, section.pre) for name in arguments(function)}
    return Aggregation(
        judged_mix if rule.needs_losses else bucketed_mix if "rng" in taken else robust_mix,
        nonfinite,
        {"rule": section.rule, "f": section.tolerance, "pre": section.pre, **section.options},
        is_anchored=rule.is_anchored,
        needs_losses=rule.needs_losses,
        takes_weights="weights" in taken,
        takes_progress="progress" in taken,
    )
