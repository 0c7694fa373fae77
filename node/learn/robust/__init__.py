"""Robust mixing: rules that make one model of several, some of which may be lies."""

from node.learn.robust.aggregation import aggregate
from node.learn.robust.configured import configured
from node.learn.robust.ops import bucketed_mix, centered_clipping_from, code_digest, judged_mix, nonfinite, robust_mix
from node.learn.robust.rules import PREAGGREGATIONS, RULES, Rule, check_rule

__all__ = [
    "PREAGGREGATIONS",
    "RULES",
    "Rule",
    "aggregate",
    "bucketed_mix",
    "centered_clipping_from",
    "check_rule",
    "code_digest",
    "configured",
    "judged_mix",
    "nonfinite",
    "robust_mix",
]
