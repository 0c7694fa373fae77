"""What a run promises about its data, and what it may spend of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from node.config.section import NotNegative, Positive, Section

LEAST_SIGMA, MOST_SIGMA = 1e-6, 1e6
"""Noise multipliers that accountants have figures for."""


def _in_bounds(sigma: float) -> float:
    if sigma and not LEAST_SIGMA <= sigma <= MOST_SIGMA:
        raise ValueError(f"{sigma:g}; allowed are 0, and numbers from {LEAST_SIGMA:g} to {MOST_SIGMA:g}")
    return sigma


class PrivacySection(Section):
    """Differentially private training: of every record, or of all that a node holds."""

    mechanism: Literal["none", "record", "node"] = "none"
    """What is protected: single records, by DP-SGD; or all data of a node at once, by clipping and noising what each
    ``train`` has changed; or nothing."""
    clip: Positive = 1.0
    """Longest that a contribution may be, a record's gradient or a node's update: longer ones are shortened to it, and
    noise is in proportion to it. There is none without clipping: it would guarantee nothing."""
    noise_multiplier: Annotated[float, AfterValidator(_in_bounds)] = 1.0
    """Standard deviation of the noise over ``clip``, from 1e-6 to 1e6; 0: none, and no guarantee."""
    epsilon: NotNegative = 0.0
    """The most that each node may spend; 0: no limit, what is spent is only counted."""
    delta: float = Field(1e-5, gt=0, lt=1)
    """Chance that the guarantee fails; below one over the records of the smallest node, or it promises little."""
    accountant: Literal["rdp", "pld", "gdp"] = "rdp"
    """How steps add up: ``rdp`` always can; ``pld`` is tighter for random batches and slower, and needs the extra
    ``[privacy]``; ``gdp`` is exact, where every step takes all records."""
    sampling: Literal["poisson"] = "poisson"
    """How batches are drawn under ``record``: every record with its own coin, ``training.batch_size`` of them on
    average. That makes the number of a node's records public. Shuffled batches have no such guarantee."""
    view: Literal["T1", "T2", "T3", "T4", "T5", "T6", "T7"] = "T1"
    """Threat model that the guarantee is told for: T1 curious neighbour, T2 colluding ones, T3 eavesdropper on all
    links, T4 observer of final models, T5 active neighbour, T6 Sybils, T7 coordinator."""
    gradients: Literal["ghost", "vmap"] = "ghost"
    """How single records' gradients are found: layer by layer, hardly ever written out, or one by one for any model."""
    noise: Literal["auto", "seeded", "secret"] = "auto"
    """Where noise and batches are drawn from: the operating system (``secret``), or the experiment's seed (``seeded``),
    which can be repeated and protects nobody; ``auto``: secret in real runs, seeded in simulations."""
    when_spent: Literal["stop", "relay"] = "stop"
    """When a node's next training would exceed ``epsilon``: the run ends, with exit code 3 and all that was measured,
    or the node goes on mixing and passing on models without touching its training data. The latter is refused for
    protocols and ``[aggregation]`` rules that compare models by their losses on these."""
