"""What an experiment is: every key of the TOML file, its default, its unit and its reason.

Reading a file, applying ``--set`` and turning a wrong key into one clear line is :mod:`node.experiment`'s work.
"""

from node.config.aggregation import AggregationSection
from node.config.attackers import AttackerSection
from node.config.experiment import ExecutorSection, ExperimentConfig, RecordSection
from node.config.faults import InjectedFaultSection, check_faults
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
from node.config.section import Distribution, Fraction, NotNegative, Positive, Section
from node.config.simulated import (
    ChurnSection,
    DevicesSection,
    FaultSection,
    Geography,
    LatencyMatrix,
    NetworkSection,
    RuleSection,
)

__all__ = [
    "AggregationSection",
    "AttackerSection",
    "ChurnSection",
    "DataSection",
    "DevicesSection",
    "Distribution",
    "ExecutorSection",
    "ExperimentConfig",
    "FaultSection",
    "Fraction",
    "Geography",
    "InjectedFaultSection",
    "LatencyMatrix",
    "ModSection",
    "ModelSection",
    "NetworkSection",
    "NotNegative",
    "Positive",
    "PrivacySection",
    "ProtocolSection",
    "PublicSection",
    "RecordSection",
    "RuleSection",
    "Section",
    "StudentSection",
    "TopologySection",
    "TrainingSection",
    "check_faults",
]
