"""The ``cpfl`` block of ``summary.json`` as Python objects, for the report and the terminal."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Cohort(BaseModel):
    """One cohort; None for what it has not come to."""

    model_config = ConfigDict(frozen=True)

    cohort: int
    members: int | None = None
    samples: int | None = None
    leaders: tuple[int, ...] = ()
    rounds: int | None = None
    stopped_s: float | None = None
    accuracy: float | None = None
    participants: float | None = None
    elections: int = 0
    failovers: int = 0
    repeated_rounds: int = 0
    lost: str | None = None


class Unifier(BaseModel):
    """What cohorts' models become by one way, and what that takes."""

    model_config = ConfigDict(frozen=True)

    accuracy: float | None = None
    loss: float | None = None
    agreement: float | None = None
    time_s: float | None = None
    flops: float | None = None
    bytes: float | None = None


class Traffic(BaseModel):
    """Bytes sent: members' models to leaders, leaders' models to members, what unifying took, and all else."""

    model_config = ConfigDict(frozen=True)

    up: int
    down: int
    unifying: int
    control: int


class Cohorts(BaseModel):
    """A run of cohort-parallel learning, as :mod:`protocols.cohort_outcome` tells it."""

    model_config = ConfigDict(frozen=True)

    cohorts: tuple[Cohort, ...]
    converged_s: float | None = None
    unify_s: float | None = None
    folded_s: float | None = None
    device_cpu_s: float = 0.0
    bytes: Traffic
    mean_cohort_accuracy: float | None = None
    unifier: str | None = None
    unified: dict[str, Unifier] = {}
