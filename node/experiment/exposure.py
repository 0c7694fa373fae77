"""What nodes have learned of each other, by a run's log, as every summary states it where noise is spread in a network.

Muffliato, Zip-DL and DECOR cannot say beforehand what their noise is worth: that depends on who received what. So their
runs keep the log without being asked, as long as it is short, and end with what the exact accountant makes of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from node import provenance
from node.config import ExperimentConfig
from node.errors import ConfigError
from node.privacy.exposure import Exposure, Pair, Ring, of_each
from node.privacy.from_run import Told, told
from node.privacy.pld import Adjacency
from node.protocol import Protocol

ADJACENCY: Adjacency = "replace_one"
MOST_LOGGED = 20_000
"""Models that all nodes send: of more, a log is kept only where it is asked for. A hundred nodes send that in two
hundred exchanges, and their log takes ten megabytes."""
MOST_NODES = 300
MOST_WORK = 5e11
"""Multiplications, in one to three minutes of a core. Of a hundred nodes with four neighbours each and noise of their
own, a hundred rounds take 1.6e11 (20 s); DECOR's, whose edges have noise too, 4.8e11 (60 s); Zip-DL's are beyond it."""

_BY_HAND = "`starling privacy network` with the run's folder tells it"


def is_logged(config: ExperimentConfig, protocol: type[Protocol], options: Any) -> bool:
    """Whether a run logs how values came to be: it is asked to, or nothing else can account for its noise."""
    exchanges = getattr(options, "rounds", 1) * getattr(options, "gossip_rounds", 1)
    is_short = config.nodes <= MOST_NODES and config.nodes * exchanges <= MOST_LOGGED
    return config.record.lineage or (needs_log(config, protocol, options) and is_short)


def needs_log(config: ExperimentConfig, protocol: type[Protocol], options: Any) -> bool:
    """Whether models are hidden by noise of the protocol's own, and by nothing that is accounted for record by record.

    That is a protocol that hides models and has an option ``noise``.
    """
    has_noise = protocol.hides(options) and getattr(options, "noise", 0) > 0
    return has_noise and config.privacy.mechanism != "record"


def stated(
    folder: Path, status: str, config: ExperimentConfig, protocol: type[Protocol], options: Any
) -> dict[str, Any]:
    """The ``privacy.network`` of a run's summary; empty where no log would say anything.

    ``left_out`` says why there are no figures, and how to get them.

    Args:
        folder: of the logs.
        status: how the run ended.
        config: the experiment.
        protocol: what it runs.
        options: of the protocol.
    """
    if not is_logged(config, protocol, options):
        asked = f"the log would be long: run with record.lineage = true, then {_BY_HAND}"
        return {"left_out": asked} if needs_log(config, protocol, options) else {}
    if config.privacy.mechanism == "record":
        return {}  # its noise is in no log, and its own epsilon holds towards everybody
    if status != "finished":
        return {"left_out": f"the run did not finish; {_BY_HAND}"}
    missing: list[str] = []
    try:
        happened = told(provenance.read(folder, config.nodes, missing.append))
        _check_work(happened)
        return figures(of_each(happened, config.privacy.delta, ADJACENCY), missing)
    except ConfigError as error:
        return {"left_out": str(error)}
    except KeyboardInterrupt:  # what else the run has led to is not lost for this
        return {"left_out": f"interrupted; {_BY_HAND}"}


def figures(exposure: Exposure, missing: Sequence[str] = ()) -> dict[str, Any]:
    """All that an exposure says, for JSON; what is infinite is None.

    ``epsilon`` and ``mu`` are over pairs of a node and another that observes it. Where contributions are not clipped,
    there is no epsilon, and mu is for those that are no farther apart than clipped ones could be. ``missing``: what the
    log lacks.
    """
    epsilons = [pair.epsilon if exposure.is_clipped else math.inf for pair in exposure.pairs]
    return {
        "unit": "node",
        "adjacency": exposure.adjacency,
        "view": exposure.view,
        "delta": exposure.delta,
        "conversion": "gdp",
        "label": label(missing),
        "missing": list(missing),
        "clipped": exposure.is_clipped,
        "contributions": "one" if exposure.is_averaging else "many",
        "epsilon": _over(epsilons),
        "mu": _over([pair.mu for pair in exposure.pairs]),
        "distances": [_in_json(ring) for ring in exposure.rings()],
        "worst": _in_json(exposure.worst),
    }


def label(missing: Sequence[str]) -> str:
    """How far figures can be relied on, where this is missing from the log."""
    return "incomplete (non-adaptive)" if missing else "exact (non-adaptive)"


def _check_work(happened: Told) -> None:
    lineage = happened.lineage
    nodes, columns = len(lineage.nodes), len(lineage.columns)
    rows = [len(lineage.known_to({node})) for node in lineage.nodes]
    work = math.fsum(count * columns * min(count, columns) for count in rows)
    if nodes > MOST_NODES or work > MOST_WORK:
        raise ConfigError(
            f"{nodes} nodes and {work:.1e} multiplications; up to {MOST_NODES} and {MOST_WORK:.0e} are done unasked;"
            f" {_BY_HAND}"
        )


def _over(values: Sequence[float]) -> dict[str, float | None]:
    return {"mean": _finite(math.fsum(values) / len(values)), "max": _finite(max(values))}


def _in_json(told: Pair | Ring) -> dict[str, Any]:
    return {name: _finite(value) if isinstance(value, float) else value for name, value in told._asdict().items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
