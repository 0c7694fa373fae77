"""The one-shot benchmark as data: who takes part, in which settings, and the experiment that each pair of them is.

Everything that entrants are compared in is equal for all of a setting: the division of the data, the initial model, the
test set that no algorithm sees. Public samples are set aside in every setting, so that those who use none train on no
more than those who do.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from node.config import DataSection, ExperimentConfig, PublicSection
from node.errors import ConfigError
from node.experiment import oneshot_pool as pool
from node.experiment.loading import validated
from node.experiment.oneshot_damage import damaged

CLIENTS = 10
FLOPS_PER_S = 1e9
"""What every simulated device computes: its seconds tell its FLOPs."""
_TRAINING = {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "batch_size": 32, "local_epochs": 40}
_ROUND = {**_TRAINING, "momentum": 0.0, "local_epochs": 1}
_PARTITION = re.compile(r"(iid|dirichlet|shards|quantity|natural)(?:\(([A-Za-z0-9_.]+)\))?")
_KNOWN = "node.experiment.oneshot_reference:divided"
"""Divisions of digits among ten clients that figures are known of."""
_KEYS = {"dirichlet": "alpha", "quantity": "alpha", "shards": "shards_per_node", "natural": "column"}

Division = Literal["closed", "reference", "open"]
"""Closed: the experiment's own local models and settings. Open: somebody else's results. Never in one ranking."""


@dataclass(frozen=True)
class Entrant:
    """A row of the table: an algorithm with its options, or a line of reference."""

    name: str
    algorithm: str = ""
    """Of ``starling list algorithms``, or module:Class; empty: ``sets`` names another protocol."""
    options: Mapping[str, Any] = field(default_factory=dict)
    sets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Other tables of the experiment, and the keys in them."""
    division: Division = "closed"
    is_slow: bool = False
    """Whether it takes so long that small presets meet it in few settings."""
    measures: Literal["result", "mean", "best", "worst"] = "result"
    """What its figures are those of: of what the aggregator has made, or of the clients' own models."""

    @property
    def options_json(self) -> str:
        """Its options as algorithms take them."""
        return json.dumps(dict(self.options), sort_keys=True)


@dataclass(frozen=True, order=True)
class Setting:
    """What all entrants meet alike."""

    data: str
    partition: str
    """``iid``, ``dirichlet(ALPHA)``, ``shards(A CLIENT)``, ``quantity(ALPHA)`` or ``natural(COLUMN)``."""
    clients: int = CLIENTS
    seed: int = 0
    damage: str = ""
    """``drop 3``: three clients at random never upload; and more (:mod:`node.experiment.oneshot_damage`). Empty: all is
    well."""
    epsilon: float = 0.0
    """What each client may spend of its records' privacy on what it trains; 0: nothing is protected."""
    each: int = 0
    """Samples that clients have to train on, on average; 0: all that there are, however many clients."""

    @property
    def block(self) -> str:
        """The setting without its seed, in words; alpha never without the rule that it is for."""
        rule = self.partition.replace("dirichlet", "dir[class]")
        damaged = f", {self.damage}" if self.damage else ""
        protected = f", epsilon {self.epsilon:g}" if self.epsilon else ""
        each = f" of {self.each}" if self.each else ""
        return f"{self.data} {rule} N={self.clients}{each}{damaged}{protected}"

    @property
    def is_plain(self) -> bool:
        """Whether all is well, nothing protected and nothing left out: where entrants are ranked."""
        return not self.damage and not self.epsilon and not self.each


@dataclass(frozen=True)
class Cell:
    """One entrant in one setting."""

    entrant: Entrant
    setting: Setting

    def config(self) -> ExperimentConfig:
        """The experiment.

        Raises:
            ConfigError: the setting, or a key of the entrant's, is wrong.
        """
        setting, entrant = self.setting, self.entrant
        nodes = 2 if entrant.name == CENTRAL else setting.clients + 1
        values: dict[str, Any] = {
            "name": "oneshot",
            "seed": setting.seed,
            "nodes": nodes,
            "clock": "virtual",
            "protocol": {"use": "oneshot", "algorithm": entrant.algorithm, "options": dict(entrant.options)},
            **sampled(setting),
            "model": {"name": "mlp", "hidden": [100]},
            "training": dict(_TRAINING),
            "devices": {"reference_flops": FLOPS_PER_S / 1000, "seconds_per_sample": 0.001},
        }
        for table, keys in entrant.sets.items():
            values[table] = dict(keys) if table == "protocol" else {**values.get(table, {}), **keys}
        if nodes > 2 and setting.damage:
            for table, keys in damaged(setting.damage, setting.clients, setting.seed, lambda: held(setting)).items():
                values[table] = {**values.get(table, {}), **keys} if isinstance(keys, dict) else keys
        if setting.epsilon:
            values["privacy"] = {"mechanism": "record", "epsilon": setting.epsilon}
        return validated(values, f"{entrant.name} in {setting.block}")


CENTRAL = "centralised"
REFERENCES = (
    Entrant(CENTRAL, "average", division="reference"),
    Entrant("best client", "average", division="reference", measures="best"),
    Entrant("mean client", "average", division="reference", measures="mean"),
    Entrant("worst client", "average", division="reference", measures="worst"),
    *(
        Entrant(
            f"fedavg {rounds} rounds" if rounds > 1 else "fedavg 1 round",
            sets={"protocol": {"use": "fedavg", "rounds": rounds, "deadline_s": 60.0}, "training": _ROUND},
            division="reference",
        )
        for rounds in (30, 10, 1)
    ),
)
"""Rows that every table has: all data in one place, each client alone, and more rounds than one."""


def sampled(setting: Setting) -> dict[str, dict[str, Any]]:
    """The tables of a setting's data. Raises ConfigError for data that there are not, or are too few."""
    tables: dict[str, dict[str, Any]] = {
        "data": {"name": setting.data, "test_fraction": pool.TEST_FRACTION, **divided(setting)},
        "public": {"name": "held-out", "fraction": pool.PUBLIC_FRACTION, "check_fraction": 0.0},
    }
    if setting.data == "digits" and setting.clients == CLIENTS and not setting.each and _is_known(setting.partition):
        tables["data"]["division"] = _KNOWN
    if setting.each:
        for table, keys in pool.scaled(setting.data, setting.each * setting.clients, setting.seed).items():
            tables[table] |= keys
    return tables


def _is_known(partition: str) -> bool:
    return partition.partition("(")[0] in ("iid", "dirichlet", "shards")


def held(setting: Setting) -> NDArray[np.int64]:
    """Samples of each class that each client has, [clients, classes]."""
    tables = sampled(setting)
    return pool.held(DataSection(**tables["data"]), PublicSection(**tables["public"]), setting.clients, setting.seed)


def divided(setting: Setting) -> dict[str, Any]:
    """The keys of ``[data]`` that a partition's name means. Raises ConfigError for another name."""
    found = _PARTITION.fullmatch(setting.partition)
    if found is None or (found[2] is None) != (found[1] == "iid"):
        raise ConfigError(
            f"partition: {setting.partition!r} is none; allowed: iid, dirichlet(ALPHA), shards(A CLIENT), "
            "quantity(ALPHA), natural(COLUMN)"
        )
    kind, value = found[1], found[2]
    if kind == "iid":
        return {"partition": kind}
    try:
        number = {"shards": int, "natural": str}.get(kind, float)(value)
    except ValueError:
        raise ConfigError(f"partition: {setting.partition!r}: {value!r} is no number") from None
    if not isinstance(number, str) and not 0 < number < math.inf:
        raise ConfigError(f"partition: {setting.partition!r}: {value} is out of range; allowed: more than 0, finite")
    least = {"least_samples": 10} if kind == "dirichlet" and setting.data == "digits" and setting.clients <= 10 else {}
    return {"partition": kind, _KEYS[kind]: number, **least}
