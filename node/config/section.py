"""What every table of an experiment file is made of."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """A table of the file: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Distribution(Section):
    """A quantity drawn once per node (or per pair of nodes, or per use) from a seeded distribution."""

    distribution: Literal["uniform", "exponential", "lognormal", "weibull"]
    low: NotNegative = 0.0
    """Uniform: smallest value."""
    high: Positive | None = None
    """Uniform: largest value."""
    mean: Positive | None = None
    """Exponential, Weibull: mean."""
    median: Positive | None = None
    """Lognormal: median."""
    sigma: float = Field(0.5, ge=0, le=10)
    """Lognormal: standard deviation of the logarithm."""
    shape: Positive = 0.6
    """Weibull: shape; below 1, what has lasted long lasts longer still."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needed = {"uniform": "high", "exponential": "mean", "weibull": "mean", "lognormal": "median"}
        if getattr(self, needed[self.distribution]) is None:
            raise ValueError(f"the {self.distribution} distribution needs {needed[self.distribution]!r}")
        if self.distribution == "uniform" and self.high is not None and self.high < self.low:
            raise ValueError("'high' must be at least 'low'")
        return self


def form(value: Any) -> str:
    """Which form a quantity was written in, so that what is wrong with it is said of that form alone."""
    if not isinstance(value, dict | Section):
        return "form[number]"
    keys = value if isinstance(value, dict) else type(value).model_fields
    named = [key for key in ("matrix", "geography") if key in keys]
    return f"form[{named[0] if named else 'distribution'}]"


Quantity = Annotated[
    Annotated[NotNegative, Tag("form[number]")] | Annotated[Distribution, Tag("form[distribution]")],
    Discriminator(form),
]
"""One number for all, or a distribution over nodes."""
PositiveQuantity = Annotated[
    Annotated[Positive, Tag("form[number]")] | Annotated[Distribution, Tag("form[distribution]")], Discriminator(form)
]
"""The same, above 0."""
