"""What goes with sums under masks, in cohorts."""

from __future__ import annotations

from node import LEAST_SENDERS, ConfigError
from node.cohorts import number_to_ask
from protocols.cohort_settings import Settings

MOST_SENDERS = 200
"""Of one sum: what each of them can help to open it with takes 20 bytes times the square of this, in one message."""
SHOWN = "participant set"
"""What sums under masks tell besides what all rounds do: losses and numbers of samples are not hidden."""


def check(settings: Settings, nodes: int) -> None:
    """Raise ConfigError for what would tell of single models, or cannot be added up under masks."""
    for key, wrong, why, allowed in (
        ("branching", settings.branching > 0, "members would add up models that are hidden from them", "0"),
        ("correction", settings.correction != "none", "changes of control variates are not masked", "none"),
        ("forming", settings.forming == "loss", "the registrar is told single models", "any other"),
        ("unify", "fisher" in (settings.unify, *settings.compare), "fisher tells of single gradients", "any other"),
    ):
        if wrong:
            raise ConfigError(f"protocol.{key}: {why} with protocol.secure = true; allowed with it: {allowed}")
    least = LEAST_SENDERS + 1
    if settings.cohorts * least > nodes:
        raise ConfigError(
            f"protocol.cohorts: {settings.cohorts} for {nodes} nodes; with protocol.secure = true each has {least} or"
            f" more, a leader and {LEAST_SENDERS} others; allowed: 1 to {nodes // least}"
            if nodes >= least
            else f"nodes: {nodes} are too few for protocol.secure = true; allowed: {least} or more"
        )
    if 0 < settings.sample < least:
        raise ConfigError(
            f"protocol.sample: {settings.sample} are too few for a sum with protocol.secure = true; allowed: 0, or"
            f" {least} and more, of which one may be the leader"
        )
    size = -(-nodes // settings.cohorts)
    asked = min(size, number_to_ask(settings.sample, 1 + settings.over_select)) if settings.sample else size
    if asked > MOST_SENDERS:
        raise ConfigError(
            f"protocol.sample: {asked} members in a round are too many for a sum with protocol.secure = true; allowed:"
            f" {least} to {MOST_SENDERS}"
        )
