"""The options of cohort-parallel learning."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from node import Protocol
from node.cohorts import StoppingSection
from protocols.forming import Rule


class Settings(Protocol.Config):
    """Keys of ``[protocol]``."""

    cohorts: int = Field(4, ge=1)
    """How many; 1 is federated averaging."""
    forming: Rule = "random"
    """By what nodes find into cohorts."""
    path: str = ""
    """``forming = "file"``: a line for each node, with its number and its cohort's."""
    histogram_epsilon: float = Field(math.inf, gt=0)
    """Differential privacy of the labels that nodes tell of; infinite for the plain truth."""
    leader: Literal["elected", "fixed"] = "elected"
    """Whether members elect who leads, or each cohort's first one does for good, as a server would."""
    leader_trains: bool = True
    """Whether the leader is a member like all others, too; where not, it only leads."""
    preference: Literal["equal", "rotation", "sortition"] = "equal"
    """Who is to be elected: anybody, or whom the turn or a hash puts first."""
    election_timeout_s: float = Field(2.0, gt=0)
    """How long a leader is silent before another one is elected; 10 round trips at least."""
    muster_s: float = Field(20.0, gt=0)
    """How long the first leader of a cohort waits for its members before it begins without some."""
    transfer_s: float = Field(60.0, gt=0)
    """Longest wait for a model that a node has asked another one for."""
    sample: int = Field(0, ge=0)
    """Members of a cohort whose updates make a round; 0: all."""
    sampling: Literal["random", "capacity"] = "random"
    """Whom to ask: all are equally likely, or the faster the likelier."""
    over_select: float = Field(0.0, ge=0)
    """Share of further members to ask; the first ``sample`` to answer count."""
    deadline_s: float = Field(0.0, ge=0)
    """Longest wait for a round's updates; 0: until all have come, or are gone."""
    weights: Literal["samples", "uniform"] = "samples"
    """How much members count, in models and in validation losses."""
    window: int = Field(64, ge=1)
    """Models that a leader holds at most while it waits for those of lower numbers."""
    proximal: float = Field(0.0, ge=0)
    """FedProx: strength of the pull towards the cohort's model during local training."""
    stopping: StoppingSection = StoppingSection()
    """When a cohort has converged."""
    checkpoint: Literal["best", "last"] = "best"
    """Which of its models is the cohort's: that before the best smoothed loss, or the newest."""
    quantile: float = Field(1.0, gt=0, le=1)
    """Share of the cohorts that must have stopped; the others are left out."""
    unify: str = "average"
    """What becomes of the cohorts' models: a name in :data:`node.unifiers.UNIFIERS`."""
