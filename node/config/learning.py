"""What is learned, from what, by whom with whom."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from node.config.section import Fraction, NotNegative, Positive, Section


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
    """``digits``, ``breast_cancer``, ``wine``, ``iris``, ``mnist-5k``, ``synthetic``, a .npz/.csv/.parquet file, or a
    Hugging Face id or folder."""
    partition: Literal["iid", "dirichlet", "shards", "quantity", "natural"] = "iid"
    """How samples are divided: evenly, by label (Dirichlet or shards), by amount, or by the owner column."""
    alpha: Positive = 0.5
    """Dirichlet concentration, for ``dirichlet`` (labels) and ``quantity`` (amounts): smaller is more skewed."""
    least_samples: int = Field(0, ge=0)
    """Divide anew until each node has so many samples, for ``dirichlet`` and ``quantity``; 0: one draw."""
    shards_per_node: int = Field(2, ge=1)
    """Label-sorted shards that each node receives, for ``shards``."""
    label: str = "label"
    """Column (or array) that holds the label, in files and Hugging Face data sets."""
    column: str = ""
    """Column (or array) that names each sample's owner, for ``natural``."""
    groups: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Sizes of groups of nodes whose data differ in kind: in ``[28, 4]`` the first 28 nodes that hold data are group 0.
    Within a group ``partition`` divides the group's data. Empty: all data are of one kind."""
    group_by: Literal["rotation", "labels", "features"] = "rotation"
    """How groups differ: images turned by equal angles (multiples of 90 degrees), other labels for each group, or other
    values of ``group_column``, cut at its quantiles."""
    group_column: int = Field(0, ge=0)
    """Number of the column whose values tell the groups apart, for ``features``."""
    test_fraction: Fraction = 0.2
    """Share of all samples held out as the global test set, where the data has no test split of its own."""
    local_test_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of each node's shard held out as its own test set."""
    division: str = ""
    """``module:callable`` that says whose each sample is, which are for tests and which ``held-out`` for the public, in
    place of the keys above; empty: none."""
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


class ModSection(BaseModel):
    """A mod or observer around the traffic of some nodes; other keys are its own Config."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    use: str
    """A bundled mod (``starling list mods``), or ``module:Class`` of a Mod or an Observer."""
    nodes: tuple[int, ...] | None = None
    """The nodes it wraps; absent: all."""

    @property
    def options(self) -> dict[str, Any]:
        """The keys that belong to the mod's Config."""
        return dict(self.model_extra or {})
