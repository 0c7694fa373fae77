"""What is made to go wrong, and when: the same table for a simulation and for real processes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from node.config.section import NotNegative, Positive, Section
from node.errors import ConfigError

Node = Annotated[int, Field(ge=0)]

_NEEDED = {
    "crash": ("nodes",),
    "restart": ("nodes", "for_s"),
    "pause": ("nodes", "for_s"),
    "slow": ("nodes", "rate"),
    "partition": ("groups",),
    "loss": ("rate",),
    "delay": ("delay_s",),
    "garbage": ("nodes", "rate"),
    "drift": ("nodes", "drift"),
    "full-disk": ("nodes",),
}
_ALLOWED = {
    "slow": ("for_s",),
    "partition": ("for_s", "one_way"),
    "loss": ("nodes", "to", "for_s"),
    "delay": ("nodes", "to", "for_s", "jitter_s"),
    "garbage": ("for_s",),
    "drift": ("for_s",),
    "full-disk": ("for_s",),
}
_KEYS = ("nodes", "to", "groups", "one_way", "for_s", "rate", "drift", "delay_s", "jitter_s")
_ALONE = (("crash", "restart", "pause", "slow"), ("drift",), ("full-disk",))
"""Kinds of which a node bears one at a time."""


class InjectedFaultSection(Section):
    """One thing that goes wrong; ``starling run`` sees to it under both clocks."""

    kind: Literal["crash", "restart", "pause", "slow", "partition", "loss", "delay", "garbage", "drift", "full-disk"]
    """``crash``: gone for good; ``restart``: killed, and started again with what it has saved; ``pause``: stopped;
    ``slow``: computes at a share of its speed; ``partition``: no message passes between groups; ``loss``: a share of
    messages gets lost; ``delay``: messages come later; ``garbage``: a share of messages comes as random bytes;
    ``drift``: the node's clock runs fast or slow; ``full-disk``: no checkpoint can be written."""
    at_s: NotNegative = 0.0
    """When it begins, in seconds of the run."""
    for_s: Positive | None = None
    """How long it lasts (of a restart: how long the node is away); absent: to the end of the run."""
    nodes: tuple[Node, ...] | None = Field(None, min_length=1)
    """Who is hit; of ``loss`` and ``delay``: whose messages, absent: all nodes'."""
    to: tuple[Node, ...] | None = Field(None, min_length=1)
    """Of ``loss`` and ``delay``: messages to whom; absent: to all."""
    groups: tuple[tuple[Node, ...], ...] | None = Field(None, min_length=1)
    """The sides of a partition; nodes in none are a side of their own."""
    one_way: bool | None = None
    """Whether only what the groups send gets lost, and what they are sent does not."""
    rate: float | None = Field(None, gt=0, lt=1)
    """Share of messages that are lost or garbage; share of its speed that a slow node has."""
    drift: float | None = Field(None, gt=-1, le=1)
    """Seconds that a clock gains in each second; one that is slow: below 0."""
    delay_s: Positive | None = None
    """How much later messages come."""
    jitter_s: NotNegative | None = None
    """Mean of an exponential time that is added to the delay of each message."""

    @property
    def end_s(self) -> float:
        """When it is over; infinity: not before the run."""
        return math.inf if self.for_s is None else self.at_s + self.for_s

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needed = _NEEDED[self.kind]
        allowed = needed + _ALLOWED.get(self.kind, ())
        for key in _KEYS:
            if key in needed and getattr(self, key) is None:
                raise ValueError(f"kind = {self.kind!r} needs {key!r}; its keys: at_s, {', '.join(allowed)}")
            if key not in allowed and getattr(self, key) is not None:
                raise ValueError(f"kind = {self.kind!r} has no {key!r}; its keys: at_s, {', '.join(allowed)}")
        return self


class _Absence(NamedTuple):
    """One node's part in a fault that somebody else must not wake it from."""

    start_s: float
    end_s: float
    key: str


def check_faults(faults: Sequence[InjectedFaultSection], nodes: int) -> None:
    """See that faults are about nodes that exist, and that no two of one sort hit one node at a time.

    Raises:
        ConfigError: they do not; names the fault and the key.
    """
    absences: dict[tuple[int, Sequence[str]], list[_Absence]] = {}
    for i, fault in enumerate(faults):
        key = f"faults[{i}]"
        _exist(f"{key}.nodes", fault.nodes or (), nodes)
        _exist(f"{key}.to", fault.to or (), nodes)
        _separate(f"{key}.groups", fault.groups or (), nodes)
        for sort in (sort for sort in _ALONE if fault.kind in sort):
            for node in fault.nodes or ():
                absences.setdefault((node, sort), []).append(_Absence(fault.at_s, fault.end_s, key))
    for (node, _), spans in sorted(absences.items()):
        spans.sort()
        for before, after in pairwise(spans):
            if after.start_s <= before.end_s:
                raise ConfigError(
                    f"{after.key}.at_s: {before.key} has node {node} until {before.end_s:g} s; begin after that"
                )


def _exist(key: str, named: Iterable[int], nodes: int) -> None:
    named = list(named)
    for node in named:
        if node >= nodes:
            raise ConfigError(f"{key}: there is no node {node}; allowed: 0 to {nodes - 1}")
        if named.count(node) > 1:
            raise ConfigError(f"{key}: names node {node} twice; once is enough")


def _separate(key: str, groups: Sequence[Sequence[int]], nodes: int) -> None:
    _exist(key, (node for group in groups for node in group), nodes)
    if groups and (not all(groups) or any(len(group) == nodes for group in groups)):
        raise ConfigError(f"{key}: one side has no node or all {nodes}; give groups of some, others are one more side")
