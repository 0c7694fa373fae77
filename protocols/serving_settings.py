"""What can be chosen about storing and serving adapters."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from node import ConfigError, Protocol
from node.batching.routing import STRATEGIES
from node.caching.policies import DEFAULT_POLICY, policy_named
from node.emulated import ModelSection, TimesSection
from node.workloads.requests import WorkloadSection

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Rank = Annotated[int, Field(ge=1)]


class ServingConfig(Protocol.Config):
    """Options of ``[protocol]``."""

    storage: int = Field(2, ge=0)
    """The first so many nodes store adapters; all others compute."""
    adapters: int = Field(100, ge=1)
    """How many there are."""
    ranks: tuple[Rank, ...] = Field((16,), min_length=1)
    """Of the adapters, in turn."""
    model: ModelSection = ModelSection()
    """What sizes follow from."""
    times: TimesSection = TimesSection()
    """How long the model takes."""
    workload: WorkloadSection = WorkloadSection()
    """What clients ask for, when."""
    source: Literal["memory", "disk", "storage"] = "storage"
    """Where a compute node has adapters from: all are in its memory; on its own disk; or at the storage nodes."""
    disk_bps: Seconds = 4e9
    """Of a disk, bits per second."""
    cache_bytes: int = Field(500_000_000, ge=1)
    """Of each compute node, for adapters."""
    policy: str = DEFAULT_POLICY
    """Which adapters stay in the cache."""
    keeps: bool = True
    """Whether adapters stay in the cache that nobody uses at present."""
    streams: bool = True
    """Whether a prompt is read layer by layer as the adapter's layers come; else when all are there."""
    slots: int = Field(16, ge=1)
    """Requests that a compute node works on at once."""
    batch_adapters: int = Field(16, ge=1)
    """Different adapters among them."""
    kept_tokens: int = Field(200_000, ge=1)
    """Tokens whose keys and values a compute node has room for."""
    fetches: int = Field(4, ge=1)
    """Adapters on their way to a compute node at once."""
    order: Literal["oldest", "fair"] = "oldest"
    """Which of the requests that wait goes first: the oldest, or that of the client who has been served least."""
    age_limit_s: Seconds = 10.0
    """A request that has waited longer goes before all others."""
    ttft_limit_s: Seconds | None = None
    """Refuse what is expected to wait longer for its first token; absent: nothing."""
    routing: str = "cost"
    """Which compute node serves a request."""
    gossip_s: Seconds = 0.5
    """How often compute nodes tell each other how busy they are, and what they have."""
    announce_s: Seconds = 5.0
    """How often nodes tell each other what is stored where."""
    fetch_limit_s: Seconds = 60.0
    """A fetch that takes longer has failed."""
    retry_s: Seconds = 5.0
    """How long after a failure an adapter is asked for again."""
    replicas: int = Field(2, ge=1)
    """Storage nodes that keep each adapter at least."""
    most_replicas: int = Field(8, ge=1)
    """The same of the most popular."""
    replica_budget: Seconds = 1.0
    """How many places of each storage node all adapters share by popularity."""
    expected_bps: Seconds = 1e9
    """How fast a link is believed to be, before anything has come over it."""
    expected_rtt_s: Seconds = 0.002
    """How long a round trip is believed to take, before there was one."""
    ttft_objective_s: Seconds = 6.0
    """Requests whose first token comes later do not count as good."""
    tpot_objective_s: Seconds = 0.1
    """Nor those whose later tokens take longer, each."""

    def check_nodes(self, nodes: int) -> None:
        """Raise ConfigError where nodes and choices do not fit together."""
        policy_named(self.policy)
        if self.routing not in STRATEGIES:
            raise ConfigError(f"protocol.routing: {self.routing!r} is not known; allowed: {', '.join(STRATEGIES)}")
        if self.storage >= nodes:
            raise ConfigError(f"protocol.storage: {self.storage} of {nodes} nodes leave none to compute")
        if self.source == "storage" and not self.storage:
            raise ConfigError("protocol.storage: 0, and protocol.source is 'storage'; allowed: at least 1")
        if not self.replicas <= self.most_replicas:
            raise ConfigError(f"protocol.replicas: {self.replicas} are more than most_replicas, {self.most_replicas}")
        largest = self.model.layers * self.model.layer_bytes(max(self.ranks))
        if self.source != "memory" and largest > self.cache_bytes:
            raise ConfigError(
                f"protocol.cache_bytes: {self.cache_bytes} cannot hold an adapter of rank {max(self.ranks)}; "
                f"allowed: at least {largest}"
            )
