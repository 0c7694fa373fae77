"""What a run has given away, in words and numbers, for the terminal and for scripts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence

from node.experiment.exposure import figures, label
from node.privacy.budget import VIEWS
from node.privacy.exposure import Exposure, Ring

_HEAD = ("distance", "pairs", "mu mean", "mu max", "epsilon mean", "epsilon max", "published")


def as_text(exposure: Exposure, missing: Sequence[str] = ()) -> str:
    """A table by distance, the worst pair, what all of it is about, and what is ``missing`` from the run's log."""
    gaps = (f"missing: {gap}; figures are of the rest, and may be too small" for gap in missing)
    return "\n".join((*_lines(exposure, label(missing)), *gaps))


def as_json(exposure: Exposure, missing: Sequence[str] = ()) -> str:
    """The same for scripts; what is infinite is null."""
    return json.dumps(figures(exposure, missing))


def _lines(exposure: Exposure, label: str) -> Iterator[str]:
    yield (
        f"{label}: unit node, adjacency {exposure.adjacency.replace('_', '-')}, view {exposure.view}"
        f" ({VIEWS[exposure.view]}), delta {exposure.delta:g}"
    )
    rings = exposure.rings()
    has_published = any(ring.published_mu_max is not None for ring in rings)
    rows = [_row(ring)[: len(_HEAD) if has_published else -1] for ring in rings]
    head = _HEAD[: len(_HEAD) if has_published else -1]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        yield "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
    worst = exposure.worst
    yield (
        f"worst: node {worst.victim} towards {_named(worst.attackers)}: mu {_number(worst.mu)},"
        f" epsilon {_number(worst.epsilon)}"
    )
    if not exposure.is_averaging:
        yield "nodes contribute more than once: mu is that of at most all rounds together, a bound"
    if has_published:
        yield "published: the largest mu by the sum over single messages (Muffliato), which is no guarantee"
    if not exposure.is_clipped:
        yield "training is not clipped: finite figures are for updates at distance 1 (2, if replaced), and no guarantee"


def _row(ring: Ring) -> tuple[str, ...]:
    published = "" if ring.published_mu_max is None else _number(ring.published_mu_max)
    figures = (ring.mu_mean, ring.mu_max, ring.epsilon_mean, ring.epsilon_max)
    distance = "never" if math.isinf(ring.distance) else f"{ring.distance:g}"
    return distance, str(ring.pairs), *map(_number, figures), published


def _named(attackers: Sequence[int]) -> str:
    if not attackers:
        return "whoever reads all messages"
    return f"node{'s' if len(attackers) > 1 else ''} {', '.join(map(str, attackers))}"


def _number(value: float) -> str:
    # Rounded down, it would promise too much; what rounding errors have added is not worth a digit.
    return f"{math.ceil(value * 1e4 - 1e-6) / 1e4:.4f}" if math.isfinite(value) else "infinite"
