"""Samples that everybody has: what students learn from, and what one may look like."""

from __future__ import annotations

from pydantic import Field

from node.config.learning import ModelSection
from node.config.section import Fraction, Section


class PublicSection(Section):
    """Samples that every node has, without labels. Students learn from what teachers say of them."""

    name: str = ""
    """``held-out`` (a share of the training samples, which no node gets), another data set or file as in ``data.name``,
    or empty for none. Its samples must have the shape of the experiment's; its classes need not be the same."""
    fraction: Fraction = 0.1
    """Share of the training samples, for ``held-out``."""
    samples: int = Field(0, ge=0)
    """Take that many of them, at random; 0: all (of ``synthetic``, as many as nodes train on)."""
    label: str = "label"
    """Column (or array) of a file that holds labels: it is no feature, and read over. Empty: there is none."""
    labelled: bool = False
    """Whether the aggregator of one-shot learning knows the labels of these samples; nobody else does."""
    check_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of the public samples that no student learns from: on these it is compared with its teacher."""


class StudentSection(ModelSection):
    """What a student looks like that learns from teachers."""

    name: str = ""
    """As ``model.name``; empty: the experiment's own model."""
