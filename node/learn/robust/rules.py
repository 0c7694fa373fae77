"""The robust rules and pre-aggregations by name: what each needs, and why it would refuse."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

from node.errors import ConfigError
from node.learn.robust import anchored, centres, preaggregation, selection

MOST_SUBSETS = 50_000
"""How many subsets a rule that tries them all may have to try: 16 models with f = 7, or 20 with f = 6."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A way to make one model of several, and what it needs."""

    function: Callable[..., Tensor]
    """From finite rows [m, d], the own one first, to a model [d]."""
    least: tuple[int, int] = (2, 1)
    """(a, b): at least ``a f + b`` models, the own one included."""
    tries_subsets: bool = False
    """Tries all subsets of ``m - f`` models."""
    needs_individual_models: bool = True
    """Cannot be computed from a sum, so that it excludes secure aggregation."""
    needs_losses: bool = False
    """Needs the loss of every model on the node's own data: a choice that other nodes may notice."""
    is_anchored: bool = False
    """Judges by the own model: it runs with any majority, and claims nothing beyond ``f < n / 2``."""

    def requires(self, n: int, f: int) -> str:
        """Why ``n`` models, the own one included, are too few (or too many) to tolerate ``f`` liars; empty: they do."""
        slope, offset = self.least
        if f < 0:
            return f"f is {f}; it cannot be negative"
        if n < slope * f + offset:
            formula = f"{slope} f + {offset} = " if slope else ""
            needed = f"{formula}{slope * f + offset}"
            return f"{n} models, the own one included, are too few for f = {f}: it takes at least {needed}"
        if self.tries_subsets and math.comb(n, f) > MOST_SUBSETS:
            return f"{n} models and f = {f} make {math.comb(n, f)} subsets to try; at most {MOST_SUBSETS} are allowed"
        return ""

    def warns(self, n: int, f: int) -> str:
        """What a rule that runs with ``n`` models and ``f`` liars does not promise; empty: nothing to say."""
        if self.is_anchored and 2 * f >= n:
            return f"f = {f} of {n} models is no minority: nothing is proved about the result"
        return ""


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "mean": Rule(centres.mean, (0, 1), needs_individual_models=False),
        "median": Rule(centres.median),
        "trimmed-mean": Rule(centres.trimmed_mean),
        "meamed": Rule(centres.meamed),
        "geometric-median": Rule(centres.geometric_median),
        "krum": Rule(selection.krum, (2, 3)),
        "multi-krum": Rule(selection.multi_krum, (2, 3)),
        "mda": Rule(selection.mda, tries_subsets=True),
        "smea": Rule(selection.smea, tries_subsets=True),
        "caf": Rule(selection.caf),
        "centered-clipping": Rule(anchored.centered_clipping, (0, 1), is_anchored=True),
        "clipped-gossip": Rule(anchored.clipped_gossip, (1, 1), is_anchored=True),
        "monna": Rule(anchored.monna, (1, 1), is_anchored=True),
        "balance": Rule(anchored.balance, (0, 1), is_anchored=True),
        "ubar": Rule(anchored.ubar, (1, 1), needs_losses=True, is_anchored=True),
    }
)

PREAGGREGATIONS: Mapping[str, Callable[..., Tensor]] = MappingProxyType(
    {
        "nnm": preaggregation.nearest_neighbour_mixing,
        "bucketing": preaggregation.bucketing,
        "static-clipping": preaggregation.static_clipping,
        "arc": preaggregation.adaptive_clipping,
    }
)

_RANGES: Mapping[str, tuple[float, float]] = {
    "nu": (1e-30, math.inf),
    "passes": (1, math.inf),
    "selected": (0, math.inf),
    "progress": (0, 1),
    "gamma": (0, math.inf),
    "kappa": (0, math.inf),
    "own_weight": (0, 1),
    "nearest_share": (0, 1),
    "tau": (0, math.inf),
    "norm": (0, math.inf),
    "bucket_size": (1, math.inf),
}
"""Options of rules and pre-aggregations: from, to (both included, unless infinite)."""

_GIVEN = {"rows", "f", "rng", "previous", "weights", "losses"}
"""Arguments that are no options: what the aggregation itself hands to a function that names them."""


def check_rule(rule: str, n: int, f: int, pre: Sequence[str] = (), **options: float) -> None:
    """Raise ConfigError, in one line, unless ``n`` models (the own one included) can be aggregated like this.

    Args:
        rule: a name in :data:`RULES`.
        f: how many of the models may be lies.
        pre: names in :data:`PREAGGREGATIONS`, in the order of their application.
        options: of the rule and of the pre-aggregations, by the names of their functions' arguments.
    """
    if reason := refusal(rule, n, f, pre, options):
        raise ConfigError(f"aggregation.rule: {reason}")


def arguments(function: Callable[..., Tensor]) -> tuple[str, ...]:
    """The names of a rule's or pre-aggregation's arguments."""
    return tuple(inspect.signature(function).parameters)


def refusal(rule: str, n: int, f: int, pre: Sequence[str], options: Mapping[str, float]) -> str:
    """Why :func:`check_rule` would raise, in one line; empty: it would not."""
    return wrong(rule, pre, options) or too_few(rule, n, f, pre, options)


def wrong(rule: str, pre: Sequence[str], options: Mapping[str, float]) -> str:
    """What of a rule, its pre-aggregations and options does not exist, or does not fit together, however many models
    there are; empty: nothing."""
    for kind, name, known in (("rule", rule, RULES), *(("pre-aggregation", each, PREAGGREGATIONS) for each in pre)):
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            return f"no {kind} {name!r}{f'; did you mean {near[0]!r}?' if near else ''} (there are {', '.join(known)})"
    return _wrong_option(rule, functions_of(rule, pre), options) or _wrong_combination(rule, pre)


def too_few(rule: str, n: int, f: int, pre: Sequence[str], options: Mapping[str, float]) -> str:
    """Why ``n`` models are too few (or too many) for what is not :func:`wrong`; empty: they are not."""
    if "bucketing" in pre:
        n = preaggregation.buckets(n, int(options.get("bucket_size", 2)))
    if reason := RULES[rule].requires(n, f):
        return f"{rule!r}: {reason}"
    for name in pre:
        if "f" in arguments(PREAGGREGATIONS[name]) and n <= f:
            return f"{name!r}: {n} models, the own one included, are too few for f = {f}: it takes at least {f + 1}"
    if options.get("selected", 0) > n - f:
        return f"{rule!r}: selected is {options['selected']}; {n} models and f = {f} allow at most {n - f}"
    return ""


def functions_of(rule: str, pre: Sequence[str]) -> list[Callable[..., Tensor]]:
    """The functions of a rule and of its pre-aggregations."""
    return [RULES[rule].function, *[PREAGGREGATIONS[name] for name in pre]]


def _wrong_option(rule: str, functions: Sequence[Callable[..., Tensor]], options: Mapping[str, float]) -> str:
    parameters = {name: each for function in functions for name, each in inspect.signature(function).parameters.items()}
    known = [name for name in parameters if name not in _GIVEN]
    for name, value in options.items():
        if name not in known:
            return f"{rule!r} has no option {name!r} (there are {', '.join(known) or 'none'})"
        whole = parameters[name].annotation == "int"
        if not isinstance(value, int if whole else int | float) or isinstance(value, bool):
            return f"{rule!r}: {name} is {value!r:.60}; allowed: {'whole ' if whole else ''}numbers"
        low, high = _RANGES[name]
        if not (low <= value <= high and math.isfinite(value)):
            allowed = f"{low} to {high}" if high < math.inf else f"at least {low}"
            return f"{rule!r}: {name} is {value}; allowed: {allowed}"
    return ""


def _wrong_combination(rule: str, pre: Sequence[str]) -> str:
    if len(set(pre)) < len(pre):
        return f"a pre-aggregation is named twice: {', '.join(pre)}"
    if "bucketing" in pre and RULES[rule].is_anchored:
        return f"{rule!r} judges by the own model, which 'bucketing' mixes into a bucket; use 'nnm', or another rule"
    if pre and RULES[rule].needs_losses:
        return f"{rule!r} judges models by their losses, which are not those of what 'pre' makes of them"
    return ""
