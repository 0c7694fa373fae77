"""How a node makes one model of its own and those that it has heard."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class AggregationSection(BaseModel):
    """A rule that tolerates liars, in place of the protocol's weighted mean; other keys are the rule's own options."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    rule: str = "mean"
    """``mean`` (of whatever the protocol mixes, with its weights), or a name in ``node.learn.robust.RULES``."""
    pre: tuple[str, ...] = ()
    """What is done to models before the rule, in this order: names in ``node.learn.robust.PREAGGREGATIONS``."""
    tolerance: int = Field(0, ge=0)
    """How many of the models that a node aggregates may be lies (f)."""

    @property
    def options(self) -> dict[str, Any]:
        """The keys that belong to the rule and to what goes before it."""
        return dict(self.model_extra or {})

    @property
    def is_robust(self) -> bool:
        """Whether it asks for anything but the protocol's own mean."""
        return self.rule != "mean" or bool(self.pre)
