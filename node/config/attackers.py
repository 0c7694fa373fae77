"""Who attacks, and how."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class AttackerSection(BaseModel):
    """Some nodes that attack in one way while they take part; other keys are that attack's own Config."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    kind: str
    """``membership``, ``inversion``, ``linkability``, ``reconstruction``, ``attribute``, ``byzantine``, or
    ``module:Class``."""
    nodes: tuple[int, ...] | None = Field(None, min_length=1)
    """The nodes that attack; absent: the first learner."""
    identities: int | None = Field(None, ge=1)
    """Sybil identities that each of them registers besides its own: further peers, with its data, that attack with it;
    absent: none."""

    @property
    def options(self) -> dict[str, Any]:
        """The keys that belong to the attack's Config."""
        return dict(self.model_extra or {})
