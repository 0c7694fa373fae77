"""The options of cohort-parallel learning."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from node import LEAST_SENDERS, ConfigError
from node.cohorts import OortSection, StoppingSection
from protocols.cohort_round import Weights
from protocols.forming import Rule
from protocols.server import ServerOptions
from protocols.unify_settings import UnifyOptions


class Settings(ServerOptions, UnifyOptions):
    """Keys of ``[protocol]``."""

    cohorts: int = Field(4, ge=1)
    """How many; 1 is federated averaging."""
    forming: Rule = "random"
    """By what nodes find into cohorts."""
    path: str = ""
    """``forming = "file"``: a line for each node, with its number and its cohort's."""
    histogram_epsilon: float = Field(math.inf, gt=0)
    """Differential privacy of the labels that nodes tell of; infinite for the plain truth."""
    forming_rounds: int = Field(20, ge=1)
    """``forming = "loss"``: rounds in which nodes train the model that suits them best, before that says where they
    belong."""
    forming_starts: int = Field(5, ge=1)
    """``forming = "loss"``: how often it is tried, with other first models; the best try counts."""
    leader: Literal["elected", "fixed"] = "elected"
    """Whether members elect who leads, or each cohort's first one does for good, as a server would."""
    leader_trains: bool = True
    """Whether the leader is a member like all others, too; where not, it only leads."""
    preference: Literal["equal", "rotation", "sortition", "capable"] = "equal"
    """Who is to be elected: anybody, or whom the turn or a hash puts first, or who is fast, near and always there."""
    rotate_every: int = Field(0, ge=0)
    """Rounds after which an elected leader hands over to whom the preference puts first then; 0: it never does."""
    min_size: int = Field(1, ge=1)
    """A cohort with fewer members that are there dissolves: each of them joins another one that has room."""
    election_timeout_s: float = Field(2.0, gt=0)
    """How long a leader is silent before another one is elected; 10 round trips at least."""
    muster_s: float = Field(20.0, gt=0)
    """How long the first leader of a cohort waits for its members before it begins without some; and how long members
    wait for a majority or a fixed leader that is lost, before they join other cohorts."""
    transfer_s: float = Field(60.0, gt=0)
    """Longest wait for a model that a node has asked another one for; what a member has answered longer ago, and its
    leader still asks for, is lost."""
    sample: int = Field(0, ge=0)
    """Members of a cohort whose updates make a round; 0: all."""
    sampling: Literal["random", "capacity", "oort"] = "random"
    """Whom to ask: all are equally likely, or the faster the likelier, or those that there is most to learn from in the
    shortest time."""
    oort: OortSection = OortSection()
    """Constants of ``sampling = "oort"``."""
    over_select: float = Field(0.0, ge=0)
    """Share of further members to ask; the first ``sample`` to answer count."""
    deadline_s: float = Field(0.0, ge=0)
    """Longest wait for a round's updates; 0: until all have come, or are gone."""
    weights: Weights = "samples"
    """How much members count, in models and in validation losses; ``nova``: by samples, and what a member changes is
    divided by how many steps it took (FedNova: Wang et al., NeurIPS 2020)."""
    correction: Literal["none", "scaffold"] = "none"
    """Against members' drift to their own optima: control variates (SCAFFOLD), for twice the bytes. With few of many
    members a round it can diverge."""
    secure: bool = False
    """Add up members' models under masks, so that leaders learn sums and no single model: of three others or more, of
    whom more than two thirds must be there in the end. Losses and numbers of samples are told in the clear."""
    branching: int = Field(0, ge=0)
    """Members whose updates one of them adds up for the leader; 0: the leader adds up all of them itself."""
    window: int = Field(64, ge=1)
    """Models that a leader holds at most while it waits for those of lower numbers."""
    stopping: StoppingSection = StoppingSection()
    """When a cohort has converged."""
    checkpoint: Literal["best", "last"] = "best"
    """Which of its models is the cohort's: that before the best smoothed loss, or the newest."""

    @property
    def least_size(self) -> int:
        """Members that have to be there for a cohort to go on: under masks, a leader and those of a sum."""
        return max(self.min_size, 1 + LEAST_SENDERS) if self.secure else self.min_size

    def check_rounds(self) -> None:
        """Raise ConfigError for options of a round that do not go together."""
        if self.sampling == "oort" and not self.sample:
            raise ConfigError("protocol.sample: 0 asks all; with protocol.sampling = 'oort' write 1 or more")
        if self.branching == 1:
            raise ConfigError("protocol.branching: 1 is no sum; allowed: 0, or 2 and more")
        if self.branching and (self.sampling != "random" or self.over_select):
            raise ConfigError(
                "protocol.branching: the leader hears sums, not members; "
                "allowed: 0 with protocol.sampling = 'capacity' or 'oort', and with protocol.over_select"
            )
        if self.correction == "scaffold" and self.weights == "nova":
            raise ConfigError(
                "protocol.weights: 'nova' does not go with protocol.correction = 'scaffold'; allowed: samples, uniform"
            )
