"""The gradient noise scale of each setting of a study, by which the number of cohorts is advised."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from node.cli.cohort_study import Row, Study, grouped
from node.errors import ConfigError

if TYPE_CHECKING:
    from node.experiment.noise_scale import NoiseScale


def scales(study: Study) -> dict[str, NoiseScale]:
    """By setting, from the first updates of its nodes anew, mean over seeds: no run keeps them.

    Left out are settings whose data are not here any longer.
    """
    rows = [row for row in study.rows if row.cohorts]
    found = {setting: _mean(its) for setting, its in grouped(rows, lambda row: row.setting).items()}
    return {setting: scale for setting, scale in found.items() if scale is not None}


def _mean(rows: list[Row]) -> NoiseScale | None:
    from node.experiment.noise_scale import NoiseScale, noise_scale  # only now: torch takes seconds to load

    by_seed = {row.run.summary.seed: row.run.config for row in rows}
    try:
        told = [noise_scale(by_seed[seed]) for seed in sorted(by_seed)]
    except ConfigError:
        return None
    mean = np.mean([scale.participants for scale in told])
    return NoiseScale(float(mean), round(float(np.median([scale.advised_cohorts for scale in told]))))
