"""The simulated world: what devices, links and availability are like. Real runs read links' rates and latency, where
``network.pace`` holds them to those; the rest is the virtual clock's."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from node.config.section import Distribution, NotNegative, Positive, PositiveQuantity, Quantity, Section, form

Node = Annotated[int, Field(ge=0)]


class DevicesSection(Section):
    """How fast each simulated device computes, and what it can hold."""

    seconds_per_sample: PositiveQuantity = 0.001
    """Time to train the reference model on one sample: one number for all, or a distribution over nodes."""
    overhead_s: NotNegative = 0.0
    """Time that each training step takes besides its samples."""
    trace: str = ""
    """A file with one device a row (.csv, .parquet, .json), a FedScale device file (a pickle), or ``phones``, which are
    drawn from the seed; replaces the other keys, and the links' rates where it has them."""
    seconds_unit: Literal["sample", "step"] = "sample"
    """What FedScale's milliseconds are for: one sample, or one step whatever its batch."""
    assign: Literal["auto", "node", "draw"] = "auto"
    """Which row a node gets: the one with its number, or one drawn by the seed; auto: by number where all have one."""
    reference_model: str = ""
    """The model that the seconds are for, built for this experiment's data, so that a costlier model takes longer;
    empty: ``mlp``. A trace that does not tell its FLOPs needs it, or the next key, wherever it says something else."""
    reference_flops: NotNegative = 0.0
    """FLOPs of one training sample that the seconds are for; 0: those of ``reference_model``."""
    jitter: NotNegative = 0.0
    """Standard deviation of the logarithm of a factor, of mean 1, on each training time."""
    evaluate_time: bool = False
    """Whether evaluating takes a third of training's time per sample, or none."""
    cores: NotNegative = 0.0
    """Cores that all nodes share, where they are processes of one machine; 0: each is a machine of its own."""


class LatencyMatrix(Section):
    """Latencies between places, from a text file of n rows of n milliseconds; nodes are drawn onto the places."""

    matrix: str
    """The file."""
    trip: Literal["one-way", "round-trip"]
    """What its numbers measure."""


class Geography(Section):
    """Latencies from great-circle distance, between nodes that live in real cities, drawn by population."""

    geography: Literal["cities"]
    path_factor: float = Field(1.5, ge=1, allow_inf_nan=False)
    """How much longer than the great circle the path of a signal is."""
    last_mile_s: Quantity = Distribution(distribution="lognormal", median=0.008, sigma=0.8)
    """From each end's device to its provider, one way."""


Latency = Annotated[
    Annotated[NotNegative, Tag("form[number]")]
    | Annotated[Distribution, Tag("form[distribution]")]
    | Annotated[LatencyMatrix, Tag("form[matrix]")]
    | Annotated[Geography, Tag("form[geography]")],
    Discriminator(form),
]


class RuleSection(Section):
    """Something that befalls the links from some nodes to others for a while; the other direction only where asked."""

    kind: Literal["loss", "jitter", "delay", "rate", "partition", "drop"]
    """``loss``: share of packets sent again; ``jitter``, ``delay``: more latency; ``rate``: a factor on what the nodes'
    links carry; ``partition``: what would cross is lost; ``drop``: share of messages that are lost."""
    value: NotNegative = 0.0
    """Share lost (below 1), seconds (for jitter the mean of an exponential), or factor (0: nothing passes)."""
    frm: tuple[Node, ...] | None = None
    """Senders; absent: all."""
    to: tuple[Node, ...] | None = None
    """Receivers; absent: all others."""
    both_ways: bool = False
    """Also from receivers to senders."""
    start_s: NotNegative = 0.0
    """When it begins."""
    end_s: Positive | None = None
    """When it ends; absent: with the run."""


class NetworkSection(Section):
    """What links cost."""

    model: Literal["latency", "fifo", "fair"] = "latency"
    """How transfers meet: not at all, one after another at each end, or sharing links max-min fairly."""
    latency_s: Latency = 0.01
    """One-way delay: one number, a distribution over pairs (the same both ways), a matrix, or geography."""
    up_bps: PositiveQuantity = 100e6
    """Uplink of each node, bits per second."""
    down_bps: PositiveQuantity = 100e6
    """Downlink of each node, bits per second."""
    jitter_s: NotNegative = 0.0
    """Mean of an exponential delay that is added to each message."""
    loss: float = Field(0.0, ge=0, lt=1)
    """Share of packets that have to be sent again: links are reliable, so it costs rate and time, not messages."""
    small_bytes: int = Field(1_500, ge=0)
    """Messages up to this size pay latency and their own bytes, but do not queue or share."""
    pace: bool = False
    """Also in real runs: hold this experiment's links to their rates and latency (``latency_s`` a number)."""
    rules: tuple[RuleSection, ...] = ()
    """Loss, jitter, delays, changed rates and partitions, with a beginning and an end."""


class FaultSection(Section):
    """A node that goes or comes at a certain time."""

    time_s: NotNegative
    """When."""
    node: Node
    """Who."""
    what: Literal["crash", "leave", "pause", "return"]
    """``crash`` loses what was not saved, ``leave`` says goodbye, ``pause`` keeps all; ``return`` ends any of them. A
    node whose first fault is ``return`` joins at that time."""


class ChurnSection(Section):
    """Who is there when. Only the virtual clock reads it."""

    trace: str = ""
    """Intervals (.csv, .parquet or .json: node, online_s, offline_s), or a FedScale availability file (a pickle)."""
    after: Literal["repeat", "hold", "offline"] | None = None
    """What follows the end of an interval file; a trace of intervals needs it."""
    online_s: Distribution | None = None
    """Length of a seeded session; with ``offline_s``, in place of a trace."""
    offline_s: Distribution | None = None
    """Length of the time between two sessions."""
    diurnal: float = Field(0.0, ge=0, le=1)
    """How much a day's sine changes the rate of coming online, with a phase of its own for each node."""
    schedule: tuple[FaultSection, ...] = ()
    """Single events, by time; besides traces or sessions, for other nodes."""
    going: Literal["crash", "leave", "pause"] = "crash"
    """What it means that a trace or session takes a node offline."""
    detect_s: NotNegative = 5.0
    """How long after a crash the others know of it; 0: at once, as no real network does."""
    nodes: tuple[Node, ...] | None = None
    """Nodes that a trace or sessions apply to; absent: all learners (a server stays)."""
