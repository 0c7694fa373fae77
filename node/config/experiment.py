"""One experiment: the whole TOML file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from node.config.aggregation import AggregationSection
from node.config.attackers import AttackerSection
from node.config.faults import InjectedFaultSection
from node.config.learning import (
    DataSection,
    ModelSection,
    ModSection,
    ProtocolSection,
    TopologySection,
    TrainingSection,
)
from node.config.privacy import PrivacySection
from node.config.public import PublicSection, StudentSection
from node.config.section import Section
from node.config.simulated import ChurnSection, DevicesSection, NetworkSection


class ExecutorSection(Section):
    """What solves the compute graph."""

    kind: Literal["inline", "batched", "processes", "dask"] = "inline"
    """``inline`` solves one task at a time (the reference); ``batched`` stacks equal tasks of many nodes; ``processes``
    and ``dask`` solve task by task in several processes, or on several machines."""
    workers: int = Field(0, ge=0, le=256)
    """Processes of ``processes``, or of the cluster that ``dask`` starts; 0: one for each core."""
    address: str = ""
    """Scheduler of a running Dask cluster (``tcp://host:port``); empty: one is started on this machine."""
    kernel: Literal["auto", "loop", "vmap", "stacked", "channels-last"] = "auto"
    """How ``batched`` trains: ``auto`` times what there is for the model and takes the fastest."""
    device: str = "cpu"
    """Where ``batched`` computes: ``cpu``, or ``cuda`` where torch has it."""
    window_tasks: int = Field(0, ge=0)
    """Recorded tasks after which a simulation solves what is wanted so far; 0: about two rounds of all nodes."""
    memory_bytes: int = Field(0, ge=0)
    """Budget for the models of a simulation's compute graph; past it they go to a file. Metrics, and the buffers of
    kernels, do not count. 0: none."""
    spill_folder: str = ""
    """Where that file is; empty: the system's folder for temporary files."""
    deduplicate: bool = True
    """Solve equal tasks on equal inputs once."""
    fuse: bool = True
    """Solve in smaller batches, and train what has just been mixed at once, so that fewer models are alive."""
    cache: str = ""
    """Folder that keeps solved values: a run that shares a beginning with an earlier one, or with one that was killed,
    does not solve it again. Empty: none."""
    cache_windows: int = Field(1, ge=1)
    """Keep what every n-th window leaves alive; metrics and final models are always kept."""
    cache_bytes: int = Field(10 * 2**30, ge=0)
    """Size of the cache's folder, past which what was not used for longest goes."""


class RecordSection(Section):
    """What a run keeps besides its metrics."""

    models: bool = False
    """Write each node's final model to ``models/NODE.safetensors``."""
    events: bool = False
    """Write every event to ``events.jsonl``."""
    trace: bool = False
    """Write what every node does when to ``trace.json``, for trace viewers."""
    lineage: bool = False
    """Write how every value came to be and who received it to ``lineage/``, for the accounts that ``privacy.network``
    in the summary and ``starling privacy network`` give. Runs of protocols that noise models themselves do so anyway,
    unless they are long."""
    targets: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.5, 0.8, 0.9)
    """Accuracies whose time and bytes to reach them are reported."""
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
    public: PublicSection = PublicSection()
    model: ModelSection = ModelSection()
    student: StudentSection = StudentSection()
    training: TrainingSection = TrainingSection()
    aggregation: AggregationSection = AggregationSection()
    privacy: PrivacySection = PrivacySection()
    devices: DevicesSection = DevicesSection()
    network: NetworkSection = NetworkSection()
    churn: ChurnSection = ChurnSection()
    faults: tuple[InjectedFaultSection, ...] = ()
    mods: tuple[ModSection, ...] = ()
    attackers: tuple[AttackerSection, ...] = ()
    executor: ExecutorSection = ExecutorSection()
    record: RecordSection = RecordSection()
