"""What an experiment is: every key of the TOML file, its default, its unit and its reason.

Reading a file, applying ``--set`` and turning a wrong key into one clear line is :mod:`node.experiment`'s work.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """A table of the file: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Distribution(Section):
    """A quantity drawn once per node (or per pair of nodes) from a seeded distribution."""

    distribution: Literal["uniform", "exponential", "lognormal"]
    low: NotNegative = 0.0
    """Uniform: smallest value."""
    high: Positive | None = None
    """Uniform: largest value."""
    mean: Positive | None = None
    """Exponential: mean."""
    median: Positive | None = None
    """Lognormal: median."""
    sigma: NotNegative = 0.5
    """Lognormal: standard deviation of the logarithm."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needed = {"uniform": "high", "exponential": "mean", "lognormal": "median"}[self.distribution]
        if getattr(self, needed) is None:
            raise ValueError(f"the {self.distribution} distribution needs {needed!r}")
        if self.distribution == "uniform" and self.high is not None and self.high < self.low:
            raise ValueError("'high' must be at least 'low'")
        return self


class ProtocolSection(BaseModel):
    """Which protocol to run; every other key belongs to that protocol's own ``Config``."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    use: str = "dpsgd"
    """A bundled name, an entry point of ``starling.protocols``, or ``module:Class``."""

    @property
    def options(self) -> dict[str, Any]:
        """The keys that belong to the protocol's Config."""
        return dict(self.model_extra or {})


class TopologySection(Section):
    """Who is whose neighbour, round by round, and how much a neighbour's model weighs."""

    kind: Literal[
        "ring", "torus", "regular", "exponential", "one-peer", "erdos-renyi", "full", "star", "random-regular", "file"
    ] = "regular"
    """Which graph; ``one-peer`` and ``random-regular`` change every round."""
    degree: int = Field(4, ge=1)
    """Neighbours of each node, for ``regular`` and ``random-regular``."""
    probability: float = Field(0.3, gt=0, le=1)
    """Chance of each edge, for ``erdos-renyi`` (redrawn from the seed until connected)."""
    path: str = ""
    """Edge list for ``file``: two node numbers a line; ``#`` starts a comment."""
    weights: Literal["metropolis", "uniform"] = "metropolis"
    """Mixing weights: Metropolis-Hastings (doubly stochastic) or uniform over a node and its neighbours."""


class DataSection(Section):
    """What the nodes learn from, and how it is divided among them."""

    name: str = "digits"
    """``digits``, ``breast_cancer``, ``synthetic``, a .npz/.csv/.parquet file, or a Hugging Face id or folder."""
    partition: Literal["iid", "dirichlet", "shards", "quantity", "natural"] = "iid"
    """How samples are divided: evenly, by label (Dirichlet or shards), by amount, or by the owner column."""
    alpha: Positive = 0.5
    """Dirichlet concentration, for ``dirichlet`` (labels) and ``quantity`` (amounts): smaller is more skewed."""
    shards_per_node: int = Field(2, ge=1)
    """Label-sorted shards that each node receives, for ``shards``."""
    label: str = "label"
    """Column (or array) that holds the label, in files and Hugging Face data sets."""
    column: str = ""
    """Column (or array) that names each sample's owner, for ``natural``."""
    test_fraction: Fraction = 0.2
    """Share of all samples held out as the global test set, where the data has no test split of its own."""
    local_test_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of each node's shard held out as its own test set."""
    samples: int = Field(10_000, ge=2)
    """Samples to generate, for ``synthetic``."""
    classes: int = Field(10, ge=2)
    """Classes to generate, for ``synthetic``."""
    shape: tuple[Annotated[int, Field(ge=1)], ...] = (1, 8, 8)
    """Shape of one generated sample, channels first, for ``synthetic``."""
    noise: NotNegative = 1.0
    """Standard deviation around each class's centre, for ``synthetic``."""


class ModelSection(Section):
    """What is learned."""

    name: str = "mlp"
    """``softmax``, ``mlp``, ``lenet``, ``resnet8``, an entry point of ``starling.models``, or ``module:callable``."""
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (128,)
    """Widths of the hidden layers, for ``mlp``."""


class TrainingSection(Section):
    """How a node trains between two exchanges."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    """Plain or momentum SGD, or Adam; state starts anew with every call of ``train``."""
    lr: Positive = 0.1
    """Learning rate at the start."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """Momentum, for ``sgd``."""
    weight_decay: NotNegative = 0.0
    """L2 penalty, added to the gradient."""
    schedule: Literal["constant", "step", "cosine"] = "constant"
    """How the learning rate falls with the number of a node's ``train`` calls."""
    schedule_rounds: int = Field(100, ge=1)
    """Calls until ``cosine`` reaches zero, or between two drops of ``step``."""
    schedule_factor: float = Field(0.1, gt=0, le=1)
    """What ``step`` multiplies the rate by."""
    batch_size: int = Field(16, ge=1)
    """Samples a step; a smaller shard is one batch."""
    local_steps: int = Field(5, ge=1)
    """Steps of one ``train``, unless ``local_epochs`` is set."""
    local_epochs: int = Field(0, ge=0)
    """Passes over the node's shard of one ``train``; 0: count ``local_steps`` instead."""


class DevicesSection(Section):
    """How fast each simulated device computes (virtual clock only)."""

    seconds_per_sample: Positive | Distribution = 0.001
    """Time to train on one sample: one number for all, or a distribution over nodes."""


class NetworkSection(Section):
    """What links cost (virtual clock only)."""

    latency_s: NotNegative | Distribution = 0.01
    """One-way delay: one number, or a distribution over pairs (the same both ways)."""
    up_bps: Positive | Distribution = 100e6
    """Uplink of each node, bits per second."""
    down_bps: Positive | Distribution = 100e6
    """Downlink of each node, bits per second."""


class ModSection(BaseModel):
    """A mod or observer around the traffic of some nodes; other keys are its own Config."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    use: str
    """``module:Class`` of a Mod or an Observer."""
    nodes: tuple[int, ...] | None = None
    """The nodes it wraps; absent: all."""

    @property
    def options(self) -> dict[str, Any]:
        """The keys that belong to the mod's Config."""
        return dict(self.model_extra or {})


class ExecutorSection(Section):
    """What solves the compute graph."""

    kind: Literal["inline", "batched"] = "inline"
    """``inline`` solves one task at a time (the reference); ``batched`` stacks equal tasks of many nodes."""
    window_tasks: int = Field(0, ge=0)
    """Recorded tasks after which a simulation solves what is wanted so far; 0: about two rounds of all nodes."""


class RecordSection(Section):
    """What a run keeps besides its metrics."""

    models: bool = False
    """Write each node's final model to ``models/NODE.safetensors``."""
    events: bool = False
    """Write every event to ``events.jsonl``."""
    every: int = Field(1, ge=1)
    """Keep the metrics of every n-th round only (and of the last); what is not kept is never computed."""


class ExperimentConfig(Section):
    """One experiment: the whole TOML file."""

    name: str = Field("experiment", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Names the run's folder."""
    seed: int = Field(0, ge=0, lt=2**63)
    """All randomness derives from it."""
    nodes: int = Field(16, ge=1)
    """How many nodes take part."""
    clock: Literal["real", "virtual"] = "virtual"
    """Real processes on this machine, or a simulation."""
    protocol: ProtocolSection = ProtocolSection()
    topology: TopologySection = TopologySection()
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    training: TrainingSection = TrainingSection()
    devices: DevicesSection = DevicesSection()
    network: NetworkSection = NetworkSection()
    mods: tuple[ModSection, ...] = ()
    executor: ExecutorSection = ExecutorSection()
    record: RecordSection = RecordSection()
