"""What ``summary.json`` holds, as far as a report reads it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from node.cli.cohort_summary import Cohorts


class Spread(BaseModel):
    """One metric at the end of a run, over the nodes that recorded it; None where it is not a finite number."""

    model_config = ConfigDict(frozen=True)

    mean: float | None
    std: float | None
    min: float | None
    max: float | None


class DeviceHours(BaseModel):
    """Time that devices trained, and how much of it was for nothing."""

    model_config = ConfigDict(frozen=True)

    total: float
    lost: float
    discarded: float


class Range(BaseModel):
    """A figure over nodes."""

    model_config = ConfigDict(frozen=True)

    mean: float
    min: float
    max: float


class UsageSummary(BaseModel):
    """What nodes spent their time on, as :meth:`node.usage.Usage.summary` gives it."""

    model_config = ConfigDict(frozen=True)

    device_hours: DeviceHours
    online_hours: float
    utilisation: Range
    shares: dict[str, float]


class GroupSummary(BaseModel):
    """How a group of nodes fared on test samples of its own kind."""

    model_config = ConfigDict(frozen=True)

    nodes: int
    accuracy: float


class Difference(BaseModel):
    """By how much rates differ between groups; None where that cannot be said."""

    model_config = ConfigDict(frozen=True)

    sum: float | None = None
    max: float | None = None
    recall: float | None = None


class Fairness(BaseModel):
    """How evenly nodes and groups of nodes fared, as :mod:`node.experiment.fairness` gives it."""

    model_config = ConfigDict(frozen=True)

    std: float
    jain: float | None
    worst_decile: float
    groups: dict[str, GroupSummary] = {}
    accuracy_gap: float | None = None
    fair_accuracy: float | None = None
    demographic_parity: Difference = Difference()
    equalized_odds: Difference = Difference()


class Spent(BaseModel):
    """Epsilon over the nodes; None where it is infinite."""

    model_config = ConfigDict(frozen=True)

    mean: float | None
    max: float | None


class AtDistance(BaseModel):
    """What nodes have learned of those that are so many hops away; None where it is infinite, or leads nowhere."""

    model_config = ConfigDict(frozen=True)

    distance: float | None
    pairs: int
    mu_mean: float | None
    mu_max: float | None
    epsilon_mean: float | None
    epsilon_max: float | None


class Network(BaseModel):
    """What nodes have learned of each other, as :mod:`node.experiment.exposure` gives it; most only where it is known.

    ``epsilon`` and ``mu`` are over pairs of nodes.
    """

    model_config = ConfigDict(frozen=True)

    left_out: str = ""
    unit: str = ""
    adjacency: str = ""
    view: str = ""
    delta: float = 0.0
    conversion: str = ""
    label: str = ""
    clipped: bool = True
    epsilon: Spent | None = None
    mu: Spent | None = None
    distances: tuple[AtDistance, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def meaning(self) -> str:
        """What its epsilon means nothing without."""
        adjacency = self.adjacency.replace("_", "-")
        return f"per {self.unit}, {adjacency}, {self.view}, delta {self.delta:g}, {self.conversion}, {self.label}"


class Privacy(BaseModel):
    """What a run may say of its privacy, as :mod:`node.experiment.privacy` gives it; most only where there is any."""

    model_config = ConfigDict(frozen=True)

    mechanism: Literal["none", "record", "node"]
    guarantee: str = ""
    epsilon: Spent | None = None
    unit: str = ""
    adjacency: str = ""
    view: str = ""
    budget: float | None = None
    sigma: float | None = None
    clip: float | None = None
    sampling: str = ""
    noise: str = ""
    public: tuple[str, ...] = ()
    insecure_noise: bool = False
    insecure_keys: bool = False
    network: Network | None = None
    side_channels: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class Roc(BaseModel):
    """Points of a receiver operating characteristic, for two logarithmic axes."""

    model_config = ConfigDict(frozen=True)

    fpr: list[float]
    tpr: list[float]


class Interval(BaseModel):
    """A figure with its confidence interval."""

    model_config = ConfigDict(frozen=True)

    estimate: float
    low: float | None = None
    high: float | None = None
    """None where a single victim leaves nothing to resample."""


class FinalLeakage(BaseModel):
    """What membership inference tells of the final models, metric by metric."""

    model_config = ConfigDict(frozen=True)

    mean: dict[str, float | None]
    worst: dict[str, float | None]
    groups: dict[str, dict[str, float | None]]
    roc: Roc | None = None
    pooled: dict[str, Interval] = {}
    epsilon_at_least: float | None = None
    delta: float | None = None


class Attacks(BaseModel):
    """What attackers have measured, as far as a report shows it (:func:`node.experiment.attacking.measured`)."""

    model_config = ConfigDict(frozen=True)

    final: FinalLeakage | None = None
    pooled: dict[str, Interval] = {}
    """Of all attacked messages."""


class Summary(BaseModel):
    """What a report reads of ``summary.json``; keys that a protocol adds are left alone."""

    model_config = ConfigDict(frozen=True)

    name: str
    hash: str
    clock: Literal["real", "virtual"]
    seed: int
    nodes: int
    rounds: int
    protocol: str
    time_s: float
    wall_s: float
    events: int
    tasks: int
    messages: int
    bytes_sent: int
    peak_rss_bytes: int
    status: Literal["finished", "failed", "interrupted"]
    error: str | None
    event_hash: str | None
    metrics: dict[str, Spread]
    run_hash: str | None = None
    time_to_accuracy_s: dict[str, float | None] = {}
    bytes_to_accuracy: dict[str, float | None] = {}
    time_to_accuracy_worst_decile_s: dict[str, float | None] = {}
    bytes_to_accuracy_worst_decile: dict[str, float | None] = {}
    usage: UsageSummary | None = None
    graph: dict[str, int | float | str | None] = {}
    fairness: Fairness | None = None
    privacy: Privacy | None = None
    attacks: Attacks | None = None
    cpfl: Cohorts | None = None
